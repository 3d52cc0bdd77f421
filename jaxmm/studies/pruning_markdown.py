"""The numbers of a claim about pruned text as Markdown.

    python -m jaxmm.studies.pruning_markdown runs/reproduce-d4
    python -m jaxmm.studies.pruning_markdown runs/reproduce-d4 --into experiments/d4/README.md

The second puts them between the lines `<!-- verdict: begin -->` and `<!-- verdict: end -->`.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib

from jaxmm.studies import claim_markdown, pruning_page


def markdown(directory: str | os.PathLike) -> str:
  """The verdict, its criteria, and the measurements of all arms, from a finished study.

  Raises:
    ConfigError: no `verdict.json`: the study has not ended, or is a smaller one.
  """
  verdict = claim_markdown.read_verdict(directory)
  stored = pathlib.Path(directory, 'measurements.json').read_text(encoding='utf-8')
  return claim_markdown.text(directory, verdict, pruning_page.table(json.loads(stored)))


main = functools.partial(claim_markdown.command, markdown)

if __name__ == '__main__':
  main()
