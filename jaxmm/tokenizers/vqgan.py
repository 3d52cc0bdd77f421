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
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax

from jaxmm.config import ConfigError
from jaxmm.core import convnet
from jaxmm.tokenizers import autoencoder
from jaxmm.tokenizers.autoencoder import AutoencoderConfig, Decoder, Encoder
from jaxmm.tokenizers.quantizer import Quantized, Quantizer, QuantizerConfig


@dataclasses.dataclass(frozen=True)
class VqganConfig(AutoencoderConfig):
  """Settings of the autoencoder; the default is LlamaGen's VQ-16.

  Attributes:
    quantizer: the codebook; it computes in float32.
  """

  section: ClassVar[str] = 'vqgan'

  quantizer: QuantizerConfig = QuantizerConfig()


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
    autoencoder.check_images(self.config, image_BYXC)
    return self.encoder(image_BYXC.astype(self.config.dtype))

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
  rows, columns = config.grid(height, width)
  encode, decode = autoencoder.forward_macs(config, height, width)
  projection = rows * columns * config.z_channels * config.quantizer.width
  return encode + projection, decode + projection
