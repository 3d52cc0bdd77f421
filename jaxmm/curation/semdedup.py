"""SemDeDup: semantic duplicates within clusters (Abbas et al. 2023, arXiv:2303.09540).

Section 2 of the paper: in every cluster rows are put in the order of their distance to the
centroid, and a row is dropped if it is more similar than 1 - eps to any row before it, whether that
one is kept or not (neither connected components nor a greedy choice: the paper's pseudo-code, too).

`earlier` finds once, for every row, the most similar row before it; any eps or share is then a
threshold. Similarities are float32 at the highest precision: bfloat16 is too coarse near 1 - eps.

Departures: ties in distance go to the least id, so that nothing hangs on the order of the input; a
share to keep is met exactly, not by interpolating between two runs of eps.

Axes: N rows, D width, C batches, F rows of a batch, I products, T rows of one, L its columns.
"""

from __future__ import annotations

import bisect
import collections
import concurrent.futures
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.curation import vectors
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.kmeans import Clustering, KMeansConfig
from jaxmm.curation.similarity import aligned, largest, product
from jaxmm.curation.stages import Stages, fingerprint
from jaxmm.curation.vectors import Vectors

ORDERS = ('hard', 'easy')
DUPLICATE = 'semantic_duplicate'
Echo = Callable[[str], None]
_ROWS = ('data', 'fsdp')
_TILE = 64
_MOST_STREAMS = 8
# Rows of a batch; a larger cluster is compared part by part.
BATCH = 1 << 14


@dataclasses.dataclass(frozen=True)
class SemDedupConfig:
  """What a semantic duplicate is.

  Attributes:
    prefer: which of several similar rows comes first and stays: 'hard', the one farthest from the
      centroid (the paper's), or 'easy', the nearest.
    eps: rows more similar than 1 - eps to an earlier one are dropped; None where `keep` is given.
    keep: share of the rows that is kept, those least similar to any earlier row; None where `eps`
      is given.
  """

  prefer: str
  eps: float | None = None
  keep: float | None = None

  def __post_init__(self):
    if (self.eps is None) == (self.keep is None):
      raise ConfigError(f'eps is {self.eps} and keep {self.keep}, expected exactly one of them')
    if self.eps is not None and not 0 <= self.eps <= 2:
      raise ConfigError(f'eps is {self.eps}, expected 1 - a cosine, in [0, 2]')
    if self.keep is not None and not 0 < self.keep <= 1:
      raise ConfigError(f'keep is {self.keep}, expected a share in (0, 1]')
    if self.prefer not in ORDERS:
      raise ConfigError(f'prefer is {self.prefer!r}, expected one of {", ".join(ORDERS)}')


@dataclasses.dataclass(frozen=True)
class Earlier:
  """Of every row, the most similar one before it in its cluster.

  Attributes:
    similarity_N: float32 cosine; -inf for the first of a cluster.
    nearest_N: int64, its number (the first of several); -1 for the first of a cluster.
  """

  similarity_N: np.ndarray
  nearest_N: np.ndarray

  @property
  def finite_N(self) -> np.ndarray:
    """Similarities with nan for the first of a cluster."""
    return np.where(np.isfinite(self.similarity_N), self.similarity_N, np.nan)


def run(of: Vectors, config: SemDedupConfig, kmeans: KMeansConfig, stages: Stages) -> KeepList:
  """The keep-list of SemDeDup.

  Columns: `cluster`, `distance` to its centroid, `nearest` (the most similar row before it in its
  cluster) and `similarity` to that, which is the score.

  Args:
    of: vectors of the examples.
    config: what is dropped.
    kmeans: how rows are clustered.
    stages: where finished stages are kept, the mesh, and who is told.
  """
  if config.keep is not None:
    vectors.check_share(config.keep, of)
  clustering, near = compared(of, kmeans, config.prefer, stages)
  keep_U = kept(near.similarity_N, config)
  eps = config.eps if config.keep is None else eps_of(near.similarity_N, config.keep)
  return vectors.judged(
    of,
    np.where(keep_U, '', DUPLICATE).astype(object),
    score_U=near.finite_N,
    columns_U={
      'cluster': clustering.cluster_N,
      'distance': clustering.distance_N,
      'nearest': near.nearest_N,
      'similarity': near.finite_N,
    },
    method='semdedup',
    parameters=dataclasses.asdict(config)
    | {'eps': eps, 'kmeans': dataclasses.asdict(kmeans), 'clusters': len(clustering.centroid_KD)},
  )


def compared(
  of: Vectors, kmeans: KMeansConfig, prefer: str, stages: Stages
) -> tuple[Clustering, Earlier]:
  """The clusters of the usable rows, and of each the most similar row before it."""
  if not kmeans.spherical:
    raise ConfigError('kmeans.spherical is False; SemDeDup goes by cosines')
  clustering = stages.clustering('kmeans', of, kmeans)

  def make():
    found = earlier(
      of.x_UD,
      clustering.cluster_N,
      clustering.distance_N,
      prefer=prefer,
      mesh=stages.mesh,
      echo=stages.echo,
    )
    return dataclasses.asdict(found)

  settings = [dataclasses.asdict(kmeans), prefer, fingerprint(of)]
  return clustering, Earlier(**stages.arrays('pairs', settings, make))


def earlier(
  x_ND: np.ndarray,
  cluster_N: np.ndarray,
  distance_N: np.ndarray,
  *,
  prefer: str,
  mesh: jax.sharding.Mesh | None = None,
  echo: Echo | None = None,
) -> Earlier:
  """Compares all pairs within clusters.

  Args:
    x_ND: float32 rows of length one, in the order of their ids.
    cluster_N, distance_N: of a clustering.
    prefer: 'hard' or 'easy', which rows come first.
    mesh: clusters are split over its `data` and `fsdp`; default: all devices.
    echo: takes progress lines.
  """
  if prefer not in ORDERS:
    raise ConfigError(f'prefer is {prefer!r}, expected one of {", ".join(ORDERS)}')
  mesh = sharding.make_mesh() if mesh is None else mesh
  sign = -1 if prefer == 'hard' else 1
  order_N = _in_order(cluster_N, sign * np.asarray(distance_N, np.float32))
  start_K = np.flatnonzero(np.diff(cluster_N[order_N], prepend=-1))
  end_K = np.append(start_K[1:], len(order_N))
  best_N = np.full(len(x_ND), -np.inf, np.float32)
  place_N = np.full(len(x_ND), -1, np.int64)  # in the order, of the most similar row
  for place_CF, *found in _compared_batches(x_ND, order_N, start_K, end_K, mesh):
    _merge(best_N, place_N, place_CF, *found)
    if echo:
      echo(f'semdedup: {int(place_CF.max()) + 1:,} of {len(x_ND):,} rows')
  similarity_N, nearest_N = np.empty_like(best_N), np.empty_like(place_N)
  similarity_N[order_N] = best_N
  nearest_N[order_N] = np.where(place_N < 0, -1, order_N[place_N])
  return Earlier(similarity_N, nearest_N)


def _in_order(cluster_N, distance_N) -> np.ndarray:
  """Rows by cluster, within one by distance, of equal ones by number; faster than a lexsort."""
  order_N = np.argsort(distance_N, kind='stable')
  # Of 16 bits NumPy sorts by radix.
  small = np.uint16 if cluster_N.max(initial=0) < 1 << 16 else np.uint32
  return order_N[np.argsort(cluster_N[order_N].astype(small), kind='stable')]


def _merge(best_N, place_N, place_CF, best_CF, column_CF) -> None:
  """Takes over what is more similar than what was found so far."""
  best_CF, column_CF = np.asarray(best_CF), np.asarray(column_CF)
  for place_F, best_F, column_F in zip(place_CF, best_CF, column_CF):
    found = np.flatnonzero(column_F >= 0)
    found = found[best_F[found] > best_N[place_F[found]]]
    best_N[place_F[found]] = best_F[found]
    place_N[place_F[found]] = place_F[column_F[found]]


def streams_of(devices: int, platform: str = 'cpu') -> int:
  """How many batches are compared side by side, beside those of other devices.

  Products of a tile are too small to fill several cores of one CPU; one stream more than cores
  gathers meanwhile, which waits for memory. Programs of several devices wait for one another, so
  they must begin in the same order everywhere: one at a time.
  """
  if devices > 1 or platform != 'cpu':
    return 1
  return min((os.cpu_count() or 1) + 1, _MOST_STREAMS)


def buffers_of(streams: int) -> int:
  """How many batches a device holds: of one stream the next one, too, which is gathered ahead."""
  return max(streams, 2)


def _compared_batches(x_ND, order_N, start_K, end_K, mesh) -> Iterator[tuple]:
  """(place_CF, best_CF, column_CF) of batches, one a device, in their order."""
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  streams = streams_of(mesh.size, mesh.devices.flat[0].platform)
  batches = list(_batches(start_K.tolist(), end_K.tolist()))
  F = -(-max((_rows(parts) for parts, _ in batches), default=0) // _TILE) * _TILE
  # Used in turn: to be given new memory takes longer than to fill it.
  buffers: list[dict[int, np.ndarray]] = [{} for _ in range(buffers_of(streams))]
  turns = [batches[first : first + devices] for first in range(0, len(batches), devices)]
  waiting = collections.deque()

  def finished():
    place_CF, *found = waiting.popleft().result()
    return place_CF, *(np.asarray(a) for a in found)

  with concurrent.futures.ThreadPoolExecutor(streams) as pool:
    for number, turn in enumerate(turns):
      if len(waiting) == len(buffers):
        yield finished()
      buffer = buffers[number % len(buffers)]
      waiting.append(pool.submit(_begun, turn, x_ND, order_N, F, mesh, buffer))
    while waiting:
      yield finished()


def _begun(turn, x_ND, order_N, F: int, mesh, buffer: dict[int, np.ndarray]) -> tuple:
  """Gathers a batch for every device and compares it; results may not be there yet."""
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  place_CF = np.full((devices, F), -1, np.int64)
  items = np.zeros((devices, F // 2, 4), np.int32)
  count_C = np.zeros(devices, np.int32)
  for c, (parts, is_between) in enumerate(turn):
    places = np.concatenate([np.arange(*part) for part in parts])
    place_CF[c, : len(places)] = places
    found = _items(parts, is_between, F)
    items[c, : len(found)], count_C[c] = found, len(found)

  def gathered(index):
    c = index[0].start or 0
    if c not in buffer:
      buffer[c] = aligned((1, F, x_ND.shape[1]))
    row_F = order_N[place_CF[c][place_CF[c] >= 0]]
    _gather(x_ND, row_F, buffer[c][0, : len(row_F)])
    return buffer[c]

  split = NamedSharding(mesh, P(_ROWS))
  x_CFD = jax.make_array_from_callback((devices, F, x_ND.shape[1]), split, gathered)
  given = [
    jax.make_array_from_callback(a.shape, split, lambda index, a=a: a[index])
    for a in (items, count_C)
  ]
  return place_CF, *_compared(x_CFD, *given, mesh)


def _gather(x_ND, row_F: np.ndarray, out: np.ndarray) -> None:
  if isinstance(x_ND, np.ndarray):
    np.take(x_ND, row_F, 0, out=out, mode='clip')  # without a copy between
  else:
    out[:] = x_ND[row_F]


def _batches(start_K, end_K) -> Iterator[tuple[list[tuple[int, int]], bool]]:
  """(parts of the order that are in memory together, whether the second is compared with the first)

  else each with itself. Whole clusters, as many as fit; a cluster that does not fit in halves of a
  batch, and every half with each half before it.
  """
  batch: list[tuple[int, int]] = []
  half = BATCH // 2
  for start, end in zip(start_K, end_K):
    if end - start < 2:
      continue
    parts = [(start, end)]
    if end - start > BATCH:
      parts = [(low, min(low + half, end)) for low in range(start, end, half)]
    for i, part in enumerate(parts):
      yield from (([before, part], True) for before in parts[:i])
      if _rows([*batch, part]) > BATCH:
        yield batch, False
        batch = []
      batch.append(part)
  if batch:
    yield batch, False


def _rows(parts) -> int:
  return sum(high - low for low, high in parts)


def _lengths(F: int) -> list[int]:
  """Of columns that a program has a product for."""
  tiles = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32)
  return [t * _TILE for t in tiles if t * _TILE <= F]


def _items(parts, is_between: bool, F: int) -> np.ndarray:
  """(row, end, column, number of the length) of every product: int32 [I, 4], places in the batch.

  A tile of rows, but none from `end` on, with a length of columns, but only those before each row.
  """
  lengths, out = _lengths(F), []
  edges = np.cumsum([0] + [high - low for low, high in parts]).tolist()
  for begin, end in list(zip(edges, edges[1:]))[is_between:]:
    for row in range(begin, end, _TILE):
      first, last = (0, begin) if is_between else (begin, min(row + _TILE, end))
      for column in range(first, last, lengths[-1]):
        out.append((row, end, column, bisect.bisect_left(lengths, min(last - column, lengths[-1]))))
  return np.array(out, np.int32).reshape(-1, 4)


@functools.partial(jax.jit, static_argnames='mesh')
def _compared(x_CFD, items, count_C, mesh):
  """(best_CF, column_CF) of each row among its columns; -inf and -1 where it has none."""

  def of_device(x_CFD, items, count_C):
    found = jax.lax.map(lambda inputs: _of_batch(*inputs), (x_CFD, items, count_C))
    # On every device, for every process merges all of it.
    return jax.tree.map(lambda a: jax.lax.all_gather(a, _ROWS, tiled=True), found)

  return jax.shard_map(of_device, mesh=mesh, in_specs=P(_ROWS), out_specs=P(), check_vma=False)(
    x_CFD, items, count_C
  )


def _of_batch(x_FD, item_I4, count):
  F = len(x_FD)
  products = [functools.partial(_tile, length=length) for length in _lengths(F)]

  def take_over(i, found):
    row, end, column, length = item_I4[i]
    begin = jnp.minimum(row, F - _TILE)
    best_T, column_T = jax.lax.switch(length, products, x_FD, row, end, column)
    before = [jax.lax.dynamic_slice(a, (begin,), (_TILE,)) for a in found]
    is_better_T = best_T > before[0]
    after = [jnp.where(is_better_T, a, b) for a, b in zip((best_T, column_T), before)]
    return tuple(jax.lax.dynamic_update_slice(a, b, (begin,)) for a, b in zip(found, after))

  none = jnp.full(F, -jnp.inf), jnp.full(F, -1, jnp.int32)
  return jax.lax.fori_loop(0, count, take_over, none)


def _tile(x_FD, row, end, column, *, length: int):
  """(best_T, column_T) of a tile of rows; -inf for those that are not meant."""
  F, D = x_FD.shape
  # At the end of the batch a tile begins before its first row, and a length before its column.
  row_T = jnp.minimum(row, F - _TILE) + jnp.arange(_TILE)
  column_L = jnp.minimum(column, F - length) + jnp.arange(length)
  x_TD = jax.lax.dynamic_slice(x_FD, (row_T[0], 0), (_TILE, D))
  x_LD = jax.lax.dynamic_slice(x_FD, (column_L[0], 0), (length, D))
  # Columns stand in the first axis: a maximum over it is one of whole vectors.
  is_meant = (row_T >= row) & (row_T < end) & (column_L >= column)[:, None]
  is_meant &= column_L[:, None] < row_T
  best_T, at_T = largest(jnp.where(is_meant, product(x_LD, x_TD), -jnp.inf), 0)
  return best_T, column_L[0] + at_T


def kept(similarity_N: np.ndarray, config: SemDedupConfig) -> np.ndarray:
  """Which rows stay, bool [N]; of equal similarities at the border of a share the first stay."""
  if config.eps is not None:
    return similarity_N <= np.float32(1 - config.eps)
  number = round(config.keep * len(similarity_N))
  keep_N = np.zeros(len(similarity_N), bool)
  keep_N[np.argsort(similarity_N, kind='stable')[:number]] = True
  return keep_N


def eps_of(similarity_N: np.ndarray, keep: float) -> float:
  """The eps that keeps this share: 1 - the largest similarity that is kept."""
  number = max(round(keep * len(similarity_N)), 1)
  return 1 - float(np.partition(similarity_N, number - 1)[number - 1])
