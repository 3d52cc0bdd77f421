"""What k-means and SemDeDup share: products of rows, their largest entries, arrays for devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np


def product(a_MD: jax.Array, b_ND: jax.Array) -> jax.Array:
  """a b^T [M, N] in float32 at the highest precision (a TPU would take bfloat16 otherwise)."""
  return jnp.matmul(a_MD, b_ND.T, precision=jax.lax.Precision.HIGHEST)


def largest(score: jax.Array, axis: int) -> tuple[jax.Array, jax.Array]:
  """(largest, its number along the axis, the least of several); XLA vectorises this, no argmax."""
  best = jnp.max(score, axis=axis, keepdims=True)
  number = jax.lax.broadcasted_iota(jnp.int32, score.shape, axis)
  first = jnp.min(jnp.where(score == best, number, score.shape[axis]), axis=axis)
  return jnp.squeeze(best, axis), first


def aligned(shape: tuple[int, ...]) -> np.ndarray:
  """An empty float32 array that a CPU device takes without a copy (it stands at 64 bytes)."""
  size = 4 * int(np.prod(shape))
  buffer = np.empty(size + 64, np.uint8)
  start = -buffer.ctypes.data % 64
  return buffer[start : start + size].view(np.float32).reshape(shape)
