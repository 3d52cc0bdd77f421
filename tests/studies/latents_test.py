"""An autoencoder with continuous latents through the verbs: scale, latents, pictures, errors."""

import json
import shutil
import types

import numpy as np
import pytest
from PIL import Image

import jaxmm
from jaxmm import cli
from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStore
from jaxmm.studies import latents, loading, tokens
from tests import tiny_runs
from tests.programs import run_verbs


@pytest.fixture(scope='module')
def path(tmp_path_factory):
  """Directories of a short run, and what the verbs printed."""
  at = tmp_path_factory.mktemp('vae')
  pictures, run = tiny_runs.write_pictures(at / 'pictures'), at / 'run'
  printed = run_verbs(
    f'train --config {tiny_runs.__file__}:vae --workdir {run} --config.data.path={pictures}',
    f'reconstruct --run {run} --num 5 --output {at}/rebuilt.png',
    f'latent-scale --run {run} --batch 16',
    *(
      f'tokenize --run {run} --split {split} --batch 8 --output {at}/latents/{split} {more}'
      for split, more in (('train', ''), ('test', '--views flip --dtype float16'))
    ),
    f'evaluate --run {run} --batch 8',
    f'report {run}',
  )
  return types.SimpleNamespace(at=at, run=run, pictures=pictures, printed=printed)


@pytest.fixture(scope='module')
def autoencoder(path):
  return jaxmm.load(path.run)


def images_of(folder, split='test'):
  files = sorted((folder / split).rglob('*.png'))
  return np.stack([np.asarray(Image.open(f)) for f in files])


def test_scaled_latents_of_the_training_split_have_unit_variance(path, autoencoder):
  store = ArrayStore(path.at / 'latents' / 'train')
  valid, stored = store.read('valid'), store.read('latents')
  assert stored.shape == (24, 4, 4, 3) and stored.dtype == np.float32
  assert (~valid).sum() == 1 and not stored[~valid].any()
  # 23 images in batches of 16: the last is ragged, and one could not be read.
  assert stored[valid].astype(np.float64).std() == pytest.approx(1, rel=1e-5)
  assert autoencoder.scale.origin['num_images'] == 23
  meta = store.meta['latent_scale']
  assert meta['scale'] == list(autoencoder.scale.scale) and store.meta['latent_dim'] == 3
  assert store.meta['tokenizer_step'] == 4 and 'num_codes' not in store.meta


def test_latents_of_the_store_are_those_of_encode(path, autoencoder):
  store = ArrayStore(path.at / 'latents' / 'test')
  images, stored = images_of(path.pictures), store.read('latents')
  assert stored.shape == (10, 2, 4, 4, 3) and stored.dtype == np.float16
  encoded = autoencoder.encode(images)
  assert encoded.dtype == np.float32
  np.testing.assert_allclose(stored[:, 0], encoded, atol=4e-3)
  np.testing.assert_allclose(stored[:, 1], autoencoder.encode(images[:, :, ::-1]), atol=4e-3)


def test_decode_undoes_the_scale(path, autoencoder):
  images = images_of(path.pictures)
  decoded = autoencoder.decode(autoencoder.encode(images))
  assert decoded.shape == images.shape and decoded.dtype == np.uint8
  rebuilt = autoencoder.reconstruct(images).astype(int)
  np.testing.assert_allclose(decoded.astype(int), rebuilt, atol=1)  # a rounding to whole numbers
  wide = autoencoder.decode(np.zeros((1, 2, 6, 3), np.float32))
  assert wide.shape == (1, 4, 12, 3)


def test_the_scale_is_the_same_in_other_batches_and_may_be_measured_again(path, autoencoder):
  again = latents.measure(path.run, batch=8, echo=None)
  assert again.scale == autoencoder.scale.scale  # close, so the old one is kept


def test_another_scale_must_be_said_aloud(path, tmp_path, capsys):
  run = tmp_path / 'run'
  shutil.copytree(path.run, run)
  verb = ['latent-scale', '--run', str(run), '--per-channel', '--center']
  assert cli.main(verb) == 2
  assert 'already holds another scale' in capsys.readouterr().err
  assert cli.main([*verb, '--replace']) == 0
  scale = jaxmm.load(run).scale
  assert len(scale.scale) == len(scale.shift) == 3 and any(scale.shift)
  with pytest.raises(ConfigError, match='another store'):
    shutil.copytree(path.at / 'latents' / 'train', tmp_path / 'store')
    tokens.write(run, tmp_path / 'store', batch=8, echo=None)


def test_without_a_scale_pictures_are_rebuilt_but_not_encoded(path, tmp_path):
  run = tmp_path / 'run'
  shutil.copytree(path.run, run)
  (run / 'latent_scale-4.json').unlink()
  loaded, images = jaxmm.load(run), images_of(path.pictures)
  assert loaded.reconstruct(images).shape == images.shape
  for use in (lambda: loaded.encode(images), lambda: tokens.write(run, tmp_path / 's', echo=None)):
    with pytest.raises(ConfigError, match='no measured scale.*jaxmm latent-scale --run'):
      use()
  kept = json.loads((path.run / 'latent_scale-4.json').read_text())
  (run / 'latent_scale-4.json').write_text(json.dumps(kept | {'weights': 'ema'}))
  with pytest.raises(ConfigError, match="measured on the weights 'ema', but 'params' are loaded"):
    _ = jaxmm.load(run).scale


def test_evaluate_and_reconstruct_say_what_they_did(path):
  results = json.loads((path.run / 'evaluation.json').read_text())['results']
  assert {'reconstruction/l1', 'reconstruction/psnr', 'reconstruction/kl'} <= set(results)
  assert results['reconstruction/kl'] > 0
  assert '5 images, PSNR' in path.printed and 'over 23 images' in path.printed
  assert 'kl' in (path.run / 'report.html').read_text()


def test_wrong_arrays_are_named(path, autoencoder):
  images = images_of(path.pictures)
  for wrong, message in (
    (images[0], r'\[B, Y, X, C\], got \[8, 8, 3\]'),
    (images / 255, 'takes uint8 images'),
    (images[:, :6], r'shape \(6, 8, 3\)'),
  ):
    with pytest.raises(ConfigError, match=message):
      autoencoder.encode(wrong)
  for wrong, message in (
    (np.zeros((1, 4, 4, 3), int), 'latents of a float type, got int'),
    (np.zeros((4, 4, 3), np.float32), r'expected \[B, rows, columns, 3\]'),
    (np.zeros((1, 4, 4, 8), np.float32), r'expected \[B, rows, columns, 3\]'),
  ):
    with pytest.raises(ConfigError, match=message):
      autoencoder.decode(wrong)


def test_codes_have_neither_a_scale_nor_a_dtype(tmp_path, monkeypatch):
  class Codes:
    directory, config = tmp_path, {'task': 'jaxmm.tokenizers.vqgan_task'}

  monkeypatch.setattr(loading, 'load', lambda *_: Codes())
  with pytest.raises(ConfigError, match='whose codes have no scale'):
    latents.measure(tmp_path)
