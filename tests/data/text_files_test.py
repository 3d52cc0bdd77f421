"""Text files to packed rows through the chain; splits; documents that cannot be read."""

import gzip
import json

import numpy as np
import pytest

from jaxmm.config import ConfigError, from_mapping
from jaxmm.data.bad_records import TooManyBadRecords
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.data.text_files import TextConfig, TextFiles

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


def test_documents_begin_at_multiples_of_the_alignment(corpus):
  batches = make_batches(_config(corpus, text={'align': 8}), batch_size=4, seed=0, train=False)
  rows = list(batches.once())
  ids, segment = (np.concatenate([b[k].ravel() for b in rows]) for k in ('ids_BL', 'segment_BL'))
  assert list(ids[segment > 0]) == [i for t in TEXTS for i in (257, *t.encode(), 256)]
  assert not (np.flatnonzero(ids == 257) % 8).any()
  with pytest.raises(ConfigError, match='text.align is 5, but rows have 32 tokens'):
    _config(corpus, text={'align': 5})


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


def _split(path, split, test_fraction, **rest):
  """(name, text) of the documents of a split."""
  files = TextFiles(str(path), split, test_fraction, **rest)
  return [(d.name, d.text) for d in files.documents() if d.is_chosen]


def test_documents_are_named_by_their_place_and_known_by_their_id(corpus):
  documents = list(TextFiles(str(corpus), 'all', 0.1, id_field='n').documents())
  assert [d.text for d in documents] == TEXTS
  assert (documents[17].name, documents[17].example.id) == (f'{corpus.name}:18', '17')


def test_splits_of_lines_part_the_documents_whatever_their_ids(corpus):
  train, test = (_split(corpus, split, 0.3) for split in ('train', 'test'))
  assert train and test and sorted(train + test) == sorted(_split(corpus, 'all', 0.3))
  assert _split(corpus, 'train', 0.3, id_field='n') == train


def test_one_plain_file_ends_in_its_test_part(tmp_path):
  text = ''.join(f'line {i}\n' for i in range(100))
  (tmp_path / 'x.txt').write_text(text)
  read = {split: _split(tmp_path / 'x.txt', split, 0.2)[0][1] for split in ('train', 'test', 'all')}
  assert read['train'] + read['test'] == read['all'] == text
  assert read['train'].endswith('\n') and 0.15 < len(read['test']) / len(text) < 0.25


def test_folders_of_text(tmp_path):
  for split, names in (('train', 'ab'), ('test', 'c')):
    (tmp_path / split / '.hidden').mkdir(parents=True)
    (tmp_path / split / '.hidden' / 'x.txt').write_text('hidden')
    for name in names:
      (tmp_path / split / f'{name}.txt').write_text(name * 40)
  assert [n for n, _ in _split(tmp_path, 'train', 0.1)] == ['train/a.txt', 'train/b.txt']
  assert _split(tmp_path, 'test', 0.1) == [('test/c.txt', 'c' * 40)]


def test_an_encoder_takes_the_place_of_bytes(corpus):
  config = _config(corpus, text={'tokenizer': 'trained.json', 'bos_id': None, 'eos_id': None})
  with pytest.raises(ConfigError, match="'trained.json': load it and pass its `encode`"):
    make_batches(config, batch_size=4, seed=0)
  batches = make_batches(config, batch_size=4, seed=0, train=False, encode=lambda t: [len(t)] * 3)
  first = batches.at(0)['ids_BL'][0]
  np.testing.assert_array_equal(first[:6], [len(TEXTS[0])] * 3 + [len(TEXTS[1])] * 3)


def test_unreadable_documents_are_counted_and_named(tmp_path, caplog):
  path = tmp_path / 'x.jsonl'
  bad = b'{"text": \n\n{"body": "x"}\n[1]\n{"text": "half \\ud83d"}\n'
  path.write_bytes(_lines(TEXTS) + bad)
  with pytest.raises(TooManyBadRecords, match=r'x.jsonl:31.*max_bad_fraction'):
    make_batches(_config(path), batch_size=4, seed=0)
  batches = make_batches(_config(path, max_bad_fraction=0.2), batch_size=4, seed=0, train=False)
  ids = np.concatenate([b['ids_BL'].ravel() for b in batches.once()])
  assert (ids == 256).sum() == 30
  for why in ('JSONDecodeError', "no text in field 'text'", 'JSON list', 'a lone surrogate'):
    assert why in caplog.text


def test_a_large_corpus_may_have_its_share_of_unreadable_documents(tmp_path):
  path = tmp_path / 'x.jsonl'
  path.write_bytes(_lines(['x'] * 3000) + b'[]\n' * 25)  # below 1 % of all, above 1 % of 1,000
  make_batches(_config(path), batch_size=4, seed=0)
  path.write_bytes(b'[]\n' * 11 + _lines(['x'] * 3000))
  with pytest.raises(TooManyBadRecords, match='11 unreadable records of the first '):
    make_batches(_config(path), batch_size=4, seed=0)


def test_a_file_that_breaks_off_is_no_small_matter(tmp_path):
  path = tmp_path / 'x.jsonl.gz'
  path.write_bytes(gzip.compress(_lines([str(i) * 99 for i in range(5000)]))[:-2000])
  with pytest.raises(ConfigError, match='x.jsonl.gz breaks off after .* mend or remove the file'):
    make_batches(_config(path, max_bad_fraction=1.0), batch_size=4, seed=0)


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
