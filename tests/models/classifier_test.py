"""EfficientNet-Lite: equal to plain loops, and its ways of writing one convolution to each
other."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.interop.efficientnet import classifier_params
from jaxmm.models import classifier
from jaxmm.models.classifier import BlockGroup, Classifier, ClassifierConfig
from tests.references import efficientnet as reference

# Every kind of block: without expansion, with, 3x3 and 5x5, stride 1 and 2, with and without sum.
GROUPS = [(1, 3, 1, 1, 4), (2, 5, 2, 2, 4), (1, 3, 2, 2, 6)]
CONFIG = ClassifierConfig(
  stem=4, groups=tuple(BlockGroup(*g) for g in GROUPS), features=8, classes=5, image_size=32
)


@pytest.fixture(scope='module')
def state():
  return reference.random_state(np.random.default_rng(0), 4, GROUPS, 8, 5)


@pytest.fixture(scope='module')
def params(state):
  return classifier_params(state, CONFIG)


@pytest.fixture(scope='module')
def apply():
  return jax.jit(lambda p, x: Classifier(CONFIG).apply({'params': p}, x))


@pytest.mark.parametrize('side', [16, 19])
def test_equals_plain_loops(state, params, apply, side):
  image_BYXC = np.random.default_rng(1).normal(size=(2, side, side, 3)).astype(np.float32)
  out = apply(params, image_BYXC)
  for b in range(2):
    strides = [s for _, s in CONFIG.blocks()]
    logits_V, features_D = reference.classifier(state, image_BYXC[b], strides)
    np.testing.assert_allclose(out.logits_BV[b], logits_V, rtol=0, atol=2e-5)
    np.testing.assert_allclose(out.features_BD[b], features_D, rtol=0, atol=1e-5)
  assert out.features_BD.std() > 0.1  # not a network that saturates to a constant


def test_parameters_are_those_that_init_makes(params):
  made = jax.eval_shape(Classifier(CONFIG).init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
  shapes = lambda tree: jax.tree.map(lambda x: (x.shape, str(x.dtype)), tree)
  assert shapes(nn.unbox(made)['params']) == shapes(params)


def test_lite0_has_the_published_size():
  made = jax.eval_shape(Classifier().init, jax.random.key(0), jnp.zeros((1, 224, 224, 3)))
  # 4,652,008 trained parameters; folding takes away one number a channel of every convolution
  # (the scale of its BatchNorm), 21,008 in all.
  assert sum(x.size for x in jax.tree.leaves(made)) == 4_652_008 - 21_008


@pytest.mark.parametrize('side, kernel, stride', [(7, 3, 1), (7, 3, 2), (8, 5, 2), (5, 5, 1)])
def test_the_ways_to_convolve_a_channel_agree(side, kernel, stride):
  rng = np.random.default_rng(side)
  x = rng.normal(size=(2, side, side, 3)).astype(np.float32)
  w = rng.normal(size=(kernel, kernel, 3)).astype(np.float32)
  expected = reference.convolution(
    x[0].transpose(2, 0, 1).astype(np.float64), w.transpose(2, 0, 1)[:, None], stride, 3
  ).transpose(1, 2, 0)
  for way in (classifier.depthwise_by_shifts, classifier.depthwise_by_convolution):
    np.testing.assert_allclose(way(x, w, stride)[0], expected, atol=1e-5)


def test_features_of_pixels_are_those_of_the_resized_normalised_image(params, apply):
  pixels = np.random.default_rng(2).integers(0, 256, (2, 20, 20, 3), dtype=np.uint8)

  @jax.jit
  def all_of(params, pixels):
    resized = jax.image.resize(pixels.astype(np.float32), (2, 32, 32, 3), 'cubic')
    expected = apply(params, (jnp.clip(resized, 0, 255) - 127) / 128)
    found = classifier.image_features(params, pixels, size=32, config=CONFIG)
    # The size of the config, 32, is what None means.
    logits_BV = classifier.image_logits(params, pixels, config=CONFIG)
    return found, logits_BV, expected

  found_BD, logits_BV, expected = all_of(params, pixels)
  np.testing.assert_allclose(found_BD, expected.features_BD, atol=1e-5)
  np.testing.assert_allclose(logits_BV, expected.logits_BV, atol=1e-4)


def test_resizing_keeps_what_it_must():
  flat = np.full((1, 9, 9, 3), 77, np.uint8)
  np.testing.assert_allclose(classifier.resized(flat, 32), 77.0, rtol=1e-6)
  edge = np.zeros((1, 8, 8, 3), np.uint8)
  edge[:, :, 4:] = 255
  large = classifier.resized(edge, 64)
  assert large.min() == 0.0 and large.max() == 255.0  # cubic overshoot is clipped
  np.testing.assert_array_equal(classifier.resized(edge, 8), edge.astype(np.float32))


def test_wrong_images_are_named(params):
  grey = np.zeros((2, 32, 32, 1), np.uint8)
  with pytest.raises(ConfigError, match=r'\(2, 32, 32, 1\).*three channels'):
    classifier.image_features(params, grey, config=CONFIG)
  with pytest.raises(ConfigError, match='size is 16'):
    classifier.image_features(params, np.zeros((2, 32, 32, 3), np.uint8), size=16, config=CONFIG)
