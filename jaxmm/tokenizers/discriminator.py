"""Patch discriminator (pix2pix, arXiv:1611.07004) and the adversarial losses of VQGAN training
(arXiv:2012.09841).

4x4 convolutions with padding 1 and leaky ReLU 0.2; channels, strides and initialisation as in
taming-transformers and LlamaGen. Every logit judges one patch.

Axes: B batch, Y rows, X columns, C channels; rows and columns of logits are those of the patch
grid.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import axes, convnet, convolution
from jaxmm.core.losses import SumCount, weighted_sum

_PAD_ONE = ((1, 1), (1, 1))
_BATCH_NORM_EPS, _BATCH_NORM_MOMENTUM = 1e-5, 0.1  # torch's
_KERNEL = 4


@dataclasses.dataclass(frozen=True)
class DiscriminatorConfig:
  """Settings of the patch discriminator; the default has LlamaGen's 2.77M parameters.

  Attributes:
    channels: width of the first layer; doubled a layer up to eightfold.
    layers: stride-2 convolutions; one of stride 1 and the one that makes logits follow.
    norm: normalisation of all layers but the first and the last. 'batch' is the original's:
      statistics of all valid rows that are judged together, over all devices, so it is exact on any
      mesh; but a microbatch only knows its own rows, so under gradient accumulation the result is
      that of smaller normalisation batches, not the full batch's. 'group' (one example's
      statistics, 32 groups or as many as divide) and 'none' are exact under accumulation too.
    dtype: in which convolutions compute; parameters and statistics are float32.
  """

  channels: int = 64
  layers: int = 3
  norm: Literal['batch', 'group', 'none'] = 'batch'
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    for name in ('channels', 'layers'):
      if getattr(self, name) < 1:
        raise ConfigError(f'discriminator.{name} is {getattr(self, name)}, expected at least 1')
    if self.norm not in ('batch', 'group', 'none'):
      raise ConfigError(f"discriminator.norm is {self.norm!r}, expected 'batch', 'group' or 'none'")
    if self.dtype not in ('float32', 'bfloat16'):
      raise ConfigError(f"discriminator.dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")

  @property
  def plan(self) -> tuple[tuple[int, int], ...]:
    """(channels, stride) of each convolution but the last."""
    widths = [self.channels * min(2**i, 8) for i in range(self.layers + 1)]
    return tuple((w, 1 if i == self.layers else 2) for i, w in enumerate(widths))

  def patches(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of logits of an image.

    Raises:
      ConfigError: the image is too small for this many layers.
    """
    sides = []
    for side in (height, width):
      for stride in [s for _, s in self.plan] + [1]:
        side = (side + 2 - _KERNEL) // stride + 1
      sides.append(side)
    if min(sides) < 1:
      raise ConfigError(
        f'discriminator.layers is {self.layers}, too many for images of {height}x{width}: no '
        'patch is left; use fewer layers (each halves the image)'
      )
    return sides[0], sides[1]


class _Conv(nn.Module):
  """4x4 convolution; kernel N(0, 0.02), bias (where there is one) uniform as torch's default."""

  features: int
  stride: int
  bias: bool
  dtype: str

  @nn.compact
  def __call__(self, x_BYXC):
    channels = x_BYXC.shape[-1]
    names = (None, None, axes.CONV_IN, axes.CONV_OUT)
    init = axes.weight(nn.initializers.normal(0.02), *names)
    kernel = self.param('kernel', init, (_KERNEL, _KERNEL, channels, self.features))
    y = convolution.conv(
      x_BYXC.astype(self.dtype), kernel.astype(self.dtype), self.stride, _PAD_ONE
    )
    if self.bias:
      init = axes.weight(convnet.fan_in_uniform(_KERNEL**2 * channels), axes.CONV_OUT)
      y = y + self.param('bias', init, (self.features,)).astype(self.dtype)
    return y


class _BatchNorm(nn.Module):
  """Batch normalisation over the valid rows, in float32; also returns the sums that running
  statistics need."""

  @nn.compact
  def __call__(self, x_BYXC, weight_B, running=None):
    B, Y, X, C = x_BYXC.shape
    names = axes.weight(_near_one, axes.CONV_OUT), axes.weight(nn.initializers.zeros, axes.CONV_OUT)
    scale_C, bias_C = self.param('scale', names[0], (C,)), self.param('bias', names[1], (C,))
    x = x_BYXC.astype(jnp.float32)
    weight = weight_B.astype(jnp.float32)[:, None, None, None]
    x_seen = jnp.where(weight > 0, x, 0.0)
    count = jnp.sum(weight) * (Y * X)
    if running is None:
      total = jnp.maximum(count, 1.0)
      mean_C = jnp.sum(x_seen * weight, axis=(0, 1, 2)) / total
      var_C = jnp.sum(weight * jnp.square(x_seen - mean_C), axis=(0, 1, 2)) / total
    else:
      mean_C, var_C = running['mean_C'], running['var_C']
    sums = {
      'count': count,
      'sum_C': jnp.sum(x_seen * weight, axis=(0, 1, 2)),
      'square_C': jnp.sum(jnp.square(x_seen) * weight, axis=(0, 1, 2)),
    }
    y = (x - mean_C) * jax.lax.rsqrt(var_C + _BATCH_NORM_EPS) * scale_C + bias_C
    return y, jax.lax.stop_gradient(sums)


def _near_one(key, shape, dtype=jnp.float32):
  return 1.0 + 0.02 * jax.random.normal(key, shape, dtype)


class Discriminator(nn.Module):
  """Logits of patches: high where an image looks real."""

  config: DiscriminatorConfig

  @nn.compact
  def __call__(
    self, image_BYXC: jax.Array, weight_B: jax.Array, running: dict | None = None
  ) -> tuple[jax.Array, dict]:
    """Judges images in [-1, 1].

    Args:
      image_BYXC: rows that are judged together share the statistics of batch normalisation.
      weight_B: 0 for rows that must not enter those statistics.
      running: running statistics to normalise by instead (evaluation with norm 'batch').

    Returns:
      Float32 logits [B, Y', X'], and the sums for `update_running` ({} unless norm is 'batch').
    """
    c, sums = self.config, {}
    c.patches(*image_BYXC.shape[1:3])
    x = image_BYXC
    for i, (features, stride) in enumerate(c.plan):
      has_norm = i > 0 and c.norm != 'none'
      x = _Conv(features, stride, not has_norm, c.dtype, name=f'conv_{i}')(x)
      if has_norm and c.norm == 'batch':
        name = f'norm_{i}'
        x, sums[name] = _BatchNorm(name=name)(x, weight_B, running and running[name])
      elif has_norm:
        groups = next(g for g in range(min(32, features), 0, -1) if features % g == 0)
        x = convnet.GroupNorm(groups, name=f'norm_{i}')(x)
      x = nn.leaky_relu(x.astype(c.dtype), 0.2)
      x = axes.constrain(x, axes.BATCH, None, None, axes.ACT_CHANNELS)
    logits = _Conv(1, 1, True, c.dtype, name='conv_out')(x)
    return logits[..., 0].astype(jnp.float32), sums


def initial_running(config: DiscriminatorConfig) -> dict:
  """Running statistics of batch normalisation before the first step; {} for other norms."""
  if config.norm != 'batch':
    return {}
  return {
    f'norm_{i}': {'mean_C': jnp.zeros(c), 'var_C': jnp.ones(c)}
    for i, (c, _) in enumerate(config.plan)
    if i > 0
  }


def update_running(running: dict, sums: dict) -> dict:
  """Running statistics after a step, from `Discriminator`'s sums added over everything judged in
  it.

  One update a step, from real and reconstructed images together (torch makes one a call); momentum
  0.1, unbiased variance. A step in which nothing was judged leaves them alone.
  """

  def one(old, new):
    count = new['count']
    mean_C = new['sum_C'] / jnp.maximum(count, 1.0)
    square_C = new['square_C'] / jnp.maximum(count, 1.0)
    var_C = jnp.maximum(square_C - mean_C**2, 0.0) * count / jnp.maximum(count - 1.0, 1.0)
    keep = jnp.where(count > 0, 1 - _BATCH_NORM_MOMENTUM, 1.0)
    return {
      'mean_C': keep * old['mean_C'] + (1 - keep) * mean_C,
      'var_C': keep * old['var_C'] + (1 - keep) * var_C,
    }

  return {name: one(running[name], sums[name]) for name in running}


def discriminator_loss(
  kind: str, real_BYX: jax.Array, fake_BYX: jax.Array, weight_B: jax.Array
) -> SumCount:
  """What the discriminator lowers: half of (loss on real + loss on fake), mean over patches.

  'hinge': relu(1 - real), relu(1 + fake) (arXiv:1705.02894). 'non_saturating': softplus(-real),
  softplus(fake), the cross-entropies of the labels real and fake (arXiv:1406.2661).

  Returns:
    Sum over examples with `weight_B`, and the weights' sum.
  """
  if kind == 'hinge':
    loss_BYX = 0.5 * (nn.relu(1 - real_BYX) + nn.relu(1 + fake_BYX))
  elif kind == 'non_saturating':
    loss_BYX = 0.5 * (nn.softplus(-real_BYX) + nn.softplus(fake_BYX))
  else:
    raise _unknown_loss(kind)
  return weighted_sum(jnp.mean(loss_BYX, axis=(1, 2)), weight_B)


def generator_loss(kind: str, fake_BYX: jax.Array, weight_B: jax.Array) -> SumCount:
  """What the generator lowers, mean over patches: -fake ('hinge') or softplus(-fake)
  ('non_saturating').

  Returns:
    Sum over examples with `weight_B`, and the weights' sum.
  """
  if kind == 'hinge':
    loss_BYX = -fake_BYX
  elif kind == 'non_saturating':
    loss_BYX = nn.softplus(-fake_BYX)
  else:
    raise _unknown_loss(kind)
  return weighted_sum(jnp.mean(loss_BYX, axis=(1, 2)), weight_B)


def _unknown_loss(kind: str) -> ConfigError:
  return ConfigError(f"adversarial.loss is {kind!r}, expected 'hinge' or 'non_saturating'")


def adaptive_weight(
  reconstruction_grad: jax.Array, adversarial_grad: jax.Array, limit: float = 1e4
) -> jax.Array:
  """|grad of reconstruction| / (|grad of adversarial| + 1e-4), in [0, limit] (arXiv:2012.09841, eq.
  7).

  Both are gradients with respect to the kernel of the decoder's last convolution; no gradient flows
  through the weight.
  """
  norms = [jnp.sqrt(jnp.sum(jnp.square(g))) for g in (reconstruction_grad, adversarial_grad)]
  return jax.lax.stop_gradient(jnp.clip(norms[0] / (norms[1] + 1e-4), 0.0, limit))


def forward_macs(config: DiscriminatorConfig, image_channels: int, height: int, width: int) -> int:
  """Multiply-adds of judging one image, convolutions only."""
  macs, before = 0, image_channels
  for features, stride in (*config.plan, (1, 1)):
    height, width = ((side + 2 - _KERNEL) // stride + 1 for side in (height, width))
    macs += height * width * _KERNEL**2 * before * features
    before = features
  return macs
