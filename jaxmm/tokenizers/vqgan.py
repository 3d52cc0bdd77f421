"""The VQGAN autoencoder as LlamaGen trains it (Sun et al. 2024, arXiv:2406.06525, section 2.2;
Esser et al. 2021).

An encoder halves the map once a level but the last, a quantiser replaces each position by a code of
low width, a decoder mirrors the encoder with one residual block more a level. Attention stands at
the lowest resolution only. Positions are in raster order.

Axes: B batch, Y rows, X columns, C channels, L = Y * X latent positions, D code width. In `z_BYXD`
rows and columns are those of the latent grid.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import flax.linen as nn
import flax.struct
import jax

from jaxmm.config import ConfigError
from jaxmm.core import convnet
from jaxmm.tokenizers.quantizer import Quantized, Quantizer, QuantizerConfig


@dataclasses.dataclass(frozen=True)
class VqganConfig:
  """Settings of the autoencoder; the default is LlamaGen's VQ-16.

  Attributes:
    image_channels: 3 for colour, 1 for grey.
    channels: width of the highest resolution.
    multipliers: width of each level in units of `channels`, from the highest resolution to the
      lowest; the image is downsampled by 2 ** (levels - 1).
    res_blocks: residual blocks a level in the encoder; the decoder has one more.
    attention: whether residual blocks at the lowest resolution and in the middle are followed by
      attention.
    z_channels: width of the encoder's output, before it is projected to the codes' width.
    norm_groups: groups of every normalisation; must divide all widths.
    quantizer: the codebook.
    dtype: in which the networks compute; parameters are float32, and so is the quantiser.
    remat: recompute the inside of residual and attention blocks in the backward pass, for memory.
  """

  image_channels: int = 3
  channels: int = 128
  multipliers: tuple[int, ...] = (1, 1, 2, 2, 4)
  res_blocks: int = 2
  attention: bool = True
  z_channels: int = 256
  norm_groups: int = 32
  quantizer: QuantizerConfig = QuantizerConfig()
  dtype: Literal['float32', 'bfloat16'] = 'float32'
  remat: bool = False

  def __post_init__(self):
    for name in ('image_channels', 'channels', 'res_blocks', 'z_channels', 'norm_groups'):
      if getattr(self, name) < 1:
        raise ConfigError(f'vqgan.{name} is {getattr(self, name)}, expected at least 1')
    if not self.multipliers or min(self.multipliers) < 1:
      raise ConfigError(
        f'vqgan.multipliers is {self.multipliers}, expected one positive width a level, '
        'such as (1, 1, 2, 2, 4)'
      )
    if self.dtype not in ('float32', 'bfloat16'):
      raise ConfigError(f"vqgan.dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")
    for width in self.widths:
      if width % self.norm_groups:
        raise ConfigError(
          f'vqgan.norm_groups is {self.norm_groups}, which does not divide the width {width} of '
          'a level; choose a divisor of channels'
        )

  @property
  def widths(self) -> tuple[int, ...]:
    """Channels of each level, from the highest resolution to the lowest."""
    return tuple(self.channels * m for m in self.multipliers)

  @property
  def downsampling(self) -> int:
    """Rows (and columns) of the image that one latent position stands for."""
    return 2 ** (len(self.multipliers) - 1)

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the latent grid of an image.

    Raises:
      ConfigError: a side is not a positive multiple of the downsampling factor.
    """
    f = self.downsampling
    if height < 1 or width < 1 or height % f or width % f:
      raise ConfigError(
        f'an image of {height}x{width} (rows x columns) cannot be encoded: both must be multiples '
        f'of {f}, the downsampling factor of multipliers={self.multipliers}; the nearest size is '
        f'{max(1, round(height / f)) * f}x{max(1, round(width / f)) * f}'
      )
    return height // f, width // f


VQ_16 = VqganConfig()
VQ_8 = VqganConfig(multipliers=(1, 2, 2, 4))


@flax.struct.dataclass
class VqganOutput:
  """Everything the losses of a tokenizer read.

  Attributes:
    recon_BYXC: the reconstruction, about [-1, 1] (not clipped), in the compute dtype.
    quantized: ids, straight-through latents and the errors of the quantiser.
    z_BYXD: the latents before quantisation.
    features_BYXC: the encoder's output before it is projected to the codes' width.
    last_BYXC: what the decoder's last convolution read (an adaptive adversarial weight needs its
      kernel's gradient).
  """

  recon_BYXC: jax.Array
  quantized: Quantized
  z_BYXD: jax.Array
  features_BYXC: jax.Array
  last_BYXC: jax.Array


def _blocks(config: VqganConfig):
  """The residual and the attention block of a config."""
  res = nn.remat(convnet.Res) if config.remat else convnet.Res
  attn = nn.remat(convnet.Attn) if config.remat else convnet.Attn
  common = {'groups': config.norm_groups, 'dtype': config.dtype}
  return functools.partial(res, **common), functools.partial(attn, **common)


def _middle(config: VqganConfig, x_BYXC: jax.Array) -> jax.Array:
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

  config: VqganConfig

  @nn.compact
  def __call__(self, image_BYXC: jax.Array) -> jax.Array:
    c = self.config
    res, attn = _blocks(c)
    x_BYXC = convnet.Conv(c.channels, dtype=c.dtype, name='conv_in')(image_BYXC)
    for level, width in enumerate(c.widths):
      lowest = level == len(c.widths) - 1
      for j in range(c.res_blocks):
        x_BYXC = res(width, name=f'level_{level}_res_{j}')(x_BYXC)
        if lowest and c.attention:
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

  config: VqganConfig

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
        if level == 0 and c.attention:
          x_BYXC = attn(name=f'level_{level}_attn_{j}')(x_BYXC)
      if level < len(c.widths) - 1:
        x_BYXC = convnet.Up(c.dtype, name=f'level_{level}_up')(x_BYXC)
    return convnet.GroupNorm(c.norm_groups, swish=True, dtype=c.dtype, name='norm_out')(x_BYXC)

  def __call__(self, z_BYXC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The image, and what the last convolution read."""
    last_BYXC = self.trunk(z_BYXC)
    return self.conv_out(last_BYXC), last_BYXC


class Vqgan(nn.Module):
  """Encoder, quantiser and decoder; every method is pure, call it by `model.apply(variables, x,
  method='encode')`.
  """

  config: VqganConfig

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.decoder = Decoder(c)
    self.quantizer = Quantizer(c.quantizer)
    self.quant_conv = convnet.pointwise(c.quantizer.width, c.dtype)
    self.post_quant_conv = convnet.pointwise(c.z_channels, c.dtype)

  def features(self, image_BYXC: jax.Array) -> jax.Array:
    """The encoder's output [B, Y/f, X/f, z_channels] of images in [-1, 1].

    Raises:
      ConfigError: not four axes, a side that the downsampling factor f does not divide, or another
        number of channels than the config's.
    """
    c = self.config
    if image_BYXC.ndim != 4:
      raise ConfigError(
        f'images have shape {image_BYXC.shape}, expected four axes: batch, rows, columns, channels'
      )
    c.grid(*image_BYXC.shape[1:3])
    if image_BYXC.shape[3] != c.image_channels:
      raise ConfigError(
        f'images have {image_BYXC.shape[3]} channels (shape {image_BYXC.shape}), the model has '
        f'image_channels={c.image_channels}; convert the images or set vqgan.image_channels'
      )
    return self.encoder(image_BYXC.astype(c.dtype))

  def encode(self, image_BYXC: jax.Array) -> jax.Array:
    """Latents before quantisation, [B, Y/f, X/f, D], of images in [-1, 1]."""
    return self.quant_conv(self.features(image_BYXC))

  def quantize(self, z_BYXD: jax.Array, weight_BL: jax.Array | None = None) -> Quantized:
    """The quantiser's view of latents, positions in raster order; `weight_BL` as in `Quantizer`."""
    B, Y, X, D = z_BYXD.shape
    return self.quantizer(z_BYXD.reshape(B, Y * X, D), weight_BL)

  def decode(self, z_BYXD: jax.Array) -> jax.Array:
    """Images [B, Y, X, C] from quantised latents (codes as the quantiser returns them)."""
    return self._decode(z_BYXD)[0]

  def encode_ids(self, image_BYXC: jax.Array) -> jax.Array:
    """Code ids [B, L] in raster order, int32."""
    z_BYXD = self.encode(image_BYXC)
    B, Y, X, D = z_BYXD.shape
    return self.quantizer.ids(z_BYXD.reshape(B, Y * X, D))

  def decode_ids(self, ids_BL: jax.Array, grid: tuple[int, int] | None = None) -> jax.Array:
    """Images of code ids in raster order.

    Args:
      ids_BL: in [0, codes).
      grid: rows and columns of the latent grid; None for a square one.

    Raises:
      ConfigError: the grid does not hold L positions, or none was given and L is no square.
    """
    B, L = ids_BL.shape
    side = round(L**0.5)
    rows, columns = grid or (side, side)
    if rows * columns != L:
      raise ConfigError(
        f'{L} ids an image do not fill a grid of {rows}x{columns}; '
        'give decode_ids grid=(rows, columns)'
      )
    return self.decode(self.quantizer.lookup(ids_BL).reshape(B, rows, columns, -1))

  def __call__(self, image_BYXC: jax.Array, weight_BL: jax.Array | None = None) -> VqganOutput:
    """Reconstructs images in [-1, 1]; `weight_BL` as in `Quantizer`."""
    features_BYXC = self.features(image_BYXC)
    z_BYXD = self.quant_conv(features_BYXC)
    quantized = self.quantize(z_BYXD, weight_BL)
    recon_BYXC, last_BYXC = self._decode(quantized.z_BLD.reshape(z_BYXD.shape))
    return VqganOutput(recon_BYXC, quantized, z_BYXD, features_BYXC, last_BYXC)

  def _decode(self, z_BYXD):
    return self.decoder(self.post_quant_conv(z_BYXD))


def forward_macs(config: VqganConfig, height: int, width: int) -> tuple[int, int]:
  """Multiply-adds of encoding and of decoding one image, convolutions and attention.

  Norms, activations and the nearest-code search (codes * code width a position, in the encoder's
  time) are left out. A training step is three times the sum, in FLOPs six times.
  """
  c = config
  rows, columns = c.grid(height, width)
  lowest, top = rows * columns, c.widths[-1]

  def res(a, b):
    return 9 * a * b + 9 * b * b + (a * b if a != b else 0)

  attention = c.attention * (
    4 * top * top + 2 * lowest * top
  )  # a position: 4 projections, 2 products
  middle = lowest * (2 * res(top, top) + attention)

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
  z, D = c.z_channels, c.quantizer.width
  encode += lowest * (c.res_blocks * attention + 9 * top * z + z * D)
  decode += lowest * ((c.res_blocks + 1) * attention + 9 * top * z + z * D)
  return encode, decode
