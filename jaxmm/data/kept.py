"""Keep-lists applied to what training reads: the kept records only, in the source's order.

`jaxmm curate METHOD` writes a keep-list: a Parquet file (or a folder of them) with the columns `id`
(string) and `keep` (bool), an optional `digest` (uint64, of id and content), and more that is not
needed here. A list of one's own with `id` and `keep` does as well.

The ids of a list and those of the data must be the same, so that a list never silently belongs to
other data. It is of the whole data or of the split that is trained on; what it says of other splits
changes nothing.

Axes: N rows of the list.
"""

from __future__ import annotations

import hashlib
import logging
import os
import pathlib
from collections.abc import Callable, Iterable

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data.corpus import parquet_module
from jaxmm.data.sources import Record, Source, Subset, innermost

_WHERE_LISTS_COME_FROM = (
  'Make the list from what data.path names (`jaxmm curate METHOD --input PATH`). Ids are the file '
  'below PATH and the row, or those of --id-field, which data.id_field has to name, too; files '
  'that are no examples are left out with --suffix and --exclude (in training with '
  'data.text.suffixes and data.text.exclude, or those of data.bytes)'
)
_MADE_ANEW = (
  'make it anew, or, if it was made of other fields of the same records, set '
  'data.check_digests=False'
)


def digest(example_id: str, content: bytes) -> int:
  """64 bits of an example's id and content, as in the column `digest` of a keep-list."""
  of = hashlib.blake2b(digest_size=8)
  of.update(example_id.encode('utf-8', 'surrogatepass') + b'\0')
  of.update(content)
  return int.from_bytes(of.digest(), 'little')


def read_columns(path: str | os.PathLike) -> tuple[list[str], np.ndarray, np.ndarray | None]:
  """Ids, keep_N bool and digest_N uint64 (None if there is no such column) of a keep-list.

  Raises:
    ConfigError: nothing there, no keep-list, an id that is missing or comes twice, or no pyarrow.
  """
  pq = parquet_module()
  import pyarrow as pa

  where = f'data.keep_list {str(path)!r}'
  path = pathlib.Path(path)
  files = sorted(path.glob('*.parquet')) if path.is_dir() else [path]
  if not files or not files[0].is_file():
    raise ConfigError(f'{where}: no keep-list there; `jaxmm curate METHOD --output` writes one')
  try:
    schema = pq.read_schema(files[0])
    names = [name for name in ('id', 'keep', 'digest') if name in schema.names]
    table = pa.concat_tables([pq.read_table(file, columns=names) for file in files])
  except (pa.ArrowException, OSError) as error:
    raise ConfigError(f'{where} cannot be read as Parquet ({error})') from error
  types = {'id': (pa.string(), pa.large_string()), 'keep': (pa.bool_(),), 'digest': (pa.uint64(),)}
  for name, kinds in types.items():
    if name not in names and name != 'digest':
      raise ConfigError(f'{where} has columns {schema.names}, a keep-list has {name!r}')
    if name in names and table.schema.field(name).type not in kinds:
      found = table.schema.field(name).type
      raise ConfigError(f'{where}: column {name!r} is {found}, expected {kinds[0]}')
    if name in names and table[name].null_count:
      raise ConfigError(f'{where}: column {name!r} has {table[name].null_count} nulls')
  digest_N = table['digest'].to_numpy() if 'digest' in names else None
  return table['id'].to_pylist(), table['keep'].to_numpy(), digest_N


class Verdicts:
  """What a keep-list says of the records of one data set.

  Every record of the split is asked for with `keeps`, those of other splits are told with
  `elsewhere`, then `settled` gives the fingerprint or refuses the list.

  Args:
    path: the list.

  Raises:
    ConfigError: see `read_columns`.
  """

  def __init__(self, path: str | os.PathLike):
    self.path = str(path)
    self._ids, self._keep_N, self._digest_N = read_columns(path)
    self._row_of = {name: row for row, name in enumerate(self._ids)}
    if len(self._row_of) < len(self._ids):
      again = next(name for row, name in enumerate(self._ids) if self._row_of[name] != row)
      raise ConfigError(f'data.keep_list {self.path!r} has the id {again!r} more than once')
    self._is_asked_N = np.zeros(len(self._ids), bool)
    self._is_elsewhere_N = np.zeros(len(self._ids), bool)
    self._missing: list[str] = []
    self._changed: list[str] = []

  def keeps(self, record_id: str, content: bytes | None = None) -> bool:
    """Whether the record is kept.

    Args:
      record_id: each is asked for once.
      content: of the record, to compare with the list's digest; None where it is not at hand.

    Raises:
      ConfigError: an id comes twice in the data.
    """
    row = self._row_of.get(record_id)
    if row is None:
      self._missing.append(record_id)
      return False
    if self._is_asked_N[row]:
      raise ConfigError(
        f'the data has the id {record_id!r} more than once; a keep-list needs different ones: name '
        'another data.id_field, or none (then file and row are the id)'
      )
    self._is_asked_N[row] = True
    if content is not None and self._digest_N is not None:
      if int(self._digest_N[row]) != digest(record_id, content):
        self._changed.append(record_id)
    return bool(self._keep_N[row])

  def digests(self, record_ids: Iterable[str]) -> np.ndarray | None:
    """What the list has of records that it knows, uint64; None if it has no digests."""
    if self._digest_N is None:
      return None
    return self._digest_N[[self._row_of[name] for name in record_ids]]

  def elsewhere(self, record_ids: Iterable[str]) -> None:
    """Tells ids of the data that are not of the split."""
    for name in record_ids:
      row = self._row_of.get(name)
      if row is not None:
        self._is_elsewhere_N[row] = True

  @property
  def has_more(self) -> bool:
    """Whether the list has ids that were neither asked for nor told."""
    return not np.all(self._is_asked_N | self._is_elsewhere_N)

  def settled(self, of: str) -> str:
    """The fingerprint of the kept records: equal if and only if the list keeps the same ones.

    Args:
      of: the data, for the errors.

    Raises:
      ConfigError: the list belongs to other data, or keeps nothing of it.
    """
    where = f'data.keep_list {self.path!r}'
    unknown_N = ~(self._is_asked_N | self._is_elsewhere_N)
    parts = []
    if self._missing:
      parts.append(
        f'{len(self._missing):,} of the {int(self._is_asked_N.sum()) + len(self._missing):,} ids '
        f'of these data are not in the list (the first: {self._missing[0]!r})'
      )
    if unknown_N.any():
      parts.append(
        f'{int(unknown_N.sum()):,} of the {len(self._ids):,} ids of the list are not in the data '
        f'(the first: {self._ids[int(np.argmax(unknown_N))]!r})'
      )
    if parts:
      raise ConfigError(
        f'{where} belongs to other data than {of}: {", and ".join(parts)}. {_WHERE_LISTS_COME_FROM}'
      )
    if self._changed:
      raise ConfigError(
        f'{where}: {len(self._changed):,} records of {of} are others than when the list was made '
        f'(the first: {self._changed[0]!r}); {_MADE_ANEW}'
      )
    chosen_N = self._keep_N & self._is_asked_N
    if not chosen_N.any():
      raise ConfigError(
        f'{where} keeps none of the {int(self._is_asked_N.sum()):,} records of {of}'
      )
    return self._fingerprint(chosen_N)

  def _fingerprint(self, chosen_N: np.ndarray) -> str:
    rows = sorted(np.flatnonzero(chosen_N).tolist(), key=self._ids.__getitem__)
    of = hashlib.blake2b(digest_size=8)
    for row in rows:
      of.update(self._ids[row].encode('utf-8', 'surrogatepass') + b'\0')
    if self._digest_N is not None:
      of.update(self._digest_N[rows].astype('<u8').tobytes())
    return f'{len(rows)}-{of.hexdigest()}'


class Compared(Subset):
  """Records that a keep-list chose, each compared with the list's digest whenever it is read.

  Hashing costs less than decoding a picture, and all records need not be read before the first
  step. A folder of other pictures of the same names is refused by the first of them.

  Args:
    source: has `with_contents`.
    rows: of its kept records.
    kept_fingerprint: see `Verdicts.settled`.
    digest_R: of the list, one for each of the rows.
    path: of the list, for the error.
  """

  def __init__(self, source: Source, rows, kept_fingerprint: str, digest_R: np.ndarray, path: str):
    super().__init__(source, rows, kept_fingerprint)
    self._digest_R, self._path = digest_R, path

  def __getitem__(self, i: int) -> Record:
    """Raises ConfigError for a record that is another than when the list was made."""
    record, contents = self.with_contents(i)
    name = self.id(i)
    if int(self._digest_R[i]) not in [digest(name, content) for content in contents]:
      raise ConfigError(
        f'data.keep_list {self._path!r}: the record {name!r} is another than when the list was '
        f'made; {_MADE_ANEW}'
      )
    return record


def kept_source(
  source: Source, path: str | os.PathLike, of: str, check_digests: bool = True
) -> Source:
  """The records of a source that a keep-list keeps, in the source's order.

  Args:
    source: whose records have ids (`source.id(i)`).
    path: the list.
    of: the data, for the errors.
    check_digests: compare records with the list's digests as they are read (see `Compared`), where
      it has some and the source has `with_contents`; a log line says so where it has not (arrays
      in memory, which have no encoded bytes).

  Raises:
    ConfigError: the records have no ids, or the list cannot be read, belongs to other data or
      keeps nothing.
  """
  whole = innermost(source)
  if not hasattr(whole, 'id'):
    raise ConfigError(
      f'data.keep_list is {str(path)!r}, but the records of {of} have no ids. Codes follow the '
      'list of their pictures: `jaxmm tokenize --config.data.keep_list=...` writes those of the '
      'kept ones; a source of your own needs a method id(i) -> str'
    )
  verdicts = Verdicts(path)
  rows = [i for i in range(len(source)) if verdicts.keeps(source.id(i))]
  if verdicts.has_more:
    _tell_the_rest(verdicts, source, whole)
  fingerprint = verdicts.settled(of)
  digest_R = verdicts.digests(source.id(i) for i in rows) if check_digests else None
  if digest_R is None:
    return Subset(source, rows, fingerprint)
  if not hasattr(whole, 'with_contents'):
    logging.getLogger(__name__).warning(
      'data.keep_list %r is compared with %s by ids alone; its digests are not of these records',
      str(path), of,
    )  # fmt: skip
    return Subset(source, rows, fingerprint)
  return Compared(source, rows, fingerprint, digest_R, str(path))


def _tell_the_rest(verdicts: Verdicts, source: Source, whole: Source) -> None:
  if whole is not source:
    verdicts.elsewhere(whole.id(i) for i in range(len(whole)))
  other_ids: Callable[[], Iterable[str]] = getattr(whole, 'other_ids', tuple)
  verdicts.elsewhere(other_ids())
