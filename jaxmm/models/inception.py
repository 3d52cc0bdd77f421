"""The Inception network of FID, for inference: the classifier of 2015 with 1008 outputs.

Szegedy et al. 2015 (arXiv:1512.00567), as TensorFlow published it on 2015-12-05 and as the PyTorch
package `pytorch-fid` ports it. It is not torchvision's Inception-v3: average pools inside the
blocks do not count the padding, and the last block has a maximum where others have an average.
BatchNorm (epsilon 0.001) is an affine map here and is folded into the convolution before it
(`jaxmm.interop.inception` does so). Names of parameters are those of the public PyTorch weights.

Axes: B batch, Y X rows and columns, C channels in, F channels out, D pooled features (2048), S
spatial features (2023), V classes (1008).
"""

from __future__ import annotations

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from jaxmm.core import axes

# float32 products on every machine: statistics are compared between machines, and TF32 or bfloat16
# would move them.
_PRECISION = lax.Precision.HIGHEST

# Pixels a side of the input, width of the pooled features, classes.
IMAGE_SIZE, FEATURES, CLASSES = 299, 2048, 1008
# Channels of the map that sFID reads, and its positions times those.
_SPATIAL_CHANNELS = 7
SPATIAL_FEATURES = 17 * 17 * _SPATIAL_CHANNELS


@flax.struct.dataclass
class InceptionOutput:
  """Mean over positions of the last map (`pool_3`), and the first 7 channels of TensorFlow's
  `mixed_6/conv` (17x17, row by row, channels last) that sFID is measured in."""

  pool_BD: jax.Array
  spatial_BS: jax.Array


class _Conv(nn.Module):
  """Convolution with bias (BatchNorm folded in), then ReLU."""

  channels: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  is_padded: bool = True

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    shape = (*self.kernel, x_BYXC.shape[-1], self.channels)
    init = nn.initializers.variance_scaling(2.0, 'fan_in', 'normal')
    names = (None, None, axes.CONV_IN, axes.CONV_OUT)
    kernel = self.param('kernel', axes.weight(init, *names), shape)
    bias = self.param('bias', axes.weight(nn.initializers.zeros, axes.CONV_OUT), shape[-1:])
    if self.kernel == (1, 1):  # three to four times as fast on a CPU as XLA's convolution
      y = jnp.einsum('BYXC,CF->BYXF', x_BYXC, kernel[0, 0], precision=_PRECISION)
      return nn.relu(y + bias)
    pads = [(k // 2, k // 2) if self.is_padded else (0, 0) for k in self.kernel]
    y = lax.conv_general_dilated(
      x_BYXC,
      kernel,
      (self.stride, self.stride),
      pads,
      dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
      precision=_PRECISION,
    )
    return nn.relu(y + bias)


def _max_pool(x_BYXC: jax.Array, stride: int, pad: int) -> jax.Array:
  return nn.max_pool(x_BYXC, (3, 3), (stride, stride), ((pad, pad), (pad, pad)))


def _mean_pool(x_BYXC: jax.Array) -> jax.Array:
  """Mean of 3x3 squares, of those positions alone that lie inside."""
  return nn.avg_pool(x_BYXC, (3, 3), (1, 1), ((1, 1), (1, 1)), count_include_pad=False)


class _BlockA(nn.Module):
  """Blocks of 35x35."""

  pool_channels: int

  @nn.compact
  def __call__(self, x):
    five = _Conv(64, (5, 5), name='branch5x5_2')(_Conv(48, name='branch5x5_1')(x))
    three = _Conv(96, (3, 3), name='branch3x3dbl_2')(_Conv(64, name='branch3x3dbl_1')(x))
    three = _Conv(96, (3, 3), name='branch3x3dbl_3')(three)
    pool = _Conv(self.pool_channels, name='branch_pool')(_mean_pool(x))
    return jnp.concatenate([_Conv(64, name='branch1x1')(x), five, three, pool], -1)


class _BlockB(nn.Module):
  """From 35x35 to 17x17."""

  @nn.compact
  def __call__(self, x):
    one = _Conv(384, (3, 3), 2, False, name='branch3x3')(x)
    two = _Conv(96, (3, 3), name='branch3x3dbl_2')(_Conv(64, name='branch3x3dbl_1')(x))
    two = _Conv(96, (3, 3), 2, False, name='branch3x3dbl_3')(two)
    return jnp.concatenate([one, two, _max_pool(x, 2, 0)], -1)


class _BlockC(nn.Module):
  """Blocks of 17x17; also returns the branch that is one convolution, which sFID reads."""

  hidden: int

  @nn.compact
  def __call__(self, x):
    hidden, row, column = self.hidden, (1, 7), (7, 1)
    one = _Conv(192, name='branch1x1')(x)
    seven = _Conv(hidden, row, name='branch7x7_2')(_Conv(hidden, name='branch7x7_1')(x))
    seven = _Conv(192, column, name='branch7x7_3')(seven)
    twice = _Conv(hidden, name='branch7x7dbl_1')(x)
    for i, kernel in enumerate([column, row, column], 2):
      twice = _Conv(hidden, kernel, name=f'branch7x7dbl_{i}')(twice)
    twice = _Conv(192, row, name='branch7x7dbl_5')(twice)
    pool = _Conv(192, name='branch_pool')(_mean_pool(x))
    return jnp.concatenate([one, seven, twice, pool], -1), one


class _BlockD(nn.Module):
  """From 17x17 to 8x8."""

  @nn.compact
  def __call__(self, x):
    three = _Conv(192, name='branch3x3_1')(x)
    three = _Conv(320, (3, 3), 2, False, name='branch3x3_2')(three)
    seven = _Conv(192, name='branch7x7x3_1')(x)
    seven = _Conv(192, (1, 7), name='branch7x7x3_2')(seven)
    seven = _Conv(192, (7, 1), name='branch7x7x3_3')(seven)
    seven = _Conv(192, (3, 3), 2, False, name='branch7x7x3_4')(seven)
    return jnp.concatenate([three, seven, _max_pool(x, 2, 0)], -1)


class _BlockE(nn.Module):
  """Blocks of 8x8."""

  takes_maximum: bool

  @nn.compact
  def __call__(self, x):
    def pair(y, name):
      return [_Conv(384, (1, 3), name=f'{name}a')(y), _Conv(384, (3, 1), name=f'{name}b')(y)]

    three = pair(_Conv(384, name='branch3x3_1')(x), 'branch3x3_2')
    twice = _Conv(384, (3, 3), name='branch3x3dbl_2')(_Conv(448, name='branch3x3dbl_1')(x))
    twice = pair(twice, 'branch3x3dbl_3')
    pool = _max_pool(x, 1, 1) if self.takes_maximum else _mean_pool(x)
    pool = _Conv(192, name='branch_pool')(pool)
    return jnp.concatenate([_Conv(320, name='branch1x1')(x), *three, *twice, pool], -1)


class _Head(nn.Module):
  """The last linear map; its bias is there and is not used by the Inception Score of ADM."""

  @nn.compact
  def __call__(self, pool_BD):
    init = nn.initializers.variance_scaling(1.0, 'fan_in', 'normal')
    shape = (FEATURES, CLASSES)
    kernel = self.param('kernel', axes.weight(init, axes.CONV_IN, axes.CONV_OUT), shape)
    bias = self.param('bias', axes.weight(nn.initializers.zeros, axes.CONV_OUT), (CLASSES,))
    return jnp.einsum('BD,DV->BV', pool_BD, kernel, precision=_PRECISION) + bias


class Inception(nn.Module):
  """The whole network, 23.9 M parameters; parameters and arithmetic are float32."""

  def setup(self):
    self.Conv2d_1a_3x3 = _Conv(32, (3, 3), 2, False)
    self.Conv2d_2a_3x3 = _Conv(32, (3, 3), 1, False)
    self.Conv2d_2b_3x3 = _Conv(64, (3, 3))
    self.Conv2d_3b_1x1 = _Conv(80)
    self.Conv2d_4a_3x3 = _Conv(192, (3, 3), 1, False)
    self.Mixed_5b, self.Mixed_5c, self.Mixed_5d = _BlockA(32), _BlockA(64), _BlockA(64)
    self.Mixed_6a = _BlockB()
    self.Mixed_6b, self.Mixed_6c = _BlockC(128), _BlockC(160)
    self.Mixed_6d, self.Mixed_6e = _BlockC(160), _BlockC(192)
    self.Mixed_7a = _BlockD()
    self.Mixed_7b, self.Mixed_7c = _BlockE(False), _BlockE(True)
    self.fc = _Head()

  def __call__(self, image_BYXC: jax.Array) -> InceptionOutput:
    """Features of images [B, 299, 299, 3] in [-1, 1], resized and scaled as
    `jaxmm.evaluate.inception` does."""
    x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(image_BYXC)))
    x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_max_pool(x, 2, 0)))
    x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_max_pool(x, 2, 0))))
    x = self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))[0])[0]
    x, branch = self.Mixed_6d(x)
    spatial = branch[..., :_SPATIAL_CHANNELS]
    x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x)[0])))
    return InceptionOutput(x.mean((1, 2)), spatial.reshape(len(spatial), -1))

  def logits(self, image_BYXC: jax.Array) -> jax.Array:
    """Class scores before softmax, [B, 1008]."""
    return self.fc(self(image_BYXC).pool_BD)
