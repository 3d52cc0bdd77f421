"""A language model of text and codes draws and describes, and its likelihood knows the kinds."""

import json
import math

import numpy as np
import pytest
from PIL import Image

import jaxmm
from jaxmm import cli
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import evaluation, tokens
from jaxmm.studies import run as runs

pytestmark = pytest.mark.slow

VQ = (
  'steps=2', 'batch=8', 'data.name=images', 'data.cache=False', 'data.num_classes=1',
  'model.vqgan.channels=8', 'model.vqgan.z_channels=8', 'model.vqgan.quantizer.codes=32',
)  # fmt: skip
MODEL = (
  'steps=2', 'batch=8', 'model.size=micro', 'model.length=128', 'model.vocab_size=293',
  'data.name=mixed', 'data.mixed.length=128', 'data.mixed.patches=64', 'data.mixed.boi_id=259',
  'data.mixed.eoi_id=260', 'data.mixed.first_code=261',
)  # fmt: skip


def trained(file, settings, at):
  config = configs.plain(runs.with_settings(configs.load_config(file), settings))
  runs.train_from_config(config, at, evaluates=False, echo=lambda line: None)
  return at


@pytest.fixture(scope='module')
def model(tmp_path_factory):
  at = tmp_path_factory.mktemp('codes')
  rng, rows = np.random.default_rng(0), []
  (at / 'pictures').mkdir()
  for i in range(24):
    pixels = np.full((32, 32, 3), rng.integers(256, size=3), np.uint8)
    Image.fromarray(pixels).save(at / 'pictures' / f'{i:02}.png')
    rows.append(json.dumps({'image': f'{i:02}.png', 'caption': f'colour {i}'}))
  (at / 'captions.jsonl').write_text('\n'.join(rows))
  vq = trained('transfusion/vae_mini.py:vq', (*VQ, f'data.path={at / "pictures"}'), at / 'vq')
  tokens.write(vq, at / 'codes', split='all', echo=lambda line: None)
  data = {'path': 'pictures', 'mixed.captions': 'captions.jsonl', 'mixed.codes': 'codes'}
  settings = [f'data.{key}={at / name}' for key, name in data.items()]
  return jaxmm.load(trained('lm/mini.py', (*MODEL, *settings), at / 'model'))


def test_images_of_texts_in_any_company(model):
  images = model.draw(['colour 3', 'a longer caption', 'c'], batch=2)
  assert images.shape == (3, 32, 32, 3) and images.dtype == np.uint8
  np.testing.assert_array_equal(model.draw(['colour 3']), images[:1])
  assert not np.array_equal(model.draw(['colour 3'], seed=1), images[:1])
  texts = model.describe(images, 5, temperature=0.5)
  assert len(texts) == 3 and all(isinstance(text, str) and len(text) <= 5 for text in texts)


def test_from_the_terminal(model, tmp_path):
  words, out = ['sample', '--run', str(model.directory)], tmp_path / 'x.png'
  assert cli.main([*words, '--prompt', 'a', '--top-k', '3', '--output', str(out)]) == 0
  drawn = np.asarray(Image.open(out))[:32, :32]
  np.testing.assert_array_equal(drawn, model.draw(['a'], top_k=3)[0])
  changed = tmp_path / 'changed.png'
  # The picture, the text and the new picture: 132 positions and more, in a row of 128.
  assert cli.main([*words, '--prompt', 'a', '--image', str(out), '--output', str(changed)]) == 2
  assert cli.main([*words, '--image', str(out), '--length', '4']) == 0
  assert cli.main([*words, '--prompt', 'a', '--steps', '3', '--output', str(out)]) == 2


def test_what_cannot_be_is_said(model):
  with pytest.raises(ConfigError, match='model.length'):
    model.draw(['a' * 200])
  with pytest.raises(ConfigError, match='no prompt'):
    model.draw([])
  with pytest.raises(ConfigError, match='guidance'):
    model.draw(['a'], guidance_scale=2.0)
  with pytest.raises(ConfigError, match='prompts is .a frog., expected a list of texts'):
    model.draw('a frog')
  with pytest.raises(ConfigError, match=r'images have shape \(48, 48, 3\)'):
    model.describe(np.zeros((1, 48, 48, 3), np.uint8), 3)
  with pytest.raises(ConfigError, match='is a run of jaxmm.models.lm, which makes no codes'):
    model.draw(['a'], autoencoder=model.directory)


def test_another_tokenizer_than_that_of_the_codes(model, monkeypatch):
  class Other:
    directory, num_codes = 'other', 10**6

    def encode(self, images):
      return np.zeros((len(images), 9), np.int32)

  monkeypatch.setattr(type(model), 'autoencoder', lambda self, directory=None: Other())
  with pytest.raises(ConfigError, match=r'\[32, 32, 3\] have 9 codes, but the model .* on 64'):
    model.describe(np.zeros((1, 32, 32, 3), np.uint8), 3)
  with pytest.raises(ConfigError, match='other has 1000000 codes, but the vocabulary'):
    model.draw(['a'])


def test_nats_of_each_kind_add_up(model):
  sums = evaluation.run_sums(model, batch=8)['likelihood']
  kinds = [f'cross_entropy_{kind}' for kind in ('text', 'after_image', 'codes')]
  assert sums['cross_entropy_text'][1] == 0 and sums['cross_entropy_codes'][1] % 64 == 0
  nats, counts = zip(*(sums[kind] for kind in kinds), strict=True)
  # What is left is captions before their pictures and BOI.
  assert 0 < counts[1] and sum(counts) < sums['cross_entropy'][1]
  assert nats[2] / counts[2] == pytest.approx(math.log(293), rel=0.1)
