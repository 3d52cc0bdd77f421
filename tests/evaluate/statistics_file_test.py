"""Statistics and sample batches as other programs write and read them."""

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.evaluate import statistics_file
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance


@pytest.fixture(scope='module')
def rows():
  rng = np.random.default_rng(0)
  return rng.standard_normal((6, 2048)).astype(np.float32) + 3, rng.standard_normal((6, 2023))


def test_public_statistics_are_read(rows, tmp_path):
  pool, spatial = rows
  # As ADM's program and pytorch-fid write them.
  written = dict(mu=pool.mean(0), sigma=np.cov(pool, rowvar=False))
  np.savez(tmp_path / 'torch.npz', **written)
  np.savez_compressed(
    tmp_path / 'adm.npz',
    **written, mu_s=spatial.mean(0), sigma_s=np.cov(spatial, rowvar=False),
    arr_0=np.zeros((2, 4, 4, 3), np.uint8),
  )  # fmt: skip
  found = statistics_file.read_statistics(tmp_path / 'torch.npz')
  assert list(found) == ['pool'] and found['pool'].count is None
  np.testing.assert_allclose(found['pool'].covariance(), np.cov(pool, rowvar=False), rtol=1e-12)
  found = statistics_file.read_statistics(tmp_path / 'adm.npz')
  np.testing.assert_allclose(found['spatial'].mean(), spatial.mean(0), rtol=1e-12)
  assert statistics_file.read_images(tmp_path / 'adm.npz').shape == (2, 4, 4, 3)


def test_what_is_written_is_read_here_and_there(rows, tmp_path):
  own = {'pool': FeatureStatistics.of(rows[0]), 'spatial': FeatureStatistics.of(rows[1])}
  statistics_file.write_statistics(tmp_path / 'new' / 'own.npz', own)
  found = statistics_file.read_statistics(tmp_path / 'new' / 'own.npz')
  assert found['pool'].count == 6
  merged = found['pool'].merge(FeatureStatistics.of(rows[0][:2]))
  assert merged.count == 8
  assert frechet_distance(found['spatial'], own['spatial'], few_samples='accept') < 1e-8
  with np.load(tmp_path / 'new' / 'own.npz', allow_pickle=False) as arrays:  # as pytorch-fid does
    np.testing.assert_allclose(arrays['mu'][:], rows[0].astype(np.float64).mean(0), rtol=1e-12)
    assert arrays['sigma_s'].shape == (2023, 2023)


def test_sample_batches_are_mapped_where_they_can_be(tmp_path):
  images = np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)
  statistics_file.write_images(tmp_path / 'stored.npz', images)
  np.savez_compressed(tmp_path / 'packed.npz', label=np.arange(7), arr_0=images)
  np.savez(tmp_path / 'second.npz', label=np.arange(7), arr_0=images)
  for name, is_mapped in [('stored', True), ('packed', False), ('second', True)]:
    found = statistics_file.read_images(tmp_path / f'{name}.npz')
    np.testing.assert_array_equal(found, images)
    assert isinstance(found, np.memmap) == is_mapped
  one, two = (
    statistics_file.checksum(tmp_path / f'{n}.npz', 'arr_0') for n in ('stored', 'packed')
  )
  assert one == two
  statistics_file.write_images(tmp_path / 'other.npz', images[:, ::-1])
  assert statistics_file.checksum(tmp_path / 'other.npz', 'arr_0') != one


def test_wrong_files_are_named(tmp_path):
  def save(name, **arrays):
    np.savez(tmp_path / name, **arrays)
    return tmp_path / name

  with pytest.raises(ConfigError, match='there is no such file'):
    statistics_file.read_statistics(tmp_path / 'absent.npz')
  (tmp_path / 'rubbish.npz').write_bytes(b'rubbish')
  with pytest.raises(ConfigError, match='not a readable .npz'):
    statistics_file.read_images(tmp_path / 'rubbish.npz')
  with pytest.raises(ConfigError, match=r'mu has shape \(768,\) .* expected \(2048,\)'):
    statistics_file.read_statistics(save('dims.npz', mu=np.zeros(768), sigma=np.eye(768)))
  with pytest.raises(ConfigError, match='holds arr_0, expected statistics'):
    statistics_file.read_statistics(save('images.npz', arr_0=np.zeros((1, 2, 2, 3), np.uint8)))
  with pytest.raises(ConfigError, match='holds mu, expected images'):
    statistics_file.read_images(save('mu.npz', mu=np.zeros(3)))
  with pytest.raises(ConfigError, match=r'arr_0 is float64\(1, 2, 2, 3\), expected uint8'):
    statistics_file.read_images(save('float.npz', arr_0=np.zeros((1, 2, 2, 3))))
  # A pickle is not opened.
  objects = np.array([{'a': 1}], dtype=object)
  with pytest.raises(ConfigError, match='arr_0 cannot be read'):
    statistics_file.read_images(save('objects.npz', arr_0=objects))
