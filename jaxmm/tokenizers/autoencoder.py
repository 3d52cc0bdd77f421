"""Convolutional autoencoders of images: the encoder and the decoder that `vqgan` and `vae` share
(Esser et al. 2021, arXiv:2012.09841).

The encoder halves the map once a level but the last, the decoder mirrors it with one residual block
more a level. Attention stands at the lowest resolution only. What lies between the two, codes or a
Gaussian, is its user's.

Axes: B batch, Y rows, X columns, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar, Literal

import flax.linen as nn
import jax

from jaxmm.config import ConfigError
from jaxmm.core import convnet


@dataclasses.dataclass(frozen=True)
class AutoencoderConfig:
  """Settings of encoder and decoder.

  Attributes:
    image_channels: 3 for colour, 1 for grey.
    channels: width of the highest resolution.
    multipliers: width of each level in units of `channels`, from the highest resolution to the
      lowest; the image is downsampled by 2 ** (levels - 1).
    res_blocks: residual blocks a level in the encoder; the decoder has one more.
    attention: whether there is any: between the two residual blocks in the middle, and, with
      `level_attention`, after each residual block of the level of lowest resolution.
    level_attention: see `attention`.
    z_channels: width of the encoder's output, before it is projected to the latents' width.
    norm_groups: groups of every normalisation; must divide all widths.
    dtype: in which the networks compute; parameters are float32, and so are latents' statistics.
    remat: recompute the inside of residual and attention blocks in the backward pass, for memory.
  """

  section: ClassVar[str] = 'autoencoder'  # what errors call these settings

  image_channels: int = 3
  channels: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  res_blocks: int = 2
  attention: bool = True
  level_attention: bool = True
  z_channels: int = 256
  norm_groups: int = 32
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: bool = False

  def __post_init__(self):
    for name in ('image_channels', 'channels', 'res_blocks', 'z_channels', 'norm_groups'):
      if getattr(self, name) < 1:
        raise ConfigError(f'{self.section}.{name} is {getattr(self, name)}, expected at least 1')
    if not self.multipliers or min(self.multipliers) < 1:
      raise ConfigError(
        f'{self.section}.multipliers is {self.multipliers}, expected one positive width a level, '
        'such as (1, 1, 2, 2, 4)'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise ConfigError(f"{self.section}.dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")
    for width in self.widths:
      if width % self.norm_groups:
        raise ConfigError(
          f'{self.section}.norm_groups is {self.norm_groups}, which does not divide the width '
          f'{width} of a level; choose a divisor of channels'
        )

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels of each level, from the highest resolution to the lowest."""
    return tuple(self.channels * m for m in self.multipliers)

  @property
  def attends_at_levels(self) -> bool:
    """Whether attention follows the residual blocks of the lowest resolution."""
    return self.attention and self.level_attention

  @property
  def downsampling(self) -> int:
    """Rows (and columns) of the image that one latent position stands for."""
    return 2 ** (len(self.multipliers) - 1)

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the latent grid of an image.

    Raises:
      ConfigError: a side is not a positive multiple of the downsampling factor.
    """
    return latent_grid(
      height, width, self.downsampling, f'the downsampling factor of multipliers={self.multipliers}'
    )


def latent_grid(height: int, width: int, f: int, what: str) -> tuple[int, int]:
  """Rows and columns of the latent grid of an image that is downsampled by `f`.

  Raises:
    ConfigError: a side is not a positive multiple of `f`, which the message calls `what`.
  """
  if height < 1 or width < 1 or height % f or width % f:
    raise ConfigError(
      f'an image of {height}x{width} (rows x columns) cannot be encoded: both must be multiples '
      f'of {f}, {what}; the nearest size is '
      f'{max(1, round(height / f)) * f}x{max(1, round(width / f)) * f}'
    )
  return height // f, width // f


def _blocks(config: AutoencoderConfig):
  """The residual and the attention block of a config."""
  res = nn.remat(convnet.Res) if config.remat else convnet.Res
  attn = nn.remat(convnet.Attn) if config.remat else convnet.Attn
  common = {'groups': config.norm_groups, 'dtype': config.dtype}
  return functools.partial(res, **common), functools.partial(attn, **common)


def _middle(config: AutoencoderConfig, x_BYXC: jax.Array) -> jax.Array:
  """Residual block, attention, residual block at the lowest resolution; called inside a compact
  method.
  """
  res, attn = _blocks(config)
  x_BYXC = res(config.widths[-1], name='mid_0')(x_BYXC)
  if config.attention:
    x_BYXC = attn(name='mid_1')(x_BYXC)
  return res(config.widths[-1], name='mid_2')(x_BYXC)


class Encoder(nn.Module):
  """Image to features of `z_channels` a latent position."""

  config: AutoencoderConfig

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> jax.Array:
    c = self.config
    res, attn = _blocks(c)
    x_BYXC = convnet.Conv(c.channels, dtype=c.dtype, name='conv_in')(image_BYXC)
    for level, width in enumerate(c.widths):
      lowest = level == len(c.widths) - 1
      for j in range(c.res_blocks):
        x_BYXC = res(width, name=f'level_{level}_res_{j}')(x_BYXC)
        if lowest and c.attends_at_levels:
          x_BYXC = attn(name=f'level_{level}_attn_{j}')(x_BYXC)
      if not lowest:
        x_BYXC = convnet.Down(c.dtype, name=f'level_{level}_down')(x_BYXC)
    x_BYXC = _middle(c, x_BYXC)
    x_BYXC = convnet.GroupNorm(c.norm_groups, swish=True, dtype=c.dtype, name='norm_out')(x_BYXC)
    return convnet.Conv(c.z_channels, dtype=c.dtype, name='conv_out')(x_BYXC)


class Decoder(nn.Module):
  """Features of `z_channels` a latent position to an image; levels count from the lowest
  resolution.
  """

  config: AutoencoderConfig

  def setup(self):
    c = self.config
    self.conv_out = convnet.Conv(c.image_channels, dtype=c.dtype)

  @nn.compact
  def trunk(self, z_BYXC: jax.Array) -> jax.Array:
    """All but the last convolution."""
    c = self.config
    res, attn = _blocks(c)
    x_BYXC = convnet.Conv(c.widths[-1], dtype=c.dtype, name='conv_in')(z_BYXC)
    x_BYXC = _middle(c, x_BYXC)
    for level, width in enumerate(reversed(c.widths)):
      for j in range(c.res_blocks + 1):
        x_BYXC = res(width, name=f'level_{level}_res_{j}')(x_BYXC)
        if level == 0 and c.attends_at_levels:
          x_BYXC = attn(name=f'level_{level}_attn_{j}')(x_BYXC)
      if level < len(c.widths) - 1:
        x_BYXC = convnet.Up(c.dtype, name=f'level_{level}_up')(x_BYXC)
    return convnet.GroupNorm(c.norm_groups, swish=True, dtype=c.dtype, name='norm_out')(x_BYXC)

  def __call__(self, z_BYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The image, and what the last convolution read."""
    last_BYXC = self.trunk(z_BYXC)
    return self.conv_out(last_BYXC), last_BYXC


def check_images(config: AutoencoderConfig, image_BYXC: jax.Array) -> None:
  """Refuses images that the encoder of `config` cannot read.

  Raises:
    ConfigError: not four axes, a side that the downsampling factor does not divide, or another
      number of channels than the config's.
  """
  if image_BYXC.ndim != 4:
    raise ConfigError(
      f'images have shape {image_BYXC.shape}, expected four axes: batch, rows, columns, channels'
    )
  config.grid(*image_BYXC.shape[1:3])
  if image_BYXC.shape[3] != config.image_channels:
    raise ConfigError(
      f'images have {image_BYXC.shape[3]} channels (shape {image_BYXC.shape}), the model has '
      f'image_channels={config.image_channels}; convert the images or set '
      f'{config.section}.image_channels'
    )


def check_latents(shape: tuple[int, ...], latent_dim: int) -> None:
  """Refuses latents that are not [B, Y, X, latent_dim] (ConfigError)."""
  if len(shape) != 4 or shape[3] != latent_dim:
    raise ConfigError(
      f'latents have shape {tuple(shape)}, expected [B, rows, columns, {latent_dim}]; the latents '
      'of one image are latents[None]'
    )


def forward_macs(config: AutoencoderConfig, height: int, width: int) -> tuple[int, int]:
  """Multiply-adds of the encoder and of the decoder on one image, convolutions and attention.

  Norms, activations and the projections between `z_channels` and the latents are left out. A
  training step is three times the sum, in FLOPs six times.
  """
  c = config
  rows, columns = c.grid(height, width)
  lowest, top = rows * columns, c.widths[-1]

  def res(a, b):
    return 9 * a * b + 9 * b * b + (a * b if a != b else 0)

  attention = 4 * top * top + 2 * lowest * top  # a position: 4 projections, 2 products
  middle = lowest * (2 * res(top, top) + c.attention * attention)

  encode = height * width * 9 * c.image_channels * c.channels + middle
  decode = height * width * 9 * c.image_channels * c.channels + middle
  before = c.channels
  for level, wide in enumerate(c.widths):
    area = (height >> level) * (width >> level)
    encode += area * (res(before, wide) + (c.res_blocks - 1) * res(wide, wide))
    encode += 0 if area == lowest else area // 4 * 9 * wide * wide
    deeper = c.widths[min(level + 1, len(c.widths) - 1)]
    decode += area * (res(deeper, wide) + c.res_blocks * res(wide, wide))
    decode += 0 if area == lowest else area * 9 * deeper * deeper
    before = wide
  attention *= c.attends_at_levels
  encode += lowest * (c.res_blocks * attention + 9 * top * c.z_channels)
  decode += lowest * ((c.res_blocks + 1) * attention + 9 * top * c.z_channels)
  return encode, decode
