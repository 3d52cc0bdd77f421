"""Planted near-copies: where they lie, what their ids say, and how near they are."""

import zipfile

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.data.image_files import ZipReader, image_source
from jaxmm.data.sources import ArraySource
from jaxmm.data.transforms import decode_image
from jaxmm.studies import planted_images
from jaxmm.studies.planted_images import KINDS, PlantedConfig


@pytest.fixture(scope='module')
def source():
  """Thirty smooth pictures 32x32, ten of each of three classes."""
  rng = np.random.default_rng(0)
  coarse = rng.integers(0, 256, (30, 4, 4, 3))
  image_NYXC = np.kron(coarse, np.ones((1, 8, 8, 1))).astype(np.uint8)
  return ArraySource(image_NYXC, np.arange(30) % 3)


def test_the_zip_holds_originals_and_their_copies(source, tmp_path):
  config = PlantedConfig(8, imbalance=4, copied=5, copies=4)
  said = planted_images.write(source, config, tmp_path / 'a.zip')
  assert said == {'originals': 8 + 4 + 2, 'copies': 20, 'class_sizes': [8, 4, 2]}
  planted_images.write(source, config, tmp_path / 'b.zip')
  assert (tmp_path / 'a.zip').read_bytes() == (tmp_path / 'b.zip').read_bytes()
  names = zipfile.ZipFile(tmp_path / 'a.zip').namelist()
  found = [planted_images.origin(name) for name in names]
  assert all(source[o.number]['label'] == o.label for o in found)
  originals = {o.number for o in found if not o.kind}
  assert len(originals) == 14
  copies = [o for o in found if o.kind]
  assert {o.number for o in copies} <= originals and len({o.number for o in copies}) == 5
  kinds = [o.kind for o in copies]
  assert {kinds.count(kind) for kind in KINDS} == {3, 4}
  # As training reads it: the same ids and classes.
  read = image_source(str(tmp_path / 'a.zip'), 'train')
  assert sorted(names) == [read.id(i) for i in range(len(read))] and read.num_classes == 3
  for i in range(len(read)):
    o = planted_images.origin(read.id(i))
    assert read[i]['label'] == o.label
    if not o.kind:
      pixels = decode_image(ZipReader(tmp_path / 'a.zip')(read.id(i)), 3, False, '')
      np.testing.assert_array_equal(pixels, source[o.number]['image'])


@pytest.mark.parametrize('kind', KINDS)
def test_a_copy_is_another_picture_but_near(source, kind):
  rng = np.random.default_rng(1)
  image = source[4]['image']
  other = planted_images.near_copy(image, kind, rng)
  assert other.shape == image.shape and other.dtype == np.uint8
  assert not np.array_equal(other, image)
  again = planted_images.near_copy(image, kind, np.random.default_rng(1))
  np.testing.assert_array_equal(other, again)
  if kind == 'flip':
    other = other[:, ::-1]
  far = np.abs(source[5]['image'].astype(float) - image).mean()
  assert np.abs(other.astype(float) - image).mean() < far / 2


def test_what_cannot_be_planted(source, tmp_path):
  for settings, message in (
    ({'largest_class': 11}, '11 pictures of class 0 are to be taken, but there are 10'),
    ({'largest_class': 2, 'copied': 7}, 'copied is 7, but only 6 pictures are taken'),
    ({'largest_class': 2, 'kinds': ('blur',)}, 'kinds is .*blur.*expected some of jpeg'),
    ({'largest_class': 2, 'imbalance': 0.5}, 'imbalance is 0.5, expected at least 1'),
  ):
    with pytest.raises(ConfigError, match=message):
      planted_images.write(source, PlantedConfig(**settings), tmp_path / 'no.zip')
  assert not list(tmp_path.iterdir())
  with pytest.raises(ConfigError, match="'cat.png' is no picture that"):
    planted_images.origin('cat.png')
