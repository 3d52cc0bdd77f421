"""Per-document work over a corpus: a pure function a file, in several processes, resumable.

The function sees one shard of the corpus and returns a table, one row an example. A table is
written when it is whole, under a name that holds the digest of all that determines it, so a run
that was killed goes on, and one with other settings or other files starts anew.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import json
import multiprocessing
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from jaxmm.config import ConfigError
from jaxmm.data.corpus import Shard

Echo = Callable[[str], None]
# (shard, settings, what is particular to the shard) -> table
Work = Callable[[Shard, Mapping[str, Any], Any], pa.Table]


def map_shards(
  work: Work,
  shards: Sequence[Shard],
  directory: str | os.PathLike,
  *,
  name: str,
  settings: Mapping[str, Any],
  particulars: Sequence[Any] | None = None,
  each: Callable[[pa.Table], None] | None = None,
  processes: int = 1,
  echo: Echo | None = print,
) -> list[pa.Table]:
  """The table of every shard, memory-mapped, in the order of the shards.

  Args:
    work: a function at the top level of a module, so that other processes find it.
    shards: files of the corpus.
    directory: where finished tables are kept.
    name: of the work, for the files and the progress line.
    settings: JSON values, handed to `work`.
    particulars: JSON values, one a shard.
    each: is called with the table of every file as it is done, in any order; what it raises ends
      the work.
    processes: how many work at once; 1 works in this one.
    echo: takes progress lines.

  Raises:
    ConfigError: no process.
  """
  if processes < 1:
    raise ConfigError(f'processes is {processes}, expected at least 1')
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  particulars = [None] * len(shards) if particulars is None else particulars
  tasks = [
    (
      work,
      shard,
      dict(settings),
      extra,
      str(directory / _file_name(name, i, shard, settings, extra)),
    )
    for i, (shard, extra) in enumerate(zip(shards, particulars))
  ]
  missing = [task for task in tasks if not os.path.exists(task[-1])]
  progress = _Progress(name, len(tasks), len(tasks) - len(missing), echo)

  def finish(task, rows: int | None = None) -> None:
    if rows is not None:
      progress.add(rows)
    if each is not None:
      each(_read(task))

  for task in tasks:
    if os.path.exists(task[-1]):
      finish(task)
  if processes == 1 or len(missing) <= 1:
    for task in missing:
      finish(task, _written(task))
  else:
    # Forked processes would inherit locks of threads that are not there.
    context = multiprocessing.get_context('spawn')
    workers = min(processes, len(missing))
    with concurrent.futures.ProcessPoolExecutor(workers, mp_context=context) as pool:
      waiting = {pool.submit(_written, task): task for task in missing}
      try:
        for done in concurrent.futures.as_completed(waiting):
          finish(waiting[done], done.result())
      except BaseException:
        # Files that are begun are finished and kept; nothing is left half written.
        pool.shutdown(wait=True, cancel_futures=True)
        raise
  return [_read(task) for task in tasks]


def _read(task) -> pa.Table:
  return pa.ipc.open_file(pa.memory_map(task[-1])).read_all()


def check_some(tables: Sequence[pa.Table], shards: Sequence[Shard]) -> None:
  """Raises ConfigError for a corpus without any record, readable or not."""
  if not sum(len(table) for table in tables):
    raise ConfigError(
      f'the inputs hold no example: {len(shards)} files, the first {shards[0].path}, are empty'
    )


def _file_name(name, index: int, shard: Shard, settings, extra) -> str:
  of = {'settings': dict(settings), 'extra': extra, 'shard': [shard.name, shard.format]}
  if '://' not in shard.path:
    status = os.stat(shard.path)
    of['file'] = [status.st_size, status.st_mtime_ns]
  digest = hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:16]
  return f'{name}-{index:05}-{digest}.arrow'


def _written(task) -> int:
  """Does one shard's work; returns the number of rows."""
  work, shard, settings, extra, path = task
  table = work(shard, settings, extra)
  partial = f'{path}.{os.getpid()}.partial'
  with pa.OSFile(partial, 'wb') as f, pa.ipc.new_file(f, table.schema) as writer:
    writer.write_table(table)
  os.replace(partial, path)
  return len(table)


class _Progress:
  """A line every few seconds, with the time that is left."""

  def __init__(self, name: str, total: int, done: int, echo: Echo | None):
    self._name, self._total, self._done, self._echo = name, total, done, echo
    self._before, self._rows = done, 0
    self._began = self._said = time.monotonic()
    if echo and done:
      echo(f'{name}: {done} of {total} files done before')

  def add(self, rows: int) -> None:
    self._done, self._rows = self._done + 1, self._rows + rows
    now = time.monotonic()
    if self._echo and (now - self._said > 5 or self._done == self._total):
      spent = max(now - self._began, 1e-9)
      left = spent / (self._done - self._before) * (self._total - self._done)
      self._echo(
        f'{self._name}: {self._done} of {self._total} files, {self._rows / spent:,.0f} examples/s, '
        f'{left:.0f} s left'
      )
      self._said = now
