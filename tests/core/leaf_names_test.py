"""Leaves are called by the path of their keys, whatever the containers are."""

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmm.core import leaf_names


def test_names_of_dicts_tuples_and_named_tuples():
  params = {'w': jnp.ones((2, 3))}
  tree = {'params': params, 'opt_state': optax.adam(0.1).init(params), 'ema': None}
  names = list(leaf_names.named_leaves(tree))
  assert names == ['opt_state/0/count', 'opt_state/0/mu/w', 'opt_state/0/nu/w', 'params/w']
  assert list(leaf_names.named_leaves(params, ('params',))) == ['params/w']
  nested = leaf_names.nested(leaf_names.named_leaves(tree, arrays=True))
  np.testing.assert_array_equal(nested['opt_state']['0']['mu']['w'], np.zeros((2, 3)))


def test_a_key_that_could_be_a_path_is_refused():
  with pytest.raises(TypeError, match='must be unique'):
    leaf_names.named_leaves({'a/b': jnp.ones(1)})


def test_mismatches_name_what_differs():
  table = {'a': {'shape': [2], 'dtype': 'float32'}, 'b': {'shape': [], 'dtype': 'int32'}}
  assert leaf_names.mismatches({'a': jnp.ones(2)}, table, whole=False) == []
  assert leaf_names.mismatches({'a': jnp.ones(3)}, table, whole=True) == [
    'a is float32[2], expected float32[3]',
    'its b has no place in the state',
  ]
