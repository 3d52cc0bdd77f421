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
from jaxmm.curation.embeddings import Embeddings
from jaxmm.curation.keep_list import KeepList

_ROWS = 1 << 16


@dataclasses.dataclass(frozen=True)
class Vectors:
  """One vector an example, ascending by id.

  Attributes:
    ids: strings, all different.
    digest_N: uint64, of what the examples hold (`data.kept.digest`).
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
    own = keep_list.fingerprint(self.digest_N)
    if keep.fingerprint != own:
      mend = (
        'they are of what it keeps: make the list of them alone (without --after), then '
        '`jaxmm curate combine FIRST then SECOND`'
        if keep.kept_fingerprint == own
        else 'embed the corpus that it was made of'
      )
      raise ConfigError(
        f'the keep-list of {keep.method} is of {len(keep):,} other examples than the '
        f'{len(self):,} vectors; {mend}'
      )
    return self.at(np.flatnonzero(keep.table['keep'].to_numpy()))


def of_embeddings(of: Embeddings) -> Vectors:
  """Embeddings in the order of their ids, the rows in memory.

  Raises:
    ConfigError: no row is usable.
  """
  if not of.usable_N.any():
    reasons = ', '.join(f'{n:,} {name}' for name, n in of.reasons().items())
    raise ConfigError(
      f'none of {len(of):,} examples has a vector ({reasons or "there are none"}); see '
      '--text-field and --image-field, and the column error of examples.parquet beside the vectors'
    )
  order = pc.sort_indices(of.ids).to_numpy()
  x_ND = np.empty(of.x_ND.shape, np.float32)
  for low in range(0, len(order), _ROWS):
    x_ND[low : low + _ROWS] = of.x_ND[order[low : low + _ROWS]]
  ids = of.ids.take(pa.array(order))
  return Vectors(ids, of.digest_N[order], x_ND, of.reason_N[order])


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
