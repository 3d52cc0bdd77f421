"""The numbers of a claim's study as Markdown, so that a paper's page is made and not typed.

    python -m jaxmm.studies.two_stage_markdown runs/reproduce-crt
    python -m jaxmm.studies.two_stage_markdown runs/reproduce-crt --into experiments/crt/README.md

The second puts them between the lines `<!-- verdict: begin -->` and `<!-- verdict: end -->`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

from jaxmm.config import ConfigError
from jaxmm.report.markup import duration_text
from jaxmm.studies import matched_control, stages, two_stage
from jaxmm.studies.two_stage_page import METRICS, spread
from jaxmm.studies.verdict import Verdict

BEGIN, END = '<!-- verdict: begin -->', '<!-- verdict: end -->'


def markdown(directory: str | os.PathLike) -> str:
  """The verdict, its criteria, and the measurements of all arms, from a finished study.

  Raises:
    ConfigError: no `verdict.json` (the study has not ended, or is a smaller one), or stages that do
      not have the numbers on which the verdict rests.
  """
  path = pathlib.Path(directory, 'verdict.json')
  if not path.is_file():
    raise ConfigError(f'{directory} has no verdict.json; run the whole claim first')
  verdict = Verdict.from_json(json.loads(path.read_text(encoding='utf-8')))
  measured = two_stage.read_measurements(directory)
  _check_same(verdict, measured, directory)
  seeds = verdict.findings[0].seeds
  arms = sorted(measured, key=lambda arm: _first_mention(verdict, arm))
  numbers = [
    [name, *(spread([measured[arm][seed][metric] for seed in seeds]) for arm in arms)]
    for metric, name in METRICS.items()
  ]
  head, rows = verdict.rows()
  blocks = [
    f'**{verdict.outcome.capitalize()}**: {verdict.sentence()} {_remarks(directory)}'.rstrip(),
    table(head, rows),
    f'Mean over the seeds {", ".join(map(str, seeds))}, in brackets the smallest and the largest:',
    table(['', *arms], numbers),
  ]
  return '\n\n'.join(blocks)


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """A Markdown table."""
  lines = [head, ['---'] * len(head), *rows]
  return '\n'.join(f'| {" | ".join(str(c).replace("|", " ") for c in line)} |' for line in lines)


def write_into(page: str | os.PathLike, text: str) -> None:
  """Puts `text` between the two marks of a page, instead of what is there."""
  page = pathlib.Path(page)
  whole = page.read_text(encoding='utf-8')
  if whole.count(BEGIN) != 1 or whole.count(END) != 1 or whole.index(BEGIN) > whole.index(END):
    raise ConfigError(f'{page} has no section between one {BEGIN} and one {END}')
  before, after = whole.split(BEGIN)[0], whole.split(END)[1]
  page.write_text(f'{before}{BEGIN}\n\n{text}\n\n{END}{after}', encoding='utf-8')


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


def _remarks(directory: str | os.PathLike) -> str:
  """How the controls were found, and how long it all took."""
  records = stages.read_records(directory)
  out = [
    matched_control.remark(name, record['result'])
    for name, record in records.items()
    if {'setting', 'size', 'errors'} <= set(record['result'])
  ]
  seconds = sum(record['seconds'] for record in records.values())
  return ' '.join([*out, f'All stages together took {duration_text(seconds)}.'])


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
    write_into(options.into, text)
  else:
    print(text)


if __name__ == '__main__':
  main()
