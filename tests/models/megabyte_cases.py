"""Small MEGABYTEs that the tests of its files share."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.models import megabyte
from jaxmm.models.megabyte_network import Megabyte

V, P, L = 11, 4, 32
BASE = {
  'size': 'micro', 'global_width': 24, 'local_width': 16, 'patch': P, 'length': L,
  'vocab_size': V, 'dropout': 0.0,
}  # fmt: skip
VARIANTS = {
  'plain': {},
  'pad ids': {'pads': 'ids'},
  'crossing': {'cross_patch': 3, 'local_depth': 3},
  'convolved': {'conv_encoder': True},
  'all': {'conv_encoder': True, 'cross_patch': 4, 'pads': 'ids'},
}


def config_of(changes=()):
  return megabyte.config_of({**BASE, **dict(changes)})


def random_params(config, seed=1):
  """Random everywhere: small or zero weights would hide what comes before them."""
  ids = jnp.zeros((1, 2 * config.patch), jnp.int32)
  shapes = jax.eval_shape(Megabyte(config).init, jax.random.key(0), ids)
  rng = np.random.default_rng(seed)
  draw = lambda path, a: jnp.asarray(
    (path[-1].key == 'scale') + 0.3 * rng.standard_normal(a.shape), jnp.float32
  )
  return jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes)['params'])
