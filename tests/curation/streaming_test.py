"""Filters in grain pipelines drop what they should, wherever they stand and in whatever process."""

import pickle

import grain
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation.streaming import Kept, Passes, TextLength
from jaxmm.data.sources import ArrayRecordSource, write_array_records
from tests.references.kept_records import write_list

RECORDS = [{'id': f'd{i}', 'text': 'x' * (i % 7), 'n': i} for i in range(50)]
VERDICTS = {r['id']: r['n'] % 3 != 0 for r in RECORDS}


@pytest.fixture
def keep(tmp_path):
  return write_list(tmp_path / 'keep.parquet', VERDICTS)


def _numbers(dataset):
  return [record['n'] for record in dataset]


def test_a_list_in_a_pipeline_of_either_kind(keep):
  expected = [r['n'] for r in RECORDS if VERDICTS[r['id']]]
  dataset = grain.MapDataset.source(RECORDS)
  assert _numbers(dataset.filter(Kept(keep)).to_iter_dataset()) == expected
  assert _numbers(dataset.to_iter_dataset().filter(Kept(keep))) == expected
  by_function = Kept(str(keep), id=lambda record: f'd{record["n"]}')
  assert _numbers(dataset.to_iter_dataset().filter(by_function)) == expected
  assert dataset.filter(Kept(keep))[3] is None  # a MapDataset keeps the place


def test_filters_follow_one_another_over_epochs_and_resume(keep):
  def stream():
    dataset = grain.MapDataset.source(RECORDS).shuffle(seed=1).repeat(2).to_iter_dataset()
    return iter(dataset.filter(Kept(keep)).filter(Passes(TextLength(2, 5))).batch(4))

  batches = list(stream())
  found = [n for batch in batches for n in batch['n'].tolist()]
  expected = [r['n'] for r in RECORDS if VERDICTS[r['id']] and 2 <= len(r['text']) <= 5]
  assert len(expected) > 10
  assert sorted(found) == sorted(expected * 2)
  first = stream()
  for _ in range(3):
    next(first)
  again = stream()
  again.set_state(first.get_state())
  assert [b['n'].tolist() for b in again] == [b['n'].tolist() for b in batches[3:]]


def test_filters_travel_to_other_processes(keep):
  filters = pickle.loads(pickle.dumps((used := Kept(keep), Passes(TextLength(2)))))
  assert used.filter(RECORDS[1]) and not used.filter(RECORDS[3])
  after_use = pickle.loads(pickle.dumps(used))
  assert after_use.__dict__['_keeps'] is None and after_use.filter(RECORDS[1])
  dataset = grain.MapDataset.source(RECORDS).to_iter_dataset()
  for one in filters:
    dataset = dataset.filter(one)
  assert _numbers(dataset) == [r['n'] for r in RECORDS if VERDICTS[r['id']] and len(r['text']) >= 2]


def test_records_of_our_sources_go_by_their_ids(tmp_path):
  pictures = [{'image': bytes([i]), 'label': i} for i in range(9)]
  write_array_records(tmp_path / 'x.array_record', pictures)
  source = ArrayRecordSource(str(tmp_path))
  keep = write_list(tmp_path / 'k', {f'x.array_record:{i}': i in (2, 5) for i in range(9)})
  dataset = grain.MapDataset.range(len(source)).map(lambda i: {'id': source.id(i), **source[i]})
  assert [r['label'] for r in dataset.to_iter_dataset().filter(Kept(keep))] == [2, 5]


def test_a_list_of_other_data_and_records_without_ids_are_refused(keep, tmp_path):
  with pytest.raises(ConfigError, match="belongs to other data.* the id 'd50'"):
    Kept(keep).filter({'id': 'd50'})
  with pytest.raises(ConfigError, match=r"no field 'key'; it has \['id', 'n', 'text'\]"):
    Kept(keep, id='key').filter(RECORDS[0])
  with pytest.raises(ConfigError, match='no keep-list there'):
    Kept(tmp_path / 'absent').filter(RECORDS[0])


def _is_even(record):
  return record['n'] % 2 == 0


def test_rules_say_why_or_only_no():
  length = Passes(TextLength(2, 3))
  reasons = ['empty', 'too_short', '', '', 'too_long']
  assert [length.reason(r) for r in RECORDS[:5]] == reasons
  assert [length.filter(r) for r in RECORDS[:5]] == [not why for why in reasons]
  even = Passes(_is_even, field=None)
  assert [even.reason(r) for r in RECORDS[:2]] == ['', '_is_even']
  assert TextLength(0)('') == '' and TextLength(0, 0)('x') == 'too_long'
  with pytest.raises(TypeError, match='a rule says True, False or a reason'):
    Passes(lambda text: None).filter(RECORDS[0])
  with pytest.raises(ConfigError, match="no field 'text'; it has bytes"):
    length.filter(b'x')
  with pytest.raises(ConfigError, match='fewest is 3 and most 2'):
    TextLength(3, 2)
