"""The numbers of a claim's study as Markdown, so that a paper's page is made and not typed.

    python -m jaxmm.studies.two_stage_markdown runs/reproduce-crt
    python -m jaxmm.studies.two_stage_markdown runs/reproduce-crt --into experiments/crt/README.md

The second puts them between the lines `<!-- verdict: begin -->` and `<!-- verdict: end -->`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping

from jaxmm.config import ConfigError
from jaxmm.studies import claim_markdown, claim_page, matched_control, stages, two_stage
from jaxmm.studies.two_stage_page import METRICS
from jaxmm.studies.verdict import Verdict


def markdown(directory: str | os.PathLike) -> str:
  """The verdict, its criteria, and the measurements of all arms, from a finished study.

  Raises:
    ConfigError: no `verdict.json` (the study has not ended, or is a smaller one), or stages that do
      not have the numbers on which the verdict rests.
  """
  verdict = claim_markdown.read_verdict(directory)
  measured = two_stage.read_measurements(directory)
  _check_same(verdict, measured, directory)
  seeds = verdict.findings[0].seeds
  judged = {
    arm: {seed: measured[arm][seed] for seed in seeds}
    for arm in sorted(measured, key=lambda arm: _first_mention(verdict, arm))
  }
  numbers = claim_page.table(judged, METRICS)
  return claim_markdown.text(directory, verdict, numbers, _remarks(directory))


def _check_same(verdict: Verdict, measured: Mapping, directory: str | os.PathLike) -> None:
  for finding in verdict.findings:
    c = finding.criterion
    for arm, values in ((c.arm, finding.arm_values), (c.against, finding.against_values)):
      found = [measured.get(arm, {}).get(seed, {}).get(c.metric) for seed in finding.seeds]
      if any(x is not None and x == x and x != y for x, y in zip(values, found, strict=True)):
        raise ConfigError(
          f'{directory}: the verdict rests on {c.metric} of arm {arm} as {list(values)}, but the '
          f'stages have {found}; run the claim again, which repeats nothing that is done'
        )


def _first_mention(verdict: Verdict, arm: str) -> tuple[int, str]:
  named = [a for f in verdict.findings for a in (f.criterion.against, f.criterion.arm)]
  return (named.index(arm) if arm in named else len(named)), arm


def _remarks(directory: str | os.PathLike) -> list[str]:
  """How the controls were found."""
  return [
    matched_control.remark(name, record['result'])
    for name, record in stages.read_records(directory).items()
    if {'setting', 'size', 'errors'} <= set(record['result'])
  ]


main = functools.partial(claim_markdown.command, markdown)

if __name__ == '__main__':
  main()
