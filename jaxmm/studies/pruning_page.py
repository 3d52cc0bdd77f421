"""The page of a pruning study: what each list kept, and what the model learnt from it."""

from __future__ import annotations

from jaxmm.report import page
from jaxmm.studies import claim_run, pruning, stages
from jaxmm.studies.pruning import Pruning


def add_sections(out: page.Page, study: stages.Study, plan: Pruning) -> None:
  """What stands below the numbers of a study that has run."""
  _add_corpora(out, study)
  _add_lists(out, study, plan)
  seed = plan.seeds[0]
  claim_run.add_losses(
    out,
    {name: pruning.log_of(study, seed, name) for name in plan.arms},
    'cross_entropy',
    'nats a byte',
    f'Of seed {seed}. Easy or repeated text has a low training loss; it says nothing of held-out '
    'text.',
  )
  out.add_section('Settings', page.settings(plan.model, 'language model (all arms)'))


def intro(plan: Pruning) -> str:
  """What stands above the numbers."""
  return (
    'Bits a byte of held-out texts; mean over seeds, in brackets the smallest and largest. '
    f'Every arm is trained for {plan.model["steps"]} steps.'
  )


KIND = claim_run.Kind(pruning.add_stages, pruning.measurements, add_sections, intro)


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
