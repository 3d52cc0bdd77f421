"""The keep-list: of every example of a corpus, once, whether it is kept, its score and why.

A Parquet file, or a directory of them where it is large, sorted by id:

    id      string   the user's own, or file and row
    digest  uint64   of what the example holds; a list that belongs to other data shows
    keep    bool
    score   float64  of the method, null where it has none
    reason  string   empty where the example is kept
    ...              columns of the method (cluster, distance, nearest, similarity, ...), and
    error   string   what is wrong with an unreadable example, null for the others

A list that joins others has no score of its own. Every method that had a part in it has a name
there (`minhash`, a second one `minhash_2`), and its columns, score and reason are called
`NAME.column`; they are null for the examples that it was not asked about.

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
import shutil
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
# Why two lists of the same ids have other digests.
OTHER_FIELDS = (
  'their ids are the same, but digests are of the fields that were named (or a record has changed '
  'since): make both with the same --text-field and --image-field, which a method that reads only '
  'one of the two takes as well'
)
_ROW_GROUP = 1 << 18
# Above so many rows a list is a directory of files.
ROWS_PER_FILE = 10_000_000


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

  def errors(self) -> dict[str, str]:
    """What is wrong with the examples that cannot be read, by id, as the methods found it."""
    out: dict[str, str] = {}
    for name in self.table.column_names:
      if name.split('.')[-1] == 'error':
        rows = self.table.filter(pc.is_valid(self.table[name]))
        out |= dict(zip(rows['id'].to_pylist(), rows[name].to_pylist()))
    return out

  def header(self) -> dict[str, Any]:
    """What the file says of itself."""
    return {
      'format': FORMAT,
      'method': self.method,
      'parameters': dict(self.parameters),
      'parts': part_names(self.method, self.parameters),
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
    if second.fingerprint == first.fingerprint:
      mend = (
        "it is of all that the first was made of: join them with 'and', or make it anew from the "
        'kept ones: of vectors with --after FIRST, which joins both at once, else from what '
        '`jaxmm curate export FIRST` writes'
      )
    elif first.table.filter(first.table['keep'])['id'].equals(second.table['id']):
      mend = OTHER_FIELDS
    else:
      mend = (
        'make it from those: of vectors with --after FIRST, which joins both at once, else from '
        'what `jaxmm curate export FIRST` writes'
      )
    raise ConfigError(
      f'the list of {second.method} is of {len(second):,} examples, not of the '
      f'{first.num_kept:,} that {first.method} keeps; {mend}'
    )
  place = pc.index_in(first.table['id'], second.table['id'])  # null where the first drops
  return _list_of(
    'then',
    first,
    second,
    keep=pc.fill_null(second.table['keep'].take(place), False),
    reason=pc.coalesce(second.table['reason'].take(place), first.table['reason']),
    place=place,
  )


def _combined(word: str, first: KeepList, second: KeepList, of_both) -> KeepList:
  if first.fingerprint != second.fingerprint:
    if second.fingerprint == first.kept_fingerprint:
      mend = f"the second is of what the first keeps, so join them with 'then', not '{word}'"
    elif first.table['id'].equals(second.table['id']):
      mend = OTHER_FIELDS
    else:
      mend = (
        'make both from the same inputs and fields; a list of what another keeps is joined to it '
        "with 'then'"
      )
    raise ConfigError(
      f'the lists of {first.method} ({len(first):,} examples) and {second.method} '
      f'({len(second):,}) are of different corpora; {mend}'
    )
  a, b = first.table, second.table
  keep = of_both(a['keep'], b['keep'])
  reason = pc.if_else(a['keep'], b['reason'], a['reason'])
  return _list_of(
    word,
    first,
    second,
    keep=keep,
    reason=pc.if_else(keep, '', reason),
    place=pa.array(np.arange(len(b))),
  )


# Under which of them the parameters of a list that joins others have its parts.
_WORDS = ('and', 'or', 'then')


def part_names(method: str, parameters: Mapping[str, Any]) -> list[str]:
  """Names of the methods that had a part in a list, in order; one where nothing was joined."""
  word = _word_of(parameters)
  if word is None:
    return [_own_name(method)]
  names = []
  for part in parameters[word]:
    if _word_of(part['parameters']) is None:
      names.append(part['name'])
    else:
      names += part_names('', part['parameters'])
  return names


def _own_name(method: str) -> str:
  return method.replace('.', '_')  # what stands before the first dot of a column is the part


def _word_of(parameters: Mapping[str, Any]) -> str | None:
  return next((w for w in _WORDS if list(parameters) == [w]), None)


def _list_of(word, first: KeepList, second: KeepList, *, keep, reason, place) -> KeepList:
  """With the columns of all methods, each named `name.column`."""
  columns = {'id': first.table['id'], 'digest': first.table['digest'], 'keep': keep}
  columns |= {'score': pa.nulls(len(keep), pa.float64()), 'reason': reason}
  taken: list[str] = []
  entries = []
  for part, rows in ((first, None), (second, place)):
    new_of = {}
    for name in part_names(part.method, part.parameters):
      new_of[name] = _free(name, taken)
      taken.append(new_of[name])
    for name, column in _columns_of_parts(part).items():
      old, _, rest = name.partition('.')
      columns[f'{new_of[old]}.{rest}'] = column if rows is None else column.take(rows)
    entries.append(_renamed(part.method, part.parameters, new_of))
  table = pa.table(columns)
  _check(table)
  method = f' {word} '.join(_in_brackets(part, word) for part in entries)
  return KeepList(table, method, {word: entries}, versions())


def _columns_of_parts(of: KeepList) -> dict[str, pa.ChunkedArray]:
  """Columns by `name.column`, also where nothing was joined yet."""
  if _word_of(of.parameters) is not None:
    return {name: of.table[name] for name in of.table.column_names if name not in _COLUMNS}
  own = [n for n in of.table.column_names if n not in ('id', 'digest', 'keep')]
  return {f'{_own_name(of.method)}.{name}': of.table[name] for name in own}


def _renamed(method: str, parameters: Mapping[str, Any], new_of: Mapping[str, str]) -> dict:
  """A part as the header of the whole has it."""
  word = _word_of(parameters)
  if word is None:
    return {'name': new_of[_own_name(method)], 'method': method, 'parameters': dict(parameters)}
  parts = []
  for part in parameters[word]:
    if _word_of(part['parameters']) is None:
      parts.append(dict(part, name=new_of[part['name']]))
    else:
      parts.append(_renamed(part['method'], part['parameters'], new_of))
  name = f' {word} '.join(_in_brackets(part, word) for part in parts)
  return {'name': name, 'method': name, 'parameters': {word: parts}}


def _in_brackets(part: Mapping[str, Any], word: str) -> str:
  """The name of a part within one joined by `word`; a chain of one word needs no brackets."""
  inner = _word_of(part['parameters'])
  return part['name'] if inner in (None, word) else f'({part["name"]})'


def _free(name: str, taken) -> str:
  number = 2
  free = name
  while free in taken:
    free, number = f'{name}_{number}', number + 1
  return free


def write(
  keep: KeepList, path: str | os.PathLike, rows_per_file: int | None = None
) -> pathlib.Path:
  """Writes one file, or a directory of parts where there are more rows than `rows_per_file`
  (ROWS_PER_FILE).

  It appears whole or not at all, and replaces a list that is there.

  Raises:
    ConfigError: at the path is a directory that is no keep-list.
  """
  path = pathlib.Path(path)
  check_replaceable(path)
  rows_per_file = rows_per_file or ROWS_PER_FILE
  path.parent.mkdir(parents=True, exist_ok=True)
  header = json.dumps(keep.header(), sort_keys=True).encode()
  table = keep.table.replace_schema_metadata({_HEADER: header})
  partial = path.with_name(path.name + '.partial')
  _remove(partial)  # of a process that was killed
  try:
    if len(table) <= rows_per_file:
      pq.write_table(table, partial, row_group_size=_ROW_GROUP, compression='zstd')
    else:
      partial.mkdir()
      for part, low in enumerate(range(0, len(table), rows_per_file)):
        rows = table.slice(low, rows_per_file)
        pq.write_table(rows, partial / f'part-{part:05}.parquet', row_group_size=_ROW_GROUP,
                       compression='zstd')  # fmt: skip
    if path.is_dir() or partial.is_dir():
      _remove(path)
    os.replace(partial, path)
  except BaseException:
    _remove(partial)
    raise
  return path


def check_replaceable(path: str | os.PathLike) -> None:
  """ConfigError if a directory is there that is not a list in parts."""
  path = pathlib.Path(path)
  if path.is_dir():
    others = [p for p in path.iterdir() if not p.match('part-*.parquet')]
    if others or not any(path.iterdir()):
      raise ConfigError(f'{str(path)!r} is a folder; name a file, such as keep.parquet')


def _remove(path: pathlib.Path) -> None:
  if path.is_dir():
    shutil.rmtree(path)
  else:
    path.unlink(missing_ok=True)


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
