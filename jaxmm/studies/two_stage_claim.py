"""Runs a claim about image tokenizers: arms at equal FLOPs, matched controls, seeds, a verdict.

A paper's `claim.py` says what is claimed and of which runs (`TwoStageClaim`); this is what runs it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.interop.efficientnet import read_classifier
from jaxmm.studies import matched_control, two_stage, two_stage_page
from jaxmm.studies.matched_control import MatchedControl
from jaxmm.studies.stages import Study, check_equal_budgets, paired
from jaxmm.studies.two_stage import TwoStage
from jaxmm.studies.verdict import Claim, concluded

# Enough for a Frechet distance in the 1,280 features of the classifier.
_SAMPLES_TO_TRY_OUT = 1500


@dataclasses.dataclass(frozen=True)
class TwoStageClaim:
  """A claim that is judged by what an image model makes of the codes of tokenizers.

  Attributes:
    claim: sentence and criteria; the metrics are those of `two_stage.measurements`.
    config: file with `get_config` of all runs.
    arms: `{arm: argument of get_config}` of the tokenizers.
    image_model: argument of get_config of stage 2, the same for all arms.
    equal_to: the arm whose training FLOPs the other tokenizers spend as well.
    seeds: every arm is trained with each.
    title, subtitle: of the page.
    departures: sentences, each one way in which this is not the paper.
    controls: arms that are degraded to the error of another; their sizes are searched first.
    measures: other settings of `TwoStage` (views, num_samples, features, ...).
    budget_tolerance: how far the planned FLOPs may differ, and a step more where runs are short: of
      the tokenizers of all arms, and of the arms that are judged with both stages together. (Fewer
      codes make the image model's last layer cheaper, which no number of steps should hide.) What
      is smaller on purpose, a control at equal steps, is left out.
  """

  claim: Claim
  config: str
  arms: Mapping[str, str]
  image_model: str
  equal_to: str
  seeds: tuple[int, ...]
  title: str
  subtitle: str
  departures: tuple[str, ...] = ()
  controls: tuple[MatchedControl, ...] = ()
  measures: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  budget_tolerance: float = 0.01


def run(
  claim: TwoStageClaim,
  workdir: pathlib.Path,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
  echo: Callable[[str], None] = print,
) -> pathlib.Path:
  """Runs what is not done yet; prints and writes the verdict; returns the report's path.

  Args:
    claim: what is claimed and of which runs.
    workdir: the study's directory; gets `verdict.json` and `report.html`.
    data_path: a folder or zip of pictures to train on, instead of the config's data.
    seeds: instead of the claim's.
    scale: multiplies all step counts; below 1 nothing is decided, it only shows that all runs.
    echo: takes the progress lines.

  Raises:
    ConfigError: seeds, scale or the claim's own settings cannot be; before anything is trained.
  """
  study = Study(workdir, echo)
  plan = planned(claim, study, data_path=data_path, seeds=seeds, scale=scale)
  arms = [control.arm for control in claim.controls]
  if not all(map(study.is_done, arms)):
    study.run()
  found = {arm: study.result(arm) for arm in arms}
  plan = _with_controls(claim, plan, {arm: result['size'] for arm, result in found.items()})
  _check_budgets(claim, plan)
  two_stage.add_stages(study, plan)
  study.run()
  measured = two_stage.measurements(study, plan)
  two_stage_page.print_table(measured, echo)
  return two_stage_page.write(
    study,
    plan,
    title=claim.title,
    subtitle=claim.subtitle,
    head=concluded(claim.claim, measured, scale, study.directory, echo),
    controls=[matched_control.remark(arm, result) for arm, result in found.items()],
    departures=claim.departures,
  )


def planned(
  claim: TwoStageClaim,
  study: Study,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
) -> TwoStage:
  """The plan without the controls; the stages that find their sizes are added to `study`, those of
  the plan are foreseen. Trains nothing; see `run` for arguments and errors.
  """
  claim.claim.check([*claim.arms, *(control.arm for control in claim.controls)], scale)
  config_of = lambda what: _config(f'{claim.config}:{what}', data_path, scale)
  tokenizers = {arm: config_of(what) for arm, what in claim.arms.items()}
  if claim.equal_to not in tokenizers:
    raise ConfigError(f'equal_to is {claim.equal_to!r}, expected one of {", ".join(tokenizers)}')
  like = tokenizers[claim.equal_to]
  plan = TwoStage(
    tokenizers={
      arm: config if arm == claim.equal_to else two_stage.at_equal_flops(config, like)
      for arm, config in tokenizers.items()
    },
    image_model=config_of(claim.image_model),
    seeds=tuple(seeds or claim.seeds),
    **claim.measures,
  )
  if scale < 1:
    num_samples = min(plan.num_samples, _SAMPLES_TO_TRY_OUT)
    plan = dataclasses.replace(plan, num_samples=num_samples)
  paired(plan.seeds, list(plan.tokenizers))
  if plan.features == 'classifier':
    read_classifier(plan.feature_weights)  # that the weights are missing shows at once
  _check_budgets(claim, plan)
  for control in claim.controls:
    # Errors of runs that are too short mean nothing; they decide nothing either.
    control = dataclasses.replace(control, must_answer=control.must_answer and scale >= 1)
    matched_control.add_search(study, control, plan.tokenizers, plan.seeds)
  # The smallest that may come out differ most; a search must not end in a refusal.
  expected = _with_controls(claim, plan, {c.arm: min(c.ladder) for c in claim.controls})
  _check_budgets(claim, expected)
  outlook = Study(study.directory)
  two_stage.add_stages(outlook, expected)
  study.foresee(outlook.stages)
  return plan


def _config(spec: str, data_path: str | None, scale: float) -> dict[str, Any]:
  """A run's config with every length in steps scaled, and the user's data."""
  config = configs.plain(configs.load_config(spec))
  config['steps'] = max(2, round(config['steps'] * scale))
  parts = [(settings, 'warmup') for settings in config['optimizer'].values()]
  parts += [(config['model'].get('regularizer'), 'ramp_steps')]
  parts += [(config['model'].get('adversarial'), 'start')]
  for settings, key in parts:
    if settings and key in settings:
      settings[key] = round(settings[key] * scale)
  if data_path and config['data']['name'] != 'tokens':
    for section in ('data', 'eval_data'):
      config[section] |= {'name': 'images', 'path': str(data_path)}
  return config


def _with_controls(claim: TwoStageClaim, plan: TwoStage, sizes: Mapping[str, int]) -> TwoStage:
  """The plan with an arm more for each control."""
  arms = plan.tokenizers
  controls = {c.arm: matched_control.degraded(c, arms, sizes[c.arm]) for c in claim.controls}
  return dataclasses.replace(plan, tokenizers={**arms, **controls})


def _check_budgets(claim: TwoStageClaim, plan: TwoStage) -> None:
  """Equal tokenizers in all arms, equal arms in the verdict; whole steps cannot be divided."""
  smaller = {control.arm for control in claim.controls if control.equal == 'steps'}
  budgets = [b for b in two_stage.budgets(plan) if b.arm not in smaller]
  judged = claim.claim.judged_arms()
  tolerance = claim.budget_tolerance + 1 / min(c['steps'] for c in plan.tokenizers.values())
  check_equal_budgets([b for b in budgets if b.stage == 'tokenizer'], tolerance)
  check_equal_budgets([b for b in budgets if b.arm in judged], tolerance)
