import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core import positions
from tests.references import transformer as reference


def test_scores_depend_on_the_distance_alone():
  rng = np.random.default_rng(0)
  q, k = (jnp.asarray(rng.standard_normal(8).astype(np.float32)) for _ in range(2))
  tables = positions.rotary_1d(jnp.arange(12), 8)
  for pairing in positions.PAIRINGS:
    turn = lambda x, i, p=pairing: positions.rotated(x, tables.cos[i], tables.sin[i], p)
    scores = [turn(q, i + 3) @ turn(k, i) for i in range(9)]
    np.testing.assert_allclose(scores, scores[0], atol=1e-5)


@pytest.mark.parametrize('pairing', positions.PAIRINGS)
def test_rotation_equals_the_blackboard_along_any_axis(pairing):
  rng = np.random.default_rng(1)
  x = rng.standard_normal((5, 3, 8)).astype(np.float32)
  tables = positions.rotary_1d(jnp.arange(5), 8)
  expected = reference.rotate(x, np.asarray(tables.cos), np.asarray(tables.sin), pairing)
  np.testing.assert_allclose(
    positions.apply_rotary(x[None], tables, pairing)[0], expected, atol=1e-6
  )
  columns = positions.rotated(jnp.moveaxis(x, 0, 2), tables.cos.T, tables.sin.T, pairing, axis=1)
  np.testing.assert_allclose(jnp.moveaxis(columns, 2, 0), expected, atol=1e-6)


def test_grid_turns_half_of_the_pairs_by_row_and_half_by_column():
  tables = positions.rotary_2d(3, 5, 8)
  rows, columns = (positions.rotary_1d(jnp.arange(n), 4) for n in (3, 5))
  cell = 2 * 5 + 3
  np.testing.assert_allclose(tables.cos[cell, :2], rows.cos[2], atol=1e-6)
  np.testing.assert_allclose(tables.sin[cell, 2:], columns.sin[3], atol=1e-6)


def test_a_prefix_is_unrotated_or_by_request_zeroed():
  grid = positions.rotary_2d(2, 2, 4)
  plain = positions.with_prefix(grid, 2, zeros=False)
  zeroed = positions.with_prefix(grid, 2, zeros=True)
  assert plain.cos.shape == (6, 2)
  x = jnp.ones((1, 6, 1, 4))
  np.testing.assert_array_equal(positions.apply_rotary(x, plain, 'split')[0, :2], x[0, :2])
  assert not positions.apply_rotary(x, zeroed, 'split')[0, :2].any()
  np.testing.assert_array_equal(plain.cos[2:], grid.cos)


def test_places_count_from_the_start_of_a_segment():
  segment = jnp.array([[1, 1, 1, 2, 3, 3, 0, 0], [5, 5, 5, 5, 5, 5, 5, 5]])
  expected = [[0, 1, 2, 0, 0, 1, 0, 1], list(range(8))]
  np.testing.assert_array_equal(positions.in_segments(segment), expected)


def test_wrong_settings_are_named():
  with pytest.raises(ConfigError, match='head_dim is 6, .* multiple of 4'):
    positions.rotary_2d(2, 2, 6)
  with pytest.raises(ConfigError, match='head_dim is 5'):
    positions.rotary_1d(jnp.arange(2), 5)
  with pytest.raises(ConfigError, match="pairing is 'neox', expected one of adjacent, split"):
    positions.rotated(jnp.ones(4), jnp.ones(2), jnp.ones(2), 'neox')
  with pytest.raises(ValueError, match='2 positions, but there are 3 tokens'):
    positions.apply_rotary(jnp.ones((1, 3, 1, 4)), positions.rotary_1d(jnp.arange(2), 4), 'split')
