"""MEGABYTE's network: a Stack over patches of bytes, and one over the bytes of each patch.

Yu et al. 2023, arXiv:2305.07185, section 2. What the paper leaves open is chosen as follows.

  local positions     a table of P vectors (equation 4 has none; the authors say that there are)
  cross-patch         keys and values of the patch before; r is the caller's; the table stays
  convolutions        x + relu(conv(x)), channels kept, before positions are added
  final norms         one after each Stack, as in other pre-norm decoders

Axes: B batch, L bytes of a row, K patches of a row, P bytes of a patch, G = D_G width of a byte in
the global model, W = P * G global width, D local width, V vocabulary, R = B * K patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm.core import axes, layers, losses, masks, positions, transformer
from jaxmm.models.megabyte_config import CONV_SIZES, INIT_CUT, MegabyteConfig

# Sub-streams of an example's dropout key.
_GLOBAL, _LOCAL = 1, 2


def convolved(params: Mapping[str, Any], x_BLG: jax.Array, segment_BL: jax.Array | None = None):
  """The causal convolutions of the patch encoder, each added to what it reads: [B, L, G].

  Args:
    params: `kernel_3` [3, G, G] (first the weight of the byte itself, then of the one before it),
      `bias_3` [G], and the same for 5 and 7.
    x_BLG: embeddings of bytes.
    segment_BL: bytes of another segment count as zeros, as do those before the first; None is one
      segment.
  """
  for size in CONV_SIZES:
    kernel = params[f'kernel_{size}'].astype(x_BLG.dtype)
    out = layers.linear(x_BLG, kernel[0]) + params[f'bias_{size}'].astype(x_BLG.dtype)
    for back in range(1, min(size, x_BLG.shape[1])):
      before = jnp.pad(x_BLG[:, :-back], ((0, 0), (back, 0), (0, 0)))
      if segment_BL is not None:
        same = segment_BL[:, back:] == segment_BL[:, :-back]
        before = jnp.where(jnp.pad(same, ((0, 0), (back, 0)))[..., None], before, 0)
      out = out + layers.linear(before, kernel[back])
    x_BLG = x_BLG + nn.relu(out)
  return x_BLG


class ConvEncoder(nn.Module):
  """Parameters of `convolved`."""

  config: MegabyteConfig

  @nn.compact
  def __call__(self, x_BLG, segment_BL=None):
    width, init = self.config.byte_width, truncated_normal(self.config)
    params = {}
    for size in CONV_SIZES:
      kernel = axes.weight(init, None, axes.CONV_IN, axes.CONV_OUT)
      params[f'kernel_{size}'] = self.param(f'kernel_{size}', kernel, (size, width, width))
      zeros = axes.weight(nn.initializers.zeros_init(), axes.CONV_OUT)
      params[f'bias_{size}'] = self.param(f'bias_{size}', zeros, (width,))
    return convolved(params, x_BLG, segment_BL)


def truncated_normal(config: MegabyteConfig):
  """The initializer of every weight: a normal cut at two standard deviations."""
  return nn.initializers.truncated_normal(config.init_std, lower=-INIT_CUT, upper=INIT_CUT)


def local_rotary(config: MegabyteConfig) -> positions.Rotary | None:
  """Tables of the r + P positions that a patch sees; None without cross-patch attention."""
  if not config.cross_patch:
    return None
  place = jnp.arange(config.cross_patch + config.patch)
  return positions.rotary_1d(place, config.local_stack().head_width)


def seen_keys(config: MegabyteConfig, has_previous_R: jax.Array) -> masks.Segments:
  """Hides the r keys of the patch before where there is none; of r + P queries and keys."""
  place = jnp.arange(config.cross_patch + config.patch)
  exists = has_previous_R[:, None] | (place >= config.cross_patch)
  return masks.Segments(jnp.ones(exists.shape, jnp.int32), exists.astype(jnp.int32))


class Megabyte(nn.Module):
  """Logits of every byte given those before it."""

  config: MegabyteConfig

  def setup(self):
    cfg, init = self.config, truncated_normal(self.config)
    table = lambda name, *shape: self.param(name, axes.weight(init, axes.LENGTH, axes.EMBED), shape)
    rows = cfg.vocab_size + 1  # the last one is padding
    self.global_embedding = layers.Embedding(rows, cfg.byte_width, init)
    self.global_positions = table('global_positions', cfg.length, cfg.byte_width)
    if cfg.conv_encoder:
      self.conv_encoder = ConvEncoder(cfg)
    self.global_stack = transformer.Stack(cfg.global_stack())
    names = (None, axes.EMBED)
    self.to_local = layers.Dense((cfg.local_width,), names, initializer=init, dtype=cfg.dtype)
    self.local_embedding = layers.Embedding(rows, cfg.local_width, init)
    self.local_positions = table('local_positions', cfg.patch, cfg.local_width)
    if cfg.pads == 'learned':
      self.global_pad = table('global_pad', cfg.patch, cfg.byte_width)
      self.local_pad = self.param('local_pad', axes.weight(init, axes.EMBED), (cfg.local_width,))
    self.local_stack = transformer.Stack(cfg.local_stack())

  def __call__(
    self,
    ids_BL: jax.Array,
    segment_BL: jax.Array | None = None,
    dropout_key_B: jax.Array | None = None,
  ) -> jax.Array:
    """Logits, float32 [B, L, V]; those at position t are of byte t itself.

    Args:
      ids_BL: bytes, or `config.pad_id`; any other id gives NaN.
      segment_BL: which document each byte is of, each in one piece, 0 for padding; read with
        `separate_documents` only. None is one document a row.
      dropout_key_B: one key an example; None drops nothing.
    """
    seeds = None if dropout_key_B is None else layers.dropout_seeds(dropout_key_B)
    hidden_BKW, has_previous_BK = self.global_states(ids_BL, segment_BL, seeds)
    ids_BKP = ids_BL.reshape(*has_previous_BK.shape, -1)
    patch_BK = patch_numbers(has_previous_BK)
    hidden_BKPD = self.local_states(hidden_BKW, ids_BKP, has_previous_BK, patch_BK, seeds)
    hidden_BLD = hidden_BKPD.reshape(*ids_BL.shape, -1)
    table = self.local_embedding.table[: self.config.vocab_size]
    logits = jnp.einsum('BLD,VD->BLV', hidden_BLD, table.astype(hidden_BLD.dtype))
    return axes.constrain(logits.astype(jnp.float32), axes.BATCH, axes.LENGTH, axes.ACT_VOCAB)

  def global_states(self, ids_BL, segment_BL=None, seeds_B2=None, return_kv=False):
    """What the global Stack gives for each patch from those before it (steps 1 to 4).

    Returns:
      hidden_BKW; has_previous_BK, bool, whether a patch has one before it that it may see; then, if
      asked for, the Stack's keys and values.
    """
    cfg = self.config
    K, mask, segment_BK = cfg.num_patches(ids_BL.shape[1]), masks.Causal(), None
    has_previous_BK = jnp.broadcast_to(jnp.arange(K) > 0, (ids_BL.shape[0], K))
    if cfg.separate_documents and segment_BL is not None:
      segment_BK = segment_BL[:, :: cfg.patch]
      mask = mask & masks.Segments(segment_BK)
      same = segment_BK[:, 1:] == segment_BK[:, :-1]
      has_previous_BK = jnp.pad(same, ((0, 0), (1, 0)))
    x_BKW = self._global_inputs(ids_BL, segment_BL, segment_BK, has_previous_BK)
    x_BKW = axes.constrain(x_BKW.astype(cfg.dtype), axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
    out = self.global_stack(
      x_BKW,
      mask=mask,
      dropout_key_B=None if seeds_B2 is None else layers.fold_seeds(seeds_B2, _GLOBAL),
      return_kv=return_kv,
    )
    return (out[0], has_previous_BK, out[1]) if return_kv else (out, has_previous_BK)

  def _global_inputs(self, ids_BL, segment_BL, segment_BK, has_previous_BK):
    cfg = self.config
    (B, K), by_patch = has_previous_BK.shape, (-1, cfg.global_width)
    x_BLG = self.global_embedding(ids_BL)
    if cfg.conv_encoder:
      x_BLG = self.conv_encoder(x_BLG, segment_BL if cfg.separate_documents else None)
    x_BKW = x_BLG.reshape(B, K, -1)
    x_BKW = jnp.pad(x_BKW[:, :-1], ((0, 0), (1, 0), (0, 0)))
    table = self.global_positions.reshape(by_patch)
    if segment_BK is None:
      place_BKW = table[None, :K]
    else:
      place_BKW = table[positions.in_segments(segment_BK)]
    if cfg.pads == 'ids':
      pad = jnp.tile(self.global_embedding.table[cfg.pad_id], cfg.patch)
      return jnp.where(has_previous_BK[..., None], x_BKW, pad) + place_BKW
    # A position is that of the byte itself, which is of the patch before.
    if segment_BK is None:
      place_BKW = jnp.pad(place_BKW[:, :-1], ((0, 0), (1, 0), (0, 0)))
    else:
      place_BKW = table[jnp.maximum(positions.in_segments(segment_BK) - 1, 0)]
    pad = self.global_pad.reshape(by_patch)[0]
    return jnp.where(has_previous_BK[..., None], x_BKW + place_BKW, pad)

  def local_states(self, hidden_BKW, ids_BKP, has_previous_BK, patch_BK, seeds_B2=None):
    """What the head sees of each byte, [B, K, P, D] (steps 5 to 7).

    Args:
      hidden_BKW: of the global Stack.
      ids_BKP: the bytes themselves; each is predicted from those before it in its patch.
      has_previous_BK: whether the patch before, at k - 1, may be seen (cross-patch attention).
      patch_BK: the patches' numbers in their row, which dropout follows.
      seeds_B2: of the examples; None drops nothing.
    """
    cfg = self.config
    (B, K, P), D = ids_BKP.shape, cfg.local_width
    slots_RPD = self.to_local(hidden_BKW.reshape(B * K, P, cfg.byte_width))
    before_RPD = self.local_embedding(ids_BKP.reshape(B * K, P)[:, :-1])
    own_pad = cfg.pads == 'learned'
    pad = self.local_pad if own_pad else self.local_embedding.table[cfg.pad_id]
    pads = jnp.broadcast_to(pad.astype(before_RPD.dtype), (B * K, 1, D))
    x_RPD = jnp.concatenate([pads, before_RPD], axis=1) + self.local_positions
    x_RPD = axes.constrain(
      x_RPD.astype(cfg.dtype) + slots_RPD, axes.BATCH, axes.LENGTH, axes.ACT_EMBED
    )
    mask, overlap = masks.Causal(), None
    if cfg.cross_patch:
      overlap = transformer.Overlap(cfg.cross_patch, K)
      seen = seen_keys(cfg, has_previous_BK.reshape(-1))
      mask = masks.Shifted(mask & seen, cfg.cross_patch)
    seeds_R2 = None
    if seeds_B2 is not None:
      seeds_R2 = layers.fold_seeds(jnp.repeat(seeds_B2, K, axis=0), _LOCAL, patch_BK.reshape(-1))
    hidden_RPD = self.local_stack(
      x_RPD, mask=mask, rotary=local_rotary(cfg), dropout_key_B=seeds_R2, overlap=overlap
    )
    return hidden_RPD.reshape(B, K, P, D)


def patch_numbers(has_previous_BK: jax.Array) -> jax.Array:
  """0, 1, ... K - 1 in every row, int32 [B, K]."""
  return jax.lax.broadcasted_iota(jnp.int32, has_previous_BK.shape, 1)


def head_table(params: Mapping[str, Any], config: MegabyteConfig) -> jax.Array:
  """The output head, [V, D]: the local embedding without the row of padding."""
  return params['local_embedding']['table'][: config.vocab_size]


def byte_nll(
  params: Mapping[str, Any],
  config: MegabyteConfig,
  ids_BL: jax.Array,
  segment_BL: jax.Array | None = None,
  dropout_key_B: jax.Array | None = None,
) -> jax.Array:
  """-log p of every byte itself, the first too, nats, float32 [B, L]; NaN for what is no byte.

  The local model runs on `config.local_chunk` patches at a time. Arguments as of `Megabyte`.
  """
  model, (B, L) = Megabyte(config), ids_BL.shape
  apply = lambda *args, **named: model.apply({'params': params}, *args, **named)
  seeds = None if dropout_key_B is None else layers.dropout_seeds(dropout_key_B)
  hidden_BKW, has_previous_BK = apply(ids_BL, segment_BL, seeds, method='global_states')
  K = has_previous_BK.shape[1]
  table_VD = head_table(params, config)

  def nll(piece, skipped=0):
    hidden, ids, *rest = piece
    states = apply(hidden, ids, *rest, seeds, method='local_states')[:, skipped:]
    target_BL = ids[:, skipped:].reshape(B, -1)
    nll_BL = losses.projected_nll(states.reshape(B, -1, config.local_width), table_VD, target_BL)
    return jnp.where((target_BL >= 0) & (target_BL < config.vocab_size), nll_BL, jnp.nan)

  row = (hidden_BKW, ids_BL.reshape(B, K, -1), has_previous_BK, patch_numbers(has_previous_BK))
  chunk = config.local_chunk
  if not 0 < chunk < K:
    return nll(row)
  # Of the patches before a chunk, the first layer sees one, the second two, and so on.
  earlier = config.local_depth if config.cross_patch else 0
  pieces = jax.tree.map(lambda a: _pieces(a, chunk, earlier), row)
  out = jax.lax.map(jax.checkpoint(lambda piece: nll(piece, earlier)), pieces)
  return jnp.moveaxis(out, 0, 1).reshape(B, -1)[:, :L]


def _pieces(x_BK: jax.Array, chunk: int, earlier: int) -> jax.Array:
  """[pieces, B, earlier + chunk, ...]: consecutive chunks, each with what stands before it."""
  (B, K), rest = x_BK.shape[:2], x_BK.shape[2:]
  num, more = math.ceil(K / chunk), [(0, 0)] * len(rest)
  x = jnp.pad(x_BK, [(0, 0), (0, num * chunk - K), *more]).reshape(B, num, chunk, *rest)
  before = jnp.pad(x[:, :-1, chunk - earlier :], [(0, 0), (1, 0), (0, 0), *more])
  return jnp.moveaxis(jnp.concatenate([before, x], axis=2), 1, 0)
