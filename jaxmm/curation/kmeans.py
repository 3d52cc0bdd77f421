"""Spherical (Dhillon & Modha 2001) and Euclidean k-means on a mesh.

Every row goes to its nearest centroid, every centroid to the mean of its rows, scaled to length one
if spherical. The same clusters come out on any number of devices and processes, bit for bit where
their arithmetic is the same: rows are dealt into `stripes` whatever the mesh is, a device works
through whole stripes in blocks of one shape, and the stripes' sums are added in their order
(`lloyd`, where the iterations are).

Axes: N rows, K clusters, D width, B rows of a block.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable

import jax
import numpy as np

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.curation.lloyd import Dealt

INITS = ('sampled', 'k-means++')
# Rows of what is larger that are in memory while they are assigned.
ROWS_AT_ONCE = 1 << 15
Echo = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
  """How rows are clustered.

  Attributes:
    clusters: K; 0 takes the square root of the number of rows that are fitted.
    iterations: at most; it ends when one moves no centroid.
    tolerance: it also ends when an iteration lowers the mean distance (squared if Euclidean) by
      less than this share of it; 0 never does.
    spherical: nearest by cosine, centroids of length one; else by Euclidean distance.
    init: 'sampled' takes random rows, 'k-means++' (arXiv:cs/0607105's D^2 sampling) spreads them.
    fit_rows: fit on so many random rows and then assign all; 0 fits on all.
    seed: of the sample and the start.
    stripes: into how many parts rows are dealt; devices must divide it.
  """

  clusters: int = 0
  iterations: int = 20
  tolerance: float = 0.0
  spherical: bool = True
  init: str = 'sampled'
  fit_rows: int = 0
  seed: int = 0
  stripes: int = 16

  def __post_init__(self):
    for name, least in (('clusters', 0), ('iterations', 1), ('fit_rows', 0), ('stripes', 1)):
      if getattr(self, name) < least:
        raise ConfigError(f'{name} is {getattr(self, name)}, expected at least {least}')
    if not 0 <= self.tolerance < 1:
      raise ConfigError(f'tolerance is {self.tolerance}, expected a share in [0, 1)')
    if self.init not in INITS:
      raise ConfigError(f'init is {self.init!r}, expected one of {", ".join(INITS)}')

  def clusters_of(self, num_rows: int) -> int:
    """K for so many rows (architecture of D4: the square root of what is fitted)."""
    fitted = min(self.fit_rows or num_rows, num_rows)
    K = self.clusters or max(1, round(fitted**0.5))
    if K > fitted:
      of = f'of fit_rows {self.fit_rows}' if fitted < num_rows else 'with a vector that there are'
      raise ConfigError(f'clusters is {K}, expected at most the {fitted} rows {of}')
    return K


@dataclasses.dataclass(frozen=True)
class Clustering:
  """What was found.

  Attributes:
    centroid_KD: float32.
    cluster_N: int32, the nearest centroid of each row (the least of several).
    distance_N: float32, to it: 1 - cosine if spherical, else Euclidean.
    history: the mean distance (squared if Euclidean) to the nearest centroid before each update.
  """

  centroid_KD: np.ndarray
  cluster_N: np.ndarray
  distance_N: np.ndarray
  history: tuple[float, ...]

  @property
  def size_K(self) -> np.ndarray:
    """Rows of each cluster, int64."""
    return np.bincount(self.cluster_N, minlength=len(self.centroid_KD))


def fit(
  x_ND: np.ndarray,
  config: KMeansConfig,
  mesh: jax.sharding.Mesh | None = None,
  *,
  directory: str | os.PathLike | None = None,
  echo: Echo | None = None,
) -> Clustering:
  """Clusters rows.

  Args:
    x_ND: float32, memory-mapped if large; of length one if spherical. Every process passes all.
    config: how.
    mesh: default: all devices. Rows are split over `data` and `fsdp`.
    directory: where the centroids of each iteration are kept, so that a fit that was killed goes on
      with the same result; None keeps nothing.
    echo: takes a line an iteration.

  Raises:
    ConfigError: more clusters than rows, rows that are not finite or (spherical) not of length one,
      or devices that do not divide `stripes`.
  """
  mesh = sharding.make_mesh() if mesh is None else mesh
  _check_rows(x_ND, config)
  K = config.clusters_of(len(x_ND))
  rows = sample(len(x_ND), config.fit_rows, config.seed)
  fitted = x_ND if rows is None else np.asarray(x_ND[rows])
  dealt = Dealt(fitted, config.stripes, config.spherical, mesh)
  trail = _saved(directory)
  centroid_KD = trail[-1][0] if trail else _start(fitted, K, config)
  while len(trail) < config.iterations and not _has_settled(trail, config.tolerance):
    sum_KD, count_K, _, near = dealt.step(centroid_KD)
    mean = dealt.mean(near)
    if echo:
      echo(f'k-means: iteration {len(trail) + 1} of {config.iterations}, mean distance {mean:.5f}')
    centroid_KD = _updated(centroid_KD, sum_KD, count_K, config)
    centroid_KD = _reseeded(centroid_KD, count_K, near, fitted, dealt)
    _save(directory, len(trail), centroid_KD, mean)
    trail.append((centroid_KD, mean))
  if rows is None:
    _, _, cluster, near = dealt.step(centroid_KD)
    cluster_N, distance_N = cluster, dealt.distance(near)
  else:
    cluster_N, distance_N = assign(x_ND, centroid_KD, config, mesh)
  return Clustering(centroid_KD, cluster_N, distance_N, tuple(mean for _, mean in trail))


def assign(
  x_ND: np.ndarray,
  centroid_KD: np.ndarray,
  config: KMeansConfig,
  mesh: jax.sharding.Mesh | None = None,
  *,
  rows_at_once: int = ROWS_AT_ONCE,
) -> tuple[np.ndarray, np.ndarray]:
  """(cluster_N, distance_N) of rows that need not fit in memory, `rows_at_once` at a time."""
  mesh = sharding.make_mesh() if mesh is None else mesh
  parts = []
  for low in range(0, len(x_ND), rows_at_once):
    rows = x_ND[low : low + rows_at_once]
    dealt = Dealt(rows, config.stripes, config.spherical, mesh)
    _, _, cluster, near = dealt.step(centroid_KD)
    parts.append((cluster, dealt.distance(near)))
  return tuple(np.concatenate(column) for column in zip(*parts))


def sample(num_rows: int, size: int, seed: int) -> np.ndarray | None:
  """`size` of the rows, ascending; None for all of them."""
  if not size or size >= num_rows:
    return None
  return np.sort(_random_order(num_rows, seed)[:size])


def _random_order(number: int, seed: int) -> np.ndarray:
  # Philox's raw numbers are specified; numpy's distributions may change between versions.
  raw = np.random.Philox(seed).random_raw(number)
  return np.argsort(raw, kind='stable')


def _check_rows(x_ND: np.ndarray, config: KMeansConfig) -> None:
  if x_ND.ndim != 2 or x_ND.dtype != np.float32 or not len(x_ND):
    raise ConfigError(f'rows are {x_ND.dtype}{x_ND.shape}, expected float32 [N, D] with N > 0')
  for low in range(0, len(x_ND), 1 << 16):
    block = np.asarray(x_ND[low : low + (1 << 16)])
    square_B = np.einsum('ND,ND->N', block, block)
    wrong = ~np.isfinite(square_B)
    if config.spherical:
      wrong |= np.abs(square_B - 1) > 1e-3
    if wrong.any():
      at = int(np.argmax(wrong))
      raise ConfigError(
        f'row {low + at} has length {square_B[at] ** 0.5:.4g}, expected '
        f'{"1 (normalise rows first)" if config.spherical else "a finite one"}'
      )


def _start(x_ND: np.ndarray, K: int, config: KMeansConfig) -> np.ndarray:
  order = _random_order(len(x_ND), config.seed + 1)
  if config.init == 'sampled':
    return np.asarray(x_ND[np.sort(order[:K])], np.float32)
  # Choosing K of 20 K random rows costs K / N-th of choosing them of all, for nearly the spread.
  pool = np.asarray(x_ND[np.sort(order[: 20 * K])], np.float32)
  uniform_K = np.random.Philox(config.seed + 2).random_raw(K) / 2.0**64
  return pool[_spread(pool, uniform_K)]


def _spread(x_ND: np.ndarray, uniform_K: np.ndarray) -> np.ndarray:
  """k-means++: each next row by the squared distance to those before it; int64 [K]."""
  chosen = [int(uniform_K[0] * len(x_ND))]
  nearest_N = np.full(len(x_ND), np.inf)
  for uniform in uniform_K[1:]:
    away = x_ND - x_ND[chosen[-1]]
    nearest_N = np.minimum(nearest_N, np.einsum('ND,ND->N', away, away, dtype=np.float64))
    upto = np.cumsum(nearest_N)
    row = int(np.searchsorted(upto, uniform * upto[-1], side='right'))
    chosen.append(min(row, len(x_ND) - 1))
  return np.array(chosen)


def _updated(centroid_KD, sum_KD, count_K, config: KMeansConfig) -> np.ndarray:
  """Means of the rows, of length one if spherical; an empty cluster stays where it is."""
  mean_KD = sum_KD.astype(np.float64) / np.maximum(count_K, 1)[:, None]
  if config.spherical:
    length_K = np.linalg.norm(mean_KD, axis=1)
    # Rows that cancel out have no mean direction.
    count_K = np.where(length_K > 1e-12, count_K, 0)
    mean_KD /= np.maximum(length_K, 1e-12)[:, None]
  return np.where(count_K[:, None] > 0, mean_KD, centroid_KD).astype(np.float32)


def _reseeded(centroid_KD, count_K, near_N, x_ND, dealt: Dealt) -> np.ndarray:
  """Empty clusters start again at the rows that are farthest from their centroids."""
  empty = np.flatnonzero(count_K == 0)
  if len(empty):
    centroid_KD = centroid_KD.copy()
    centroid_KD[empty] = x_ND[dealt.worst(near_N, len(empty))]
  return centroid_KD


def _has_settled(trail: list[tuple[np.ndarray, float]], tolerance: float) -> bool:
  """Whether the last iteration moved no centroid, or gained less than the tolerance."""
  if len(trail) < 2:
    return False
  (before_KD, mean_before), (centroid_KD, mean) = trail[-2:]
  return mean_before - mean < tolerance * mean_before or np.array_equal(centroid_KD, before_KD)


def _saved(directory) -> list[tuple[np.ndarray, float]]:
  """(centroids, mean distance before) of every iteration that an earlier run finished."""
  trail: list[tuple[np.ndarray, float]] = []
  while directory and (path := _file(directory, len(trail))).exists():
    with np.load(path, allow_pickle=False) as saved:
      trail.append((saved['centroid_KD'], float(saved['mean'])))
  return trail


def _save(directory, step: int, centroid_KD: np.ndarray, mean: float) -> None:
  if directory is None or jax.process_index():
    return
  path = _file(directory, step)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_suffix('.partial')
  with open(partial, 'wb') as f:
    np.savez(f, centroid_KD=centroid_KD, mean=mean)
  os.replace(partial, path)


def _file(directory, step: int) -> pathlib.Path:
  return pathlib.Path(directory) / f'centroids-{step:04}.npz'
