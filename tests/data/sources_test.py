"""Sources in memory, of packages and of TFDS."""

import importlib.util

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.data import sources
from jaxmm.data.sources import ArraySource, Subset, hash_split


def test_arrays_are_checked():
  source = ArraySource(np.zeros((3, 4, 5), np.uint8), [2, 0, 1])
  assert source[0]['image'].shape == (4, 5, 1) and source.num_classes == 3
  with pytest.raises(ConfigError, match='uint8'):
    ArraySource(np.zeros((3, 4, 5, 3), np.float32))
  with pytest.raises(ConfigError, match='3 images but labels of shape'):
    ArraySource(np.zeros((3, 4, 5), np.uint8), [1, 2])


def test_subsets_of_subsets():
  source = ArraySource(np.arange(8, dtype=np.uint8).reshape(8, 1, 1), np.arange(8))
  inner = Subset(Subset(source, [7, 5, 3]), [2, 0])
  assert [inner[i]['label'] for i in range(2)] == [3, 7] and inner.name(1) == 'arrays[7]'
  train, test = hash_split(source, 'train', 0.5), hash_split(source, 'test', 0.5)
  labels = sorted(s[i]['label'] for s in (train, test) for i in range(len(s)))
  assert labels == list(range(8)) and len(train) not in (0, 8)


def test_mnist_without_its_package_says_how_to_install(monkeypatch):
  sources._mnist5k_arrays.cache_clear()
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ConfigError, match=r"pip install 'jaxmm\[demo\]'"):
    sources.mnist5k('train')
  monkeypatch.undo()
  assert sources.mnist5k('test')[0]['label'] == 0


def test_mnist_digits_look_like_digits():
  source = sources.mnist5k('all')
  assert source.image_NYXC.shape == (5000, 28, 28, 1)
  # A nearest-mean classifier only works if pixels and labels belong together.
  train, test = sources.mnist5k('train'), sources.mnist5k('test')
  means = np.stack([train.image_NYXC[train.label_N == d].mean(0).ravel() for d in range(10)])
  flat = test.image_NYXC.reshape(len(test), -1).astype(float)
  nearest = ((flat[:, None] - means) ** 2).sum(-1).argmin(1)
  assert (nearest == test.label_N).mean() > 0.75
