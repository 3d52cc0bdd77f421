"""How an image's latent map becomes tokens of a transformer, and how tokens become a map again.

Two ways (Zhou et al. 2024, arXiv:2408.11039, section 3.2): a linear layer over patches of k x k
latent pixels, or the two halves of a U-Net around the transformer. Both are told the timestep, and
work out its embedding once an image.

The paper leaves the U-Net's inside open but for plain layer norm in place of adaptive layer norm.
Our reading: residual blocks of two 3x3 convolutions, layer norm over the channels of each pixel,
the time embedding added between the convolutions, halving by convolutions of stride 2, a skip from
every block on the way down to its counterpart on the way up, no attention (the transformer is it);
widths that make about 0.27B parameters.

Axes: N images, Y X rows and columns of a map, C channels, P patches of an image, D width.
"""

from __future__ import annotations

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import axes, convnet, diffusion, layers

# A U-Net's level is this many times as wide as its first; levels below have the last number.
LEVEL_WIDTHS = (1, 2)


def patches_of(x_NYXC: jax.Array, patch: int) -> jax.Array:
  """Patches in raster order, pixels of a patch too: [N, Y X / patch^2, patch^2 C]."""
  N, Y, X, C = x_NYXC.shape
  split = x_NYXC.reshape(N, Y // patch, patch, X // patch, patch, C)
  return split.swapaxes(2, 3).reshape(N, -1, patch * patch * C)


def map_of(patches_NP: jax.Array, patch: int, rows: int) -> jax.Array:
  """The inverse of `patches_of` for maps of so many rows."""
  N, P, C = patches_NP.shape
  rows, columns = rows // patch, P * patch // rows
  split = patches_NP.reshape(N, rows, columns, patch, patch, C // patch**2)
  return split.swapaxes(2, 3).reshape(N, rows * patch, columns * patch, -1)


class TimeEmbedding(nn.Module):
  """Sinusoids of the timestep through a two-layer perceptron, [N, width]."""

  width: int
  hidden: int
  num_features: int = 256
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, time_N: jax.Array) -> jax.Array:
    dense = lambda width, name: layers.Dense(
      (width,), (None, None), bias=True, dtype=self.dtype, name=name
    )
    features = diffusion.time_features(time_N, self.num_features)
    return dense(self.width, 'out')(nn.silu(dense(self.hidden, 'in')(features)))


class LinearPatches(nn.Module):
  """One linear layer in, one out.

  Attributes:
    patch: k, latent pixels along each side of a patch.
    size: Y = X of the map.
    channels: C.
    width: D.
    time: where the time embedding is added: 'patch', to the patch's k k C numbers before the layer,
      as the paper says; 'width', to what comes out (a common variant).
  """

  patch: int
  size: int
  channels: int
  width: int
  time: str
  init_std: float
  dtype: str

  def setup(self):
    numbers = self.patch**2 * self.channels
    init = nn.initializers.normal(self.init_std)
    width = numbers if self.time == 'patch' else self.width
    self.time_embedding = TimeEmbedding(width, 256, dtype=self.dtype)
    self.patch_in = layers.Dense(
      (self.width,), (None, axes.EMBED), bias=True, initializer=init, dtype=self.dtype
    )
    # Zero: training starts from the guess of no noise, whose loss is 1.
    zeros = nn.initializers.zeros
    self.patch_out = layers.Dense(
      (numbers,), (axes.EMBED, None), bias=True, initializer=zeros, dtype=self.dtype
    )

  def encode(self, x_NYXC: jax.Array, time_N: jax.Array) -> tuple[jax.Array, tuple]:
    """Tokens [N, P, D], and nothing to be remembered."""
    time_N1 = self.time_embedding(time_N)[:, None]
    patches_NP = patches_of(x_NYXC.astype(self.dtype), self.patch)
    if self.time == 'patch':
      return self.patch_in(patches_NP + time_N1), ()
    return self.patch_in(patches_NP) + time_N1, ()

  def decode(self, tokens_NPD: jax.Array, remembered: tuple, time_N: jax.Array) -> jax.Array:
    """The map [N, Y, X, C], float32."""
    del remembered, time_N
    return map_of(self.patch_out(tokens_NPD), self.patch, self.size).astype(jnp.float32)


class Res(nn.Module):
  """norm, swish, convolution, + time, norm, swish, convolution, added to the input."""

  width: int
  dtype: str

  @nn.compact
  def __call__(self, x_NYXC: jax.Array, time_NC: jax.Array) -> jax.Array:
    norm = lambda name: layers.LayerNorm(axis_name=None, name=name)
    conv = lambda name: convnet.Conv(self.width, dtype=self.dtype, name=name)
    x_NYXC = x_NYXC.astype(self.dtype)
    h_NYXC = conv('conv1')(nn.swish(norm('norm1')(x_NYXC)))
    time = layers.Dense((self.width,), (None, None), bias=True, dtype=self.dtype, name='time')
    h_NYXC = h_NYXC + time(nn.swish(time_NC))[:, None, None]
    h_NYXC = conv('conv2')(nn.swish(norm('norm2')(h_NYXC)))
    if x_NYXC.shape[-1] != self.width:
      x_NYXC = convnet.pointwise(self.width, self.dtype, 'shortcut')(x_NYXC)
    return convnet.constrain(x_NYXC + h_NYXC)


def level_widths(base: int, patch: int) -> tuple[int, ...]:
  """Channels of each level, the map's own resolution first; log2(patch) + 1 of them."""
  levels = int(math.log2(patch)) + 1
  return tuple(base * LEVEL_WIDTHS[min(i, len(LEVEL_WIDTHS) - 1)] for i in range(levels))


class UNetPatches(nn.Module):
  """The way down before the transformer, the way up after it.

  Attributes:
    patch: k, a power of two: the map is halved log2(k) times.
    size, channels, width: as of `LinearPatches`.
    base: channels at the map's own resolution; see LEVEL_WIDTHS.
    blocks: residual blocks a level, on each way.
  """

  patch: int
  size: int
  channels: int
  width: int
  base: int
  blocks: int
  dtype: str

  def setup(self):
    widths = level_widths(self.base, self.patch)
    levels, rows = range(len(widths)), range(self.blocks)
    self.time_embedding = TimeEmbedding(4 * self.base, 4 * self.base, dtype=self.dtype)
    self.conv_in = convnet.Conv(self.base, dtype=self.dtype)
    self.down = [[Res(widths[i], self.dtype) for _ in rows] for i in levels]
    self.halve = [convnet.Down(self.dtype) for _ in widths[1:]]
    self.tokens = layers.Dense((self.width,), (None, axes.EMBED), bias=True, dtype=self.dtype)
    self.map = layers.Dense((widths[-1],), (axes.EMBED, None), bias=True, dtype=self.dtype)
    self.up = [[Res(widths[i], self.dtype) for _ in rows] for i in levels]
    self.double = [convnet.Up(self.dtype) for _ in widths[1:]]
    self.norm_out = layers.LayerNorm(axis_name=None)
    zeros = nn.initializers.zeros
    self.conv_out = layers.Dense(
      (self.channels,), (None, None), bias=True, initializer=zeros, dtype=self.dtype
    )

  def encode(self, x_NYXC: jax.Array, time_N: jax.Array) -> tuple[jax.Array, tuple]:
    """Tokens [N, P, D], and the maps that `decode` takes up again."""
    time_NC, h, remembered = self.time_embedding(time_N), self.conv_in(x_NYXC), []
    for level, blocks in enumerate(self.down):
      if level:
        h = self.halve[level - 1](h)
      for block in blocks:
        h = block(h, time_NC)
        remembered.append(h)
    return self.tokens(h.reshape(h.shape[0], -1, h.shape[-1])), tuple(remembered)

  def decode(self, tokens_NPD: jax.Array, remembered: tuple, time_N: jax.Array) -> jax.Array:
    """The map [N, Y, X, C], float32."""
    time_NC, remembered = self.time_embedding(time_N), list(remembered)
    side = self.size // self.patch
    h = self.map(tokens_NPD)
    h = h.reshape(h.shape[0], side, side, h.shape[-1])
    for level in reversed(range(len(self.up))):
      for block in self.up[level]:
        h = block(jnp.concatenate([h, remembered.pop()], axis=-1), time_NC)
      if level:
        h = self.double[level - 1](h)
    return self.conv_out(nn.swish(self.norm_out(h))).astype(jnp.float32)


def check(kind: str, patch: int, size: int) -> None:
  """Whether maps of this size can be cut so.

  Raises:
    ConfigError: a size that is no multiple of the patch, or a U-Net whose patch is no power of two.
  """
  if patch < 1 or size < 1 or size % patch:
    raise ConfigError(
      f'model.latent_size is {size}, expected a multiple of model.patch, which is {patch}'
    )
  if kind == 'unet' and patch & (patch - 1):
    raise ConfigError(f'model.patch is {patch}, but a U-Net halves: expected a power of two')


def linear_flops(patch: int, size: int, channels: int, width: int) -> float:
  """Of one image, forward, multiply-add = 2."""
  return 4.0 * size**2 * channels * width


def unet_flops(patch: int, size: int, channels: int, width: int, base: int, blocks: int) -> float:
  """Of one image, forward, multiply-add = 2; the convolutions and the maps to and from tokens."""
  widths = level_widths(base, patch)
  pixels = [size**2 // 4**i for i in range(len(widths))]
  total = 10 * channels * base * pixels[0] + 2 * widths[-1] * width * pixels[-1]
  for i, (wide, num) in enumerate(zip(widths, pixels)):
    before, below = widths[max(i - 1, 0)], widths[min(i + 1, len(widths) - 1)]
    down = [before] + [wide] * (blocks - 1)
    up = [wide + below] + [2 * wide] * (blocks - 1)
    for inputs in down + up:
      total += num * wide * (9 * (inputs + wide) + (inputs != wide) * inputs)
    if i:
      total += 9 * num * before**2 + 9 * pixels[i - 1] * wide**2
  return 2.0 * total
