"""Models compared by what they learn of the same data with the same compute.

An arm is a run config. For each seed every arm is trained and then measured on its held-out data:
by the Task's own evaluations, and by what else the plan measures (samples, captions). Arms of one
seed share the order of the data. Data that has to be made first is a stage of its own; a setting
that begins with `{data}` is a path below its directory.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jaxmm
from jaxmm.studies import evaluation, loading, run
from jaxmm.studies.loading import LoadedRun
from jaxmm.studies.stages import Budget, Stage, Study, paired

Echo = Callable[[str], None]
# (trained run, a directory for what it writes, seed, echo) -> {metric: value}
Measure = Callable[[LoadedRun, pathlib.Path, int, Echo], Mapping[str, Any]]


# In a run config: the directory of the data that the study made.
DATA = '{data}'


@dataclasses.dataclass(frozen=True)
class Prepared:
  """Data that a study makes before it trains.

  Attributes:
    write: puts it into a directory; returns what a page should say of it.
    settings: all that it depends on, JSON values.
  """

  write: Callable[[pathlib.Path], Mapping[str, Any]]
  settings: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Models:
  """Settings of a study.

  Attributes:
    arms: `{arm: run config}`, plain dicts.
    seeds: every arm is trained with each.
    measure: what is measured beside the Task's evaluations; None for nothing.
    measure_settings: all that `measure` depends on, JSON values.
    prepared: data that is made first; None where all of it is there.
    names: `{arm: {metric: as the study calls it}}`, where Tasks call one thing by two names.
  """

  arms: Mapping[str, Mapping[str, Any]]
  seeds: Sequence[int] = (0,)
  measure: Measure | None = None
  measure_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prepared: Prepared | None = None
  names: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)


def add_stages(study: Study, plan: Models) -> None:
  """Adds all stages of the plan: the data, and for each seed and arm a model and its measures."""
  if plan.prepared is not None:
    study.add(Stage('data', plan.prepared.write, plan.prepared.settings, cost=20.0))
  for seed, arm in paired(plan.seeds, list(plan.arms)):
    _add_arm(study, plan, seed, arm)


def _add_arm(study: Study, plan: Models, seed: int, arm: str) -> None:
  config, at = dict(plan.arms[arm], seed=seed), f'seed-{seed}/{arm}'
  study.add(
    Stage(
      f'{at}/model',
      lambda path: evaluation.train_and_measure(_at(config, study), path, study.echo),
      config | {'jaxmm': jaxmm.__version__},
      ('data',) if plan.prepared is not None else (),
      title=f'seed {seed}: {arm}',
      cost=run.seconds_on_a_cpu(config),
    )
  )
  if plan.measure is None:
    return

  def measure(path: pathlib.Path) -> dict[str, Any]:
    return dict(plan.measure(loading.load(study.path(f'{at}/model')), path, seed, study.echo))

  study.add(
    Stage(
      f'{at}/measures',
      measure,
      dict(plan.measure_settings),
      (f'{at}/model',),
      title=f'seed {seed}: measures of {arm}',
      cost=20.0,
    )
  )


def _at(value: Any, study: Study) -> Any:
  """A config with the study's data in place of `{data}`; what a result depends on is not where."""
  if isinstance(value, Mapping):
    return {key: _at(v, study) for key, v in value.items()}
  if isinstance(value, str) and value.startswith(DATA):
    return str(study.path('data')) + value.removeprefix(DATA)
  return value


def at_flops(config: Mapping[str, Any], flops: float) -> dict[str, Any]:
  """A run config with as many steps as cost so much; at least one."""
  return dict(config, steps=max(1, round(flops / step_flops(config))))


def step_flops(config: Mapping[str, Any]) -> float:
  """Model FLOPs of one training step."""
  return run.make_task(config).step_flops(config['batch'])


def budgets(plan: Models, arms: Sequence[str]) -> list[Budget]:
  """Planned training compute of these arms."""
  return [Budget(a, 'model', plan.arms[a]['steps'], step_flops(plan.arms[a])) for a in arms]


def measurements(study: Study, plan: Models) -> dict[str, dict[int, dict[str, float]]]:
  """`{arm: {seed: {metric: value}}}` of a study that has run; lists (by position) are left out."""
  out: dict[str, dict[int, dict[str, float]]] = {}
  for seed, arm in paired(plan.seeds, list(plan.arms)):
    values = dict(study.result(f'seed-{seed}/{arm}/model'))
    if plan.measure is not None:
      values |= study.result(f'seed-{seed}/{arm}/measures')
    names = plan.names.get(arm, {})
    out.setdefault(arm, {})[seed] = {
      names.get(name, name): v for name, v in values.items() if isinstance(v, (int, float))
    }
  return out


def log_of(study: Study, seed: int, arm: str) -> str | os.PathLike:
  """The training log of an arm."""
  return study.path(f'seed-{seed}/{arm}/model') / 'log.jsonl'
