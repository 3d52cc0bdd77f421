"""A trained Transfusion draws what a text says and says what an image shows, from real files."""

import json

import numpy as np
import pytest
from PIL import Image

import jaxmm
from jaxmm import cli
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import latents, tokens
from jaxmm.studies import run as runs

VAE = (
  'steps=2', 'batch=8', 'data.name=images', 'data.cache=False', 'data.num_classes=1',
  'model.vae.channels=8', 'model.vae.z_channels=8',
)  # fmt: skip
MODEL = (
  'steps=2', 'batch=8', 'model.width=32', 'model.depth=1', 'model.num_heads=2',
  'model.caption_dropout=0.1',
)  # fmt: skip


def trained(file, settings, at):
  config = configs.plain(runs.with_settings(configs.load_config(file), settings))
  runs.train_from_config(config, at, evaluates=False, echo=lambda line: None)
  return at


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  """A run on pictures with captions, by way of an autoencoder, its scale and its latents."""
  at = tmp_path_factory.mktemp('mixed')
  rng, rows = np.random.default_rng(0), []
  (at / 'pictures').mkdir()
  for i in range(24):
    pixels = np.full((32, 32, 3), rng.integers(256, size=3), np.uint8)
    Image.fromarray(pixels).save(at / 'pictures' / f'{i:02}.png')
    rows.append(json.dumps({'image': f'{i:02}.png', 'caption': f'colour {i}'}))
  (at / 'captions.jsonl').write_text('\n'.join(rows))
  vae = trained('transfusion/vae_mini.py', (*VAE, f'data.path={at / "pictures"}'), at / 'vae')
  latents.measure(vae, echo=lambda line: None)
  tokens.write(vae, at / 'latents', split='all', views='one', echo=lambda line: None)
  data = {'path': 'pictures', 'mixed.captions': 'captions.jsonl', 'mixed.latents': 'latents'}
  settings = [f'data.{key}={at / name}' for key, name in data.items()]
  return jaxmm.load(trained('transfusion/mini.py', (*MODEL, *settings), at / 'model'))


def test_images_of_texts_in_any_company(model):
  images = model.draw(['colour 3', 'a longer caption'], steps=3, guidance_scale=2.0)
  assert images.shape == (2, 32, 32, 3) and images.dtype == np.uint8
  alone = model.draw(['colour 3'], steps=3, guidance_scale=2.0)
  assert np.abs(alone[0].astype(int) - images[0]).max() <= 1
  other = model.draw(['colour 3'], steps=3, guidance_scale=2.0, seed=1)
  assert np.abs(alone[0].astype(int) - other[0]).max() > 1


def test_texts_of_images(model):
  images = model.draw(['colour 3', 'colour 4'], steps=2)
  texts = model.describe(images, 5, greedy=True)
  assert len(texts) == 2 and all(isinstance(text, str) and len(text) <= 5 for text in texts)


def test_what_cannot_be_is_said(model):
  with pytest.raises(ConfigError, match='model.length'):
    model.draw(['a' * 200], steps=1)
  with pytest.raises(ConfigError, match='no prompt'):
    model.draw([], steps=1)
  with pytest.raises(ConfigError, match='euler'):
    model.draw(['a'], steps=1, method='euler')
  with pytest.raises(ConfigError, match='expected a latent|grid|multiple|image'):
    model.describe(np.zeros((1, 30, 30, 3), np.uint8), 3)


def test_from_the_terminal(model, tmp_path, capsys):
  words, out = ['sample', '--run', str(model.directory)], tmp_path / 'x.png'
  assert cli.main([*words, '--prompt', 'a', 'b', '--steps', '2', '--output', str(out)]) == 0
  assert Image.open(out).size[0] >= 64
  one = tmp_path / 'one.png'
  Image.new('RGB', (40, 32)).save(one)
  rows = tmp_path / 'rows.jsonl'
  assert cli.main([*words, '--image', str(one), '--length', '4', '--output', str(rows)]) == 0
  assert json.loads(rows.read_text())['image'] == str(one)
  assert str(one) in capsys.readouterr().out
  assert cli.main([*words, '--prompt', 'a']) == 2
  assert '--output' in capsys.readouterr().err
  assert cli.main([*words, '--prompt', 'a', '--image', str(one)]) == 2
