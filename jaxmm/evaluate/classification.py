"""How often a classifier is right, and how sure: sums that merge exactly.

Axes: B batch, V classes.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import losses
from jaxmm.core.losses import SumCount

Sums = dict[str, SumCount]


def classification_sums(
  logits_BV: jax.Array,
  label_B: jax.Array,
  valid_B: jax.Array | None = None,
  *,
  top: tuple[int, ...] = (1, 5),
) -> Sums:
  """`{'nll': (nats, rows), 'top_1': (right, rows), 'top_5': ...}` of one batch.

  A row is right in the top k where fewer than k other classes have a score as high as that of its
  class: of a tie all count against it, so a network that says the same of all classes is never
  right. Counts are int32 on the device (exact), Python ints over batches
  (`jaxmm.batch_job.run_sums`).

  Args:
    logits_BV: class scores before softmax.
    label_B: class ids.
    valid_B: 0 for rows that count nothing, whatever they hold.
    top: the k to report, each below the number of classes.

  Raises:
    ConfigError: shapes that do not fit, or a k that no answer could miss.
  """
  if logits_BV.ndim != 2 or label_B.shape != logits_BV.shape[:1]:
    raise ConfigError(
      f'logits {tuple(logits_BV.shape)} and labels {tuple(label_B.shape)}, expected [B, V] and [B]'
    )
  wrong = [k for k in top if not 1 <= k < logits_BV.shape[1]]
  if wrong:
    raise ConfigError(
      f'top is {wrong[0]}, expected 1 to {logits_BV.shape[1] - 1}: there are '
      f'{logits_BV.shape[1]} classes'
    )
  valid_B = jnp.ones(label_B.shape) if valid_B is None else valid_B
  is_known_B = (label_B >= 0) & (label_B < logits_BV.shape[1])
  # A class that the head does not have: never right, and no likelihood.
  nll_B = jnp.where(is_known_B, losses.token_nll(logits_BV, label_B), jnp.nan)
  own_B1 = jnp.take_along_axis(logits_BV, jnp.where(is_known_B, label_B, 0)[:, None], axis=1)
  # Not `>=` turned about: a score that is not a number is not right.
  better_B = jnp.sum(~(logits_BV < own_B1), axis=1) - 1
  count = jnp.sum(valid_B > 0).astype(jnp.int32)
  out = {'nll': losses.weighted_sum(nll_B, valid_B > 0)}
  for k in top:
    is_right_B = (better_B < k) & is_known_B & (valid_B > 0)
    out[f'top_{k}'] = (jnp.sum(is_right_B).astype(jnp.int32), count)
  return out
