"""Our Stack against the transformer of MEGABYTE-pytorch, on small random weights.

`tests/golden/megabyte_pytorch/make_blocks.py` wrote what it computes, with its token shift left
out: the paper has none. What else differs between that code and the paper, and so is compared
nowhere, is said in `experiments/megabyte/README.md`.
"""

import json
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.core import masks, positions, transformer
from tests.references.golden_weights import golden_weights

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'megabyte_pytorch' / 'blocks.npz'


def ours(state, config):
  """Its parameters as ours: queries, keys, values and outputs have no biases, MLPs have."""
  D, N, H = config.width, config.num_heads, config.head_width
  heads = lambda a: {'kernel': a.T.reshape(D, N, H), 'bias': np.zeros((N, H), np.float32)}
  dense = lambda at, name: {'kernel': at[f'{name}.weight'].T, 'bias': at[f'{name}.bias']}
  blocks = []
  for i in range(config.depth):
    at = {k.removeprefix(f'layers.{i}.'): v for k, v in state.items()}
    key, value = np.split(at['0.to_kv.weight'], 2)
    out = {
      'kernel': at['0.to_out.weight'].T.reshape(N, H, D),
      'bias': np.zeros(D, np.float32),
    }
    blocks.append(
      {
        'attention_norm': {'scale': at['0.norm.g']},
        'attention': {
          'query': heads(at['0.to_q.weight']),
          'key': heads(key),
          'value': heads(value),
          'out': out,
        },
        'mlp_norm': {'scale': at['1.0.g']},
        'mlp': {'up': dense(at, '1.1'), 'down': dense(at, '1.4')},
      }
    )
  groups = transformer.stacked(blocks, config)
  return {'groups': groups, 'final_norm': {'scale': state['norm.g']}}


@pytest.fixture(scope='module')
def hidden():
  """Its arrays, and our Stack's output without and with rotary positions."""
  with np.load(GOLDEN) as archive:
    arrays = dict(archive)
  sizes, state = (json.loads(str(arrays[name])) for name in ('sizes', 'shapes'))
  state = golden_weights(state)
  state = {k: 1 + 2 * v if k.endswith('.g') else v for k, v in state.items()}
  config = transformer.StackConfig(
    depth=sizes['layers'], width=sizes['dim'], num_heads=sizes['heads'],
    head_dim=sizes['dim_head'], hidden=4 * sizes['dim'], mlp='gelu', norm='rms', norm_eps=0.0,
    bias=True,
  )  # fmt: skip
  params = ours(state, config)
  x = arrays['x']
  tables = positions.rotary_1d(jnp.arange(x.shape[1]), config.head_width)
  run = lambda rotary: transformer.Stack(config).apply(
    {'params': params}, x, mask=masks.Causal(), rotary=rotary
  )
  return arrays, run(None), run(tables)


def test_blocks_without_and_with_rotary_positions(hidden):
  arrays, plain, rotary = hidden
  np.testing.assert_allclose(plain, arrays['plain'], atol=5e-6)
  np.testing.assert_allclose(rotary, arrays['rotary'], atol=5e-6)
  assert np.abs(plain - rotary).max() > 0.1


def test_its_token_shift_is_what_is_left(hidden):
  """With it, its transformer is another one: no config of ours says it."""
  arrays, plain, _ = hidden
  assert np.abs(plain - arrays['shifted']).max() > 0.5
