import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core import masks


def rows(mask, *args):
  return np.asarray(mask.dense(*args)).astype(int).tolist()


def test_causal_and_window_draw_what_they_say():
  assert rows(masks.Causal(), 3) == [[[1, 0, 0], [1, 1, 0], [1, 1, 1]]]
  assert rows(masks.Window(2), 4) == [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]]
  with pytest.raises(ConfigError, match='Window.size is 0'):
    masks.Window(0)


def test_patches_see_the_end_of_the_one_before():
  overlap = masks.PatchOverlap(2, 1)
  assert rows(overlap, 4) == [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1]]]
  # The second patch alone, with the key that stands before it.
  assert rows(masks.Shifted(masks.Causal(), 1), 2, 3) == [[[1, 1, 0], [1, 1, 1]]]


def test_prefix_is_seen_by_all_and_sees_both_ways():
  prefix = masks.PrefixLM(jnp.array([2, 0]))
  assert rows(prefix, 3) == [[[1, 1, 0], [1, 1, 0], [1, 1, 1]], [[1, 0, 0], [1, 1, 0], [1, 1, 1]]]


def test_transfusion_is_two_way_only_inside_an_image():
  mask = masks.Causal() | masks.TwoWayGroups(jnp.array([[0, 1, 1, 0]]))
  assert rows(mask, 4) == [[[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 1, 1]]]


def test_packed_documents_do_not_see_one_another():
  mask = masks.Causal() & masks.Segments(jnp.array([[7, 7, 8, 8]]))
  assert rows(mask, 4) == [[[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]]


def test_segments_of_other_keys_and_a_later_first_query():
  mask = masks.Segments(jnp.array([[1, 2]]), jnp.array([[2, 1, 2]]))
  assert rows(mask, 2, 3) == [[[0, 1, 0], [1, 0, 1]]]
  assert rows(masks.Causal(), 1, 4, 2) == [[[1, 1, 1, 0]]]


@pytest.mark.parametrize(
  'mask',
  [
    masks.Causal() & masks.Window(3),
    masks.PrefixLM(jnp.array([3])) & masks.Segments(jnp.array([[0, 0, 0, 1, 1, 1]])),
    masks.Causal() | masks.TwoWayGroups(jnp.array([[0, 1, 1, 1, 2, 2]])),
  ],
)
def test_a_block_is_that_part_of_the_whole_and_sees_itself_means_the_diagonal(mask):
  whole = mask.dense(6)
  np.testing.assert_array_equal(
    mask.allowed(jnp.arange(2, 5), jnp.arange(1, 6)), whole[:, 2:5, 1:6]
  )
  assert mask.sees_itself and np.all(np.diagonal(whole, axis1=1, axis2=2))


def test_what_may_hide_everything_says_so():
  groups = masks.TwoWayGroups(jnp.array([[0, 1]]))
  assert not groups.sees_itself and not groups.dense(2)[0, 0].any()
  assert not (groups & masks.Causal()).sees_itself
  assert not masks.Segments(jnp.array([[1]]), jnp.array([[2]])).sees_itself
