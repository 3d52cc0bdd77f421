"""Nothing is lost on the way out, nothing is left behind by what was refused."""

import dataclasses
import gzip
import json
import os

import pyarrow.parquet as pq
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import export, long_files
from jaxmm.data.corpus import CorpusConfig


def corpus_of(path, lines):
  path.write_text(''.join(line + '\n' for line in lines))
  return CorpusConfig((str(path),), id_field='id')


@pytest.fixture
def given(tmp_path):
  lines = [json.dumps({'id': f'd{n}', 'text': 'x' * (n + 1), 'n': n}) for n in range(6)]
  lines += ['{broken', '{"id": "no text", "error": "mine"}', '{"id": "none", "text": ""}']
  inputs = corpus_of(tmp_path / 'in.jsonl', lines)
  config = long_files.LongFilesConfig(max_tokens=4)
  return inputs, long_files.run(inputs, config, tmp_path / 'work', echo=None)


def read(path):
  if path.suffix == '.parquet':
    return pq.read_table(path).to_pylist()
  opened = gzip.open if path.suffix == '.gz' else open
  with opened(path, 'rt') as f:
    return [json.loads(line) for line in f]


@pytest.mark.parametrize('name', ['out.jsonl', 'out.jsonl.gz', 'out.parquet'])
def test_what_is_kept_goes_out_as_it_stands(given, tmp_path, name):
  assert export.export(*given, tmp_path / name, echo=None) == 4
  assert read(tmp_path / name)[3] == {'id': 'd3', 'text': 'xxxx', 'n': 3}


@pytest.mark.parametrize('name', ['out.jsonl', 'out.parquet'])
def test_what_is_dropped_says_why(given, tmp_path, name):
  assert export.export(*given, tmp_path / name, dropped=True, echo=None) == 5
  rows = {row['id']: row for row in read(tmp_path / name)}
  assert rows['d5']['reason'] == 'long' and rows['d5']['error'] == '' and rows['d5']['n'] == 5
  assert rows['none']['reason'] == 'empty' and rows['none']['error'] == ''
  broken, no_text = rows['in.jsonl:7'], rows['no text']
  assert broken['reason'] == no_text['reason'] == 'unreadable'
  assert 'JSONDecodeError' in broken['error']
  assert "no text in field 'text'" in no_text['error'] and no_text['record.error'] == 'mine'


@pytest.mark.parametrize('name', ['out.jsonl', 'out.parquet', 'out.array_record'])
def test_a_refused_export_leaves_nothing(given, tmp_path, name):
  inputs, keep = given
  lines = [json.dumps({'id': f'd{n}', 'text': 'x' * (n + 1), 'n': n}) for n in range(2)]
  other = corpus_of(tmp_path / 'in.jsonl', [*lines, '{"id": "d2", "text": "changed"}'])
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(ConfigError, match="'d2' is another now"):
    export.export(other, keep, tmp_path / name, echo=None)
  assert sorted(os.listdir(tmp_path)) == before


@pytest.mark.parametrize(
  ('last', 'message'),
  [
    ({'text': 'a', 'late': 1}, "'z' has a field 'late' that none of the first"),
    ({'text': 'a', 'n': 'three'}, 'values of several types'),
  ],
)
def test_a_field_that_does_not_fit_parquet_is_not_lost(tmp_path, monkeypatch, last, message):
  monkeypatch.setattr(export, '_ROWS', 2)
  rows = [{'id': 'a', 'text': 'x'}, {'id': 'b', 'text': 'x', 'n': 1}, {'id': 'z', **last}]
  inputs = corpus_of(tmp_path / 'in.jsonl', map(json.dumps, rows))
  config = long_files.LongFilesConfig(max_tokens=4)
  keep = long_files.run(inputs, config, tmp_path / 'work', echo=None)
  with pytest.raises(ConfigError, match=message):
    export.export(inputs, keep, tmp_path / 'out.parquet', echo=None)
  assert export.export(inputs, keep, tmp_path / 'out.jsonl', echo=None) == 3


def test_a_folder_is_no_file(given, tmp_path):
  (tmp_path / 'out.jsonl').mkdir()
  with pytest.raises(ConfigError, match='which is a folder'):
    export.export(*given, tmp_path / 'out.jsonl', echo=None)


@pytest.mark.parametrize('dropped', [False, True])
@pytest.mark.parametrize(
  ('order', 'message'),
  [
    ([1, 1, 2, 3, 4, 5], "'d1' comes more than once in the inputs"),
    ([0, 1, 2, 3, 4, 5, 5], "'d5' comes more than once in the inputs"),
    ([1, 2, 4, 5], "2 of its 6 examples are not in the inputs, the first 'd0'"),
    ([0, 1, 2, 3, 4, 5, 6], "'d6' is not in it"),
  ],
)
def test_every_example_of_the_list_comes_once(tmp_path, order, message, dropped):
  line = lambda n: json.dumps({'id': f'd{n}', 'text': 'x' * (n + 1)})
  inputs = corpus_of(tmp_path / 'in.jsonl', map(line, range(6)))
  config = long_files.LongFilesConfig(max_tokens=4)
  keep = long_files.run(inputs, config, tmp_path / 'work', echo=None)
  corpus_of(tmp_path / 'in.jsonl', map(line, order))
  before = sorted(os.listdir(tmp_path))
  with pytest.raises(ConfigError, match=message):
    export.export(inputs, keep, tmp_path / 'out.jsonl', dropped=dropped, echo=None)
  assert sorted(os.listdir(tmp_path)) == before


def keep_of(inputs, tmp_path):
  config = long_files.LongFilesConfig(max_tokens=2)
  return long_files.run(inputs, config, tmp_path / 'work', echo=None)


def test_what_is_dropped_has_the_id_of_the_list(tmp_path):
  lines = [json.dumps({'id': n, 'text': 'x' * (n + 1)}) for n in range(4)]
  inputs = corpus_of(tmp_path / 'in.jsonl', [*lines, '{broken'])
  for of in (inputs, dataclasses.replace(inputs, id_field='')):
    keep = keep_of(of, tmp_path)
    for name in ('out.jsonl', 'out.parquet'):
      assert export.export(of, keep, tmp_path / name, dropped=True, echo=None) == 3
      rows = read(tmp_path / name)
      if of is inputs:
        assert [row['id'] for row in rows] == ['2', '3', 'in.jsonl:5']
        assert all('record.id' not in row for row in rows)
      else:
        assert [row['id'] for row in rows] == ['in.jsonl:3', 'in.jsonl:4', 'in.jsonl:5']
        assert [row.get('record.id') for row in rows] == [2, 3, None]
  assert export.export(inputs, keep_of(inputs, tmp_path), tmp_path / 'kept.parquet', echo=None) == 2
  assert [row['id'] for row in read(tmp_path / 'kept.parquet')] == [0, 1]  # as they stand
