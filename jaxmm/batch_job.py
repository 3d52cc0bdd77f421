"""Seam: a data set through a jitted function into a store, or into sums.

Extracting codes, embedding, scoring and evaluating are all this one job. A pass visits every record
once, in order, on whatever mesh; the row of a result is the position of its record, so neither the
batch size nor the number of devices or processes shows in what is written.

Axes: B batch (global, over all processes).
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStore, ArrayStoreWriter

Echo = Callable[[str], None]
# (record of the first row, `{field: [rows, ...]}`), one after the other.
Results = Iterable[tuple[int, dict[str, np.ndarray]]]
# Field that `run` adds: False where the record could not be read.
VALID = 'valid'


class Pass(Protocol):
  """What a job needs of `data.pipeline.Batches`, made with `train=False`."""

  num_records: int
  batch_size: int

  def record_ids(self, step: int) -> np.ndarray:
    """Records of the rows of one global batch, of all processes."""

  def from_step(self, step: int) -> Iterator[Mapping[str, np.ndarray]]:
    """This process's rows of the global batches from `step` on, in record order; a generator."""


class ArrayPass:
  """Arrays in memory (or mapped files) as one ordered pass of any mesh and number of processes.

  The last batch is padded with rows that do not count.
  """

  def __init__(self, arrays: Mapping[str, np.ndarray], batch_size: int, mesh: jax.sharding.Mesh):
    """Args: arrays with one length; rows a global batch, rounded up to what the mesh divides."""
    self.num_records = len(next(iter(arrays.values())))
    parts = int(np.lcm(mesh.shape['data'] * mesh.shape['fsdp'], jax.process_count()))
    self.batch_size = -(-max(min(batch_size, self.num_records), 1) // parts) * parts
    self._arrays = arrays

  def record_ids(self, step: int) -> np.ndarray:
    """Records of the rows of one global batch."""
    return np.arange(step * self.batch_size, (step + 1) * self.batch_size)

  def from_step(self, step: int) -> Iterator[Mapping[str, np.ndarray]]:
    """This process's rows of the batches from `step` on."""
    share = self.batch_size // jax.process_count()
    while step * self.batch_size < self.num_records:
      row_B = self.record_ids(step)[share * jax.process_index() :][:share]
      read_B = np.minimum(row_B, self.num_records - 1)
      yield {name: np.asarray(x[read_B]) for name, x in self._arrays.items()} | {
        'record_B': row_B.astype(np.int32),
        'valid_B': (row_B < self.num_records).astype(np.float32),
      }
      step += 1


def run(
  batches: Pass,
  fn: Callable[[Any, Mapping[str, jax.Array]], Mapping[str, jax.Array]],
  directory: str | os.PathLike,
  *,
  variables: Any = None,
  fields: Mapping[str, tuple[Sequence[int], Any]],
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  rows_per_shard: int = 1024,
  meta: Mapping[str, Any] | None = None,
  restored: Callable[[Results], Results] | None = None,
  echo: Echo | None = print,
) -> ArrayStore:
  """Writes `fn` of every record to a store; a job that was stopped, even killed, is continued.

  A shard appears whole or not at all, and shards that are there are not computed again. Rows of
  records that cannot be read are zeros with `valid` False. Every process of a program calls this;
  they write different shards to one file system.

  Args:
    batches: one pass over the data, in order (`train=False`).
    fn: pure; `fn(variables, batch) -> {field: array [B, *shape]}`; jitted here.
    directory: of the store.
    variables: arrays that `fn` reads (parameters), placed on the mesh already or to be replicated.
    fields: `{name: (shape of one row, dtype)}` of what `fn` returns; `valid` (bool) is added.
    mesh, rules: what the function runs on, and what logical axis names mean there.
    rows_per_shard: rows of one shard: what is lost at most, and held in memory.
    meta: JSON values that determine the result: model, checkpoint, data. Not the batch size.
    restored: for a pass in another order than the store's (sorted by length, say): brings the
      results of a stretch of whole shards into the store's order. None: they are in it.
    echo: is given progress lines; None for silence.

  Returns:
    The finished store.

  Raises:
    ConfigError: the directory holds results of another job (with the differences), `fn` returns
      other fields, the batches are not one ordered pass, or the batch does not fit the mesh.
  """
  if VALID in fields:
    raise ConfigError(f'fields has {VALID!r}, which the job itself adds; choose another name')
  if not fields:
    raise ConfigError('fields is empty; name what the function returns')
  all_fields = {**fields, VALID: ((), np.bool_)}
  writer = ArrayStoreWriter(directory, all_fields, batches.num_records, rows_per_shard, meta)

  def checked(variables, batch):
    out = dict(fn(variables, batch))
    expected = {name: tuple(shape) for name, (shape, _) in fields.items()}
    found = {name: tuple(value.shape[1:]) for name, value in out.items()}
    if found != expected:
      raise ConfigError(f'the function returns rows of {found}, but fields says {expected}')
    return out

  finished = writer.finished()
  missing = _agreed(np.array([k not in finished for k in range(writer.num_shards)]))
  progress = _Progress(f'{directory}', batches.num_records, echo)
  for first, last in _stretches(missing):
    rows = range(writer.rows(first).start, writer.rows(last).stop)
    progress.skip_to(rows.start)
    results = outputs(batches, checked, variables=variables, mesh=mesh, rules=rules, rows=rows)
    results = _watched(results, progress)
    results = results if restored is None else restored(results)
    _write_stretch(writer, range(first, last + 1), results)
  progress.finish()
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'jaxmm.batch_job {directory}')
  return ArrayStore(directory)


def run_sums(
  batches: Pass,
  fn: Callable[[Any, Mapping[str, jax.Array]], Mapping[str, tuple[jax.Array, jax.Array]]],
  *,
  variables: Any = None,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  max_batches: int | None = None,
  echo: Echo | None = None,
) -> dict[str, tuple[Any, Any]]:
  """Adds `fn(variables, batch) -> {metric: (sum, count)}` over one pass.

  `fn` must give rows with `valid_B` 0 no weight; rows beyond the last record come with it 0. Sums
  are added on the host in float64 and counts of integer type as integers, so no metric stops
  growing at 2^24.

  Args:
    batches, fn, variables, mesh, rules, echo: as of `run`.
    max_batches: stop after so many; None for the whole pass.

  Returns:
    `{metric: (sum, count)}`: Python numbers for scalars, arrays (float64, int64) otherwise. The
    mean is sum / count; it is left to the caller, who knows what no count means.
  """
  totals: dict[str, tuple[Any, Any]] = {}
  progress = _Progress('evaluation', batches.num_records, echo)
  everything = range(batches.num_records)
  for start, result in _computed(batches, fn, variables, mesh, rules, everything, max_batches):
    for name, pair in result.items():
      if not (isinstance(pair, tuple) and len(pair) == 2):
        raise ConfigError(f'the function returns {name!r} as {type(pair)}, expected (sum, count)')
      old = totals.get(name, (0, 0))
      totals[name] = tuple(a + _wide(b) for a, b in zip(old, pair))
    progress.at(min(start + batches.batch_size, batches.num_records), 0)
  progress.finish()
  return {name: tuple(_scalar(x) for x in pair) for name, pair in totals.items()}


def outputs(
  batches: Pass,
  fn: Callable[[Any, Mapping[str, jax.Array]], Mapping[str, jax.Array]],
  *,
  variables: Any = None,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  rows: range | None = None,
) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
  """`fn` of a stretch of the pass, as host arrays, in order.

  Args:
    batches, fn, variables, mesh, rules: as of `run`.
    rows: the stretch of records; None for all.

  Yields:
    (record of the first row, `{field: [rows, ...]}` with `valid` bool [rows]), cut to `rows`; the
    same on every process.
  """
  rows = range(batches.num_records) if rows is None else rows

  def with_valid(variables, batch):
    out = dict(fn(variables, batch))
    if VALID in out:
      raise ConfigError(f'the function returns {VALID!r}, which the job itself adds')
    size = batch['valid_B'].shape[0]
    for name, value in out.items():
      if not value.shape or value.shape[0] != size:
        raise ConfigError(
          f'the function returns {name!r} of shape {value.shape}, expected {size} rows'
        )
    return {**out, VALID: batch['valid_B'] > 0}

  for start, result in _computed(batches, with_valid, variables, mesh, rules, rows, None):
    size = len(result[VALID])
    cut = slice(max(rows.start - start, 0), min(rows.stop - start, size))
    yield start + cut.start, {name: value[cut] for name, value in result.items()}


def _watched(results: Results, progress: _Progress) -> Results:
  """The results as they come, with a line of progress now and then."""
  for start, result in results:
    valid = result[VALID]
    progress.at(start + len(valid), int((~valid).sum()))
    yield start, result


def _write_stretch(writer: ArrayStoreWriter, shards: range, results: Results) -> None:
  """Cuts the stream of results into shards, of which this process writes its share."""
  pieces: list[dict[str, np.ndarray]] = []
  shard, filled = shards.start, writer.rows(shards.start).start
  for start, result in results:
    valid = result[VALID]
    # What a network makes of an image that is not there is no result.
    pieces.append({k: _where_rows(valid, value) for k, value in result.items()})
    filled = start + len(valid)
    while shard < shards.stop and filled >= writer.rows(shard).stop:
      rows = {k: np.concatenate([piece[k] for piece in pieces]) for k in result}
      length = len(writer.rows(shard))
      if shard % jax.process_count() == jax.process_index():
        writer.write_shard(shard, {k: value[:length] for k, value in rows.items()})
      pieces, shard = [{k: value[length:] for k, value in rows.items()}], shard + 1
  if shard != shards.stop:
    raise ConfigError(
      f'the data ended at record {filled}, expected {writer.rows(shards.stop - 1).stop}'
    )


def _where_rows(valid: np.ndarray, value: np.ndarray) -> np.ndarray:
  return np.where(valid.reshape(-1, *[1] * (value.ndim - 1)), value, np.zeros_like(value))


def _wide(value: np.ndarray) -> np.ndarray:
  return value.astype(np.int64 if value.dtype.kind in 'iub' else np.float64)


def _scalar(value: np.ndarray) -> Any:
  return value.item() if np.ndim(value) == 0 else value


def _computed(
  batches, fn, variables, mesh, rules, rows: range, max_batches: int | None
) -> Iterator[tuple[int, Any]]:
  """(record of the batch's first row, `fn` of the batch as host arrays) for the batches of `rows`.

  One batch is computed while the last is copied and used.
  """
  # Every process needs all rows: a shard is written by one of them.
  jitted = jax.jit(fn, out_shardings=sharding.replicated(mesh))
  variables = jax.tree.map(lambda x: _on_mesh(x, mesh), variables)
  waiting = None
  for start, batch in _placed(batches, mesh, rows, max_batches):
    with sharding.in_mesh(mesh, rules):
      result = jitted(variables, batch)
    if waiting is not None:
      yield waiting[0], jax.device_get(waiting[1])
    waiting = start, result
  if waiting is not None:
    yield waiting[0], jax.device_get(waiting[1])


def _on_mesh(x: Any, mesh: jax.sharding.Mesh) -> jax.Array:
  if isinstance(x, jax.Array) and x.sharding.device_set == set(mesh.devices.flat):
    return x
  return jax.device_put(x, sharding.replicated(mesh))


def _placed(
  batches, mesh, rows: range, max_batches: int | None
) -> Iterator[tuple[int, dict[str, jax.Array]]]:
  """The batches that hold `rows`, on the mesh, with rows beyond the last record made invalid."""
  size = len(batches.record_ids(0))
  _check_size(size, mesh)
  share, last_record = size // jax.process_count(), -1
  steps = range(rows.start // size, -(-rows.stop // size))
  if max_batches is not None:
    steps = steps[:max_batches]
  with contextlib.closing(batches.from_step(steps.start)) as stream:
    # `zip` asks the steps first, so no batch is read that is not used.
    for step, local in zip(steps, stream):
      start = step * size
      position = start + share * jax.process_index() + np.arange(share)
      inside = position < batches.num_records
      last_record = _check_order(np.asarray(local['record_B'])[inside], last_record)
      valid_B = np.where(inside, local['valid_B'], 0).astype(np.float32)
      yield start, sharding.global_batch(mesh, {**local, 'valid_B': valid_B})


def _check_size(size: int, mesh) -> None:
  parts = mesh.shape['data'] * mesh.shape['fsdp']
  if size % parts:
    raise ConfigError(
      f'a batch of {size} rows cannot be split over {parts} devices (mesh.data * mesh.fsdp); '
      'choose a multiple'
    )


def _check_order(record_B: np.ndarray, last: int) -> int:
  records = np.concatenate([[last], record_B])
  if (np.diff(records) < 0).any():
    raise ConfigError(
      'the batches come in another order than the records; a job needs one ordered pass, make them '
      'with train=False'
    )
  return int(records[-1])


def _agreed(missing: np.ndarray) -> np.ndarray:
  """What the first process sees: one that already writes must not change another's plan."""
  if jax.process_count() == 1:
    return missing
  return np.asarray(multihost_utils.broadcast_one_to_all(missing))


def _stretches(missing: np.ndarray) -> Iterator[tuple[int, int]]:
  """(first, last) of every run of missing shards."""
  edges = np.flatnonzero(np.diff(np.concatenate([[0], missing.astype(np.int8), [0]])))
  yield from ((int(a), int(b) - 1) for a, b in edges.reshape(-1, 2))


class _Progress:
  """A line at most every few seconds: how far, how fast, how long still."""

  def __init__(self, name: str, num_rows: int, echo: Echo | None, every_s: float = 5.0):
    self._name, self._num_rows, self._echo, self._every = name, num_rows, echo, every_s
    self._begin = self._shown = time.monotonic()
    self._row = self._skipped = self._unreadable = 0

  def skip_to(self, row: int) -> None:
    """The rows up to `row` were there already."""
    self._skipped += row - self._row
    self._row = row

  def at(self, row: int, unreadable: int) -> None:
    """Rows up to `row` are done; `unreadable` of those that are new could not be read."""
    self._row, self._unreadable = row, self._unreadable + unreadable
    now = time.monotonic()
    if self._echo and now - self._shown >= self._every:
      self._shown = now
      rate = (self._row - self._skipped) / max(now - self._begin, 1e-9)
      left = (self._num_rows - self._row) / max(rate, 1e-9)
      self._echo(
        f'{self._name}: {self._row:,}/{self._num_rows:,} rows, {rate:,.0f} rows/s, '
        f'{int(left // 60)}:{int(left % 60):02d} left{self._bad()}'
      )

  def finish(self) -> None:
    """All rows are there."""
    if self._echo:
      seconds = time.monotonic() - self._begin
      self._echo(f'{self._name}: {self._num_rows:,} rows, {seconds:.1f} s{self._bad()}')

  def _bad(self) -> str:
    return f', {self._unreadable} unreadable' if self._unreadable else ''
