"""Losses as (sum, count), in float32, so that they merge exactly over microbatches, devices and
padded tails.

Axes: B batch, L positions, V vocabulary, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmm.core import axes

SumCount = tuple[jax.Array, jax.Array]


@jax.custom_vjp
def token_nll(logits_BLV: jax.Array, targets_BL: jax.Array) -> jax.Array:
  """-log softmax(logits)[target] of every token, nats, float32 [B, L].

  A target outside [0, V) counts as logit 0, so the caller must give it zero weight.
  """
  return _nll_forward(logits_BLV, targets_BL)[0]


def _nll_forward(logits, targets):
  logits32 = logits.astype(jnp.float32)
  # A comparison instead of a gather: it fuses, and a vocabulary split over devices needs no
  # gathering.
  is_target = _is_target(logits, targets)
  chosen = jnp.sum(jnp.where(is_target, logits32, 0.0), axis=-1)
  normaliser = jax.nn.logsumexp(logits32, axis=-1)
  return normaliser - chosen, (logits, targets, normaliser)


def _is_target(logits, targets):
  place = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
  return place == targets[..., None]


def _nll_backward(saved, grad):
  logits, targets, normaliser = saved
  is_target = _is_target(logits, targets)
  probability = jnp.exp(logits.astype(jnp.float32) - normaliser[..., None])
  return (((probability - is_target) * grad[..., None]).astype(logits.dtype), None)


token_nll.defvjp(_nll_forward, _nll_backward)


def cross_entropy(
  logits_BLV: jax.Array, targets_BL: jax.Array, weight_BL: jax.Array | None = None
) -> SumCount:
  """Weighted sum of `token_nll` (nats) and the sum of the weights; no weights are ones."""
  nll_BL = token_nll(logits_BLV, targets_BL)
  return weighted_sum(nll_BL, weight_BL)


def projected_nll(
  hidden_BLD: jax.Array, table_VD: jax.Array, targets_BL: jax.Array, chunk: int = 0
) -> jax.Array:
  """`token_nll` of the logits hidden @ table^T, float32 [B, L].

  Args:
    hidden_BLD: the Stack's output; products are formed in its dtype.
    table_VD: the output head, one row a token.
    targets_BL: the tokens.
    chunk: 0 builds the logits [B, L, V]; n builds those of n positions at a time, and again for the
      gradient: one more product with the head, for memory that does not grow with L * V.
  """

  # Devices that share the table put it together once, not for every chunk.
  table_VD = axes.gathered(table_VD.astype(hidden_BLD.dtype), (axes.VOCAB, axes.EMBED))

  def nll(hidden, targets):
    logits = jnp.einsum('BLD,VD->BLV', hidden, table_VD)
    return token_nll(axes.constrain(logits, axes.BATCH, axes.LENGTH, axes.ACT_VOCAB), targets)

  B, L, D = hidden_BLD.shape
  if not 0 < chunk < L:
    return nll(hidden_BLD, targets_BL)
  more = -L % chunk
  hidden = jnp.pad(hidden_BLD, ((0, 0), (0, more), (0, 0))).reshape(B, -1, chunk, D)
  targets = jnp.pad(targets_BL, ((0, 0), (0, more))).reshape(B, -1, chunk)
  blocks = (jnp.moveaxis(hidden, 1, 0), jnp.moveaxis(targets, 1, 0))
  out = jax.lax.map(jax.checkpoint(lambda block: nll(*block)), blocks)
  return jnp.moveaxis(out, 0, 1).reshape(B, -1)[:, :L]


def weighted_sum(values: jax.Array, weight: jax.Array | None = None) -> SumCount:
  """(sum of values * weight, sum of weight), the weight broadcast to the values; float32."""
  values = values.astype(jnp.float32)
  if weight is None:
    return jnp.sum(values), jnp.asarray(values.size, jnp.float32)
  weight = jnp.broadcast_to(weight, values.shape).astype(jnp.float32)
  # A row without weight may hold NaN (an unreadable record); 0 * NaN would spread it.
  return jnp.sum(jnp.where(weight == 0, 0.0, values) * weight), jnp.sum(weight)


def position_sums(
  nll_BL: jax.Array, weight_BL: jax.Array | None = None, valid_B: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
  """For each position, the sum over rows of the nats and of what counts; float32 [L] each.

  Args:
    nll_BL: negative log-likelihood of each token, nats (`token_nll`).
    weight_BL: 0 for tokens that do not count.
    valid_B: 0 for rows that do not count.
  """
  weight = jnp.ones_like(nll_BL) if weight_BL is None else jnp.broadcast_to(weight_BL, nll_BL.shape)
  if valid_B is not None:
    weight = weight * (valid_B > 0)[:, None]
  # `where` first: a token that does not count may be infinitely unlikely.
  nll_BL = jnp.where(weight > 0, nll_BL, 0.0).astype(jnp.float32)
  weight = weight.astype(jnp.float32)
  return jnp.sum(nll_BL * weight, 0), jnp.sum(weight, 0)


def z_loss(logits_BLV: jax.Array, weight_BL: jax.Array | None = None) -> SumCount:
  """log(sum exp logits)^2 a token, against drifting logits (arXiv:2204.02311, section 5)."""
  return weighted_sum(jax.nn.logsumexp(logits_BLV.astype(jnp.float32), axis=-1) ** 2, weight_BL)


def squared_error(
  x_BLD: jax.Array, target_BLD: jax.Array, weight_BL: jax.Array | None = None
) -> SumCount:
  """Sum over positions of the squared l2 distance (summed over D), and the number of positions."""
  difference = x_BLD.astype(jnp.float32) - target_BLD.astype(jnp.float32)
  return weighted_sum(jnp.sum(difference**2, axis=-1), weight_BL)


def mean_squared_error(
  x_B: jax.Array, target_B: jax.Array, weight_B: jax.Array | None = None
) -> SumCount:
  """Sum over examples of the mean squared difference within one, and the number of examples."""
  return _per_example(jnp.square, x_B, target_B, weight_B)


def mean_absolute_error(
  x_B: jax.Array, target_B: jax.Array, weight_B: jax.Array | None = None
) -> SumCount:
  """Sum over examples of the mean absolute difference within one, and the number of examples."""
  return _per_example(jnp.abs, x_B, target_B, weight_B)


def _per_example(measure, x_B, target_B, weight_B) -> SumCount:
  difference = x_B.astype(jnp.float32) - target_B.astype(jnp.float32)
  return weighted_sum(
    jnp.mean(measure(difference), axis=tuple(range(1, difference.ndim))), weight_B
  )
