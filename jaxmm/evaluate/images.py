"""How close two images are: mean squared error, PSNR, SSIM and MS-SSIM.

Each is (sum over images, number of images). How close two sets of images are is in `distances`.

Axes: B batch, Y X rows and columns, C channels, W window.
"""

from __future__ import annotations

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
  likeness, _ = _likeness(image_BYXC, target_BYXC, data_range)
  return _summed(_image_mean(likeness), valid_B)


def ms_ssim(
  image_BYXC: jax.Array,
  target_BYXC: jax.Array,
  valid_B: jax.Array | None = None,
  *,
  data_range: float,
) -> SumCount:
  """Sum over images of the multi-scale structural similarity (Wang et al. 2003), at most 1 each.

  As published: contrast and structure at five scales, luminance at the last, each to its exponent;
  between scales the mean of 2x2 squares (an odd last row or column is dropped). Means are taken
  over positions, the product of the scales by channel, then the mean over channels; a negative
  mean of a scale, which has no root, counts as 0.

  Args:
    image_BYXC, target_BYXC, valid_B, data_range: as of `ssim`.

  Raises:
    ConfigError: images so small that the window does not fit the last scale.
  """
  _check_range(data_range)
  _check_pair(image_BYXC, target_BYXC)
  if min(image_BYXC.shape[1:3]) // 2 ** (len(_SCALE_POWERS) - 1) < _WINDOW:
    raise ConfigError(
      f'ms_ssim of images of shape {tuple(image_BYXC.shape)}: its five scales need '
      f'{_WINDOW * 2 ** (len(_SCALE_POWERS) - 1)} pixels a side; use ssim'
    )
  a, b = image_BYXC.astype(jnp.float32), target_BYXC.astype(jnp.float32)
  product_BC = 1.0
  for i, power in enumerate(_SCALE_POWERS):
    whole, structure = _likeness(a, b, data_range)
    is_last = i == len(_SCALE_POWERS) - 1
    mean_BC = (whole if is_last else structure).mean(2).mean(1)
    product_BC *= jnp.maximum(mean_BC, 0.0) ** power
    if not is_last:
      a, b = _halved(a), _halved(b)
  return _summed(product_BC.mean(-1), valid_B)


def _likeness(
  image_BYXC: jax.Array, target_BYXC: jax.Array, data_range: float
) -> tuple[jax.Array, jax.Array]:
  """SSIM at every place of the window, and its part without luminance."""
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
  luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
  structure = (2 * covariance + c2) / (var_a + var_b + c2)
  return luminance * structure, structure


def _halved(x_BYXC: jax.Array) -> jax.Array:
  B, Y, X, C = x_BYXC.shape
  return x_BYXC[:, : Y // 2 * 2, : X // 2 * 2].reshape(B, Y // 2, 2, X // 2, 2, C).mean((2, 4))


_SCALE_POWERS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
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
