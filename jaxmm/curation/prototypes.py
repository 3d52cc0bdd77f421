"""SSL Prototypes: a ranking by distance to centroids (Sorscher et al. 2022, arXiv:2206.14486).

A row close to its centroid is prototypical, or easy. The paper (section 5): with much data keep the
hardest, with little the easiest. One ranking over all clusters; `balance` keeps a share of what
each cluster would get if all got the same (the paper names it for ImageNet; 0 here, as in D4).

Axes: N rows, K clusters.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.curation import vectors
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.stages import Stages
from jaxmm.curation.vectors import Vectors

PREFER = ('hard', 'easy')
# Why a row goes, by which are preferred.
PRUNED = {'hard': 'prototypical', 'easy': 'atypical'}


@dataclasses.dataclass(frozen=True)
class PrototypesConfig:
  """Which rows stay.

  Attributes:
    prefer: 'hard' keeps the rows farthest from their centroids, 'easy' the nearest.
    keep: share of the rows that is kept.
    balance: every cluster keeps at least this share of keep * N / K rows, or all it has.
  """

  prefer: str
  keep: float
  balance: float = 0.0

  def __post_init__(self):
    if self.prefer not in PREFER:
      raise ConfigError(f'prefer is {self.prefer!r}, expected one of {", ".join(PREFER)}')
    if not 0 < self.keep <= 1:
      raise ConfigError(f'keep is {self.keep}, expected a share in (0, 1]')
    if not 0 <= self.balance <= 1:
      raise ConfigError(f'balance is {self.balance}, expected a share in [0, 1]')


def run(of: Vectors, config: PrototypesConfig, kmeans: KMeansConfig, stages: Stages) -> KeepList:
  """The keep-list of SSL Prototypes; columns `cluster` and `distance`, which is the score."""
  vectors.check_share(config.keep, of)
  clustering = stages.clustering('kmeans', of, kmeans)
  keep_U = kept(clustering.cluster_N, clustering.distance_N, config)
  return vectors.judged(
    of,
    np.where(keep_U, '', PRUNED[config.prefer]).astype(object),
    score_U=clustering.distance_N,
    columns_U={'cluster': clustering.cluster_N, 'distance': clustering.distance_N},
    method='prototypes',
    parameters=dataclasses.asdict(config)
    | {'kmeans': dataclasses.asdict(kmeans), 'clusters': len(clustering.centroid_KD)},
  )


def ranked(distance_N: np.ndarray, prefer: str) -> np.ndarray:
  """Rows in the order in which they are kept, int64 [N]; of equal distances the first first."""
  distance_N = np.asarray(distance_N, np.float64)
  return np.argsort(-distance_N if prefer == 'hard' else distance_N, kind='stable')


def kept(cluster_N: np.ndarray, distance_N: np.ndarray, config: PrototypesConfig) -> np.ndarray:
  """Which rows stay, bool [N]: round(keep * N) of them."""
  N, number = len(distance_N), round(config.keep * len(distance_N))
  order = ranked(distance_N, config.prefer)
  keep_N = np.zeros(N, bool)
  if config.balance:
    present = np.unique(cluster_N)
    least = int(config.balance * number / len(present))
    keep_N[order[places_in_cluster(cluster_N[order]) < least]] = True
  rest = order[~keep_N[order]]
  keep_N[rest[: number - int(keep_N.sum())]] = True
  return keep_N


def places_in_cluster(cluster_N: np.ndarray) -> np.ndarray:
  """0 for the first row of each cluster, 1 for its second, ...; int64 [N]."""
  order = np.argsort(cluster_N, kind='stable')
  sorted_N = cluster_N[order]
  first = np.flatnonzero(np.diff(sorted_N, prepend=-1))
  lengths = np.diff(np.append(first, len(sorted_N)))
  out = np.empty(len(cluster_N), np.int64)
  out[order] = np.arange(len(cluster_N)) - np.repeat(first, lengths)
  return out
