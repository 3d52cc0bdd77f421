"""The longest files go, by exactly the share that was asked for, in any order of the input."""

import json
import pickle

import grain
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list, long_files, runners, token_counts
from jaxmm.curation.long_files import LongFilesConfig, WithinLength
from jaxmm.data.corpus import CorpusConfig
from tests.references import long_files as reference

SHARES = st.sampled_from(['0', '0.05', '0.07', '0.1', '0.25', '0.3', '0.5', '0.7', '0.99'])
FILES = st.dictionaries(st.text(max_size=3).filter(lambda s: s.isascii()), st.integers(1, 30),
                        min_size=1, max_size=25)  # fmt: skip


def dropped(tokens, config):
  is_long_N = long_files.is_long(list(tokens), np.array(list(tokens.values())), config)
  return {name for name, is_long in zip(tokens, is_long_N) if is_long}


@settings(max_examples=80, deadline=None)
@given(tokens=FILES, share=SHARES, seed=st.integers(0, 9))
def test_shares_are_those_of_the_reference_in_any_order(tokens, share, seed):
  order = np.random.default_rng(seed).permutation(len(tokens))
  shuffled = {list(tokens)[i]: tokens[list(tokens)[i]] for i in order}
  by_tokens = dropped(shuffled, LongFilesConfig(drop_token_share=float(share)))
  assert by_tokens == reference.dropped_by_tokens(tokens, share)
  by_files = dropped(shuffled, LongFilesConfig(drop_file_share=float(share)))
  assert by_files == reference.dropped_by_files(tokens, share)


@settings(max_examples=40, deadline=None)
@given(tokens=FILES, limit=st.integers(1, 31))
def test_the_threshold_is_the_last_length_that_is_kept(tokens, limit):
  assert dropped(tokens, LongFilesConfig(max_tokens=limit)) == {
    name for name, number in tokens.items() if number > limit
  }


def test_a_share_is_taken_as_it_is_written():
  # 0.07 * 100 is 7.000000000000001 in binary, and 8 files would be dropped.
  tokens = {f'{i:03}': 1 for i in range(100)}
  assert 0.07 * 100 > 7
  for name in ('drop_token_share', 'drop_file_share'):
    assert dropped(tokens, LongFilesConfig(**{name: 0.07})) == {f'{i:03}' for i in range(93, 100)}


@pytest.mark.parametrize(
  'given_settings, message',
  [
    ({}, 'exactly one of drop_token_share, drop_file_share, max_tokens .* got none'),
    (dict(drop_token_share=0.1, max_tokens=5), 'exactly one of'),
    (dict(drop_token_share=1.0), r'drop_token_share is 1.0, expected in \[0, 1\)'),
    (dict(drop_file_share=-0.1), 'drop_file_share is -0.1'),
    (dict(drop_file_share=float('nan')), 'drop_file_share is nan'),
    (dict(max_tokens=0), 'max_tokens is 0, expected a whole number of 1 or more'),
    (dict(max_tokens=1.5), 'max_tokens is 1.5'),
  ],
)
def test_settings_that_cannot_be_used_are_named(given_settings, message):
  with pytest.raises(ConfigError, match=message):
    LongFilesConfig(**given_settings)


def write(folder, lines, files=1):
  folder.mkdir()
  for f in range(files):
    (folder / f'{f}.jsonl').write_text('\n'.join(lines[f::files]) + '\n')
  return CorpusConfig((str(folder),), id_field='id')


LINES = [json.dumps({'id': f'{i:02}', 'text': 'word ' * (i % 7)}) for i in range(20)]


def test_files_order_and_processes_do_not_show(tmp_path):
  config = LongFilesConfig(drop_token_share=0.3)
  common = dict(counter='words', echo=None)
  one = long_files.run(write(tmp_path / 'a', LINES), config, tmp_path / 'wa', **common)
  parts = write(tmp_path / 'b', LINES[::-1], files=3)
  two = long_files.run(parts, config, tmp_path / 'wb', runner=runners.Local(2), **common)
  assert one.table.equals(two.table) and one.header() == two.header()
  rows = {row['id']: row for row in one.table.to_pylist()}
  tokens = {row['id']: row['tokens'] for row in rows.values()}
  assert tokens == {f'{i:02}': i % 7 for i in range(20)}
  has = {name: number for name, number in tokens.items() if number}
  expected = reference.dropped_by_tokens(has, '0.3')
  assert expected and {n for n, r in rows.items() if r['reason'] == 'long'} == expected
  assert {n for n, r in rows.items() if r['reason'] == 'empty'} == {'00', '07', '14'}
  assert all(row['score'] == row['tokens'] for row in rows.values())
  assert one.parameters['counter'] == 'words' and one.parameters['drop_token_share'] == 0.3


def test_another_share_counts_nothing_again_and_another_counter_does(tmp_path):
  inputs, said = write(tmp_path / 'in', LINES), []
  for config, counter in (
    (LongFilesConfig(drop_token_share=0.3), 'words'),
    (LongFilesConfig(max_tokens=4), 'words'),
    (LongFilesConfig(max_tokens=4), 'bytes'),
  ):
    long_files.run(inputs, config, tmp_path / 'w', counter=counter, echo=said.append)
  assert [line for line in said if 'before' in line] == ['tokens: 1 of 1 files done before']


def test_what_cannot_be_read_is_a_row_and_no_part_of_a_share(tmp_path):
  lines = ['{"id": "a", "text": "one two"}', '{"id": "b"}', '{broken', '{"id": "c", "text": ""}',
           '{"id": "d", "text": "\\ud800 x"}']  # fmt: skip
  config = LongFilesConfig(drop_file_share=0.5)
  keep = long_files.run(
    write(tmp_path / 'in', lines), config, tmp_path / 'w', counter='characters', echo=None
  )
  rows = {
    r['id']: (r['keep'], r['reason'], r['tokens'], r['score']) for r in keep.table.to_pylist()
  }
  assert rows == {
    'a': (False, 'long', 7, 7.0),
    'b': (False, 'unreadable', None, None),
    '0.jsonl:3': (False, 'unreadable', None, None),
    'c': (False, 'empty', 0, 0.0),
    'd': (False, 'unreadable', None, None),
  }
  assert keep.table['error'].null_count == 2


def test_a_corpus_of_nothing_is_refused(tmp_path):
  path = tmp_path / 'in.jsonl'
  path.write_text('\n')
  with pytest.raises(ConfigError, match='the inputs hold no example: 1 files'):
    long_files.run(
      CorpusConfig((str(path),)), LongFilesConfig(drop_token_share=0.5), tmp_path / 'w', echo=None
    )
  mass = long_files.token_mass(np.zeros(0))
  assert np.isnan(mass.mean) and mass.lines() == ['no file with any token']


def test_counts_that_the_user_brings_are_judged_the_same():
  table = pa.table(
    {
      'id': ['b', 'a', 'c'],
      'digest': pa.array([1, 2, 3], pa.uint64()),
      'error': ['', '', 'gone'],
      'tokens': [5, 5, None],
    }
  )
  keep = long_files.judged(table, LongFilesConfig(drop_file_share=0.5))
  assert keep.table['id'].to_pylist() == ['a', 'b', 'c']
  assert keep.table['reason'].to_pylist() == ['', 'long', keep_list.UNREADABLE]


def test_token_mass_by_hand():
  mass = long_files.token_mass(np.array([0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 10]))
  assert (mass.files, mass.tokens, mass.mean, mass.median) == (10, 20, 2.0, 1.0)
  # One, two and five percent of ten files are one file.
  assert mass.share_of_longest == {0.01: 0.5, 0.02: 0.5, 0.05: 0.5, 0.1: 0.5}
  assert long_files.token_mass(np.array([1, 2, 10]), [0.5]).share_of_longest == {0.5: 12 / 13}
  assert mass.lines()[0] == '10 files, 20 tokens; mean 2.0, median 1.0'


@pytest.mark.parametrize('counter', ['words', 'tests.curation.long_files_test:vowels', len])
def test_a_grain_pipeline_keeps_what_the_threshold_keeps(counter):
  texts = ['a e', 'bcd efg', 'a ' * 40, '', 'aeiou']
  count = token_counts.counter(counter) if isinstance(counter, str) else counter
  is_short = pickle.loads(pickle.dumps(WithinLength(4, counter)))
  records = grain.MapDataset.source([{'text': t} for t in texts]).filter(is_short)
  kept = [record['text'] for record in records.to_iter_dataset()]
  config = LongFilesConfig(max_tokens=4)
  is_long_N = long_files.is_long(texts, np.array([count(t) for t in texts]), config)
  assert kept == [t for t, is_long in zip(texts, is_long_N) if not is_long]
  assert 0 < len(kept) < len(texts)


def test_the_predicate_counts_ids_and_names_a_missing_field():
  assert WithinLength(2, len, 'ids')({'ids': np.array([7, 8])})
  assert not WithinLength(2, len, '')('abc')
  with pytest.raises(ConfigError, match="no field 'text' in a record; it has .'ids'."):
    WithinLength(2)({'ids': [1]})
  with pytest.raises(ConfigError, match='max_tokens is 0'):
    WithinLength(0)
  with pytest.raises(ConfigError, match="counter is 'bits'"):
    WithinLength(2, 'bits')


def vowels(text: str) -> int:
  return sum(c in 'aeiou' for c in text)
