"""What a run is told, and the directory that remembers it."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.experimental.compilation_cache import compilation_cache

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.train import environment
from jaxmm.train.optimizer import OptimizerConfig
from jaxmm.train.step import StepConfig

# What may change between the parts of a run: what is written and how often, and the machine; also
# how long it is, unless a learning rate follows it (`free_settings`). Everything else decides what
# the parameters become.
FREE = (
  'microbatches',
  'mesh',
  'rules',
  'checkpoint',
  'log',
  'evaluate',
  'eval_data',
  'skip_batches',
  'compilation_cache',
)


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  """`every`: steps between checkpoints (0: only the last); `keep`: how many of the newest stay;
  `keep_every`: those at multiples of it stay for good."""

  every: int = 1000
  keep: int = 3
  keep_every: int | None = None


@dataclasses.dataclass(frozen=True)
class LogConfig:
  """`every`: steps between log lines; a line averages over the steps since the one before."""

  every: int = 50


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
  """When the Task's evaluations run.

  Attributes:
    every: steps between them; 0 evaluates after the last step only.
    batches: how many batches of the held-out data; None for all of it.
    weights: 'params', 'ema', or 'auto': the average where there is one.
  """

  every: int = 0
  batches: int | None = None
  weights: str = 'auto'


@dataclasses.dataclass(frozen=True)
class RunConfig:
  """A run, as the user's config file describes it (`jaxmm.config.from_mapping`).

  Attributes:
    task: dotted module with `make_task(model) -> Task`; the trainer only records it.
    steps: optimizer steps in all.
    batch: rows of a global batch.
    optimizer: settings of an `OptimizerConfig` a label of the Task; None for a label that the Task
      does not have after all (`--config.model.regularizer=None`).
    model, data, eval_data: recorded, read by those who build the Task and the batches.
    mesh: sizes of the mesh axes data, fsdp, tensor.
    rules: 'dp', 'fsdp' or 'tensor'.
    ema, ema_warmup, microbatches: see `train.step.StepConfig`.
    skip_batches: data positions that are passed over (a batch that broke the run).
    compilation_cache: where compiled programs are kept: a directory, '' for the user's cache
      directory, 'off' for nowhere. A directory already set in jax (JAX_COMPILATION_CACHE_DIR) wins.
  """

  task: str
  steps: int
  batch: int
  optimizer: Mapping[str, Any]
  seed: int = 0
  microbatches: int = 1
  model: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  data: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  eval_data: Mapping[str, Any] | None = None
  ema: float = 0.0
  ema_warmup: bool = False
  mesh: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  rules: str = 'dp'
  checkpoint: CheckpointConfig = CheckpointConfig()
  log: LogConfig = LogConfig()
  evaluate: EvaluateConfig = EvaluateConfig()
  skip_batches: tuple[int, ...] = ()
  compilation_cache: str = ''

  def __post_init__(self):
    at_least = {
      'steps': (self.steps, 1),
      'batch': (self.batch, 1),
      'checkpoint.every': (self.checkpoint.every, 0),
      'checkpoint.keep': (self.checkpoint.keep, 1),
      'log.every': (self.log.every, 1),
      'evaluate.every': (self.evaluate.every, 0),
      'evaluate.batches': (self.evaluate.batches, 1),
    }
    for name, (value, low) in at_least.items():
      if value is not None and value < low:
        raise ConfigError(f'{name} is {value}, expected a number >= {low}')
    if self.evaluate.weights not in ('auto', 'params', 'ema'):
      raise ConfigError(
        f'evaluate.weights is {self.evaluate.weights!r}, expected auto, params or ema'
      )
    if self.evaluate.weights == 'ema' and not self.ema:
      raise ConfigError('evaluate.weights is "ema", but ema is 0; set ema, or use "params"')
    if not self.optimizers():
      raise ConfigError('optimizer is empty; expected one entry a label of the task')
    self.step_config()

  def optimizers(self) -> dict[str, OptimizerConfig]:
    """The optimizer of every label."""
    out = {}
    for label, values in self.optimizer.items():
      where = f'optimizer.{label}'
      if values is None:
        continue
      if not isinstance(values, Mapping):
        raise ConfigError(
          f'{where} is {values!r}, expected settings such as '
          "dict(name='adamw', learning_rate=1e-4); optimizer has one entry a label"
        )
      out[label] = configs.from_mapping(OptimizerConfig, values, where)
    return out

  def step_config(self) -> StepConfig:
    """What of it the compiled step needs."""
    return StepConfig(self.microbatches, self.ema, self.ema_warmup)


def open_workdir(path: str | os.PathLike) -> pathlib.Path:
  """Makes the directory of a run and shows that it can be written, before anything costly happens.

  Raises:
    ConfigError: it cannot be made or written.
  """
  workdir = pathlib.Path(path).expanduser().absolute()
  probe = workdir / f'.writable-{jax.process_index()}-{os.getpid()}'
  try:
    workdir.mkdir(parents=True, exist_ok=True)
    probe.write_text('')
    probe.unlink()
  except OSError as error:
    raise ConfigError(
      f'workdir is {str(path)!r}, but it cannot be written: {error}; name a directory that can'
    ) from error
  return workdir


def settle_config(
  workdir: pathlib.Path,
  config: RunConfig,
  resumes: bool,
  accept: bool,
  echo: Callable[[str], None],
) -> None:
  """Compares `config.json` with the config, refuses what cannot be resumed, and writes it anew.

  Writes `environment.json`, too: of the machine that goes on from here.

  Args:
    workdir: the run's directory.
    config: of the part of the run that begins.
    resumes: whether there is a checkpoint to go on from.
    accept: go on although settings that decide the result differ.
    echo: is told what changed.

  Raises:
    ConfigError: settings that decide the result differ, or `config.json` cannot be read.
  """
  deciding, free = changed_settings(workdir, config)
  why = lambda x: f'{x} (a learning rate ends with the run)' if x.startswith('steps: ') else x
  if deciding and resumes and not accept:
    raise ConfigError(
      f'{workdir} holds a run with other settings:\n  ' + '\n  '.join(map(why, deciding)) + '\n'
      'Use another workdir for a new run, or --accept-config-change to go on with the new settings'
    )
  for line in deciding + free if resumes else []:
    echo(f'setting changed: {line}')
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices('jaxmm.train: every process has compared config.json')
  if jax.process_index() == 0:
    write_config(workdir, config)
    changed = environment.write(workdir)
    for line in changed if resumes else []:
      echo(f'environment changed: {line}')


def check_records(meta: Mapping[str, Any], num_records: int, kept_fingerprint: str) -> None:
  """Refuses to go on with other records than those of a checkpoint.

  Args:
    meta: of the checkpoint.
    num_records: of the data now; the order of the rows hangs on it.
    kept_fingerprint: of the records that a keep-list chooses now; '' without one.
  """
  kept = meta.get('kept_fingerprint', '')
  if kept != kept_fingerprint:
    raise ConfigError(
      f'data.keep_list keeps other records ({kept_fingerprint or "there is none"}) than when this '
      f'run was saved ({kept or "there was none"}); give it the same list, or '
      '--accept-config-change goes on with what is kept now'
    )
  before = meta.get('num_records')
  if before not in (None, num_records):
    raise ConfigError(
      f'the data has {num_records:,} records, but had {before:,} when this run was saved, so the '
      'rest would come in another order; give it the same data, or --accept-config-change goes on '
      'with what there is now'
    )


def free_settings(config: RunConfig) -> tuple[str, ...]:
  """The settings of `config` that may change when a run goes on."""
  follows = any(o.ends_with_the_run for o in config.optimizers().values())
  return FREE if follows else ('steps', *FREE)


def changed_settings(workdir: pathlib.Path, config: RunConfig) -> tuple[list[str], list[str]]:
  """The settings that differ from those the run was begun with.

  Returns:
    Those that decide the result and those that may change freely, one line each; both empty for a
    directory without a run.
  """
  path = workdir / 'config.json'
  if not path.exists():
    return [], []
  try:
    old = json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(f'{path} is not JSON ({error}); move it away to begin a new run') from error
  lines = configs.differences(old, json.loads(json.dumps(configs.plain(config))))
  names = free_settings(config)
  is_free = lambda line: line.partition(':')[0].partition('.')[0] in names
  return [x for x in lines if not is_free(x)], [x for x in lines if is_free(x)]


def write_config(workdir: pathlib.Path, config: RunConfig) -> None:
  """Writes `config.json`, whole or not at all."""
  temporary = workdir / 'config.json.new'
  temporary.write_text(json.dumps(configs.plain(config), indent=2, sort_keys=True) + '\n')
  os.replace(temporary, workdir / 'config.json')


def use_compilation_cache(setting: str) -> str | None:
  """Switches jax's persistent compilation cache on; the directory in use, or None.

  Args:
    setting: `RunConfig.compilation_cache`.
  """
  if jax.config.jax_compilation_cache_dir:
    return jax.config.jax_compilation_cache_dir
  if setting == 'off':
    return None
  base = os.environ.get('XDG_CACHE_HOME') or os.path.join(os.path.expanduser('~'), '.cache')
  directory = setting or os.path.join(base, 'jaxmm', 'compiled')
  try:
    os.makedirs(directory, exist_ok=True)
  except OSError as error:
    if setting:
      raise ConfigError(f'compilation_cache is {setting!r}: {error}') from error
    return None
  jax.config.update('jax_compilation_cache_dir', directory)
  # Whatever was compiled before has made up jax's mind that there is no cache.
  compilation_cache.reset_cache()
  return directory
