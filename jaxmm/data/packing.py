"""Documents of token ids to rows of fixed length, by a plan computed once over the whole data set.

The plan is global and random-access: row r is the same whoever reads it, so that rows are shuffled,
repeated and dealt to processes like any other record.

Axes: D documents, P pieces (parts of documents that stand in one row), R rows, L tokens of a row,
T tokens of all documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data.sources import Record

METHODS = ('concat', 'first_fit')


@dataclasses.dataclass(frozen=True)
class Documents:
  """Token ids of documents, one after the other.

  Attributes:
    ids_T: int32 (may be memory-mapped).
    offsets_D: int64 [D + 1]; document d is `ids_T[offsets_D[d]:offsets_D[d + 1]]`.
    names: of the documents, or () for their numbers.
  """

  ids_T: np.ndarray
  offsets_D: np.ndarray
  names: Sequence[str] = ()

  @classmethod
  def of(cls, documents: Iterable[Sequence[int]], names: Sequence[str] = ()) -> Documents:
    """From documents one by one."""
    parts = [np.asarray(d, np.int32) for d in documents]
    offsets_D = np.concatenate([[0], np.cumsum([len(p) for p in parts], dtype=np.int64)])
    ids_T = np.concatenate(parts) if parts else np.zeros(0, np.int32)
    return cls(ids_T, offsets_D.astype(np.int64), names)

  def __len__(self) -> int:
    return len(self.offsets_D) - 1

  def __getitem__(self, d: int) -> np.ndarray:
    return self.ids_T[self.offsets_D[d] : self.offsets_D[d + 1]]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which pieces stand in which row, in order.

  Attributes:
    starts_P: int64, where in `Documents.ids_T` a piece begins.
    lengths_P: int64, its tokens.
    rows_R: int64 [R + 1]; row r holds the pieces `rows_R[r]` to `rows_R[r + 1]`.
  """

  starts_P: np.ndarray
  lengths_P: np.ndarray
  rows_R: np.ndarray


def packing_plan(offsets_D: np.ndarray, length: int, method: str) -> Plan:
  """The plan for documents at `offsets_D`.

  Args:
    offsets_D: int64 [D + 1].
    length: tokens of a row.
    method: 'concat' strings all documents together and cuts every `length` tokens (only the last
      row is padded, documents are cut anywhere); 'first_fit' cuts only documents longer than a row
      and puts each piece, in order, into the first row that has room (documents stay whole, rows
      are padded).

  Raises:
    ConfigError: a length below 2 (nothing to predict) or an unknown method.
  """
  if length < 2:
    raise ConfigError(f'a packed row needs at least 2 tokens, got {length}')
  if method not in METHODS:
    raise ConfigError(f'packing is {method!r}, expected one of {", ".join(METHODS)}')
  return _concatenated(offsets_D, length) if method == 'concat' else _first_fit(offsets_D, length)


def _concatenated(offsets_D: np.ndarray, length: int) -> Plan:
  total = int(offsets_D[-1])
  cuts = np.union1d(np.asarray(offsets_D, np.int64), np.arange(0, total, length, dtype=np.int64))
  starts_P, lengths_P = cuts[:-1], np.diff(cuts)
  num_rows = -(-total // length)
  rows_R = np.searchsorted(starts_P, np.arange(num_rows + 1, dtype=np.int64) * length)
  return Plan(starts_P, lengths_P, rows_R.astype(np.int64))


def _first_fit(offsets_D: np.ndarray, length: int) -> Plan:
  starts, lengths = [], []
  for start, end in zip(offsets_D[:-1].tolist(), offsets_D[1:].tolist(), strict=True):
    for at in range(start, end, length):
      starts.append(at)
      lengths.append(min(length, end - at))
  rows = _first_rows(lengths, length)
  order = np.argsort(rows, kind='stable')  # pieces of a row keep the order of the documents
  counts = np.bincount(rows) if len(rows) else np.zeros(0, np.int64)
  return Plan(
    np.array(starts, np.int64)[order],
    np.array(lengths, np.int64)[order],
    np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
  )


def _first_rows(lengths: list[int], room: int) -> np.ndarray:
  """For each piece the lowest row with room for it.

  `free` is a binary tree over rows that holds the most room below each node, so a piece finds its
  row in log(rows) steps; all rows would be quadratic for a million documents.
  """
  leaves = 1
  while leaves < max(len(lengths), 1):
    leaves *= 2
  free = [room] * (2 * leaves)
  rows = np.zeros(len(lengths), np.int64)
  for piece, need in enumerate(lengths):
    node = 1
    while node < leaves:
      node *= 2
      if free[node] < need:
        node += 1
    rows[piece] = node - leaves
    free[node] -= need
    while node > 1:
      node //= 2
      free[node] = max(free[2 * node], free[2 * node + 1])
  return rows


class PackedSource:
  """Rows of packed documents as a source.

  A record is `{'ids_L': int32, 'weight_L': float32, 'segment_L': int32}`: segments count from 1
  within the row, 0 is padding (id `pad_id`). The weight is that of the token as a target: 0 for
  padding and for the first token of each segment, which nothing in its segment predicts (begin
  documents with a token of their own if their first token should count). `kept_fingerprint` is that
  of the keep-list which chose the documents, '' without one.
  """

  num_classes = None

  def __init__(
    self,
    documents: Documents,
    length: int,
    method: str = 'concat',
    pad_id: int = 0,
    kept_fingerprint: str = '',
  ):
    self.documents, self.length, self._pad_id = documents, length, pad_id
    self.kept_fingerprint = kept_fingerprint
    self.plan = packing_plan(documents.offsets_D, length, method)

  def __len__(self) -> int:
    return len(self.plan.rows_R) - 1

  def __getitem__(self, r: int) -> Record:
    if not 0 <= r < len(self):
      raise IndexError(f'there are {len(self)} packed rows, asked for {r}')
    ids_L = np.full(self.length, self._pad_id, np.int32)
    weight_L = np.zeros(self.length, np.float32)
    segment_L = np.zeros(self.length, np.int32)
    at = 0
    for segment, piece in enumerate(range(self.plan.rows_R[r], self.plan.rows_R[r + 1]), 1):
      start, num = int(self.plan.starts_P[piece]), int(self.plan.lengths_P[piece])
      ids_L[at : at + num] = self.documents.ids_T[start : start + num]
      weight_L[at + 1 : at + num] = 1
      segment_L[at : at + num] = segment
      at += num
    return {'ids_L': ids_L, 'weight_L': weight_L, 'segment_L': segment_L}

  def name(self, r: int) -> str:
    first = self._document_name(int(self.plan.starts_P[self.plan.rows_R[r]]))
    last = self._document_name(int(self.plan.starts_P[self.plan.rows_R[r + 1] - 1]))
    return f'packed row {r} ({first if first == last else f"{first} to {last}"})'

  def _document_name(self, at: int) -> str:
    d = int(np.searchsorted(self.documents.offsets_D, at, side='right')) - 1
    return self.documents.names[d] if len(self.documents.names) else f'document {d}'
