"""Near-duplicates of 20,000 documents: jaxmm beside rensa and datasketch, on this machine.

    python experiments/performance/minhash.py --directory /tmp/planted

128 permutations, 5-word shingles, threshold 0.7; from texts in memory to pairs. The peers check
candidates by their signatures, as they offer; jaxmm counts shingles (`--check signature` compares
like with like). One JSON line a side: documents/s, recall of the planted pairs, precision. Sides
run one after the other, repetition by repetition. The peers are not dependencies of jaxmm:
`pip install rensa datasketch`.
"""

from __future__ import annotations

import argparse
import functools
import json
import pathlib
import re
import statistics
import time

import planted

THRESHOLD, PERMUTATIONS, SIZE = 0.7, 128, 5


def jaxmm(texts: list[str], check: str) -> set[tuple[int, int]]:
  from jaxmm.curation import minhash

  config = minhash.MinHashConfig(THRESHOLD, PERMUTATIONS, check=check, recall=0.99)
  signature_NP, has_N = minhash.signatures(texts, config)
  found = minhash.duplicates(texts, signature_NP, has_N, config)
  return set(map(tuple, found.pair_E2.tolist()))


def rensa(texts: list[str]) -> set[tuple[int, int]]:
  from rensa import RMinHash, RMinHashLSH

  sketches = RMinHash.from_token_sets(_strings(texts), PERMUTATIONS, 42)
  index = RMinHashLSH(THRESHOLD, PERMUTATIONS, 16)
  index.insert_many(sketches)
  pairs = {(i, j) for i, near in enumerate(index.query_all(sketches)) for j in near if i < j}
  return {(i, j) for i, j in pairs if sketches[i].jaccard(sketches[j]) >= THRESHOLD}


def datasketch(texts: list[str]) -> set[tuple[int, int]]:
  from datasketch import MinHash, MinHashLSH

  sketches = MinHash.bulk([[s.encode() for s in of] for of in _strings(texts)], num_perm=128)
  index = MinHashLSH(threshold=THRESHOLD, num_perm=PERMUTATIONS)
  with index.insertion_session() as session:
    for i, sketch in enumerate(sketches):
      session.insert(i, sketch, check_duplication=False)
  pairs = {(i, j) for i, sketch in enumerate(sketches) for j in index.query(sketch) if i < j}
  return {(i, j) for i, j in pairs if sketches[i].jaccard(sketches[j]) >= THRESHOLD}


def _strings(texts: list[str]) -> list[list[str]]:
  words_of = re.compile(r'\w+').findall
  out = []
  for text in texts:
    words = words_of(text.lower())
    runs = range(max(1, len(words) - SIZE + 1))
    out.append(list(dict.fromkeys(' '.join(words[i : i + SIZE]) for i in runs)))
  return out


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--directory', required=True, type=pathlib.Path, help='for the corpus')
  parser.add_argument('--documents', type=int, default=20_000)
  parser.add_argument('--repeat', type=int, default=3)
  parser.add_argument('--peers', nargs='*', default=['rensa', 'datasketch'])
  parser.add_argument('--check', default='exact', choices=['exact', 'signature'])
  options = parser.parse_args()
  texts, pairs = planted.corpus(options.documents, options.directory)
  sides = {'jaxmm': functools.partial(jaxmm, check=options.check)}
  sides |= {name: globals()[name] for name in options.peers}
  found = {name: side(texts[:500]) for name, side in sides.items()}  # loads and compiles
  seconds: dict[str, list[float]] = {name: [] for name in sides}
  for _ in range(options.repeat):
    for name, side in sides.items():
      begin = time.perf_counter()
      found[name] = side(texts)
      seconds[name].append(time.perf_counter() - begin)
  for name in sides:
    taken = statistics.median(seconds[name])
    ratio = [a / b for a, b in zip(seconds[name], seconds['jaxmm'])]
    print(json.dumps({
      'side': name, 'documents_per_s': round(len(texts) / taken), 'seconds': seconds[name],
      'times_ours': round(statistics.median(ratio), 2),
      **planted.quality(found[name], texts, pairs, THRESHOLD),
    }))  # fmt: skip


if __name__ == '__main__':
  main()
