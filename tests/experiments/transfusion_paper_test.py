"""Rows for the paper's Transfusion: any tokenizer of ours, and another size of patches."""

import json

import numpy as np
import pytest
from PIL import Image

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStoreWriter
from jaxmm.data.mixed import packed_rows
from jaxmm.studies import run
from jaxmm.tokenizers import text
from tests.experiments.configs_test import ROOT

# Ids 0, 1 and 2 of a byte-level BPE are '!', '"' and '#'.
CAPTIONS = [f'"picture" #{i}!' for i in range(6)]


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """Captioned pictures, their latents, and a tokenizer trained on the captions."""
  at = tmp_path_factory.mktemp('files')
  (at / 'pictures').mkdir()
  for i in range(len(CAPTIONS)):
    Image.new('RGB', (8, 8)).save(at / 'pictures' / f'{i}.png')
  records = ({'file': f'{i}.png', 'said': caption} for i, caption in enumerate(CAPTIONS))
  (at / 'captions.jsonl').write_text('\n'.join(map(json.dumps, records)))
  text.BpeTokenizer.train(CAPTIONS, 280).save(at / 'tokenizer.json')
  num = len(CAPTIONS)
  fields = {'latents': ((32, 32, 8), 'float32'), 'valid': ((), 'bool')}
  writer = ArrayStoreWriter(at / 'latents', fields, num, num, {'tokenizer_step': 1})
  latents = np.zeros((num, 32, 32, 8), np.float32)
  writer.write_shard(0, {'latents': latents, 'valid': np.ones(num, bool)})
  return at


def config_of(files, **model):
  settings = {
    'path': f'{files}/pictures', 'split': 'all', 'text.tokenizer': f'{files}/tokenizer.json',
    'mixed.captions': f'{files}/captions.jsonl', 'mixed.latents': f'{files}/latents',
    'mixed.image_field': 'file', 'mixed.caption_field': 'said',
  }  # fmt: skip
  settings = [
    *(f'data.{name}={value}' for name, value in settings.items()),
    *(f'model.{name}={value}' for name, value in model.items()),
  ]
  return run.with_settings(configs.load_config(f'{ROOT}/transfusion/paper.py'), settings)


def batches_of(config):
  """The training batches, after the checks that a run makes."""
  batches = run.make_batches(config, train=True, batch=1)
  run.check_data(run.make_task(config), {'data': batches})
  return batches


@pytest.mark.parametrize('patch', [1, 2, 4, 8])
def test_rows_are_full_whatever_the_patch(patch, files):
  """Of pairs whose captions have 8 to 24 ids and half text, as the paper mixes them."""
  config = config_of(files, patch=patch)
  images, patches = config.data.mixed.max_images, config.data.mixed.patches
  assert config.model.row_images == config.eval_data.mixed.max_images == images
  rng, pairs = np.random.default_rng(0), 4000
  lengths = [rng.integers(8, 24, pairs) + patches + 2, rng.integers(50, 3000, pairs)]
  texts = np.cumsum(lengths[1]) < lengths[0].sum()  # as many positions as the pairs
  lengths = np.concatenate([lengths[0], lengths[1][texts]])
  is_pair = np.arange(len(lengths)) < pairs
  order = rng.permutation(len(lengths))
  rows, unlimited = (
    packed_rows(lengths[order], is_pair[order].astype(int), 4096, most) for most in (images, None)
  )
  assert len(rows) <= 1.01 * len(unlimited)


@pytest.mark.parametrize('patch', [2, 4])
def test_rows_hold_the_texts_and_patches_of_another_size_follow(patch, files):
  config = config_of(files, patch=patch)
  for field in ('captions', 'image_field', 'caption_field'):
    assert config.eval_data.mixed[field] == config.data.mixed[field], field
  batch = next(batches_of(config).once())
  num = (32 // patch) ** 2
  assert config.eval_data.mixed.patches == config.data.mixed.patches == num
  assert np.bincount(batch['image_BL'].ravel())[1:].tolist() == [num] * len(CAPTIONS)
  tokenizer, found = text.load(files / 'tokenizer.json'), []
  for segment in range(1, len(CAPTIONS) + 1):
    inside = (batch['segment_BL'] == segment) & (batch['image_BL'] == 0)
    ids = batch['ids_BL'][inside]
    assert sorted(ids[ids >= 32_000].tolist()) == [32_001, 32_002, 32_003, 32_004]
    found.append(tokenizer.decode(ids[ids < 32_000]))
  assert sorted(found) == CAPTIONS
  assert set(batch['ids_BL'][batch['segment_BL'] == 0].tolist()) == {32_000}


def test_a_null_caption_that_is_a_word_of_the_tokenizer_is_refused(files):
  with pytest.raises(ConfigError, match='model.null_id is 0, which data.text.tokenizer .* behind'):
    batches_of(config_of(files, null_id=0))
