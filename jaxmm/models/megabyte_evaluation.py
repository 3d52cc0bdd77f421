"""Likelihoods of MEGABYTE that spend more passes: strided inference and sliding windows.

Section 2.3.3 of arXiv:2305.07185: the loss rises towards the end of a patch, and with less context;
two passes mend either, four both. A number must say which of them it is.

Axes: B batch, L bytes of a row, P bytes of a patch, W bytes of a window.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.models.megabyte_config import MegabyteConfig
from jaxmm.models.megabyte_network import byte_nll


def strided_nll(
  params: Mapping[str, Any],
  config: MegabyteConfig,
  ids_BL: jax.Array,
  segment_BL: jax.Array | None = None,
) -> jax.Array:
  """`byte_nll` of two passes whose patches are half a patch apart, float32 [B, L].

  Each byte is taken from the pass in which it stands in the first half of its patch. The second
  pass begins with half a patch of padding (the paper does not say what with). Its last patch ends
  behind the row; in a row of `config.length` there is no position for it, and the first pass has
  those bytes as well. With `separate_documents`, a document that does not begin the row gets no
  padding: what the second pass sees of it begins half a patch later.

  Raises:
    ConfigError: an odd patch.
  """
  half = config.patch // 2
  if config.patch % 2:
    raise ConfigError(f'strided inference halves patches, but model.patch is {config.patch}')
  (B, L), more = ids_BL.shape, config.patch
  if L + more > config.length:
    more = 0
  first_BL = byte_nll(params, config, ids_BL, segment_BL)
  padded = lambda a, front, back: jnp.concatenate(
    [front, a, jnp.broadcast_to(jnp.asarray(back, a.dtype), (B, half))], axis=1
  )[:, : L + more]
  ids = padded(ids_BL, jnp.full((B, half), config.pad_id, ids_BL.dtype), config.pad_id)
  segment = None
  if segment_BL is not None:
    segment = padded(segment_BL, jnp.repeat(segment_BL[:, :1], half, axis=1), 0)
  second_BL = byte_nll(params, config, ids, segment)[:, half : half + L]
  num = second_BL.shape[1]
  late_L = jnp.arange(num) % config.patch >= half
  return first_BL.at[:, :num].set(jnp.where(late_L, second_BL, first_BL[:, :num]))


def sliding_nll(
  params: Mapping[str, Any],
  config: MegabyteConfig,
  ids_BL: jax.Array,
  segment_BL: jax.Array | None = None,
  *,
  window: int | None = None,
  stride: int | None = None,
  strided: bool = False,
) -> jax.Array:
  """-log p of every byte of rows of any length, each window a model's row, float32 [B, L].

  Windows begin every `stride` bytes; a byte is taken from the first that has it, so that all but
  those of the first window have at least window - stride bytes before them.

  Args:
    params, config: the model.
    ids_BL, segment_BL: as of `Megabyte`, L a multiple of P that may be above `config.length`.
    window: W, a multiple of P; None is `config.length`.
    stride: a multiple of P, at most W; None is half of W (rounded down to a multiple of P).
    strided: score each window with `strided_nll`.

  Raises:
    ConfigError: a window or stride that does not fit.
  """
  P, (B, L) = config.patch, ids_BL.shape
  window = config.length if window is None else window
  stride = max(window // 2 // P, 1) * P if stride is None else stride
  if not 0 < stride <= window <= config.length or window % P or stride % P or L % P:
    raise ConfigError(
      f'rows of {L} bytes, window {window} and stride {stride}: expected multiples of model.patch '
      f'{P}, the stride at most the window and that at most model.length {config.length}'
    )
  if L == window:
    return (strided_nll if strided else byte_nll)(params, config, ids_BL, segment_BL)
  num = max(-(-(L - window) // stride), 0) + 1
  after = ((0, 0), (0, window + (num - 1) * stride - L))
  cut = lambda a: jnp.stack([a[:, i * stride : i * stride + window] for i in range(num)])
  ids = cut(jnp.pad(ids_BL, after, constant_values=config.pad_id))
  segment = jnp.ones_like(ids_BL) if segment_BL is None else segment_BL
  score = strided_nll if strided else byte_nll
  nll = jax.lax.map(lambda w: score(params, config, *w), (ids, cut(jnp.pad(segment, after))))
  rest = jnp.moveaxis(nll[1:, :, window - stride :], 0, 1).reshape(B, -1)
  return jnp.concatenate([nll[0], rest], axis=1)[:, :L]
