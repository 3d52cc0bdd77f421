"""BERT as a sentence encoder: one vector a text (arXiv:1810.04805; pooling of arXiv:1908.10084).

A two-way Stack with LayerNorm after each addition, learned positions and token types; the states of
a text's tokens are averaged and brought to length 1. MiniLM (arXiv:2002.10957) and its likes
are this network; `jaxmm.interop.bert` reads their published weights.

Axes: B batch, L positions, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import axes, layers, masks, positions, transformer

POOLINGS = ('mean', 'first')


@dataclasses.dataclass(frozen=True)
class SentenceEncoderConfig:
  """Sizes of the network; the defaults are those of MiniLM-L6-H384 (22.7 M parameters).

  Attributes:
    depth, width, num_heads, hidden: of the Stack.
    vocab_size: V; ids are 0 .. V - 1.
    length: positions that have a learned vector: the longest text.
    token_types: rows of the token-type table; texts here are of type 0 unless told otherwise.
    mlp: activation, see `core.transformer.StackConfig`.
    norm_eps: added to the variance.
    pooling: 'mean' over the text's tokens, or 'first' (the state of its first token, [CLS]).
    normalize: bring embeddings to length 1.
    attention_backend, unroll, dtype: see `core.transformer.StackConfig`.
  """

  depth: int = 6
  width: int = 384
  num_heads: int = 12
  hidden: int = 1536
  vocab_size: int = 30_522
  length: int = 512
  token_types: int = 2
  mlp: str = 'gelu'
  norm_eps: float = 1e-12
  pooling: str = 'mean'
  normalize: bool = True
  attention_backend: str = 'xla'
  unroll: int = 1
  dtype: str = 'float32'

  def __post_init__(self):
    for name in ('vocab_size', 'length', 'token_types'):
      if getattr(self, name) < 1:
        raise ConfigError(
          f'SentenceEncoderConfig.{name} is {getattr(self, name)}, expected at least 1'
        )
    if self.pooling not in POOLINGS:
      raise ConfigError(
        f'SentenceEncoderConfig.pooling is {self.pooling!r}, expected one of {", ".join(POOLINGS)}'
      )
    self.stack()  # its own checks

  def stack(self) -> transformer.StackConfig:
    """The Stack of this model."""
    same = (
      'depth', 'width', 'num_heads', 'hidden', 'mlp', 'norm_eps', 'attention_backend', 'unroll',
      'dtype',
    )  # fmt: skip
    return transformer.StackConfig(
      norm='layer',
      norm_place='post',
      bias=True,
      final_norm=False,
      **{name: getattr(self, name) for name in same},
    )


class SentenceEncoder(nn.Module):
  """Embeddings of texts that are given as ids."""

  config: SentenceEncoderConfig = SentenceEncoderConfig()

  @nn.compact
  def __call__(
    self, ids_BL: jax.Array, valid_BL: jax.Array, type_BL: jax.Array | None = None
  ) -> jax.Array:
    """float32 [B, D]; a row without a valid token gives zeros.

    Args:
      ids_BL: tokens; an id outside the vocabulary gives NaN.
      valid_BL: bool (or 0 and 1), False on padding, which nobody sees and which is not pooled.
      type_BL: token types; None is 0 everywhere.
    """
    cfg = self.config
    hidden_BLD = Bert(cfg, name='bert')(ids_BL, valid_BL, type_BL)
    return pooled(hidden_BLD, valid_BL, cfg)


class Bert(nn.Module):
  """The network without the pooling: a hidden state a token."""

  config: SentenceEncoderConfig

  @nn.compact
  def __call__(self, ids_BL, valid_BL, type_BL=None):
    """[B, L, D]; what stands on padding means nothing."""
    cfg, num = self.config, ids_BL.shape[1]
    if num > cfg.length:
      raise ConfigError(f'texts have {num} tokens, but the model has {cfg.length} positions')
    init = nn.initializers.normal(0.02)
    x_BLD = layers.Embedding(cfg.vocab_size, cfg.width, init, name='token_embedding')(ids_BL)
    types = layers.Embedding(cfg.token_types, cfg.width, init, name='type_embedding')
    x_BLD = x_BLD + types(jnp.zeros(1, jnp.int32) if type_BL is None else type_BL)
    places = positions.LearnedPositions(cfg.length, cfg.width, name='position_embedding')()
    x_BLD = layers.LayerNorm(cfg.norm_eps, name='embedding_norm')(x_BLD + places[:num])
    x_BLD = axes.constrain(x_BLD, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)
    # Padding is a segment of its own: tokens never see it, and no row of the softmax is empty.
    mask = masks.Segments(valid_BL.astype(jnp.int32))
    return transformer.Stack(cfg.stack(), name='stack')(x_BLD, mask=mask)


def pooled(hidden_BLD: jax.Array, valid_BL: jax.Array, config: SentenceEncoderConfig) -> jax.Array:
  """One vector a row from its tokens' states, float32 [B, D]; zeros where no token is valid."""
  hidden_BLD = hidden_BLD.astype(jnp.float32)
  weight_BL = valid_BL.astype(jnp.float32)
  if config.pooling == 'first':
    x_BD = hidden_BLD[:, 0] * weight_BL[:, :1]
  else:
    count_B1 = jnp.maximum(jnp.sum(weight_BL, axis=1, keepdims=True), 1.0)
    x_BD = jnp.sum(hidden_BLD * weight_BL[..., None], axis=1) / count_B1
  return normalized(x_BD) if config.normalize else x_BD


def normalized(x_BD: jax.Array) -> jax.Array:
  """Rows brought to length 1; a row of zeros stays one."""
  norm_B1 = jnp.sqrt(jnp.sum(x_BD * x_BD, axis=-1, keepdims=True))
  return x_BD / jnp.maximum(norm_B1, 1e-12)
