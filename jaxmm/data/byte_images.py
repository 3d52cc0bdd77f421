"""Pictures as sequences of bytes and back: raster order, and MEGABYTE's patch scan.

Both orders have every byte once, so both can be undone. In the patch scan the p x p x C bytes of a
patch follow one another, raster within and across patches, so that a model of patches of
P = p * p * C bytes has a square of the picture in each (arXiv:2305.07185, section on images).

Axes: Y X rows and columns, C channels, L bytes of a picture (Y * X * C).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from jaxmm.config import ConfigError


def patch_side(num_bytes: int, channels: int) -> int:
  """Pixels a side of the square patches of `num_bytes` bytes.

  Raises:
    ConfigError: there are none of so many bytes.
  """
  side = math.isqrt(max(num_bytes, 0) // channels)
  if side < 1 or side * side * channels != num_bytes:
    near = ', '.join(str(p * p * channels) for p in range(max(side, 1), side + 3))
    raise ConfigError(
      f'data.bytes.patch is {num_bytes}: no square patch of {channels} channels has so many bytes '
      f'(some that do: {near})'
    )
  return side


def raster_bytes(image_YXC: np.ndarray) -> np.ndarray:
  """uint8 [..., L]: pixel after pixel, the channels of a pixel together.

  Args:
    image_YXC: uint8 [..., Y, X, C].
  """
  image_YXC = _checked_image(image_YXC)
  return image_YXC.reshape(*image_YXC.shape[:-3], -1)


def inverse_raster_bytes(ids_L: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  """The picture of `raster_bytes`, uint8 [..., Y, X, C].

  Args:
    ids_L: integers [..., L], each in 0..255.
    shape: (Y, X, C).

  Raises:
    ValueError: another number of bytes, or ids that are no bytes.
  """
  return _checked_bytes(ids_L, shape).reshape(*np.shape(ids_L)[:-1], *shape)


def patch_scan(image_YXC: np.ndarray, patch: int) -> np.ndarray:
  """uint8 [..., L]: block after block, each in raster order.

  Args:
    image_YXC: uint8 [..., Y, X, C].
    patch: bytes of a block, p * p * C.

  Raises:
    ConfigError: no square blocks of so many bytes, or the picture is no whole number of them.
  """
  image_YXC = _checked_image(image_YXC)
  *lead, rows, columns, channels = image_YXC.shape
  side = _checked_side(rows, columns, channels, patch)
  blocks = image_YXC.reshape(*lead, rows // side, side, columns // side, side, channels)
  return np.moveaxis(blocks, -3, -4).reshape(*lead, -1)


def inverse_patch_scan(ids_L: np.ndarray, shape: Sequence[int], patch: int) -> np.ndarray:
  """The picture of `patch_scan`, uint8 [..., Y, X, C].

  Args:
    ids_L: integers [..., L], each in 0..255.
    shape: (Y, X, C).
    patch: bytes of a block.

  Raises:
    ConfigError: see `patch_scan`.
    ValueError: another number of bytes, or ids that are no bytes.
  """
  rows, columns, channels = shape
  side = _checked_side(rows, columns, channels, patch)
  lead = np.shape(ids_L)[:-1]
  blocks = _checked_bytes(ids_L, shape).reshape(
    *lead, rows // side, columns // side, side, side, channels
  )
  return np.moveaxis(blocks, -3, -4).reshape(*lead, *shape)


def image_bytes(image_YXC: np.ndarray, order: str, patch: int) -> np.ndarray:
  """`raster_bytes` or `patch_scan`, as `data.bytes.image_order` says ('raster' or 'patch')."""
  return patch_scan(image_YXC, patch) if order == 'patch' else raster_bytes(image_YXC)


def image_of_bytes(ids_L: np.ndarray, shape: Sequence[int], order: str, patch: int) -> np.ndarray:
  """The picture whose `image_bytes` are `ids_L`."""
  if order == 'patch':
    return inverse_patch_scan(ids_L, shape, patch)
  return inverse_raster_bytes(ids_L, shape)


def _checked_side(rows: int, columns: int, channels: int, patch: int) -> int:
  side = patch_side(patch, channels)
  if rows % side or columns % side:
    raise ConfigError(
      f'data.bytes.patch is {patch}, blocks of {side}x{side} pixels of {channels} channels, but a '
      f'picture of {rows}x{columns} is no whole number of them; set data.bytes.patch or '
      'data.image_size'
    )
  return side


def _checked_image(image_YXC: np.ndarray) -> np.ndarray:
  image_YXC = np.asarray(image_YXC)
  if image_YXC.ndim < 3 or image_YXC.dtype != np.uint8:
    raise ValueError(f'expected uint8 [..., Y, X, C], got {image_YXC.dtype}{image_YXC.shape}')
  return image_YXC


def _checked_bytes(ids_L: np.ndarray, shape: Sequence[int]) -> np.ndarray:
  ids_L = np.asarray(ids_L)
  if ids_L.dtype.kind not in 'iu' or ids_L.shape[-1:] != (math.prod(shape),):
    raise ValueError(
      f'a picture of shape {tuple(shape)} has {math.prod(shape)} bytes, got '
      f'{ids_L.dtype}{ids_L.shape}'
    )
  if ids_L.size and (ids_L.min() < 0 or ids_L.max() > 255):
    raise ValueError(f'bytes are 0 to 255, got ids from {ids_L.min()} to {ids_L.max()}')
  return ids_L.astype(np.uint8)
