"""Rules and scores: lines worked by hand, and beside the slow way."""

import functools
from fractions import Fraction

import grain
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError
from jaxmm.curation import text_lines, text_quality
from jaxmm.curation.text_parser import Token
from jaxmm.curation.text_quality import QualityConfig, Weights
from tests.references import text_quality as reference

GOOD = 'The cat sat on the mat, and that was the end of it.'
# Rule -> lines that pass, lines that do not; each differs from a passing one by what is asked.
BY_HAND = {
  'has_first_letter_caps': (['The cat.', 'Élan vital.', 'A'], ['the cat.', '"The cat."', '1 Cat.']),
  'no_all_caps': (['The CAT.', 'cat', '1984!', 'ǅ'], ['THE CAT.', 'A1', 'ÉLAN!']),
  # 10 words: 8 different are 0.2, 7 are 0.3.
  'word_repetition_ratio': (
    ['a b c d e f g h a B', '...', 'one two'],
    ['a b c d e f g a b c', 'spam Spam', "don't DON'T"],
  ),
  # 8 words: 2 of numbers and marks are 0.25, 3 are more.
  'digit_punctuation_ratio': (
    [
      'one two three four five six seven, eight.',
      'one two three 4',
      '1b 2b 3b 4th',
      "a b c don't b2b's.",
    ],
    ['one, two three four five six seven, eight.', 'one two 3 4', '...', 'one two three (four)'],
  ),
  'no_special_characters': (['if (x) [y]'], ['if (x) {', '}', 'a }b']),
  'terminal_punctuation': (
    ['So.', 'So!', 'So?', 'He said "so"', 'He said “so.”'],
    ['So', 'So:', 'So…', "'so'", 'So.)'],
  ),
  'stop_word_match_2': (
    ['The end of it', 'to be', 'WITH THE cat', 'that-have'],
    ['the the the', 'a cat', 'then they hand', "the of's"],
  ),
  'javascript_flag': (['Java script', 'Lorem  ipsum'], ['Enable JavaScript', 'see: Lorem Ipsum.']),
  'token_count_ge_3': (['a b c', 'a b.', '...'], ['a b', "don't", 'so.']),
  'word_count_3_256': (
    ['one two three four', ' '.join(['w'] * 255)],
    ['one two three.', ' '.join(['w'] * 256), '. . . . .'],
  ),
}


@pytest.mark.parametrize('rule', BY_HAND)
def test_lines_worked_by_hand(rule):
  config = QualityConfig((rule,))
  for lines, expected in zip(BY_HAND[rule], (True, False)):
    passes_LR, _ = text_quality.line_passes(lines, config)
    assert dict(zip(lines, passes_LR[:, 0].tolist())) == dict.fromkeys(lines, expected)
    assert all(reference.rules(line)[rule] == expected for line in lines)


def test_there_are_fourteen_rules_and_ten_by_default():
  assert [r.number for r in text_quality.RULES.values()] == list(range(1, 15))
  assert text_quality.default_rules() == tuple(BY_HAND) == tuple(text_quality.RULES)[:10]
  passes_LR, _ = text_quality.line_passes([GOOD], QualityConfig())
  # Three of thirteen words are 'the' again, two: 2 / 13 < 0.2.
  assert passes_LR.all()


@pytest.mark.parametrize(
  'setting, rule, line',
  [
    ({'capital': 'letter'}, 'has_first_letter_caps', '"The cat."'),
    ({'stop_words_of': 'occurrences'}, 'stop_word_match_2', 'the the'),
    ({'terminal': '.:'}, 'terminal_punctuation', 'So:'),
    ({'repetition_of': 'most_frequent'}, 'word_repetition_ratio', 'a b c d e f g a b c'),
    ({'repetition': 0.5}, 'word_repetition_ratio', 'spam spam'),
    ({'least_tokens': 2}, 'token_count_ge_3', 'a b'),
    ({'tokens': 'bytes'}, 'token_count_ge_3', 'éa'),
  ],
)
def test_another_reading_lets_a_line_pass(setting, rule, line):
  passes = lambda **s: text_quality.line_passes([line], QualityConfig((rule,), **s))[0].item()
  assert not passes() and passes(**setting)


def test_digits_may_be_counted_one_by_one():
  line = 'In the year 1984 nobody had read it'
  passes = lambda of: text_quality.line_passes(
    [line], QualityConfig(('digit_punctuation_ratio',), digit_punctuation_of=of)
  )[0].item()
  assert passes('tokens') and not passes('characters')


@pytest.mark.parametrize(
  'tokens, counts',
  [('words_and_marks', [3, 4, 3]), ('spaces', [2, 1, 2]), ('bytes', [8, 6, 9])],
)
def test_what_a_line_weighs(tokens, counts):
  _, tokens_L = text_quality.line_passes(
    ["Don't. !", 'a_b’', '😀 “x'], QualityConfig(tokens=tokens)
  )
  assert tokens_L.tolist() == counts


PIECES = st.lists(
  st.sampled_from([
    'the', 'The', 'OF', 'of', 'and', "don't", "'", '’', "''", 'a', 'a', 'b', '12', '1b', '²', '٣',
    '.', '!', '"', '”', '{', '}', ' ', ' ', ' ', '\n', '\r\n', '\r', '\t', '_', 'İ', 'i̇', 'ẞ', 'ß',
    'Ǆ', 'ǅ', 'Ⓐ', 'JavaScript', 'lorem', 'ipsum', '\ud800', '\x1c', '\u3000', '中文', '\x00',
  ]),
  max_size=40,
).map(''.join)  # fmt: skip
TEXTS = st.lists(PIECES | st.text(max_size=20), max_size=6)


@settings(max_examples=150, deadline=None)
@given(TEXTS, st.sampled_from(['lines', 'sentences']))
def test_any_text_is_judged_as_by_the_slow_way(texts, unit):
  lines = [line for text in texts for line in reference.lines(text, unit)]
  for readings, config in (
    ({}, QualityConfig()),
    (
      {
        'capital': 'letter',
        'repeated': 'most_frequent',
        'digits': 'characters',
        'stop': 'occurrences',
      },  # fmt: skip
      QualityConfig(
        capital='letter',
        repetition_of='most_frequent',
        digit_punctuation_of='characters',
        stop_words_of='occurrences',
      ),
    ),
  ):
    passes_LR, tokens_L = text_quality.line_passes(lines, config)
    assert tokens_L.tolist() == [len(reference.tokens(line)) for line in lines]
    for line, passes_R in zip(lines, passes_LR.tolist()):
      assert dict(zip(config.rules, passes_R)) == reference.rules(line, **readings), repr(line)


@settings(max_examples=50, deadline=None)
@given(TEXTS, st.lists(st.floats(0, 1e3), min_size=10, max_size=10))
def test_the_score_of_a_document_is_the_mean_of_its_lines(texts, values):
  values[3] += 0.5
  config, weights = QualityConfig(), Weights(dict(zip(text_quality.default_rules(), values)))
  counts = text_quality.documents(texts, config)
  score_D = text_quality.scores(counts.rates_DR, config.rules, weights)
  assert counts.lines_D.tolist() == [len(reference.lines(text)) for text in texts]
  for text, score in zip(texts, score_D):
    expected = reference.document_score(text, weights.of)
    if expected is None:
      assert np.isnan(score)
    else:
      assert 0 <= score <= 1 and score == pytest.approx(float(expected), rel=1e-12, abs=1e-12)


def test_neither_batches_nor_neighbours_show(monkeypatch):
  rng = np.random.default_rng(0)
  words = ['the', 'of', 'Cat', 'é', '12', '{', 'x.\n', '\n\n', "it's", 'ARE']
  texts = [' '.join(rng.choice(words, rng.integers(0, 60))) for _ in range(40)]
  whole = text_quality.documents(texts, QualityConfig())
  for points, lines in ((1, 1 << 16), (64, 1 << 16), (1 << 18, 3)):
    monkeypatch.setattr(text_lines, '_POINTS', points)
    monkeypatch.setattr(text_lines, '_LINES', lines)
    parts = text_quality.documents(texts, QualityConfig())
    np.testing.assert_array_equal(parts.passed_DR, whole.passed_DR)
    np.testing.assert_array_equal(parts.tokens_D, whole.tokens_D)


def test_where_everything_passes_the_score_is_exactly_one():
  weights = Weights(dict(zip(text_quality.default_rules(), [0.1, 0.3, 0.7] * 4)))
  texts = [GOOD, GOOD + '\n' + GOOD, '\n'.join([GOOD] * 7)]
  counts = text_quality.documents(texts, QualityConfig())
  assert text_quality.scores(counts.rates_DR, QualityConfig().rules, weights).tolist() == [1, 1, 1]


# A parser for a language of our own: WORD/POS/LABEL/HEAD, separated by spaces.
def toy_parser(lines):
  return [[Token(w, pos, dep, int(head)) for w, pos, dep, head in
           (token.split('/') for token in line.split())] for line in lines]  # fmt: skip


OBJECT = 'She/PRON/nsubj/1 saw/VERB/ROOT/1 the/DET/det/3 cat/NOUN/dobj/1'
PARSED = {
  'has_object': ([OBJECT], ['She/PRON/nsubj/1 slept/VERB/ROOT/1']),
  'has_noun': ([OBJECT, 'Ann/PROPN/ROOT/0'], ['She/PRON/nsubj/1 slept/VERB/ROOT/1']),
  'has_determiner': (
    [OBJECT, 'no/X/det/1 cat/NOUN/ROOT/1'],
    ['cats/NOUN/nsubj/1 sleep/VERB/ROOT/1'],
  ),
  # The object has a child; it has none; another has children; it is its own head.
  'text_complexity_c1': (
    [OBJECT],
    [
      'She/PRON/nsubj/1 saw/VERB/ROOT/1 cats/NOUN/dobj/1',
      'the/DET/det/1 cat/NOUN/nsubj/2 saw/VERB/ROOT/2 it/PRON/dobj/2',
      'it/PRON/obj/0',
    ],
  ),
}


@pytest.mark.parametrize('rule', PARSED)
def test_parsed_lines_worked_by_hand(rule):
  for lines, expected in zip(PARSED[rule], (True, False)):
    passes_LR, _ = text_quality.line_passes(lines, QualityConfig((rule,)), toy_parser)
    assert passes_LR[:, 0].tolist() == [expected] * len(lines)


def test_the_parser_sees_each_line_once_and_may_count_tokens():
  seen = []

  def parser(lines):
    seen.extend(lines)
    return toy_parser(lines)

  config = QualityConfig(('has_noun', 'token_count_ge_3'), tokens='parser')
  counts = text_quality.documents([f'{OBJECT}\na/DET/det/0\n{OBJECT}', OBJECT], config, parser)
  assert seen == [OBJECT, 'a/DET/det/0']
  assert counts.tokens_D.tolist() == [9, 4] and counts.passed_DR.tolist() == [[8, 8], [4, 4]]
  custom = QualityConfig(('has_object',), objects=('nsubj',))
  assert text_quality.line_passes(['She/PRON/nsubj/0'], custom, toy_parser)[0].item()


def test_without_a_parser_its_rules_are_refused_by_name():
  config = QualityConfig(('has_noun', 'no_all_caps', 'text_complexity_c1'))
  with pytest.raises(ConfigError, match='has_noun, text_complexity_c1 cannot be judged without'):
    text_quality.line_passes([GOOD], config)
  with pytest.raises(ConfigError, match="tokens='parser' cannot be judged"):
    text_quality.documents([GOOD], QualityConfig(tokens='parser'))


@pytest.mark.parametrize(
  'setting, message',
  [
    ({'rules': ('no_caps',)}, "rules names 'no_caps', expected some of has_first_letter_caps"),
    ({'rules': ('has_noun', 'has_noun')}, 'names one twice'),
    ({'unit': 'pages'}, "unit is 'pages', expected one of lines, sentences"),
    ({'least_words': 9, 'most_words': 8}, 'least_words is 9, above most_words 8'),
  ],
)
def test_settings_that_cannot_be(setting, message):
  with pytest.raises(ConfigError, match=message):
    QualityConfig(**setting)


@pytest.mark.parametrize(
  'weights, message',
  [
    ({'no_caps': 1.0}, "weights name 'no_caps', which is no rule"),
    ({'no_all_caps': -1.0}, 'the weight of no_all_caps is -1.0'),
    ({'no_all_caps': float('nan')}, 'the weight of no_all_caps is nan'),
    ({'no_all_caps': '1'}, "the weight of no_all_caps is '1'"),
    ({'no_all_caps': 0.0, 'has_noun': 0}, r'all weights are 0 \(no_all_caps, has_noun\)'),
    ({}, r'all weights are 0 \(no rule\)'),
  ],
)
def test_weights_that_cannot_be(weights, message):
  with pytest.raises(ConfigError, match=message):
    Weights(weights)


def test_weights_of_other_rules_are_refused():
  weights = Weights({'no_all_caps': 1.0, 'javascript_flag': 2.0})
  with pytest.raises(
    ConfigError, match='the weights are of no_all_caps, javascript_flag, the pass'
  ):
    text_quality.scores(np.ones((1, 1)), ('no_all_caps',), weights)
  one = weights.of_rules(('no_all_caps',))
  assert text_quality.scores(np.ones((1, 1)), ('no_all_caps',), one) == [1]
  with pytest.raises(ConfigError, match='has_noun have no weight; there are weights for no_all'):
    weights.of_rules(('has_noun',))


def test_a_pipeline_prunes_as_it_reads():
  texts = [GOOD, 'CLICK HERE', '', GOOD + '\nclick here {', 'x']
  weights, config = Weights.uniform(), QualityConfig()
  score = functools.partial(text_quality.record_score, weights=weights, config=config)
  rows = grain.MapDataset.source([{'text': text} for text in texts])
  rows = rows.filter(lambda record: score(record) >= 0.8)
  assert [row['text'] for row in rows if row is not None] == [texts[0], texts[3]]
  whole = text_quality.documents(texts, config)
  together = text_quality.scores(whole.rates_DR, config.rules, weights)
  np.testing.assert_array_equal([score({'text': text}) for text in texts], together)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.25, 0.5, 1.0, np.nan]), max_size=12), st.integers(0, 20))
def test_the_best_share_is_an_exact_quantile_with_ties_by_id(scores, twentieths):
  found = text_quality.best(np.array(scores, float), twentieths / 20)
  named = {f'{i:02}': s for i, s in enumerate(scores) if not np.isnan(s)}
  expected = reference.kept(named, Fraction(twentieths, 20))
  assert {f'{i:02}' for i in np.flatnonzero(found)} == expected


def test_a_share_that_is_none():
  with pytest.raises(ConfigError, match='keep is 60, expected a share from 0 to 1'):
    text_quality.best(np.ones(3), 60)
