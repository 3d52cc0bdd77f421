"""Attention behind one function, with a backend for each kind of machine.

Axes: B batch, L queries, S keys, N query heads, K key/value heads (K divides N), G = N / K, H head
width.

Every backend lowers the mask specification (`core.masks`) or refuses it with what it would need:

  xla      everything, everywhere; builds [B, N, L, S], and again for the gradient
  chunked  everything, everywhere; memory grows with L, not L * S
           (online softmax, arXiv:1805.02867, 2112.05682)
  cudnn    NVIDIA GPUs in 16 bits
  splash   TPUs; causal, reach, window, full, segments
  auto     splash where the program is for a TPU and splash can do it; else xla, and chunked for
           maps of more than 2^24 entries

What a program is for, the mesh in force says, so that one compiled ahead of time for a TPU on a
machine without any is the one that will run there.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import axes, masks

BACKENDS = ('xla', 'chunked', 'cudnn', 'splash', 'auto')
# The name under which a rematerialisation policy finds what a kernel keeps for its gradient.
KERNEL_OUTPUT = 'attention_kernel_output'
_LARGE = 2**24  # entries of a map [L, S] above which 'auto' does not build it
# Rows and columns of splash's blocks: the larger of these that divides the length. Its own default
# of 128 leaves the matrix unit waiting; MaxText runs with 512.
_SPLASH_BLOCKS = (512, 384, 256, 128)
_HIDDEN = float(jnp.finfo(jnp.float32).min)


def attention(
  q_BLNH: jax.Array,
  k_BSKH: jax.Array,
  v_BSKH: jax.Array,
  mask: masks.Mask,
  *,
  backend: str = 'xla',
  scale: float | None = None,
  bias_NLS: jax.Array | None = None,
  chunk: int = 512,
) -> jax.Array:
  """softmax(q k^T * scale + bias) v over the keys that the mask allows; [B, L, N, H] in the dtype
  of v.

  A query that may see no key at all gets zeros.

  Args:
    q_BLNH, k_BSKH, v_BSKH: K may be a divisor of N (grouped-query heads, arXiv:2305.13245).
    mask: which keys a query may see.
    backend: one of BACKENDS.
    scale: of the products; None is H^-0.5.
    bias_NLS: added to the scaled products (T5's position bias); 'xla' and 'chunked' only.
    chunk: block length of the chunked backend.

  Raises:
    ConfigError: an unknown backend, or one that cannot do this here; the message says what would be
      needed.
  """
  if backend not in BACKENDS:
    raise ConfigError(f'attention_backend is {backend!r}, expected one of {", ".join(BACKENDS)}')
  if q_BLNH.shape[2] % k_BSKH.shape[2]:
    raise ConfigError(
      f'num_heads {q_BLNH.shape[2]} is not a multiple of num_kv_heads {k_BSKH.shape[2]}'
    )
  scale = q_BLNH.shape[-1] ** -0.5 if scale is None else scale
  if backend == 'auto':
    backend = _chosen(q_BLNH, k_BSKH, mask, bias_NLS)
  if backend == 'xla':
    # Kept for the gradient are queries, keys and values; the maps [B, N, L, S] are made again.
    attend = jax.checkpoint(_xla, prevent_cse=False, static_argnums=4)
    return attend(q_BLNH, k_BSKH, v_BSKH, mask, scale, bias_NLS)
  if backend == 'chunked':
    return _chunked(q_BLNH, k_BSKH, v_BSKH, mask, scale, bias_NLS, chunk)
  if bias_NLS is not None:
    raise _refusal(backend, 'it takes no position bias', "use 'xla' or 'chunked'")
  lower = _cudnn if backend == 'cudnn' else _splash
  return lower(q_BLNH, k_BSKH, v_BSKH, mask, scale)


def target_platform() -> str:
  """What the program being traced is for: the mesh's devices, without a mesh jax's default."""
  device = jax.sharding.get_abstract_mesh().abstract_device
  return getattr(device, 'platform', None) or jax.default_backend()


def _chosen(q_BLNH, k_BSKH, mask, bias_NLS) -> str:
  L, S = q_BLNH.shape[1], k_BSKH.shape[1]
  if target_platform() == 'tpu' and bias_NLS is None and not (L % 128 or S % 128):
    if _splash_can_express(mask):
      return 'splash'
  return 'chunked' if L * S > _LARGE else 'xla'


def _refusal(backend: str, why: str, instead: str) -> ConfigError:
  return ConfigError(f'attention_backend is {backend!r}, but {why}; {instead}')


def _grouped(q_BLNH: jax.Array, num_kv_heads: int) -> jax.Array:
  B, L, N, H = q_BLNH.shape
  return q_BLNH.reshape(B, L, num_kv_heads, N // num_kv_heads, H)


def _logits(q_BLKGH, k_BSKH, scale, bias_KGLS) -> jax.Array:
  logits_BKGLS = jnp.einsum(
    'BLKGH,BSKH->BKGLS', q_BLKGH, k_BSKH, preferred_element_type=jnp.float32
  )
  logits_BKGLS = logits_BKGLS * scale
  return logits_BKGLS if bias_KGLS is None else logits_BKGLS + bias_KGLS


def _xla(q_BLNH, k_BSKH, v_BSKH, mask, scale, bias_NLS):
  (_, L, N, _), (_, S, K, _) = q_BLNH.shape, k_BSKH.shape
  bias = None if bias_NLS is None else bias_NLS.reshape(K, N // K, L, S)
  logits_BKGLS = _logits(_grouped(q_BLNH, K), k_BSKH, scale, bias)
  allowed = mask.dense(L, S)[:, None, None]
  weights = jax.nn.softmax(jnp.where(allowed, logits_BKGLS, _HIDDEN), axis=-1)
  if not (mask.sees_itself and L == S):
    weights = jnp.where(allowed, weights, 0.0)
  out = jnp.einsum('BKGLS,BSKH->BLKGH', weights.astype(v_BSKH.dtype), v_BSKH)
  return out.reshape(q_BLNH.shape)


def _chunked(q_BLNH, k_BSKH, v_BSKH, mask, scale, bias_NLS, chunk):
  (B, L, N, H), (_, S, K, _) = q_BLNH.shape, k_BSKH.shape
  rows, columns = min(chunk, L), min(chunk, S)
  q = _blocks(_grouped(q_BLNH, K), rows)
  k, v = _blocks(k_BSKH, columns), _blocks(v_BSKH, columns)
  bias = None
  if bias_NLS is not None:
    pad = ((0, 0), (0, -L % rows), (0, -S % columns))
    bias = jnp.pad(bias_NLS.astype(jnp.float32), pad).reshape(K, N // K, len(q) * rows, -1)

  # Both levels are rematerialised: the backward pass holds one block of queries at a time and
  # rebuilds each block of logits, so that no array grows with L * S.
  @jax.checkpoint
  def query_block(index, q_BLKGH):
    query_L = index * rows + jnp.arange(rows)
    step = functools.partial(
      _online_step, q_BLKGH, query_L, mask=mask, scale=scale, bias=bias, num_keys=S
    )
    shape = (B, K, N // K, rows)
    carry = (jnp.full(shape, -jnp.inf), jnp.zeros(shape), jnp.zeros((*shape, H)))
    (_, total, out), _ = jax.lax.scan(jax.checkpoint(step), carry, (jnp.arange(len(k)), k, v))
    return jnp.where(total > 0, 1.0 / jnp.maximum(total, 1e-37), 0.0)[..., None] * out

  blocks = jax.lax.map(lambda block: query_block(*block), (jnp.arange(len(q)), q))
  out = jnp.moveaxis(blocks, 0, 3).reshape(B, N, len(q) * rows, H)[:, :, :L]
  return jnp.swapaxes(out, 1, 2).astype(v_BSKH.dtype)


def _blocks(x_BL: jax.Array, size: int) -> jax.Array:
  """[blocks, B, size, ...], the last one padded with zeros."""
  B, L, *rest = x_BL.shape
  padded = jnp.pad(x_BL, [(0, 0), (0, -L % size)] + [(0, 0)] * len(rest))
  return jnp.moveaxis(padded.reshape(B, -1, size, *rest), 1, 0)


def _online_step(q_BLKGH, query_L, carry, block, *, mask, scale, bias, num_keys):
  """One block of keys: running maximum, running sum of exponentials, running output."""
  top, total, out = carry
  index, k_BSKH, v_BSKH = block
  size = k_BSKH.shape[1]
  key_S = index * size + jnp.arange(size)
  if bias is not None:
    starts = (0, 0, query_L[0], index * size)
    bias = jax.lax.dynamic_slice(bias, starts, (*bias.shape[:2], len(query_L), size))
  logits = _logits(q_BLKGH, k_BSKH, scale, bias)
  allowed = mask.allowed(query_L, key_S) & (key_S < num_keys)
  logits = jnp.where(allowed[:, None, None], logits, -jnp.inf)
  new_top = jnp.maximum(top, jax.lax.stop_gradient(jnp.max(logits, axis=-1)))
  # While a query has seen no key its maximum is -inf, and -inf - -inf would be NaN.
  finite = jnp.where(jnp.isfinite(new_top), new_top, 0.0)
  weights = jnp.exp(logits - finite[..., None])
  shrink = jnp.exp(top - finite)
  total = total * shrink + jnp.sum(weights, axis=-1)
  values = jnp.einsum(
    'BKGLS,BSKH->BKGLH',
    weights.astype(v_BSKH.dtype),
    v_BSKH,
    preferred_element_type=jnp.float32,
  )
  return (new_top, total, out * shrink[..., None] + values), None


def _cudnn(q_BLNH, k_BSKH, v_BSKH, mask, scale):
  if jax.default_backend() != 'gpu':
    raise _refusal(
      'cudnn',
      f'it needs an NVIDIA GPU and this is {jax.default_backend()!r}',
      "use 'xla' or 'chunked'",
    )
  if q_BLNH.dtype not in (jnp.bfloat16, jnp.float16):
    raise _refusal(
      'cudnn',
      f'it computes in 16 bits and the dtype is {q_BLNH.dtype}',
      "set dtype='bfloat16' or use 'xla'",
    )
  H = q_BLNH.shape[-1]
  if H % 8 or H > 256:
    raise _refusal('cudnn', f'head_dim {H} is not a multiple of 8 up to 256', "use 'xla'")
  attend = functools.partial(
    jax.nn.dot_product_attention, q_BLNH, k_BSKH, v_BSKH, scale=scale, implementation='cudnn'
  )
  if isinstance(mask, masks.Full):
    return attend()
  if isinstance(mask, masks.Causal):
    return attend(is_causal=True)
  if isinstance(mask, masks.Window):
    return attend(is_causal=True, local_window_size=(mask.size - 1, 0))
  if not mask.sees_itself:
    raise _refusal(
      'cudnn',
      f'{type(mask).__name__} may hide every key from a query, where cuDNN gives no zeros',
      "combine it with Causal() or use 'xla'",
    )
  return attend(mask=mask.dense(q_BLNH.shape[1], k_BSKH.shape[1])[:, None])


def _splash(q_BLNH, k_BSKH, v_BSKH, mask, scale, interpret=False):
  if target_platform() != 'tpu' and not interpret:
    raise _refusal(
      'splash',
      f'it needs a TPU and this is {target_platform()!r}',
      "use 'xla' or 'chunked', or 'auto'",
    )
  try:
    from jax.experimental.pallas.ops.tpu import splash_attention as splash
  except ImportError as error:
    raise _refusal(
      'splash',
      f'jax {jax.__version__} does not have jax.experimental.pallas.ops.tpu.splash_attention',
      "use 'xla' or 'chunked', or a jax that has it",
    ) from error
  L, S = q_BLNH.shape[1], k_BSKH.shape[1]
  if L % 128 or S % 128:
    raise _refusal(
      'splash', f'it needs lengths in multiples of 128 and these are {L} and {S}', "use 'xla'"
    )
  shape_mask, segments, reach_BL = _splash_mask(splash, mask, L, S)
  attend = functools.partial(_splash_kernel, splash, shape_mask, interpret)
  # The compiler cannot split a kernel over devices: each runs it on its own rows and heads.
  names = (axes.BATCH, axes.LENGTH, axes.ACT_HEADS, None)
  specs = [axes.spec(x.shape, names) for x in (q_BLNH, k_BSKH)]
  if specs[0] != specs[1]:  # fewer key heads than devices that split the heads
    group = q_BLNH.shape[2] // k_BSKH.shape[2]
    k_BSKH, v_BSKH = (jnp.repeat(x, group, axis=2) for x in (k_BSKH, v_BSKH))
  rows = axes.spec(q_BLNH.shape[:2], names[:2])
  operands = (q_BLNH * scale, k_BSKH, v_BSKH, segments, reach_BL)
  by_row = tuple(None if x is None else rows for x in (segments, reach_BL))
  in_specs = (specs[0], specs[0], specs[0], *by_row)
  return axes.on_each_device(attend, in_specs, specs[0])(*operands)


def _splash_kernel(splash, shape_mask, interpret, q_BLNH, k_BSKH, v_BSKH, segments, reach_BL):
  """Scaled queries, keys and values of one device's rows and heads; [B, L, N, H]."""
  (_, L, N, _), (_, S, K, _) = q_BLNH.shape, k_BSKH.shape
  head_mask = splash.MultiHeadMask([shape_mask] * (N if K == N else N // K))
  is_plain = K == N
  make = splash.make_splash_mha_single_device if is_plain else splash.make_splash_mqa_single_device
  kernel = make(
    head_mask, block_sizes=_splash_sizes(splash, L, S), interpret=interpret,
    residual_checkpoint_name=KERNEL_OUTPUT,
  )  # fmt: skip
  if segments is not None:
    segments = splash.SegmentIds(*segments)

  def row(q, k, v, segments, reach_L):
    attend = kernel if reach_L is None else _reaching(kernel, reach_L)
    return (
      attend(q, k, v, segments)
      if is_plain
      else jax.vmap(attend, (0, 0, 0, None))(q, k, v, segments)
    )

  k, v = (jnp.swapaxes(x, 1, 2) for x in (k_BSKH, v_BSKH))
  if is_plain:
    q = jnp.swapaxes(q_BLNH, 1, 2)
    return jnp.swapaxes(jax.vmap(row)(q, k, v, segments, reach_BL), 1, 2)
  q = jnp.einsum('BLKGH->BKGLH', _grouped(q_BLNH, K))
  out = jax.vmap(row)(q, k, v, segments, reach_BL)
  return jnp.einsum('BKGLH->BLKGH', out).reshape(q_BLNH.shape)


def _reaching(kernel, reach_L):
  """A causal kernel whose queries stand elsewhere: the kernel compares `place + offset >= key`.

  Blocks that it would take whole are looked at entry by entry: which are whole depends on the row.
  """
  (fwd, dq, dkv), options = kernel.tree_flatten()

  def moved(info):
    if info is None:
      return None
    block_mask = info.block_mask
    if block_mask is not None:
      block_mask = jnp.minimum(block_mask, 1).astype(block_mask.dtype)
    return info._replace(block_mask=block_mask, q_sequence=reach_L)

  return type(kernel).tree_unflatten(options, (moved(fwd), moved(dq), moved(dkv)))


def _splash_sizes(splash, L: int, S: int):
  rows, columns = (next(b for b in _SPLASH_BLOCKS if n % b == 0) for n in (L, S))
  return splash.BlockSizes(
    block_q=rows, block_kv=columns, block_kv_compute=columns, block_q_dkv=rows,
    block_kv_dkv=columns, block_kv_dkv_compute=columns, block_q_dq=rows, block_kv_dq=columns,
  )  # fmt: skip


def _splash_can_express(mask: masks.Mask) -> bool:
  if isinstance(mask, masks.Both) and isinstance(mask.second, masks.Segments):
    mask = mask.first
  return isinstance(mask, (masks.Segments, masks.Full, masks.Causal, masks.Window, masks.Reach))


def _splash_mask(splash, mask: masks.Mask, L: int, S: int):
  """(mask object, (ids of queries, of keys) or None, places of queries [B, L] or None)."""
  if isinstance(mask, masks.Both) and isinstance(mask.second, masks.Segments):
    shape_mask, segments, reach_BL = _splash_mask(splash, mask.first, L, S)
    if segments is None:
      return shape_mask, _splash_segments(mask.second), reach_BL
  if isinstance(mask, masks.Segments):
    return splash.FullMask((L, S)), _splash_segments(mask), None
  if isinstance(mask, masks.Full):
    return splash.FullMask((L, S)), None, None
  if isinstance(mask, masks.Causal):
    return splash.CausalMask((L, S)), None, None
  if isinstance(mask, masks.Window):
    return splash.LocalMask((L, S), window_size=(mask.size - 1, 0), offset=0), None, None
  if isinstance(mask, masks.Reach):
    # Of the blocks that some query may reach each is computed; within them the last key decides.
    place_L = jnp.arange(L, dtype=jnp.int32)
    last_BL = jnp.clip(mask.last_BL, place_L, place_L + mask.most)
    return splash.CausalMask((L, S), offset=mask.most), None, last_BL - mask.most
  raise _refusal(
    'splash',
    f'it cannot express {mask}: only Full, Causal, Reach, Window, and each of them & Segments',
    "use 'chunked'",
  )


def _splash_segments(mask: masks.Segments):
  return mask.query_BL, mask.query_BL if mask.key_BS is None else mask.key_BS
