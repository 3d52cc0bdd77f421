"""Iterations with bounds beside iterations that compare all pairs; what the bounds are made of."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.curation import lloyd
from tests.references import clusters


def unit(x):
  return (x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32)


def mixture(n, d, centres, noise, seed=0):
  rng = np.random.default_rng(seed)
  centre = unit(rng.standard_normal((centres, d)))
  return unit(centre[rng.integers(centres, size=n)] + noise * rng.standard_normal((n, d)))


def walk(x, K, iterations, spherical, jump=None):
  """Centroids of all iterations, and what steps with and without memory of the last one find."""
  make = lambda: lloyd.Dealt(x, 16, spherical, sharding.make_mesh())
  with_bounds, without = make(), make()
  centroid = x[:K]
  for i in range(iterations):
    without._before = None
    found, expected = with_bounds.step(centroid), without.step(centroid)
    yield centroid, found, expected, with_bounds
    total, count = found[0], np.maximum(found[1], 1)[:, None]
    centroid = np.where(found[1][:, None] > 0, total / count, centroid).astype(np.float32)
    centroid = unit(centroid) if spherical else centroid
    if i == jump:  # as a cluster that is seeded anew
      centroid[1] = x[-1]


@pytest.mark.parametrize('spherical', [True, False])
@pytest.mark.parametrize('noise', [0.1, 0.4, 2.0])
def test_bounds_change_nothing(spherical, noise):
  x = mixture(3000, 10, 12, noise) * np.float32(1 if spherical else 5)
  for centroid, found, expected, dealt in walk(x, 25, 9, spherical, jump=5):
    for one, other in zip(found, expected):
      np.testing.assert_array_equal(one, other)
    assert found[2].tolist() == clusters.nearest(x, centroid, spherical)[0]
    # No other centroid is nearer than the bound says.
    cluster, bound = (np.asarray(a).reshape(-1)[: len(x)] for a in dealt._before[1])
    away = np.linalg.norm(x[:, None].astype(np.float64) - centroid, axis=2)
    away[np.arange(len(x)), cluster] = np.inf
    assert np.all(bound <= away.min(1))


def test_equal_centroids_give_rows_to_the_first_of_them():
  x = mixture(500, 6, 4, 0.2)
  centroid = np.repeat(unit(x[:4]), 3, axis=0)
  dealt = lloyd.Dealt(x, 16, True, sharding.make_mesh())
  for _ in range(3):
    cluster = dealt.step(centroid)[2]
    assert set(cluster.tolist()) <= {0, 3, 6, 9}


def test_most_rows_are_not_compared_again():
  x = mixture(3000, 16, 8, 0.05)
  *_, (centroid, found, _, dealt) = walk(x, 8, 6, True)
  _, bound = dealt._before[1]
  own = np.linalg.norm(x - centroid[found[2]], axis=1)
  assert np.mean(own < np.asarray(bound).reshape(-1)[: len(x)]) > 0.99


def test_groups_are_of_falling_moves():
  before = np.zeros((19, 2), np.float32)
  moves = np.random.default_rng(0).permutation(19).astype(np.float32)
  after = before + moves[:, None] * np.array([0.6, 0.8], np.float32)
  order, farthest = lloyd.groups(before, after)
  assert sorted(order[order < 19].tolist()) == list(range(19)) and (order == 19).sum() == 5
  for g in range(len(order)):
    later = order[g:][order[g:] < 19]
    assert moves[later].max(initial=0) <= farthest[g] <= moves[later].max(initial=0) * 1.00001


def test_rows_keep_their_order_when_they_are_dealt():
  x = mixture(1001, 5, 3, 0.5)
  dealt = lloyd.Dealt(x, 16, True, sharding.make_mesh())
  rows = np.asarray(dealt._x).reshape(-1, 5)
  np.testing.assert_array_equal(rows[:1001], x)
  assert not rows[1001:].any() and jnp.isfinite(dealt._square).all()
