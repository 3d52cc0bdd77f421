"""Where a token stands: rotary tables (one and two dimensions) and learned positions.

Axes: B batch, L positions, N heads, H head width, R = H / 2 rotated pairs, D model width.
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import axes

PAIRINGS = ('adjacent', 'split')


@flax.struct.dataclass
class Rotary:
  """Cosines and sines of every position's angles, float32 [L, R] or [B, L, R].

  Plain tables on purpose: what a model does at odd positions (a prefix, packed documents) is
  visible in the numbers.
  """

  cos: jax.Array
  sin: jax.Array

  def at(self, position: jax.Array | int, length: int = 1) -> Rotary:
    """The tables of `length` positions from `position` on (which may be traced)."""
    take = lambda table: jax.lax.dynamic_slice_in_dim(table, position, length, table.ndim - 2)
    return Rotary(take(self.cos), take(self.sin))


def frequencies(head_dim: int, base: float = 10_000.0) -> jax.Array:
  """base^(-2j / head_dim) for j < head_dim / 2, float32 (arXiv:2104.09864, eq. 15)."""
  if head_dim % 2:
    raise ConfigError(f'head_dim is {head_dim}, but rotary positions need an even one')
  return 1.0 / base ** (jnp.arange(0, head_dim, 2, dtype=jnp.float32) / head_dim)


def rotary_1d(positions: jax.Array, head_dim: int, base: float = 10_000.0) -> Rotary:
  """Tables of positions [L] or [B, L] (integers or not)."""
  angles = positions[..., None].astype(jnp.float32) * frequencies(head_dim, base)
  return Rotary(jnp.cos(angles), jnp.sin(angles))


def rotary_2d(rows: int, columns: int, head_dim: int, base: float = 10_000.0) -> Rotary:
  """Tables of a grid read row by row: the first half of the pairs turns with the row, the second
  with the column.

  Raises:
    ConfigError: head_dim is not a multiple of four.
  """
  if head_dim % 4:
    raise ConfigError(f'head_dim is {head_dim}, but 2-D rotary positions need a multiple of 4')
  freqs = frequencies(head_dim // 2, base)
  row_L, column_L = jnp.divmod(jnp.arange(rows * columns), columns)
  angles = jnp.concatenate([row_L[:, None] * freqs, column_L[:, None] * freqs], axis=-1)
  return Rotary(jnp.cos(angles), jnp.sin(angles))


def with_prefix(rotary: Rotary, length: int, *, zeros: bool) -> Rotary:
  """The tables with `length` positions in front.

  Args:
    rotary: tables [L, R].
    length: number of prefix positions.
    zeros: False leaves the prefix unrotated (cos 1, sin 0). True sets both tables to zero, so that
      queries and keys of the prefix become zero vectors and every logit that involves one is 0;
      LlamaGen's public checkpoints were trained so.
  """
  shape = (length, rotary.cos.shape[-1])
  first = jnp.zeros(shape) if zeros else jnp.ones(shape)
  return Rotary(
    jnp.concatenate([first, rotary.cos]), jnp.concatenate([jnp.zeros(shape), rotary.sin])
  )


def in_segments(segment_BL: jax.Array) -> jax.Array:
  """How far each token stands from its segment's first, int32 [B, L]; each segment in one piece."""
  place_L = jnp.arange(segment_BL.shape[1], dtype=jnp.int32)
  same = segment_BL[:, 1:] == segment_BL[:, :-1]
  is_first = jnp.pad(~same, ((0, 0), (1, 0)), constant_values=True)
  return place_L - jax.lax.cummax(jnp.where(is_first, place_L, 0), axis=1)


def rotated(
  x: jax.Array, cos: jax.Array, sin: jax.Array, pairing: str, axis: int = -1
) -> jax.Array:
  """x with its pairs along `axis` turned: (a, b) -> (a cos - b sin, b cos + a sin), in float32.

  Args:
    x: any array whose `axis` has the head width H.
    cos, sin: broadcastable to x with H / 2 at `axis`.
    pairing: 'adjacent' pairs (2m, 2m + 1), 'split' pairs (m, m + H / 2).
  """
  if pairing not in PAIRINGS:
    raise ConfigError(f'rotary pairing is {pairing!r}, expected one of {", ".join(PAIRINGS)}')
  axis, half = axis % x.ndim, x.shape[axis] // 2
  pair_axis = axis + 1 if pairing == 'adjacent' else axis
  split = (half, 2) if pairing == 'adjacent' else (2, half)
  shape = x.shape[:axis] + split + x.shape[axis + 1 :]
  paired = x.astype(jnp.float32).reshape(shape)
  a, b = (jax.lax.index_in_dim(paired, i, pair_axis, keepdims=False) for i in (0, 1))
  out = jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=pair_axis)
  return out.reshape(x.shape).astype(x.dtype)


def apply_rotary(x_BLNH: jax.Array, rotary: Rotary, pairing: str) -> jax.Array:
  """Queries or keys [B, L, N, H] turned by tables of the same L positions."""
  cos, sin = rotary.cos[..., None, :], rotary.sin[..., None, :]
  if cos.shape[-3] != x_BLNH.shape[1]:
    raise ValueError(
      f'rotary tables have {cos.shape[-3]} positions, but there are {x_BLNH.shape[1]} tokens'
    )
  return rotated(x_BLNH, cos, sin, pairing)


class LearnedPositions(nn.Module):
  """A learned vector a position, added by the caller: [L, D]."""

  length: int
  width: int
  std: float = 0.02

  @nn.compact
  def __call__(self) -> jax.Array:
    init = axes.weight(nn.initializers.normal(self.std), axes.LENGTH, axes.EMBED)
    return self.param('table', init, (self.length, self.width))
