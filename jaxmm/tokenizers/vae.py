"""The continuous autoencoder of Transfusion (arXiv:2408.11039): the convolution nets of `vqgan`
with a diagonal Gaussian between them (Kingma & Welling 2014, arXiv:1312.6114; Rombach et al. 2022,
arXiv:2112.10752).

The paper gives the size (86M parameters), the width of the latents (8), their grid (32x32 for 256
pixels) and the loss; no code. The default, four levels of 128, 256, 512, 512 channels with
attention in the middle alone and 256 channels before the projection to the latents, has 86.0M.

Axes: B batch, Y rows, X columns, C channels, D latent width. In `z_BYXD` rows and columns are those
of the latent grid.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import convnet
from jaxmm.tokenizers import autoencoder
from jaxmm.tokenizers.autoencoder import AutoencoderConfig, Decoder, Encoder

_LOG_VAR = (-30.0, 20.0)  # beyond these exp leaves the range in which gradients are of use


@dataclasses.dataclass(frozen=True)
class VaeConfig(AutoencoderConfig):
  """Settings of the autoencoder; the default is Transfusion's size, 8 pixels a latent position.

  Attributes:
    latent_dim: channels of the latents (8 in the paper).
  """

  section: ClassVar[str] = 'vae'

  multipliers: tuple[int, ...] = (1, 2, 4, 4)
  level_attention: bool = False
  latent_dim: int = 8

  def __post_init__(self):
    super().__post_init__()
    if self.latent_dim < 1:
      raise ConfigError(f'vae.latent_dim is {self.latent_dim}, expected at least 1')


@flax.struct.dataclass
class Gaussian:
  """A diagonal Gaussian over the latents of each image, float32.

  Attributes:
    mean_BYXD: its means.
    log_var_BYXD: natural logarithms of its variances, within [-30, 20].
  """

  mean_BYXD: jax.Array
  log_var_BYXD: jax.Array

  @property
  def std_BYXD(self) -> jax.Array:
    """Standard deviations."""
    return jnp.exp(0.5 * self.log_var_BYXD)

  def sample(self, key_B: jax.Array) -> jax.Array:
    """One draw an image, [B, Y, X, D]; image b's depends on its own key alone."""
    shape = self.mean_BYXD.shape[1:]
    noise_BYXD = jax.vmap(lambda key: jax.random.normal(key, shape))(key_B)
    return self.mean_BYXD + self.std_BYXD * noise_BYXD

  def kl(self) -> jax.Array:
    """Divergence from the standard normal, nats, *summed* over an image's latents; float32 [B]."""
    mean, log_var = self.mean_BYXD, self.log_var_BYXD
    return 0.5 * jnp.sum(jnp.square(mean) + jnp.exp(log_var) - 1.0 - log_var, axis=(1, 2, 3))


@flax.struct.dataclass
class VaeOutput:
  """Everything the losses read.

  Attributes:
    recon_BYXC: the reconstruction, about [-1, 1] (not clipped), in the compute dtype.
    posterior: the encoder's Gaussian.
    z_BYXD: what was decoded: its mean, or a draw.
    last_BYXC: what the decoder's last convolution read (an adaptive adversarial weight needs its
      kernel's gradient).
  """

  recon_BYXC: jax.Array
  posterior: Gaussian
  z_BYXD: jax.Array
  last_BYXC: jax.Array


class Vae(nn.Module):
  """Encoder, Gaussian and decoder; every method is pure, call it by `model.apply(variables, x,
  method='encode')`. Latents are as the network has them, not yet scaled (`latent_scale`).
  """

  config: VaeConfig

  def setup(self):
    c = self.config
    self.encoder = Encoder(c)
    self.decoder = Decoder(c)
    self.quant_conv = convnet.pointwise(2 * c.latent_dim, c.dtype)
    self.post_quant_conv = convnet.pointwise(c.z_channels, c.dtype)

  def posterior(self, image_BYXC: jax.Array) -> Gaussian:
    """The Gaussian of images in [-1, 1].

    Raises:
      ConfigError: see `autoencoder.check_images`.
    """
    autoencoder.check_images(self.config, image_BYXC)
    features_BYXC = self.encoder(image_BYXC.astype(self.config.dtype))
    mean, log_var = jnp.split(self.quant_conv(features_BYXC).astype(jnp.float32), 2, axis=-1)
    return Gaussian(mean, jnp.clip(log_var, *_LOG_VAR))

  def encode(self, image_BYXC: jax.Array) -> jax.Array:
    """The Gaussian's means, float32 [B, Y/f, X/f, D]."""
    return self.posterior(image_BYXC).mean_BYXD

  def decode(self, z_BYXD: jax.Array) -> jax.Array:
    """Images [B, Y, X, C] of latents.

    Raises:
      ConfigError: not four axes, or another width than the config's.
    """
    return self._decode(z_BYXD)[0]

  def __call__(self, image_BYXC: jax.Array, key_B: jax.Array | None = None) -> VaeOutput:
    """Reconstructs images in [-1, 1] from a draw by the images' keys; None decodes the mean."""
    posterior = self.posterior(image_BYXC)
    z_BYXD = posterior.mean_BYXD if key_B is None else posterior.sample(key_B)
    recon_BYXC, last_BYXC = self._decode(z_BYXD)
    return VaeOutput(recon_BYXC, posterior, z_BYXD, last_BYXC)

  def _decode(self, z_BYXD):
    autoencoder.check_latents(z_BYXD.shape, self.config.latent_dim)
    return self.decoder(self.post_quant_conv(z_BYXD.astype(self.config.dtype)))


def forward_macs(config: VaeConfig, height: int, width: int) -> tuple[int, int]:
  """Multiply-adds of encoding and of decoding one image, convolutions and attention."""
  rows, columns = config.grid(height, width)
  encode, decode = autoencoder.forward_macs(config, height, width)
  projection = rows * columns * config.z_channels * config.latent_dim
  return encode + 2 * projection, decode + projection
