"""One row an example, whatever the order; nothing is lost by combining; other data shows."""

import dataclasses
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list
from jaxmm.data.kept import digest

IDS = ['b', 'a', 'd', 'c']


def of(keep, ids=IDS, method='rule', **columns):
  keep = np.asarray(keep, bool)
  digests = [digest(i, i.encode()) for i in ids]
  reasons = ['' if k else f'{method}_says_no' for k in keep]
  return keep_list.make(
    ids, digests, keep, reason_N=reasons, method=method, parameters={'p': 1}, **columns
  )


def kept(keep):
  table = keep.table
  return table.filter(table['keep'])['id'].to_pylist()


def test_rows_are_sorted_by_id_and_keep_what_belongs_to_them():
  keep = of([1, 0, 1, 0], score_N=np.array([2.0, np.nan, 4.0, 3.0]), columns={'x': [2, 1, 4, 3]})
  assert keep.table['id'].to_pylist() == ['a', 'b', 'c', 'd']
  assert keep.table['keep'].to_pylist() == [False, True, False, True]
  assert keep.table['score'].to_pylist() == [None, 2.0, 3.0, 4.0]
  assert keep.table['x'].to_pylist() == [1, 2, 3, 4]
  assert keep.num_kept == 2 and keep.reasons() == {'rule_says_no': 2}


@settings(deadline=None)
@given(st.permutations(range(4)), st.lists(st.booleans(), min_size=4, max_size=4))
def test_the_order_of_the_examples_does_not_show(order, keep):
  one = of(keep)
  other = of([keep[i] for i in order], [IDS[i] for i in order])
  assert one.table == other.table and one.fingerprint == other.fingerprint


def test_other_examples_have_another_fingerprint():
  assert of([1] * 4).fingerprint == of([0] * 4).fingerprint
  prints = {of([1] * len(ids), ids).fingerprint for ids in (IDS, IDS[:3], IDS[:3] + ['e'])}
  assert len(prints) == 3
  # Content counts, too, and an example more than once; the same on every machine.
  assert digest('a', b'x') == 2691810450404570373
  assert digest('a', b'x') != digest('a', b'y')
  assert keep_list.fingerprint([1, 1, 2]) != keep_list.fingerprint([1, 2])


def test_an_id_that_comes_twice_is_named():
  with pytest.raises(ConfigError, match="2 ids come more than once, the first 'a'"):
    of([1] * 5, ['a', 'c', 'b', 'c', 'a'])


def test_a_reason_belongs_to_what_is_dropped():
  with pytest.raises(ConfigError, match="'b' is dropped without a reason"):
    keep_list.make(['a', 'b'], [1, 2], [True, False], reason_N=['', ''], method='m', parameters={})


def test_and_or_then():
  first, second = of([1, 1, 0, 0]), of([1, 0, 1, 0], method='other')
  both, either = keep_list.both(first, second), keep_list.either(first, second)
  assert kept(both) == ['b'] and kept(either) == ['a', 'b', 'd']
  reason = dict(zip(*(both.table[c].to_pylist() for c in ('id', 'reason'))))
  assert reason == {'a': 'other_says_no', 'b': '', 'c': 'rule_says_no', 'd': 'rule_says_no'}
  later = of([0, 1], ['a', 'b'], method='later')
  result = keep_list.then(first, later)
  assert kept(result) == ['b'] and len(result) == 4
  assert result.reasons() == {'rule_says_no': 2, 'later_says_no': 1}
  assert (
    result.fingerprint == first.fingerprint and result.kept_fingerprint == later.kept_fingerprint
  )
  assert result.method == 'rule then later'


def test_columns_of_both_methods_are_kept_apart():
  first = of([1, 1, 0, 1], columns={'cluster': [1, 2, 3, 4]})
  second = of([1, 1], ['a', 'b'], method='other', columns={'cluster': [7, 8]})
  with pytest.raises(ConfigError, match='not of the 3 that rule keeps'):
    keep_list.then(first, second)
  second = of([0, 1, 1], ['a', 'b', 'c'], method='rule', columns={'cluster': [7, 8, 9]})
  joined = keep_list.then(first, second)
  assert joined.method == 'rule then rule_2' and joined.header()['parts'] == ['rule', 'rule_2']
  result = joined.table
  assert result['rule.cluster'].to_pylist() == [2, 1, 4, 3]
  assert result['rule_2.cluster'].to_pylist() == [7, 8, 9, None]
  assert result['rule_2.reason'].to_pylist() == ['rule_says_no', '', '', None]


def test_scores_of_different_methods_stay_apart():
  first = of([1, 1, 0, 1], score_N=np.array([1.0, 2, 3, 4]))
  joined = keep_list.both(first, of([1, 0, 1, 1], method='other', score_N=np.full(4, 900.0)))
  assert joined.table['score'].null_count == 4
  assert joined.table['rule.score'].to_pylist() == [2, 1, 4, 3]
  assert joined.table['other.score'].to_pylist() == [900.0] * 4


def test_lists_joined_again_say_in_which_order():
  a, b = of([1, 1, 0, 0], method='a'), of([1, 0, 1, 0], method='b')
  either = keep_list.either(keep_list.both(a, b), keep_list.both(a, b))
  assert either.method == '(a and b) or (a_2 and b_2)'
  assert either.header()['parts'] == ['a', 'b', 'a_2', 'b_2']
  assert keep_list.both(keep_list.both(a, b), a).method == 'a and b and a_2'
  again = keep_list.both(either, b)
  assert again.method == '((a and b) or (a_2 and b_2)) and b_3'
  assert {f'{n}.reason' for n in ('a', 'b', 'a_2', 'b_2', 'b_3')} < set(again.table.column_names)


def test_what_does_not_join_names_the_word_that_would():
  first, all_of_it = of([1, 1, 0, 1]), of([1, 0, 1, 0], method='other')
  later = of([0, 1, 1], ['a', 'b', 'c'], method='later')
  with pytest.raises(ConfigError, match="join them with 'and'.*--after FIRST.*export FIRST"):
    keep_list.then(first, all_of_it)
  with pytest.raises(ConfigError, match="join them with 'then', not 'and'"):
    keep_list.both(first, later)


def test_lists_of_different_corpora_do_not_combine():
  with pytest.raises(ConfigError, match='different corpora'):
    keep_list.both(of([1] * 4), of([1] * 3, IDS[:3]))


def test_lists_of_other_fields_of_the_same_records_say_so():
  def of_other_fields(keep, ids):
    table = of(keep, ids).table
    return keep_list.make(
      table['id'], table['digest'].to_numpy() + np.uint64(1), np.ones(len(ids), bool),
      reason_N=[''] * len(ids), method='other', parameters={},
    )  # fmt: skip

  first = of([1, 1, 0, 1])
  with pytest.raises(ConfigError, match='ids are the same.*same --text-field and --image-field'):
    keep_list.either(first, of_other_fields([1] * 4, IDS))
  with pytest.raises(ConfigError, match='not of the 3 .*ids are the same, but digests are of the'):
    keep_list.then(first, of_other_fields([1] * 3, ['a', 'b', 'c']))
  with pytest.raises(ConfigError, match='make it from those'):
    keep_list.then(first, of_other_fields([1] * 3, ['a', 'b', 'd']))


@pytest.mark.parametrize('rows_per_file', [100, 3])
def test_what_is_written_is_read(tmp_path, rows_per_file):
  keep = of([1, 0, 0, 1], columns={'nearest': ['x', None, 'y', None]})
  path = tmp_path / 'deep' / 'keep.parquet'
  keep_list.write(keep, path, rows_per_file)
  again = keep_list.read(path)
  assert again.table.equals(keep.table) and again.header() == keep.header()
  assert path.is_dir() == (rows_per_file == 3)
  assert not list(path.parent.glob('*.partial'))


def test_a_list_in_parts_replaces_and_is_replaced(tmp_path):
  path = tmp_path / 'keep.parquet'
  first, second = of([1, 0, 0, 1]), of([0, 1, 1, 0])
  (tmp_path / 'keep.parquet.partial').mkdir()
  (tmp_path / 'keep.parquet.partial' / 'part-00009.parquet').write_bytes(b'of a killed process')
  for keep, rows in ((first, 1), (second, 3), (first, 9), (second, 2)):
    keep_list.write(keep, path, rows)
    assert keep_list.read(path).table.equals(keep.table)
  assert os.listdir(tmp_path) == ['keep.parquet']
  (path / 'notes.txt').write_text('mine')
  with pytest.raises(ConfigError, match='is a folder; name a file'):
    keep_list.write(first, path)
  assert (path / 'notes.txt').exists()


def test_what_is_no_keep_list_is_refused(tmp_path):
  path = tmp_path / 'keep.parquet'
  with pytest.raises(ConfigError, match='no keep-list there'):
    keep_list.read(path)
  path.write_bytes(b'PAR1 nonsense')
  with pytest.raises(ConfigError, match='cannot be read as Parquet'):
    keep_list.read(path)
  pq.write_table(pa.table({'id': ['a']}), path)
  with pytest.raises(ConfigError, match='without the header'):
    keep_list.read(path)


def test_a_list_whose_rows_were_changed_is_refused(tmp_path):
  path = tmp_path / 'keep.parquet'
  keep = of([1, 0, 0, 1])
  keep_list.write(keep, path)
  table = pq.read_table(path)
  pq.write_table(table.slice(1), path)
  with pytest.raises(ConfigError, match='not those that its header'):
    keep_list.read(path)
  header = json.dumps(dict(keep.header(), format=99)).encode()
  pq.write_table(table.replace_schema_metadata({b'jaxmm': header}), path)
  with pytest.raises(ConfigError, match='format 99'):
    keep_list.read(path)


def test_columns_must_be_there_and_of_their_kind():
  keep = of([1] * 4)
  with pytest.raises(ConfigError, match="a keep-list has a column 'reason'"):
    dataclasses.replace(keep, table=keep.table.drop_columns('reason'))
  with pytest.raises(ConfigError, match="column 'digest' of a keep-list is uint64, found int64"):
    table = keep.table.set_column(1, 'digest', pa.array([1, 2, 3, 4]))
    dataclasses.replace(keep, table=table)
