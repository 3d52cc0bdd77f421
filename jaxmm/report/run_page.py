"""The page of one run directory: losses, evaluations, speed, settings (`jaxmm report DIR`).

It reads plain files and needs none of them to be complete: `log.jsonl` (a JSON object a line, with
`step` and numbers, nested objects allowed), `config.json` and `environment.json`. A line that
cannot be read (cut by a kill, say) is counted and said on the page.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.config import ConfigError
from jaxmm.report import figures, page
from jaxmm.report.markup import Html, duration_text, number_text

# What a logged field's name tells: an evaluation begins so, the machine's hold such words.
_EVALUATION = re.compile(r'^(eval|evaluation|evaluations|valid|validation|test)(_\w+)?/')
_MACHINE = re.compile(
  r'(^|[/_])(per_second|time|timing|clock|wall|elapsed|eta|mfu|utili[sz]ation|memory)'
  r'([/_]|$)|_seconds?$'
)
_SCHEDULE = re.compile(r'(learning_rate|^lr|/lr|weight$|ramp|norm(/|$))')
# Fields that say where a line stands and measure nothing.
_POSITION = {'step', 'position', 'records', 'epoch', 'seed', 'at'}


@dataclasses.dataclass(frozen=True)
class RunLog:
  """What `log.jsonl` holds.

  Attributes:
    columns: metric -> (steps, values), steps increasing; nested names are joined by '/', those of
      lines whose kind begins with 'eval' with 'evaluation/'; null is a value that was not finite.
    vectors: metric -> its newest list of numbers (a loss by position).
    unreadable: ids of records that had zero weight.
    lines: how many lines were read.
    damaged: how many of them could not be.
    events: (step or None, text) of lines that carry a message instead of numbers.
  """

  columns: dict[str, tuple[list[float], list[float]]]
  vectors: dict[str, list[float]] = dataclasses.field(default_factory=dict)
  unreadable: frozenset = frozenset()
  lines: int = 0
  damaged: int = 0
  events: tuple[tuple[Any, str], ...] = ()


def read_log(path: str | os.PathLike) -> RunLog:
  """Reads a JSON-lines log; a later line of the same step replaces the earlier one (a resumed run).

  Raises:
    FileNotFoundError: there is no such file.
  """
  values: dict[str, dict[float, float]] = {}
  vectors: dict[str, list[float]] = {}
  unreadable: set = set()
  lines = damaged = 0
  events = []
  with open(path, encoding='utf-8', errors='replace') as stream:
    for text in stream:
      if not text.strip():
        continue
      lines += 1
      try:
        record = json.loads(text)
        step = record.get('step')
      except (ValueError, AttributeError):
        damaged += 1
        continue
      message = record.get('message') or record.get('event')
      if isinstance(message, str):
        events.append((step, message))
      if not isinstance(step, (int, float)):
        continue
      unreadable.update(record.pop('unreadable', None) or ())
      prefix = 'evaluation/' if str(record.get('kind', '')).startswith('eval') else ''
      for name, value in _leaves(record, prefix):
        if isinstance(value, list):
          vectors[name] = value
        else:
          values.setdefault(name, {})[step] = value
  columns = {}
  for name, by_step in values.items():
    steps = sorted(by_step)
    if any(math.isfinite(v) for v in by_step.values()) or kind_of(name) == 'training':
      columns[name] = (steps, [by_step[s] for s in steps])
  return RunLog(columns, vectors, frozenset(unreadable), lines, damaged, tuple(events))


def _leaves(record: Mapping[str, Any], prefix: str) -> list[tuple[str, float | list[float]]]:
  """The numbers and lists of numbers; null and the words NaN, Infinity are not finite."""
  out = []
  for key, value in record.items():
    name = f'{prefix}{key}'
    if isinstance(value, Mapping):
      out += _leaves(value, f'{name}/')
    elif isinstance(value, bool) or key in _POSITION:
      continue
    elif value is None:
      out.append((name, math.nan))
    elif isinstance(value, list) and value and all(type(v) in (int, float) for v in value):
      out.append((name, [float(v) for v in value]))
    elif isinstance(value, (int, float)):
      out.append((name, float(value)))
    elif isinstance(value, str) and value.lower() in (
      'nan',
      'inf',
      '-inf',
      'infinity',
      '-infinity',
    ):
      out.append((name, float(value)))
  return out


def read_json(path: str | os.PathLike) -> dict[str, Any]:
  """The object in a JSON file; {} if there is no such file.

  Raises:
    ConfigError: the file is no JSON object; the message names it.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    return {}
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except ValueError as error:
    raise ConfigError(f'{path} is not JSON ({error})') from error
  if not isinstance(value, dict):
    raise ConfigError(f'{path} holds a {type(value).__name__}, expected an object')
  return value


def kind_of(name: str) -> str:
  """The section of a logged field: 'evaluation', 'machine', 'schedule' or 'training'."""
  if _EVALUATION.search(name):
    return 'evaluation'
  if _MACHINE.search(name):
    return 'machine'
  return 'schedule' if _SCHEDULE.search(name) else 'training'


def metric_chart(
  name: str, steps: Sequence[float], values: Sequence[float], color: int = 0
) -> Html:
  """One metric over the steps; long runs are thinned to bins with their range as band.

  The axis is logarithmic when a loss or evaluation is positive and spans more than a factor of 50.
  """
  series = figures.thinned(figures.Series('', steps, values, color=color, markers=len(steps) <= 12))
  finite = [v for v in values if math.isfinite(v)]
  log = kind_of(name) in ('training', 'evaluation') and bool(finite) and min(finite) > 0
  log = log and max(finite) / min(finite) > 50
  return figures.line_chart([series], title=name, log_y=log)


def run_page(directory: str | os.PathLike) -> page.Page:
  """The page of a run directory, not yet written.

  Raises:
    FileNotFoundError: `directory` is no directory, or holds neither `log.jsonl` nor `config.json`.
    ConfigError: `config.json` or `environment.json` cannot be read.
  """
  directory = pathlib.Path(directory)
  if not directory.is_dir():
    raise FileNotFoundError(f'{directory} is not a directory; give the --workdir of a run')
  log_path, config = directory / 'log.jsonl', read_json(directory / 'config.json')
  if not log_path.is_file() and not config:
    raise FileNotFoundError(
      f'{directory} holds neither log.jsonl nor config.json; is it the --workdir of a run?'
    )
  log = read_log(log_path) if log_path.is_file() else RunLog({})
  environment = read_json(directory / 'environment.json')
  out = page.Page(
    f'Run {directory.resolve().name}', _subtitle(config), _facts(directory, config, log)
  )
  _add_notes(out, log, log_path)
  _add_charts(out, 'Training', 'training', log, 'the loss falls without steps or spikes')
  _add_evaluations(out, log)
  _add_charts(out, 'Schedules and norms', 'schedule', log, '')
  _add_charts(out, 'Speed', 'machine', log, '')
  if config or environment:
    out.add_section(
      'Settings',
      *([page.settings(config)] if config else []),
      *([page.settings(environment, 'Environment')] if environment else []),
    )
  out.footer = f'Written by jaxmm from {directory.resolve()}.'
  return out


def write_run_page(
  directory: str | os.PathLike, path: str | os.PathLike | None = None
) -> pathlib.Path:
  """Writes the page of a run (default: `DIR/report.html`) and returns where it is."""
  return run_page(directory).write(path or pathlib.Path(directory) / 'report.html')


def _subtitle(config: Mapping[str, Any]) -> str:
  task = str(config.get('task', '')).rpartition('.')[2]
  data = config.get('data')
  name = data.get('name') if isinstance(data, Mapping) else None
  return ' on '.join(str(x) for x in (task, name) if x)


def _facts(directory: pathlib.Path, config: Mapping[str, Any], log: RunLog) -> dict[str, Any]:
  facts: dict[str, Any] = {}
  last = max((steps[-1] for steps, _ in log.columns.values()), default=None)
  if last is not None:
    of = f' of {config["steps"]:,}' if isinstance(config.get('steps'), int) else ''
    facts['step'] = f'{int(last):,}{of}'
  for key in ('batch', 'seed', 'rules'):
    if key in config:
      facts[key] = config[key]
  elapsed = log.columns.get('elapsed_seconds') or log.columns.get('elapsed')
  if elapsed:
    facts['time'] = duration_text(elapsed[1][-1])
  newest = max((f.stat().st_mtime for f in directory.glob('*.json*')), default=None)
  if newest is not None:
    moment = datetime.datetime.fromtimestamp(newest, datetime.UTC)
    facts['last written'] = f'{moment:%Y-%m-%d %H:%M} UTC'
  return facts


def _add_notes(out: page.Page, log: RunLog, log_path: pathlib.Path) -> None:
  """What a reader must know before believing the curves."""
  blocks: list[Any] = []
  if not log.lines:
    blocks.append(f'{log_path.name} is missing or empty: nothing was logged yet.')
  if log.damaged:
    blocks.append(f'{log.damaged} of {log.lines} lines of {log_path.name} could not be read.')
  if log.unreadable:
    some = ', '.join(map(str, sorted(log.unreadable)[:20]))
    blocks.append(f'{len(log.unreadable)} records could not be read (zero weight): {some}.')
  bad = [
    f'{name} at step {next(int(s) for s, v in zip(steps, values) if not math.isfinite(v)):,}'
    for name, (steps, values) in log.columns.items()
    if kind_of(name) in ('training', 'evaluation') and not all(map(math.isfinite, values))
  ]
  if bad:
    blocks.append('Not finite for the first time: ' + ', '.join(bad) + '.')
  if blocks:
    out.add(page.verdict_box('Please note', 'open', *blocks))
  if log.events:
    rows = [[step, text] for step, text in log.events]
    out.add_section('Events', page.table(['step', 'message'], rows))


def _add_charts(out: page.Page, heading: str, kind: str, log: RunLog, look_for: str) -> None:
  chosen = {n: c for n, c in log.columns.items() if kind_of(n) == kind}
  if not chosen:
    return
  # The total loss first: it is what one looks for.
  names = sorted(
    chosen, key=lambda n: (n.rpartition('/')[2] not in ('loss', 'objective', 'total'), n)
  )
  charts = [
    page.figure(metric_chart(n, *chosen[n]), look_for=look_for if i == 0 else '')
    for i, n in enumerate(names)
  ]
  out.add_section(heading, page.columns(*charts))


def _add_evaluations(out: page.Page, log: RunLog) -> None:
  chosen = {n: c for n, c in sorted(log.columns.items()) if kind_of(n) == 'evaluation'}
  if not chosen:
    return
  rows = [
    [n, values[-1], int(steps[-1]), f'{number_text(min(values))} to {number_text(max(values))}']
    for n, (steps, values) in chosen.items()
  ]
  charts = [page.figure(metric_chart(n, *c, color=1)) for n, c in chosen.items() if len(c[0]) > 1]
  for name, vector in sorted(log.vectors.items()):
    if len(vector) > 1:
      series = figures.thinned(figures.Series('', range(len(vector)), vector, color=1))
      charts.append(figures.line_chart([series], title=f'{name} (newest)', x_label='position'))
  out.add_section(
    'Evaluations',
    page.table(['metric', 'last', 'at step', 'range'], rows),
    *([page.columns(*charts)] if charts else []),
  )
