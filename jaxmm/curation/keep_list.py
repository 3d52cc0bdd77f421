"""The keep-list: of every example of a corpus, once, whether it is kept, its score and why.

A Parquet file, or a directory of them where it is large, sorted by id:

    id      string   the user's own, or file and row
    digest  uint64   of what the example holds; a list that belongs to other data shows
    keep    bool
    score   float64  of the method, null where it has none
    reason  string   empty where the example is kept
    ...              columns of the method (cluster, distance, nearest, similarity, ...)

Its header (the key `jaxmm` of the Parquet schema) names method, parameters, versions and the
fingerprint of the corpus. The fingerprint is a sum over the examples, so neither order nor sharding
shows in it, and that of any part of a corpus follows from the list itself.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxmm.config import ConfigError

FORMAT = 1
_HEADER = b'jaxmm'
_COLUMNS = {
  'id': pa.string(),
  'digest': pa.uint64(),
  'keep': pa.bool_(),
  'score': pa.float64(),
  'reason': pa.string(),
}
# Reasons that every method may give.
UNREADABLE, EMPTY = 'unreadable', 'empty'
_ROW_GROUP = 1 << 18


@dataclasses.dataclass(frozen=True)
class KeepList:
  """The list in memory.

  Attributes:
    table: the columns above, those of the method after them; ascending by id.
    method: what made it.
    parameters: JSON values, all that determine the result besides the data.
    versions: of the packages that had a part in it.
  """

  table: pa.Table
  method: str
  parameters: Mapping[str, Any]
  versions: Mapping[str, str]

  def __post_init__(self):
    for name, kind in _COLUMNS.items():
      if name not in self.table.column_names:
        raise ConfigError(f'a keep-list has a column {name!r}; this one {self.table.column_names}')
      if self.table.schema.field(name).type != kind:
        found = self.table.schema.field(name).type
        raise ConfigError(f'column {name!r} of a keep-list is {kind}, found {found}')

  def __len__(self) -> int:
    return len(self.table)

  @property
  def num_kept(self) -> int:
    return pc.sum(self.table['keep']).as_py() or 0

  @property
  def fingerprint(self) -> str:
    """Of the corpus."""
    return fingerprint(self.table['digest'].to_numpy())

  @property
  def kept_fingerprint(self) -> str:
    """Of the part that is kept: of the corpus that a later method sees."""
    return fingerprint(self.table.filter(self.table['keep'])['digest'].to_numpy())

  def reasons(self) -> dict[str, int]:
    """How many were dropped for each reason, the most frequent first."""
    dropped = self.table.filter(pc.invert(self.table['keep']))['reason']
    counts = {c['values']: c['counts'] for c in dropped.value_counts().to_pylist()}
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))

  def header(self) -> dict[str, Any]:
    """What the file says of itself."""
    return {
      'format': FORMAT,
      'method': self.method,
      'parameters': dict(self.parameters),
      'versions': dict(self.versions),
      'examples': len(self),
      'kept': self.num_kept,
      'fingerprint': self.fingerprint,
    }


def make(
  ids: np.ndarray | pa.Array,
  digest_N: np.ndarray,
  keep_N: np.ndarray,
  *,
  score_N: np.ndarray | None = None,
  reason_N: np.ndarray | pa.Array,
  columns: Mapping[str, Any] | None = None,
  method: str,
  parameters: Mapping[str, Any],
) -> KeepList:
  """A list from columns in any order of the examples.

  Args:
    ids: N strings, all different.
    digest_N: uint64.
    keep_N: bool.
    score_N: float; nan is none.
    reason_N: strings; empty if and only if the example is kept.
    columns: those of the method, N values each.
    method, parameters: for the header.

  Raises:
    ConfigError: an id comes twice (named), or an example is dropped without a reason.
  """
  ids = pa.array(ids, pa.string())
  score = np.full(len(ids), np.nan) if score_N is None else np.asarray(score_N, np.float64)
  table = pa.table(
    {
      'id': ids,
      'digest': pa.array(np.asarray(digest_N, np.uint64)),
      'keep': pa.array(np.asarray(keep_N, bool)),
      'score': pa.array(score, from_pandas=True),
      'reason': pa.array(reason_N, pa.string()),
      **{name: _array(value) for name, value in (columns or {}).items()},
    }
  )
  table = table.take(pc.sort_indices(table, [('id', 'ascending')]))
  _check(table)
  return KeepList(table, method, dict(parameters), versions())


def _array(values) -> pa.Array:
  is_float = isinstance(values, np.ndarray) and values.dtype.kind == 'f'
  return pa.array(values, from_pandas=True) if is_float else pa.array(values)


def _check(table: pa.Table) -> None:
  ids = table['id'].combine_chunks()
  if len(ids) > 1:
    is_again = pc.equal(ids[1:], ids[:-1])
    if pc.any(is_again).as_py():
      again = pc.unique(ids[1:].filter(is_again)).to_pylist()
      raise ConfigError(
        f'{len(again)} ids come more than once, the first {again[0]!r}; a keep-list needs '
        'different ones: name another id field, or none (then file and row are the id)'
      )
  has_reason = pc.greater(pc.binary_length(table['reason']), 0)
  wrong = pc.equal(has_reason, table['keep'])
  if pc.any(wrong).as_py():
    at = ids.filter(wrong.combine_chunks())[0].as_py()
    raise ConfigError(f'example {at!r} is dropped without a reason, or kept with one')


def fingerprint(digest_N: np.ndarray) -> str:
  """Of a set of examples, whatever their order: their number and two sums of their digests."""
  digest_N = np.asarray(digest_N, np.uint64)
  with np.errstate(over='ignore'):
    total = int(np.sum(digest_N, dtype=np.uint64))
    squares = int(np.sum(digest_N * digest_N, dtype=np.uint64))
  return f'{len(digest_N)}-{total:016x}{squares:016x}'


def versions() -> dict[str, str]:
  """Of this package and of those that decide what is computed."""
  names = ('jaxmm', 'numpy', 'scipy', 'jax', 'pyarrow')
  return {name: importlib.metadata.version(name) for name in names}


def both(first: KeepList, second: KeepList) -> KeepList:
  """Kept where both keep; dropped for the first reason. Of the same corpus."""
  return _combined('and', first, second, pc.and_)


def either(first: KeepList, second: KeepList) -> KeepList:
  """Kept where one of both keeps; else dropped for the first reason. Of the same corpus."""
  return _combined('or', first, second, pc.or_)


def then(first: KeepList, second: KeepList) -> KeepList:
  """The second list is of what the first keeps, and decides about that.

  Raises:
    ConfigError: the second list is of other examples than those.
  """
  if second.fingerprint != first.kept_fingerprint:
    raise ConfigError(
      f'the list of {second.method} is of {len(second)} examples (fingerprint '
      f'{second.fingerprint}), not of the {first.num_kept} that {first.method} keeps '
      f'({first.kept_fingerprint}); make it from the kept ones'
    )
  table = first.table
  place = pc.index_in(table['id'], second.table['id'])  # null where the first drops
  inner = {name: second.table[name].take(place) for name in ('keep', 'score', 'reason')}
  return _list_of(
    'then',
    first,
    second,
    keep=pc.fill_null(inner['keep'], False),
    score=pc.coalesce(inner['score'], table['score']),
    reason=pc.coalesce(inner['reason'], table['reason']),
    place=place,
  )


def _combined(word: str, first: KeepList, second: KeepList, of_both) -> KeepList:
  if first.fingerprint != second.fingerprint:
    raise ConfigError(
      f'the lists of {first.method} and {second.method} are of different corpora (fingerprints '
      f'{first.fingerprint} and {second.fingerprint}); to apply one to what the other keeps, '
      "combine them with 'then'"
    )
  a, b = first.table, second.table
  keep = of_both(a['keep'], b['keep'])
  reason = pc.if_else(a['keep'], b['reason'], a['reason'])
  return _list_of(
    word,
    first,
    second,
    keep=keep,
    score=pc.if_else(a['keep'], b['score'], a['score']),
    reason=pc.if_else(keep, '', reason),
    place=pa.array(np.arange(len(b))),
  )


def _list_of(word, first: KeepList, second: KeepList, *, keep, score, reason, place) -> KeepList:
  """With the columns of both methods, each named `method.column`."""
  columns = {'id': first.table['id'], 'digest': first.table['digest']}
  columns |= {'keep': keep, 'score': score, 'reason': reason}
  for part, rows in ((first, None), (second, place)):
    for name in part.table.column_names:
      if name not in _COLUMNS:
        values = part.table[name] if rows is None else part.table[name].take(rows)
        columns[_free(f'{part.method}.{name}' if '.' not in name else name, columns)] = values
  parts = [{'method': part.method, 'parameters': dict(part.parameters)} for part in (first, second)]
  table = pa.table(columns)
  _check(table)
  return KeepList(table, f'{first.method} {word} {second.method}', {word: parts}, versions())


def _free(name: str, taken) -> str:
  number = 2
  free = name
  while free in taken:
    free, number = f'{name}.{number}', number + 1
  return free


def write(keep: KeepList, path: str | os.PathLike, rows_per_file: int = 10_000_000) -> None:
  """Writes one file, or a directory of parts where there are more rows than `rows_per_file`.

  The file appears whole or not at all.
  """
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  header = json.dumps(keep.header(), sort_keys=True).encode()
  table = keep.table.replace_schema_metadata({_HEADER: header})
  partial = path.with_name(path.name + '.partial')
  if len(table) <= rows_per_file:
    pq.write_table(table, partial, row_group_size=_ROW_GROUP, compression='zstd')
  else:
    partial.mkdir(exist_ok=True)
    for part, low in enumerate(range(0, len(table), rows_per_file)):
      rows = table.slice(low, rows_per_file)
      pq.write_table(rows, partial / f'part-{part:05}.parquet', row_group_size=_ROW_GROUP,
                     compression='zstd')  # fmt: skip
  os.replace(partial, path)


def read(path: str | os.PathLike) -> KeepList:
  """The list at a path, checked.

  Raises:
    ConfigError: it is no keep-list, of a later format, or its rows are not those that were written.
  """
  path = pathlib.Path(path)
  files = sorted(path.glob('part-*.parquet')) if path.is_dir() else [path]
  if not files or not files[0].exists():
    raise ConfigError(f'{path}: no keep-list there; `jaxmm curate METHOD --output` writes one')
  try:
    table = pa.concat_tables([pq.read_table(file) for file in files])
  except (pa.ArrowInvalid, OSError) as error:
    raise ConfigError(f'{path} cannot be read as Parquet ({error})') from error
  raw = (table.schema.metadata or {}).get(_HEADER)
  if raw is None:
    raise ConfigError(f'{path} is a Parquet file without the header of a keep-list')
  header = json.loads(raw)
  if header['format'] > FORMAT:
    raise ConfigError(f'{path} has format {header["format"]}; this jaxmm reads up to {FORMAT}')
  keep = KeepList(table, header['method'], header['parameters'], header['versions'])
  _check(table)
  if keep.fingerprint != header['fingerprint'] or keep.num_kept != header['kept']:
    raise ConfigError(f'{path}: its rows are not those that its header was written for')
  return keep
