"""How many pairs of near-duplicates a corpus has, counted on strings within what MinHash joins.

python experiments/minhash/pairs.py corpus.jsonl.gz --shingle-size 3 --thresholds 0.5 0.8
"""

from __future__ import annotations

import argparse
import collections
import itertools
import re

from jaxmm.curation import minhash
from jaxmm.curation.shingles import ShingleConfig
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig

WORD = re.compile(r'\w+')


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('input')
  parser.add_argument('--text-field', default='text')
  parser.add_argument('--shingle-size', type=int, default=3)
  parser.add_argument('--thresholds', type=float, nargs='+', default=[0.5, 0.8])
  options = parser.parse_args()
  inputs = CorpusConfig((options.input,), text_field=options.text_field)
  texts = [e.text or '' for s in corpus.shards(inputs) for e in corpus.examples(s, inputs)]
  least = min(options.thresholds)
  config = minhash.MinHashConfig(
    least, recall=0.999, shingles=ShingleConfig('words', options.shingle_size)
  )
  found = minhash.duplicates(texts, *minhash.signatures(texts, config), config)
  clusters = collections.defaultdict(list)
  for n, cluster in enumerate(found.cluster_N.tolist()):
    clusters[cluster].append(shingles(texts[n], options.shingle_size))
  counts = collections.Counter()
  for members in clusters.values():
    for a, b in itertools.combinations(members, 2):
      similarity = len(a & b) / len(a | b)
      counts.update(t for t in options.thresholds if similarity >= t)
  print(f'{len(texts):,} documents, {len(texts) - len(set(texts)):,} exact repeats')
  for threshold in sorted(counts):
    print(f'{counts[threshold]:,} pairs at a Jaccard similarity of {threshold} or more')


def shingles(text: str, size: int) -> set[str]:
  words = WORD.findall(text.lower())
  return {' '.join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


if __name__ == '__main__':
  main()
