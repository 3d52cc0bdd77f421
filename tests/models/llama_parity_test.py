"""Our blocks, rotary positions and decoding against transformers' Llama, on small random weights.

`tests/golden/llama/make_llama.py` wrote what it computes.
"""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.core import transformer
from jaxmm.core.decoding import SamplingConfig
from jaxmm.models import lm, transfusion
from jaxmm.models import mixed_rows as rows
from tests.references.golden_weights import golden_weights

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'llama' / 'llama.npz'
BASES = {'llama': 1e4, 'grouped': 300.0}
# transformers multiplies float32 in another order: 40 times eps, of numbers of the order of 1.
ATOL = 5e-6


@functools.cache
def golden(name):
  """(arrays, config, parameters) of one of its models."""
  with np.load(GOLDEN) as archive:
    arrays = dict(archive)
  state = golden_weights(json.loads(str(arrays[f'{name}_shapes'])))
  config = lm.config_of(
    {
      'size': 'micro', 'depth': 3, 'width': 32, 'num_heads': 4, 'hidden': 48, 'vocab_size': 40,
      'num_kv_heads': state['model.layers.0.self_attn.k_proj.weight'].shape[0] // 8,
      'rotary_base': BASES[name],
    }
  )  # fmt: skip
  return arrays, config, ours(state, config)


def ours(state, config):
  """Llama's state dict as our parameters: matrices are transposed, heads have an axis."""
  D, H = config.width, config.width // config.num_heads
  heads = lambda a: np.ascontiguousarray(a.T).reshape(D, -1, H)
  blocks = []
  for i in range(config.depth):
    at = {k.removeprefix(f'model.layers.{i}.'): v for k, v in state.items()}
    blocks.append(
      {
        'attention_norm': {'scale': at['input_layernorm.weight']},
        'attention': {
          'query': {'kernel': heads(at['self_attn.q_proj.weight'])},
          'key': {'kernel': heads(at['self_attn.k_proj.weight'])},
          'value': {'kernel': heads(at['self_attn.v_proj.weight'])},
          'out': {'kernel': at['self_attn.o_proj.weight'].T.reshape(-1, H, D)},
        },
        'mlp_norm': {'scale': at['post_attention_layernorm.weight']},
        'mlp': {
          name: {'kernel': at[f'mlp.{name}_proj.weight'].T} for name in ('gate', 'up', 'down')
        },
      }
    )
  groups = transformer.stacked(blocks, config.stack())
  return {
    'token_embedding': {'table': state['model.embed_tokens.weight']},
    'stack': {'groups': groups, 'final_norm': {'scale': state['model.norm.weight']}},
    'head': {'table': state['lm_head.weight']},
  }


@pytest.mark.parametrize('name', BASES)
def test_logits_states_and_loss_of_text(name):
  arrays, config, params = golden(name)
  logits, states = lm.Lm(config).apply({'params': params}, arrays['ids'], return_states=True)
  np.testing.assert_allclose(logits, arrays[f'{name}_logits'], atol=ATOL)
  np.testing.assert_allclose(states[1:-1], arrays[f'{name}_states'][1:-1], atol=ATOL)
  nll_BL = lm.next_nll(params, config, arrays['ids'])
  np.testing.assert_allclose(np.mean(nll_BL[:, :-1]), arrays[f'{name}_loss'], rtol=1e-6)


@pytest.mark.parametrize('name', BASES)
def test_text_drawn_greedily_with_the_cache(name):
  arrays, config, params = golden(name)
  layout = lm.decode_params(params, config)
  prompt, length = lm.prompts(arrays['ids'][:, :7].tolist())
  new = lm.generate(
    layout, params, config, prompt, length, jax.random.split(jax.random.key(0), 2),
    SamplingConfig(greedy=True), 12,
  )  # fmt: skip
  np.testing.assert_array_equal(new, arrays[f'{name}_greedy'])


@pytest.mark.parametrize('name', BASES)
def test_the_stack_of_transfusion_sees_both_ways_in_images(name):
  """Its mask and its positions, over embeddings that are given."""
  arrays, config, params = golden(name)
  sizes = {'depth': 3, 'width': 32, 'num_heads': 4, 'hidden': 48}
  mixed = transfusion.config_of(
    {
      'size': 'micro', **sizes, 'num_kv_heads': config.num_kv_heads, 'rotary_base': BASES[name],
      'norm_eps': config.norm_eps, 'latent_size': 4, 'length': 32,
    }
  )  # fmt: skip
  image_BL = jnp.broadcast_to(arrays['images'], arrays['x'].shape[:2])
  patch_BL, segment_BL = jnp.zeros_like(image_BL), jnp.ones_like(image_BL)
  place_BL = rows.rotary_positions(image_BL, patch_BL, segment_BL, mixed.image_positions)
  hidden_BLD = transformer.Stack(mixed.stack()).apply(
    {'params': params['stack']},
    arrays['x'],
    mask=rows.attention_mask(image_BL, segment_BL, mixed.attention, mixed.num_patches),
    rotary=mixed.rotary_tables(place_BL),
  )
  logits = hidden_BLD @ params['head']['table'].T
  np.testing.assert_allclose(logits, arrays[f'{name}_mixed'], atol=ATOL)
