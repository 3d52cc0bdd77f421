"""The FID Inception: resizing by loops, weights by name, the network as pytorch-fid has it."""

import functools
import math

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError
from jaxmm.evaluate import inception
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance
from jaxmm.evaluate.inception import ClassSums
from jaxmm.interop.inception import inception_params, read_inception
from jaxmm.models.inception import Inception
from tests.references import inception as reference


def resized_by_loops(image: np.ndarray, convention: str) -> np.ndarray:
  """One pixel at a time, float64: TensorFlow 1's bilinear resize, or PyTorch's."""
  rows, columns, _ = image.shape

  def place(i, length):
    if convention == 'adm':
      at = i * length / 299
    else:
      at = max((i + 0.5) * length / 299 - 0.5, 0.0)
    low = min(math.floor(at), length - 1)
    return low, min(low + 1, length - 1), at - low

  out = np.zeros((299, 299, 3))
  for i in range(299):
    top, bottom, down = place(i, rows)
    for j in range(299):
      left, right, along = place(j, columns)
      upper = image[top, left] * (1 - along) + image[top, right] * along
      lower = image[bottom, left] * (1 - along) + image[bottom, right] * along
      out[i, j] = upper * (1 - down) + lower * down
  return out


@pytest.mark.parametrize('convention, shape', [('adm', (7, 11)), ('pytorch-fid', (320, 9))])
def test_pictures_are_resized_as_the_convention_says(convention, shape):
  image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
  found = np.asarray(inception.network_input(image[None], convention))[0]
  pixels = resized_by_loops(image.astype(np.float64), convention)
  expected = (pixels - 128) / 128 if convention == 'adm' else 2 * (pixels / 255) - 1
  np.testing.assert_allclose(found, expected, atol=2e-6)
  # The two are not one another: what is compared must have been prepared alike.
  other = {'adm': 'pytorch-fid', 'pytorch-fid': 'adm'}[convention]
  assert np.abs(found - np.asarray(inception.network_input(image[None], other))[0]).max() > 0.05


def test_pictures_of_the_size_are_only_scaled():
  image = reference.pictures(1, 299)
  found = np.asarray(inception.network_input(image, 'adm'))
  np.testing.assert_array_equal(found, (image.astype(np.float32) - 128) / 128)


def test_impossible_pictures_are_named():
  with pytest.raises(ConfigError, match="convention is 'clean', expected one of adm, pytorch-fid"):
    inception.network_input(np.zeros((1, 4, 4, 3), np.uint8), 'clean')
  with pytest.raises(ConfigError, match='grey image'):
    inception.network_input(np.zeros((1, 4, 4, 1), np.uint8), 'adm')


@pytest.fixture(scope='module')
def state():
  return reference.random_state()


@pytest.fixture(scope='module')
def params(state):
  return inception_params(state)


def test_every_weight_has_its_place(state, params, tmp_path):
  kernel = params['Mixed_6b']['branch7x7_2']['kernel']
  name = 'Mixed_6b.branch7x7_2'
  scale = state[f'{name}.bn.weight'] / np.sqrt(state[f'{name}.bn.running_var'] + 1e-3)
  expected = state[f'{name}.conv.weight'] * scale[:, None, None, None]
  np.testing.assert_allclose(kernel, expected.transpose(2, 3, 1, 0), rtol=1e-6)
  counted = sum(x.size for x in jax.tree.leaves(params))
  assert counted == sum(
    x.size
    for n, x in state.items()
    if n.endswith(('conv.weight', 'bn.bias', 'fc.weight', 'fc.bias'))
  )
  safetensors.numpy.save_file(state, tmp_path / 'inception.safetensors')
  again = read_inception(tmp_path / 'inception.safetensors')
  np.testing.assert_array_equal(again['fc']['kernel'], state['fc.weight'].T)


def test_wrong_weights_are_named(state):
  lacking = {k: v for k, v in state.items() if k != 'Mixed_7c.branch_pool.bn.bias'}
  with pytest.raises(ConfigError, match='lacks Mixed_7c.branch_pool.bn.bias'):
    inception_params(lacking)
  with pytest.raises(ConfigError, match="torchvision's own Inception-v3 has 1000 classes"):
    inception_params({**state, 'fc.weight': np.zeros((1000, 2048), np.float32)})
  with pytest.raises(ConfigError, match='holds extra'):
    inception_params({**state, 'extra': np.zeros(2)})
  # What training needs, and torchvision's files have, is passed over.
  inception_params(
    {**state, 'AuxLogits.fc.bias': np.zeros(3), 'a.num_batches_tracked': np.zeros(1)}
  )


@functools.cache
def golden() -> dict[str, np.ndarray]:
  with np.load(reference.GOLDEN / 'features.npz', allow_pickle=False) as arrays:
    return dict(arrays)


@pytest.mark.slow
def test_features_are_those_of_the_public_package(params):
  # Computed by pytorch-fid 0.3.0 on PyTorch, with the same weights and pictures.
  features = jax.jit(inception.image_features, static_argnames='convention')
  for name, images in [('small', reference.pictures(2, 40)), ('large', reference.pictures(1, 310))]:
    expected = golden()[name]
    found = features(params, images, convention='pytorch-fid')['pool']
    assert np.std(expected) > 0.05
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_the_last_layer_and_the_branch_of_sfid_are_those_of_the_public_package(params):
  x = inception.network_input(reference.pictures(1, 299), 'pytorch-fid')
  network = Inception()
  logits = jax.jit(functools.partial(network.apply, method='logits'))({'params': params}, x)
  expected = golden()['logits']
  np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
  spatial = jax.jit(network.apply)({'params': params}, x).spatial_BS
  expected = golden()['branch'][:, :7].transpose(0, 2, 3, 1).reshape(1, -1)
  np.testing.assert_allclose(spatial, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
def test_the_distance_is_that_of_the_public_package(params):
  features = jax.jit(inception.image_features, static_argnames='convention')
  sets = []
  for start in (0, 100):
    parts = [
      features(params, reference.pictures(4, 40, start + i), convention='pytorch-fid')['pool']
      for i in range(0, 12, 4)
    ]
    sets.append(FeatureStatistics.of(np.concatenate(parts)))
  found = frechet_distance(*sets, few_samples='accept')
  assert found == pytest.approx(float(golden()['distance']), rel=1e-2)


def test_the_inception_score_is_its_definition_on_any_split():
  rng = np.random.default_rng(0)
  kernel = rng.standard_normal((6, 5)).astype(np.float32)
  params = {'fc': {'kernel': kernel, 'bias': rng.standard_normal(5)}}
  pool = rng.standard_normal((23, 6)).astype(np.float32)
  probability = np.exp(pool @ kernel.astype(np.float64))
  probability /= probability.sum(1, keepdims=True)  # without the bias
  scores = []
  for part in (probability[:10], probability[10:20], probability[20:]):
    divergence = (part * np.log(part / part.mean(0))).sum(1)
    scores.append(np.exp(divergence.mean()))
  found = inception.inception_score(params, pool, rows_a_part=10)
  assert found == pytest.approx(np.mean(scores), rel=1e-12)
  parts = np.arange(23) // 10
  merged = ClassSums.empty(3, 5)
  for rows in (slice(0, 7), slice(7, 7), slice(7, 23)):
    merged = merged.merge(ClassSums.of(probability[rows], parts[rows], 3))
  assert merged.score() == pytest.approx(found, rel=1e-12)
  # Probabilities of 0 are no logarithm of 0: as many classes as are sure.
  assert ClassSums.of(np.eye(4), np.zeros(4, int), 1).score() == pytest.approx(4.0, rel=1e-12)
  with pytest.raises(ValueError, match='no images'):
    inception.inception_score(params, pool[:0])


@pytest.mark.slow
def test_the_distance_is_the_same_on_any_mesh_and_batch(params):
  pictures = np.concatenate([reference.pictures(5, 32, start) for start in (0, 100)])

  def features(params, batch):
    return inception.image_features(params, batch['image_BYXC'], 'adm')

  found = []
  for devices, batch in [(1, 10), (8, 8), (1, 4)]:
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    passes = batch_job.ArrayPass({'image_BYXC': pictures}, batch, mesh)
    rows = batch_job.outputs(
      passes, features, variables=params, mesh=mesh, rules=sharding.rules_named('dp')
    )
    pool = np.concatenate([part['pool'] for _, part in rows])
    sets = (FeatureStatistics.of(pool[:5]), FeatureStatistics.of(pool[5:]))
    found.append(frechet_distance(*sets, few_samples='accept'))
  assert found == pytest.approx([found[0]] * 3, rel=1e-6)
