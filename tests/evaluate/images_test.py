"""Image metrics and distances of sets against obvious loops and SciPy, on any split and mesh."""

import functools

import flax.linen as nn
import jax
import numpy as np
import pytest
import scipy.linalg
import scipy.signal

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.evaluate import distances, features, images
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance
from jaxmm.models.classifier import BlockGroup, Classifier, ClassifierConfig


@pytest.fixture(scope='module')
def pair():
  rng = np.random.default_rng(0)
  a = rng.integers(0, 256, (5, 13, 12, 3)).astype(np.float32)
  return a, np.clip(a + rng.normal(0, 20, a.shape), 0, 255).astype(np.float32)


def ssim_by_loops(a, b, data_range):
  """Wang et al. 2004, one window at a time."""
  at = np.arange(11) - 5
  weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
  weight /= weight.sum()
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  values = []
  for c in range(a.shape[2]):
    for y in range(a.shape[0] - 10):
      for x in range(a.shape[1] - 10):
        p = a[y : y + 11, x : x + 11, c].astype(np.float64)
        q = b[y : y + 11, x : x + 11, c].astype(np.float64)
        mp, mq = (weight * p).sum(), (weight * q).sum()
        vp, vq = (weight * (p - mp) ** 2).sum(), (weight * (q - mq) ** 2).sum()
        cov = (weight * (p - mp) * (q - mq)).sum()
        top = (2 * mp * mq + c1) * (2 * cov + c2)
        values.append(top / ((mp**2 + mq**2 + c1) * (vp + vq + c2)))
  return np.mean(values)


def test_pairs_equal_loops(pair):
  a, b = pair
  error = np.mean((a.astype(np.float64) - b) ** 2, (1, 2, 3))
  total, count = images.mean_squared_error(a, b)
  np.testing.assert_allclose(total, error.sum(), rtol=1e-6)
  assert count == 5
  total, _ = images.psnr(a, b, data_range=255)
  np.testing.assert_allclose(total, (10 * np.log10(255**2 / error)).sum(), rtol=1e-6)
  for scale, shift, data_range in [(1, 0, 255), (1 / 127.5, -1, 2)]:
    x, y = a * scale + shift, b * scale + shift
    expected = sum(ssim_by_loops(x[i], y[i], data_range) for i in range(5))
    total, _ = images.ssim(x, y, data_range=data_range)
    np.testing.assert_allclose(total, expected, rtol=1e-5)


def test_equal_images_and_rounding(pair):
  a, _ = pair
  assert images.mean_squared_error(a, a)[0] == 0
  assert images.psnr(a, a, data_range=255)[0] == 500  # 100 dB each
  np.testing.assert_allclose(images.ssim(a, a, data_range=255)[0], 5, rtol=1e-6)
  found = images.to_pixels(np.array([-1.5, -1, -0.999, 0, 1, 7], np.float32))
  np.testing.assert_array_equal(found, [0, 0, 0, 128, 255, 255])


def test_rows_that_do_not_count_count_nothing(pair):
  a, b = pair
  broken = b.copy()
  broken[3:] = np.nan
  valid = np.array([1, 1, 1, 0, 0], np.float32)
  for metric in (
    images.mean_squared_error,
    functools.partial(images.psnr, data_range=255),
    functools.partial(images.ssim, data_range=255),
  ):
    found, expected = metric(a, broken, valid), metric(a[:3], b[:3])
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-6)
    assert found[1] == 3


def test_impossible_pairs_are_named(pair):
  a, b = pair
  with pytest.raises(ConfigError, match='window is 11 pixels'):
    images.ssim(a[:, :10], b[:, :10], data_range=255)
  with pytest.raises(ConfigError, match='cannot be compared'):
    images.psnr(a, b[:1], data_range=255)
  with pytest.raises(ConfigError, match='data_range is 0'):
    images.psnr(a, b, data_range=0)


@pytest.fixture(scope='module')
def sets():
  rng = np.random.default_rng(1)
  mix = rng.normal(size=(24, 24))
  one = (rng.normal(size=(200, 24)) @ mix + 3).astype(np.float32)
  return one, (rng.normal(size=(150, 24)) @ (mix + 0.3 * rng.normal(size=mix.shape))).astype(
    np.float32
  )


def test_frechet_distance_is_that_of_the_formula(sets):
  one, two = (x.astype(np.float64) for x in sets)
  cov_1, cov_2 = np.cov(one.T), np.cov(two.T)
  cross = scipy.linalg.sqrtm(cov_1 @ cov_2)
  expected = np.sum((one.mean(0) - two.mean(0)) ** 2) + np.trace(cov_1 + cov_2 - 2 * cross).real
  a, b = (FeatureStatistics.of(x) for x in sets)
  np.testing.assert_allclose(frechet_distance(a, b), expected, rtol=1e-9)
  np.testing.assert_allclose(frechet_distance(b, a), expected, rtol=1e-9)
  np.testing.assert_allclose(frechet_distance(a, a), 0, atol=1e-7 * np.trace(cov_1))
  # Two Gaussians apart by a shift alone: its squared length.
  shifted = FeatureStatistics.of(one + 0.5)
  np.testing.assert_allclose(frechet_distance(a, shifted), 24 * 0.25, rtol=1e-6)


def test_statistics_do_not_depend_on_the_split(sets, tmp_path):
  whole = FeatureStatistics.of(sets[0])
  np.testing.assert_allclose(whole.covariance(), np.cov(sets[0].T.astype(np.float64)), rtol=1e-9)
  parts = FeatureStatistics.empty(24)
  for start, stop in [(0, 1), (1, 130), (130, 130), (130, 200)]:
    padded = np.concatenate([sets[0][start:stop], np.full((2, 24), np.nan, np.float32)])
    valid = np.arange(len(padded)) < stop - start
    parts = parts.merge(FeatureStatistics.of(padded, valid))
  assert parts.count == 200
  np.testing.assert_allclose(parts.mean_D, whole.mean_D, rtol=1e-13)
  np.testing.assert_allclose(
    parts.scatter_DD, whole.scatter_DD, rtol=1e-12, atol=1e-12 * np.abs(whole.scatter_DD).max()
  )
  parts.save(tmp_path / 'real.stats')
  loaded = FeatureStatistics.load(tmp_path / 'real.stats')
  assert frechet_distance(parts, loaded) == frechet_distance(parts, parts)
  np.savez(tmp_path / 'sums.npz', count=3, sum=np.zeros(2))
  with pytest.raises(ConfigError, match='holds count, sum, expected count, mu and sigma'):
    FeatureStatistics.load(tmp_path / 'sums.npz')


def test_too_few_samples_are_refused(sets):
  few, many = FeatureStatistics.of(sets[0][:24]), FeatureStatistics.of(sets[1])
  with pytest.raises(ConfigError, match='more than 24 samples of each set, got 24 and 150'):
    frechet_distance(few, many)
  assert frechet_distance(few, many, few_samples='accept') > 0
  with pytest.raises(ConfigError, match='not of one network'):
    frechet_distance(FeatureStatistics.of(sets[0][:, :5]), many)
  with pytest.raises(ValueError, match='1 of 200 feature rows are not finite, first 7'):
    FeatureStatistics.of(np.where(np.arange(200)[:, None] == 7, np.inf, sets[0]))
  with pytest.raises(ValueError, match='no features'):
    FeatureStatistics.empty(3).mean()


def test_feature_statistics_are_the_same_on_any_mesh():
  config = ClassifierConfig(
    stem=4, groups=(BlockGroup(1, 3, 1, 1, 4),), features=6, classes=2, image_size=32
  )
  pixels = np.random.default_rng(3).integers(0, 256, (19, 32, 32, 3), dtype=np.uint8)
  params = jax.jit(Classifier(config).init)(jax.random.key(0), np.zeros((1, 32, 32, 3)))['params']
  params = jax.tree.map(np.asarray, nn.unbox(params))
  rules = sharding.rules_named('dp')
  found = []
  for devices, batch in [(1, 19), (8, 16)]:
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    lines = []
    found.append(
      features.feature_statistics(
        pixels, params, mesh=mesh, rules=rules, config=config, batch_size=batch, echo=lines.append
      )
    )
    assert lines[-1] == 'features: 19/19 images'
  one, eight = found
  assert one.count == eight.count == 19
  scale = np.abs(one.scatter_DD).max()
  np.testing.assert_allclose(one.scatter_DD, eight.scatter_DD, rtol=1e-5, atol=1e-5 * scale)
  assert frechet_distance(one, eight) < 1e-5 * np.trace(one.covariance())
  with pytest.raises(ConfigError, match='expected uint8'):
    features.feature_statistics(pixels / 255, params, mesh=mesh, rules=rules, config=config)


def test_the_kernel_distance_is_its_definition_and_has_no_bias():
  rng = np.random.default_rng(0)
  a, b = rng.standard_normal((5, 3)), rng.standard_normal((4, 3)) + 1

  def mean(x, y, skip):
    pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (skip and i == j)]
    return sum((float(x[i] @ y[j]) / 3 + 1) ** 3 for i, j in pairs) / len(pairs)

  expected = mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)
  assert distances.kernel_distance(a, b) == pytest.approx(expected, rel=1e-12)
  same = [
    distances.kernel_distance(rng.standard_normal((20, 4)), rng.standard_normal((30, 4)))
    for _ in range(300)
  ]
  assert abs(np.mean(same)) < 4 * np.std(same) / np.sqrt(len(same))
  with pytest.raises(ValueError, match='at least two rows'):
    distances.kernel_distance(a[:1], b)


def ms_ssim_by_loops(a, b, data_range):
  """Wang et al. 2003, one scale and channel at a time."""
  powers = [0.0448, 0.2856, 0.3001, 0.2363, 0.1333]
  c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
  at = np.arange(11) - 5
  weight = np.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
  weight /= weight.sum()
  mean = lambda x: scipy.signal.convolve2d(x, weight, mode='valid')
  total = 0.0
  for c in range(a.shape[2]):
    p, q, product = a[..., c].astype(np.float64), b[..., c].astype(np.float64), 1.0
    for i, power in enumerate(powers):
      mp, mq = mean(p), mean(q)
      vp, vq, cov = mean(p * p) - mp**2, mean(q * q) - mq**2, mean(p * q) - mp * mq
      value = (2 * cov + c2) / (vp + vq + c2)
      if i == 4:
        value = value * (2 * mp * mq + c1) / (mp**2 + mq**2 + c1)
      product *= max(value.mean(), 0.0) ** power
      p, q = (
        x[: len(x) // 2 * 2, : x.shape[1] // 2 * 2].reshape(len(x) // 2, 2, -1, 2).mean((1, 3))
        for x in (p, q)
      )
    total += product / a.shape[2]
  return total


@pytest.mark.slow
def test_ms_ssim_equals_loops():
  rng = np.random.default_rng(0)
  a = rng.integers(0, 256, (3, 12, 12, 2)).repeat(16, 1).repeat(15, 2)[:, :179]
  a = np.clip(a + rng.normal(0, 10, a.shape), 0, 255).astype(np.float32)
  b = np.clip(a + rng.normal(0, 30, a.shape), 0, 255).astype(np.float32)
  b[2] = np.nan  # a row that does not count
  expected = sum(ms_ssim_by_loops(a[i], b[i], 255) for i in range(2))
  total, count = images.ms_ssim(a, b, np.float32([1, 1, 0]), data_range=255)
  assert count == 2 and expected < 1.98
  np.testing.assert_allclose(total, expected, rtol=1e-5)
  # A scale that is the other way round has no root, and counts as nothing.
  assert images.ms_ssim(a[:1], 255 - a[:1], data_range=255)[0] == 0
  np.testing.assert_allclose(images.ms_ssim(a[:1], a[:1], data_range=255)[0], 1, rtol=1e-6)
  with pytest.raises(ConfigError, match='176 pixels a side'):
    images.ms_ssim(a[:, :175], b[:, :175], data_range=255)
