"""The plain decoder LM over any ids: text bytes, BPE tokens, codes; Llama-shaped unless told so.

One file for what published decoders have in common (Llama, arXiv:2302.13971; GPT-2, Radford et al.
2019): a Stack between an embedding and a head. It trains on packed rows (`jaxmm.data.packing`),
scores texts, continues prompts of different lengths, and shows its hidden states at every depth.

Positions count from the start of each segment, rotary and learned ones alike: a document means the
same packed among others, behind padding, or alone.

Axes: B batch, L positions of a row, P of a prompt, S of a prompt and what follows, D width, V
vocabulary, T depth.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm import task as tasks
from jaxmm.config import ConfigError, from_preset
from jaxmm.core import axes, decode, decoding, layers, losses, masks, positions, transformer
from jaxmm.core.protocols import Scorer
from jaxmm.models import mixed_rows

# Two that train on a laptop, and the shapes of published models.
PRESETS: dict[str, dict[str, Any]] = {
  'micro': {'depth': 2, 'width': 64, 'num_heads': 2, 'hidden_multiple': 32},
  'mini': {'depth': 4, 'width': 128, 'num_heads': 4, 'hidden_multiple': 32},
  'GPT-2': {
    'depth': 12, 'width': 768, 'num_heads': 12, 'hidden': 3072, 'vocab_size': 50_257,
    'length': 1024, 'mlp': 'gelu_tanh', 'norm': 'layer', 'bias': True, 'positions': 'learned',
    'tied_head': True,
  },
  'SmolLM2-135M': {
    'depth': 30, 'width': 576, 'num_heads': 9, 'num_kv_heads': 3, 'hidden': 1536,
    'vocab_size': 49_152, 'length': 8192, 'rotary_base': 100_000.0, 'tied_head': True,
  },
  'SmolLM2-360M': {
    'depth': 32, 'width': 960, 'num_heads': 15, 'num_kv_heads': 5, 'hidden': 2560,
    'vocab_size': 49_152, 'length': 8192, 'rotary_base': 100_000.0, 'tied_head': True,
  },
  'TinyLlama-1.1B': {
    'depth': 22, 'width': 2048, 'num_heads': 32, 'num_kv_heads': 4, 'hidden': 5632,
    'vocab_size': 32_000, 'length': 2048,
  },
}  # fmt: skip
POSITIONS = ('rotary', 'learned', 'none')
# Sub-streams of an example's dropout key.
_TOKENS, _STACK = 1, 2


@dataclasses.dataclass(frozen=True)
class LmConfig:
  """Sizes and training switches of an LM.

  Attributes:
    depth, width, num_heads: of the Stack; `lm.config_of({'size': 'mini', ...})` fills them in.
    vocab_size: V; ids are 0 .. V - 1. The default holds bytes and three special tokens.
    length: the longest row or text; rows may be shorter.
    num_kv_heads: key/value heads; None is num_heads.
    head_dim: of one head; None is width / num_heads.
    hidden: the MLP's width; None is 2/3 of 4 * width rounded up to `hidden_multiple`.
    hidden_multiple: see hidden.
    mlp, norm, norm_eps, qk_norm, bias: see `core.transformer.StackConfig`.
    positions: 'rotary', 'learned' (a table of `length` vectors, added) or 'none'.
    rotary: which channels are paired, 'split' (most public files) or 'adjacent' (Llama's own).
    rotary_base: the theta of the angles.
    tied_head: the head is the embedding; else a table of its own that starts at zero.
    token_dropout: on the embeddings.
    dropout: on what attention and MLP add.
    loss_chunk: positions whose logits exist at one time in the loss; 0 is all (see
      `core.losses.projected_nll`).
    init_std: of the initial weights.
    remat, attention_backend, unroll, dtype: see `core.transformer.StackConfig`.
  """

  depth: int
  width: int
  num_heads: int
  vocab_size: int = 259
  length: int = 256
  num_kv_heads: int | None = None
  head_dim: int | None = None
  hidden: int | None = None
  hidden_multiple: int = 256
  mlp: str = 'swiglu'
  norm: str = 'rms'
  norm_eps: float = 1e-5
  qk_norm: bool = False
  bias: bool = False
  positions: str = 'rotary'
  rotary: str = 'split'
  rotary_base: float = 10_000.0
  tied_head: bool = False
  token_dropout: float = 0.0
  dropout: float = 0.0
  loss_chunk: int = 0
  init_std: float = 0.02
  remat: str = 'none'
  attention_backend: str = 'xla'
  unroll: int = 1
  dtype: str = 'float32'

  def __post_init__(self):
    lowest = {'vocab_size': 1, 'length': 2, 'hidden_multiple': 1, 'loss_chunk': 0}
    for name, low in lowest.items():
      if getattr(self, name) < low:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected at least {low}')
    for name in ('token_dropout', 'dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected it in [0, 1)')
    if self.positions not in POSITIONS:
      raise ConfigError(
        f'model.positions is {self.positions!r}, expected one of {", ".join(POSITIONS)}'
      )
    stack = self.stack()  # its own checks
    if self.positions == 'rotary' and (stack.head_width % 2 or self.rotary_base <= 0):
      raise ConfigError(
        f'model.positions is rotary, with heads {stack.head_width} wide and rotary_base '
        f'{self.rotary_base}; expected an even width (see model.head_dim) and a base above 0'
      )

  def hidden_width(self) -> int:
    """The MLP's width."""
    return self.hidden or transformer.gated_hidden(self.width, self.hidden_multiple)

  def stack(self) -> transformer.StackConfig:
    """The Stack of this model."""
    same = (
      'depth', 'width', 'num_heads', 'num_kv_heads', 'head_dim', 'mlp', 'norm', 'norm_eps',
      'qk_norm', 'bias', 'rotary', 'dropout', 'init_std', 'remat', 'attention_backend', 'unroll',
      'dtype',
    )  # fmt: skip
    return transformer.StackConfig(
      hidden=self.hidden_width(), **{name: getattr(self, name) for name in same}
    )

  def rotary_tables(self, position: jax.Array) -> positions.Rotary | None:
    """Tables of positions [L] or [B, L]; None for a model without rotary ones."""
    if self.positions != 'rotary':
      return None
    return positions.rotary_1d(position, self.stack().head_width, self.rotary_base)


def config_of(model: Mapping[str, Any]) -> LmConfig:
  """The config of a run's `model` section; `size` names a preset, the other keys override it.

  Raises:
    ConfigError: an unknown size or key, or a value that cannot be used.
  """
  return from_preset(LmConfig, PRESETS, model, 'model')


class Lm(nn.Module):
  """Logits of every token given those before it."""

  config: LmConfig

  def setup(self):
    cfg = self.config
    init = nn.initializers.normal(cfg.init_std)
    self.token_embedding = layers.Embedding(cfg.vocab_size, cfg.width, init, cfg.dtype)
    if cfg.positions == 'learned':
      self.position_embedding = positions.LearnedPositions(cfg.length, cfg.width, cfg.init_std)
    self.stack = transformer.Stack(cfg.stack())
    if not cfg.tied_head:
      # A zero head: training starts from the uniform distribution.
      zeros = nn.initializers.zeros
      self.head = layers.Embedding(cfg.vocab_size, cfg.width, zeros, cfg.dtype)

  def __call__(
    self,
    ids_BL: jax.Array,
    segment_BL: jax.Array | None = None,
    dropout_key_B: jax.Array | None = None,
    return_states: bool = False,
  ):
    """Logits, float32 [B, L, V]; those at position i are of the token at i + 1.

    Args:
      ids_BL: tokens; an id outside the vocabulary gives NaN.
      segment_BL: which document each token is of, in one piece each; tokens see their own only.
        None is one document a row.
      dropout_key_B: one key an example; None drops nothing.
      return_states: also return the hidden states [T + 1, B, L, D]: the embeddings, then what every
        block gives (before the final norm).
    """
    hidden = self.hidden(ids_BL, segment_BL, dropout_key_B, return_states=return_states)
    hidden, *states = hidden if return_states else (hidden,)
    table = (self.token_embedding if self.config.tied_head else self.head).table
    logits = jnp.einsum('BLD,VD->BLV', hidden, table.astype(hidden.dtype)).astype(jnp.float32)
    logits = axes.constrain(logits, axes.BATCH, axes.LENGTH, axes.ACT_VOCAB)
    return (logits, *states) if return_states else logits

  def hidden(
    self,
    ids_BL: jax.Array,
    segment_BL: jax.Array | None = None,
    dropout_key_B: jax.Array | None = None,
    *,
    return_states: bool = False,
    return_kv: bool = False,
  ):
    """What the head sees, [B, L, D]; then as asked for what `core.transformer.Stack` returns."""
    cfg, mask, num = self.config, masks.Causal(), ids_BL.shape[1]
    if num > cfg.length:
      raise ConfigError(f'rows have {num} tokens, but model.length is {cfg.length}')
    position = jnp.arange(num)
    if segment_BL is not None:
      mask, position = mask & masks.Segments(segment_BL), positions.in_segments(segment_BL)
    x_BLD = self.token_embedding(ids_BL)
    if cfg.positions == 'learned':
      x_BLD = x_BLD + self.position_embedding()[position].astype(x_BLD.dtype)
    x_BLD = axes.constrain(x_BLD, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
    seeds = None if dropout_key_B is None else layers.dropout_seeds(dropout_key_B)
    if seeds is not None:
      x_BLD = layers.dropout(x_BLD, cfg.token_dropout, layers.fold_seeds(seeds, _TOKENS))
    return self.stack(
      x_BLD,
      mask=mask,
      rotary=cfg.rotary_tables(position),
      dropout_key_B=None if seeds is None else layers.fold_seeds(seeds, _STACK),
      return_states=return_states,
      return_kv=return_kv,
    )


def head_table(params: Mapping[str, Any], config: LmConfig) -> jax.Array:
  """The output head, [V, D]."""
  return params['token_embedding' if config.tied_head else 'head']['table']


def next_nll(
  params: Mapping[str, Any],
  config: LmConfig,
  ids_BL: jax.Array,
  segment_BL: jax.Array | None = None,
  dropout_key_B: jax.Array | None = None,
) -> jax.Array:
  """-log p of each row's *next* token, nats, float32 [B, L]; the last position has none and is 0.

  A target outside the vocabulary gives NaN.
  """
  hidden = Lm(config).apply({'params': params}, ids_BL, segment_BL, dropout_key_B, method='hidden')
  target_BL = _shifted(ids_BL)
  nll_BL = losses.projected_nll(hidden, head_table(params, config), target_BL, config.loss_chunk)
  nll_BL = jnp.where((target_BL >= 0) & (target_BL < config.vocab_size), nll_BL, jnp.nan)
  return nll_BL.at[:, -1].set(0.0)


def _shifted(x_BL: jax.Array) -> jax.Array:
  """Every token's successor, 0 after the last."""
  return jnp.pad(x_BL[:, 1:], ((0, 0), (0, 1)))


def scores(
  params: Mapping[str, Any],
  config: LmConfig,
  ids_BL: jax.Array,
  weight_BL: jax.Array,
  segment_BL: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
  """How likely each row is: (nll_B in nats, count_B), float32.

  Args:
    params, config: the model.
    ids_BL: tokens.
    weight_BL: of each token as a target: 0 for padding and for what is only given (a prompt). A
      row's first token has nothing that predicts it and never counts; begin with a token of its own
      if it should.
    segment_BL: see `Lm`.
  """
  nll_BL, weight_BL = next_nll(params, config, ids_BL, segment_BL), _shifted(weight_BL)
  nll_BL = jnp.where(weight_BL == 0, 0.0, nll_BL)  # 0 * NaN would spread
  weight_BL = weight_BL.astype(jnp.float32)
  return jnp.sum(nll_BL * weight_BL, axis=1), jnp.sum(weight_BL, axis=1)


def scorer(params: Mapping[str, Any], config: LmConfig) -> Scorer:
  """`scores` of text batches, for rooms that import no model; unreadable rows count nothing."""

  @jax.jit
  def score(params, batch):
    weight_BL = batch['weight_BL'] * batch['valid_B'][:, None]
    return scores(params, config, batch['ids_BL'], weight_BL, batch.get('segment_BL'))

  return lambda batch: score(params, dict(batch))


def decode_params(params: Mapping[str, Any], config: LmConfig) -> dict[str, Any]:
  """The parameters laid out for `generate`; make them once, under jit, and keep them."""
  out = {
    'token_embedding': params['token_embedding']['table'].astype(config.dtype),
    'stack': decode.decode_layout(params['stack'], config.stack()),
  }
  if not config.tied_head:
    out['head'] = params['head']['table'].astype(config.dtype)
  if config.positions == 'learned':
    out['position_embedding'] = params['position_embedding']['table'].astype(config.dtype)
  return out


def prompts(
  ids: Sequence[Sequence[int]], length: int | None = None, pad_id: int = 0
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts of different lengths as `generate` takes them: (prompt_BP, length_B), int32.

  Args:
    ids: tokens of each prompt, at least one each (a model's first token is given, never drawn).
    length: P, to compile once for many calls; None is the longest prompt.
    pad_id: what follows shorter prompts; nobody reads it.

  Raises:
    ConfigError: an empty prompt, or one longer than `length`.
  """
  length_B = np.array([len(row) for row in ids], np.int32)
  length = int(length_B.max(initial=1)) if length is None else length
  for i, num in enumerate(length_B.tolist()):
    if not 1 <= num <= length:
      raise ConfigError(
        f'prompt {i} has {num} tokens, expected 1 to {length}; begin with a token such as <bos>'
      )
  prompt_BP = np.full((len(ids), length), pad_id, np.int32)
  for row, values in zip(prompt_BP, ids):
    row[: len(values)] = values
  return prompt_BP, length_B


def generate(
  layout: Mapping[str, Any],
  params: Mapping[str, Any],
  config: LmConfig,
  prompt_BP: jax.Array,
  length_B: jax.Array,
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
  num_tokens: int,
  stop_id: int | None = None,
) -> jax.Array:
  """What follows each prompt, int32 [B, num_tokens]; jit it with all but the arrays static.

  Prompts are moved to the right inside, so that all end at the same place; what a row gets depends
  neither on the other rows nor on P.

  Args:
    layout: from `decode_params`, for one token at a time.
    params: the model's, for the prompt, which goes through the Stack at once.
    config: the model's.
    prompt_BP: tokens, each row's at its beginning (`prompts`); what follows them is not read.
    length_B: how many each row has, at least one.
    key_B: typed keys, one a row (`jaxmm.task.example_keys`).
    sampling: without guidance; there is no condition to drop.
    num_tokens: new tokens of each row.
    stop_id: whatever follows this token in a row is replaced by it.

  Raises:
    ConfigError: guidance, or more tokens than `config.length`.
  """
  if sampling.is_guided:
    raise ConfigError(
      f'guidance_scale is {sampling.guidance_scale}, but an LM has no condition; use 1'
    )
  num = prompt_BP.shape[1]
  if num + num_tokens > config.length:
    raise ConfigError(
      f'prompts of {num} and {num_tokens} new tokens, but model.length is {config.length}'
    )
  stack = config.stack()
  before_B1 = (num - length_B)[:, None]  # empty places in front of a prompt
  place_S = jnp.arange(num + num_tokens)
  segment_BS = (place_S >= before_B1).astype(jnp.int32)
  position_BS = jnp.maximum(place_S - before_B1, 0)
  rotary, mask = config.rotary_tables(position_BS), masks.Segments(segment_BS)

  def logits_of(hidden_DB):
    table_VD = layout['token_embedding' if config.tied_head else 'head']
    return (table_VD @ hidden_DB).T.astype(jnp.float32)

  def step(ids_B, position, cache):
    x_BD = jnp.take(layout['token_embedding'], ids_B, axis=0)
    if config.positions == 'learned':
      at_B = jax.lax.dynamic_index_in_dim(position_BS, position, axis=1, keepdims=False)
      x_BD = x_BD + layout['position_embedding'][at_B]
    here = None if rotary is None else rotary.at(position)
    hidden_DB, cache = decode.decode_step(
      layout['stack'], stack, x_BD.T, cache, position, rotary=here, mask=mask
    )
    return logits_of(hidden_DB), cache

  moved = jnp.maximum(place_S[:num] - before_B1, 0)
  ids_BP = jnp.take_along_axis(jnp.asarray(prompt_BP), moved, axis=1)
  hidden_BPD, kv = Lm(config).apply(
    {'params': params}, ids_BP, segment_BS[:, :num], method='hidden', return_kv=True
  )
  ids = decoding.generate(
    step,
    logits_of(hidden_BPD[:, -1].T),
    decode.cache_of(kv, stack, num),
    start=num,
    num_tokens=num_tokens,
    key_B=key_B,
    config=sampling,
    grow=decode.grown_cache,
  )
  return ids if stop_id is None else decoding.ended(ids, stop_id)


@dataclasses.dataclass(frozen=True)
class LmTask(tasks.Task):
  """Cross-entropy of the next token, by the tokens' weights.

  Attributes:
    config: the model's.
    row_length: tokens of a training row; None is `config.length`.
  """

  config: LmConfig
  row_length: int | None = None

  def init(self, key: jax.Array, batch: tasks.Batch) -> tasks.Variables:
    num, expected = batch['ids_BL'].shape[1], self.row_length or self.config.length
    if num != expected:
      field = 'row_length' if num <= self.config.length else 'length'
      raise ConfigError(
        f'the data has rows of {num} tokens, but the model is told {expected}; '
        f'set model.{field}={num}'
      )
    return Lm(self.config).init(key, batch['ids_BL'], batch['segment_BL'])

  def counts(self, batch: tasks.Batch) -> dict[str, jax.Array]:
    return {'tokens': jnp.sum(_target_weight(batch))}

  def loss(self, variables, batch, key, step, counts):
    del step
    keys_B = tasks.example_keys(key, batch['index_B'])
    nll_BL = next_nll(
      variables['params'], self.config, batch['ids_BL'], batch['segment_BL'], keys_B
    )
    total, count = losses.weighted_sum(nll_BL, _target_weight(batch))
    return total / jnp.maximum(counts['tokens'], 1), {'cross_entropy': (total, count)}, {}

  def evaluations(self) -> Mapping[str, Callable[..., tasks.Sums]]:
    return {'likelihood': self.likelihood}

  def likelihood(self, variables: tasks.Variables, batch: tasks.Batch, key: jax.Array):
    """Without dropout: nats and bits a token that counts.

    The sum of nats over the bytes of the same text is what compares tokenizers
    (`evaluate.likelihood.bits_per_byte`); of a byte model, bits_per_token is that already. Rows of
    text and codes of images have the nats of each kind, too, as Transfusion has them.
    """
    del key
    nll_BL = next_nll(variables['params'], self.config, batch['ids_BL'], batch['segment_BL'])
    weight_BL = _target_weight(batch)
    nats, count = losses.weighted_sum(nll_BL, weight_BL)
    out = {'cross_entropy': (nats, count), 'bits_per_token': (nats / math.log(2.0), count)}
    if 'image_BL' not in batch:
      return out
    kinds = mixed_rows.kinds_of_text(batch['image_BL'], batch['segment_BL'])
    for kind, mask_BL in (kinds | {'codes': batch['image_BL'] > 0}).items():
      out[f'cross_entropy_{kind}'] = losses.weighted_sum(nll_BL, weight_BL * _shifted(mask_BL))
    return out

  def batch_shapes(self, batch_size: int):
    return tasks.packed_shapes(batch_size, self.row_length or self.config.length)

  def step_flops(self, batch_size: int) -> float:
    cfg, stack, num = self.config, self.config.stack(), self.row_length or self.config.length
    heads = stack.head_width * (cfg.num_heads + stack.kv_heads)
    matrices = 3 if cfg.mlp in transformer.GATED else 2
    weights = cfg.depth * cfg.width * (2 * heads + matrices * cfg.hidden_width())
    weights += cfg.width * cfg.vocab_size
    # Forward 2 a weight and token, backward twice that; attention's two products as if not causal,
    # the usual count.
    attention = 12.0 * cfg.depth * cfg.num_heads * stack.head_width * num
    return batch_size * num * (6.0 * weights + attention)


def _target_weight(batch: tasks.Batch) -> jax.Array:
  """The weight of each position's successor, [B, L]; 0 in rows that could not be read."""
  return _shifted(batch['weight_BL']) * batch['valid_B'][:, None]


def make_task(model: Mapping[str, Any]) -> LmTask:
  """The Task of a run's `model` section (see `config_of`), which may also say `row_length`."""
  model = dict(model)
  row_length = model.pop('row_length', None)
  config = config_of(model)
  if row_length is not None and not 2 <= row_length <= config.length:
    raise ConfigError(
      f'model.row_length is {row_length}, expected 2 to model.length {config.length}, or None'
    )
  return LmTask(config, row_length)
