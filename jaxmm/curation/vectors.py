"""Examples as vectors: what the methods in embedding space take, and the keep-list they return.

Axes: N examples, U usable ones, D width.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list
from jaxmm.curation.embeddings import BAD, Embeddings
from jaxmm.curation.keep_list import KeepList

_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Vectors:
  """One vector an example, ascending by id.

  Attributes:
    ids: strings, all different.
    digest_N: uint64, of what the examples hold (`keep_list.digest`).
    x_ND: float32, of length one where usable.
    reason_N: strings; empty where the vector is usable.
  """

  ids: pa.Array
  digest_N: np.ndarray
  x_ND: np.ndarray
  reason_N: np.ndarray

  def __len__(self) -> int:
    return len(self.ids)

  @functools.cached_property
  def usable_U(self) -> np.ndarray:
    """Numbers of the usable ones, ascending."""
    return np.flatnonzero(self.reason_N == '')

  @property
  def x_UD(self) -> np.ndarray:
    """Their vectors; no copy where all are usable."""
    return self.x_ND if len(self.usable_U) == len(self) else self.x_ND[self.usable_U]

  def at(self, rows_U: np.ndarray) -> Vectors:
    """A part of the examples, by number, ascending."""
    ids = self.ids.take(pa.array(rows_U))
    return Vectors(ids, self.digest_N[rows_U], self.x_ND[rows_U], self.reason_N[rows_U])

  def only_kept(self, keep: KeepList) -> Vectors:
    """The examples that a list keeps; what a second method sees after a first.

    Raises:
      ConfigError: the list is of other examples.
    """
    if keep.fingerprint != keep_list.fingerprint(self.digest_N):
      raise ConfigError(
        f'the keep-list of {keep.method} is of {len(keep)} other examples (fingerprint '
        f'{keep.fingerprint}) than the {len(self)} vectors '
        f'({keep_list.fingerprint(self.digest_N)}); embed the corpus that it was made of'
      )
    return self.at(np.flatnonzero(keep.table['keep'].to_numpy()))


def of_rows(
  ids: Any, x_ND: np.ndarray, *, digest_N: np.ndarray | None = None, reason_N: Any = None
) -> Vectors:
  """Vectors in any order of the examples, put in order and scaled to length one.

  Args:
    ids: N strings, all different.
    x_ND: numbers; a row that is not finite or zero is marked `bad_embedding`.
    digest_N: uint64; default: of id and row.
    reason_N: strings, why an example is not usable already.

  Raises:
    ConfigError: numbers of ids and rows differ, an id comes twice, or there is no usable row.
  """
  ids = pa.array(ids, pa.string())
  if x_ND.ndim != 2 or len(ids) != len(x_ND):
    raise ConfigError(f'{len(ids)} ids and vectors of shape {x_ND.shape}, expected [{len(ids)}, D]')
  reason_N = np.full(len(ids), '', object) if reason_N is None else np.array(reason_N, object)
  order = pc.sort_indices(ids).to_numpy()
  ids = ids.take(pa.array(order))
  again = pc.equal(ids[1:], ids[:-1])
  if pc.any(again).as_py():
    raise ConfigError(f'id {ids[1:].filter(again)[0].as_py()!r} comes more than once')
  x_ND, length_N = _normalised(x_ND, order)
  reason_N = reason_N[order]
  is_bad = ~np.isfinite(length_N) | (length_N == 0)
  x_ND[is_bad] = 0
  reason_N[is_bad & (reason_N == '')] = BAD
  if digest_N is None:
    rows = zip(ids.to_pylist(), x_ND)
    digest_N = np.array([keep_list.digest(i, row.tobytes()) for i, row in rows], np.uint64)
  else:
    digest_N = np.asarray(digest_N, np.uint64)[order]
  if not (reason_N == '').any():
    raise ConfigError(f'none of {len(ids)} vectors is usable; the first: {reason_N[0]!r}')
  return Vectors(ids, digest_N, x_ND, reason_N)


def of_embeddings(of: Embeddings) -> Vectors:
  """What `jaxmm curate embed` wrote, in the order of the ids, its rows in memory."""
  order = pc.sort_indices(of.ids).to_numpy()
  x_ND = np.empty(of.x_ND.shape, np.float32)
  for low in range(0, len(order), _ROWS):
    x_ND[low : low + _ROWS] = of.x_ND[order[low : low + _ROWS]]
  ids = of.ids.take(pa.array(order))
  return Vectors(ids, of.digest_N[order], x_ND, of.reason_N[order])


def _normalised(x_ND: np.ndarray, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  out = np.empty(x_ND.shape, np.float32)
  length_N = np.empty(len(x_ND))
  for low in range(0, len(x_ND), _ROWS):
    rows = np.asarray(x_ND[order[low : low + _ROWS]], np.float64)
    length = np.sqrt(np.einsum('ND,ND->N', rows, rows))
    with np.errstate(divide='ignore', invalid='ignore'):
      out[low : low + _ROWS] = rows / length[:, None]
    length_N[low : low + _ROWS] = length
  return out, length_N


def judged(
  vectors: Vectors,
  reason_U: np.ndarray,
  *,
  score_U: np.ndarray,
  columns_U: Mapping[str, np.ndarray],
  method: str,
  parameters: Mapping[str, Any],
) -> KeepList:
  """The keep-list from what was found about the usable examples; the others keep their reason.

  Args:
    vectors: all examples.
    reason_U: '' where kept.
    score_U: float, nan for none.
    columns_U: of the method; -1 and nan are none. `nearest` holds numbers among the usable ones,
      which become ids.
    method, parameters: for the header.
  """
  U, N = vectors.usable_U, len(vectors)
  reason_N = vectors.reason_N.copy()
  reason_N[U] = reason_U
  score_N = np.full(N, np.nan)
  score_N[U] = score_U
  row_N = np.full(N, -1, np.int64)
  row_N[U] = np.arange(len(U))
  columns = {}
  for name, values in columns_U.items():
    is_none = np.isnan(values) if values.dtype.kind == 'f' else values < 0
    if name == 'nearest':
      values = vectors.ids.take(pa.array(np.where(is_none, 0, U[values]), mask=is_none))
    else:
      values = pa.array(values, mask=is_none)
    columns[name] = values.take(pa.array(row_N, mask=row_N < 0))
  return keep_list.make(
    vectors.ids,
    vectors.digest_N,
    reason_N == '',
    score_N=score_N,
    reason_N=reason_N,
    columns=columns,
    method=method,
    parameters=parameters,
  )
