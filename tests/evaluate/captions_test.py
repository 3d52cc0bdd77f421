"""Caption metrics against numbers of pycocoevalcap, and where they can be worked out by hand."""

import math

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.evaluate.captions import bleu, cider_d, words

# Candidates with their references, of words that a split at spaces finds.
PICTURES = [
  (
    'a dog runs on the green grass',
    [
      'a brown dog runs across the grass',
      'a dog is running on green grass outside',
      'the dog runs',
    ],
  ),
  (
    'two people ride ride ride bikes',
    ['two people ride bikes down the road', 'people riding bicycles'],
  ),
  ('a red car', ['a red car parked beside the road with a dog on the roof of it']),
  ('the the the the', ['the road goes up the hill']),
  ('', ['a cat', 'nothing to see here']),
  (
    'a man in a red hat holds a cat on the road',
    ['a man in a red hat holds a cat on the road'],
  ),
]
CANDIDATES, REFERENCES = zip(*PICTURES)
# `CiderScorer(n=4, sigma=6.0)` and `BleuScorer(n=4)` with option='closest' of pycocoevalcap 1.2 on
# these. (On 249 pictures of COCO, the first of five captions against the others, both agree with
# ours to 1e-13, too: CIDEr-D 1.01114, BLEU-4 0.22439.)
CIDER = [1.9753784999176751, 1.7141635209644923, 0.3587611361977752, 0.13683813654422014, 0, 10]
BLEU = 0.3817407893886774


def test_the_numbers_of_pycocoevalcap():
  np.testing.assert_allclose(cider_d(CANDIDATES, REFERENCES), CIDER, atol=1e-12)
  # It adds 1e-15 and 1e-9 to counts.
  assert bleu(CANDIDATES, REFERENCES) == pytest.approx(BLEU, abs=1e-9)


def test_words_are_runs_of_letters_whatever_stands_between():
  assert words('A man\u2019s "Hat", n\xba 7: it\'s_so RED!') == (
    'a', 'man\u2019s', 'hat', 'n\xba', '7', "it's", 'so', 'red',
  )  # fmt: skip
  plain, marked = ['a red hat on a man'], ['A red hat, on a... MAN!']
  others = [['a cat'], ['the red dog of a man']]
  assert cider_d([plain[0], 'x'], [marked, others[1]]).tolist() == pytest.approx([10, 0])


def test_a_perfect_candidate_scores_ten_for_as_many_orders_as_it_has_words():
  texts = ['one', 'two words', 'three words here', 'four words are here', 'five words are here now']
  scores = cider_d(texts, [[text] for text in texts])
  # `words` is in four of five texts; a word in all would have the weight 0.
  np.testing.assert_allclose(scores, [2.5, 5, 7.5, 10, 10])
  assert cider_d(['a cat'], [['a cat']]) == [0]  # nothing is rare in a set of one


def test_longer_candidates_pay_by_the_gaussian():
  others = [['completely different words']]
  short = cider_d(['red green', 'x'], [['red green'], *others])[0]
  # Words of no reference are in no product, but in the norm.
  long = cider_d(['red green ' + 'red green', 'x'], [['red green'], *others])[0]
  # 1-grams: twice the counts are clipped to once: 1/2. 2-grams: (2, 1) against (1, 0).
  expected = (1 / 2 + 1 / math.sqrt(5)) / 4 * 10 * math.exp(-(2**2) / 72)
  assert short == pytest.approx(5) and long == pytest.approx(expected)


def test_bleu_by_hand():
  # Clipped unigrams 2 of 3 + 4 of 4, bigrams 1 of 2 + 3 of 3, and so on; 7 words, closest are 6.
  candidates = ['the the cat', 'a b c d']
  references = [['the cat', 'the cat sat on it all day'], ['a b c d']]
  expected = (6 / 7 * 4 / 5 * 2 / 3 * 1 / 1) ** (1 / 4)
  assert bleu(candidates, references) == pytest.approx(expected)
  assert bleu(['a b c d'], [['a b c d e']]) == pytest.approx(math.exp(1 - 5 / 4))
  assert bleu(['a b c'], [['a b c']]) == 0 and bleu([''], [['a b c d']]) == 0


def test_what_cannot_be_scored_is_named():
  for metric in (cider_d, bleu):
    with pytest.raises(ConfigError, match='2 candidates and references of 1 pictures'):
      metric(['a', 'b'], [['a']])
    with pytest.raises(ConfigError, match='0 candidates'):
      metric([], [])
    with pytest.raises(ConfigError, match='picture 1 has no reference'):
      metric(['a', 'b'], [['a'], []])
