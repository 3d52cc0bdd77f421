"""A run's own evaluations over its held-out data, as numbers that a table can show."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.errors
import jax

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError
from jaxmm.studies import loading, mixed_evaluation, run
from jaxmm.studies.loaded_mixed import LoadedTransfusion
from jaxmm.train import window


def run_sums(
  loaded: loading.LoadedRun, *, batch: int = 64, echo: Callable[[str], None] | None = None
) -> dict[str, dict[str, tuple[Any, Any]]]:
  """`{evaluation: {metric: (sum, count)}}` over the whole of `eval_data`, exact on any mesh."""
  batches = run.make_batches(loaded.config, train=False, batch=batch)
  run.check_data(loaded.task, {'eval_data': batches})
  return {
    name: batch_job.run_sums(
      batches,
      lambda variables, rows, fn=evaluate: fn(variables, rows, jax.random.key(0)),
      variables=loaded.variables | {'constants': loaded.task.constants},
      mesh=sharding.make_mesh(sharding.MeshConfig()),
      rules=sharding.RULES['dp'],
      echo=echo,
    )
    for name, evaluate in loaded.task.evaluations().items()
  }


def run_evaluations(
  loaded: loading.LoadedRun, *, batch: int = 64, echo: Callable[[str], None] | None = None
) -> dict[str, Any]:
  """`{evaluation/metric: value}` of `run_sums`: means as floats or lists, None where nothing was
  counted, and what the Task's summaries make of counts.
  """
  out: dict[str, Any] = {}
  for name, sums in run_sums(loaded, batch=batch, echo=echo).items():
    # As the trainer's log has them; counts are whole numbers below 2^53, which float64 holds.
    values = window.shown(window.added({}, sums), loaded.task.summaries())
    out |= {f'{name}/{metric}': value for metric, value in values.items()}
  return out


def train_and_measure(
  config: Mapping[str, Any], path: pathlib.Path, echo: Callable[[str], None]
) -> dict[str, Any]:
  """Trains in `path`, then evaluates on the held-out data: `{metric: value}`."""
  run.train_from_config(config, path, evaluates=False, echo=echo)
  results = run_evaluations(loading.load(path))
  return {name.partition('/')[2]: value for name, value in results.items()}


def write(
  directory: str | os.PathLike,
  *,
  batch: int = 64,
  samples: int = 0,
  overrides: Sequence[str] = (),
  echo: Callable[[str], None] = print,
  **sampler: Any,
) -> pathlib.Path:
  """Evaluates a run, prints a line a metric, writes `evaluation.json` beside its log.

  Args:
    directory: the run.
    batch: rows a step.
    samples: of a model of text and images, how many pictures are also drawn and described
      (`mixed_evaluation.measure`).
    overrides: `model.key=value` and `eval_data.key=value`.
    echo: is given lines.
    **sampler: of `SamplerConfig`, for `samples`.

  Raises:
    ConfigError: settings that do not fit the parameters, samples of another kind of model, or what
      `mixed_evaluation.check` refuses, before anything is evaluated.
  """
  loaded = loading.load(directory, overrides=overrides)
  if samples and not isinstance(loaded, LoadedTransfusion):
    raise ConfigError(
      f'--samples is {samples}, but {directory} is a run of {loaded.config["task"]}, which does '
      'not draw and describe pictures; leave it out'
    )
  if samples:  # before what may take hours
    mixed_evaluation.check(loaded, samples, **sampler)
  try:
    results = run_evaluations(loaded, batch=batch, echo=echo)
  except (flax.errors.FlaxError, ValueError) as error:
    of_model = [o for o in overrides if o.startswith('model.')]
    if isinstance(error, ConfigError) or not of_model:
      raise
    raise ConfigError(
      f'{", ".join(of_model)} wants other parameters than {directory} has: {error}'
    ) from error
  if samples:
    results |= mixed_evaluation.measure(loaded, samples, batch=batch, echo=echo, **sampler)
  for name, value in results.items():
    if isinstance(value, list):
      shown = f'{len(value)} values'
    else:
      shown = 'nothing was counted' if value is None else f'{value:.6g}'
    echo(f'{name:48} {shown}')
  path = pathlib.Path(directory, 'evaluation.json')
  record = {'step': loaded.step, 'settings': [*overrides], 'results': results}
  if samples:
    record['sampler'] = {'samples': samples, **sampler}
  path.write_text(json.dumps(record, indent=1) + '\n')
  echo(f'written to {path}')
  return path
