"""Text files to packed rows through the chain; splits; documents that cannot be read."""

import gzip
import json

import numpy as np
import pytest

from jaxmm.config import ConfigError, from_mapping
from jaxmm.data.bad_records import TooManyBadRecords
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.data.sources import UnreadableRecord
from jaxmm.data.text_files import JsonLines, TextConfig, documents

TEXTS = [f'document {i}, with naïve words' * (i % 3 + 1) for i in range(30)]


def _lines(texts) -> bytes:
  return b''.join(json.dumps({'text': t, 'n': i}).encode() + b'\n' for i, t in enumerate(texts))


@pytest.fixture(params=['x.jsonl', 'x.jsonl.gz'])
def corpus(request, tmp_path):
  path = tmp_path / request.param
  path.write_bytes(gzip.compress(_lines(TEXTS)) if path.suffix == '.gz' else _lines(TEXTS))
  return path


def _config(path, **rest):
  text = {'length': 32, 'eos_id': 256, 'bos_id': 257, **rest.pop('text', {})}
  settings = {'name': 'text', 'path': str(path), 'split': 'all', 'text': text, **rest}
  return from_mapping(DataConfig, settings, 'data')


def test_rows_hold_all_documents_with_their_ends(corpus):
  batches = make_batches(_config(corpus), batch_size=4, seed=0, train=False)
  rows = list(batches.once())
  ids = np.concatenate([b['ids_BL'][b['valid_B'] > 0] for b in rows])
  segment = np.concatenate([b['segment_BL'][b['valid_B'] > 0] for b in rows])
  assert ids.dtype == segment.dtype == np.int32 and rows[0]['weight_BL'].dtype == np.float32
  assert rows[0]['ids_BL'].shape == (4, 32)
  expected = [i for t in TEXTS for i in (257, *t.encode(), 256)]
  assert list(ids[segment > 0]) == expected
  assert batches.describe(0) == f'packed row 0 ({corpus.name}:1 to {corpus.name}:2)'


def test_packed_rows_are_shuffled_and_dealt_like_any_record(corpus):
  config = _config(corpus, text={'packing': 'first_fit'})
  alone = make_batches(config, batch_size=4, seed=1)
  halves = [
    make_batches(config, batch_size=4, seed=1, process_index=p, process_count=2) for p in range(2)
  ]
  for step in (0, 9):
    parts = [h.at(step) for h in halves]
    for name, value in alone.at(step).items():
      np.testing.assert_array_equal(value, np.concatenate([p[name] for p in parts]))
  epoch = np.concatenate([alone.record_ids(s) for s in range(alone.num_records)])
  assert sorted(epoch[: alone.num_records]) == list(range(alone.num_records))


def test_lines_are_read_at_random_and_named(corpus):
  lines = JsonLines(corpus)
  assert len(lines) == 30 and lines[17] == {'text': TEXTS[17], 'n': 17}
  assert lines.name(17) == f'{corpus.name}:18'


def test_splits_of_lines_part_the_documents(corpus):
  train = [n for n, _ in documents(str(corpus), 'train', 0.3)]
  test = [n for n, _ in documents(str(corpus), 'test', 0.3)]
  assert train and test and len(train) + len(test) == 30 and not set(train) & set(test)


def test_one_plain_file_ends_in_its_test_part(tmp_path):
  text = ''.join(f'line {i}\n' for i in range(100))
  (tmp_path / 'x.txt').write_text(text)
  read = {
    split: [r() for _, r in documents(str(tmp_path / 'x.txt'), split, 0.2)][0]
    for split in ('train', 'test', 'all')
  }
  assert read['train'] + read['test'] == read['all'] == text
  assert read['train'].endswith('\n') and 0.15 < len(read['test']) / len(text) < 0.25


def test_folders_of_text(tmp_path):
  for split, names in (('train', 'ab'), ('test', 'c')):
    (tmp_path / split).mkdir()
    for name in names:
      (tmp_path / split / f'{name}.txt').write_text(name * 40)
  assert [n for n, _ in documents(str(tmp_path), 'train', 0.1)] == ['train/a.txt', 'train/b.txt']
  assert [r() for _, r in documents(str(tmp_path), 'test', 0.1)] == ['c' * 40]


def test_an_encoder_takes_the_place_of_bytes(corpus):
  config = _config(corpus, text={'tokenizer': 'trained.json', 'bos_id': None, 'eos_id': None})
  with pytest.raises(ConfigError, match="'trained.json': load it and pass its `encode`"):
    make_batches(config, batch_size=4, seed=0)
  batches = make_batches(config, batch_size=4, seed=0, train=False, encode=lambda t: [len(t)] * 3)
  first = batches.at(0)['ids_BL'][0]
  np.testing.assert_array_equal(first[:6], [len(TEXTS[0])] * 3 + [len(TEXTS[1])] * 3)


def test_unreadable_documents_are_counted_and_named(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_bytes(_lines(TEXTS) + b'{"text": \n\n{"body": "x"}\n[1]\n')
  assert len(JsonLines(path)) == 33
  with pytest.raises(UnreadableRecord, match='JSON list'):
    JsonLines(path)[32]
  with pytest.raises(TooManyBadRecords, match=r'x.jsonl:31.*max_bad_fraction'):
    make_batches(_config(path), batch_size=4, seed=0)
  batches = make_batches(_config(path, max_bad_fraction=0.2), batch_size=4, seed=0, train=False)
  ids = np.concatenate([b['ids_BL'].ravel() for b in batches.once()])
  assert (ids == 256).sum() == 30


def test_text_settings_that_cannot_be_used(tmp_path):
  with pytest.raises(ConfigError, match='length is 1'):
    TextConfig(length=1)
  with pytest.raises(ConfigError, match="packing is 'best'"):
    TextConfig(packing='best')
  (tmp_path / 'x.csv').write_text('')
  for path, message in (
    (tmp_path / 'absent', 'does not exist'),
    (tmp_path, 'holds no text'),
    (tmp_path / 'x.csv', 'is no text'),
  ):
    with pytest.raises(ConfigError, match=message):
      make_batches(_config(path), batch_size=4, seed=0)
  (tmp_path / 'x.txt').write_text('')
  with pytest.raises(ConfigError, match='holds no text'):
    make_batches(_config(tmp_path / 'x.txt'), batch_size=4, seed=0)
