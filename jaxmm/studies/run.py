"""A run from its config: the Task by its dotted name, the batches, then the trainer.

The one place where a model meets the data and the trainer; the command line, the quickstart and
every study start their runs here.
"""

from __future__ import annotations

import importlib
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.data import pipeline
from jaxmm.task import Task, TrainState
from jaxmm.tokenizers import text
from jaxmm.train import loop

_NOT_THE_TRAINERS = ('task', 'model', 'data', 'eval_data')


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


def make_batches(
  config: Mapping[str, Any], *, train: bool = True, batch: int | None = None
) -> pipeline.Batches:
  """The batches of `config.data` (training) or `config.eval_data` for this process."""
  section = 'data' if train else 'eval_data'
  if section not in config:
    raise ConfigError(f'the config has no {section}')
  data = configs.from_mapping(pipeline.DataConfig, configs.plain(config[section]), section)
  # Data imports no tokenizer; text that wants a trained one gets it here.
  is_encoded = data.name == 'text' and data.text.tokenizer != 'bytes'
  return pipeline.make_batches(
    data,
    batch_size=batch or config['batch'],
    seed=config['seed'],
    process_index=jax.process_index(),
    process_count=jax.process_count(),
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
  task = make_task(config)
  batches = make_batches(config)
  evaluates = evaluates and bool(config.get('eval_data'))
  eval_batches = make_batches(config, train=False) if evaluates else None
  return loop.train(
    configs.plain(config), task, batches, workdir, eval_batches=eval_batches, **options
  )
