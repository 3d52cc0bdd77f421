"""The numbers of a claim about pruned pictures as Markdown.

    python -m jaxmm.studies.image_pruning_markdown runs/reproduce-dbp --into PAGE.md

Puts them between the lines `<!-- verdict: begin -->` and `<!-- verdict: end -->`; without --into it
prints them.
"""

from __future__ import annotations

import functools
import os

from jaxmm.studies import claim_markdown, claim_page, image_pruning, image_pruning_claim


def markdown(directory: str | os.PathLike) -> str:
  """The verdict, its criteria, and the measurements of all arms, from a finished study.

  Raises:
    ConfigError: no `verdict.json` (the study has not ended, or is a smaller one).
  """
  verdict = claim_markdown.read_verdict(directory)
  measured = {
    arm: {seed: of[seed] for seed in verdict.findings[0].seeds}
    for arm, of in image_pruning.read_measurements(directory).items()
  }
  numbers = claim_page.table(measured, image_pruning_claim.METRICS)
  return claim_markdown.text(directory, verdict, numbers)


main = functools.partial(claim_markdown.command, markdown)

if __name__ == '__main__':
  main()
