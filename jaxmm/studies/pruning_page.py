"""The page of a pruning study: what each list kept, and what the model learnt from it."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

from jaxmm.report import figures, page
from jaxmm.report.run_page import read_log
from jaxmm.studies import claim_page, pruning, stages
from jaxmm.studies.pruning import Pruning


def write(
  study: stages.Study,
  plan: Pruning,
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
  facts = claim_page.facts(plan.seeds, **{'steps of every arm': plan.model['steps']})
  out = page.Page(title, subtitle, facts)
  out.add(*head)
  columns, rows = claim_page.table(pruning.measurements(study, plan))
  out.add_section(
    'The numbers',
    page.table(columns, rows),
    intro='Bits a byte of held-out texts; mean over seeds, in brackets the smallest and largest.',
  )
  _add_corpora(out, study)
  _add_lists(out, study, plan)
  _add_losses(out, study, plan)
  if departures:
    out.add_section('Where this departs from the paper', *departures)
  out.add_section('Settings', page.settings(plan.model, 'language model (all arms)'))
  return out.write(study.directory / 'report.html')


def print_table(measured: Mapping, echo) -> None:
  """The numbers for a terminal."""
  echo(stages.text_table(*claim_page.table(measured)))


def _add_corpora(out: page.Page, study: stages.Study) -> None:
  rows = [
    [part, name, sizes['texts'], sizes['bytes']]
    for part, corpora in study.result('corpora').items()
    for name, sizes in corpora.items()
  ]
  out.add_section('Corpora', page.table(['', 'name', 'texts', 'bytes'], rows))


def _add_lists(out: page.Page, study: stages.Study, plan: Pruning) -> None:
  seed, rows = plan.seeds[0], []
  for name, arm in plan.arms.items():
    of = study.result(f'seed-{seed}/{name}/list')
    reasons = ', '.join(f'{n:,} {reason}' for reason, n in of['reasons'].items()) or 'none'
    rows.append([name, arm.pool, of['texts'], of['kept'], of['kept_bytes'], reasons])
  out.add_section(
    'What each arm trains on',
    page.table(['arm', 'pool', 'texts', 'kept', 'bytes kept', 'dropped'], rows),
    intro=f'The lists of seed {seed}; every arm trains for the same number of steps, so a smaller '
    'list is repeated more often.',
  )


def _add_losses(out: page.Page, study: stages.Study, plan: Pruning) -> None:
  seed, series = plan.seeds[0], []
  for i, name in enumerate(plan.arms):
    log = read_log(pruning.log_of(study, seed, name))
    if 'cross_entropy' in log.columns:
      steps, values = log.columns['cross_entropy']
      series.append(figures.thinned(figures.Series(name, steps, values, color=i)))
  if series:
    out.add_section(
      'Training losses',
      figures.line_chart(series, x_label='step', y_label='nats a byte'),
      intro=f'Of seed {seed}. Easy or repeated text has a low training loss; it says nothing of '
      'held-out text.',
    )
