"""Per-document work over a corpus: a pure function a file, on any runner, resumable.

The function sees one shard of the corpus and returns a table, one row an example. A table is
written when it is whole, under a name that holds the digest of all that determines it, so a run
that was killed goes on, and one with other settings or other files starts anew.

Who does the work is a `Runner`: processes of this machine (`Local`) or Apache Beam (`beam_runner`).
The tables, and so what is made of them, are the same.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.compute as pc

from jaxmm.config import ConfigError
from jaxmm.curation import work_tables
from jaxmm.data import corpus
from jaxmm.data.corpus import Shard

Echo = Callable[[str], None]
# (shard, settings, what is particular to the shard) -> table
Work = Callable[[Shard, Mapping[str, Any], Any], pa.Table]


@dataclasses.dataclass(frozen=True)
class Task:
  """The work on one shard.

  Attributes:
    work: a function at the top level of a module, so that other processes find it.
    shard, settings, particular: its arguments; the last two are JSON values.
    path: of its table.
  """

  work: Work
  shard: Shard
  settings: Mapping[str, Any]
  particular: Any
  path: str

  def done(self) -> pa.Table:
    """Does the work; the table, which has been written."""
    table = self.work(self.shard, self.settings, self.particular)
    work_tables.write(table, self.path)
    return table


class Runner(Protocol):
  """Does tasks, each at least once, in any order."""

  def run(self, tasks: Sequence[Task], progress: Progress) -> None:
    """Returns when the table of every task is written.

    Raises:
      ConfigError: as a task raised it. Finished tables stay.
    """
    ...


@dataclasses.dataclass(frozen=True)
class Local:
  """Processes of this machine.

  Attributes:
    processes: how many work at once; 1 works in this one.
  """

  processes: int = 1

  def __post_init__(self):
    if self.processes < 1:
      raise ConfigError(f'processes is {self.processes}, expected 1 or more')

  def run(self, tasks: Sequence[Task], progress: Progress) -> None:
    workers = min(self.processes, len(tasks))
    if workers <= 1:
      for task in tasks:
        progress.add(_rows(task))
        progress.check(task)
      return
    # Forked processes would inherit locks of threads that are not there.
    context = multiprocessing.get_context('spawn')
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
      waiting = {pool.submit(_rows, task): task for task in tasks}
      try:
        for done in concurrent.futures.as_completed(waiting):
          progress.add(done.result())
          progress.check(waiting[done])
      except BaseException:
        # Files that are begun are finished and kept; nothing is left half written.
        pool.shutdown(wait=True, cancel_futures=True)
        raise


LOCAL = Local()


def _rows(task: Task) -> int:
  return len(task.done())


def chosen(processes: int | None = None, beam_options: str | None = None) -> Runner:
  """The runner that a command line asks for.

  Args:
    processes: of this machine; None is as many as cores.
    beam_options: Apache Beam's pipeline options, as in a shell ('' are Beam's own defaults); None
      is not to use Beam.

  Raises:
    ConfigError: both, or Beam is not installed, or its options are wrong.
  """
  if beam_options is None:
    return Local(os.cpu_count() or 1 if processes is None else processes)
  if processes is not None:
    raise ConfigError(
      f'processes is {processes}, which is for work without Beam; say it in the options of Beam '
      '(--direct_num_workers=2 --direct_running_mode=multi_processing, --num_workers=2, ...)'
    )
  try:
    import apache_beam  # noqa: F401
  except ImportError as error:
    raise ConfigError(
      f"the Apache Beam runner needs the extra `beam` ({error}): pip install 'jaxmm[beam]', in "
      'an environment of its own, as Beam wants older protobuf and pyarrow'
    ) from error
  from jaxmm.curation import beam_runner

  return beam_runner.Beam(tuple(shlex.split(beam_options)))


def map_shards(
  work: Work,
  shards: Sequence[Shard],
  directory: str | os.PathLike,
  *,
  name: str,
  settings: Mapping[str, Any],
  particulars: Sequence[Any] | None = None,
  each: Callable[[pa.Table], None] | None = None,
  runner: Runner = LOCAL,
  echo: Echo | None = print,
) -> list[pa.Table]:
  """The table of every shard, memory-mapped, in the order of the shards.

  Args:
    work: a function at the top level of a module, so that other processes find it.
    shards: files of the corpus.
    directory: where finished tables are kept: a path, or a URL that `fsspec` knows.
    name: of the work, for the files and the progress line.
    settings: JSON values, handed to `work`.
    particulars: JSON values, one a shard.
    each: is called with the table of every file as it is done, in any order; what it raises ends
      the work.
    runner: who does the work.
    echo: takes progress lines.

  """
  directory = work_tables.root(directory)
  particulars = [None] * len(shards) if particulars is None else particulars
  tasks = []
  for i, (shard, particular) in enumerate(zip(shards, particulars)):
    file = _file_name(name, i, shard, settings, particular)
    tasks.append(Task(work, shard, dict(settings), particular, f'{directory}/{file}'))
  there = work_tables.names(directory)
  missing = [task for task in tasks if task.path.rsplit('/', 1)[-1] not in there]
  progress = Progress(name, len(tasks), len(tasks) - len(missing), echo, each)
  for task in tasks:
    if task.path.rsplit('/', 1)[-1] in there:
      progress.check(task)
  if missing:
    runner.run(missing, progress)
  return [work_tables.read(task.path) for task in tasks]


def check_some(
  tables: Sequence[pa.Table], shards: Sequence[Shard], inputs: corpus.CorpusConfig
) -> None:
  """Refuses a corpus of which nothing can be read, before what was made of it is written.

  Args:
    tables: of the files; columns `id` and `error`, '' for what can be read.
    shards: the files.
    inputs: the corpus.

  Raises:
    ConfigError: there is no record, or none that can be read.
  """
  number = sum(len(table) for table in tables)
  if not number:
    over = corpus.passed_over(inputs)
    passed = ', '.join(f'{number:,} {why}' for why, number in over.items())
    raise ConfigError(
      f'the inputs hold no example: {len(shards)} files, the first {shards[0].path}'
      + (f'; passed over: {passed} (of a zip pictures are read)' if over else ', are empty')
    )
  if any(pc.any(pc.equal(table['error'], '')).as_py() for table in tables):
    return
  first = next(table for table in tables if len(table)).slice(0, 1).to_pylist()[0]
  raise none_readable(number, first['id'], first['error'])


def none_readable(number: int, example_id: str, error: str) -> ConfigError:
  """Of the first of the examples, none of which can be read."""
  return ConfigError(
    f'none of the {number:,} examples of the inputs can be read; the first, {example_id!r}: '
    f'{error}. Texts in records are found by --text-field, pictures by --image-field'
  )


def _file_name(name, index: int, shard: Shard, settings, particular) -> str:
  of = {'settings': dict(settings), 'extra': particular, 'shard': [shard.name, shard.format]}
  of['file'] = work_tables.state(shard.path)
  digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
  return f'{name}-{index:05}-{digest}.arrow'


class Progress:
  """A line every few seconds, with the time that is left; `say` takes other lines."""

  def __init__(
    self,
    name: str,
    total: int,
    done: int,
    echo: Echo | None,
    each: Callable[[pa.Table], None] | None = None,
  ):
    self.name, self._each = name, each
    self._total, self._done, self._echo = total, done, echo
    self._before, self._rows = done, 0
    self._began = self._said = time.monotonic()
    if done:
      self.say(f'{done} of {total} files done before')

  def say(self, line: str) -> None:
    if self._echo:
      self._echo(f'{self.name}: {line}')

  def check(self, task: Task) -> None:
    """Shows the table of a finished task to who asked for every one."""
    if self._each is not None:
      self._each(work_tables.read(task.path))

  def add(self, rows: int, files: int = 1) -> None:
    self._done, self._rows = self._done + files, self._rows + rows
    now = time.monotonic()
    if now - self._said > 5 or self._done == self._total:
      spent = max(now - self._began, 1e-9)
      left = spent / (self._done - self._before) * (self._total - self._done)
      self.say(
        f'{self._done} of {self._total} files, {self._rows / spent:,.0f} examples/s, '
        f'{left:.0f} s left'
      )
      self._said = now
