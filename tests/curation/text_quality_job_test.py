"""A corpus in any number of files, orders and processes gives one list; bad records are rows."""

import json
from fractions import Fraction
from pydoc_data.topics import topics

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import runners, text_quality_job
from jaxmm.curation.text_parser import Token
from jaxmm.curation.text_quality import QualityConfig, Weights
from jaxmm.data.corpus import CorpusConfig
from tests.references import text_quality as reference

CONFIG = QualityConfig()
WEIGHTS = Weights(dict(zip(CONFIG.rules, [0.1, 0.2, 0.0, 0.3, 0.4, 0.25, 0.35, 0.5, 0.05, 0.15])))


def write(folder, texts, files=1, order=None):
  folder.mkdir(parents=True, exist_ok=True)
  order = range(len(texts)) if order is None else order
  lines = [json.dumps({'id': f'doc{i:03}', 'text': texts[i]}) for i in order]
  for f in range(files):
    (folder / f'{f}.jsonl').write_text('\n'.join(lines[f::files]) + '\n')
  return CorpusConfig((str(folder),), id_field='id')


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(0)
  words = ['the', 'of', 'and', 'Cat', 'sat', 'é', '12', '{', 'end.\n', '\n', "it's", 'ARE', '”']
  out = [' '.join(rng.choice(words, rng.integers(1, 40))) for _ in range(60)]
  return [*out, '', ' \n\t', out[0], out[1], '\ufffd']


def run(inputs, work, **kwargs):
  kwargs = {'keep': 0.6, 'echo': None} | kwargs
  return text_quality_job.run(inputs, CONFIG, WEIGHTS, work, **kwargs)


def test_scores_rates_and_reasons_are_those_of_the_slow_way(texts, tmp_path, monkeypatch):
  monkeypatch.setattr(text_quality_job, '_TEXTS', 7)
  keep = run(write(tmp_path / 'in', texts), tmp_path / 'w')
  rows = keep.table.to_pylist()
  assert [row['id'] for row in rows] == [f'doc{i:03}' for i in range(len(texts))]
  scores = {}
  for text, row in zip(texts, rows):
    expected = reference.document_score(text, WEIGHTS.of)
    if expected is None:
      assert (row['keep'], row['reason'], row['score']) == (False, 'empty', None)
      assert row['no_all_caps'] is None and row['lines'] == row['tokens'] == 0
      continue
    assert row['score'] == pytest.approx(float(expected), rel=1e-12)
    assert row['reason'] == ('' if row['keep'] else 'low_quality')
    scores[row['id']] = row['score']
    lines = reference.lines(text)
    weight = [len(reference.tokens(line)) for line in lines]
    assert row['lines'] == len(lines) and row['tokens'] == sum(weight)
    for rule in CONFIG.rules:
      passed = sum(w for w, line in zip(weight, lines) if reference.rules(line)[rule])
      assert row[rule] == passed / sum(weight)
  kept = {row['id'] for row in rows if row['keep']}
  assert kept == reference.kept(scores, Fraction(6, 10)) and len(kept) == 38
  assert keep.parameters['weights'] == WEIGHTS.of and keep.parameters['keep'] == 0.6


def test_of_equal_scores_the_least_ids_are_kept(tmp_path):
  texts = ['The end of the day and that.'] * 6 + ['x']
  keep = run(write(tmp_path / 'in', texts, order=[4, 2, 6, 0, 5, 1, 3]), tmp_path / 'w', keep=0.5)
  assert keep.table['keep'].to_pylist() == [True] * 4 + [False] * 3


def test_files_order_and_processes_do_not_show(texts, tmp_path):
  whole = run(write(tmp_path / 'a', texts), tmp_path / 'wa')
  order = np.random.default_rng(1).permutation(len(texts)).tolist()
  parts = write(tmp_path / 'b', texts, files=5, order=order)
  other = run(parts, tmp_path / 'wb', runner=runners.Local(2))
  assert other.table.equals(whole.table) and other.header() == whole.header()


def test_other_weights_and_shares_read_no_file_again(texts, tmp_path):
  inputs, said = write(tmp_path / 'in', texts, files=3), []
  run(inputs, tmp_path / 'w', echo=said.append)
  times = {f: f.stat().st_mtime_ns for f in (tmp_path / 'w').iterdir()}
  uniform = text_quality_job.run(
    inputs, CONFIG, Weights.uniform(), tmp_path / 'w', keep=0.2, echo=said.append
  )
  assert {f: f.stat().st_mtime_ns for f in (tmp_path / 'w').iterdir()} == times
  assert 'quality: 3 of 3 files done before' in said and uniform.num_kept == 13
  fresh = text_quality_job.run(
    inputs, CONFIG, Weights.uniform(), tmp_path / 'new', keep=0.2, echo=None
  )
  assert fresh.table.equals(uniform.table)
  text_quality_job.run(
    inputs, QualityConfig(unit='sentences'), WEIGHTS, tmp_path / 'w', keep=0.2, echo=None
  )
  assert len(list((tmp_path / 'w').glob('quality-*'))) == 6


def test_stopped_on_the_way_it_goes_on(texts, tmp_path, monkeypatch):
  inputs = write(tmp_path / 'in', texts, files=4)
  judge = text_quality_job.counted

  def failing(shard, settings, extra):
    if shard.name == '2.jsonl':
      raise RuntimeError('killed here')
    return judge(shard, settings, extra)

  monkeypatch.setattr(text_quality_job, 'counted', failing)
  with pytest.raises(RuntimeError, match='killed here'):
    run(inputs, tmp_path / 'w')
  monkeypatch.setattr(text_quality_job, 'counted', judge)
  said = []
  keep = run(inputs, tmp_path / 'w', echo=said.append)
  assert 'quality: 2 of 4 files done before' in said
  assert keep.table.equals(run(inputs, tmp_path / 'other').table)


def test_what_cannot_be_read_is_a_row_with_its_reason(tmp_path):
  path = tmp_path / 'in.jsonl'
  path.write_bytes(
    b'{"id": "a", "text": "The end of it."}\n{"id": "b"}\n{broken\n{"id": "c", "text": ""}\n'
    b'{"id": "d", "text": "\xff"}\n{"id": "e", "text": "\\ud800 x"}\n'
  )
  keep = run(CorpusConfig((str(path),), id_field='id'), tmp_path / 'w', keep=1.0)
  rows = {row['id']: row for row in keep.table.to_pylist()}
  assert {i: (r['keep'], r['reason']) for i, r in rows.items()} == {
    'a': (True, ''), 'b': (False, 'unreadable'), 'in.jsonl:3': (False, 'unreadable'),
    'c': (False, 'empty'), 'in.jsonl:5': (False, 'unreadable'), 'e': (False, 'unreadable'),
  }  # fmt: skip
  assert rows['b']['error'].startswith("no text in field 'text'") and rows['a']['error'] is None


def test_a_corpus_of_nothing_that_can_be_scored(tmp_path):
  keep = run(write(tmp_path / 'in', ['', ' ']), tmp_path / 'w')
  assert keep.reasons() == {'empty': 2} and keep.num_kept == 0
  (tmp_path / 'none').mkdir()
  (tmp_path / 'none' / 'a.jsonl').write_text('')
  with pytest.raises(ConfigError, match='the inputs hold no example: 1 files'):
    run(CorpusConfig((str(tmp_path / 'none'),)), tmp_path / 'w')


def test_an_id_that_comes_twice_is_named(tmp_path):
  path = tmp_path / 'in.jsonl'
  path.write_text('{"id": "a", "text": "x"}\n' * 2)
  with pytest.raises(ConfigError, match="id 'a' comes more than once .*; expected different ones"):
    run(CorpusConfig((str(path),), id_field='id'), tmp_path / 'w')


def two_nouns():
  return lambda lines: [[Token('x', 'NOUN', 'dobj', 0)] * 2 for _ in lines]


def test_a_parser_is_named(tmp_path):
  inputs = write(tmp_path / 'in', ['one two', 'three'])
  config = QualityConfig(('has_noun', 'has_object', 'text_complexity_c1'), tokens='parser')
  common = dict(keep=1.0, echo=None)
  weights = Weights.uniform(config.rules)
  with pytest.raises(ConfigError, match='has_noun, has_object, text_complexity_c1'):
    text_quality_job.run(inputs, config, weights, tmp_path / 'w', **common)
  assert not (tmp_path / 'w').exists()
  name = f'{__name__}:two_nouns'
  keep = text_quality_job.run(inputs, config, weights, tmp_path / 'w', parser=name, **common)
  # The second token's head is the first, which is an object.
  assert keep.table['score'].to_pylist() == [1, 1] and keep.table['tokens'].to_pylist() == [2, 2]
  assert keep.parameters['parser'] == name


@pytest.mark.parametrize(
  'weights, keep, message',
  [
    (Weights({'no_all_caps': 1.0}), 0.5, 'the weights are of no_all_caps, the pass rates of'),
    (WEIGHTS, 60, 'keep is 60, expected a share'),
    (
      Weights(WEIGHTS.of, QualityConfig(unit='sentences').readings()),
      0.5,
      "fitted with unit='sentences', but unit is 'lines'; set it",
    ),
  ],
)
def test_what_does_not_agree_is_refused_before_anything_is_read(tmp_path, weights, keep, message):
  with pytest.raises(ConfigError, match=message):
    text_quality_job.run(
      CorpusConfig(('no such file',)), CONFIG, weights, tmp_path / 'w', keep=keep, echo=None
    )


def test_real_texts_are_judged_as_by_the_slow_way(tmp_path):
  texts = dict(sorted(topics.items()))  # Python's own manual
  path = tmp_path / 'topics.jsonl'
  path.write_text(''.join(json.dumps({'id': i, 'text': t}) + '\n' for i, t in texts.items()))
  keep = run(CorpusConfig((str(path),), id_field='id'), tmp_path / 'w', keep=0.8)
  rows = keep.table.to_pylist()
  assert len(rows) == len(texts) > 50 and keep.num_kept == round(0.8 * len(texts))
  for row in rows[::5]:
    expected = reference.document_score(texts[row['id']], WEIGHTS.of)
    assert row['score'] == pytest.approx(float(expected), rel=1e-12)
