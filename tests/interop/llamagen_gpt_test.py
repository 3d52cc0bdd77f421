"""LlamaGen's transformer: what its PyTorch code computed, and its names in and out."""

import json
import pathlib
import zlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core import losses
from jaxmm.core.decoding import SamplingConfig
from jaxmm.interop import llamagen_gpt
from jaxmm.models import image_lm

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'llamagen'


def weights(shapes):
  """The recipe that the golden arrays were made with: values follow from the name."""
  out = {}
  for name, shape in shapes.items():
    draw = np.random.default_rng(zlib.crc32(name.encode()))
    n = draw.standard_normal(shape, dtype=np.float32)
    if 'embedding' in name:
      out[name] = n
    elif len(shape) == 1:
      out[name] = (1 + 0.2 * n).astype(np.float32)
    else:
      out[name] = (n / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
  return out


def golden(name):
  arrays = np.load(GOLDEN / f'{name}.npz')
  theirs = json.loads(str(arrays['config']))
  config = image_lm.ImageLmConfig(
    depth=theirs['n_layer'],
    width=theirs['dim'],
    num_heads=theirs['n_head'],
    num_codes=theirs.get('vocab_size', 16_384),
    num_classes=theirs.get('num_classes', 1000),
    grid=int(theirs.get('block_size', 256) ** 0.5),
    hidden_multiple=theirs.get('multiple_of', 256),
  )
  return arrays, config, weights(json.loads(str(arrays['param_shapes'])))


def check_golden(name):
  arrays, config, state_dict = golden(name)
  params = llamagen_gpt.image_lm_from_llamagen(config, state_dict)
  labels = jnp.asarray(arrays['class_ids'], jnp.int32)
  ids = jnp.asarray(arrays['code_ids'], jnp.int32)
  logits = jax.jit(lambda p: image_lm.ImageLm(config).apply({'params': p}, labels, ids))(params)
  difference = np.abs(logits[:, arrays['positions']] - arrays['logits_at_positions'])
  assert difference.max() < 1e-4
  total, count = losses.cross_entropy(logits, ids)
  np.testing.assert_allclose(total / count, arrays['cross_entropy'], rtol=1e-5)

  layout = jax.jit(image_lm.decode_params, static_argnums=1)(params, config)
  keys = jax.random.split(jax.random.key(0), len(labels))
  generate = jax.jit(image_lm.generate, static_argnames=('config', 'sampling'))
  for scale in (1, 2):
    greedy = SamplingConfig(greedy=True, guidance_scale=scale)
    out = generate(layout, config, labels, keys, greedy)
    np.testing.assert_array_equal(out, arrays[f'greedy_cfg{scale}'])


def test_tiny_logits_loss_and_guided_generations_are_llamagens():
  check_golden('gpt_tiny')


@pytest.mark.slow
def test_gpt_b_logits_loss_and_guided_generations_are_llamagens():
  check_golden('gpt_b')


@pytest.mark.parametrize('name', ['gpt_tiny', pytest.param('gpt_b', marks=pytest.mark.slow)])
def test_round_trip_is_bit_equal_with_their_names(name):
  _, config, state_dict = golden(name)
  params = llamagen_gpt.image_lm_from_llamagen(config, {**state_dict, 'freqs_cis': np.ones(3)})
  back = llamagen_gpt.image_lm_to_llamagen(config, params)
  assert list(back) == list(state_dict)
  for key, array in state_dict.items():
    assert back[key].dtype == np.float32 and back[key].flags.c_contiguous
    assert back[key].tobytes() == array.tobytes(), key


def test_the_tree_is_that_of_the_model():
  _, config, state_dict = golden('gpt_tiny')
  params = llamagen_gpt.image_lm_from_llamagen(config, state_dict)
  fresh = jax.eval_shape(
    image_lm.ImageLm(config).init, jax.random.key(0), jnp.zeros(1, int), jnp.zeros((1, 16), int)
  )
  from flax.linen import unbox

  shapes = lambda tree: jax.tree.map(lambda a: a.shape, tree)
  assert shapes(unbox(fresh)['params']) == shapes(params)


def test_grouped_query_heads_survive_the_round_trip():
  _, config, _ = golden('gpt_tiny')
  grouped = image_lm.config_of(
    {'depth': 1, 'width': 64, 'num_heads': 4, 'num_kv_heads': 2, 'num_codes': 8, 'grid': 2}
  )
  state_dict = weights(llamagen_gpt.expected_shapes(grouped))
  assert state_dict['layers.0.attention.wqkv.weight'].shape == (128, 64)
  params = llamagen_gpt.image_lm_from_llamagen(grouped, state_dict)
  back = llamagen_gpt.image_lm_to_llamagen(grouped, params)
  jax.tree.map(np.testing.assert_array_equal, back, dict(state_dict))


def test_what_does_not_fit_is_named_with_its_shape():
  _, config, state_dict = golden('gpt_tiny')
  bad = {**state_dict, 'layers.9.attention.wo.weight': np.ones((2, 2)), 'norm.weight': np.ones(3)}
  del bad['output.weight']
  with pytest.raises(ConfigError) as error:
    llamagen_gpt.image_lm_from_llamagen(config, bad)
  for part in (
    '1 missing: output.weight',
    '1 unknown: layers.9.attention.wo.weight',
    'norm.weight has the shape (3,), expected (64,)',
  ):
    assert part in str(error.value)
