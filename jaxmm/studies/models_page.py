"""The page of a study of models: numbers, planned compute, training losses."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from jaxmm.report import figures, page
from jaxmm.report.run_page import read_log
from jaxmm.studies import claim_page, models, stages
from jaxmm.studies.models import Models


def write(
  study: stages.Study,
  plan: Models,
  *,
  title: str,
  subtitle: str,
  head: Sequence = (),
  departures: Sequence[str] = (),
) -> pathlib.Path:
  """Writes `report.html` into the study's directory.

  Args:
    study: finished.
    plan: what was run.
    title, subtitle: of the page.
    head: blocks that come first (the verdict).
    departures: sentences, each one way in which this is not the paper.
  """
  out = page.Page(title, subtitle, claim_page.facts(plan.seeds))
  out.add(*head)
  columns, rows = claim_page.table(models.measurements(study, plan))
  out.add_section(
    'The numbers',
    page.table(columns, rows),
    intro='Mean over seeds, in brackets the smallest and the largest.',
  )
  if plan.prepared is not None:
    out.add_section('Data', page.settings(study.result('data'), 'data'))
  budget = stages.budget_rows(models.budgets(plan, list(plan.arms)))
  out.add_section('Planned compute', page.table(*budget))
  _add_losses(out, study, plan)
  if departures:
    out.add_section('Where this departs from the paper', *departures)
  for arm, config in plan.arms.items():
    out.add_section(f'Settings of {arm}', page.settings(config, arm))
  return out.write(study.directory / 'report.html')


def print_table(measured: Mapping, echo) -> None:
  """The numbers for a terminal."""
  echo(stages.text_table(*claim_page.table(measured)))


def _add_losses(out: page.Page, study: stages.Study, plan: Models) -> None:
  seed, charts = plan.seeds[0], {}
  for i, arm in enumerate(plan.arms):
    log = read_log(models.log_of(study, seed, arm))
    if 'objective' in log.columns:
      steps, values = log.columns['objective']
      charts[arm] = figures.thinned(figures.Series(arm, steps, values, color=i))
  if charts:
    out.add_section(
      'Training losses',
      figures.line_chart(list(charts.values()), x_label='step', y_label='objective'),
      intro=f'Of seed {seed}. Steps of different arms may differ in what they see and cost.',
    )
