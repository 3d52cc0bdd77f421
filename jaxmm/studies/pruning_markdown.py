"""The numbers of a claim about pruned text as Markdown: a paper's page is made, not typed.

    python -m jaxmm.studies.pruning_markdown runs/reproduce-d4
    python -m jaxmm.studies.pruning_markdown runs/reproduce-d4 --into experiments/d4/README.md

The second puts them between the marks of `two_stage_markdown`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from collections.abc import Sequence

from jaxmm.config import ConfigError
from jaxmm.report.markup import duration_text
from jaxmm.studies import pruning_page, stages, two_stage_markdown
from jaxmm.studies.verdict import Verdict


def markdown(directory: str | os.PathLike) -> str:
  """The verdict, its criteria, and the measurements of all arms, from a finished study.

  Raises:
    ConfigError: no `verdict.json`: the study has not ended, or is a smaller one.
  """
  root = pathlib.Path(directory)
  if not (root / 'verdict.json').is_file():
    raise ConfigError(f'{directory} has no verdict.json; run the whole claim first')
  read = lambda name: json.loads((root / name).read_text(encoding='utf-8'))
  verdict, measured = Verdict.from_json(read('verdict.json')), read('measurements.json')
  seeds = ', '.join(next(iter(measured.values())))
  seconds = sum(r['seconds'] for r in stages.read_records(root).values())
  took = f'All stages together took {duration_text(seconds)}.'
  blocks = [
    f'**{verdict.outcome.capitalize()}**: {verdict.sentence()} {took}',
    two_stage_markdown.table(*verdict.rows()),
    f'Mean over the seeds {seeds}, in brackets the smallest and the largest; bits a byte of '
    'held-out text, and what the lists keep:',
    two_stage_markdown.table(*pruning_page.table(measured)),
  ]
  return '\n\n'.join(blocks)


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    description='Prints the numbers of a finished `jaxmm reproduce` as Markdown.'
  )
  parser.add_argument('directory', help="the claim's --workdir")
  parser.add_argument('--into', help='a page whose marked section is to hold them')
  options = parser.parse_args(arguments)
  text = markdown(options.directory)
  if options.into:
    two_stage_markdown.write_into(options.into, text)
  else:
    print(text)


if __name__ == '__main__':
  main()
