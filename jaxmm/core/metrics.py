"""What is summed and what is counted travel together."""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp


@flax.struct.dataclass
class Mean:
  """A mean that merges exactly across microbatches, hosts and padded tails; vectors elementwise."""

  total: jax.Array
  count: jax.Array

  @classmethod
  def of(cls, values: jax.Array, weight: jax.Array) -> Mean:
    """The weighted mean of all values, the weight broadcast to them."""
    weight = jnp.broadcast_to(weight, values.shape).astype(jnp.float32)
    return cls(jnp.sum(jnp.where(weight == 0, 0.0, values) * weight), jnp.sum(weight))

  def merge(self, other: Mean) -> Mean:
    """The mean over both."""
    return Mean(self.total + other.total, self.count + other.count)

  def compute(self) -> jax.Array:
    """total / count; NaN where nothing was counted, because 0 would read as a perfect loss."""
    return jnp.where(self.count > 0, self.total / jnp.maximum(self.count, 1e-30), jnp.nan)
