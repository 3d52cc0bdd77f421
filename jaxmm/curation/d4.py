"""D4: deduplicate, cluster again, drop the most prototypical (Tirumala et al. 2023,
arXiv:2308.12284).

1. k-means (spherical, k about the square root of the number of rows, 20 iterations).
2. SemDeDup keeps the share R_dedup (0.75 in the paper).
3. k-means of what is left: duplicates have drawn centroids to themselves, and distance to those
   says nothing of typicality.
4. SSL Prototypes keep R_proto = R / R_dedup of it, the farthest from their centroids, in one
   ranking over all clusters.

MinHash comes before all of it in the paper; `vectors.only_kept` applies such a list here.

Departures: see `semdedup` (a share is met exactly). Whether the second clustering takes a new
sample is not said in the paper; it takes one of the rows that are left, with the same seed.

Axes: N rows.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.curation import prototypes, semdedup, vectors
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.prototypes import PrototypesConfig
from jaxmm.curation.semdedup import SemDedupConfig
from jaxmm.curation.stages import Stages
from jaxmm.curation.vectors import Vectors


@dataclasses.dataclass(frozen=True)
class D4Config:
  """What D4 keeps.

  Attributes:
    prefer: 'hard' drops the most prototypical (the paper), 'easy' the least.
    keep: R, share of the usable rows that is kept.
    dedup_keep: R_dedup, share that SemDeDup leaves.
    recluster: whether the second clustering is made (step 3); else distances are of the first.
    balance: as of PrototypesConfig.
    kmeans: of both clusterings.
  """

  prefer: str
  keep: float
  dedup_keep: float = 0.75
  recluster: bool = True
  balance: float = 0.0
  kmeans: KMeansConfig = dataclasses.field(default_factory=KMeansConfig)

  def __post_init__(self):
    if not 0 < self.keep <= self.dedup_keep <= 1:
      raise ConfigError(
        f'keep is {self.keep} and dedup_keep {self.dedup_keep}, expected '
        '0 < keep <= dedup_keep <= 1; keep is the share of both steps together'
      )
    if not self.kmeans.spherical:
      raise ConfigError('kmeans.spherical is False; D4 goes by cosines')
    PrototypesConfig(self.prefer, self.keep / self.dedup_keep, self.balance)


def run(of: Vectors, config: D4Config, stages: Stages) -> KeepList:
  """The keep-list of D4.

  Columns: `dedup.cluster`, `dedup.distance`, `nearest` (the most similar row before it),
  `similarity` to that, `cluster` and `distance` of the second clustering (null where SemDeDup
  dropped). The score is that distance.

  Args:
    of: vectors of the examples.
    config: how.
    stages: where finished stages are kept, the mesh, and who is told.
  """
  vectors.check_share(config.keep, of)
  first, near = semdedup.compared(of, config.kmeans, config.prefer, stages)
  stays_U = semdedup.kept(near.similarity_N, SemDedupConfig(config.prefer, keep=config.dedup_keep))
  left_V = np.flatnonzero(stays_U)
  if config.recluster:
    remaining = of.at(of.usable_U[left_V])
    second = stages.clustering('kmeans-again', remaining, config.kmeans)
    cluster_V, distance_V = second.cluster_N, second.distance_N
  else:
    cluster_V, distance_V = first.cluster_N[left_V], first.distance_N[left_V]
  # Of all rows, not of those that are left: rounding twice would miss the number asked for.
  share = round(config.keep * len(stays_U)) / max(len(left_V), 1)
  of_left = PrototypesConfig(config.prefer, min(share, 1.0), config.balance)
  keep_V = prototypes.kept(cluster_V, distance_V, of_left)
  reason_U = np.full(len(stays_U), semdedup.DUPLICATE, object)
  reason_U[left_V] = np.where(keep_V, '', prototypes.PRUNED[config.prefer])
  distance_U = np.full(len(stays_U), np.nan)
  distance_U[left_V] = distance_V
  cluster_U = np.full(len(stays_U), -1)
  cluster_U[left_V] = cluster_V
  return vectors.judged(
    of,
    reason_U,
    score_U=distance_U,
    columns_U={
      'cluster': cluster_U,
      'distance': distance_U,
      'nearest': near.nearest_N,
      'similarity': near.finite_N,
      'dedup.cluster': first.cluster_N,
      'dedup.distance': first.distance_N,
    },
    method='d4',
    parameters=dataclasses.asdict(config)
    | {
      'clusters': config.kmeans.clusters_of(len(stays_U)),
      'eps': semdedup.eps_of(near.similarity_N, config.dedup_keep),
    },
  )
