"""Examples as vectors: what the methods in embedding space take, and the keep-list they return.

Axes: N examples, U usable ones, D width.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
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


class Selected:
  """Rows of an array by number, float32 [U, D], read when they are asked for.

  `rows[a:b]` and `rows[index array]` are arrays.

  Args:
    source: [N, D], an array or a memory map.
    row_U: numbers of its rows.
  """

  ndim, dtype = 2, np.dtype(np.float32)

  def __init__(self, source: np.ndarray | Selected, row_U: np.ndarray):
    if isinstance(source, Selected):
      source, row_U = source._source, source._row_U[row_U]
    self._source, self._row_U = source, row_U
    self.shape = (len(row_U), source.shape[1])

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, key) -> np.ndarray:
    return np.asarray(self._source[self._row_U[key]])

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    if copy is False:
      raise ValueError('rows are gathered when they are read, which makes a copy')
    return self[:] if dtype is None else self[:].astype(dtype)


@dataclasses.dataclass(frozen=True)
class Vectors:
  """One vector an example, ascending by id.

  Attributes:
    ids: strings, all different.
    digest_N: uint64, of what the examples hold (`data.kept.digest`).
    x_ND: float32, of length one where usable; an array, a memory map or rows of one.
    reason_N: strings; empty where the vector is usable.
    error_N: strings, what is wrong with an example that cannot be read; None for no such.
  """

  ids: pa.Array
  digest_N: np.ndarray
  x_ND: np.ndarray | Selected
  reason_N: np.ndarray
  error_N: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.ids)

  @functools.cached_property
  def usable_U(self) -> np.ndarray:
    """Numbers of the usable ones, ascending."""
    return np.flatnonzero(self.reason_N == '')

  @property
  def x_UD(self) -> np.ndarray | Selected:
    """Their vectors; no copy."""
    if len(self.usable_U) == len(self):
      return self.x_ND
    return Selected(self.x_ND, self.usable_U)

  def at(self, rows_U: np.ndarray) -> Vectors:
    """A part of the examples, by number, ascending."""
    ids = self.ids.take(pa.array(rows_U))
    x_UD = Selected(self.x_ND, rows_U)
    error_U = None if self.error_N is None else self.error_N[rows_U]
    return Vectors(ids, self.digest_N[rows_U], x_UD, self.reason_N[rows_U], error_U)

  def only_kept(self, keep: KeepList) -> Vectors:
    """The examples that a list keeps; what a second method sees after a first.

    Raises:
      ConfigError: the list is of other examples.
    """
    own = keep_list.fingerprint(self.digest_N)
    if keep.fingerprint != own:
      mend = 'embed the corpus that it was made of'
      if keep.kept_fingerprint == own:
        mend = (
          'they are of what it keeps: make the list of them alone (without --after), then '
          '`jaxmm curate combine FIRST then SECOND`'
        )
      elif keep.table['id'].equals(pa.chunked_array([self.ids])):
        mend = keep_list.OTHER_FIELDS
      raise ConfigError(
        f'the keep-list of {keep.method} is of {len(keep):,} other examples than the '
        f'{len(self):,} vectors; {mend}'
      )
    return self.at(np.flatnonzero(keep.table['keep'].to_numpy()))


def of_embeddings(of: Embeddings, file: str | os.PathLike | None = None) -> Vectors:
  """Embeddings in the order of their ids.

  Args:
    of: in any order.
    file: a `.npy` that the rows are written to, in their order, and read from; it is made again
      each time, as nothing says whose rows an old one holds. None holds them in memory. Of
      several processes each needs a file of its own.

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
  if file is None:
    x_ND = np.empty(of.x_ND.shape, np.float32)
  else:
    pathlib.Path(file).parent.mkdir(parents=True, exist_ok=True)
    x_ND = np.lib.format.open_memmap(file, 'w+', np.float32, of.x_ND.shape)
  for low in range(0, len(order), _ROWS):
    x_ND[low : low + _ROWS] = of.x_ND[order[low : low + _ROWS]]
  if file is not None:
    x_ND.flush()
    x_ND = np.load(file, mmap_mode='r', allow_pickle=False)
  ids = of.ids.take(pa.array(order))
  error_N = None if of.error_N is None else of.error_N[order]
  return Vectors(ids, of.digest_N[order], x_ND, of.reason_N[order], error_N)


def check_share(keep: float, of: Vectors) -> None:
  """ConfigError for a share of the usable examples that is none of them; before any work."""
  number = len(of.usable_U)
  if not round(keep * number):
    raise ConfigError(
      f'keep is {keep:g}, which of {number:,} examples with a vector is less than one example'
    )


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
      which become ids. The list has the column `error`, too.
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
  error_N = np.full(N, '') if vectors.error_N is None else vectors.error_N
  columns['error'] = pa.array(error_N, pa.string(), mask=error_N == '')
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
