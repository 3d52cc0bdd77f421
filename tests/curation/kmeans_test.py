"""k-means beside the obvious loop; the same on one device and on eight, whole or interrupted."""

import jax
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.curation import kmeans
from jaxmm.curation.kmeans import KMeansConfig
from tests.references import clusters


def unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def rows(n=700, d=12, centres=9, seed=0, noise=0.25):
  rng = np.random.default_rng(seed)
  centre = unit(rng.standard_normal((centres, d)))
  return unit(centre[rng.integers(centres, size=n)] + noise * rng.standard_normal((n, d)))


def spoiled(value):
  return np.where(np.arange(5)[:, None] == 3, np.float32(value), rows(5))


def mesh_of(devices):
  return sharding.make_mesh(devices=jax.devices()[:devices])


@pytest.mark.parametrize('spherical', [True, False])
@pytest.mark.parametrize('iterations', [1, 4])
def test_equal_to_the_obvious_loop(spherical, iterations):
  x = rows() if spherical else 3 * rows()
  config = KMeansConfig(8, iterations, spherical=spherical, seed=3)
  found = kmeans.fit(x, config)
  expected = clusters.lloyd(x, kmeans._start(x, 8, config), iterations, spherical)
  np.testing.assert_allclose(found.centroid_KD, expected, atol=2e-6)
  cluster, distance = clusters.nearest(x, found.centroid_KD, spherical)
  assert found.cluster_N.tolist() == cluster
  np.testing.assert_allclose(found.distance_N, distance, atol=1e-6)
  assert len(found.history) == iterations and sorted(found.history)[::-1] == list(found.history)
  assert found.size_K.sum() == len(x)


@pytest.mark.parametrize('spherical', [True, False])
def test_devices_do_not_show(spherical):
  x = rows(n=1999)
  config = KMeansConfig(20, 6, spherical=spherical)
  one, eight, mixed = (
    kmeans.fit(x, config, mesh)
    for mesh in (
      mesh_of(1),
      mesh_of(8),
      sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2)),
    )
  )
  for other in (eight, mixed):
    np.testing.assert_array_equal(one.centroid_KD, other.centroid_KD)
    np.testing.assert_array_equal(one.cluster_N, other.cluster_N)
    np.testing.assert_array_equal(one.distance_N, other.distance_N)
    assert one.history == other.history


def test_it_ends_where_little_is_gained():
  x, config = rows(n=900, noise=0.5), KMeansConfig(12, 30)
  whole = kmeans.fit(x, config)
  gain = -np.diff(whole.history) / whole.history[:-1]
  short = kmeans.fit(x, KMeansConfig(12, 30, tolerance=float(gain[3])))
  assert len(short.history) == 2 + int(np.argmax(gain < gain[3])) < len(whole.history)


@pytest.mark.parametrize('init', kmeans.INITS)
def test_clusters_that_are_there_are_found(init):
  rng = np.random.default_rng(0)
  centre = unit(rng.standard_normal((4, 16)))
  label = np.arange(400) % 4
  x = unit(centre[label] + 0.02 * rng.standard_normal((400, 16)))
  found = kmeans.fit(x, KMeansConfig(4, 20, init=init, seed=1))
  if init == 'k-means++':
    assert len({(a, b) for a, b in zip(label, found.cluster_N)}) == 4
  assert len(found.history) < 20  # it has settled


def test_empty_clusters_are_seeded_anew():
  # Copies of one row are the start of several clusters: all but the first of them are empty.
  x = np.concatenate([np.tile(rows(1), (60, 1)), rows(20, seed=5)])
  config = KMeansConfig(12, 10, seed=0)
  start = kmeans._start(x, 12, config)
  assert len(np.unique(start, axis=0)) < 8
  found = kmeans.fit(x, config)
  assert (found.size_K > 0).sum() >= 11 and found.history[-1] < found.history[0] / 2


def test_fitted_on_a_sample_all_rows_are_assigned(tmp_path):
  x = rows(n=3000)
  np.save(tmp_path / 'x.npy', x)
  mapped = np.load(tmp_path / 'x.npy', mmap_mode='r')
  found = kmeans.fit(mapped, KMeansConfig(9, 8, fit_rows=500))
  part = x[kmeans.sample(3000, 500, 0)]
  of_part = kmeans.fit(part, KMeansConfig(9, 8))
  np.testing.assert_array_equal(found.centroid_KD, of_part.centroid_KD)
  cluster, _ = clusters.nearest(x, found.centroid_KD, True)
  assert found.cluster_N.tolist() == cluster
  streamed = kmeans.assign(mapped, found.centroid_KD, KMeansConfig(9), rows_at_once=700)
  np.testing.assert_array_equal(streamed[0], found.cluster_N)
  np.testing.assert_allclose(streamed[1], found.distance_N, atol=1e-6)


def test_a_fit_that_was_stopped_goes_on(tmp_path, monkeypatch):
  x, config = rows(), KMeansConfig(10, 7)
  whole = kmeans.fit(x, config)
  calls = []
  step = kmeans.Dealt.step

  def stopped(self, centroid_KD):
    calls.append(1)
    if len(calls) == 4:
      raise KeyboardInterrupt
    return step(self, centroid_KD)

  monkeypatch.setattr(kmeans.Dealt, 'step', stopped)
  with pytest.raises(KeyboardInterrupt):
    kmeans.fit(x, config, directory=tmp_path / 'k')
  resumed = kmeans.fit(x, config, directory=tmp_path / 'k')
  assert len(calls) == 4 + 4 + 1  # three iterations were there; the last call assigns
  np.testing.assert_array_equal(resumed.centroid_KD, whole.centroid_KD)
  np.testing.assert_array_equal(resumed.cluster_N, whole.cluster_N)
  assert resumed.history == whole.history
  again = kmeans.fit(x, config, directory=tmp_path / 'k')
  assert len(calls) == 10
  np.testing.assert_array_equal(again.cluster_N, whole.cluster_N)


@pytest.mark.parametrize(
  ('x', 'config', 'message'),
  [
    (rows(5), KMeansConfig(6), 'clusters is 6, expected at most the 5 rows with a vector'),
    (rows(50), KMeansConfig(6, fit_rows=4), 'expected at most the 4 rows of fit_rows 4'),
    (2 * rows(5), KMeansConfig(2), r'row 0 has length 2, expected 1'),
    (spoiled(np.nan), KMeansConfig(2), 'row 3 has length nan'),
    (spoiled(0), KMeansConfig(2), 'row 3 has length 0'),
    (rows(5).astype(np.float64), KMeansConfig(2), 'expected float32'),
    (rows(5)[:0], KMeansConfig(1), 'N > 0'),
    (rows(50), KMeansConfig(2, stripes=4), 'stripes is 4, expected a multiple of the 8 devices'),
  ],
)  # fmt: skip
def test_what_cannot_be_clustered_is_refused(x, config, message):
  with pytest.raises(ConfigError, match=message):
    kmeans.fit(x, config)


@pytest.mark.parametrize(
  'wrong', [{'clusters': -1}, {'iterations': 0}, {'init': 'best'}, {'tolerance': 1.0}]
)
def test_settings_are_checked(wrong):
  with pytest.raises(ConfigError, match=next(iter(wrong))):
    KMeansConfig(**wrong)
