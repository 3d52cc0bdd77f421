"""How well embeddings find what belongs to a query, over given embeddings of queries and keys.

Axes: Q queries, N keys, D embedding width, T queries of a tile, R relevant keys of a query, padded.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class RankSums:
  """Sums over queries; whole numbers and float64 on the host, merged by adding. Immutable.

  Attributes:
    queries: how many.
    hits: `{k: queries of which a relevant key is among the first k}`.
    reciprocal: sum of 1 / rank of the first relevant key.
  """

  queries: int
  hits: Mapping[int, int]
  reciprocal: float

  @classmethod
  def of(cls, rank_Q: np.ndarray, at: Sequence[int] = (1, 5, 10)) -> RankSums:
    """Sums of ranks of the first relevant key, counted from 1."""
    rank_Q = np.asarray(rank_Q, np.int64)
    if rank_Q.size and rank_Q.min() < 1:
      raise ValueError(f'a rank of {rank_Q.min()}, expected 1 or more')
    hits = {int(k): int(np.sum(rank_Q <= k)) for k in at}
    return cls(len(rank_Q), hits, float(np.sum(1.0 / rank_Q)))

  def merge(self, other: RankSums) -> RankSums:
    """Sums of both sets of queries."""
    if self.hits.keys() != other.hits.keys():
      raise ValueError(f'recall at {list(self.hits)} and at {list(other.hits)} cannot be merged')
    hits = {k: n + other.hits[k] for k, n in self.hits.items()}
    return RankSums(self.queries + other.queries, hits, self.reciprocal + other.reciprocal)

  def metrics(self) -> dict[str, float]:
    """`{'recall_at_k': share, ..., 'mrr': mean reciprocal rank}`.

    Raises:
      ValueError: no queries.
    """
    if not self.queries:
      raise ValueError('the recall of no queries')
    out = {f'recall_at_{k}': n / self.queries for k, n in self.hits.items()}
    return out | {'mrr': self.reciprocal / self.queries}


def first_ranks(
  query_QD: np.ndarray,
  key_ND: np.ndarray,
  relevant: Sequence[Sequence[int]] | np.ndarray,
  *,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  tile: int = 256,
) -> np.ndarray:
  """Rank, from 1, of the best relevant key of each query by inner product; int64 [Q].

  The rank is 1 + how many keys that are not relevant score at least as high: of a tie all others
  come first, so embeddings that are all alike find nothing. Products are float32 at the highest
  precision; queries are split over the mesh, keys are whole on every device.

  Args:
    query_QD, key_ND: embeddings, normalised by the caller where cosines are wanted.
    relevant: for each query the numbers of the keys that belong to it, at least one; or one number
      a query.
    mesh, rules: where it runs.
    tile: queries a step; changes memory, not results.

  Raises:
    ConfigError: shapes that do not fit, embeddings that are not finite, or a query without a
      relevant key among the keys.
  """
  query_QD, key_ND = np.asarray(query_QD, np.float32), np.asarray(key_ND, np.float32)
  if query_QD.ndim != 2 or key_ND.ndim != 2 or query_QD.shape[1] != key_ND.shape[1]:
    raise ConfigError(
      f'queries {query_QD.shape} and keys {key_ND.shape}, expected [Q, D] and [N, D] of one width'
    )
  for name, x in (('queries', query_QD), ('keys', key_ND)):
    if not np.isfinite(x).all():
      raise ConfigError(f'{name}: row {np.argwhere(~np.isfinite(x))[0][0]} is not finite')
  relevant_QR = _padded(relevant, len(query_QD), len(key_ND))
  arrays = {'query': query_QD, 'relevant': relevant_QR}
  batches = batch_job.ArrayPass(arrays, tile, mesh)

  def ranks(key_ND, batch):
    score_TN = jnp.einsum('TD,ND->TN', batch['query'], key_ND, precision=lax.Precision.HIGHEST)
    own_TR = batch['relevant']
    own_score_TR = jnp.take_along_axis(score_TN, jnp.maximum(own_TR, 0), axis=1)
    best_T1 = jnp.max(jnp.where(own_TR >= 0, own_score_TR, -jnp.inf), axis=1, keepdims=True)
    ahead_T = jnp.sum(score_TN >= best_T1, axis=1)
    own_ahead_T = jnp.sum((own_TR >= 0) & (own_score_TR >= best_T1), axis=1)
    return {'rank': (ahead_T - own_ahead_T + 1).astype(jnp.int32)}

  results = batch_job.outputs(batches, ranks, variables=key_ND, mesh=mesh, rules=rules)
  return np.concatenate([part['rank'] for _, part in results]).astype(np.int64)


def _padded(relevant, num_queries: int, num_keys: int) -> np.ndarray:
  """[Q, R] with -1 where a query has fewer; without repetitions."""
  rows = [sorted({int(i) for i in np.atleast_1d(np.asarray(r))}) for r in relevant]
  if len(rows) != num_queries or not num_queries:
    raise ConfigError(
      f'relevant keys of {len(rows)} queries, but there are {num_queries}, expected as many, at '
      'least 1'
    )
  for q, row in enumerate(rows):
    if not row or row[0] < 0 or row[-1] >= num_keys:
      raise ConfigError(
        f'query {q} has the relevant keys {row[:5]}, expected one or more of 0 to {num_keys - 1}'
      )
  out = np.full((num_queries, max(map(len, rows))), -1, np.int32)
  for q, row in enumerate(rows):
    out[q, : len(row)] = row
  return out
