"""Causally regularized tokenization (Ramanujan et al. 2024, "When Worse is Better",
arXiv:2412.16326).

While the tokenizer trains, a small causal transformer predicts each latent from those before it in
raster order. Its squared error is added to the tokenizer's loss, and its gradient reaches the
encoder, so that codes become easier to predict from their past. The transformer is thrown away
afterwards.

What the text leaves open is a switch of `RegularizerConfig`.

Axes: B batch, L latent positions in raster order, D latent width.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import axes, layers, masks, positions, transformer
from jaxmm.tokenizers.vqgan import VqganOutput


@dataclasses.dataclass(frozen=True)
class RegularizerConfig:
  """Settings of the regularizer; the default is the paper's where it is known.

  Attributes:
    weight: lambda, what the loss is multiplied with after the ramp (4.0 in the paper).
    ramp_steps: steps over which the weight rises from 0 (1,000 in the paper); 0 for none.
    ramp: shape of the rise; the paper says smooth, not which.
    latent: what is predicted. 'normalized': the latents as they are compared with the codes;
      l2-normalised, they cannot lower the loss by shrinking. 'projected': the encoder's output
      projected to the codes' width. 'features': the encoder's output before that. Not stated in the
      paper. 'quantized': the codes, with the gradient of the latents; the paper's authors tried it
      and found that it costs too much detail.
    loss: 'mean_square' over the latent's channels, 'squared_norm' (the same times D), 'norm' (its
      root).
    stop_grad_target: True pulls only the past towards predicting, not the predicted latent towards
      the prediction.
    start: 'learned' predicts the first latent from a learned vector, 'skip' leaves it out.
    layers: depth (2 in the paper).
    width, heads: of the transformer; not stated, but 1280 costs VQ-16 the 5 % of training FLOPs
      that the paper gives.
    hidden: the MLP's width; None is 8/3 of the width, rounded up to a multiple of 8 (gated).
    dtype: in which the transformer computes; the loss is float32.
  """

  weight: float = 4.0
  ramp_steps: int = 1000
  ramp: Literal['linear', 'cosine'] = 'linear'
  latent: Literal['normalized', 'projected', 'features', 'quantized'] = 'normalized'
  loss: Literal['mean_square', 'squared_norm', 'norm'] = 'mean_square'
  stop_grad_target: bool = False
  start: Literal['learned', 'skip'] = 'learned'
  layers: int = 2
  width: int = 1280
  heads: int = 20
  hidden: int | None = None
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    choices = {
      'ramp': ('linear', 'cosine'),
      'latent': ('normalized', 'projected', 'features', 'quantized'),
      'loss': ('mean_square', 'squared_norm', 'norm'),
      'start': ('learned', 'skip'),
    }
    for name, known in choices.items():
      if getattr(self, name) not in known:
        raise ConfigError(
          f'regularizer.{name} is {getattr(self, name)!r}, expected one of {", ".join(known)}'
        )
    if self.weight < 0 or self.ramp_steps < 0:
      raise ConfigError(
        f'regularizer.weight is {self.weight} and ramp_steps {self.ramp_steps}, expected 0 or more'
      )
    if self.width % (4 * self.heads):
      raise ConfigError(
        f'regularizer.width is {self.width}, expected a multiple of 4 * heads = {4 * self.heads} '
        '(2-D rotary positions turn quarters of a head)'
      )

  @property
  def stack(self) -> transformer.StackConfig:
    """The transformer's settings."""
    return transformer.StackConfig(
      depth=self.layers,
      width=self.width,
      num_heads=self.heads,
      hidden=self.hidden or -(-8 * self.width // 24) * 8,
      dtype=self.dtype,
    )


class CausalRegularizer(nn.Module):
  """Linear in, causal Stack, linear out: the next latent from those before it."""

  config: RegularizerConfig

  @nn.compact
  def __call__(self, latent_BLD: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Predicts latents from what precedes them.

    Args:
      latent_BLD: in raster order.
      grid: rows and columns of the latent grid, L in all.

    Returns:
      float32 [B, L, D], row i from the latents before i; with start='skip' [B, L - 1, D], from
      position 1 on.
    """
    c = self.config
    B, L, D = latent_BLD.shape
    if grid[0] * grid[1] != L:
      raise ValueError(f'a grid of {grid[0]}x{grid[1]} does not hold {L} latents')
    dense = lambda size, names, name: layers.Dense(
      (size,), names, bias=True, dtype=c.dtype, name=name
    )
    x = dense(c.width, (None, axes.EMBED), 'inputs')(latent_BLD[:, :-1])
    # As in stage 2, an input stands at its own cell, not at that of the latent it helps to predict.
    rotary = positions.rotary_2d(*grid, c.width // c.heads)
    rotary = positions.Rotary(rotary.cos[:-1], rotary.sin[:-1])
    if c.start == 'learned':
      init = axes.weight(nn.initializers.normal(0.02), axes.EMBED)
      start_D = self.param('start', init, (c.width,)).astype(x.dtype)
      x = jnp.concatenate([jnp.broadcast_to(start_D, (B, 1, c.width)), x], axis=1)
      rotary = positions.with_prefix(rotary, 1, zeros=False)
    x = transformer.Stack(c.stack, name='stack')(x, mask=masks.Causal(), rotary=rotary)
    return dense(D, (axes.EMBED, None), 'outputs')(x).astype(jnp.float32)


def latent_of(config: RegularizerConfig, output: VqganOutput) -> jax.Array:
  """The latents that the config's `latent` names, float32 [B, L, D]."""
  if config.latent == 'normalized':
    return output.quantized.latent_BLD
  if config.latent == 'quantized':
    return output.quantized.through_BLD
  maps = output.z_BYXD if config.latent == 'projected' else output.features_BYXC
  return maps.reshape(maps.shape[0], -1, maps.shape[-1]).astype(jnp.float32)


def causal_error(
  config: RegularizerConfig, prediction_BLD: jax.Array, latent_BLD: jax.Array
) -> jax.Array:
  """Mean over positions of the l2 error of predictions (of the last ones, if there are fewer),
  float32 [B].
  """
  target_BLD = latent_BLD[:, latent_BLD.shape[1] - prediction_BLD.shape[1] :]
  if config.stop_grad_target:
    target_BLD = jax.lax.stop_gradient(target_BLD)
  square_BLD = jnp.square(prediction_BLD.astype(jnp.float32) - target_BLD.astype(jnp.float32))
  if config.loss == 'mean_square':
    return jnp.mean(square_BLD, axis=(1, 2))
  square_BL = jnp.sum(square_BLD, axis=-1)
  if config.loss == 'squared_norm':
    return jnp.mean(square_BL, axis=1)
  # The root's slope at 0 is infinite; an exact hit gets slope 0.
  norm_BL = jnp.where(square_BL > 0, jnp.sqrt(jnp.where(square_BL > 0, square_BL, 1.0)), 0.0)
  return jnp.mean(norm_BL, axis=1)


def diagnostics(config: RegularizerConfig, latent_BLD: jax.Array) -> dict[str, jax.Array]:
  """What tells learning from collapse, each float32 [B].

  'copy_left': the error of predicting each latent by the one before it, which near-constant latents
  make as small as the regularizer's own. 'latent_std': standard deviation over the positions of an
  image, mean over channels.
  """
  latent_BLD = jax.lax.stop_gradient(latent_BLD)
  return {
    'copy_left': causal_error(config, latent_BLD[:, :-1], latent_BLD),
    'latent_std': jnp.mean(jnp.std(latent_BLD, axis=1), axis=-1),
  }


def weight_at(config: RegularizerConfig, step: jax.Array) -> jax.Array:
  """Lambda at a step: 0 at step 0, `weight` from `ramp_steps` on."""
  if not config.ramp_steps:
    return jnp.asarray(config.weight, jnp.float32)
  risen = jnp.clip(step.astype(jnp.float32) / config.ramp_steps, 0.0, 1.0)
  if config.ramp == 'cosine':
    risen = 0.5 - 0.5 * jnp.cos(jnp.pi * risen)
  return config.weight * risen


def forward_macs(config: RegularizerConfig, positions_count: int, latent_width: int) -> int:
  """Multiply-adds of predicting one image's latents; half of attention's products are masked but
  computed.
  """
  stack = config.stack
  block = 4 * stack.width**2 + 3 * stack.width * stack.hidden + 2 * positions_count * stack.width
  return positions_count * (config.layers * block + 2 * latent_width * config.width)
