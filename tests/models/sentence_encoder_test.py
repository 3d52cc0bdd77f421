"""A tiny BERT against NumPy loops; padding, batches and lengths do not show in an embedding."""

import dataclasses
import functools
import json

import jax
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.interop import bert
from jaxmm.models.sentence_encoder import SentenceEncoder, SentenceEncoderConfig
from tests.references import bert as reference

PUBLISHED = {
  'model_type': 'bert', 'hidden_act': 'gelu', 'num_hidden_layers': 2, 'hidden_size': 12,
  'num_attention_heads': 3, 'intermediate_size': 20, 'vocab_size': 31, 'type_vocab_size': 2,
  'max_position_embeddings': 16, 'layer_norm_eps': 1e-12,
}  # fmt: skip
TEXTS = [[2, 5, 7, 3], [2, 30, 9, 9, 1, 4, 28, 3], [2, 3]]


@functools.cache
def tiny():
  state = reference.random_state(np.random.default_rng(0), PUBLISHED)
  config = bert.encoder_config(PUBLISHED)
  return state, config, bert.encoder_params(state, config)


def padded(texts, length):
  ids_BL = np.full((len(texts), length), 17, np.int32)  # a real id: padding must not show
  valid_BL = np.zeros((len(texts), length), bool)
  for i, text in enumerate(texts):
    ids_BL[i, : len(text)], valid_BL[i, : len(text)] = text, True
  return ids_BL, valid_BL


@functools.cache
def compiled(config):
  return jax.jit(lambda params, *rows: SentenceEncoder(config).apply({'params': params}, *rows))


def test_embeddings_equal_the_reference():
  state, config, params = tiny()
  found = compiled(config)(params, *padded(TEXTS, 8))
  expected = np.stack([reference.embedding(state, PUBLISHED, text) for text in TEXTS])
  np.testing.assert_allclose(found, expected, atol=2e-6)
  assert np.abs(expected[0] - expected[1]).max() > 0.1


def test_token_types_and_first_token_pooling_equal_the_reference():
  state, config, params = tiny()
  config = dataclasses.replace(config, pooling='first', normalize=False)
  ids_BL, valid_BL = padded([TEXTS[1]], 8)
  types = [0, 0, 0, 1, 1, 1, 0, 1]
  found = compiled(config)(params, ids_BL, valid_BL, np.array([types]))
  expected = reference.hidden(state, PUBLISHED, TEXTS[1], types)[0]
  np.testing.assert_allclose(found[0], expected, atol=1e-5)


def test_padding_and_neighbours_do_not_show():
  _, config, params = tiny()
  alone = [compiled(config)(params, *padded([text], 16))[0] for text in TEXTS]
  together = compiled(config)(params, *padded(TEXTS, 8))
  np.testing.assert_allclose(together, np.stack(alone), atol=1e-6)


def test_a_row_without_tokens_is_zero_and_leaves_the_others_alone():
  _, config, params = tiny()
  ids_BL, valid_BL = padded([[], TEXTS[0]], 8)
  found = np.asarray(compiled(config)(params, ids_BL, valid_BL))
  assert (found[0] == 0).all()
  np.testing.assert_allclose(np.linalg.norm(found[1]), 1.0, atol=1e-6)


def test_parameters_are_those_of_init():
  _, config, params = tiny()
  shapes = jax.eval_shape(SentenceEncoder(config).init, jax.random.key(0), *padded(TEXTS, 8))
  expected = jax.tree.map(lambda leaf: leaf.shape, jax.tree.map(lambda x: x, _unboxed(shapes)))
  assert jax.tree.map(lambda leaf: leaf.shape, params) == expected['params']


def _unboxed(tree):
  import flax.linen as nn

  return nn.unbox(tree)


def test_defaults_are_minilm():
  config = SentenceEncoderConfig()
  shapes = jax.eval_shape(SentenceEncoder(config).init, jax.random.key(0), *padded(TEXTS, 8))
  count = sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(_unboxed(shapes)))
  # That of the published file less its pooler (384 * 384 + 384).
  assert count == 22_713_216 - 147_840


def test_what_cannot_be_is_named():
  _, config, params = tiny()
  with pytest.raises(ConfigError, match='texts have 17 tokens, but the model has 16 positions'):
    SentenceEncoder(config).apply({'params': params}, *padded(TEXTS, 17))
  with pytest.raises(ConfigError, match="pooling is 'max', expected one of mean, first"):
    dataclasses.replace(config, pooling='max')
  with pytest.raises(ConfigError, match='token_types is 0'):
    dataclasses.replace(config, token_types=0)
  json.dumps(dataclasses.asdict(config))  # it is part of what identifies vectors
