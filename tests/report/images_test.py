import base64
import io
import re

import numpy as np
import pytest
from PIL import Image

from jaxmm.report import images


def pictures(html):
  """Every image in the HTML, decoded."""
  return [
    np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    for data in re.findall(r'data:image/png;base64,([^"]+)', html)
  ]


@pytest.mark.parametrize('channels', [1, 3])
def test_a_grid_holds_every_pixel_in_reading_order(channels):
  batch = np.random.default_rng(0).integers(0, 256, (5, 4, 6, channels)).astype(np.uint8)
  (grid,) = pictures(images.image_grid(batch, columns=3))
  grid = grid.reshape(*grid.shape[:2], channels)
  assert grid.shape == (2 * 4 + 1, 3 * 6 + 2, channels)
  np.testing.assert_array_equal(grid[5:9, 7:13], batch[4])
  assert (grid[5:9, 14:] == 128).all()  # no sixth image


def test_labels_stand_with_their_own_tiles_and_are_escaped():
  batch = np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 1), np.uint8)
  html = images.image_grid(batch, labels=['zero', '<one>', 2])
  assert [p.max() for p in pictures(html)] == [0, 1, 2]
  assert re.findall(r'<span>([^<]*)</span>', html) == ['zero', '&lt;one&gt;', '2']
  with pytest.raises(ValueError, match='2 labels for 3 images'):
    images.image_grid(batch, labels=[1, 2])


def test_rows_line_up_images_under_one_another():
  batch = np.zeros((3, 2, 2, 3), np.uint8)
  first, second = pictures(images.image_rows({'original': batch, 'CRT': batch + 9}))
  assert first.shape == second.shape and first[0, 0, 0] == 0 and second[0, 0, 0] == 9
  with pytest.raises(ValueError, match='same number'):
    images.image_rows({'a': batch, 'b': batch[:2]})


@pytest.mark.parametrize('bad', [np.zeros((2, 2, 3)), np.zeros((2, 2, 4), np.uint8)])
def test_floats_and_odd_channels_are_refused(bad):
  with pytest.raises(ValueError, match='expected uint8'):
    images.png_data(bad)
