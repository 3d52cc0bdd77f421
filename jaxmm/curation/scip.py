"""SCIP: pruning of code by what damage does to embeddings (Yang et al. 2023, arXiv:2312.02418).

Damaged files (`corruptions`) are found in smaller clusters and farther from their centroids than
the files they were made of; so the files of small clusters and those far from their centroid are
taken for bad and pruned. Of N files, with p the share to prune (Algorithm 1):

1. by the size of their cluster, the first alpha * p * N;
2. of the rest, by the distance to their centroid, the first (1 - alpha) * p * N.

Clusters and distances (1 - cosine to the own centroid) are made by `kmeans`, of any encoder.

Departures. Files of one cluster have the same key in step 1: the one that is farther goes first,
and of equals (here and in step 2) the one with the least id is kept; the paper does not say. The
whole number of p * N, rounded down, is pruned in all; step 1 takes its part rounded down. Distances
can be ranked within bins of length, since they follow it (`length_confounding`).

Axes: N examples, K clusters, D width of an embedding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list, length_confounding
from jaxmm.curation.keep_list import KeepList

SMALL, FAR = 'small_cluster', 'far_from_centroid'
LARGE, NEAR = 'large_cluster', 'near_centroid'
# Files before a centroid at once: bounds memory, changes nothing.
_ROWS = 8192


@dataclasses.dataclass(frozen=True)
class ScipConfig:
  """How many are pruned, and which first.

  Attributes:
    direction: 'easy' keeps large clusters and what is near its centroid, as the paper does; 'hard'
      prunes in the opposite order in both steps. Say it aloud: other methods (SSL prototypes, D4)
      keep the hard ones.
    keep_fraction, prune_fraction: exactly one of them, in [0, 1]; the paper prunes 0.2.
    alpha: share of what is pruned that goes for the size of its cluster; 1 looks at clusters alone
      and 0 at distances alone. The paper's best on HumanEval is 0.8.
    length_bins: 0 ranks distances as they are; B > 0 ranks them within each of B quantiles of
      length first.
  """

  direction: Literal['easy', 'hard']
  keep_fraction: float | None = None
  prune_fraction: float | None = None
  alpha: float = 0.8
  length_bins: int = 0

  def __post_init__(self):
    if self.direction not in ('easy', 'hard'):
      raise ConfigError(
        f"direction is {self.direction!r}, expected 'easy' (the paper's: prunes small clusters and "
        "what is far from its centroid) or 'hard' (the opposite)"
      )
    if (self.keep_fraction is None) == (self.prune_fraction is None):
      raise ConfigError(
        'exactly one of keep_fraction and prune_fraction is given, got '
        f'{self.keep_fraction} and {self.prune_fraction}'
      )
    for name in ('keep_fraction', 'prune_fraction', 'alpha'):
      value = getattr(self, name)
      if value is not None and not 0 <= value <= 1:
        raise ConfigError(f'{name} is {value}, expected in [0, 1]')
    if not isinstance(self.length_bins, int) or self.length_bins < 0:
      raise ConfigError(f'length_bins is {self.length_bins!r}, expected 0 (none) or a number')

  def numbers(self, total: int) -> tuple[int, int]:
    """How many of `total` the first and the second step prune."""
    exact = lambda value: Fraction(str(value))
    if self.prune_fraction is not None:
      pruned = exact(self.prune_fraction) * total
    else:
      pruned = (1 - exact(self.keep_fraction)) * total
    by_size = math.floor(exact(self.alpha) * pruned)
    return by_size, math.floor(pruned) - by_size


def reasons(
  ids: Sequence[str] | pa.Array,
  cluster_N: np.ndarray,
  distance_N: np.ndarray,
  config: ScipConfig,
  length_N: np.ndarray | None = None,
) -> np.ndarray:
  """Why each example is pruned, '' if it is kept; object [N].

  Args:
    ids: N different strings.
    cluster_N: int, of the cluster; sizes are counted here.
    distance_N: 1 - cosine to the centroid of that cluster, finite.
    config: how many and which.
    length_N: of the texts, for `config.length_bins`.

  Raises:
    ConfigError: the arrays differ in length, a cluster is negative, a distance is not finite, or
      there are bins but no lengths.
  """
  cluster_N, distance_N = _checked(ids, cluster_N, distance_N)
  if config.length_bins:
    if length_N is None:
      raise ConfigError(f'length_bins is {config.length_bins}, but no lengths are given')
    distance_N = length_confounding.stratified(distance_N, length_N, config.length_bins)
  sign = 1 if config.direction == 'easy' else -1
  table = pa.table(
    {
      'size': sign * sizes(cluster_N)[cluster_N],
      'distance': -sign * distance_N,
      'id': pa.array(ids, pa.string()),
    }
  )
  order = lambda *keys: pc.sort_indices(
    table, [*((k, 'ascending') for k in keys), ('id', 'descending')]
  ).to_numpy()
  first, second = config.numbers(len(cluster_N))
  reason_N = np.full(len(cluster_N), '', object)
  reason_N[order('size', 'distance')[:first]] = SMALL if sign > 0 else LARGE
  by_distance = order('distance')
  left = by_distance[reason_N[by_distance] == '']
  reason_N[left[:second]] = FAR if sign > 0 else NEAR
  return reason_N


def _checked(ids, cluster_N, distance_N) -> tuple[np.ndarray, np.ndarray]:
  cluster_N, distance_N = np.asarray(cluster_N), np.asarray(distance_N)
  if not len(ids) == len(cluster_N) == len(distance_N):
    raise ConfigError(
      f'{len(ids)} ids, {len(cluster_N)} clusters and {len(distance_N)} distances; expected as '
      'many of each'
    )
  if len(ids) and cluster_N.dtype.kind not in 'iu':
    raise ConfigError(f'clusters are {cluster_N.dtype}, expected whole numbers')
  is_bad_N = (cluster_N < 0) | ~np.isfinite(distance_N)
  if is_bad_N.any():
    at = int(np.argmax(is_bad_N))
    raise ConfigError(
      f'{int(is_bad_N.sum())} examples have no cluster or no finite distance, the first '
      f'{str(ids[at])!r} (cluster {cluster_N[at]}, distance {distance_N[at]}); embed them anew or '
      'leave them out'
    )
  return cluster_N.astype(np.int64), distance_N


def sizes(cluster_N: np.ndarray) -> np.ndarray:
  """How many examples each cluster holds; int64 [K], K the greatest cluster + 1."""
  return np.bincount(np.asarray(cluster_N, np.int64)).astype(np.int64)


def judged(
  ids: Sequence[str] | pa.Array,
  digest_N: np.ndarray,
  cluster_N: np.ndarray,
  distance_N: np.ndarray,
  config: ScipConfig,
  *,
  other_reason_N: Sequence[str] | None = None,
  length_N: np.ndarray | None = None,
  columns: Mapping[str, Any] | None = None,
  parameters: Mapping[str, Any] | None = None,
) -> KeepList:
  """The keep-list, with the columns `cluster`, `cluster_size` and `distance`.

  The score is the distance.

  Args:
    ids, cluster_N, distance_N, config, length_N: see `reasons`.
    digest_N: uint64, of the examples.
    other_reason_N: where not '', the example has no embedding ('unreadable', 'empty') and is
      dropped for that reason; its cluster, distance and length are not looked at, and it is no
      part of the shares.
    columns: more columns.
    parameters: how the clusters were made, for the header.
  """
  ids = pa.array(ids, pa.string())
  N = len(ids)
  other_N = np.full(N, '', object) if other_reason_N is None else np.array(other_reason_N, object)
  has_N = other_N == ''
  cluster_N, distance_N = np.asarray(cluster_N), np.asarray(distance_N, np.float32)
  length_N = None if length_N is None else np.asarray(length_N)[has_N]
  inner = reasons(
    ids.filter(pa.array(has_N)), cluster_N[has_N], distance_N[has_N], config, length_N
  )
  reason_N, size_N = other_N.copy(), np.zeros(N, np.int64)
  reason_N[has_N] = inner
  size_N[has_N] = sizes(cluster_N[has_N])[cluster_N[has_N]]
  distance_N = np.where(has_N, distance_N, np.float32(np.nan))
  return keep_list.make(
    ids,
    digest_N,
    reason_N == '',
    score_N=distance_N,
    reason_N=reason_N,
    columns={
      'cluster': pa.array(np.where(has_N, cluster_N, 0).astype(np.int32), mask=~has_N),
      'cluster_size': pa.array(size_N, mask=~has_N),
      'distance': distance_N,
      **(columns or {}),
    },
    method='scip',
    parameters={**dataclasses.asdict(config), **(parameters or {})},
  )


@dataclasses.dataclass(frozen=True)
class Change:
  """Mean of paired differences, after - before, and its two-sided interval (Student's t).

  Attributes:
    mean, low, high: the interval is nan for fewer than two pairs.
    before, after: means of each side.
    pairs: how many.
  """

  mean: float
  low: float
  high: float
  before: float
  after: float
  pairs: int


def change(before_N: np.ndarray, after_N: np.ndarray, confidence: float = 0.95) -> Change:
  """Of paired observations."""
  before_N, after_N = np.asarray(before_N, np.float64), np.asarray(after_N, np.float64)
  if before_N.shape != after_N.shape or before_N.ndim != 1:
    raise ConfigError(f'pairs have the shapes {before_N.shape} and {after_N.shape}, expected [N]')
  if not 0 < confidence < 1:
    raise ConfigError(f'confidence is {confidence}, expected in (0, 1)')
  difference_N = after_N - before_N
  N, half = len(difference_N), math.nan
  if not N:
    return Change(*[math.nan] * 5, 0)
  if N > 1:
    from scipy.special import stdtrit  # scipy takes a moment to import

    quantile = float(stdtrit(N - 1, (1 + confidence) / 2))
    half = quantile * float(difference_N.std(ddof=1)) / math.sqrt(N)
  mean = float(difference_N.mean())
  return Change(mean, mean - half, mean + half, float(before_N.mean()), float(after_N.mean()), N)


@dataclasses.dataclass(frozen=True)
class Shift:
  """What damage does to the place of files among clusters, mean over files.

  Attributes:
    cluster_size: of the file's cluster, in files of the original corpus. SCIP expects it to fall.
    distance: to the centroid of the own cluster. SCIP expects it to rise.
    moved: share of files that are in another cluster.
  """

  cluster_size: Change
  distance: Change
  moved: float


def shift(
  cluster_N: np.ndarray,
  distance_N: np.ndarray,
  damaged_cluster_N: np.ndarray,
  damaged_distance_N: np.ndarray,
  *,
  size_K: np.ndarray | None = None,
  confidence: float = 0.95,
) -> Shift:
  """Of files and their damaged versions, row by row, with clusters that were found for both.

  Args:
    cluster_N, distance_N: of the originals.
    damaged_cluster_N, damaged_distance_N: of the damaged, by the same centroids.
    size_K: of the clusters; counted from the originals if not given. Give it where the rows are a
      sample, or where damaged files are among those that were clustered.
    confidence: of the intervals.
  """
  names = [str(n) for n in range(len(cluster_N))]
  cluster_N, distance_N = _checked(names, cluster_N, distance_N)
  damaged_cluster_N, damaged_distance_N = _checked(names, damaged_cluster_N, damaged_distance_N)
  size_K = sizes(cluster_N) if size_K is None else np.asarray(size_K)
  greatest = max([-1, *cluster_N.tolist(), *damaged_cluster_N.tolist()])
  # A cluster without originals has no place in what was counted.
  size_K = np.pad(size_K, (0, max(0, greatest + 1 - len(size_K))))
  return Shift(
    change(size_K[cluster_N], size_K[damaged_cluster_N], confidence),
    change(distance_N, damaged_distance_N, confidence),
    float(np.mean(cluster_N != damaged_cluster_N)) if len(cluster_N) else math.nan,
  )


def nearest_centroid(x_ND: np.ndarray, centroid_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(cluster int32 [N], 1 - cosine float32 [N]) of embeddings, in float64 on the host.

  For diagnostics of a few thousand files; `kmeans` assigns corpora. Ties go to the lowest cluster.

  Raises:
    ConfigError: a row is zero or not finite.
  """
  unit_KD = _unit(centroid_KD, 'centroid')
  cluster, distance = [], []
  for low in range(0, len(x_ND), _ROWS):
    cosine_NK = _unit(x_ND[low : low + _ROWS], 'embedding', low) @ unit_KD.T
    cluster.append(cosine_NK.argmax(axis=1))
    distance.append(1 - cosine_NK.max(axis=1))
  both = [np.concatenate(part) if part else np.zeros(0) for part in (cluster, distance)]
  return both[0].astype(np.int32), both[1].astype(np.float32)


def _unit(x_ND: np.ndarray, what: str, first: int = 0) -> np.ndarray:
  x_ND = np.asarray(x_ND, np.float64)
  norm_N = np.linalg.norm(x_ND, axis=1)
  is_bad_N = ~(np.isfinite(norm_N) & (norm_N > 0))
  if is_bad_N.any():
    row = first + int(np.argmax(is_bad_N))
    raise ConfigError(f'{what} {row} is zero or not finite, so it has no direction')
  return x_ND / norm_N[:, None]


def shift_of_embeddings(
  x_ND: np.ndarray,
  damaged_ND: np.ndarray,
  centroid_KD: np.ndarray,
  *,
  size_K: np.ndarray | None = None,
  confidence: float = 0.95,
) -> Shift:
  """`shift` of embeddings of files and of their damaged versions, by given centroids."""
  before, after = nearest_centroid(x_ND, centroid_KD), nearest_centroid(damaged_ND, centroid_KD)
  return shift(*before, *after, size_K=size_K, confidence=confidence)
