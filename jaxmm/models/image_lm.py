"""LlamaGen's class-conditional transformer over image codes (Sun et al. 2024, arXiv:2406.06525).

The class is one prefix token; codes follow in raster order; position i predicts code i. Identical
to the public model, its zeroed prefix rotation included, so that its checkpoints load
(`jaxmm.interop.llamagen_gpt`).

Axes: B batch, L codes of an image (= grid^2), D width, V codes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm import task as tasks
from jaxmm.config import ConfigError, from_preset
from jaxmm.core import axes, decode, decoding, layers, losses, masks, positions, transformer

# depth, width, num_heads of the published sizes, and two that train on a laptop.
PRESETS: dict[str, dict[str, int]] = {
  'micro': {'depth': 2, 'width': 64, 'num_heads': 2, 'hidden_multiple': 32},
  'mini': {'depth': 4, 'width': 128, 'num_heads': 4, 'hidden_multiple': 32},
  'B': {'depth': 12, 'width': 768, 'num_heads': 12},
  'L': {'depth': 24, 'width': 1024, 'num_heads': 16},
  'XL': {'depth': 36, 'width': 1280, 'num_heads': 20},
  'XXL': {'depth': 48, 'width': 1536, 'num_heads': 24},
  '3B': {'depth': 24, 'width': 3200, 'num_heads': 32},
}
# Sub-streams of an example's dropout key.
_CLASS, _TOKENS, _STACK = 1, 2, 3


@dataclasses.dataclass(frozen=True)
class ImageLmConfig:
  """Sizes and training switches of an image LM.

  Attributes:
    depth, width, num_heads: of the Stack; `image_lm.config_of({'size': 'B', ...})` fills them in.
    num_codes: V, the tokenizer's codebook size.
    num_classes: labels are 0 .. num_classes - 1; one more row of the table stands for no class.
    grid: codes along each side of an image.
    num_kv_heads: key/value heads; None is num_heads.
    hidden: the MLP's width; None is 2/3 of 4 * width rounded up to `hidden_multiple`.
    hidden_multiple: see hidden.
    class_dropout: chance that a training example loses its class (what guidance needs).
    token_dropout: on the embeddings.
    dropout: on what attention and MLP add.
    norm_eps: of RMSNorm.
    zero_prefix: the class token's queries and keys are zero vectors, as in the public checkpoints;
      False leaves them unrotated.
    remat, attention_backend, unroll, dtype: see `core.transformer.StackConfig`.
  """

  depth: int
  width: int
  num_heads: int
  num_codes: int = 16_384
  num_classes: int = 1000
  grid: int = 16
  num_kv_heads: int | None = None
  hidden: int | None = None
  hidden_multiple: int = 256
  class_dropout: float = 0.1
  token_dropout: float = 0.1
  dropout: float = 0.1
  norm_eps: float = 1e-5
  zero_prefix: bool = True
  remat: str = 'none'
  attention_backend: str = 'xla'
  unroll: int = 1
  dtype: str = 'float32'

  def __post_init__(self):
    for name in ('num_codes', 'num_classes', 'grid', 'hidden_multiple'):
      if getattr(self, name) < 1:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected at least 1')
    for name in ('class_dropout', 'token_dropout', 'dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected it in [0, 1)')
    if (self.width // self.num_heads) % 4:
      raise ConfigError(
        f'model.width / model.num_heads is {self.width}/{self.num_heads}, but 2-D rotary positions '
        'need head widths in multiples of 4'
      )
    self.stack()  # its own checks

  @property
  def length(self) -> int:
    """L, codes of an image."""
    return self.grid**2

  def hidden_width(self) -> int:
    """The MLP's width."""
    return self.hidden or transformer.gated_hidden(self.width, self.hidden_multiple)

  def stack(self) -> transformer.StackConfig:
    """The Stack of this model."""
    return transformer.StackConfig(
      depth=self.depth,
      width=self.width,
      num_heads=self.num_heads,
      num_kv_heads=self.num_kv_heads,
      hidden=self.hidden_width(),
      norm_eps=self.norm_eps,
      rotary='adjacent',
      dropout=self.dropout,
      remat=self.remat,
      attention_backend=self.attention_backend,
      unroll=self.unroll,
      dtype=self.dtype,
    )

  def rotary(self) -> positions.Rotary:
    """Tables of the class token and the first L - 1 codes: [L, head width / 2].

    A code's position is its own cell, not that of the code it predicts.
    """
    grid = positions.rotary_2d(self.grid, self.grid, self.width // self.num_heads)
    tables = positions.with_prefix(grid, 1, zeros=self.zero_prefix)
    return positions.Rotary(tables.cos[: self.length], tables.sin[: self.length])


def config_of(model: Mapping[str, Any]) -> ImageLmConfig:
  """The config of a run's `model` section; `size` names a preset, the other keys override it.

  Raises:
    ConfigError: an unknown size or key, or a value that cannot be used.
  """
  return from_preset(ImageLmConfig, PRESETS, model, 'model')


class ImageLm(nn.Module):
  """Logits of every code given its class and the codes before it."""

  config: ImageLmConfig

  def setup(self):
    cfg = self.config
    init = nn.initializers.normal(0.02)
    classes = cfg.num_classes + (cfg.class_dropout > 0)
    self.class_embedding = layers.Embedding(classes, cfg.width, init, cfg.dtype)
    self.token_embedding = layers.Embedding(cfg.num_codes, cfg.width, init, cfg.dtype)
    self.stack = transformer.Stack(cfg.stack())
    # A zero head: training starts from the uniform distribution.
    self.head = layers.Dense(
      (cfg.num_codes,), (axes.EMBED, axes.VOCAB), initializer=nn.initializers.zeros, dtype=cfg.dtype
    )

  def __call__(
    self, label_B: jax.Array, ids_BL: jax.Array, dropout_key_B: jax.Array | None = None
  ) -> jax.Array:
    """Teacher-forced logits, float32 [B, L, V]; position i sees the class and ids before i.

    Args:
      label_B: class ids; num_classes means no class.
      ids_BL: codes in raster order. The last is read by nobody: it has no successor.
      dropout_key_B: one key an example; None drops nothing, classes neither.
    """
    cfg, seeds = self.config, None
    if ids_BL.shape[1] != cfg.length:
      raise ConfigError(
        f'ids_BL has {ids_BL.shape[1]} codes an image, but model.grid {cfg.grid} means {cfg.length}'
      )
    if dropout_key_B is not None:
      seeds = layers.dropout_seeds(dropout_key_B)
      label_B = self.with_dropped_classes(label_B, seeds)
    x_BLD = jnp.concatenate(
      [self.class_embedding(label_B)[:, None], self.token_embedding(ids_BL[:, :-1])], axis=1
    )
    x_BLD = axes.constrain(x_BLD, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
    if seeds is not None:
      x_BLD = layers.dropout(x_BLD, cfg.token_dropout, layers.fold_seeds(seeds, _TOKENS))
    hidden_BLD = self.stack(
      x_BLD,
      mask=masks.Causal(),
      rotary=cfg.rotary(),
      dropout_key_B=None if seeds is None else layers.fold_seeds(seeds, _STACK),
    )
    logits_BLV = self.head(hidden_BLD).astype(jnp.float32)
    return axes.constrain(logits_BLV, axes.BATCH, axes.LENGTH, axes.ACT_VOCAB)

  def with_dropped_classes(self, label_B: jax.Array, seeds_B2: jax.Array) -> jax.Array:
    """Labels, each replaced by 'no class' with probability class_dropout."""
    cfg = self.config
    bits_B = layers.uniform_bits(layers.fold_seeds(seeds_B2, _CLASS), ())
    return jnp.where(
      bits_B < jnp.uint32(round(cfg.class_dropout * 2**32)), cfg.num_classes, label_B
    )


def decode_params(params: Mapping[str, Any], config: ImageLmConfig) -> dict[str, Any]:
  """The parameters laid out for `generate`; make them once, under jit, and keep them."""
  table = lambda name: params[name]['table'].astype(config.dtype)
  return {
    'class_embedding': table('class_embedding'),
    'token_embedding': table('token_embedding'),
    'stack': decode.decode_layout(params['stack'], config.stack()),
    'head': params['head']['kernel'].T.astype(config.dtype),
  }


def generate(
  layout: Mapping[str, Any],
  config: ImageLmConfig,
  label_B: jax.Array,
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
) -> jax.Array:
  """Codes of one image for every label, int32 [B, L]; jit it with config and sampling static.

  Args:
    layout: from `decode_params`.
    config: the model's.
    label_B: class ids; num_classes means no class.
    key_B: typed keys, one an image (`jaxmm.task.example_keys`).
    sampling: guidance needs a model that was trained with class_dropout.

  Raises:
    ConfigError: guidance for a model without a 'no class' row.
  """
  stack, rotary = config.stack(), config.rotary()
  label_R = label_B
  if sampling.is_guided:
    if config.class_dropout == 0:
      raise ConfigError(
        f'guidance_scale is {sampling.guidance_scale}, but model.class_dropout is 0: this model '
        'has no row for no class; use guidance_scale=1 or train with class_dropout'
      )
    label_R = jnp.concatenate([label_B, jnp.full_like(label_B, config.num_classes)])

  def logits_of(x_RD, position, cache):
    hidden_DR, cache = decode.decode_step(
      layout['stack'], stack, x_RD.T, cache, position, rotary=rotary.at(position)
    )
    return decode.logits_of(layout['head'], hidden_DR), cache

  def step(ids_R, position, cache):
    return logits_of(jnp.take(layout['token_embedding'], ids_R, axis=0), position, cache)

  lengths = decoding.bucket_lengths(1, max(config.length - 1, 1))
  cache = decode.empty_cache(stack, label_R.shape[0], lengths[0])
  x_RD = jnp.take(layout['class_embedding'], label_R, axis=0, mode='fill')
  logits_RV, cache = logits_of(x_RD, 0, cache)
  return decoding.generate(
    step,
    logits_RV,
    cache,
    start=1,
    num_tokens=config.length,
    key_B=key_B,
    config=sampling,
    grow=decode.grown_cache,
    lengths=lengths,
  )


@dataclasses.dataclass(frozen=True)
class ImageLmTask(tasks.Task):
  """Cross-entropy of all codes, class dropped for some examples."""

  config: ImageLmConfig

  def init(self, key: jax.Array, batch: tasks.Batch) -> tasks.Variables:
    return ImageLm(self.config).init(key, batch['label_B'], batch['ids_BL'])

  def counts(self, batch: tasks.Batch) -> dict[str, jax.Array]:
    return {'tokens': jnp.sum(batch['valid_B']) * self.config.length}

  def loss(self, variables, batch, key, step, counts):
    del step
    keys_B = tasks.example_keys(key, batch['index_B'])
    params = {'params': variables['params']}
    logits = ImageLm(self.config).apply(params, batch['label_B'], batch['ids_BL'], keys_B)
    total, count = losses.cross_entropy(logits, batch['ids_BL'], batch['valid_B'][:, None])
    return total / jnp.maximum(counts['tokens'], 1), {'cross_entropy': (total, count)}, {}

  def evaluations(self) -> Mapping[str, Callable[..., tasks.Sums]]:
    return {'likelihood': self.likelihood}

  def likelihood(self, variables: tasks.Variables, batch: tasks.Batch, key: jax.Array):
    """Without dropout: nats a code, bits an image, nats a code at each position ([L] arrays)."""
    del key
    params = {'params': variables['params']}
    logits = ImageLm(self.config).apply(params, batch['label_B'], batch['ids_BL'])
    nll_BL = losses.token_nll(logits, batch['ids_BL'])
    nll_L, images_L = losses.position_sums(nll_BL, valid_B=batch['valid_B'])
    images = images_L[0]
    return {
      'cross_entropy': (jnp.sum(nll_L), images * self.config.length),
      'bits_per_image': (jnp.sum(nll_L) / math.log(2.0), images),
      'cross_entropy_by_position': (nll_L, images_L),
    }

  def batch_shapes(self, batch_size: int):
    codes = ((self.config.length,), 'int32')
    return tasks.row_shapes(batch_size, ids_BL=codes, label_B=((), 'int32'))

  def step_flops(self, batch_size: int) -> float:
    cfg = self.config
    head = cfg.width // cfg.num_heads
    attention = 2 * cfg.width * head * (cfg.num_heads + (cfg.num_kv_heads or cfg.num_heads))
    weights = cfg.depth * (attention + 3 * cfg.width * cfg.hidden_width())
    weights += cfg.width * cfg.num_codes
    # Forward 2 a weight and token, backward twice that; attention's two products as if not causal,
    # the usual count.
    return batch_size * cfg.length * (6.0 * weights + 12.0 * cfg.depth * cfg.width * cfg.length)


def make_task(model: Mapping[str, Any]) -> ImageLmTask:
  """The Task of a run's `model` section (see `config_of`)."""
  return ImageLmTask(config_of(model))
