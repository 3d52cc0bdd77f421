"""Our MEGABYTE against that of kjslag/spacebyte, the public one nearest to the paper.

`tests/golden/spacebyte/make_megabyte.py` wrote what it computes, and says the two things that were
made as in ours (tied head, a last norm of the global model). Everything else of the paper's steps
is compared: both embeddings and positions, pads, patches one late, slots, local model, head.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from jaxmm.core import transformer
from jaxmm.models import megabyte, megabyte_generation
from jaxmm.models.megabyte_config import MegabyteConfig
from jaxmm.models.megabyte_network import Megabyte
from tests.references.golden_weights import golden_weights

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'spacebyte' / 'megabyte.npz'


def stack_of(state, prefix, final_norm, config):
  """Its blocks as ours: no layer of them has a bias."""
  D, N, H = config.width, config.num_heads, config.head_width
  zeros = lambda *shape: np.zeros(shape, np.float32)
  norm = lambda scale: {'scale': scale, 'bias': zeros(D)}
  heads = lambda a: {'kernel': a.T.reshape(D, N, H), 'bias': zeros(N, H)}
  blocks = []
  for i in range(config.depth):
    of = lambda name, i=i: state[f'{prefix}.{i}.{name}']
    projections = np.split(of('attention.QKV_linear.weight'), 3)
    attention = dict(zip(('query', 'key', 'value'), map(heads, projections), strict=True))
    out = of('attention.linear.weight').T.reshape(N, H, D)
    up, down = (of(f'feedforward.linear_{n}.weight').T for n in (1, 2))
    blocks.append(
      {
        'attention_norm': norm(of('attention.layer_norm.scale')),
        'attention': attention | {'out': {'kernel': out, 'bias': zeros(D)}},
        'mlp_norm': norm(of('feedforward.layer_norm.scale')),
        'mlp': {
          'up': {'kernel': up, 'bias': zeros(4 * D)},
          'down': {'kernel': down, 'bias': zeros(D)},
        },
      }
    )
  return {'groups': transformer.stacked(blocks, config), 'final_norm': norm(state[final_norm])}


def ours(state, config):
  """Its parameters as ours.

  Its table of global positions counts slots, so that the first patch of bytes has the second P of
  them; its local pad takes the place of an embedding with its position; its w_GL has a bias, which
  every local position gets.
  """
  P = config.patch
  padded = lambda table: np.pad(table, ((0, 1), (0, 0)))  # the row of padding, which no byte is
  local = state['local_position_encoding']
  return {
    'global_embedding': {'table': padded(state['global_token_embedding.weight'])},
    'global_positions': np.roll(state['global_position_encoding'], -P, axis=0),
    'global_pad': state['global_pad'].reshape(P, -1),
    'global_stack': stack_of(
      state, 'global_blocks', f'global_blocks.{config.global_depth}.norm.scale',
      config.global_stack(),
    ),
    'to_local': {'kernel': state['global_to_local.weight'].T},
    'local_embedding': {'table': padded(state['local_token_embedding.weight'])},
    'local_positions': local + state['global_to_local.bias'],
    'local_pad': state['local_pad'] - local[0],
    'local_stack': stack_of(
      state, 'local_blocks', 'logits.layer_norm.scale', config.local_stack()
    ),
  }  # fmt: skip


@pytest.fixture(scope='module')
def golden():
  with np.load(GOLDEN) as archive:
    arrays = dict(archive)
  sizes, shapes = (json.loads(str(arrays[name])) for name in ('sizes', 'shapes'))
  state = golden_weights(shapes)
  state = {k: 1 + 2 * v if k.endswith('.scale') else v for k, v in state.items()}
  config = MegabyteConfig(
    global_depth=sizes['n_layers'], global_width=sizes['d_model'],
    global_heads=sizes['d_model'] // sizes['d_key'], local_depth=sizes['n_local_layers'],
    local_width=sizes['d_local'], local_heads=sizes['d_local'] // sizes['d_key'],
    patch=sizes['patch_size'], length=sizes['context_size'], vocab_size=sizes['vocab_size'],
    dropout=0.0,
  )  # fmt: skip
  return arrays, config, jax.tree.map(jnp.asarray, ours(state, config))


def test_logits_are_the_same(golden):
  arrays, config, params = golden
  model, ids = Megabyte(config), jnp.asarray(arrays['ids'])
  init = nn.unbox(jax.eval_shape(model.init, jax.random.key(0), ids))['params']
  assert jax.tree.map(jnp.shape, init) == jax.tree.map(jnp.shape, params)
  logits = model.apply({'params': params}, ids)
  np.testing.assert_allclose(logits, arrays['logits'], atol=1e-5)
  assert arrays['logits'].std() > 0.5


def test_their_likelihood_is_ours(golden):
  arrays, config, params = golden
  scores = jax.nn.log_softmax(jnp.asarray(arrays['logits']))
  theirs = -np.take_along_axis(np.asarray(scores), arrays['ids'][..., None], axis=-1)[..., 0]
  found = megabyte.byte_nll(params, config, jnp.asarray(arrays['ids']))
  np.testing.assert_allclose(found, theirs, atol=1e-5)


def test_their_greedy_bytes_are_ours(golden):
  """The byte that is likeliest behind a prompt of theirs is the one that we generate."""
  arrays, config, params = golden
  layout = megabyte_generation.decode_params(params, config)
  num = config.patch * 2 + 1  # in the middle of a patch
  keys = jax.random.split(jax.random.key(0), 2)
  sampling = megabyte_generation.decoding.SamplingConfig(greedy=True)
  found = megabyte_generation.generate(
    layout, params, config, jnp.asarray(arrays['ids'][:, :num]), jnp.full(2, num), keys, sampling, 1
  )
  np.testing.assert_array_equal(np.asarray(found)[:, -1], arrays['logits'][:, num].argmax(-1))
