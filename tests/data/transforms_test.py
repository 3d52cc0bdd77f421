"""Image transforms against slow, obvious references and hand-made cases."""

import io

import numpy as np
import pytest
from PIL import Image

from jaxmm.config import ConfigError
from jaxmm.data.sources import UnreadableRecord
from jaxmm.data.transforms import (
  center_crop,
  cropped,
  decode_image,
  example_rng,
  random_crop,
  ten_crop,
)


def _image(rows: int, columns: int, channels: int = 3, seed: int = 0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, (rows, columns, channels), np.uint8)


def _encoded(image, kind='PNG', **options) -> bytes:
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def _cubic(x: float) -> float:
  """Keys' kernel with a = -1/2."""
  x = abs(x)
  if x < 1:
    return 1.5 * x**3 - 2.5 * x**2 + 1
  return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def _bicubic_line(line: np.ndarray, size: int) -> np.ndarray:
  """One axis of an antialiased bicubic resize, sample by sample."""
  scale = len(line) / size
  width = max(scale, 1.0)
  out = np.zeros((size, *line.shape[1:]))
  for i in range(size):
    center = (i + 0.5) * scale
    weights = np.array([_cubic((j + 0.5 - center) / width) for j in range(len(line))])
    out[i] = np.tensordot(weights / weights.sum(), line, 1)
  return out


def _bicubic(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
  # Columns first, rounded to bytes in between, as byte images are resized.
  image = np.clip(np.rint(_bicubic_line(image.transpose(1, 0, 2), columns)), 0, 255)
  return np.clip(np.rint(_bicubic_line(image.transpose(1, 0, 2), rows)), 0, 255)


def test_center_crop_halves_then_resizes_then_cuts():
  image = _image(44, 62)
  # Byte images are rounded after the columns and again after the rows.
  halved = np.floor(image.reshape(44, 31, 2, 3).mean(2) + 0.5)
  halved = np.floor(halved.reshape(22, 2, 31, 3).mean(1) + 0.5)
  expected = _bicubic(halved, 12, round(31 * 12 / 22))[:, 2:14]
  found = center_crop(image, 12)
  assert found.shape == (12, 12, 3)
  np.testing.assert_allclose(found.astype(float), expected, atol=1)


def test_resize_keeps_the_proportions_without_halving():
  image = _image(30, 21)
  expected = _bicubic(image, round(30 * 8 / 21), 8)[1:9]
  found = cropped(image, 8, 'resize', None)
  np.testing.assert_allclose(found.astype(float), expected, atol=1)


@pytest.mark.parametrize('channels', [1, 3])
def test_random_crop_is_a_square_of_an_image_up_to_a_quarter_larger(channels):
  # The value of a pixel is its row, so a crop shows how far the image was enlarged.
  ramp = np.repeat(np.arange(0, 240, 6, dtype=np.uint8)[:, None], 40, 1)[..., None]
  ramp = np.repeat(ramp, channels, 2)
  spans, crops = [], set()
  for index in range(60):
    crop = random_crop(ramp, 16, example_rng(0, index))
    assert crop.shape == (16, 16, channels)
    spans.append(float(crop[-1, 0, 0]) - float(crop[0, 0, 0]))
    crops.add(crop.tobytes())
  # 16 rows of an image of s rows span 240 * 15 / s of the ramp, s = 16 ... 20.
  assert 240 * 15 / 20 - 12 < min(spans) < 240 * 15 / 19 and max(spans) > 240 * 15 / 17
  assert len(crops) > 10


def test_an_example_is_the_same_wherever_it_is_read():
  image = _image(40, 50)
  again = random_crop(image, 16, example_rng(3, 2**40 + 7))
  np.testing.assert_array_equal(random_crop(image, 16, example_rng(3, 2**40 + 7)), again)
  draws = {tuple(example_rng(s, i).integers(0, 2**31, 2)) for s in range(3) for i in range(50)}
  assert len(draws) == 150


def test_ten_crop_is_the_centre_the_corners_and_their_mirrors():
  image = _image(22, 22)
  views = ten_crop(image, 20, (1.1, 1.05))
  assert views.shape == (20, 20, 20, 3)
  np.testing.assert_array_equal(views[0], image[1:21, 1:21])
  np.testing.assert_array_equal(views[1], image[:20, :20])
  np.testing.assert_array_equal(views[2], image[:20, 2:])
  np.testing.assert_array_equal(views[3], image[2:, :20])
  np.testing.assert_array_equal(views[4], image[2:, 2:])
  np.testing.assert_array_equal(views[5:10], views[:5, :, ::-1])
  np.testing.assert_array_equal(views[11], center_crop(image, 21)[:20, :20])


def test_pad_centres_and_none_wants_the_size():
  image = _image(3, 4)
  padded = cropped(image, 6, 'pad', None)
  np.testing.assert_array_equal(padded[1:4, 1:5], image)
  assert padded.sum() == image.sum()
  with pytest.raises(ConfigError, match=r'x.png is 3x4, but data.image_size is 6'):
    cropped(image, 6, 'none', None, 'x.png')
  with pytest.raises(ConfigError, match=r"x.png is 3x4: data.crop='pad' cannot"):
    cropped(image, 3, 'pad', None, 'x.png')


def test_channels_are_converted_only_when_asked():
  rgb = _image(5, 4)
  alpha = np.concatenate([rgb, np.full((5, 4, 1), 9, np.uint8)], -1)
  grey = rgb[..., 0]
  pictures = {
    'rgb': (Image.fromarray(rgb), 3),
    'grey': (Image.fromarray(grey), 1),
    'alpha': (Image.fromarray(alpha), None),
    'deep': (Image.fromarray(grey.astype(np.uint16) * 257), None),
  }
  for name, (picture, channels) in pictures.items():
    data = _encoded(picture)
    for wanted in (1, 3):
      if wanted == channels:
        decoded = decode_image(data, wanted, False, name)
      else:
        with pytest.raises(ConfigError, match=rf'{name} has .*data.channels is {wanted}'):
          decode_image(data, wanted, False, name)
        decoded = decode_image(data, wanted, True, name)
      assert decoded.shape == (5, 4, wanted) and decoded.dtype == np.uint8
      if name in ('rgb', 'alpha') and wanted == 3:
        np.testing.assert_array_equal(decoded, rgb)
      if name in ('grey', 'deep'):
        np.testing.assert_array_equal(decoded, np.repeat(grey[..., None], wanted, -1))
  luma = decode_image(_encoded(Image.fromarray(rgb)), 1, True, 'rgb')[..., 0]
  np.testing.assert_allclose(luma.astype(float), rgb @ [0.299, 0.587, 0.114], atol=1)
  np.testing.assert_array_equal(decode_image(rgb, 1, True, 'array')[..., 0], luma)
  np.testing.assert_array_equal(decode_image(grey, 3, True, 'array')[..., 2], grey)
  with pytest.raises(ConfigError, match='array: an image must be uint8'):
    decode_image(rgb.astype(np.float32), 3, True, 'array')


def test_palette_pictures_are_colours():
  picture = Image.fromarray(_image(5, 4)).quantize(8)
  decoded = decode_image(_encoded(picture), 3, False, 'p.png')
  np.testing.assert_array_equal(decoded, np.asarray(picture.convert('RGB')))


@pytest.mark.filterwarnings('ignore:Corrupt EXIF')
def test_damaged_bytes_are_unreadable_whatever_the_format():
  picture = Image.fromarray(_image(60, 60))
  for kind in ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF'):
    data = _encoded(picture, kind)
    for broken in (data[: len(data) // 2], data[:20], b''):
      with pytest.raises(UnreadableRecord):
        decode_image(broken, 3, True, 'x')


@pytest.mark.parametrize('seed', range(20))
def test_flipped_bytes_never_end_a_run(seed):
  # A flipped byte gives other pixels or UnreadableRecord; any other exception would end training.
  rng = np.random.default_rng(seed)
  for kind in ('PNG', 'JPEG', 'WEBP', 'GIF'):
    data = bytearray(_encoded(Image.fromarray(_image(24, 24)), kind))
    for at in rng.integers(2, len(data), 6):
      data[at] = rng.integers(256)
    try:
      image = decode_image(bytes(data), 3, True, 'x')
    except UnreadableRecord:
      continue
    assert image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3 and image.size
