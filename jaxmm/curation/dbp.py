"""DBP: a cluster keeps rows according to its complexity (Abbas et al. 2024, arXiv:2401.04578).

Section 3 of the paper. Of cluster j: d_intra, the mean cosine distance of its rows to its centroid;
d_inter, the mean cosine distance of its centroid to the l nearest others; complexity
C_j = d_inter * d_intra; P = softmax(C / tau). Counts x minimise |x - N' P|^2 with sum N' and
least_j <= x_j <= n_j. Of each cluster the rows farthest from the centroid stay ('hard', the paper).

Departures: the paper hands the quadratic program to a solver and rounds; here it is solved exactly
(its conditions leave one number free: x_j = clip(N' P_j + lambda, least_j, n_j)), and rounded to
integers of the right sum by largest remainders within the bounds. A cluster of one row may be kept
whole. Neither tau nor l is certain: the paper's tables are read as tau 0.1 and l 20, the released
program has 0.5 and 20; both are settings.

Axes: N rows, K clusters, D width.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.curation import prototypes, vectors
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.stages import Stages
from jaxmm.curation.vectors import Vectors


@dataclasses.dataclass(frozen=True)
class DbpConfig:
  """How rows are shared out among clusters.

  Attributes:
    prefer: 'hard' keeps the rows of a cluster that are farthest from its centroid, 'easy' the
      nearest.
    keep: share of all rows that is kept.
    temperature: tau of the softmax; small ones favour complex clusters.
    neighbours: l, how many other centroids count for d_inter.
    balance: every cluster keeps at least floor(balance * N' / K) rows, and at least one.
  """

  prefer: str
  keep: float
  temperature: float = 0.1
  neighbours: int = 20
  balance: float = 0.0

  def __post_init__(self):
    if self.prefer not in prototypes.PREFER:
      raise ConfigError(
        f'prefer is {self.prefer!r}, expected one of {", ".join(prototypes.PREFER)}'
      )
    if not 0 < self.keep <= 1:
      raise ConfigError(f'keep is {self.keep}, expected a share in (0, 1]')
    if self.temperature <= 0:
      raise ConfigError(f'temperature is {self.temperature}, expected it above 0')
    if self.neighbours < 1:
      raise ConfigError(f'neighbours is {self.neighbours}, expected at least 1')
    if not 0 <= self.balance <= 1:
      raise ConfigError(f'balance is {self.balance}, expected a share in [0, 1]')


@dataclasses.dataclass(frozen=True)
class Shares:
  """What each cluster gets and why; arrays [K].

  Attributes:
    size_K: rows of the cluster.
    intra_K, inter_K: mean distances within and to other centroids (nan within an empty cluster).
    complexity_K: their product; the mean of the others where it is nan.
    probability_K: softmax of it.
    wanted_K: N' P.
    count_K: rows that stay.
  """

  size_K: np.ndarray
  intra_K: np.ndarray
  inter_K: np.ndarray
  complexity_K: np.ndarray
  probability_K: np.ndarray
  wanted_K: np.ndarray
  count_K: np.ndarray


def run(
  of: Vectors, config: DbpConfig, kmeans: KMeansConfig, stages: Stages
) -> tuple[KeepList, Shares]:
  """The keep-list of DBP, and what each cluster got.

  Columns: `cluster`, `distance` (the score), and of the cluster `complexity` and `share`, the part
  of it that stays. The paper deduplicates first: give the vectors that SemDeDup keeps.
  """
  if not kmeans.spherical:
    raise ConfigError('kmeans.spherical is False; DBP goes by cosines')
  vectors.check_share(config.keep, of)
  clustering = stages.clustering('kmeans', of, kmeans)
  cluster_U, distance_U = clustering.cluster_N, clustering.distance_N
  found = shares(clustering.centroid_KD, cluster_U, distance_U, config)
  keep_U = kept(cluster_U, distance_U, found.count_K, config.prefer)
  share_K = found.count_K / np.maximum(found.size_K, 1)
  keep = vectors.judged(
    of,
    np.where(keep_U, '', prototypes.PRUNED[config.prefer]).astype(object),
    score_U=distance_U,
    columns_U={
      'cluster': cluster_U,
      'distance': distance_U,
      'complexity': found.complexity_K[cluster_U],
      'share': share_K[cluster_U],
    },
    method='dbp',
    parameters=dataclasses.asdict(config)
    | {'kmeans': dataclasses.asdict(kmeans), 'clusters': len(found.size_K)},
  )
  return keep, found


def shares(
  centroid_KD: np.ndarray, cluster_N: np.ndarray, distance_N: np.ndarray, config: DbpConfig
) -> Shares:
  """How many rows of each cluster stay.

  Args:
    centroid_KD: of length one.
    cluster_N, distance_N: of every row, cosine distances.

  Raises:
    ConfigError: more rows must stay for the balance than are to be kept.
  """
  K = len(centroid_KD)
  size_K = np.bincount(cluster_N, minlength=K)
  total = np.bincount(cluster_N, weights=np.asarray(distance_N, np.float64), minlength=K)
  with np.errstate(invalid='ignore'):
    intra_K = total / size_K
  inter_K = inter_distances(centroid_KD, config.neighbours)
  complexity_K = inter_K * intra_K
  complexity_K[np.isnan(complexity_K)] = np.nanmean(complexity_K)
  exponent_K = complexity_K / config.temperature
  weight_K = np.exp(exponent_K - exponent_K.max())
  probability_K = weight_K / weight_K.sum()
  number = round(config.keep * len(cluster_N))
  wanted_K = number * probability_K
  least_K = np.minimum(max(1, int(config.balance * number / K)), size_K)
  count_K = rounded(allocation(wanted_K, size_K, least_K, number), size_K, least_K, number)
  return Shares(size_K, intra_K, inter_K, complexity_K, probability_K, wanted_K, count_K)


def inter_distances(centroid_KD: np.ndarray, neighbours: int) -> np.ndarray:
  """The mean cosine distance of each centroid to the nearest others, float64 [K]."""
  K = len(centroid_KD)
  if K == 1:
    return np.ones(1)
  number = min(neighbours, K - 1)
  centroid_KD = np.asarray(centroid_KD, np.float64)
  out = np.empty(K)
  for low in range(0, K, 1024):
    away = 1 - centroid_KD[low : low + 1024] @ centroid_KD.T
    away[np.arange(len(away)), low + np.arange(len(away))] = np.inf
    out[low : low + 1024] = np.partition(away, number - 1, axis=1)[:, :number].mean(1)
  return out


def allocation(
  wanted_K: np.ndarray, most_K: np.ndarray, least_K: np.ndarray, total: int
) -> np.ndarray:
  """argmin |x - wanted|^2 with sum `total` and least <= x <= most, float64 [K].

  By the conditions of Karush, Kuhn and Tucker x = clip(wanted + lambda, least, most); the sum does
  not fall with lambda, which is bisected.
  """
  if not least_K.sum() <= total <= most_K.sum():
    raise ConfigError(
      f'{total} rows are to be kept, but clusters must keep {least_K.sum()} and have '
      f'{most_K.sum()}; change keep, balance or the number of clusters'
    )
  low, high = (least_K - wanted_K).min() - 1.0, (most_K - wanted_K).max() + 1.0
  for _ in range(200):
    middle = (low + high) / 2
    if np.clip(wanted_K + middle, least_K, most_K).sum() < total:
      low = middle
    else:
      high = middle
  return np.clip(wanted_K + high, least_K, most_K)


def rounded(x_K: np.ndarray, most_K: np.ndarray, least_K: np.ndarray, total: int) -> np.ndarray:
  """Integers of sum `total` within the bounds, by largest remainders; of equal ones the first."""
  # What bisection leaves is far below this.
  count_K = np.clip(np.floor(x_K + 1e-6), least_K, most_K).astype(np.int64)
  order = np.argsort(-(x_K - count_K), kind='stable')
  missing = total - int(count_K.sum())
  while missing:
    step = 1 if missing > 0 else -1
    can = count_K[order] < most_K[order] if missing > 0 else count_K[order] > least_K[order]
    chosen = order[can][: abs(missing)] if missing > 0 else order[can][::-1][: abs(missing)]
    count_K[chosen] += step
    missing -= step * len(chosen)
  return count_K


def kept(
  cluster_N: np.ndarray, distance_N: np.ndarray, count_K: np.ndarray, prefer: str
) -> np.ndarray:
  """Which rows stay, bool [N]: of each cluster the first `count` by distance."""
  order = prototypes.ranked(distance_N, prefer)
  keep_N = np.zeros(len(order), bool)
  keep_N[order] = prototypes.places_in_cluster(cluster_N[order]) < count_K[cluster_N[order]]
  return keep_N
