"""Convolution nets of image tokenizers: normalised, residual, resampling and attending blocks on
NHWC maps.

Axes: B batch, Y rows, X columns, C channels, G groups of channels, I and O a layer's channels in
and out, H and W rows and columns of a kernel, L = Y * X positions.
"""

from __future__ import annotations

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from jaxmm.config import ConfigError
from jaxmm.core import axes, convolution, initializers

Padding = convolution.Padding

SAME_3X3: Padding = ((1, 1), (1, 1))
# One zero row below and one column to the right (taming-transformers and its descendants).
DOWN_3X3: Padding = ((0, 1), (0, 1))


def fan_in_uniform(fan_in: int):
  """Initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in)), for kernels and biases alike."""
  return initializers.uniform(1 / math.sqrt(fan_in))


class Conv(nn.Module):
  """2-D convolution; parameters `kernel` [H, W, I, O] and `bias` [O], float32.

  Attributes:
    features: channels out.
    kernel: rows and columns of the kernel.
    stride: step of the output in rows and columns.
    padding: zeros ((above, below), (left, right)).
    dtype: in which it computes.
    bias: whether it has one.
  """

  features: int
  kernel: int = 3
  stride: int = 1
  padding: Padding = SAME_3X3
  dtype: str = 'float32'
  bias: bool = True

  @nn.compact
  def __call__(self, x_BYXI: jax.Array) -> jax.Array:
    channels = x_BYXI.shape[-1]
    init = fan_in_uniform(self.kernel**2 * channels)
    kernel_HWIO = self.param(
      'kernel',
      axes.weight(init, None, None, axes.CONV_IN, axes.CONV_OUT),
      (self.kernel, self.kernel, channels, self.features),
    )
    y_BYXO = convolution.conv(
      x_BYXI.astype(self.dtype), kernel_HWIO.astype(self.dtype), self.stride, self.padding
    )
    if not self.bias:
      return y_BYXO
    bias_O = self.param('bias', axes.weight(init, axes.CONV_OUT), (self.features,))
    return y_BYXO + bias_O.astype(self.dtype)


def pointwise(features: int, dtype: str, name: str | None = None) -> Conv:
  """A 1x1 convolution: one matrix for all positions."""
  return Conv(features, kernel=1, padding=((0, 0), (0, 0)), dtype=dtype, name=name)


class GroupNorm(nn.Module):
  """Group normalisation (Wu & He 2018, arXiv:1803.08494), statistics in float32, then swish if
  asked.

  Parameters `scale` and `bias` [C]. The channels of one group are adjacent.

  Raises:
    ConfigError: the groups do not divide the channels.
  """

  groups: int = 32
  eps: float = 1e-6
  swish: bool = False
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    channels = x_BYXC.shape[-1]
    if channels % self.groups:
      raise ConfigError(
        f'norm_groups is {self.groups}, which does not divide a layer of {channels} channels; '
        f'choose a divisor, such as {math.gcd(self.groups, channels)}'
      )
    scale_C = self.param('scale', axes.weight(nn.initializers.ones, None), (channels,))
    bias_C = self.param('bias', axes.weight(nn.initializers.zeros, None), (channels,))
    y_BYXC = group_norm(x_BYXC, scale_C, bias_C, self.groups, self.eps, self.swish)
    return y_BYXC.astype(self.dtype)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def group_norm(
  x_BYXC: jax.Array,
  scale_C: jax.Array,
  bias_C: jax.Array,
  groups: int,
  eps: float = 1e-6,
  swish: bool = False,
) -> jax.Array:
  """`scale * (x - mean) / sqrt(var + eps) + bias` with one mean and variance a group, then swish.

  The backward pass keeps the input and the statistics and rebuilds the rest, and it reads the map
  twice; what automatic differentiation keeps is several maps.
  """
  return _normalise(x_BYXC, scale_C, bias_C, groups, eps, swish)[0]


def _normalise(x_BYXC, scale_C, bias_C, groups, eps, swish):
  x = x_BYXC.astype(jnp.float32)
  mean_BC = _group_mean(x.mean((1, 2)), groups)
  centred = x - mean_BC[:, None, None]
  factor_BC = lax.rsqrt(_group_mean(jnp.square(centred).mean((1, 2)), groups) + eps)
  y = centred * factor_BC[:, None, None] * scale_C + bias_C
  y = nn.swish(y) if swish else y
  return y.astype(x_BYXC.dtype), (x_BYXC, scale_C, bias_C, mean_BC, factor_BC)


def _group_mean(x_BC: jax.Array, groups: int) -> jax.Array:
  """Each channel's value replaced by the mean over its group."""
  B, C = x_BC.shape
  mean_BG1 = x_BC.reshape(B, groups, C // groups).mean(-1, keepdims=True)
  return jnp.broadcast_to(mean_BG1, (B, groups, C // groups)).reshape(B, C)


def _normalise_backward(groups, eps, swish, residuals, grad_BYXC):
  x_BYXC, scale_C, bias_C, mean_BC, factor_BC = residuals
  grad = grad_BYXC.astype(jnp.float32)
  unit = (x_BYXC.astype(jnp.float32) - mean_BC[:, None, None]) * factor_BC[:, None, None]
  if swish:
    y = unit * scale_C + bias_C
    gate = jax.nn.sigmoid(y)
    grad = grad * gate * (1 + y * (1 - gate))
  positions = x_BYXC.shape[1] * x_BYXC.shape[2]
  sum_BC, product_BC = grad.sum((1, 2)), (grad * unit).sum((1, 2))
  shift_BC = _group_mean(scale_C * sum_BC, groups) / positions
  slope_BC = _group_mean(scale_C * product_BC, groups) / positions
  x_grad = grad * scale_C - shift_BC[:, None, None] - unit * slope_BC[:, None, None]
  x_grad = (x_grad * factor_BC[:, None, None]).astype(x_BYXC.dtype)
  return x_grad, product_BC.sum(0), sum_BC.sum(0)


group_norm.defvjp(_normalise, _normalise_backward)


class Res(nn.Module):
  """norm, swish, 3x3 conv, norm, swish, 3x3 conv, added to the input (1x1 conv where widths
  differ).
  """

  features: int
  groups: int = 32
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    norm = functools.partial(GroupNorm, self.groups, swish=True, dtype=self.dtype)
    h_BYXC = norm(name='norm1')(x_BYXC)
    h_BYXC = Conv(self.features, dtype=self.dtype, name='conv1')(h_BYXC)
    h_BYXC = norm(name='norm2')(h_BYXC)
    h_BYXC = Conv(self.features, dtype=self.dtype, name='conv2')(h_BYXC)
    if x_BYXC.shape[-1] != self.features:
      x_BYXC = pointwise(self.features, self.dtype, 'shortcut')(x_BYXC)
    return constrain(x_BYXC.astype(self.dtype) + h_BYXC)


class Attn(nn.Module):
  """Residual single-head attention of every position to every position; softmax in float32."""

  groups: int = 32
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    B, Y, X, C = x_BYXC.shape
    h_BYXC = GroupNorm(self.groups, dtype=self.dtype, name='norm')(x_BYXC)
    q_BLC, k_BLC, v_BLC = (
      pointwise(C, self.dtype, name)(h_BYXC).reshape(B, Y * X, C) for name in 'qkv'
    )
    logits_BLS = jnp.einsum('BLC,BSC->BLS', q_BLC, k_BLC, preferred_element_type=jnp.float32)
    weights_BLS = jax.nn.softmax(logits_BLS * C**-0.5, axis=-1).astype(self.dtype)
    h_BYXC = jnp.einsum('BLS,BSC->BLC', weights_BLS, v_BLC).reshape(B, Y, X, C)
    return constrain(x_BYXC.astype(self.dtype) + pointwise(C, self.dtype, 'proj')(h_BYXC))


class Down(nn.Module):
  """Halves rows and columns by a 3x3 convolution of stride 2, padded below and to the right
  only.
  """

  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    conv = Conv(x_BYXC.shape[-1], stride=2, padding=DOWN_3X3, dtype=self.dtype, name='conv')
    return constrain(conv(x_BYXC))


class Up(nn.Module):
  """Doubles rows and columns (each value four times), then a 3x3 convolution."""

  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    B, Y, X, C = x_BYXC.shape
    wide = jnp.broadcast_to(x_BYXC[:, :, None, :, None], (B, Y, 2, X, 2, C))
    conv = Conv(C, dtype=self.dtype, name='conv')
    return constrain(conv(wide.reshape(B, 2 * Y, 2 * X, C)))


def constrain(x_BYXC: jax.Array) -> jax.Array:
  """States the logical axes of a map."""
  return axes.constrain(x_BYXC, axes.BATCH, None, None, axes.ACT_CHANNELS)
