"""A token, or a few, at a time through a Stack: a layout made once, a cache, an unrolled step.

Few rows make decoding a matter of reading weights. Blocks are unrolled, because a scan over stacked
weights copies each slice at every token, and activations are feature-major, `W[out, in] @ h[in,
rows]`, which streams weights two to three times as fast as `h @ W` on a CPU. `decode_layout` makes
these parameters once, outside the compiled loop. Tested equal to `transformer.Stack`.

Axes: R rows (examples, twice with guidance), D width, N heads, K key/value heads, G = N / K, H head
width, F hidden, S positions in the cache.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmm.core import axes, layers, masks, positions
from jaxmm.core.transformer import GATED, PLAIN, Context, StackConfig, unstacked

# Of the cache's keys and values, both [R, K, S, H].
CACHE_AXES = (axes.BATCH, axes.ACT_HEADS, axes.LENGTH, None)
Cache = tuple[tuple[jax.Array, jax.Array], ...]
Layout = dict[str, Any]

_HIDDEN = float(jnp.finfo(jnp.float32).min)
# From how many positions on one row's heads are taken one by one (on a CPU).
_LONG = 1024


def decode_layout(params: Mapping[str, Any], config: StackConfig) -> Layout:
  """The Stack's parameters for `decode_step`: one dict a block, matrices [out, in] in config.dtype.

  Queries, keys and values are one matrix, gate and up another. Call it once, under jit, outside the
  loop.
  """
  blocks = [_block_layout(p, config) for p in unstacked(params, config)]
  final = _columns(params['final_norm']) if config.final_norm else None
  return {'blocks': blocks, 'final_norm': final}


def _block_layout(params: Mapping[str, Any], config: StackConfig) -> Layout:
  attn, mlp = params['attention'], params['mlp']
  parts = ('gate', 'up') if config.mlp in GATED else ('up',)
  out = {
    'attention_norm': _columns(params['attention_norm']),
    'mlp_norm': _columns(params['mlp_norm']),
    'qkv': _fused([attn[n] for n in ('query', 'key', 'value')], config, (axes.HEADS, axes.EMBED)),
    'out': _matrix(attn['out'], config, 2, (axes.EMBED, axes.HEADS)),
    'up': _fused([mlp[n] for n in parts], config, (axes.MLP, axes.EMBED)),
    'down': _matrix(mlp['down'], config, 1, (axes.EMBED, axes.MLP)),
  } | {n: attn[n]['scale'] for n in ('query_norm', 'key_norm') if n in attn}
  if 'cross' in params:
    cross = params['cross']
    out['cross_norm'] = _columns(params['cross_norm'])
    out['cross'] = {
      'query': _matrix(cross['query'], config, 1, (axes.HEADS, axes.EMBED)),
      'out': _matrix(cross['out'], config, 2, (axes.EMBED, axes.HEADS)),
    } | {n: cross[n]['scale'] for n in ('query_norm',) if n in cross}
  return out


def _columns(norm: Mapping[str, jax.Array]) -> Layout:
  return {name: value[:, None] for name, value in norm.items()}


def _matrix(dense: Mapping[str, Any], config: StackConfig, num_in: int, names) -> Layout:
  """{'kernel' [out, in], 'bias' [out, 1]} of a Dense whose first `num_in` axes are inputs."""
  kernel = dense['kernel']
  inputs = 1
  for size in kernel.shape[:num_in]:
    inputs *= size
  out = {'kernel': axes.constrain(kernel.reshape(inputs, -1).T.astype(config.dtype), *names)}
  if 'bias' in dense:
    out['bias'] = dense['bias'].reshape(-1, 1).astype(config.dtype)
  return out


def _fused(denses, config: StackConfig, names) -> Layout:
  parts = [_matrix(d, config, 1, names) for d in denses]
  return {name: jnp.concatenate([p[name] for p in parts]) for name in parts[0]}


def empty_cache(config: StackConfig, rows: int, length: int) -> Cache:
  """A cache of zeros for `length` positions: (keys, values) [R, K, S, H] a block."""
  shape = (rows, config.kv_heads, length, config.head_width)
  zeros = lambda: axes.constrain(jnp.zeros(shape, config.dtype), *CACHE_AXES)
  return tuple((zeros(), zeros()) for _ in range(config.depth))


def grown_cache(cache: Cache, length: int) -> Cache:
  """The cache with room for `length` positions (at least as many as now)."""
  more = length - num_positions(cache)
  if not more:
    return cache
  width = ((0, 0), (0, 0), (0, more), (0, 0))
  grown = lambda a: axes.constrain(jnp.pad(a, width), *CACHE_AXES)
  return tuple((grown(keys), grown(values)) for keys, values in cache)


def num_positions(cache: Cache) -> int:
  """How many positions a cache has room for."""
  return cache[0][1].shape[2]


def cache_of(kv: tuple[jax.Array, jax.Array], config: StackConfig, length: int) -> Cache:
  """The cache after a prompt, from the keys and values of `Stack(return_kv=True)`."""
  # From [depth, R, S, K, H].
  keys, values = (jnp.swapaxes(a.astype(config.dtype), 2, 3) for a in kv)
  return grown_cache(tuple(zip(keys, values)), length)


def context_cache(
  params: Mapping[str, Any], config: StackConfig, context: Context
) -> tuple[tuple[jax.Array, jax.Array] | None, ...]:
  """Keys and values of the context, which no token changes; None where a block is not cross."""
  out = []
  for kind, block in zip(config.kinds(), unstacked(params, config)):
    if kind != 'cross':
      out.append(None)
      continue
    tokens = context.tokens_BSD.astype(config.dtype)
    k, v = (_projected(tokens, block['cross'][name], config) for name in ('key', 'value'))
    if 'key_norm' in block['cross']:
      k = layers.rms_norm(k, block['cross']['key_norm']['scale'], config.norm_eps)
    out.append((k, v))
  return tuple(out)


def _projected(tokens_RSD, dense, config: StackConfig) -> jax.Array:
  out = jnp.einsum('RSD,DKH->RKSH', tokens_RSD, dense['kernel'].astype(config.dtype))
  return out if 'bias' not in dense else out + dense['bias'].astype(config.dtype)[:, None]


def decode_step(
  layout: Layout,
  config: StackConfig,
  x_DR: jax.Array,
  cache: Cache,
  position: jax.Array | int,
  *,
  rotary: positions.Rotary | None = None,
  mask: masks.Mask | None = None,
  context: tuple[Any, ...] | None = None,
  context_valid_RS: jax.Array | None = None,
) -> tuple[jax.Array, Cache]:
  """Runs one token of every row through all blocks.

  Args:
    layout: from `decode_layout`.
    config: the Stack's.
    x_DR: embeddings of the token at `position`, [D, R].
    cache: with room for `position`; positions up to it are filled.
    position: where the token stands; may be traced.
    rotary: tables of that one position, [1, H/2] or [R, 1, H/2] (`Rotary.at`).
    mask: as in the Stack; None is causal. Ids in it cover all positions.
    context: from `context_cache`, where there are cross blocks.
    context_valid_RS: which context tokens exist; None is all.

  Returns:
    hidden_DR after the final norm, and the cache with this position filled.
  """
  x_DR = x_DR.astype(config.dtype)
  num_keys = num_positions(cache)
  key_S = jnp.arange(num_keys)
  allowed = key_S[None] <= position
  if mask is not None:
    allowed = allowed & mask.allowed(jnp.asarray(position)[None], key_S)[:, 0]

  def attend(i, block, h_DR):
    return _self_attention(block, config, h_DR, cache[i], position, allowed, rotary)

  def attend_context(i, block, h_DR):
    if context is None:
      raise ValueError("a block of kind 'cross' needs a context; pass context_cache(...)")
    return _cross_attention(block, config, h_DR, context[i], context_valid_RS)

  return _through_blocks(layout, config, x_DR, attend, attend_context)


def decode_tokens(
  layout: Layout,
  config: StackConfig,
  x_RLD: jax.Array,
  cache: Cache,
  position_R: jax.Array,
  *,
  rotary: positions.Rotary | None = None,
  two_way: bool = False,
) -> tuple[jax.Array, Cache]:
  """Runs L tokens of every row, from a position of its own, through all blocks.

  The cache stays as it is, so that the same positions can be run again (an image that is denoised);
  `with_tokens` puts the tokens into it. What stands in a row's cache from its position on is not
  seen: it need not be empty.

  Args:
    layout: from `decode_layout`; of self blocks only.
    config: the Stack's.
    x_RLD: embeddings of the tokens at `position_R` and after.
    cache: with the positions before `position_R` filled.
    position_R: where each row's first token stands; may be traced.
    rotary: tables of those positions, [R, L, H/2].
    two_way: the L tokens see one another, as the patches of an image; else causal.

  Returns:
    hidden_RLD after the final norm, and the tokens' keys and values [R, K, L, H], one pair a block.
  """
  R, L, D = x_RLD.shape
  own_LL = jnp.ones((L, L), bool) if two_way else jnp.tril(jnp.ones((L, L), bool))

  def attend(i, block, h_DM):
    return _tokens_attention(block, config, h_DM, cache[i], position_R, own_LL, rotary)

  # Columns are rows of the batch with their tokens.
  x_DM = x_RLD.astype(config.dtype).reshape(R * L, D).T
  x_DM, kv = _through_blocks(layout, config, x_DM, attend)
  return x_DM.T.reshape(R, L, D), kv


def with_tokens(cache: Cache, kv: Cache, position_R: jax.Array) -> Cache:
  """The cache with the keys and values of `decode_tokens`, each row's at its own position.

  It needs room for L positions from the last `position_R` on: else a row's are put further to the
  front, where they do not belong.
  """
  kv = jax.tree.map(lambda old, new: new.astype(old.dtype), cache, kv)
  put = jax.lax.dynamic_update_slice

  def one_row(row, cache):
    at = (row, 0, position_R[row], 0)
    new = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, row, 1), kv)
    return jax.tree.map(lambda old, new: put(old, new, at), cache, new)

  # On a CPU a scatter, which all rows at once are, copies the whole cache.
  by_row = lambda cache: jax.lax.fori_loop(0, position_R.shape[0], one_row, cache)
  all_rows = jax.vmap(lambda old, new, at: put(old, new, (0, at, 0)))
  at_once = lambda cache: jax.tree.map(lambda old, new: all_rows(old, new, position_R), cache, kv)
  filled = jax.lax.platform_dependent(cache, cpu=by_row, default=at_once)
  return jax.tree.map(lambda a: axes.constrain(a, *CACHE_AXES), filled)


def _through_blocks(layout, config: StackConfig, x_DR, attend, attend_context=None):
  """All blocks over columns; `attend(i, block, h)` gives what attention adds and the cache it
  filled.
  """
  filled = []
  for i, block in enumerate(layout['blocks']):
    h = _read(x_DR, block['attention_norm'], config)
    y, kv = attend(i, block, h)
    filled.append(kv)
    x_DR = _added(x_DR, y, block['attention_norm'], config)
    if 'cross' in block:
      h = _read(x_DR, block['cross_norm'], config)
      y = attend_context(i, block['cross'], h)
      x_DR = _added(x_DR, y, block['cross_norm'], config)
    h = _linear(block['up'], _read(x_DR, block['mlp_norm'], config))
    if config.mlp in GATED:
      gate, up = jnp.split(h, 2)
      h = GATED[config.mlp](gate) * up
    else:
      h = PLAIN[config.mlp](h)
    h = axes.constrain(h, axes.ACT_MLP, axes.BATCH)
    x_DR = _added(x_DR, _linear(block['down'], h), block['mlp_norm'], config)
    x_DR = axes.constrain(x_DR, axes.ACT_EMBED, axes.BATCH)
  if layout['final_norm'] is not None:
    x_DR = _normed(x_DR, layout['final_norm'], config)
  return x_DR, tuple(filled)


def _normed(x_DR, norm: Layout, config: StackConfig):
  if config.norm == 'rms':
    return layers.rms_norm(x_DR, norm['scale'], config.norm_eps, axis=0)
  return layers.layer_norm(x_DR, norm['scale'], norm.get('bias'), config.norm_eps, axis=0)


def _read(x_DR, norm: Layout, config: StackConfig):
  """What attention or the MLP reads of the residual stream."""
  return _normed(x_DR, norm, config) if config.norm_place == 'pre' else x_DR


def _added(x_DR, y_DR, norm: Layout, config: StackConfig):
  """The residual stream with what was computed from it."""
  return x_DR + y_DR if config.norm_place == 'pre' else _normed(x_DR + y_DR, norm, config)


def _linear(dense: Layout, x: jax.Array) -> jax.Array:
  out = dense['kernel'] @ x
  return out if 'bias' not in dense else out + dense['bias']


def _self_attention(block, config: StackConfig, h_DR, kv, position, allowed_RS, rotary):
  N, K, H, R = config.num_heads, config.kv_heads, config.head_width, h_DR.shape[1]
  heads = _linear(block['qkv'], h_DR).reshape(N + 2 * K, H, R)
  q, k, v = heads[:N], heads[N : N + K], heads[N + K :]
  if config.qk_norm:
    q = layers.rms_norm(q, block['query_norm'][:, None], config.norm_eps, axis=1)
    k = layers.rms_norm(k, block['key_norm'][:, None], config.norm_eps, axis=1)
  if rotary is not None:
    cos, sin = (jnp.atleast_2d(jnp.squeeze(t, -2)).T for t in (rotary.cos, rotary.sin))
    q = positions.rotated(q, cos, sin, config.rotary, axis=1)
    k = positions.rotated(k, cos, sin, config.rotary, axis=1)
  keys, values = (
    axes.constrain(jax.lax.dynamic_update_slice(old, new, (0, 0, position, 0)), *CACHE_AXES)
    for old, new in ((kv[0], _as_entry(k)), (kv[1], _as_entry(v)))
  )
  return _attended(block['out'], config, q, keys, values, allowed_RS), (keys, values)


def _as_entry(x_KHR):
  return jnp.moveaxis(x_KHR, 2, 0)[:, :, None]


def _tokens_attention(block, config: StackConfig, h_DM, kv, position_R, own_LL, rotary):
  N, K, H = config.num_heads, config.kv_heads, config.head_width
  R, L = position_R.shape[0], own_LL.shape[0]
  heads = _linear(block['qkv'], h_DM).reshape(N + 2 * K, H, R, L)
  q, k, v = heads[:N], heads[N : N + K], heads[N + K :]
  if config.qk_norm:
    scales = (block[name][:, None, None] for name in ('query_norm', 'key_norm'))
    q, k = (layers.rms_norm(a, s, config.norm_eps, axis=1) for a, s in zip((q, k), scales))
  if rotary is not None:
    cos, sin = (jnp.moveaxis(table, -1, 0) for table in (rotary.cos, rotary.sin))
    q, k = (positions.rotated(a, cos, sin, config.rotary, axis=1) for a in (q, k))
  q_RKGLH = jnp.einsum('KGHRL->RKGLH', q.reshape(K, N // K, H, R, L))
  own = tuple(jnp.moveaxis(a, (2, 3), (0, 2)) for a in (k, v))

  scale = H**-0.5 if config.attention_scale is None else config.attention_scale

  def attended(num):
    """To the first `num` positions of the cache and the tokens themselves."""
    before_RS = jnp.arange(num) < position_R[:, None]
    cached = [a[:, :, :num] for a in kv]
    parts = ((*cached, before_RS[:, None, None, None]), (*own, own_LL))
    return _parts_attended(q_RKGLH, parts, scale).astype(config.dtype)

  lengths = _lengths(num_positions((kv,)))
  enough = jnp.searchsorted(jnp.array(lengths), jnp.max(position_R))
  out_RKGLH = jax.lax.switch(enough, [functools.partial(attended, num) for num in lengths])
  out_KGHRL = jnp.einsum('RKGLH->KGHRL', out_RKGLH)
  return _linear(block['out'], out_KGHRL.reshape(N * H, R * L)), own


def _lengths(length: int) -> list[int]:
  """How much of a cache may be read: 64, 128, 256, ... positions, and all."""
  out = [min(64, length)]
  while out[-1] < length:
    out.append(min(2 * out[-1], length))
  return out


def _parts_attended(q_RKGLH, parts, scale) -> jax.Array:
  """Attention to the keys of all parts (keys, values, allowed), which are not copied; float32."""
  product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
  logits = [
    jnp.where(allowed, product('RKGLH,RKSH->RKGLS', q_RKGLH, keys) * scale, _HIDDEN)
    for keys, _, allowed in parts
  ]
  tops = [jnp.max(part, axis=-1, keepdims=True) for part in logits]
  weights = [jnp.exp(part - functools.reduce(jnp.maximum, tops)) for part in logits]
  # Divided by the sum after the products, which are smaller arrays.
  total = sum(jnp.sum(part, axis=-1, keepdims=True) for part in weights)
  out = sum(
    product('RKGLS,RKSH->RKGLH', part.astype(values.dtype), values)
    for part, (_, values, _) in zip(weights, parts)
  )
  return out / total


def _cross_attention(block, config: StackConfig, h_DR, kv, valid_RS):
  N, H, R = config.num_heads, config.head_width, h_DR.shape[1]
  q = _linear(block['query'], h_DR).reshape(N, H, R)
  if config.qk_norm:
    q = layers.rms_norm(q, block['query_norm'][:, None], config.norm_eps, axis=1)
  allowed = jnp.ones((1, kv[1].shape[2]), bool) if valid_RS is None else valid_RS
  return _attended(block['out'], config, q, *kv, allowed)


def _attended(out_matrix, config: StackConfig, q_NHR, keys_RKSH, values_RKSH, allowed_RS):
  (N, H, R), K = q_NHR.shape, config.kv_heads
  scale = H**-0.5 if config.attention_scale is None else config.attention_scale
  q_RKGH = jnp.moveaxis(q_NHR, 2, 0).reshape(R, K, N // K, H)
  logits = _of_heads('RKGH,RKSH->RKGS', q_RKGH, keys_RKSH, jnp.float32)
  allowed = allowed_RS[:, None, None]
  weights = jax.nn.softmax(jnp.where(allowed, logits * scale, _HIDDEN), axis=-1)
  weights = jnp.where(allowed, weights, 0.0).astype(values_RKSH.dtype)
  out = _of_heads('RKGS,RKSH->RKGH', weights, values_RKSH)
  return _linear(out_matrix, out.reshape(R, N * H).T)


def _of_heads(product: str, x: jax.Array, cached_RKSH: jax.Array, dtype=None) -> jax.Array:
  """An einsum with keys or values; both operands and the result begin with R, K."""
  at_once = functools.partial(jnp.einsum, product, preferred_element_type=dtype)
  if cached_RKSH.shape[0] > 1 or cached_RKSH.shape[2] < _LONG:
    return at_once(x, cached_RKSH)

  def by_head(x, cached):
    one = product.replace('RK', '')
    of_head = functools.partial(jnp.einsum, one, preferred_element_type=dtype)
    return jnp.stack([of_head(x[0, k], cached[0, k]) for k in range(cached.shape[1])])[None]

  # XLA on a CPU drops an axis of one row, makes the entry's update a part of the product, and then
  # copies the whole cache several times a token: five to eight times slower than by head.
  return jax.lax.platform_dependent(x, cached_RKSH, cpu=by_head, default=at_once)


def logits_of(head_VD: jax.Array, hidden_DR: jax.Array) -> jax.Array:
  """Logits of every row, float32 [R, V], from the head laid out like the other matrices."""
  # Without the barrier the transposition is folded into the product, which then reads the head ten
  # times slower.
  return jax.lax.optimization_barrier(head_VD @ hidden_DR).T.astype(jnp.float32)
