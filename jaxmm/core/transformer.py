"""The one transformer: a Stack of blocks, scanned over depth. It knows no vocabulary.

Axes: B batch, L positions, S positions of the context, D model width, N heads, K key/value heads, H
head width, F hidden width, T depth. Parameters of the blocks have a leading axis of groups (depth /
period of the pattern).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax.ad_checkpoint import checkpoint_name

from jaxmm.config import ConfigError
from jaxmm.core import attention, axes, layers, masks, positions

KINDS = ('self', 'cross')
GATED = {'swiglu': nn.silu, 'geglu': nn.gelu}
PLAIN = {
  'gelu': lambda x: nn.gelu(x, approximate=False),
  'gelu_tanh': nn.gelu,
  'relu': nn.relu,
  'silu': nn.silu,
}
REMAT = ('none', 'block', 'narrow', 'dots')
# What 'narrow' keeps of a block: matrix products as wide as the stream.
_NARROW = ('query', 'key', 'value', 'attention_out', 'mlp_out')
NORM_PLACES = ('pre', 'post')


@dataclasses.dataclass(frozen=True)
class StackConfig:
  """Everything about a Stack that published decoders and encoders differ in.

  Attributes:
    depth: number of blocks.
    width: D.
    num_heads: N.
    hidden: F, the MLP's width.
    num_kv_heads: K, a divisor of N; None is N.
    head_dim: H; None is D / N.
    mlp: 'swiglu' or 'geglu' (gated, arXiv:2002.05202), 'gelu', 'gelu_tanh', 'relu' or 'silu'
      (plain).
    norm: 'rms' or 'layer'.
    norm_eps: added to the variance.
    norm_place: 'pre' normalises what attention and MLP read (GPT-2, Llama), 'post' the stream after
      each addition (the first transformer, arXiv:1706.03762, and BERT; they have no final norm).
    rotary: 'adjacent' or 'split', which channels the rotary tables pair; used only when tables are
      given.
    qk_norm: RMSNorm of queries and keys over H, before the rotation.
    bias: biases on every linear map (and on LayerNorm).
    dropout: on what attention and MLP add to the residual stream.
    remat: 'none', 'block' (keep only each block's input), 'narrow' (keep matrix products too, but
      for the MLP's hidden ones) or 'dots' (keep all matrix products).
    pattern: kinds of the blocks, repeated over the depth: 'self' (self-attention, MLP) or 'cross'
      (self-attention, cross-attention to the context, MLP).
    attention_backend: see `core.attention`.
    attention_chunk: block length of the chunked backend.
    attention_scale: of q k^T; None is H^-0.5 (T5 uses 1).
    init_std: standard deviation of the normal initialisation; None is 1 / sqrt(fan in).
    init_cut: at how many standard deviations that normal is cut off; None is nowhere.
    final_norm: a last norm after the blocks.
    unroll: how many groups of the scan are laid out in one iteration; more compile time, fewer
      copies.
    dtype: of the computation, 'float32' or 'bfloat16'; parameters are float32.
  """

  depth: int
  width: int
  num_heads: int
  hidden: int
  num_kv_heads: int | None = None
  head_dim: int | None = None
  mlp: str = 'swiglu'
  norm: str = 'rms'
  norm_eps: float = 1e-5
  norm_place: str = 'pre'
  rotary: str = 'split'
  qk_norm: bool = False
  bias: bool = False
  dropout: float = 0.0
  remat: str = 'none'
  pattern: tuple[str, ...] = ('self',)
  attention_backend: str = 'xla'
  attention_chunk: int = 512
  attention_scale: float | None = None
  init_std: float | None = 0.02
  init_cut: float | None = None
  final_norm: bool = True
  unroll: int = 1
  dtype: str = 'float32'

  def __post_init__(self):
    choices = {
      'mlp': (*GATED, *PLAIN),
      'norm': ('rms', 'layer'),
      'norm_place': NORM_PLACES,
      'rotary': positions.PAIRINGS,
      'remat': REMAT,
      'attention_backend': attention.BACKENDS,
      'dtype': ('float32', 'bfloat16'),
    }
    for name, known in choices.items():
      if getattr(self, name) not in known:
        raise ConfigError(
          f'StackConfig.{name} is {getattr(self, name)!r}, expected one of {", ".join(known)}'
        )
    for name in ('depth', 'width', 'num_heads', 'hidden', 'unroll', 'attention_chunk'):
      if getattr(self, name) < 1:
        raise ConfigError(f'StackConfig.{name} is {getattr(self, name)}, expected at least 1')
    if not 0 <= self.dropout < 1:
      raise ConfigError(f'StackConfig.dropout is {self.dropout}, expected it in [0, 1)')
    if self.init_cut is not None and (self.init_std is None or self.init_cut <= 0):
      raise ConfigError(
        f'StackConfig.init_cut is {self.init_cut} and init_std {self.init_std}, expected a cut '
        'above 0 and a standard deviation, or no cut'
      )
    if self.head_dim is None and self.width % self.num_heads:
      raise ConfigError(
        f'StackConfig.width {self.width} is not a multiple of num_heads {self.num_heads}; '
        'set head_dim'
      )
    if self.num_heads % self.kv_heads:
      raise ConfigError(
        f'StackConfig.num_kv_heads {self.kv_heads} does not divide num_heads {self.num_heads}'
      )
    if not self.pattern or set(self.pattern) - set(KINDS) or self.depth % len(self.pattern):
      raise ConfigError(
        f'StackConfig.pattern is {self.pattern!r}, expected kinds from {", ".join(KINDS)} whose '
        f'number divides depth {self.depth}'
      )

  @property
  def kv_heads(self) -> int:
    """K."""
    return self.num_kv_heads or self.num_heads

  @property
  def head_width(self) -> int:
    """H."""
    return self.head_dim or self.width // self.num_heads

  def initializer(self):
    """The initializer of every weight matrix."""
    if self.init_std is None:
      return nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    if self.init_cut is not None:
      return nn.initializers.truncated_normal(
        self.init_std, lower=-self.init_cut, upper=self.init_cut
      )
    return nn.initializers.normal(self.init_std)

  def kinds(self) -> tuple[str, ...]:
    """The kind of every block, first to last."""
    return self.pattern * (self.depth // len(self.pattern))


def gated_hidden(width: int, multiple: int) -> int:
  """F of a gated MLP with as many weights as a plain one of 4 D: 2/3 of 4 D, rounded up to
  `multiple` (arXiv:2002.05202; the rounding is Llama's)."""
  return -(-int(2 * 4 * width / 3) // multiple) * multiple


@flax.struct.dataclass
class Context:
  """What a cross block attends to.

  Attributes:
    tokens_BSD: another stack's output, width free.
    valid_BS: bool, which of them exist; None is all.
  """

  tokens_BSD: jax.Array
  valid_BS: jax.Array | None = None

  def mask(self, num_queries: int) -> masks.Mask:
    """Every query sees every context token that exists."""
    if self.valid_BS is None:
      return masks.Full()
    ones = jnp.ones((self.valid_BS.shape[0], num_queries), jnp.int32)
    return masks.Segments(ones, self.valid_BS.astype(jnp.int32))


@flax.struct.dataclass
class Overlap:
  """Rows that are pieces of longer sequences; each also sees the end of the piece before.

  Self-attention's keys and values are those of the last `size` positions of the row before and then
  the row's own, so the mask is of L queries and size + L keys, and rotary tables are of size + L
  positions. A sequence's first piece has zeros there, which the mask is to hide.

  Attributes:
    size: positions of the piece before, at most L.
    pieces: how many rows, in order, are one sequence.
  """

  size: int = flax.struct.field(pytree_node=False)
  pieces: int = flax.struct.field(pytree_node=False)

  def extended(self, x_BLKH: jax.Array) -> jax.Array:
    """Keys or values [B, size + L, K, H], those of the piece before in front."""
    (B, L), rest = x_BLKH.shape[:2], x_BLKH.shape[2:]
    ends = x_BLKH.reshape(B // self.pieces, self.pieces, L, *rest)[:, :-1, L - self.size :]
    before = jnp.pad(ends, [(0, 0), (1, 0)] + [(0, 0)] * (ends.ndim - 2))
    return jnp.concatenate([before.reshape(B, self.size, *rest), x_BLKH], axis=1)


def _dense(config: StackConfig, features, names, num_in=1, name=None) -> layers.Dense:
  return layers.Dense(
    features, names, num_in, config.bias, config.initializer(), config.dtype, name=name
  )


def _norm(config: StackConfig, name: str) -> nn.Module:
  if config.norm == 'rms':
    return layers.RMSNorm(config.norm_eps, name=name)
  return layers.LayerNorm(config.norm_eps, config.bias, name=name)


class Attention(nn.Module):
  """Multi-head attention of x to itself or to a context."""

  config: StackConfig

  @nn.compact
  def __call__(self, x_BLD, source_BSD, mask, rotary, bias_NLS, overlap=None):
    cfg = self.config
    heads, kv = (cfg.num_heads, cfg.head_width), (cfg.kv_heads, cfg.head_width)
    q = _dense(cfg, heads, (axes.EMBED, axes.HEADS, axes.HEAD_DIM), name='query')(x_BLD)
    k = _dense(cfg, kv, (axes.EMBED, axes.KV_HEADS, axes.HEAD_DIM), name='key')(source_BSD)
    v = _dense(cfg, kv, (axes.EMBED, axes.KV_HEADS, axes.HEAD_DIM), name='value')(source_BSD)
    q, k, v = (checkpoint_name(a, n) for a, n in ((q, 'query'), (k, 'key'), (v, 'value')))
    if cfg.qk_norm:
      q = layers.RMSNorm(cfg.norm_eps, axes.HEAD_DIM, name='query_norm')(q)
      k = layers.RMSNorm(cfg.norm_eps, axes.HEAD_DIM, name='key_norm')(k)
    rotary_q = rotary
    if overlap is not None:
      k, v = overlap.extended(k), overlap.extended(v)
      rotary_q = None if rotary is None else rotary.at(overlap.size, q.shape[1])
    if rotary is not None:
      q = positions.apply_rotary(q, rotary_q, cfg.rotary)
      k = positions.apply_rotary(k, rotary, cfg.rotary)
    q, k, v = (axes.constrain(a, axes.BATCH, axes.LENGTH, axes.ACT_HEADS, None) for a in (q, k, v))
    out = attention.attention(
      q,
      k,
      v,
      mask,
      backend=cfg.attention_backend,
      scale=cfg.attention_scale,
      bias_NLS=bias_NLS,
      chunk=cfg.attention_chunk,
    )
    names = (axes.HEADS, axes.HEAD_DIM, axes.EMBED)
    out = _dense(cfg, (cfg.width,), names, num_in=2, name='out')(out)
    return checkpoint_name(out, 'attention_out'), (k, v)


class Mlp(nn.Module):
  """Gated or plain two-layer perceptron."""

  config: StackConfig

  @nn.compact
  def __call__(self, x_BLD):
    cfg = self.config
    h = _dense(cfg, (cfg.hidden,), (axes.EMBED, axes.MLP), name='up')(x_BLD)
    if cfg.mlp in GATED:
      gate = _dense(cfg, (cfg.hidden,), (axes.EMBED, axes.MLP), name='gate')(x_BLD)
      # Kept for the gradient are gate and h alone: what lies between them is cheap to make again.
      h = jax.checkpoint(lambda gate, h: GATED[cfg.mlp](gate) * h, prevent_cse=False)(gate, h)
    else:
      h = PLAIN[cfg.mlp](h)
    h = axes.constrain(h, axes.BATCH, axes.LENGTH, axes.ACT_MLP)
    out = _dense(cfg, (cfg.width,), (axes.MLP, axes.EMBED), name='down')(h)
    return checkpoint_name(out, 'mlp_out')


class Block(nn.Module):
  """x + attention(norm x), then (kind 'cross') + attention(norm x, context), then + mlp(norm x).

  With `norm_place` 'post' each step is norm(x + f(x)) instead of x + f(norm x).
  """

  config: StackConfig
  kind: str = 'self'

  @nn.compact
  def __call__(self, x_BLD, layer, inputs: BlockInputs):
    """The block's output [B, L, D] and its self-attention's keys and values [B, L, K, H]."""
    cfg = self.config
    seeds = inputs.seeds_B2
    kv = None

    def added(x, name, place, f):
      norm = _norm(cfg, name)
      y = f(norm(x) if cfg.norm_place == 'pre' else x)
      place_seeds = None if seeds is None else layers.fold_seeds(seeds, layer, place)
      x = x + layers.dropout(y, cfg.dropout, place_seeds)
      x = norm(x) if cfg.norm_place == 'post' else x
      return axes.constrain(x, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)

    def self_attention(h):
      nonlocal kv
      attend = Attention(cfg, name='attention')
      y, kv = attend(h, h, inputs.mask, inputs.rotary, inputs.bias_NLS, inputs.overlap)
      return y

    def cross_attention(h):
      context = inputs.context
      mask = context.mask(h.shape[1])
      return Attention(cfg, name='cross')(h, context.tokens_BSD, mask, None, None)[0]

    x_BLD = added(x_BLD, 'attention_norm', 0, self_attention)
    if self.kind == 'cross':
      if inputs.context is None:
        raise ValueError("a block of kind 'cross' needs a context; pass Stack(...)(context=...)")
      x_BLD = added(x_BLD, 'cross_norm', 1, cross_attention)
    return added(x_BLD, 'mlp_norm', 2, Mlp(cfg, name='mlp')), kv


@flax.struct.dataclass
class BlockInputs:
  """What every block of a Stack gets beside the residual stream."""

  mask: masks.Mask
  rotary: positions.Rotary | None
  context: Context | None
  bias_NLS: jax.Array | None
  seeds_B2: jax.Array | None
  overlap: Overlap | None = None


class Group(nn.Module):
  """One period of the pattern: what the scan repeats."""

  config: StackConfig
  keep_states: bool
  keep_kv: bool

  @nn.compact
  def __call__(self, x_BLD, group, inputs):
    cfg, states, kvs = self.config, [], []
    block = Block
    if cfg.remat != 'none' or axes.is_split(axes.EMBED):
      policies = jax.checkpoint_policies
      saved = {
        'none': policies.save_anything_except_these_names(axes.GATHERED),
        'block': policies.nothing_saveable,
        'narrow': policies.save_only_these_names(*_NARROW),
        'dots': policies.save_from_both_policies(
          policies.dots_with_no_batch_dims_saveable,
          policies.save_only_these_names(attention.KERNEL_OUTPUT),
        ),
      }[cfg.remat]
      block = nn.remat(Block, policy=saved, prevent_cse=False)
    for i, kind in enumerate(cfg.pattern):
      layer = group * len(cfg.pattern) + i
      x_BLD, kv = block(cfg, kind, name=block_name(i, kind))(x_BLD, layer, inputs)
      states.append(x_BLD)
      kvs.append(kv)
    stack = lambda trees: jax.tree.map(lambda *a: jnp.stack(a), *trees)
    return x_BLD, (
      stack(states) if self.keep_states else None,
      stack(kvs) if self.keep_kv else None,
    )


class Stack(nn.Module):
  """Blocks over embeddings; hidden states out. See `StackConfig`."""

  config: StackConfig

  @nn.compact
  def __call__(
    self,
    x_BLD: jax.Array,
    *,
    mask: masks.Mask,
    rotary: positions.Rotary | None = None,
    context: Context | jax.Array | None = None,
    bias_NLS: jax.Array | None = None,
    dropout_key_B: jax.Array | None = None,
    overlap: Overlap | None = None,
    return_states: bool = False,
    return_kv: bool = False,
  ):
    """Runs all blocks.

    Args:
      x_BLD: embeddings.
      mask: who sees whom in self-attention.
      rotary: tables of the L positions; None for none.
      context: what cross blocks attend to, [B, S, any width] or a `Context`.
      bias_NLS: added to every self-attention's logits (T5's position bias, computed once by the
        caller).
      dropout_key_B: one key an example, typed or uint32 pairs; None runs without dropout.
      overlap: rows are pieces of sequences and see one another's ends; mask and rotary are then of
        more keys than there are queries.
      return_states: also return what each block was given and gave.
      return_kv: also return every self-attention's keys and values, for `core.decode.cache_of`.

    Returns:
      hidden_BLD; then, as asked for, states [T + 1, B, L, D] (0 is the input, T the last block's
      output before the final norm) and (keys, values), each [T, B, L, K, H].
    """
    cfg = self.config
    if x_BLD.shape[-1] != cfg.width:
      raise ValueError(f'embeddings are {x_BLD.shape[-1]} wide, StackConfig.width is {cfg.width}')
    if context is not None and not isinstance(context, Context):
      context = Context(context)
    seeds = None
    if dropout_key_B is not None and cfg.dropout > 0:
      seeds = layers.dropout_seeds(dropout_key_B)
    x_BLD = x_BLD.astype(cfg.dtype)
    inputs = BlockInputs(mask, rotary, context, bias_NLS, seeds, overlap)
    num_groups = cfg.depth // len(cfg.pattern)
    scanned = nn.scan(
      Group,
      variable_axes={'params': 0},
      split_rngs={'params': True},
      in_axes=(0, nn.broadcast),
      length=num_groups,
      unroll=min(cfg.unroll, num_groups),
      metadata_params={nn.PARTITION_NAME: axes.LAYERS},
    )(cfg, return_states, return_kv, name='groups')
    hidden, (states, kv) = scanned(x_BLD, jnp.arange(num_groups), inputs)
    if cfg.final_norm:
      hidden = _norm(cfg, 'final_norm')(hidden)
    merge = lambda tree: jax.tree.map(lambda a: a.reshape(cfg.depth, *a.shape[2:]), tree)
    out = [hidden]
    if return_states:
      out.append(jnp.concatenate([x_BLD[None], merge(states)]))
    if return_kv:
      out.append(merge(kv))
    return out[0] if len(out) == 1 else tuple(out)


def block_name(place: int, kind: str) -> str:
  """The name of a block in its group's parameters."""
  return f'block{place}_{kind}'


def unstacked(params: Mapping[str, Any], config: StackConfig) -> list[dict[str, Any]]:
  """A Stack's parameters as one tree a block, first to last (what layer pruning indexes)."""
  out = []
  for i, kind in enumerate(config.kinds()):
    group, place = divmod(i, len(config.pattern))
    block = params['groups'][block_name(place, kind)]
    out.append(jax.tree.map(lambda a, group=group: a[group], block))
  return out


def stacked(blocks: list[Mapping[str, Any]], config: StackConfig) -> dict[str, Any]:
  """The inverse of `unstacked`: the `groups` subtree for a `config` of as many blocks."""
  if len(blocks) != config.depth:
    raise ValueError(f'{len(blocks)} blocks for a Stack of depth {config.depth}')
  period = len(config.pattern)
  return {
    block_name(place, kind): jax.tree.map(lambda *a: jnp.stack(a), *blocks[place::period])
    for place, kind in enumerate(config.pattern)
  }
