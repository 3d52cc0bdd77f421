"""SemDeDup: semantic duplicates within clusters (Abbas et al. 2023, arXiv:2303.09540).

Section 2 of the paper: in every cluster rows are put in the order of their distance to the
centroid, and a row is dropped if it is more similar than 1 - eps to any row before it, whether that
one is kept or not (neither connected components nor a greedy choice: the paper's pseudo-code, too).

`earlier` finds once, for every row, the most similar row before it; any eps or share is then a
threshold. Similarities are float32 at the highest precision: bfloat16 is too coarse near 1 - eps.

Departures: ties in distance go to the least id, so that nothing hangs on the order of the input; a
share to keep is met exactly, not by interpolating between two runs of eps.

Axes: N rows, D width, C clusters of a batch, R rows of a chunk, T rows of a tile.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.curation import vectors
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.kmeans import Clustering, KMeansConfig
from jaxmm.curation.stages import Stages, fingerprint
from jaxmm.curation.vectors import Vectors

ORDERS = ('hard', 'easy')
DUPLICATE = 'semantic_duplicate'
Echo = Callable[[str], None]
_ROWS = ('data', 'fsdp')
_TILE = 64
# Rows of a cluster that are compared at once; a larger cluster is compared chunk by chunk.
_CHUNK = 2048
# Rows that a batch of clusters holds.
_BATCH = 1 << 15


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
  order_N = np.lexsort((sign * distance_N.astype(np.float64), cluster_N))
  start_K = np.flatnonzero(np.diff(cluster_N[order_N], prepend=-1))
  end_K = np.append(start_K[1:], len(order_N))
  best_N = np.full(len(x_ND), -np.inf, np.float32)
  place_N = np.full(len(x_ND), -1, np.int64)  # in the order, of the most similar row
  waiting = None
  for done in _work(x_ND, order_N, start_K, end_K, mesh):
    # One batch is computed while the next is gathered.
    if waiting is not None:
      _merge(best_N, place_N, *waiting)
    waiting = done
    if echo:
      echo(f'semdedup: {int(done[0].max()) + 1:,} of {len(x_ND):,} rows')
  if waiting is not None:
    _merge(best_N, place_N, *waiting)
  similarity_N, nearest_N = np.empty_like(best_N), np.empty_like(place_N)
  similarity_N[order_N] = best_N
  nearest_N[order_N] = np.where(place_N < 0, -1, order_N[place_N])
  return Earlier(similarity_N, nearest_N)


def _merge(best_N, place_N, row, first, best, column) -> None:
  """Takes over what is more similar than what was found so far; `row` -1 is padding."""
  best, column = np.asarray(best).reshape(-1), np.asarray(column).reshape(-1)
  is_better = (row >= 0) & (column >= 0)
  is_better &= best > best_N[row]
  at = row[is_better]
  best_N[at] = best[is_better]
  place_N[at] = first[is_better] + column[is_better]


def _work(x_ND, order_N, start_K, end_K, mesh) -> Iterator[tuple]:
  """(places of rows, place of column 0, best, column) of every batch; results not yet awaited."""
  chunks = [
    (low, min(low + _CHUNK, end), start)
    for start, end in zip(start_K, end_K)
    for low in range(start, end, _CHUNK)
  ]
  rows_of = lambda low, high: x_ND[order_N[low:high]]
  for size, batch in _batches([c for c in chunks if c[1] - c[0] > 1 or c[0] > c[2]], mesh):
    row = np.full((len(batch), size), -1, np.int64)
    x_CRD = np.empty((len(batch), size, x_ND.shape[1]), np.float32)
    for c, (low, high, _) in enumerate(batch):
      row[c, : high - low] = np.arange(low, high)
      # Straight into its place: gathering is a good part of all the time.
      np.take(x_ND, order_N[low:high], 0, out=x_CRD[c, : high - low], mode='clip')
      x_CRD[c, high - low :] = 0
    first = np.repeat(row[:, 0], size)
    yield row.reshape(-1), first, *_within(x_CRD, mesh)
  for low, high, start in chunks:
    if low == start:
      continue
    later = jnp.asarray(_padded(rows_of(low, high)))
    row = np.where(np.arange(_CHUNK) < high - low, low + np.arange(_CHUNK), -1)
    for before in range(start, low, _CHUNK):
      first = np.full(_CHUNK, before)
      yield row, first, *_between(later, jnp.asarray(rows_of(before, before + _CHUNK)))


def _padded(x_RD: np.ndarray) -> np.ndarray:
  return np.pad(x_RD, ((0, _CHUNK - len(x_RD)), (0, 0)))


def _batches(chunks, mesh) -> Iterator[tuple[int, list]]:
  """(rows of the padded chunk, chunks) by size; a whole number a device, filled with empty ones."""
  devices = mesh.shape['data'] * mesh.shape['fsdp']
  by_size: dict[int, list] = {}
  for chunk in chunks:
    by_size.setdefault(_padded_size(chunk[1] - chunk[0]), []).append(chunk)
  for size, members in sorted(by_size.items()):
    # Batches of one length, so that one program does, and so that the last is nearly full.
    number = -(-len(members) * size // _BATCH)
    length = -(-len(members) // (number * devices)) * devices
    for low in range(0, len(members), length):
      batch = members[low : low + length]
      yield size, batch + [(0, 0, 0)] * (length - len(batch))


def _padded_size(rows: int) -> int:
  """The next of 1, 2, ... 8, 10, 12, ... 16, 20, ... tiles."""
  tiles = -(-int(rows) // _TILE)
  step = max(1, 1 << (tiles - 1).bit_length() - 3) if tiles > 8 else 1
  return min(-(-tiles // step) * step * _TILE, _CHUNK)


@functools.partial(jax.jit, static_argnames='mesh')
def _within(x_CRD, mesh):
  """(best_CR, column_CR) of each chunk's rows among the rows before; column -1 where none is."""

  def of_device(x_CRD):
    found = jax.lax.map(_triangle, x_CRD)
    # On every device, for every process merges all of it.
    return jax.tree.map(lambda a: jax.lax.all_gather(a, _ROWS, tiled=True), found)

  return jax.shard_map(
    of_device, mesh=mesh, in_specs=P(_ROWS), out_specs=P(), check_vma=False
  )(x_CRD)  # fmt: skip


def _triangle(x_RD):
  """Tiles of rows against all rows up to their own; only the tile on the diagonal is masked."""
  bests, columns = [], []
  is_before_TT = jnp.triu(jnp.ones((_TILE, _TILE), bool), 1)
  for low in range(0, len(x_RD), _TILE):
    # Rows before stand in the first axis: a maximum over it is one of whole vectors.
    product = _product(x_RD[: low + _TILE], x_RD[low : low + _TILE])
    diagonal = jnp.where(is_before_TT, product[low:], -jnp.inf)
    best_T, column_T = _largest(jnp.concatenate([product[:low], diagonal]))
    bests.append(best_T)
    columns.append(jnp.where(best_T == -jnp.inf, -1, column_T))
  return jnp.concatenate(bests), jnp.concatenate(columns)


@jax.jit
def _between(later_RD, before_RD):
  return _largest(_product(before_RD, later_RD))


def _product(a, b):
  return jnp.matmul(a, b.T, precision=jax.lax.Precision.HIGHEST)


def _largest(score_RT):
  """(largest, its row, the first of several) of each column; XLA vectorises this, no argmax."""
  best_T = jnp.max(score_RT, axis=0)
  R = len(score_RT)
  row = jnp.where(score_RT == best_T, jnp.arange(R, dtype=jnp.int32)[:, None], R)
  return best_T, jnp.min(row, axis=0)


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
