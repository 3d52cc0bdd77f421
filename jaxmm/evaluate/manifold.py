"""Precision and recall of a set of samples: how many are like real images, how many are reached.

Kynkaanniemi et al. 2019 (arXiv:1904.06991), section 3, with their k = 3 nearest neighbours, as in
ADM's program: the manifold of a set is a ball around each of its rows that reaches to the k-th
nearest other row. Precision is the share of samples in the manifold of the real images, recall the
share of real images in that of the samples. Squared distances are computed on the host in float64
(ADM: float16, and float32 where that overflows), a tile at a time, so a comparison is not decided
by rounding.

Axes: N M rows of a set, D feature width.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from jaxmm.config import ConfigError

NEIGHBOURS = 3
_TILE = 1000


def precision_recall(
  real_ND: np.ndarray, sample_MD: np.ndarray, neighbours: int = NEIGHBOURS, tile: int = _TILE
) -> dict[str, float]:
  """`{'precision': share, 'recall': share}` of features of real images and of samples.

  Args:
    real_ND, sample_MD: features of one network.
    neighbours: k; the radius of a row is the distance to its k-th nearest other row.
    tile: rows compared with all others at a time; it changes memory, not results.

  Raises:
    ConfigError: other widths, or no more rows than neighbours.
  """
  if real_ND.shape[1] != sample_MD.shape[1]:
    raise ConfigError(
      f'features of width {real_ND.shape[1]} and {sample_MD.shape[1]}: not of one network'
    )
  if min(len(real_ND), len(sample_MD)) <= neighbours:
    raise ConfigError(
      f'precision and recall of {len(sample_MD)} samples and {len(real_ND)} real images: more '
      f'than {neighbours} of each are needed'
    )
  real, samples = (np.asarray(x, np.float64) for x in (real_ND, sample_MD))
  # Moved to their common middle, where squared lengths are smallest and least is cancelled.
  middle = real.mean(0)
  real, samples = real - middle, samples - middle
  real_radius_N = _radii(real, neighbours, tile)
  sample_radius_M = _radii(samples, neighbours, tile)
  is_reached_N, num_inside = np.zeros(len(real), bool), 0
  for start, square_TN in _squares(samples, real, tile):
    num_inside += int((square_TN <= real_radius_N).any(1).sum())
    radius_T = sample_radius_M[start : start + len(square_TN)]
    is_reached_N |= (square_TN <= radius_T[:, None]).any(0)
  return {'precision': num_inside / len(samples), 'recall': float(is_reached_N.mean())}


def _radii(x_ND: np.ndarray, neighbours: int, tile: int) -> np.ndarray:
  """Squared distance of each row to its k-th nearest other row."""
  out = []
  for start, square_TN in _squares(x_ND, x_ND, tile):
    rows = np.arange(len(square_TN))
    square_TN[rows, start + rows] = -1.0  # a row's own distance comes first, whatever rounding did
    out.append(np.partition(square_TN, neighbours, axis=1)[:, neighbours])
  return np.concatenate(out)


def _squares(a_ND: np.ndarray, b_MD: np.ndarray, tile: int) -> Iterator[tuple[int, np.ndarray]]:
  """(first row, squared distances of a tile of rows of `a` to all of `b`)."""
  length_M = np.einsum('MD,MD->M', b_MD, b_MD)
  for start in range(0, len(a_ND), tile):
    rows = a_ND[start : start + tile]
    length_T = np.einsum('ND,ND->N', rows, rows)
    yield start, np.maximum(length_T[:, None] + length_M - 2.0 * rows @ b_MD.T, 0.0)
