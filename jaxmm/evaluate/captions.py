"""How close captions are to those that people wrote: CIDEr-D and corpus BLEU.

Both compare the words of one candidate a picture with one or more references of the same picture.
Words are runs of letters and digits in lower case, an apostrophe between them included; papers use
the tokenizer of the Penn Treebank without its punctuation, which also takes "don't" apart.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Sequence

import numpy as np

from jaxmm.config import ConfigError

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ORDERS = (1, 2, 3, 4)
# Standard deviation of CIDEr-D's penalty, in words.
_SIGMA = 6.0

Words = tuple[str, ...]
NGrams = collections.Counter[Words]


def words(text: str) -> Words:
  """The words of a text."""
  return tuple(_WORD.findall(text.lower()))


def cider_d(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
  """CIDEr-D of every candidate, float64 [N] in [0, 10]; their mean is the score of a set.

  Vedantam et al. 2015 (arXiv:1411.5726), section 3 and the variant of its appendix that the COCO
  server runs: for n = 1 .. 4 the cosine of n-gram counts weighted by their rarity, a candidate's
  clipped to the reference's, times exp(-(difference of lengths)^2 / (2 * 6^2)); the mean over
  references and n, times 10. Papers print 100 times the mean. How rare an n-gram is, is counted in
  the references of this set, so scores of different sets cannot be compared, and a set of one
  picture has the score 0.

  Args:
    candidates: one a picture.
    references: one or more a picture.

  Raises:
    ConfigError: no picture, other numbers of candidates and references, or a picture without any.
  """
  references_N = _checked(candidates, references)
  seen = collections.Counter(
    ngram for own in references_N for ngram in {g for words in own for g in _all_ngrams(words)}
  )
  rarity = {ngram: math.log(len(references_N) / count) for ngram, count in seen.items()}
  unseen = math.log(len(references_N))

  def score(candidate: Words, reference: Words) -> float:
    gap = len(candidate) - len(reference)
    cosines = [_cosine(_ngrams(candidate, n), _ngrams(reference, n), rarity, unseen)
               for n in _ORDERS]  # fmt: skip
    return 10.0 * sum(cosines) / len(_ORDERS) * math.exp(-(gap**2) / (2 * _SIGMA**2))

  return np.array(
    [
      np.mean([score(words(candidate), reference) for reference in own])
      for candidate, own in zip(candidates, references_N)
    ]
  )


def _cosine(candidate: NGrams, reference: NGrams, rarity, unseen: float) -> float:
  """Of weighted counts, the candidate's clipped in the product."""
  weighted = lambda counts: {g: count * rarity.get(g, unseen) for g, count in counts.items()}
  a, b = weighted(candidate), weighted(reference)
  product = sum(min(a[g], b[g]) * b[g] for g in a.keys() & b.keys())
  norms = math.hypot(*a.values()) * math.hypot(*b.values())
  return product / norms if norms else 0.0


def bleu(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
  """BLEU-4 of a whole set, in [0, 1] (Papineni et al. 2002, section 2.3).

  The geometric mean of the clipped precisions of n-grams, n = 1 .. 4, summed over the set before
  they are divided, times the brevity penalty by the references closest in length. Without
  smoothing: a set without one common n-gram of four words has the score 0.

  Args, raises: as of `cider_d`.
  """
  references_N = _checked(candidates, references)
  matched, total = collections.Counter(), collections.Counter()
  length = closest = 0
  for candidate, own in zip(map(words, candidates), references_N):
    length += len(candidate)
    closest += min((abs(len(r) - len(candidate)), len(r)) for r in own)[1]
    for n in _ORDERS:
      counts, most = _ngrams(candidate, n), collections.Counter()
      for reference in own:
        most |= _ngrams(reference, n)
      matched[n] += (counts & most).total()
      total[n] += counts.total()
  if not all(matched[n] for n in _ORDERS):
    return 0.0
  precision = math.exp(sum(math.log(matched[n] / total[n]) for n in _ORDERS) / len(_ORDERS))
  return precision * math.exp(min(0.0, 1.0 - closest / length))


def _ngrams(words: Words, n: int) -> NGrams:
  return collections.Counter(words[i : i + n] for i in range(len(words) - n + 1))


def _all_ngrams(words: Words) -> set[Words]:
  return {ngram for n in _ORDERS for ngram in _ngrams(words, n)}


def _checked(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> list[list[Words]]:
  """The words of the references."""
  if not len(candidates) or len(candidates) != len(references):
    raise ConfigError(
      f'{len(candidates)} candidates and references of {len(references)} pictures, expected as '
      'many, at least 1'
    )
  alone = next((i for i, own in enumerate(references) if not len(own)), None)
  if alone is not None:
    raise ConfigError(f'picture {alone} has no reference, expected at least one')
  return [[words(text) for text in own] for own in references]
