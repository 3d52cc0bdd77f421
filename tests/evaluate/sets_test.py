"""Distances of sets: float64 where features are ill-conditioned, precision and recall by loops."""

import numpy as np
import pytest
import scipy.linalg

from jaxmm.config import ConfigError
from jaxmm.evaluate import distances, manifold
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance


@pytest.fixture(scope='module')
def far_from_zero():
  """float32 rows whose mean is 30,000 times their spread, correlated to a condition of 1e8."""
  rng = np.random.default_rng(0)
  spread = np.logspace(0, -4, 30)
  turn, _ = np.linalg.qr(rng.standard_normal((30, 30)))
  rows = rng.standard_normal((400, 30)) * spread @ turn
  return (rows + 3e4 * turn[0]).astype(np.float32)


def test_statistics_keep_what_a_large_mean_would_cancel(far_from_zero):
  exact = far_from_zero.astype(np.longdouble)
  exact = exact - exact.mean(0)
  expected = (exact.T @ exact / (len(exact) - 1)).astype(np.float64)
  parts = FeatureStatistics.empty(30)
  for rows in np.array_split(far_from_zero, [1, 3, 130, 131, 260]):
    parts = parts.merge(FeatureStatistics.of(rows))
  scale = np.abs(expected).max()
  np.testing.assert_allclose(parts.covariance(), expected, rtol=0, atol=1e-11 * scale)
  np.testing.assert_allclose(parts.mean(), far_from_zero.astype(np.longdouble).mean(0), rtol=1e-15)
  # Sums of products, float64 too, have lost half the digits: the test can tell.
  rows = far_from_zero.astype(np.float64)
  naive = (rows.T @ rows - len(rows) * np.outer(rows.mean(0), rows.mean(0))) / (len(rows) - 1)
  assert np.abs(naive - expected).max() > 1e-9 * scale


def test_the_order_of_merging_moves_rounding_alone(far_from_zero):
  parts = [FeatureStatistics.of(x) for x in np.array_split(far_from_zero, 7)]
  forward, backward = FeatureStatistics.empty(30), FeatureStatistics.empty(30)
  for one, other in zip(parts, parts[::-1]):
    forward, backward = forward.merge(one), backward.merge(other)
  other = FeatureStatistics.of(far_from_zero * np.float32(1.001))
  distance = [frechet_distance(x, other) for x in (forward, backward)]
  assert distance[0] == pytest.approx(distance[1], rel=1e-10)


def test_the_root_is_scipys():
  rng = np.random.default_rng(1)
  a, b = (np.cov(rng.standard_normal((25, 300)) * rng.uniform(0.1, 3, (25, 1))) for _ in range(2))
  expected = np.trace(scipy.linalg.sqrtm(a @ b)).real
  assert distances.root_trace(a, b) == pytest.approx(expected, rel=1e-10)


def test_a_singular_covariance_costs_no_digits():
  # Few rows in many features: the singular values of the rows themselves have no root in them.
  rng = np.random.default_rng(2)
  a, b = rng.standard_normal((2, 9, 200))
  centred = [x - x.mean(0) for x in (a, b)]
  exact = np.linalg.svd(centred[0] @ centred[1].T / 8, compute_uv=False).sum()
  found = distances.root_trace(*[np.cov(x.T) for x in (a, b)])
  assert found == pytest.approx(exact, rel=1e-12)


def by_loops(real, samples, k):
  def radii(x):
    return [
      sorted(np.sum((x[i] - y) ** 2) for j, y in enumerate(x) if j != i)[k - 1]
      for i in range(len(x))
    ]

  def share(of, balls, radius):
    inside = [any(np.sum((x - y) ** 2) <= r for y, r in zip(balls, radius)) for x in of]
    return sum(inside) / len(of)

  return {
    'precision': share(samples, real, radii(real)),
    'recall': share(real, samples, radii(samples)),
  }


@pytest.mark.parametrize('tile', [4, 1000])
def test_precision_and_recall_are_their_definition(tile):
  rng = np.random.default_rng(3)
  real = rng.standard_normal((31, 4)).astype(np.float32)
  samples = (rng.standard_normal((26, 4)) * [0.5, 0.5, 1, 2] + 0.5).astype(np.float32)
  expected = by_loops(real.astype(np.float64), samples.astype(np.float64), 3)
  assert 0.2 < expected['precision'] < 1 and 0.2 < expected['recall'] < 0.97
  assert manifold.precision_recall(real, samples, tile=tile) == expected
  assert manifold.precision_recall(real, real) == {'precision': 1.0, 'recall': 1.0}
  far = manifold.precision_recall(real, samples + 100)
  assert far == {'precision': 0.0, 'recall': 0.0}


def test_impossible_sets_are_named():
  x = np.zeros((9, 4))
  with pytest.raises(ConfigError, match='width 4 and 3: not of one network'):
    manifold.precision_recall(x, np.zeros((9, 3)))
  with pytest.raises(ConfigError, match='more than 3 of each'):
    manifold.precision_recall(x, x[:3])
  unknown = FeatureStatistics(None, np.zeros(4), np.eye(4))
  with pytest.raises(ValueError, match='without their number'):
    unknown.merge(FeatureStatistics.of(x))
  with pytest.raises(ConfigError, match='got an unknown number and 3'):
    frechet_distance(unknown, FeatureStatistics.of(x[:3]))
