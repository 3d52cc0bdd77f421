"""The page of a study of models: data, planned compute, training losses."""

from __future__ import annotations

from jaxmm.report import page
from jaxmm.studies import claim_run, models, stages
from jaxmm.studies.models import Models


def add_sections(out: page.Page, study: stages.Study, plan: Models) -> None:
  """What stands below the numbers of a study that has run."""
  if plan.prepared is not None:
    out.add_section('Data', page.settings(study.result('data'), 'data'))
  budget = stages.budget_rows(models.budgets(plan, list(plan.arms)))
  out.add_section('Planned compute', page.table(*budget))
  seed = plan.seeds[0]
  claim_run.add_losses(
    out,
    {arm: models.log_of(study, seed, arm) for arm in plan.arms},
    'objective',
    'objective',
    f'Of seed {seed}. Steps of different arms may differ in what they see and cost.',
  )
  for arm, config in plan.arms.items():
    out.add_section(f'Settings of {arm}', page.settings(config, arm))


def intro(plan: Models) -> str:
  """What stands above the numbers."""
  del plan
  return 'Mean over seeds, in brackets the smallest and the largest.'


KIND = claim_run.Kind(models.add_stages, models.measurements, add_sections, intro)
