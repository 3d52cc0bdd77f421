"""A claim's numbers as Markdown, so that a paper's page is made and not typed.

    python -m jaxmm.studies.claim_markdown runs/reproduce-d4
    python -m jaxmm.studies.claim_markdown runs/reproduce-d4 --into experiments/d4/README.md

The second puts them between the lines `<!-- verdict: begin -->` and `<!-- verdict: end -->`.
Studies of tokenizers and of pruned pictures have commands of their own, `two_stage_markdown` and
`image_pruning_markdown`, which know more of them.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from collections.abc import Callable, Sequence

from jaxmm.config import ConfigError
from jaxmm.report.markup import duration_text
from jaxmm.studies import claim_page, stages
from jaxmm.studies.verdict import Verdict

BEGIN, END = '<!-- verdict: begin -->', '<!-- verdict: end -->'


def read_verdict(directory: str | os.PathLike) -> Verdict:
  """The verdict of a finished study.

  Raises:
    ConfigError: no `verdict.json`: the study has not ended, or is a smaller one.
  """
  path = pathlib.Path(directory, 'verdict.json')
  if not path.is_file():
    raise ConfigError(f'{directory} has no verdict.json; run the whole claim first')
  return Verdict.from_json(json.loads(path.read_text(encoding='utf-8')))


def markdown(directory: str | os.PathLike) -> str:
  """The verdict, its criteria, and `measurements.json` of all arms, from a finished study.

  Raises:
    ConfigError: no `verdict.json`: the study has not ended, or is a smaller one.
  """
  verdict = read_verdict(directory)
  stored = pathlib.Path(directory, 'measurements.json').read_text(encoding='utf-8')
  return text(directory, verdict, claim_page.table(json.loads(stored)))


def text(
  directory: str | os.PathLike,
  verdict: Verdict,
  numbers: tuple[Sequence[str], Sequence[Sequence[str]]],
  remarks: Sequence[str] = (),
) -> str:
  """The verdict, its criteria, and a table of all arms.

  Args:
    directory: of the study, for how long it took.
    verdict: its verdict.
    numbers: columns and rows of the measurements.
    remarks: sentences behind the verdict.
  """
  seconds = sum(record['seconds'] for record in stages.read_records(directory).values())
  remarks = [*remarks, f'All stages together took {duration_text(seconds)}.']
  seeds = ', '.join(map(str, verdict.findings[0].seeds))
  blocks = [
    f'**{verdict.outcome.capitalize()}**: {verdict.sentence()} {" ".join(remarks)}',
    table(*verdict.rows()),
    f'Mean over the seeds {seeds}, in brackets the smallest and the largest:',
    table(*numbers),
  ]
  return '\n\n'.join(blocks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(str(c).replace("|", " ") for c in line)} |' for line in lines)


def write_into(page: str | os.PathLike, content: str) -> None:
  """Puts `content` between the two marks of a page, instead of what is there."""
  page = pathlib.Path(page)
  whole = page.read_text(encoding='utf-8')
  if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
    raise ConfigError(f'{page} has no section between one {BEGIN} and one {END}')
  before, after = whole.split(BEGIN)[0], whole.split(END)[1]
  page.write_text(f'{before}{BEGIN}\n\n{content}\n\n{END}{after}', encoding='utf-8')


def command(markdown: Callable[[str], str], arguments: Sequence[str] | None = None) -> None:
  """The command line of a module with `markdown(directory)`."""
  parser = argparse.ArgumentParser(
    description='Prints the numbers of a finished `jaxmm reproduce` as Markdown.'
  )
  parser.add_argument('directory', help="the claim's --workdir")
  parser.add_argument('--into', help='a page whose marked section is to hold them')
  options = parser.parse_args(arguments)
  content = markdown(options.directory)
  if options.into:
    write_into(options.into, content)
  else:
    print(content)


if __name__ == '__main__':
  command(markdown)
