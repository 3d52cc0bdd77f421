"""Codes of the pictures that a keep-list keeps, so that image models train on those alone."""

import json
import shutil

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStore
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.studies import tokens
from tests.references.kept_records import kept_only, write_list


def _verdicts(pictures):
  files = sorted(p.relative_to(pictures).as_posix() for p in pictures.rglob('*.png'))
  return {name: i % 3 != 1 for i, name in enumerate(files)}


def test_codes_of_the_kept_pictures_alone(path, tmp_path):
  verdicts = _verdicts(path.pictures)
  where = str(write_list(tmp_path / 'keep.parquet', verdicts))
  write = lambda split, *settings: tokens.write(
    path.tokenizer, tmp_path / split, split=split, batch=8, overrides=settings, echo=None
  )
  store = write('train', f'data.keep_list={where}')
  ids = [name for name in verdicts if name.startswith('train/')]
  whole = ArrayStore(path.tokens / 'train').read('codes')
  np.testing.assert_array_equal(store.read('codes'), kept_only(whole, ids, verdicts))
  assert 0 < len(store) < len(whole)
  # A list that was changed on the way is not gone on with.
  write_list(tmp_path / 'keep.parquet', verdicts | {ids[2]: False, ids[4]: True})
  with pytest.raises(ConfigError, match='holds another store.*kept_fingerprint'):
    write('train', f'data.keep_list={where}')
  # Codes have no ids of their own.
  data = DataConfig(name='tokens', path=str(tmp_path), keep_list=where)
  with pytest.raises(ConfigError, match=r'`jaxmm tokenize --config.data.keep_list=\.\.\.`'):
    make_batches(data, batch_size=8, seed=0)


def test_the_list_of_a_tokenizer_is_that_of_its_training_part(path, tmp_path):
  shutil.copytree(path.tokenizer, tmp_path / 'run')
  verdicts = _verdicts(path.pictures)
  config = json.loads((tmp_path / 'run' / 'config.json').read_text())
  config['data']['keep_list'] = str(write_list(tmp_path / 'keep.parquet', verdicts))
  (tmp_path / 'run' / 'config.json').write_text(json.dumps(config))
  kept = {s: sum(keep for name, keep in verdicts.items() if s in name) for s in ('train', 'test')}
  for split, settings, number in (
    ('train', (), kept['train']),
    ('train', ('data.keep_list=',), len(ArrayStore(path.tokens / 'train'))),
    ('test', (), len(ArrayStore(path.tokens / 'test'))),
  ):
    data = tokens.data_config(config, split, 'one', settings)
    assert make_batches(data, batch_size=8, seed=0).num_records == number
