"""Runs a claim about models: arms at equal training compute, seeds, a verdict.

A paper's `claim.py` says what is claimed and of which runs (`ModelsClaim`); this runs it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import claim_run, models, models_page
from jaxmm.studies import run as runs
from jaxmm.studies.models import DATA, Measure, Models, Prepared
from jaxmm.studies.verdict import Claim

Echo = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Arm:
  """One of the models that are compared.

  Attributes:
    config: its config file, as `jaxmm train --config` takes it (with `:argument`).
    settings: `key=value` of it.
    equal_to: the arm whose training FLOPs it spends as well, by its number of steps; '' keeps the
      config's.
    data: `(data_path or None) -> settings` that name its data, where it need not be made.
    names: `{metric: as the claim calls it}`, where Tasks call one thing by two names.
  """

  config: str
  settings: tuple[str, ...] = ()
  equal_to: str = ''
  data: Callable[[pathlib.Path | None], Sequence[str]] = lambda path: ()
  names: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class ModelsClaim:
  """A claim that is judged by what models learn of the same data.

  Attributes:
    claim: sentence and criteria; the metrics are those of `models.measurements`.
    arms: by name.
    seeds: every arm is trained with each.
    title, subtitle: of the page.
    departures: sentences, each one way in which this is not the paper.
    measure, measure_settings: see `models.Models`.
    prepared: `(data_path or None, scale) -> models.Prepared`, the data that the study makes; None
      for none.
  """

  claim: Claim
  arms: Mapping[str, Arm]
  seeds: tuple[int, ...]
  title: str
  subtitle: str
  departures: tuple[str, ...] = ()
  measure: Measure | None = None
  measure_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  prepared: Callable[[pathlib.Path | None, float], Prepared] | None = None


def run(
  claim: ModelsClaim,
  workdir: pathlib.Path,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
  echo: Echo = print,
) -> pathlib.Path:
  """Runs what is not done yet; prints and writes the verdict; returns the report's path.

  Args:
    claim: what is claimed and of which models.
    workdir: the study's directory; gets `verdict.json`, `measurements.json` and `report.html`.
    data_path: where the data is; what is expected there the claim's page says.
    seeds: instead of the claim's.
    scale: multiplies steps; below 1 nothing is decided, it only shows that all runs.
    echo: takes the progress lines.

  Raises:
    ConfigError: seeds, scale, the data or the claim's own settings cannot be; before training.
  """
  plan = planned(claim, data_path=data_path, seeds=seeds, scale=scale)
  return claim_run.run(claim, models_page.KIND, plan, workdir, scale, echo)


def planned(
  claim: ModelsClaim,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
) -> Models:
  """The plan, its data opened once; see `run` for arguments and errors."""
  claim.claim.check(list(claim.arms), scale)
  path = pathlib.Path(data_path) if data_path else None
  if path is not None and not path.exists():
    raise ConfigError(f'data_path is {data_path!r}, but there is no such file or folder')
  arms = {name: _config(arm, path, scale) for name, arm in claim.arms.items()}
  plan = Models(
    _at_equal_flops(claim, arms),
    tuple(seeds or claim.seeds),
    claim.measure,
    claim.measure_settings,
    claim.prepared(path, scale) if claim.prepared else None,
    {name: arm.names for name, arm in claim.arms.items()},
  )
  for config in plan.arms.values():
    for section, train in (('data', True), ('eval_data', False)):
      if not config[section]['path'].startswith(DATA):
        runs.make_batches(config, train=train)  # its errors, before anything is trained
  return plan


def _config(arm: Arm, data_path: pathlib.Path | None, scale: float) -> dict[str, Any]:
  settings = [*arm.settings, *arm.data(data_path)]
  config = configs.plain(runs.with_settings(configs.load_config(arm.config), settings))
  config['steps'] = max(2, round(config['steps'] * scale))
  return _with_warmup(config)


def _with_warmup(config: dict[str, Any]) -> dict[str, Any]:
  """No warm-up is longer than half of the run."""
  for rule in config['optimizer'].values():
    rule['warmup'] = min(rule.get('warmup', 0), config['steps'] // 2)
  return config


def _at_equal_flops(
  claim: ModelsClaim, arms: Mapping[str, dict[str, Any]]
) -> dict[str, dict[str, Any]]:
  """The run configs with the steps that make equal arms equal, to half a step."""
  out = dict(arms)
  for name, arm in claim.arms.items():
    if not arm.equal_to:
      continue
    like = arms.get(arm.equal_to)
    if like is None or claim.arms[arm.equal_to].equal_to:
      raise ConfigError(
        f'arm {name!r} is to spend as much as {arm.equal_to!r}, expected an arm that keeps the '
        'steps of its config'
      )
    flops = like['steps'] * models.step_flops(like)
    out[name] = _with_warmup(models.at_flops(arms[name], flops))
  return out
