"""Weights that are put together where they are used: the same numbers on any mesh."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.core import axes, masks, transformer

CONFIG = dict(depth=2, width=16, num_heads=4, hidden=32, remat='none')


def gradients(remat, mesh=None, rules='fsdp'):
  """Loss and gradient of a Stack, its weights split as the rules say."""
  stack = transformer.Stack(transformer.StackConfig(**CONFIG | {'remat': remat}))
  x = jax.random.normal(jax.random.key(1), (8, 6, 16))
  init = lambda: stack.init(jax.random.key(0), x, mask=masks.Causal())
  if mesh is None:
    params = nn.unbox(init())
  else:
    params = sharding.init_sharded(init, mesh=mesh, rules=sharding.rules_named(rules))
  loss = lambda p: jnp.sum(jnp.sin(stack.apply(p, x, mask=masks.Causal())))
  return params, jax.value_and_grad(loss)


@pytest.mark.parametrize('remat, rules', [('none', 'fsdp'), ('narrow', 'tensor')])
def test_gathered_weights_give_the_same_gradients(remat, rules):
  params, f = gradients(remat)
  loss, grad = f(params)
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  split, g = gradients(remat, mesh, rules)
  with sharding.in_mesh(mesh, sharding.rules_named(rules)):
    split_loss, split_grad = jax.jit(g)(split)
  np.testing.assert_allclose(split_loss, loss, rtol=1e-5)
  chex.assert_trees_all_close(split_grad, grad, atol=2e-5)
  # A gradient comes back split like its weight.
  query = split_grad['params']['groups']['block0_self']['attention']['query']['kernel']
  assert 'fsdp' in str(query.sharding.spec)


def test_gathering_is_the_identity_off_a_mesh():
  x = jnp.ones((4, 2))
  assert axes.gathered(x, (axes.EMBED, axes.MLP)) is x
  assert not axes.is_split(axes.EMBED)
