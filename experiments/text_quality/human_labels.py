"""How well scores of documents agree with people who called them good or bad.

    python experiments/text_quality/human_labels.py LABELLED.jsonl.gz NAME=WEIGHTS.json ...

LABELLED has the fields `text` and `label` ('1' good, '0' bad). For the score with uniform weights,
with every file of weights, and for simple baselines: the area under the ROC curve, which is the
chance that a good document is scored above a bad one (ties count half); its 95 % interval, and that
of its lead over the length of the document, from 2,000 bootstrap samples of the documents (the same
for all scores); and the share of good ones among the best 60 %.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import re

import numpy as np
from scipy import stats

from jaxmm.curation import text_parser, text_quality
from jaxmm.curation.text_quality import QualityConfig, Weights
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig

KEEP = 0.6


def auc(score_N: np.ndarray, good_N: np.ndarray) -> float:
  """By the ranks (Mann-Whitney)."""
  rank_N = stats.rankdata(score_N)
  num_good, num_bad = good_N.sum(), (~good_N).sum()
  return float((rank_N[good_N].sum() - num_good * (num_good + 1) / 2) / (num_good * num_bad))


def samples(score_N, good_N, number: int = 2000) -> np.ndarray:
  """The area in bootstrap samples, which are the same whatever the score."""
  rng = np.random.default_rng(0)
  rows = rng.integers(len(score_N), size=(number, len(score_N)))
  return np.array([auc(score_N[r], good_N[r]) for r in rows])


def interval(values) -> str:
  low, high = np.quantile(values, [0.025, 0.975])
  return f'{low:.3f} to {high:.3f}'


def baselines(texts: list[str]) -> dict[str, np.ndarray]:
  """What needs no weights; words are pieces between spaces here, as in Gopher."""
  words = [text.split() for text in texts]
  alphabetic = [np.mean([any(c.isalpha() for c in w) for w in of]) for of in words]
  gopher = np.array([gopher_rules(text) for text in texts])
  return {
    'length in characters': np.array([len(text) for text in texts]),
    'mean word length': np.array([np.mean([len(w) for w in of]) for of in words]),
    'share of alphabetic words': np.array(alphabetic),
    'Gopher-like rules, all pass': gopher.all(axis=1),
    'Gopher-like rules, how many pass': gopher.sum(axis=1),
  }


def gopher_rules(text: str) -> list[bool]:
  """Seven rules with the thresholds of Rae et al. 2021 (arXiv:2112.11446, table A1)."""
  words, lines = text.split(), text.splitlines()
  symbols = text.count('#') + text.count('...') + text.count('…')
  bullets = np.mean([line.lstrip().startswith(('•', '-', '*')) for line in lines])
  ellipses = np.mean([line.rstrip().endswith(('...', '…')) for line in lines])
  lower = {w.strip('.,;:!?"()').lower() for w in words}
  return [
    50 <= len(words) <= 100_000,
    3 <= np.mean([len(w) for w in words]) <= 10,
    symbols / len(words) <= 0.1,
    bool(bullets <= 0.9),
    bool(ellipses <= 0.3),
    np.mean([re.search('[^\\W\\d_]', w) is not None for w in words]) >= 0.8,
    len(lower & set(text_quality.STOP_WORDS)) >= 2,
  ]


def row(name: str, score_N: np.ndarray, good_N: np.ndarray, length_N: np.ndarray) -> str:
  found = samples(score_N, good_N)
  kept = text_quality.best(score_N.astype(float), KEEP)
  columns = (
    f'{auc(score_N, good_N):.3f}', interval(found), interval(found - samples(length_N, good_N)),
    f'{good_N[kept].mean():.1%}',
  )  # fmt: skip
  return f'| {name} | {" | ".join(columns)} |'


def remembering(parser):
  """The parser, which sees no line twice."""
  known = {}

  def parses(lines):
    new = [line for line in lines if line not in known]
    known.update(zip(new, parser(new)))
    return [known[line] for line in lines]

  return parses


def rules_and_weights(paths: list[str], has_parser: bool) -> dict[str, Weights]:
  """The scores to try, by name."""
  out = {'uniform weights': Weights.uniform()}
  if has_parser:
    out['uniform weights, 14 rules'] = Weights.uniform(tuple(text_quality.RULES))
  for word in paths:
    name, _, path = word.partition('=')
    out[f'{name} weights'] = text_quality.read_weights(path)
  return out


def main() -> None:
  p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  p.add_argument('data')
  p.add_argument('weights', nargs='*', metavar='NAME=FILE.json')
  p.add_argument('--parser', default='', help='as of the verb; then all 14 rules are tried')
  options = p.parse_args()
  inputs, parser = CorpusConfig((options.data,)), text_parser.named(options.parser)
  parser = remembering(parser) if parser else None
  examples = [e for s in corpus.shards(inputs) for e in corpus.examples(s, inputs) if e.text]
  texts = [e.text for e in examples]
  good_N = np.array([str(e.record['label']) == '1' for e in examples])
  print(f'{len(texts)} documents, {good_N.mean():.1%} of them good\n')
  head = f'AUC | 95 % interval | lead over length | good among the best {KEEP:.0%} |\n'
  head += '|---' * 5 + '|'
  show = functools.partial(row, good_N=good_N, length_N=np.array([len(text) for text in texts]))
  print('| score | ' + head)
  rules = tuple(text_quality.RULES) if parser else text_quality.default_rules()
  rates: dict[tuple[str, str], np.ndarray] = {}
  for unit, of in itertools.product(('lines', 'sentences'), ('all_words', 'most_frequent')):
    config = QualityConfig(rules, unit=unit, repetition_of=of)
    rates[unit, of] = text_quality.documents(texts, config, parser).rates_DR
    for name, weights in rules_and_weights(options.weights, parser is not None).items():
      if of == 'most_frequent' and not name.startswith('uniform'):
        continue  # they were fitted with the other reading
      columns = [rules.index(rule) for rule in weights.of]
      score_N = text_quality.scores(rates[unit, of][:, columns], tuple(weights.of), weights)
      note = ', repetition of the most frequent word' * (of == 'most_frequent')
      print(show(f'text quality, {name}, {unit}{note}', score_N))
  for name, score_N in baselines(texts).items():
    print(show(name, score_N))
  print('\n| pass rate of one rule, lines | ' + head)
  for r, rule in enumerate(rules):
    print(show(rule, rates['lines', 'all_words'][:, r]))


if __name__ == '__main__':
  main()
