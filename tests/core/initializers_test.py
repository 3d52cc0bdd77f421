"""Initial values: the stated distribution, other values for other keys, the same on any mesh."""

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from jaxmm import sharding
from jaxmm.core import initializers

SHAPE = (256, 512)


def test_uniform_has_the_moments_of_its_bounds():
  x = np.asarray(initializers.uniform(0.5)(jax.random.key(3), SHAPE), np.float64)
  assert np.abs(x).max() < 0.5
  assert x.mean() == pytest.approx(0, abs=4 * 0.5 / np.sqrt(3 * x.size))
  assert x.var() == pytest.approx(0.25 / 3, rel=0.01)
  # No row, column or neighbour tells of another.
  centred = x / x.std()
  for other in (np.roll(centred, 1, 0), np.roll(centred, 1, 1), centred[::-1]):
    assert abs((centred * other).mean()) < 5 / np.sqrt(x.size)


def test_keys_give_unrelated_values():
  draw = lambda key: np.asarray(initializers.uniform(1.0)(key, SHAPE), np.float64)
  a, b = draw(jax.random.key(0)), draw(jax.random.key(1))
  assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_a_mesh_does_not_change_the_values():
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  split = NamedSharding(mesh, PartitionSpec('fsdp', 'tensor'))
  draw = lambda key: initializers.uniform(1.0)(key, SHAPE)
  whole = jax.jit(draw)(jax.random.key(5))
  parts = jax.jit(draw, out_shardings=split)(jax.random.key(5))
  assert parts.sharding.spec == split.spec
  np.testing.assert_array_equal(whole, parts)
