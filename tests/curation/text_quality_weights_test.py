"""Weights from likelihoods beside the slow way, and an LM as the judge of lines."""

import json
import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import text_quality, text_quality_weights
from jaxmm.curation.text_quality import QualityConfig, Weights
from jaxmm.curation.text_quality_weights import LineScorer
from jaxmm.data.corpus import CorpusConfig
from jaxmm.models import lm
from jaxmm.tokenizers.text import ByteTokenizer
from tests.references import text_quality as reference

RULES = text_quality.default_rules()


def test_weights_are_those_of_the_slow_way():
  rng = np.random.default_rng(0)
  passes_LR = rng.random((200, 4)) < [0.9, 0.5, 0.2, 0.6]
  count_L = rng.integers(0, 30, 200)  # lines without tokens do not count
  nll_L = count_L * (3 - passes_LR @ [0.2, 0.5, -0.4, 0.0] + rng.normal(0, 0.1, 200))
  found = text_quality_weights.fit_weights(passes_LR, nll_L, count_L, RULES[:4])
  has_L = count_L > 0
  for r in range(4):
    of_all, of_rule, weight = reference.weight(passes_LR[:, r], nll_L.tolist(), count_L.tolist())
    assert found.perplexity_all == pytest.approx(of_all, rel=1e-12)
    assert found.perplexity_R[r] == pytest.approx(of_rule, rel=1e-12)
    assert found.weight_R[r] == pytest.approx(weight, rel=1e-9, abs=1e-12)
    assert found.line_rate_R[r] == passes_LR[has_L, r].mean()
    assert found.token_rate_R[r] == pytest.approx(count_L[passes_LR[:, r]].sum() / count_L.sum())
  assert found.weight_R[1] > found.weight_R[0] > 0 == found.weight_R[2]
  assert found.num_lines == has_L.sum() and found.num_tokens == count_L.sum()


def test_worked_by_hand():
  # 10 tokens at ln 8 and 10 at ln 2: PPL_all 4, of the second line 2: a weight of a half.
  passes_LR = [[False, True, False], [True, True, False]]
  found = text_quality_weights.fit_weights(
    passes_LR, [10 * math.log(8), 10 * math.log(2)], [10, 10], RULES[:3]
  )
  np.testing.assert_allclose(found.perplexity_R, [2, 4, np.nan])
  np.testing.assert_allclose(found.weight_R, [0.5, 0, 0], atol=1e-15)
  assert '| has_first_letter_caps | 2 | 0.5000 | 50.0% |' in found.table()


@pytest.mark.parametrize(
  'nll, count, message',
  [
    ([1.0, np.nan], [1, 1], 'line 1 has nll nan over 1.0 tokens'),
    ([1.0, 1.0], [1, -1], 'line 1 has nll 1.0 over -1.0 tokens'),
    ([1.0], [1], r'passes \[2, 1\], nll \[1\] and count \[1\] of 1 rules'),
    ([0.0, 0.0], [0, 0], 'the sample has no tokens'),
    ([1.0, 9.0], [1, 1], r'all weights are 0 \(no_all_caps\)'),
  ],
)
def test_likelihoods_that_cannot_be(nll, count, message):
  with pytest.raises(ConfigError, match=message):
    text_quality_weights.fit_weights([[False], [True]], nll, count, ('no_all_caps',))


def test_weights_come_back_from_a_file(tmp_path):
  found = text_quality_weights.fit_weights(
    [[False, False], [True, False]], [9, 1], [1, 1], RULES[:2]
  )
  found.save(tmp_path / 'new' / 'w.json')
  assert text_quality.read_weights(tmp_path / 'new' / 'w.json') == found.weights
  assert json.loads((tmp_path / 'new' / 'w.json').read_text())['perplexity'][RULES[1]] is None
  (tmp_path / 'given.json').write_text('{"no_all_caps": 1, "has_noun": 0.5}')
  given = text_quality.read_weights(tmp_path / 'given.json')
  assert given == Weights({'no_all_caps': 1, 'has_noun': 0.5})
  for text, message in (('{', 'not JSON'), ('[1]', 'a JSON list'), ('{"x": 1}', 'is no rule')):
    (tmp_path / 'bad.json').write_text(text)
    with pytest.raises(ConfigError, match=message):
      text_quality.read_weights(tmp_path / 'bad.json')
  with pytest.raises(ConfigError, match='no such file'):
    text_quality.read_weights(tmp_path / 'none.json')


def by_byte(batch):
  """Nats of an id: its value; told from what is given and from padding by the weights."""
  weight_BL = np.asarray(batch['weight_BL']) * np.asarray(batch['valid_B'])[:, None]
  weight_BL[:, 0] = 0
  return (batch['ids_BL'] * weight_BL).sum(axis=1), weight_BL.sum(axis=1)


@pytest.mark.parametrize('length, batch', [(256, 64), (20, 3), (2, 1)])
def test_every_token_of_every_line_is_scored_once(length, batch):
  lines = ['abc', 'é' * 70, 'x', '\ud800?', 'y' * 19, 'z' * 300]
  judge = LineScorer(by_byte, ByteTokenizer().encode, 257, 256, length, batch)
  nll_L, count_L = judge.likelihoods(lines)
  ids = [ByteTokenizer().encode(line) for line in lines]
  assert nll_L.tolist() == [sum(i) for i in ids] and count_L.tolist() == [len(i) for i in ids]
  assert [a.tolist() for a in judge.likelihoods([])] == [[], []]


def test_a_judge_needs_room_for_a_token():
  with pytest.raises(ConfigError, match='length is 1 and batch 64, expected at least 2'):
    LineScorer(by_byte, ByteTokenizer().encode, 257, 256, 1)


def test_an_lm_of_the_library_judges_each_line_by_itself(tmp_path):
  config = lm.config_of({'size': 'micro', 'length': 32})
  init = lambda: nn.unbox(lm.Lm(config).init(jax.random.key(0), np.zeros((1, 32), np.int32)))
  rng = np.random.default_rng(0)
  draw = lambda leaf: rng.normal(0, 0.1, leaf.shape).astype(np.float32)
  params = jax.tree.map(draw, jax.eval_shape(init)['params'])
  judge = LineScorer(lm.scorer(params, config), ByteTokenizer().encode, 257, 256, 32, 2)
  lines = ['The cat sat.', 'a', 'THE CAT SAT ON THE MAT']
  nll_L, count_L = judge.likelihoods(lines)
  ids = [[257, *line.encode()] for line in lines]
  ids_BL, _ = lm.prompts(ids, 32)
  nll_BL = np.asarray(jax.jit(lm.next_nll, static_argnums=1)(params, config, ids_BL))
  for row, nll_L1, nll, count in zip(ids, nll_BL, nll_L, count_L):
    # What follows a line in its row is not seen.
    assert nll == pytest.approx(nll_L1[: len(row) - 1].sum(), rel=1e-5) and count == len(row) - 1
  found = text_quality_weights.fitted(['\n'.join(lines)], QualityConfig(), judge)
  passes_LR, _ = text_quality.line_passes(lines, QualityConfig())
  expected = text_quality_weights.fit_weights(passes_LR, nll_L, count_L, RULES)
  np.testing.assert_array_equal(found.weight_R, expected.weight_R)
  found.save(tmp_path / 'w.json')
  weights = text_quality.read_weights(tmp_path / 'w.json')
  weights.check(QualityConfig())
  with pytest.raises(ConfigError, match='fitted with stop_words=2, but stop_words is 3'):
    weights.of_rules(RULES[:9]).check(QualityConfig(RULES[:9], stop_words=3))


def corpus_of(folder, texts, files=1):
  folder.mkdir()
  rows = [json.dumps({'id': f'{i:03}', 'text': text}) for i, text in enumerate(texts)]
  for f in range(files):
    (folder / f'{f}.jsonl').write_text('\n'.join(rows[f::files][::-1] + ['{broken']) + '\n')
  return CorpusConfig((str(folder),), id_field='id')


def test_a_sample_is_the_same_however_the_corpus_is_dealt_out(tmp_path):
  texts = ['', *(f'text {i}' for i in range(50))]
  whole = text_quality_weights.sample(corpus_of(tmp_path / 'a', texts), 20)
  parts = text_quality_weights.sample(corpus_of(tmp_path / 'b', texts, files=3), 20)
  assert whole == parts and len(set(whole)) == 20
  every = text_quality_weights.sample(CorpusConfig((str(tmp_path / 'a'),), id_field='id'), 99)
  assert sorted(every) == sorted(texts[1:]) and every[:20] == whole
  with pytest.raises(ConfigError, match='number is 0'):
    text_quality_weights.sample(CorpusConfig(('x',)), 0)


def test_perplexity_of_what_is_kept_worked_by_hand():
  # Three documents of 2, 1 and 0 lines; the best is the second.
  nll_L, count_L = np.array([2.0, 4.0, 1.0]), np.array([1.0, 2.0, 2.0])
  score_D, lines_D = np.array([0.2, 0.9, np.nan]), np.array([2, 1, 0])
  curve = text_quality_weights.kept_perplexity(score_D, nll_L, count_L, lines_D)
  assert list(curve) == [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
  np.testing.assert_allclose(curve[1.0], np.exp(7 / 5))
  np.testing.assert_allclose(curve[0.5], np.exp(1 / 2))
  assert np.isnan(curve[0.1])
