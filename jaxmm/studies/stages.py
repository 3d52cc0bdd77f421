"""Stages of a study: each done once, in order, continued after an interrupt, at equal budget.

A study is a directory with one directory a stage. Before a stage starts, `inputs.json` says what it
depends on: its settings and the digests of the stages before it. When it ends, `result.json` is
written at once, with the same digest. On the next run

- a stage whose `result.json` carries the digest is not run again;
- one that has begun with the same digest goes on in its directory (a training run resumes itself);
- one whose digest differs is run anew, and so is all that depends on it and nothing else. Its old
  directory is kept beside it as `NAME.old-ITSDIGEST`, and a line says which settings differ.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.report.markup import duration_text, number_text

# In the names of directories that are kept of what was run with other settings.
_SET_ASIDE = '.old-'


@dataclasses.dataclass(frozen=True)
class Stage:
  """One step of a study.

  Attributes:
    name: its directory within the study, unique; may hold slashes ('seed-1/crt/stage-2').
    run: called with the stage's directory (which exists and may hold an interrupted attempt);
      returns its results, a dict that JSON can hold.
    settings: all that the result depends on, other than the stages in `after`.
    after: names of the stages that must be done first.
    title: how progress lines call it; default: the name.
    cost: expected cost relative to the other stages (planned FLOPs, seconds), for the time left.
  """

  name: str
  run: Callable[[pathlib.Path], Mapping[str, Any]]
  settings: Mapping[str, Any]
  after: tuple[str, ...] = ()
  title: str = ''
  cost: float = 1.0


class Study:
  """A directory of stages that are run in the order in which they were added."""

  def __init__(self, directory: str | os.PathLike, echo: Callable[[str], None] = print):
    """`echo` takes the progress lines."""
    self.directory = pathlib.Path(directory)
    self.echo = echo
    self.stages: dict[str, Stage] = {}
    self._digests: dict[str, str] = {}
    self._foreseen: dict[str, Stage] = {}
    self._told: set[str] = set()
    self._begun: float | None = None

  def foresee(self, stages: Mapping[str, Stage]) -> None:
    """Stages that will be added once the present ones have run (because their settings come out of
    them); the plan, the count and the time left include them, nothing else does.
    """
    self._foreseen = dict(stages)

  def add(self, stage: Stage) -> None:
    """Adds a stage; the stages it names in `after` must have been added before.

    Raises:
      ConfigError: a name that is taken, leaves the study or lies within another stage's directory,
        an unknown stage in `after`, or settings that JSON cannot hold.
    """
    if stage.name in self.stages:
      raise ConfigError(f'two stages of the study are called {stage.name!r}')
    parts = pathlib.PurePosixPath(stage.name).parts
    if not parts or stage.name.startswith('/') or '..' in parts:
      raise ConfigError(f'stage name is {stage.name!r}, expected a path within the study')
    for name in self.stages:
      if name.startswith(f'{stage.name}/') or stage.name.startswith(f'{name}/'):
        raise ConfigError(f'stage {stage.name!r} and stage {name!r} lie within one another')
    for name in stage.after:
      if name not in self.stages:
        raise configs.unknown_key(name, list(self.stages) or ['(none yet)'], 'the study')
    self.stages[stage.name] = stage
    self._digests[stage.name] = _digest(self._inputs(stage))

  def path(self, name: str) -> pathlib.Path:
    """The directory of a stage."""
    return self.directory / self._stage(name).name

  def result(self, name: str) -> dict[str, Any]:
    """What the stage returned.

    Raises:
      ConfigError: it is not done, or was done with other settings.
    """
    record = self._record(self._stage(name))
    if record is None:
      raise ConfigError(f'stage {name!r} of {self.directory} is not done; run the study first')
    return record['result']

  def is_done(self, name: str) -> bool:
    """Whether its result stands, for these very settings."""
    return self._record(self._stage(name)) is not None

  def run(self) -> dict[str, dict[str, Any]]:
    """Says what is to be done and does it; returns the results of all stages by name.

    A second call goes on counting where the first stopped.

    Raises:
      ConfigError: the directory is in use by another process or cannot be written.
      Exception: whatever a stage raises, with a note that names the stage.
    """
    with self._lock():
      spent = {n: r['seconds'] for n, s in self.stages.items() if (r := self._record(s))}
      total = len(self._all_stages())
      if self._begun is None:
        self._begun = time.monotonic()
        self.echo(self.plan_text())
      for number, (name, stage) in enumerate(self.stages.items(), 1):
        label = f'[{number}/{total}] {stage.title or name}'
        if name in spent:
          if name not in self._told:
            self.echo(f'{label}: done before ({duration_text(spent[name])})')
        else:
          elapsed = duration_text(time.monotonic() - self._begun)
          self.echo(f'{label} ... ({elapsed} elapsed{self._time_left(spent)})')
          spent[name] = self._run_stage(stage)
          self.echo(f'{label}: done in {duration_text(spent[name])}')
        self._told.add(name)
      return {name: self.result(name) for name in self.stages}

  def plan_text(self) -> str:
    """How many stages there are and which are still to be done, for a terminal; runs nothing."""
    everything = self._all_stages()
    open_stages = {
      n: s for n, s in everything.items() if n not in self.stages or not self.is_done(n)
    }
    done = len(everything) - len(open_stages)
    said = f'{self.directory}: {len(everything)} stages, {done} of them done'
    spent = {n: r['seconds'] for n, s in self.stages.items() if (r := self._record(s))}
    groups: dict[str, list[str]] = {}
    for name, stage in open_stages.items():
      group, _, part = (stage.title or name).partition(': ')
      groups.setdefault(group, []).append(part)
    lines = [f'  {g}: {", ".join(p)}' if any(p) else f'  {g}' for g, p in groups.items()]
    return '\n'.join([said + (f'; to do{self._time_left(spent)}:' if lines else ''), *lines])

  def _all_stages(self) -> dict[str, Stage]:
    """Those that were added, then those that are foreseen."""
    return self.stages | {n: s for n, s in self._foreseen.items() if n not in self.stages}

  def _run_stage(self, stage: Stage) -> float:
    path, digest, inputs = self.path(stage.name), self._digests[stage.name], self._inputs(stage)
    self._set_aside_if_changed(stage, path, digest, inputs)
    path.mkdir(parents=True, exist_ok=True)
    write_json(path / 'inputs.json', {'digest': digest, **inputs})
    start = time.monotonic()
    try:
      result = configs.plain(stage.run(path))
    except BaseException as error:
      error.add_note(f'in stage {stage.name!r} of the study in {self.directory}')
      raise
    seconds = time.monotonic() - start
    record = {'digest': digest, 'seconds': round(seconds, 3), 'result': result}
    write_json(path / 'result.json', record)
    return seconds

  def _set_aside_if_changed(self, stage: Stage, path: pathlib.Path, digest: str, inputs) -> None:
    """Moves a directory that was begun with other inputs out of the way."""
    old = _read_json(path / 'inputs.json')
    if old is None or old.get('digest') == digest:
      return
    name = f'{path.name}{_SET_ASIDE}{old.get("digest", "unknown")[:8]}'
    aside, number = path.with_name(name), 2
    while aside.exists():
      aside = path.with_name(f'{name}-{number}')
      number += 1
    path.rename(aside)
    changes = configs.differences(
      {k: old.get(k, {}) for k in ('settings', 'after')}, configs.plain(inputs)
    )
    self.echo(f'  {stage.name}: its inputs differ, so it is run anew; the old one is {aside.name}')
    for line in changes[:12]:
      self.echo(f'    {line}')

  def _time_left(self, spent: Mapping[str, float]) -> str:
    """From the cost and the seconds of what is done; nothing before the first stage is."""
    stages = self._all_stages()
    done = sum(stages[n].cost for n in spent)
    left = sum(s.cost for n, s in stages.items() if n not in spent)
    if not done:
      return ''
    return f', about {duration_text(sum(spent.values()) / done * left)} left'

  def _stage(self, name: str) -> Stage:
    if name not in self.stages:
      raise configs.unknown_key(name, list(self.stages), 'the study')
    return self.stages[name]

  def _inputs(self, stage: Stage) -> dict[str, Any]:
    return {
      'settings': configs.plain(stage.settings),
      'after': {name: self._digests[name] for name in stage.after},
    }

  def _record(self, stage: Stage) -> dict[str, Any] | None:
    """The stage's `result.json` if it belongs to these inputs and to those of all before it."""
    record = _read_json(self.directory / stage.name / 'result.json')
    return record if record and record.get('digest') == self._digests[stage.name] else None

  @contextlib.contextmanager
  def _lock(self) -> Iterator[None]:
    """One process a study: two would write the same checkpoints."""
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      handle = open(self.directory / '.lock', 'w')
    except OSError as error:
      raise ConfigError(
        f'the study directory {self.directory} cannot be written: {error}'
      ) from error
    with handle:
      try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
      except OSError as error:
        raise ConfigError(f'another process is running the study in {self.directory}') from error
      yield


def read_records(directory: str | os.PathLike) -> dict[str, dict[str, Any]]:
  """`{stage: {'seconds': ..., 'result': ...}}` of what is done in a study's directory, by name.

  For what is made of a study elsewhere, without its settings; old attempts are left out.
  """
  root, out = pathlib.Path(directory), {}
  for path in sorted(root.rglob('result.json')):
    name, record = path.parent.relative_to(root).as_posix(), _read_json(path)
    if record and _SET_ASIDE not in name:
      out[name] = record
  return out


def _digest(inputs: Mapping[str, Any]) -> str:
  try:
    text = json.dumps(inputs, sort_keys=True, ensure_ascii=False)
  except TypeError as error:
    raise ConfigError(f'the settings of a stage must be plain values: {error}') from error
  return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: str | os.PathLike, value: Any) -> None:
  """Writes JSON at once: after a kill there is the old file or the new one, never half."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.{os.getpid()}')
  with open(partial, 'w', encoding='utf-8') as stream:
    json.dump(value, stream, indent=2, ensure_ascii=False, default=_scalar)
    stream.write('\n')
    stream.flush()
    os.fsync(stream.fileno())
  os.replace(partial, path)


def _scalar(value: Any) -> Any:
  """NumPy and jax values as plain numbers and lists."""
  if hasattr(value, 'tolist'):
    return value.tolist()
  raise TypeError(f'{type(value).__name__} is nothing that JSON can hold: {value!r}')


def _read_json(path: pathlib.Path) -> dict[str, Any] | None:
  """The object in a file; None if there is none or it is damaged (then the stage is not done)."""
  try:
    value = json.loads(path.read_text(encoding='utf-8'))
  except (FileNotFoundError, NotADirectoryError, ValueError):
    return None
  return value if isinstance(value, dict) else None


# Arms and budgets.


@dataclasses.dataclass(frozen=True)
class Budget:
  """Planned training compute of one stage of one arm; FLOPs count a multiply-add as two."""

  arm: str
  stage: str
  steps: int
  flops_per_step: float

  @property
  def flops(self) -> float:
    return self.steps * self.flops_per_step


def arm_flops(budgets: Sequence[Budget]) -> dict[str, float]:
  """Planned training FLOPs of each arm, all its stages together."""
  out: dict[str, float] = {}
  for budget in budgets:
    out[budget.arm] = out.get(budget.arm, 0.0) + budget.flops
  return out


def check_equal_budgets(budgets: Sequence[Budget], tolerance: float = 0.01) -> dict[str, float]:
  """The FLOPs of each arm, if they are equal.

  Args:
    budgets: planned stages of all arms.
    tolerance: how far the largest may exceed the smallest, relative to the smallest.

  Raises:
    ConfigError: they are not equal, or the FLOPs of a stage are unknown; holds the whole table.
  """
  totals = arm_flops(budgets)
  unknown = [b for b in budgets if not b.flops > 0]
  if not budgets or unknown:
    where = ', '.join(f'{b.arm}/{b.stage}' for b in unknown) or 'no stage given'
    raise ConfigError(f'the planned FLOPs are not known: {where}')
  excess = max(totals.values()) / min(totals.values()) - 1
  if excess > tolerance:
    raise ConfigError(
      f'the arms differ by {excess:.2%} of training FLOPs, allowed are {tolerance:.2%}; change the '
      f'steps of an arm\n{budget_text(budgets)}'
    )
  return totals


def budget_rows(budgets: Sequence[Budget]) -> tuple[list[str], list[list[Any]]]:
  """Column names and rows of the budget table, a total for each arm below its stages."""
  rows: list[list[Any]] = []
  for arm, total in arm_flops(budgets).items():
    own = [b for b in budgets if b.arm == arm]
    rows += [[arm, b.stage, b.steps, b.flops_per_step, b.flops] for b in own]
    if len(own) > 1:
      rows.append([arm, 'total', sum(b.steps for b in own), None, total])
  return ['arm', 'stage', 'steps', 'FLOPs a step', 'FLOPs'], rows


def budget_text(budgets: Sequence[Budget]) -> str:
  """The budget table for a terminal."""
  head, rows = budget_rows(budgets)
  return text_table(head, rows)


def text_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
  """Aligned columns; numbers to four digits and on the right, None as nothing."""
  cells = [list(head)] + [
    [('' if c is None else c if isinstance(c, str) else number_text(c)) for c in r] for r in rows
  ]
  widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
  right = [bool(rows) and all(not isinstance(r[i], str) for r in rows) for i in range(len(head))]
  lines = [
    '  '.join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
    for row in cells
  ]
  lines.insert(1, '  '.join('-' * w for w in widths))
  return '\n'.join(line.rstrip() for line in lines)


def paired(seeds: Sequence[int], arms: Sequence[str]) -> list[tuple[int, str]]:
  """(seed, arm) in running order: all arms of a seed before the next, so pairs complete early.

  Raises:
    ConfigError: a seed or an arm stands twice.
  """
  for name, values in (('seeds', seeds), ('arms', arms)):
    if not values or len(set(values)) != len(values):
      raise ConfigError(f'{name} are {list(values)}, expected at least one and each only once')
  return [(seed, arm) for seed in seeds for arm in arms]
