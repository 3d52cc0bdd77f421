"""What a room may ask of a model that it must not import: handed in by `cli` and `studies`.

Axes: B batch, D width of an embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import jax

Batch = Mapping[str, jax.Array]


class Encoder(Protocol):
  """Turns every example into one vector (deduplication, retrieval, clustering)."""

  def __call__(self, batch: Batch) -> jax.Array:
    """float32 [B, D]; rows with `valid_B` 0 may hold anything."""
    ...


class Scorer(Protocol):
  """Says how likely every example is (filtering by perplexity, judging what others generated)."""

  def __call__(self, batch: Batch) -> tuple[jax.Array, jax.Array]:
    """(nll_B, count_B), float32 each.

    nll_B is the negative log-likelihood in nats, summed over the example's tokens that count, and
    count_B their number (the sum of their weights), so that any average can be formed exactly. Both
    are 0 where nothing counts, as in rows with `valid_B` 0.
    """
    ...
