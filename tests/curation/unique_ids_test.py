"""Ids that come twice are found as they come, and no more is remembered than is said."""

import json

import pyarrow as pa
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import unique_ids
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig, Example, Shard


@pytest.fixture
def written(tmp_path):
  """ids of each file -> (shards, inputs)."""

  def write(*files, id_field='id'):
    for name, ids in zip('abc', files):
      lines = [json.dumps({'id': i, 'text': 'x'}) + '\n' for i in ids]
      (tmp_path / f'{name}.jsonl').write_text(''.join(lines))
    inputs = CorpusConfig((str(tmp_path),), id_field=id_field)
    return corpus.shards(inputs), inputs

  return write


def test_a_file_is_left_at_the_first(monkeypatch):
  read = []

  def examples(shard, inputs):
    for name in 'abcbd':
      read.append(name)
      yield Example(name)

  monkeypatch.setattr(corpus, 'examples', examples)
  with pytest.raises(ConfigError, match="the id 'b' comes more than once"):
    list(unique_ids.checked(Shard('x', 'x', 'jsonl'), CorpusConfig(('x',))))
  assert read == list('abcb') + list('abcbd')  # and once more, to say where


def test_where_an_id_comes_twice_is_said_and_how_many_do(written, tmp_path):
  shards, inputs = written('abcbbda')
  with pytest.raises(ConfigError) as refused:
    list(unique_ids.checked(shards[0], inputs))
  path = tmp_path / 'a.jsonl'
  assert str(refused.value).startswith(
    f"the id 'b' comes more than once ({path}:2 and {path}:4), one of 2 ids that do; expected"
  )


def test_files_that_number_anew_are_found_at_the_second(written, tmp_path):
  shards, inputs = written('12', '34', '52')
  each = unique_ids.AcrossFiles(shards, inputs)
  for ids in ('12', '34'):
    each(pa.table({'id': list(ids)}))
  with pytest.raises(ConfigError) as refused:
    each(pa.table({'id': ['5', '2']}))
  first, second = (tmp_path / f'{name}.jsonl' for name in 'ac')
  assert f"'2' comes more than once ({first}:2 and {second}:2); expected" in str(refused.value)


def test_memory_is_bounded(monkeypatch, written):
  monkeypatch.setattr(unique_ids, '_REMEMBERED', 3)
  shards, inputs = written('abcdd')
  assert len(list(unique_ids.checked(shards[0], inputs))) == 5
  each = unique_ids.AcrossFiles(shards, inputs)
  for ids in ('ab', 'cd', 'd'):
    each(pa.table({'id': list(ids)}))
  shards, inputs = written('aab')
  with pytest.raises(ConfigError, match=r'a.jsonl:1 and .*a.jsonl:2\); expected'):
    list(unique_ids.checked(shards[0], inputs))
  assert 'at all' not in str(unique_ids.repeated('z', shards, inputs))
