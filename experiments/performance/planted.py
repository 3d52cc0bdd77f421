"""Documents with planted near-duplicates, whose similarity is known: the corpus of `minhash.py`.

Text is what every machine has: Python files of the standard library and of installed packages, cut
at line ends into documents of 1 to 4 KB. A document is taken only if few of its 5-word shingles
have been seen before. One in ten documents is an edited copy of another (words replaced, put in or
left out) with a Jaccard similarity of 0.72 to 0.99, one in fifty a copy at 0.35 to 0.55 that is no
near-duplicate. Similarities are computed exactly, on sets of strings. Standard library only.
"""

from __future__ import annotations

import json
import pathlib
import random
import re
import sysconfig
from collections.abc import Iterator

WORD = re.compile(r'\w+')


def shingles(text: str, size: int = 5) -> set[str]:
  """Runs of words of the lower-cased text; of a shorter text all its words."""
  words = WORD.findall(text.lower())
  return {' '.join(words[i : i + size]) for i in range(max(1, len(words) - size + 1))}


def jaccard(one: str, other: str) -> float:
  a, b = shingles(one), shingles(other)
  return len(a & b) / len(a | b)


def corpus(
  documents: int, directory: pathlib.Path
) -> tuple[list[str], dict[tuple[int, int], float]]:
  """(texts, {planted pair: similarity}); made on first use and kept in the directory."""
  path = directory / f'planted-{documents}.json'
  if not path.exists():
    directory.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(_made(documents)))
  texts, pairs = json.loads(path.read_text())
  return texts, {(a, b): similarity for a, b, similarity in pairs}


def _made(documents: int):
  rng = random.Random(documents)
  copies, near = documents // 10, documents // 50
  base = _distinct(documents - copies - near, rng)
  words = sorted({word for text in base[:2000] for word in WORD.findall(text)})
  texts, pairs = list(base), []
  for i, source in enumerate(rng.sample(range(len(base)), copies + near)):
    wanted = rng.uniform(0.72, 0.99) if i < copies else rng.uniform(0.35, 0.55)
    texts.append(_edited(base[source], wanted, words, rng))
    pairs.append((source, len(texts) - 1))
  order = list(range(len(texts)))
  rng.shuffle(order)
  place = {old: new for new, old in enumerate(order)}
  shuffled = [texts[old] for old in order]
  known = [(*sorted((place[a], place[b])), jaccard(texts[a], texts[b])) for a, b in pairs]
  return shuffled, known


def _distinct(number: int, rng: random.Random) -> list[str]:
  seen: set[int] = set()
  out: list[str] = []
  for text in _pieces(rng):
    own = {hash(s) for s in shingles(text)}
    if len(own) >= 60 and len(own & seen) < 0.15 * len(own):
      seen |= own
      out.append(text)
      if len(out) == number:
        return out
  raise SystemExit(f'only {len(out)} distinct documents of {number} in the text on this machine')


def _pieces(rng: random.Random) -> Iterator[str]:
  paths = sysconfig.get_paths()
  for root in (paths['stdlib'], paths['purelib']):
    for path in sorted(pathlib.Path(root).rglob('*.py')):
      try:
        lines = path.read_text(encoding='utf-8').splitlines(keepends=True)
      except (OSError, UnicodeDecodeError):
        continue
      piece, size, wanted = [], 0, rng.randint(1024, 4096)
      for line in lines:
        piece.append(line[:4096])
        size += len(piece[-1])
        if size >= wanted:
          yield ''.join(piece)
          piece, size, wanted = [], 0, rng.randint(1024, 4096)


def _edited(text: str, similarity: float, words: list[str], rng: random.Random) -> str:
  """So many words changed that about `similarity` of the shingles are still shared."""
  spans = [match.span() for match in WORD.finditer(text)]
  number = max(1, round(len(spans) * (1 - similarity) / (1 + similarity) / 5))
  chosen = set(rng.sample(range(len(spans)), min(number, len(spans))))
  out, last = [], 0
  for i, (start, end) in enumerate(spans):
    word = text[start:end]
    if i in chosen:
      word = rng.choice((rng.choice(words), f'{word} {rng.choice(words)}', ''))
    out += [text[last:start], word]
    last = end
  return ''.join([*out, text[last:]])


def quality(found: set[tuple[int, int]], texts, planted, threshold: float) -> dict[str, float]:
  """Recall of the planted pairs at the threshold, and precision of all that was found, exactly."""
  wanted = {pair for pair, similarity in planted.items() if similarity >= threshold}
  right = sum(jaccard(texts[a], texts[b]) >= threshold for a, b in found)
  return {
    'found': len(found),
    'recall': round(len(wanted & found) / len(wanted), 4),
    'precision': round(right / max(len(found), 1), 4),
  }
