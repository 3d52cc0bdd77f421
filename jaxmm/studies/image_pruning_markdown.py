"""The numbers of a study of pruned pictures as Markdown, so that a paper's page is made, not typed.

    python -m jaxmm.studies.image_pruning_markdown runs/reproduce-dbp --into PAGE.md

Puts them between the lines `<!-- verdict: begin -->` and `<!-- verdict: end -->`; without --into it
prints them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from collections.abc import Sequence

from jaxmm.config import ConfigError
from jaxmm.report.markup import duration_text
from jaxmm.studies import image_pruning, image_pruning_claim, stages
from jaxmm.studies.two_stage_markdown import table, write_into
from jaxmm.studies.verdict import Verdict


def markdown(directory: str | os.PathLike) -> str:
  """The verdict, its criteria, and the measurements of all arms, from a finished study.

  Raises:
    ConfigError: no `verdict.json` (the study has not ended, or is a smaller one).
  """
  path = pathlib.Path(directory, 'verdict.json')
  if not path.is_file():
    raise ConfigError(f'{directory} has no verdict.json; run the whole claim first')
  verdict = Verdict.from_json(json.loads(path.read_text(encoding='utf-8')))
  measured, seeds = image_pruning.read_measurements(directory), verdict.findings[0].seeds
  measured = {arm: {seed: of[seed] for seed in seeds} for arm, of in measured.items()}
  seconds = sum(record['seconds'] for record in stages.read_records(directory).values())
  took = f'All stages together took {duration_text(seconds)}.'
  blocks = [
    f'**{verdict.outcome.capitalize()}**: {verdict.sentence()} {took}',
    table(*verdict.rows()),
    f'Mean over the seeds {", ".join(map(str, seeds))}, in brackets the smallest and the largest:',
    table(*image_pruning_claim.table(measured)),
  ]
  return '\n\n'.join(blocks)


def main(arguments: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    description='Prints the numbers of a finished study of pruned pictures as Markdown.'
  )
  parser.add_argument('directory', help="the claim's --workdir")
  parser.add_argument('--into', help='a page whose marked section is to hold them')
  options = parser.parse_args(arguments)
  text = markdown(options.directory)
  if options.into:
    write_into(options.into, text)
  else:
    print(text)


if __name__ == '__main__':
  main()
