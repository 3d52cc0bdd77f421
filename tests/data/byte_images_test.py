"""Pictures as bytes: both orders against loops, undone exactly, and through the chain."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError, from_mapping
from jaxmm.data import byte_images
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.data.sources import ArraySource


def _picture(*shape, seed=0) -> np.ndarray:
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 5), st.sampled_from([1, 3, 4]))
def test_patch_scan_is_the_loop_over_blocks_and_can_be_undone(rows, columns, side, channels):
  shape = (rows * side, columns * side, channels)
  image, patch = _picture(2, *shape), side * side * channels
  expected = [
    image[n, y * side + j, x * side + i, c]
    for n in range(2)
    for y in range(rows)
    for x in range(columns)
    for j in range(side)
    for i in range(side)
    for c in range(channels)
  ]
  scanned = byte_images.patch_scan(image, patch)
  assert scanned.dtype == np.uint8 and scanned.shape == (2, image[0].size)
  np.testing.assert_array_equal(scanned.ravel(), expected)
  undone = byte_images.inverse_patch_scan(scanned.astype(np.int32), shape, patch)
  np.testing.assert_array_equal(undone, image)
  raster = byte_images.raster_bytes(image[0])
  assert raster.tobytes() == image[0].tobytes()
  np.testing.assert_array_equal(byte_images.inverse_raster_bytes(raster, shape), image[0])


@pytest.mark.parametrize(
  ('patch', 'side'), [(12, 2), (48, 4), (192, 8), (768, 16)], ids=str
)  # the papers' patches of 3 channels
def test_patches_of_the_paper_are_squares(patch, side):
  assert byte_images.patch_side(patch, 3) == side


def test_bytes_that_are_no_picture():
  with pytest.raises(ConfigError, match=r'patch is 100.*\(some that do: 75, 108, 147\)'):
    byte_images.patch_side(100, 3)
  with pytest.raises(ConfigError, match='8x8 pixels.*picture of 12x16 is no whole number'):
    byte_images.patch_scan(_picture(12, 16, 3), 192)
  with pytest.raises(ConfigError, match='no square patch'):
    byte_images.patch_scan(_picture(4, 4, 3), 2)
  with pytest.raises(ValueError, match='has 48 bytes, got int64'):
    byte_images.inverse_raster_bytes(np.zeros(47, np.int64), (4, 4, 3))
  with pytest.raises(ValueError, match='0 to 255, got ids from 0 to 256'):
    byte_images.inverse_patch_scan(np.arange(48) // 47 * 256, (4, 4, 3), 12)
  with pytest.raises(ValueError, match='expected uint8'):
    byte_images.raster_bytes(np.zeros((4, 4, 3)))


def _batches(order, patch=12, size=8, channels=3, batch_size=4, process=(0, 1), **settings):
  source = ArraySource(_picture(10, size, size, channels), np.arange(10) % 3)
  config = {
    'name': 'arrays',
    'image_size': size,
    'channels': channels,
    'crop': 'none',
    'bytes': {'image_order': order, 'patch': patch},
    **settings,
  }
  train = config.pop('train', True)
  batches = make_batches(
    from_mapping(DataConfig, config, 'data'),
    batch_size=batch_size,
    seed=3,
    train=train,
    source=source,
    process_index=process[0],
    process_count=process[1],
  )
  return batches, source


@pytest.mark.parametrize('order', ['raster', 'patch'])
def test_each_picture_is_a_row_with_its_label(order):
  batches, source = _batches(order, flip=True)
  pictures, _ = _batches('', flip=True)
  for step in (0, 5):
    batch, plain = batches.at(step), pictures.at(step)
    assert batch['ids_BL'].shape == (4, 192) and batch['ids_BL'].dtype == np.int32
    # The transforms are those of the pictures, drawn by the example.
    images = byte_images.image_of_bytes(batch['ids_BL'], (8, 8, 3), order, 12)
    np.testing.assert_array_equal(images, plain['image_BYXC'])
    np.testing.assert_array_equal(batch['label_B'], source.label_N[batch['record_B']])
    np.testing.assert_array_equal(batch['segment_BL'], 1)
    np.testing.assert_array_equal(batch['weight_BL'].sum(axis=1), 191)
    assert not batch['weight_BL'][:, 0].any()


@pytest.mark.parametrize('processes', [2, 4])
def test_rows_of_pictures_are_the_same_on_any_number_of_processes(processes):
  alone, _ = _batches('patch', flip=True)
  parts = [_batches('patch', flip=True, process=(p, processes))[0].at(7) for p in range(processes)]
  for name, value in alone.at(7).items():
    np.testing.assert_array_equal(value, np.concatenate([part[name] for part in parts]))


def test_the_last_batch_of_a_pass_has_rows_without_segments():
  batches, source = _batches('raster', train=False)
  rows = list(batches.once())
  assert [int(b['valid_B'].sum()) for b in rows] == [4, 4, 2]
  assert sum(int((b['segment_BL'] > 0).sum()) for b in rows) == source.image_NYXC.size


def test_orders_that_do_not_go():
  with pytest.raises(ConfigError, match='patch is 100'):
    _batches('patch', patch=100)
  with pytest.raises(ConfigError, match='picture of 8x8 is no whole number'):
    _batches('patch', patch=108)
  with pytest.raises(ConfigError, match="crop is 'ten'"):
    _batches('raster', crop='ten')
  with pytest.raises(ConfigError, match="image_order is 'hilbert'"):
    _batches('hilbert')
