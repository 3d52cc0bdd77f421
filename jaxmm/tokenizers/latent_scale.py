"""Latents brought to unit variance, as diffusion wants them (Rombach et al. 2022, arXiv:2112.10752,
appendix G): their moments, and the affine map that follows from these.

Transfusion (arXiv:2408.11039) does not give its constant, so it is measured.

Axes: B batch, Y rows, X columns, D latent width, N numbers of a scale: D, or 1 for all channels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.config import ConfigError


def image_moments(z_BYXD: jax.Array) -> dict[str, jax.Array]:
  """`mean` of each image's latents and `square`, the sum of squared differences from it.

  float32 [B, D] each. An image's own numbers do not depend on which images it is batched with, so
  `Moments` of a data set do not depend on batch size or mesh.
  """
  z = z_BYXD.astype(jnp.float32)
  mean_BD = jnp.mean(z, axis=(1, 2))
  square_BD = jnp.sum(jnp.square(z - mean_BD[:, None, None]), axis=(1, 2))
  return {'mean': mean_BD, 'square': square_BD}


@dataclasses.dataclass(frozen=True)
class Moments:
  """Moments of the latents of many images; those of disjoint sets merge exactly.

  Attributes:
    num_images: how many.
    positions: latents a channel of an image.
    mean_D: float64.
    square_D: sum over all latents of squared differences from `mean_D`, float64.
  """

  num_images: int
  positions: int
  mean_D: np.ndarray
  square_D: np.ndarray

  @classmethod
  def of(cls, positions: int, mean_BD: np.ndarray, square_BD: np.ndarray) -> Moments:
    """Of the images of `image_moments`, whose latents have so many positions."""
    mean_BD, square_BD = (np.asarray(x, np.float64) for x in (mean_BD, square_BD))
    if not len(mean_BD):
      zero_D = np.zeros(mean_BD.shape[1])
      return cls(0, positions, zero_D, zero_D)
    mean_D = mean_BD.mean(axis=0)
    between_D = positions * np.square(mean_BD - mean_D).sum(axis=0)
    return cls(len(mean_BD), positions, mean_D, square_BD.sum(axis=0) + between_D)

  def merged(self, other: Moments) -> Moments:
    """Of both sets of images (Chan, Golub & LeVeque 1983, "Algorithms for computing the sample
    variance", eq. 2.1)."""
    number = self.num_images + other.num_images
    if not number:
      return self
    gap_D = other.mean_D - self.mean_D
    mean_D = self.mean_D + gap_D * other.num_images / number
    between_D = np.square(gap_D) * self.num_images * other.num_images / number * self.positions
    square_D = self.square_D + other.square_D + between_D
    return Moments(number, self.positions, mean_D, square_D)

  @property
  def std_D(self) -> np.ndarray:
    """Standard deviation of each channel about its own mean."""
    return np.sqrt(self.square_D / max(self.num_images * self.positions, 1))

  @property
  def mean(self) -> float:
    """Mean over all channels."""
    return float(self.mean_D.mean())

  @property
  def std(self) -> float:
    """Standard deviation of all channels together about their common mean."""
    variance_D = np.square(self.std_D) + np.square(self.mean_D - self.mean_D.mean())
    return float(np.sqrt(variance_D.mean()))


@dataclasses.dataclass(frozen=True)
class LatentScale:
  """`(z - shift) * scale`, and back; one number for all channels or one a channel.

  Attributes:
    scale: 1 / standard deviation.
    shift: what is subtracted before.
    origin: JSON values that say on what it was measured.
  """

  scale: tuple[float, ...]
  shift: tuple[float, ...] = (0.0,)
  origin: Mapping[str, Any] = dataclasses.field(default_factory=dict, compare=False)

  def __post_init__(self):
    numbers = np.array([*self.scale, *self.shift], float)
    if not self.scale or not self.shift or not np.isfinite(numbers).all() or min(self.scale) <= 0:
      raise ConfigError(
        f'a latent scale of {self.scale} and shift of {self.shift}: expected finite numbers, and '
        'scales above 0; are the latents all equal?'
      )

  def scaled(self, z_BYXD: jax.Array) -> jax.Array:
    """The autoencoder's latents as a model of latents reads them, float32."""
    return (z_BYXD.astype(jnp.float32) - jnp.array(self.shift)) * jnp.array(self.scale)

  def unscaled(self, latent_BYXD: jax.Array) -> jax.Array:
    """The inverse of `scaled`."""
    return latent_BYXD.astype(jnp.float32) / jnp.array(self.scale) + jnp.array(self.shift)


def latent_scale(
  moments: Moments, *, per_channel: bool = False, center: bool = False, origin: Any = None
) -> LatentScale:
  """The scale that gives latents of these moments unit variance.

  Args:
    moments: of the latents.
    per_channel: each channel by its own numbers, instead of all by one.
    center: also subtract the mean; without, the shift is 0, as latent diffusion has it.
    origin: kept with the result.

  Raises:
    ConfigError: no images, or latents without variance.
  """
  if not moments.num_images:
    raise ConfigError('no image could be read, so there are no latents to scale')
  mean_N, std_N = (
    (moments.mean_D, moments.std_D)
    if per_channel
    else (np.array([moments.mean]), np.array([moments.std]))
  )
  if not (std_N > 0).all():
    raise ConfigError(
      f'{int((std_N <= 0).sum())} of {len(std_N)} latent channels have no variance over '
      f'{moments.num_images} images, so no scale gives them any; train the autoencoder first, or '
      'scale all channels by one number'
    )
  shift_N = mean_N if center else np.zeros_like(mean_N)
  return LatentScale(tuple((1.0 / std_N).tolist()), tuple(shift_N.tolist()), dict(origin or {}))
