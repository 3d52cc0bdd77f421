"""A run from its config: the Task by its dotted name, the batches, then the trainer.

The one place where a model meets the data and the trainer; the command line, the quickstart and
every study start their runs here.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.data import pipeline
from jaxmm.sharding import MeshConfig
from jaxmm.studies.data_checks import check_data
from jaxmm.task import Task, TrainState
from jaxmm.tokenizers import text
from jaxmm.train import loop
from jaxmm.train.optimizer import OptimizerConfig
from jaxmm.train.run_config import RunConfig

_NOT_THE_TRAINERS = ('task', 'model', 'data', 'eval_data')


def with_settings(config, assignments: Sequence[str]):
  """`config.override`, also for settings that a config leaves at their default.

  What is set for `data` holds for `eval_data`, too, where both had the same value (another path,
  but not another split), unless that is set itself. A keep-list holds for `data` alone.

  Args:
    config: a ConfigDict; changed in place.
    assignments: `key.subkey=value`; keys of the trainer, the data, the optimizers and the model.

  Raises:
    ConfigError: see `jaxmm.config.override`. What is below `model` the Task alone knows, and
      `make_task` names the mistakes there.
  """
  data = configs.plain(pipeline.DataConfig())
  defaults = configs.plain(
    RunConfig(task='', steps=1, batch=1, optimizer={label: {} for label in config.optimizer})
  )
  defaults |= {'mesh': configs.plain(MeshConfig()), 'data': data, 'eval_data': data, 'model': {}}
  rule = configs.plain(OptimizerConfig())
  defaults['optimizer'] = dict.fromkeys(config.optimizer, rule)
  known = configs.flattened(defaults)
  assignments = [*_for_held_out(config, assignments, known), *assignments]
  for assignment in assignments:
    key = assignment.partition('=')[0]
    if key not in known or key in configs.flattened(config):
      continue
    *parents, leaf = key.split('.')
    if parents and parents[0] not in config and parents[0] == 'eval_data':
      continue
    with config.unlocked():
      node = config
      for parent in parents:
        if parent not in node:
          node[parent] = type(config)()
        node = node[parent]
      node[leaf] = known[key]
  return configs.override(config, assignments, unchecked=('model',))


def _for_held_out(config, assignments: Sequence[str], known: Mapping[str, Any]) -> list[str]:
  """The assignments to `data` once more, for `eval_data` where it had the same value."""
  if not config.get('eval_data'):
    return []
  before = configs.flattened(config)
  out = []
  for assignment in assignments:
    section, _, rest = assignment.partition('.')
    key = rest.partition('=')[0]
    old, held_out = (
      before.get(f'{part}.{key}', known.get(f'{part}.{key}')) for part in ('data', 'eval_data')
    )
    is_shared = f'data.{key}' in known and key != 'keep_list'
    if section == 'data' and is_shared and old == held_out:
      out.append(f'eval_data.{rest}')
  return out


def make_task(config: Mapping[str, Any]) -> Task:
  """The Task that `config.task` (a dotted module with `make_task`) builds from `config.model`.

  Raises:
    ConfigError: no such module, or a module that is not one of a model.
  """
  name = config['task']
  try:
    module = importlib.import_module(name)
  except ModuleNotFoundError as error:
    if not name.startswith(error.name or '\0'):
      raise  # the module exists; something it imports does not
    raise ConfigError(
      f'task is {name!r}, but there is no such module; expected a dotted one that has make_task, '
      'for example jaxmm.tokenizers.vqgan_task or jaxmm.models.image_lm'
    ) from error
  if not hasattr(module, 'make_task'):
    raise ConfigError(f'task is {name!r}, a module without make_task(model) -> Task')
  return module.make_task(configs.plain(config['model']))


def seconds_on_a_cpu(config: Mapping[str, Any]) -> float:
  """Rough seconds of a training run on two CPU cores; only the ratio to others matters."""
  return 30.0 + make_task(config).step_flops(config['batch']) * config['steps'] / 4e10


def make_batches(
  config: Mapping[str, Any],
  *,
  train: bool = True,
  batch: int | None = None,
  share: tuple[int, int] | None = None,
) -> pipeline.Batches:
  """The batches of `config.data` (training) or `config.eval_data` for this process.

  Args:
    share: what it reads of each (`sharding.share_of_rows`); None for that of its number.
  """
  section = 'data' if train else 'eval_data'
  if not config.get(section):
    raise ConfigError(
      f'the config has no {section}; a converted checkpoint knows no data: name pictures '
      f'(--images) or give the config a {section} section'
    )
  data = configs.from_mapping(pipeline.DataConfig, configs.plain(config[section]), section)
  if data.keep_list and not train:
    raise ConfigError(
      f'eval_data.keep_list is {data.keep_list!r}, but held-out data is never pruned: what a list '
      "drops would leave the evaluation, too; set it to ''"
    )
  index, count = share or (jax.process_index(), jax.process_count())
  # Data imports no tokenizer; text that wants a trained one gets it here.
  is_encoded = data.name in ('text', 'mixed') and data.text.tokenizer != 'bytes'
  return pipeline.make_batches(
    data,
    batch_size=config['batch'] if batch is None else batch,
    seed=config['seed'],
    process_index=index,
    process_count=count,
    train=train,
    encode=text.load(data.text.tokenizer).encode if is_encoded else None,
  )


def train_from_config(
  config: Mapping[str, Any], workdir: str | pathlib.Path, *, evaluates: bool = True, **options: Any
) -> TrainState:
  """Trains what a config describes, resuming in `workdir` if something is there.

  Args:
    config: see `experiments/*/*.py`.
    workdir: the run directory.
    evaluates: whether the Task's evaluations run on `config.eval_data`, as `config.evaluate` says.
    **options: passed to `train.loop.train` (init_from, accept_config_change, profile, ...).
  """
  settings = configs.from_mapping(RunConfig, configs.plain(config), 'the config')
  task = make_task(config)
  mesh, _ = loop.machine(settings, options.pop('mesh', None))
  share = sharding.share_of_rows(mesh)
  batches = make_batches(config, share=share)
  evaluates = evaluates and bool(config.get('eval_data'))
  eval_batches = make_batches(config, train=False, share=share) if evaluates else None
  check_data(task, {'data': batches, 'eval_data': eval_batches})
  return loop.train(
    settings, task, batches, workdir, eval_batches=eval_batches, mesh=mesh, **options
  )
