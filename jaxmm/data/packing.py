"""Documents of token ids to rows of fixed length, by a plan computed once over the whole data set.

The plan is global and random-access: row r is the same whoever reads it, so that rows are shuffled,
repeated and dealt to processes like any other record.

Axes: D documents, P pieces (parts of documents that stand in one row), R rows, L tokens of a row,
T tokens of all documents.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data.sources import Record

METHODS = ('concat', 'first_fit')


class Packable(Protocol):
  """Documents one after the other, of which only lengths are known until a row is read.

  Attributes:
    offsets_D: int64 [D + 1]; document d has the tokens `offsets_D[d]` to `offsets_D[d + 1]` of all.
    names: of the documents, or () for their numbers.
  """

  offsets_D: np.ndarray
  names: Sequence[str]

  def slice(self, start: int, length: int) -> np.ndarray:
    """Ids of `length` tokens from `start` on, all of one document; UnreadableRecord if damaged."""
    ...


@dataclasses.dataclass(frozen=True)
class Documents:
  """Token ids of documents, one after the other, in memory (a `Packable`).

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

  def slice(self, start: int, length: int) -> np.ndarray:
    return self.ids_T[start : start + length]


@dataclasses.dataclass(frozen=True)
class Plan:
  """Which pieces stand in which row, in order.

  Attributes:
    starts_P: int64, where among the tokens of all documents a piece begins.
    lengths_P: int64, its tokens.
    places_P: int64, where in its row it begins.
    rows_R: int64 [R + 1]; row r holds the pieces `rows_R[r]` to `rows_R[r + 1]`.
  """

  starts_P: np.ndarray
  lengths_P: np.ndarray
  places_P: np.ndarray
  rows_R: np.ndarray


def packing_plan(offsets_D: np.ndarray, length: int, method: str, align: int = 1) -> Plan:
  """The plan for documents at `offsets_D`.

  Args:
    offsets_D: int64 [D + 1].
    length: tokens of a row.
    method: 'concat' strings all documents together and cuts every `length` tokens (only the last
      row is padded, documents are cut anywhere); 'first_fit' cuts only documents longer than a row
      and puts each piece, in order, into the first row that has room (documents stay whole, rows
      are padded).
    align: documents begin at its multiples in a row, padded up to them, so that patches of so many
      tokens never hold two documents. 1 packs without gaps.

  Raises:
    ConfigError: a length below 2 (nothing to predict) or no multiple of `align`, or an unknown
      method.
  """
  if length < 2:
    raise ConfigError(f'a packed row needs at least 2 tokens, got {length}')
  if method not in METHODS:
    raise ConfigError(f'packing is {method!r}, expected one of {", ".join(METHODS)}')
  check_align('packing', align, length)
  offsets_D = np.asarray(offsets_D, np.int64)
  if method == 'concat':
    return _concatenated(offsets_D, length, align)
  return _first_fit(offsets_D, length, align)


def check_align(where: str, align: int, length: int) -> None:
  """Raises ConfigError if rows of `length` tokens are no whole number of patches of `align`."""
  if align < 1 or length % align:
    raise ConfigError(
      f'{where}.align is {align}, but rows have {length} tokens ({where}.length); expected a '
      'divisor of that (1 for no alignment)'
    )


def _concatenated(offsets_D: np.ndarray, length: int, align: int) -> Plan:
  lengths_D = np.diff(offsets_D)
  # Where documents would begin if the padding between them were tokens, too.
  padded_D = np.concatenate([[0], np.cumsum(-(-lengths_D // align) * align)])
  total = int(padded_D[-1])
  cuts = np.union1d(padded_D, np.arange(0, total, length, dtype=np.int64))
  from_P, to_P = cuts[:-1], cuts[1:]
  document_P = np.searchsorted(padded_D, from_P, side='right') - 1
  inside_P = from_P - padded_D[document_P]
  lengths_P = np.minimum(to_P - from_P, lengths_D[document_P] - inside_P)
  num_rows = -(-total // length)
  rows_R = np.searchsorted(from_P, np.arange(num_rows + 1, dtype=np.int64) * length)
  starts_P = offsets_D[document_P] + inside_P
  return Plan(starts_P, lengths_P, from_P % length, rows_R.astype(np.int64))


def _first_fit(offsets_D: np.ndarray, length: int, align: int) -> Plan:
  starts, lengths = [], []
  for start, end in zip(offsets_D[:-1].tolist(), offsets_D[1:].tolist(), strict=True):
    for at in range(start, end, length):
      starts.append(at)
      lengths.append(min(length, end - at))
  taken = [-(-num // align) * align for num in lengths]
  rows = _first_rows(taken, length)
  order = np.argsort(rows, kind='stable')  # pieces of a row keep the order of the documents
  counts = np.bincount(rows) if len(rows) else np.zeros(0, np.int64)
  rows_R = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
  taken_P = np.array(taken, np.int64)[order]
  before_P = np.concatenate([[0], np.cumsum(taken_P)])[:-1]
  return Plan(
    np.array(starts, np.int64)[order],
    np.array(lengths, np.int64)[order],
    before_P - np.repeat(before_P[rows_R[:-1]], counts),
    rows_R,
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
  of the keep-list which chose the documents, '' without one; `align` is that of the plan.
  """

  num_classes = None

  def __init__(
    self,
    documents: Packable,
    length: int,
    method: str = 'concat',
    pad_id: int = 0,
    kept_fingerprint: str = '',
    align: int = 1,
  ):
    self.documents, self.length, self.align, self._pad_id = documents, length, align, pad_id
    self.kept_fingerprint = kept_fingerprint
    self.plan = packing_plan(documents.offsets_D, length, method, align)

  def __len__(self) -> int:
    return len(self.plan.rows_R) - 1

  def __getitem__(self, r: int) -> Record:
    if not 0 <= r < len(self):
      raise IndexError(f'there are {len(self)} packed rows, asked for {r}')
    ids_L = np.full(self.length, self._pad_id, np.int32)
    weight_L = np.zeros(self.length, np.float32)
    segment_L = np.zeros(self.length, np.int32)
    plan = self.plan
    for segment, piece in enumerate(range(plan.rows_R[r], plan.rows_R[r + 1]), 1):
      at, num = int(plan.places_P[piece]), int(plan.lengths_P[piece])
      ids_L[at : at + num] = self.documents.slice(int(plan.starts_P[piece]), num)
      weight_L[at + 1 : at + num] = 1
      segment_L[at : at + num] = segment
    return {'ids_L': ids_L, 'weight_L': weight_L, 'segment_L': segment_L}

  def name(self, r: int) -> str:
    first = self._document_name(int(self.plan.starts_P[self.plan.rows_R[r]]))
    last = self._document_name(int(self.plan.starts_P[self.plan.rows_R[r + 1] - 1]))
    return f'packed row {r} ({first if first == last else f"{first} to {last}"})'

  def _document_name(self, at: int) -> str:
    d = int(np.searchsorted(self.documents.offsets_D, at, side='right')) - 1
    return self.documents.names[d] if len(self.documents.names) else f'document {d}'
