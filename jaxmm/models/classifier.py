"""EfficientNet-Lite, an image classifier, here for its fixed features (Tan & Le 2019,
arXiv:1905.11946).

The "Lite" variant has no squeeze-and-excitation and ReLU6 instead of swish; its stem and head are
not scaled. This is the network for inference: BatchNorm is an affine map then, and is folded into
the convolution before it (`jaxmm.interop.efficientnet` does so when it reads published weights).

Axes: B batch, Y X rows and columns, C channels in, F channels out, I J rows and columns of a
kernel, D feature width, V classes.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from jaxmm.config import ConfigError
from jaxmm.core import axes

# float32 products on every machine: features are compared between machines, and TF32 or bfloat16
# would move them.
_PRECISION = lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class BlockGroup:
  """`repeats` inverted-bottleneck blocks in a row; the first has the stride, the others stride 1.

  Attributes:
    repeats: number of blocks.
    kernel: size of the depthwise kernel.
    stride: of the first block.
    expansion: hidden channels over input channels; 1 leaves the expanding convolution out.
    channels: output channels.
  """

  repeats: int
  kernel: int
  stride: int
  expansion: int
  channels: int


@dataclasses.dataclass(frozen=True)
class ClassifierConfig:
  """Sizes of the network; the defaults are EfficientNet-Lite0 (4.65 M parameters).

  Attributes:
    stem: channels after the first convolution (stride 2).
    groups: the blocks.
    features: channels after the last convolution, the width of the pooled features.
    classes: number of logits.
    image_size: side in pixels the published weights were trained at.
  """

  stem: int = 32
  groups: tuple[BlockGroup, ...] = (
    BlockGroup(1, 3, 1, 1, 16),
    BlockGroup(2, 3, 2, 6, 24),
    BlockGroup(2, 5, 2, 6, 40),
    BlockGroup(3, 3, 2, 6, 80),
    BlockGroup(3, 5, 1, 6, 112),
    BlockGroup(4, 5, 2, 6, 192),
    BlockGroup(1, 3, 1, 6, 320),
  )
  features: int = 1280
  classes: int = 1000
  image_size: int = 224

  def blocks(self) -> list[tuple[BlockGroup, int]]:
    """Every block with its own stride, in order."""
    return [(g, g.stride if i == 0 else 1) for g in self.groups for i in range(g.repeats)]


LITE0 = ClassifierConfig()


@flax.struct.dataclass
class ClassifierOutput:
  """Class scores before softmax, and the features they are a linear map of (mean over
  positions)."""

  logits_BV: jax.Array
  features_BD: jax.Array


def depthwise_conv(x_BYXC: jax.Array, kernel_IJC: jax.Array, stride: int) -> jax.Array:
  """Convolves each channel with its own kernel; 'SAME' padding, of which the odd row is at the end.

  On CPU it is a sum of shifted products, which XLA fuses into one loop over the channels: 10 to 70
  times as fast as its grouped convolution there (two cores, sizes of this network). Other machines
  use the convolution.
  """
  return lax.platform_dependent(
    x_BYXC,
    kernel_IJC,
    cpu=lambda x, w: depthwise_by_shifts(x, w, stride),
    default=lambda x, w: depthwise_by_convolution(x, w, stride),
  )


def depthwise_by_shifts(x_BYXC: jax.Array, kernel_IJC: jax.Array, stride: int) -> jax.Array:
  """`depthwise_conv` as the sum over kernel positions of the shifted image times one weight a
  channel."""
  size = kernel_IJC.shape[0]
  pads = lax.padtype_to_pads(x_BYXC.shape[1:3], (size, size), (stride, stride), 'SAME')
  rows, columns = (-(-n // stride) for n in x_BYXC.shape[1:3])
  x_BYXC = jnp.pad(x_BYXC, ((0, 0), *pads, (0, 0)))

  def shifted(i: int, j: int) -> jax.Array:
    to_row, to_column = i + (rows - 1) * stride + 1, j + (columns - 1) * stride + 1
    return x_BYXC[:, i:to_row:stride, j:to_column:stride] * kernel_IJC[i, j]

  return sum(shifted(i, j) for i in range(size) for j in range(size))


def depthwise_by_convolution(x_BYXC: jax.Array, kernel_IJC: jax.Array, stride: int) -> jax.Array:
  """`depthwise_conv` as a convolution with one group a channel."""
  return lax.conv_general_dilated(
    x_BYXC,
    kernel_IJC[:, :, None, :],
    (stride, stride),
    'SAME',
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=x_BYXC.shape[-1],
    precision=_PRECISION,
  )


class _Affine(nn.Module):
  """Kernel and bias of one convolution, BatchNorm folded in; `kind` says how it is applied."""

  shape: tuple[int, ...]
  names: tuple[str | None, ...]
  kind: str  # 'full', 'depthwise' or 'pointwise'
  stride: int = 1

  @nn.compact
  def __call__(self, x):
    init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
    kernel = self.param('kernel', axes.weight(init, *self.names), self.shape)
    bias = self.param('bias', axes.weight(nn.initializers.zeros, self.names[-1]), (self.shape[-1],))
    if self.kind == 'depthwise':
      return depthwise_conv(x, kernel, self.stride) + bias
    if self.kind == 'pointwise':
      return jnp.einsum('...C,CF->...F', x, kernel, precision=_PRECISION) + bias
    dimensions = ('NHWC', 'HWIO', 'NHWC')
    stride = (self.stride, self.stride)
    return (
      lax.conv_general_dilated(
        x, kernel, stride, 'SAME', dimension_numbers=dimensions, precision=_PRECISION
      )
      + bias
    )


def _pointwise(inputs: int, outputs: int, name: str) -> _Affine:
  return _Affine((inputs, outputs), (axes.CONV_IN, axes.CONV_OUT), 'pointwise', name=name)


class InvertedBlock(nn.Module):
  """Expand (1x1), filter each channel, project (1x1); the input is added where the shape stays."""

  group: BlockGroup
  stride: int

  @nn.compact
  def __call__(self, x_BYXC):
    inputs, size = x_BYXC.shape[-1], self.group.kernel
    hidden = inputs * self.group.expansion
    h_BYXF = x_BYXC
    if self.group.expansion != 1:
      h_BYXF = nn.relu6(_pointwise(inputs, hidden, 'expand')(h_BYXF))
    names = (None, None, axes.CONV_OUT)
    filtered = _Affine((size, size, hidden), names, 'depthwise', self.stride, name='depthwise')
    h_BYXF = nn.relu6(filtered(h_BYXF))
    y_BYXC = _pointwise(hidden, self.group.channels, 'project')(h_BYXF)
    return y_BYXC + x_BYXC if y_BYXC.shape == x_BYXC.shape and self.stride == 1 else y_BYXC


class Classifier(nn.Module):
  """The whole network; parameters and arithmetic are float32."""

  config: ClassifierConfig = LITE0

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> ClassifierOutput:
    """Scores and features of images already mapped by `normalized`; any size of 32 pixels or
    more."""
    config = self.config
    names = (None, None, axes.CONV_IN, axes.CONV_OUT)
    x = _Affine((3, 3, 3, config.stem), names, 'full', 2, name='stem')(image_BYXC)
    x = nn.relu6(x)
    for i, (group, stride) in enumerate(config.blocks()):
      x = InvertedBlock(group, stride, name=f'block_{i}')(x)
    x = nn.relu6(_pointwise(x.shape[-1], config.features, 'head')(x))
    features_BD = x.mean((1, 2))
    logits_BV = _pointwise(config.features, config.classes, 'logits')(features_BD)
    return ClassifierOutput(logits_BV, features_BD)


def normalized(image_BYXC: jax.Array) -> jax.Array:
  """Pixels in [0, 255] as the network was trained on: (x - 127) / 128, float32."""
  return (image_BYXC.astype(jnp.float32) - 127.0) / 128.0


def resized(image_BYXC: jax.Array, size: int) -> jax.Array:
  """Images of [0, 255] as float32 of side `size`: bicubic (a = -0.5), antialiased where it shrinks,
  clipped.

  The same pixels on every machine (float32 weights, no lookup in a library's tables); an image that
  has the size already is not touched.
  """
  x_BYXC = image_BYXC.astype(jnp.float32)
  if x_BYXC.shape[1:3] == (size, size):
    return x_BYXC
  shape = (x_BYXC.shape[0], size, size, x_BYXC.shape[3])
  # Cubic weights overshoot at edges; a picture file could not hold those values.
  return jnp.clip(jax.image.resize(x_BYXC, shape, 'cubic', precision=_PRECISION), 0.0, 255.0)


def image_features(
  params: Any, image_BYXC: jax.Array, *, size: int | None = None, config: ClassifierConfig = LITE0
) -> jax.Array:
  """Pooled features of pictures, float32 [B, D]: what a Frechet distance between sets of images is
  measured in.

  Args:
    params: the tree `Classifier(config)` has under 'params', as
      `interop.efficientnet.read_classifier` returns it.
    image_BYXC: uint8 (or float) pixels in [0, 255], three channels.
    size: side in pixels at which the network sees the image; None is the size the weights were
      trained at (`config.image_size`). Small images cost less at a smaller size, but figures of
      different sizes cannot be compared.
    config: sizes of the network.

  Raises:
    ConfigError: not three channels, or a size below 32.
  """
  return _seen(params, image_BYXC, size, config).features_BD


def image_logits(
  params: Any, image_BYXC: jax.Array, *, size: int | None = None, config: ClassifierConfig = LITE0
) -> jax.Array:
  """Class scores [B, V] of pictures; arguments and errors as of `image_features`."""
  return _seen(params, image_BYXC, size, config).logits_BV


def _seen(params, image_BYXC, size, config) -> ClassifierOutput:
  if image_BYXC.ndim != 4 or image_BYXC.shape[-1] != 3:
    raise ConfigError(
      f'image_BYXC has shape {tuple(image_BYXC.shape)}, expected [B, Y, X, 3]; a grey image must '
      f'be repeated to three '
      'channels, an opacity channel dropped'
    )
  size = config.image_size if size is None else size
  if size < 32:
    raise ConfigError(
      f'size is {size}, expected 32 or more pixels (the network halves the image five times)'
    )
  return Classifier(config).apply({'params': params}, normalized(resized(image_BYXC, size)))
