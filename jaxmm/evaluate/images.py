"""How close two images are, and how close two sets of images are.

Pairs: mean squared error, PSNR, SSIM, each as (sum over images, number of images). Sets: the
Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500, eq. 6),
and the kernel distance, which few images suffice for; the features are the caller's, and with those
of `jaxmm.models.classifier` these are not the "FID" and "KID" of papers, which are defined by one
Inception network.

Axes: B batch, Y X rows and columns, C channels, N images of a set, D feature width, W window.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmm.config import ConfigError
from jaxmm.core.losses import SumCount, weighted_sum


def to_pixels(image_BYXC: jax.Array) -> jax.Array:
  """A network's output in [-1, 1] as the picture that would be stored: whole numbers, [0, 255].

  float32; rounds half to even and clips. Papers measure reconstructions after this rounding.
  """
  return jnp.clip(jnp.round((image_BYXC.astype(jnp.float32) + 1.0) * 127.5), 0.0, 255.0)


def mean_squared_error(
  image_BYXC: jax.Array, target_BYXC: jax.Array, valid_B: jax.Array | None = None
) -> SumCount:
  """Sum over images of their mean squared error (unit: pixel value squared), and their number.

  Rows with `valid_B` 0 count nothing, whatever they hold.
  """
  return _summed(_errors(image_BYXC, target_BYXC), valid_B)


def psnr(
  image_BYXC: jax.Array,
  target_BYXC: jax.Array,
  valid_B: jax.Array | None = None,
  *,
  data_range: float,
) -> SumCount:
  """Sum over images of the peak signal-to-noise ratio, 10 log10(range^2 / error), in dB.

  The mean of it is the mean over images, not the ratio of the mean error. Equal images have no
  finite value; they count as 100 dB.

  Args:
    image_BYXC, target_BYXC: the pairs, in one unit.
    valid_B: 0 for rows that count nothing.
    data_range: distance between the smallest and the largest value a pixel may have: 255 for
      pixels, 2 for [-1, 1].
  """
  _check_range(data_range)
  relative_B = _errors(image_BYXC, target_BYXC) / data_range**2
  return _summed(-10.0 * jnp.log10(jnp.maximum(relative_B, 1e-10)), valid_B)


def ssim(
  image_BYXC: jax.Array,
  target_BYXC: jax.Array,
  valid_B: jax.Array | None = None,
  *,
  data_range: float,
) -> SumCount:
  """Sum over images of the structural similarity (Wang et al. 2004), at most 1 an image.

  As published: Gaussian window of 11 pixels, sigma 1.5, K1 0.01, K2 0.03, only where the window
  lies inside the image, biased local variances; channels are measured apart and averaged.

  Args:
    image_BYXC, target_BYXC: the pairs, in one unit.
    valid_B: 0 for rows that count nothing.
    data_range: as of `psnr`; SSIM has no meaning without it.

  Raises:
    ConfigError: images smaller than the window.
  """
  _check_range(data_range)
  _check_pair(image_BYXC, target_BYXC)
  if min(image_BYXC.shape[1:3]) < _WINDOW:
    raise ConfigError(
      f'ssim of images of shape {tuple(image_BYXC.shape)}: its window is {_WINDOW} pixels, '
      'the images are smaller; use psnr'
    )
  # Variances are differences of means of squares; half the range taken off first keeps them exact.
  middle = jnp.float32(data_range / 2)
  a = image_BYXC.astype(jnp.float32)
  b = target_BYXC.astype(jnp.float32)
  mean_a, mean_b = _window_mean(a), _window_mean(b)
  a, b, shift_a, shift_b = a - middle, b - middle, mean_a - middle, mean_b - middle
  var_a = _window_mean(a * a) - shift_a * shift_a
  var_b = _window_mean(b * b) - shift_b * shift_b
  covariance = _window_mean(a * b) - shift_a * shift_b
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  likeness = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  likeness = likeness * (2 * covariance + c2) / (var_a + var_b + c2)
  return _summed(_image_mean(likeness), valid_B)


_WINDOW = 11


def _window_mean(x_BYXC: jax.Array) -> jax.Array:
  """Gaussian-weighted means where the window fits: first down the columns, then along the rows."""
  at_W = np.arange(_WINDOW) - _WINDOW // 2
  weight_W = np.exp(-(at_W**2) / (2 * 1.5**2))
  weight_W = weight_W / weight_W.sum()
  for axis in (1, 2):
    length = x_BYXC.shape[axis] - _WINDOW + 1
    x_BYXC = sum(
      float(w) * lax.slice_in_dim(x_BYXC, i, i + length, axis=axis) for i, w in enumerate(weight_W)
    )
  return x_BYXC


def _image_mean(x_BYXC: jax.Array) -> jax.Array:
  # One axis at a time: a float32 sum over all pixels at once would lose digits.
  return x_BYXC.mean(-1).mean(-1).mean(-1)


def _errors(image_BYXC: jax.Array, target_BYXC: jax.Array) -> jax.Array:
  _check_pair(image_BYXC, target_BYXC)
  return _image_mean((image_BYXC.astype(jnp.float32) - target_BYXC.astype(jnp.float32)) ** 2)


def _summed(value_B: jax.Array, valid_B: jax.Array | None) -> SumCount:
  return weighted_sum(value_B, None if valid_B is None else valid_B > 0)


def _check_pair(image_BYXC: jax.Array, target_BYXC: jax.Array) -> None:
  if image_BYXC.ndim != 4 or image_BYXC.shape != target_BYXC.shape:
    raise ConfigError(
      f'images of shapes {tuple(image_BYXC.shape)} and {tuple(target_BYXC.shape)} cannot be '
      'compared; expected one shape [B, Y, X, C]'
    )


def _check_range(data_range: float) -> None:
  if not data_range > 0:
    raise ConfigError(
      f'data_range is {data_range}, expected the range of a pixel, such as 255 or 2 (for [-1, 1])'
    )


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
  """Number, sum and sum of outer products of feature rows; float64, on the host.

  Sets merge by adding, in any order and split, up to the rounding of float64 (products of float32
  features are exact in it). Immutable: every method returns new statistics.
  """

  count: int
  sum_D: np.ndarray
  outer_DD: np.ndarray

  @classmethod
  def empty(cls, width: int) -> FeatureStatistics:
    """Statistics of no rows."""
    return cls(0, np.zeros(width), np.zeros((width, width)))

  @classmethod
  def of(cls, features_ND: Any, valid_N: Any = None) -> FeatureStatistics:
    """Statistics of the rows of one array, without those where `valid_N` is 0.

    Raises:
      ValueError: a feature is not finite.
    """
    rows_ND = np.asarray(features_ND)
    if valid_N is not None:
      rows_ND = rows_ND[np.asarray(valid_N) > 0]
    rows_ND = rows_ND.astype(np.float64)
    if not np.isfinite(rows_ND).all():
      bad = np.flatnonzero(~np.isfinite(rows_ND).all(1))
      raise ValueError(f'{len(bad)} of {len(rows_ND)} feature rows are not finite, first {bad[0]}')
    return cls(len(rows_ND), rows_ND.sum(0), rows_ND.T @ rows_ND)

  def merge(self, other: FeatureStatistics) -> FeatureStatistics:
    """Statistics of both sets."""
    if self.width != other.width:
      raise ValueError(f'features of width {self.width} and {other.width} cannot be merged')
    return FeatureStatistics(
      self.count + other.count, self.sum_D + other.sum_D, self.outer_DD + other.outer_DD
    )

  @property
  def width(self) -> int:
    """Feature width D."""
    return len(self.sum_D)

  def mean(self) -> np.ndarray:
    """Mean row, [D]."""
    if not self.count:
      raise ValueError('the mean of no features; the pass found no valid image')
    return self.sum_D / self.count

  def covariance(self) -> np.ndarray:
    """Unbiased covariance (divided by count - 1), [D, D]."""
    if self.count < 2:
      raise ValueError(f'the covariance of {self.count} feature rows; at least 2 are needed')
    mean_D = self.mean()
    return (self.outer_DD - self.count * np.outer(mean_D, mean_D)) / (self.count - 1)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes an `.npz`, for a set that is compared with often."""
    with open(path, 'wb') as file:  # given a name, savez would append its own ending
      np.savez(file, count=np.int64(self.count), sum=self.sum_D, outer=self.outer_DD)

  @classmethod
  def load(cls, path: str | pathlib.Path) -> FeatureStatistics:
    """Reads what `save` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
      return cls(int(arrays['count']), arrays['sum'], arrays['outer'])


def frechet_distance(
  a: FeatureStatistics, b: FeatureStatistics, *, few_samples: Literal['error', 'accept'] = 'error'
) -> float:
  """Squared Frechet distance between the Gaussians with the means and covariances of two sets.

  |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), by eigen-decompositions in float64; nothing is
  added to the covariances. It is biased upwards by about 1 / samples: compare only figures of one
  number of samples and one feature network.

  Args:
    a, b: the sets; the result is symmetric.
    few_samples: a set of no more than D rows has a singular covariance, and its distance says more
      of its size than of its images. 'error' refuses; 'accept' computes it all the same.

  Raises:
    ConfigError: other widths, or too few samples.
  """
  if a.width != b.width:
    raise ConfigError(f'features of width {a.width} and {b.width}: not of one network')
  if few_samples not in ('error', 'accept'):
    raise ConfigError(f"few_samples is {few_samples!r}, expected 'error' or 'accept'")
  fewest = min(a.count, b.count)
  if fewest <= a.width and few_samples == 'error':
    raise ConfigError(
      f'a Frechet distance in {a.width} features needs more than {a.width} samples of each set, '
      f'got {a.count} and {b.count}; take more, or say few_samples="accept"'
    )
  cov_a, cov_b = a.covariance(), b.covariance()
  root_a = _root(cov_a)
  # tr sqrt(A B) through a symmetric matrix with the same eigenvalues: real, and never below zero.
  eigenvalues = np.linalg.eigvalsh(root_a @ cov_b @ root_a)
  cross = np.sqrt(np.maximum(eigenvalues, 0.0)).sum()
  gap_D = a.mean() - b.mean()
  distance = gap_D @ gap_D + np.trace(cov_a) + np.trace(cov_b) - 2.0 * cross
  return float(max(distance, 0.0))


def _root(covariance_DD: np.ndarray) -> np.ndarray:
  """Square root of a symmetric matrix that has no negative eigenvalues but for rounding."""
  values_D, vectors_DD = np.linalg.eigh(covariance_DD)
  return (vectors_DD * np.sqrt(np.maximum(values_D, 0.0))) @ vectors_DD.T


def kernel_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
  """The squared maximum mean discrepancy of two sets of features, without bias.

  Its kernel is (x y / D + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401, eq. 4 and section 3). May
  be below 0 where the sets are alike. Unlike the Frechet distance its mean does not depend on how
  many images there are, so it serves sets smaller than the features are wide.

  Args:
    a_ND, b_MD: features, at least two rows each.

  Raises:
    ValueError: fewer rows, or rows of different widths.
  """
  if min(len(a_ND), len(b_MD)) < 2 or a_ND.shape[1] != b_MD.shape[1]:
    raise ValueError(
      f'features are {list(a_ND.shape)} and {list(b_MD.shape)}, expected at least two rows of one '
      'width in each'
    )
  a, b = np.asarray(a_ND, np.float64), np.asarray(b_MD, np.float64)
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1.0) ** 3

  def within(x):
    k = kernel(x, x)
    return (k.sum() - np.trace(k)) / (len(x) * (len(x) - 1))

  return float(within(a) + within(b) - 2.0 * kernel(a, b).mean())
