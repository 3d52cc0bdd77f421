"""Values of pairs of pictures, row by row; LPIPS with weights under their public names."""

import numpy as np
import pytest
import safetensors.numpy

from jaxmm.evaluate import images
from jaxmm.studies import reconstructions
from tests.references import vgg_distance


def test_rows_are_the_metrics_of_single_pairs():
  rng = np.random.default_rng(0)
  a = rng.integers(0, 256, (3, 16, 17, 3), dtype=np.uint8)
  b = np.clip(a + rng.normal(0, 15, a.shape), 0, 255).astype(np.uint8)
  rows = reconstructions.pair_rows(a, b)
  assert list(rows) == ['mse', 'psnr', 'ssim']
  for i in range(3):
    one = images.ssim(a[i : i + 1], b[i : i + 1], data_range=255)[0]
    assert rows['ssim'][i] == pytest.approx(float(one), rel=1e-6)
  assert list(reconstructions.pair_metrics((176, 180, 3))) == ['mse', 'psnr', 'ssim', 'ms_ssim']


def test_lpips_is_that_of_the_users_weights(tmp_path):
  named = vgg_distance.random_weights(0)
  safetensors.numpy.save_file(named, tmp_path / 'lpips.safetensors')
  weights = reconstructions.read_lpips([str(tmp_path / 'lpips.safetensors')])
  a, b = np.random.default_rng(1).integers(0, 256, (2, 2, 16, 16, 3), dtype=np.uint8)
  found = reconstructions.pair_rows(a, b, weights)['lpips']
  for i in range(2):
    pair = (x[i].transpose(2, 0, 1) / 127.5 - 1 for x in (a, b))
    assert found[i] == pytest.approx(vgg_distance.distance(named, *pair), rel=1e-4)
  assert reconstructions.read_lpips([]) is None
