"""One record to one fixed-size uint8 image: decoding, resizing, crops, flip.

Randomness comes from `example_rng(seed, index)`, the example's own generator: it does not depend on
the row, the batch, the thread or the process that reads the example.

Axes: Y X rows and columns, C channels, V views of one image.
"""

from __future__ import annotations

import io
import math
import struct
import zlib

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxmm.config import ConfigError
from jaxmm.data.sources import UnreadableRecord

CROPS = ('none', 'pad', 'resize', 'center', 'random', 'ten')
# Modes of PIL whose pixels are one grey value or three colours; the others have alpha, four inks or
# more than eight bits, which is lost in RGB.
_CHANNELS = {'1': 1, 'L': 1, 'RGB': 3, 'P': 3}
# What PIL raises on damaged files of one format or another.
_DAMAGE = (
  OSError,
  SyntaxError,
  ValueError,
  EOFError,
  IndexError,
  struct.error,
  zlib.error,
  Image.DecompressionBombError,
)


def example_rng(seed: int, index: int) -> np.random.Generator:
  """The generator of the example with this global index (counter-based: no warm-up)."""
  return np.random.Generator(np.random.Philox(key=[seed, index]))


def decode_image(image: bytes | np.ndarray, channels: int, convert: bool, name: str) -> np.ndarray:
  """Encoded bytes or an array as uint8 [Y, X, channels].

  Args:
    image: an encoded picture, or uint8 [Y, X] or [Y, X, C].
    channels: 1 (grey) or 3 (RGB).
    convert: whether another number of channels is converted (grey is repeated, colours become luma,
      alpha is dropped) or is an error.
    name: of the record, for errors.

  Raises:
    UnreadableRecord: the bytes are damaged.
    ConfigError: the picture has another number of channels and `convert` is off.
  """
  if not isinstance(image, (bytes, bytearray, memoryview)):
    return _array_channels(np.asarray(image), channels, convert, name)
  try:
    picture = Image.open(io.BytesIO(image))
    picture.load()
  except UnidentifiedImageError as e:
    raise UnreadableRecord(f'no picture of a known format ({len(image)} bytes)') from e
  except _DAMAGE as e:
    raise UnreadableRecord(f'{type(e).__name__}: {e}') from e
  found = _CHANNELS.get(picture.mode)
  if found != channels and not convert:
    raise _wrong_channels(name, f'mode {picture.mode}', found, channels)
  if picture.mode.startswith('I;16') or picture.mode in ('I', 'F'):
    # PIL clips 16-bit grey to 255 when it converts; the high byte is the picture.
    picture = Image.fromarray((np.asarray(picture).astype(np.int64) >> 8).astype(np.uint8))
  mode = 'RGB' if channels == 3 else 'L'
  array = np.asarray(picture if picture.mode == mode else picture.convert(mode))
  return array.reshape(*array.shape[:2], channels)


def _array_channels(array: np.ndarray, channels: int, convert: bool, name: str) -> np.ndarray:
  if array.ndim == 2:
    array = array[..., None]
  if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] not in (1, 3, 4):
    raise ConfigError(
      f'{name}: an image must be uint8 [Y, X, C] with C 1, 3 or 4, got {array.dtype}{array.shape}'
    )
  found = array.shape[2]
  if found == channels:
    return array
  if not convert:
    raise _wrong_channels(name, f'shape {array.shape}', found, channels)
  if channels == 3:
    return np.repeat(array, 3, axis=2) if found == 1 else array[..., :3]
  return np.asarray(Image.fromarray(array[..., :3]).convert('L'))[..., None]


def _wrong_channels(name: str, what: str, found: int | None, channels: int) -> ConfigError:
  has = 'other than 1 or 3 channels' if found is None else f'{found} channel{"s"[: found > 1]}'
  return ConfigError(
    f'{name} has {has} ({what}), but data.channels is {channels}; set data.channels, or '
    'data.convert_channels=True to convert'
  )


def cropped(
  image_YXC: np.ndarray, size: int, crop: str, rng: np.random.Generator | None, name: str = 'image'
) -> np.ndarray:
  """One square view [size, size, C] of a decoded image.

  Args:
    image_YXC: uint8.
    size: pixels a side.
    crop: 'none' (it has that size already), 'pad' (with zeros, centred), 'resize' (shorter side to
      `size`, bicubic, then the centre), 'center' (ADM's: `center_crop`), 'random' (`random_crop`;
      'center' where `rng` is None).
    rng: the example's generator, or None for a view without randomness.
    name: of the record, for errors.
  """
  if crop == 'none' or crop == 'pad':
    rows, columns = image_YXC.shape[:2]
    if rows == columns == size:
      return image_YXC
    if crop == 'none':
      raise ConfigError(
        f"{name} is {rows}x{columns}, but data.image_size is {size} and data.crop is 'none'; set "
        f'data.crop to one of {", ".join(CROPS[1:])}, or data.image_size'
      )
    if rows > size or columns > size:
      raise ConfigError(
        f"{name} is {rows}x{columns}: data.crop='pad' cannot make it data.image_size={size}; "
        "use data.crop='center'"
      )
    return _padded(image_YXC, size)
  if crop == 'resize':
    return _center(_resized(image_YXC, size, halve=False), size)
  if crop == 'center' or rng is None:
    return center_crop(image_YXC, size)
  if crop == 'random':
    return random_crop(image_YXC, size, rng)
  raise ConfigError(f'data.crop is {crop!r}, expected one of {", ".join(CROPS)}')


def center_crop(image_YXC: np.ndarray, size: int) -> np.ndarray:
  """ADM's centre crop (Dhariwal and Nichol 2021, arXiv:2105.05233, their evaluation images).

  Halved with a box filter while the shorter side is at least twice `size`, then bicubic to `size`,
  then the middle.
  """
  return _center(_resized(image_YXC, size, halve=True), size)


def random_crop(image_YXC: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
  """LlamaGen's training crop: shorter side to 1-1.25 times `size`, then a random square."""
  short = int(rng.integers(size, math.ceil(size / 0.8) + 1))
  image_YXC = _resized(image_YXC, short, halve=True)
  top = int(rng.integers(image_YXC.shape[0] - size + 1))
  left = int(rng.integers(image_YXC.shape[1] - size + 1))
  return image_YXC[top : top + size, left : left + size]


def ten_crop(image_YXC: np.ndarray, size: int, ratios: tuple[float, ...]) -> np.ndarray:
  """Views [10 * len(ratios), size, size, C] for precomputed codes, as LlamaGen takes them.

  For each ratio the image is centre-cropped to `int(size * ratio)`; of that come the centre, the
  four corners (top left, top right, bottom left, bottom right) and the mirror images of these five.
  """
  views = []
  for ratio in ratios:
    larger = center_crop(image_YXC, int(size * ratio))
    far = larger.shape[0] - size
    middle = round(far / 2)
    corners = ((middle, middle), (0, 0), (0, far), (far, 0), (far, far))
    five = [larger[y : y + size, x : x + size] for y, x in corners]
    views += five + [view[:, ::-1] for view in five]
  return np.stack(views)


def _resized(image_YXC: np.ndarray, short: int, halve: bool) -> np.ndarray:
  """Shorter side to `short`, the other in proportion; `halve` averages 2x2 first, as ADM does."""
  rows, columns = image_YXC.shape[:2]
  if min(rows, columns) == short:
    return image_YXC
  picture = Image.fromarray(image_YXC[..., 0] if image_YXC.shape[2] == 1 else image_YXC)
  while halve and min(picture.size) >= 2 * short:
    picture = picture.resize(tuple(n // 2 for n in picture.size), resample=Image.Resampling.BOX)
  scale = short / min(picture.size)
  size = tuple(round(n * scale) for n in picture.size)
  array = np.asarray(picture.resize(size, resample=Image.Resampling.BICUBIC))
  return array.reshape(*array.shape[:2], image_YXC.shape[2])


def _center(image_YXC: np.ndarray, size: int) -> np.ndarray:
  top, left = (image_YXC.shape[0] - size) // 2, (image_YXC.shape[1] - size) // 2
  return image_YXC[top : top + size, left : left + size]


def _padded(image_YXC: np.ndarray, size: int) -> np.ndarray:
  out = np.zeros((size, size, image_YXC.shape[2]), np.uint8)
  top, left = (size - image_YXC.shape[0]) // 2, (size - image_YXC.shape[1]) // 2
  out[top : top + image_YXC.shape[0], left : left + image_YXC.shape[1]] = image_YXC
  return out
