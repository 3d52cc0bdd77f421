"""Spherical (Dhillon & Modha 2001) and Euclidean k-means on a mesh.

Every row goes to its nearest centroid, every centroid to the mean of its rows, scaled to length one
if spherical. The same clusters come out on any number of devices and processes, bit for bit where
their arithmetic is the same: rows are dealt into `stripes` whatever the mesh is, a device works
through whole stripes in blocks of one shape, and the stripes' sums are added in their order.

Products are taken in float32 at the highest precision (a TPU would take bfloat16 otherwise).

Axes: N rows, K clusters, D width, S stripes, M blocks of a stripe, B rows of a block.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm import sharding
from jaxmm.config import ConfigError

INITS = ('sampled', 'k-means++')
Echo = Callable[[str], None]
_ROWS = ('data', 'fsdp')
_BLOCK = 2048


@dataclasses.dataclass(frozen=True)
class KMeansConfig:
  """How rows are clustered.

  Attributes:
    clusters: K; 0 takes the square root of the number of rows that are fitted.
    iterations: at most; it ends when one moves no centroid.
    spherical: nearest by cosine, centroids of length one; else by Euclidean distance.
    init: 'sampled' takes random rows, 'k-means++' (arXiv:cs/0607105's D^2 sampling) spreads them.
    fit_rows: fit on so many random rows and then assign all; 0 fits on all.
    seed: of the sample and the start.
    stripes: into how many parts rows are dealt; devices must divide it.
  """

  clusters: int = 0
  iterations: int = 20
  spherical: bool = True
  init: str = 'sampled'
  fit_rows: int = 0
  seed: int = 0
  stripes: int = 16

  def __post_init__(self):
    for name, least in (('clusters', 0), ('iterations', 1), ('fit_rows', 0), ('stripes', 1)):
      if getattr(self, name) < least:
        raise ConfigError(f'{name} is {getattr(self, name)}, expected at least {least}')
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
  dealt = _Dealt(fitted, config, mesh)
  trail = _saved(directory)
  centroid_KD = trail[-1][0] if trail else _start(fitted, K, config)
  while len(trail) < config.iterations and not _has_settled(trail):
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
  rows_at_once: int = 1 << 20,
) -> tuple[np.ndarray, np.ndarray]:
  """(cluster_N, distance_N) of rows that need not fit in memory, `rows_at_once` at a time."""
  mesh = sharding.make_mesh() if mesh is None else mesh
  parts = []
  for low in range(0, len(x_ND), rows_at_once):
    dealt = _Dealt(x_ND[low : low + rows_at_once], config, mesh)
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


class _Dealt:
  """Rows dealt into stripes and blocks, on the mesh; row n is number n of all blocks in order."""

  def __init__(self, x_ND: np.ndarray, config: KMeansConfig, mesh):
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    if config.stripes % parts:
      raise ConfigError(
        f'stripes is {config.stripes}, expected a multiple of the {parts} devices that rows are '
        'split over; results do not depend on the mesh, but they do on stripes'
      )
    self._N, self._config, self._mesh = len(x_ND), config, mesh
    D, S = x_ND.shape[1], config.stripes
    M = -(-self._N // (S * _BLOCK))
    B = -(-self._N // (S * M))
    self._shape = (S, M, B, D)
    self._x = jax.make_array_from_callback(
      self._shape, NamedSharding(mesh, P(_ROWS)), lambda index: self._stripes(x_ND, index[0])
    )

  def _stripes(self, x_ND: np.ndarray, index: slice) -> np.ndarray:
    """The rows of a few stripes, zeros behind the last one."""
    S, M, B, D = self._shape
    first, end = index.start or 0, S if index.stop is None else index.stop
    part = np.asarray(x_ND[first * M * B : end * M * B], np.float32)
    missing = (end - first) * M * B - len(part)
    return np.pad(part, ((0, missing), (0, 0))).reshape(-1, M, B, D)

  def step(self, centroid_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(sum_KD, count_K, cluster_N, nearness_N) of the rows with these centroids.

    Nearness is the cosine, or the squared distance if Euclidean.
    """
    stripe_S = jnp.arange(self._shape[0], dtype=jnp.int32)
    sum_KD, count_K, cluster, near = jax.device_get(
      _one_step(
        self._x, stripe_S, jnp.asarray(centroid_KD), self._N, self._mesh, self._config.spherical
      )
    )
    return sum_KD, count_K, cluster.reshape(-1)[: self._N], near.reshape(-1)[: self._N]

  def distance(self, nearness_N: np.ndarray) -> np.ndarray:
    """Cosine or Euclidean distance from the nearness, float32."""
    if self._config.spherical:
      return np.float32(1) - nearness_N
    return np.sqrt(np.maximum(nearness_N, 0))

  def mean(self, nearness_N: np.ndarray) -> float:
    """The mean distance (squared if Euclidean)."""
    mean = float(np.mean(nearness_N, dtype=np.float64))
    return 1 - mean if self._config.spherical else mean

  def worst(self, nearness_N: np.ndarray, number: int) -> np.ndarray:
    """Rows that are farthest from their centroids, the least of several first."""
    key_N = nearness_N if self._config.spherical else -nearness_N
    return np.argsort(key_N, kind='stable')[:number]


@functools.partial(jax.jit, static_argnames=('num_rows', 'mesh', 'spherical'))
def _one_step(x_SMBD, stripe_S, centroid_KD, num_rows: int, mesh, spherical: bool):
  """Sums and counts of every cluster, and of every row its cluster and nearness."""
  local = functools.partial(_of_stripes, num_rows=num_rows, spherical=spherical)
  split, whole = P(_ROWS), P()
  gathered = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(split, split, whole),
    out_specs=(whole, whole, whole, whole),
    check_vma=False,
  )
  return gathered(x_SMBD, stripe_S, centroid_KD)


def _of_stripes(x_SMBD, stripe_S, centroid_KD, *, num_rows: int, spherical: bool):
  """A device's stripes one after the other; then all stripes, gathered and added in order."""
  (K, D), (_, M, B, _) = centroid_KD.shape, x_SMBD.shape
  half_K = 0.0 if spherical else 0.5 * jnp.sum(jnp.square(centroid_KD), axis=1)

  def block(carry, inputs):
    x_BD, first = inputs
    product_BK = jnp.matmul(x_BD, centroid_KD.T, precision=jax.lax.Precision.HIGHEST)
    near_B, cluster_B = _nearest(product_BK - half_K)
    is_row = first + jnp.arange(B) < num_rows
    cluster_B = jnp.where(is_row, cluster_B, K)  # rows behind the last one are added nowhere
    sum_KD, count_K = carry
    sum_KD = sum_KD.at[cluster_B].add(x_BD, mode='drop')
    count_K = count_K.at[cluster_B].add(1, mode='drop')
    if not spherical:
      near_B = jnp.sum(jnp.square(x_BD), axis=1) - 2 * near_B
    return (sum_KD, count_K), (cluster_B, near_B)

  def stripe(inputs):
    x_MBD, s = inputs
    first_M = (s * M + jnp.arange(M)) * B
    return jax.lax.scan(block, (jnp.zeros((K, D)), jnp.zeros(K, jnp.int32)), (x_MBD, first_M))

  out = jax.lax.map(stripe, (x_SMBD, stripe_S))
  (sums, counts), (cluster, near) = jax.tree.map(
    lambda a: jax.lax.all_gather(a, _ROWS, tiled=True), out
  )
  total = sums[0]
  for s in range(1, len(sums)):
    total = total + sums[s]
  return total, jnp.sum(counts, axis=0), cluster, near


def _nearest(score_BK: jax.Array) -> tuple[jax.Array, jax.Array]:
  """(largest score, its column, the least of several); XLA vectorises this, not an argmax."""
  best_B = jnp.max(score_BK, axis=1)
  K = score_BK.shape[1]
  column_BK = jnp.where(score_BK == best_B[:, None], jnp.arange(K, dtype=jnp.int32), K)
  return best_B, jnp.min(column_BK, axis=1)


def _updated(centroid_KD, sum_KD, count_K, config: KMeansConfig) -> np.ndarray:
  """Means of the rows, of length one if spherical; an empty cluster stays where it is."""
  mean_KD = sum_KD.astype(np.float64) / np.maximum(count_K, 1)[:, None]
  if config.spherical:
    length_K = np.linalg.norm(mean_KD, axis=1)
    # Rows that cancel out have no mean direction.
    count_K = np.where(length_K > 1e-12, count_K, 0)
    mean_KD /= np.maximum(length_K, 1e-12)[:, None]
  return np.where(count_K[:, None] > 0, mean_KD, centroid_KD).astype(np.float32)


def _reseeded(centroid_KD, count_K, near_N, x_ND, dealt: _Dealt) -> np.ndarray:
  """Empty clusters start again at the rows that are farthest from their centroids."""
  empty = np.flatnonzero(count_K == 0)
  if len(empty):
    centroid_KD = centroid_KD.copy()
    centroid_KD[empty] = x_ND[dealt.worst(near_N, len(empty))]
  return centroid_KD


def _has_settled(trail: list[tuple[np.ndarray, float]]) -> bool:
  """Whether the last iteration moved no centroid."""
  return len(trail) > 1 and np.array_equal(trail[-1][0], trail[-2][0])


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
