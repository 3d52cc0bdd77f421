"""Texts as sets of hashed shingles: runs of n words, or of n characters.

Words are the maximal runs of letters, digits and underscores of the lower-cased text (`\\w+`), in
any script; scripts without spaces want character shingles. Nothing is cut out of a string: a word's
hash is that of its code points, taken for a whole batch of texts at once from one running sum.

Hashes are 64 bits wide and a function of the shingle alone, the same on every machine and in every
batch. They are not cryptographic: who may write the texts can make two words collide.

Axes: T texts of a batch, C code points, W words, S shingles.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Sequence

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.curation import running_hash

KINDS = ('words', 'characters')
# Odd, otherwise arbitrary, and part of every result.
_STEP = 0xD6E8FEB86659FD93
# Code points hashed at once: a few arrays of eight bytes each that stay in the cache.
_BATCH = 1 << 18


@dataclasses.dataclass(frozen=True)
class ShingleConfig:
  """What a shingle is.

  Attributes:
    kind: 'words' or 'characters'.
    size: how many of them; a text with fewer is one shingle of all it has.
    lower: whether upper and lower case are the same.
  """

  kind: str = 'words'
  size: int = 5
  lower: bool = True

  def __post_init__(self):
    if self.kind not in KINDS:
      raise ConfigError(f'shingles.kind is {self.kind!r}, expected one of {", ".join(KINDS)}')
    if self.size < 1:
      raise ConfigError(f'shingles.size is {self.size}, expected at least 1')


def batches_of_shingles(
  texts: Sequence[str], config: ShingleConfig
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
  """All shingles of a few texts at a time, repeated ones too.

  Yields:
    hash_S: uint64, in the order of the text, the texts one after the other.
    start_T: int64 [T + 1]; those of text t are `hash_S[start_T[t] : start_T[t + 1]]`. A text
      without words (or characters) has none.
  """
  for batch in _batches(texts):
    hash_S, text_S = _shingles(batch, config)
    yield hash_S, np.searchsorted(text_S, np.arange(len(batch) + 1))


def shingle_sets(texts: Sequence[str], config: ShingleConfig) -> tuple[np.ndarray, np.ndarray]:
  """The distinct shingles of every text: hash_S, ascending within a text, and start_T as above."""
  parts, counts = [np.zeros(0, np.uint64)], [np.zeros(1, np.int64)]
  for batch in _batches(texts):
    hash_S, text_S = _shingles(batch, config)
    order = np.lexsort((hash_S, text_S))
    hash_S, text_S = hash_S[order], text_S[order]
    is_new = np.ones(len(hash_S), bool)
    is_new[1:] = (hash_S[1:] != hash_S[:-1]) | (text_S[1:] != text_S[:-1])
    parts.append(hash_S[is_new])
    counts.append(np.bincount(text_S[is_new], minlength=len(batch)))
  return np.concatenate(parts), np.cumsum(np.concatenate(counts))


def _batches(texts: Sequence[str]) -> Iterator[Sequence[str]]:
  first, size = 0, 0
  for i, text in enumerate(texts):
    if size and size + len(text) > _BATCH:
      yield texts[first:i]
      first, size = i, 0
    size += len(text) + 1
  if first < len(texts):
    yield texts[first:]


def _shingles(texts: Sequence[str], config: ShingleConfig) -> tuple[np.ndarray, np.ndarray]:
  """(hash_S, text_S) of all shingles in the order of the text, repeated ones too."""
  if config.lower:
    texts = [text.lower() for text in texts]
  joined = '\n'.join(texts)
  length_T = np.fromiter(map(len, texts), np.int64, len(texts))
  start_T = np.cumsum(length_T + 1) - (length_T + 1)
  point_C = running_hash.points(joined)
  if config.kind == 'words':
    unit_W, text_W = _words(point_C, start_T)
  else:
    text_C = np.repeat(np.arange(len(texts)), length_T + 1)[: len(point_C)]
    is_text = np.ones(len(point_C), bool)
    is_text[start_T[1:] - 1] = False
    unit_W, text_W = running_hash.mixed(point_C[is_text].astype(np.uint64)), text_C[is_text]
  return _runs(unit_W, text_W, len(texts), config.size)


def _words(point_C: np.ndarray, start_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(hash_W, text_W) of all words."""
  is_word = np.zeros(len(point_C) + 2, np.int8)
  is_word[1:-1] = _word_table(point_C.dtype == np.uint8)[point_C]
  edge = np.diff(is_word)
  first_W, end_W = np.flatnonzero(edge == 1), np.flatnonzero(edge == -1)
  hash_W = running_hash.words(point_C.astype(np.uint64) + np.uint64(1), first_W, end_W)
  return hash_W, np.searchsorted(start_T, first_W, side='right') - 1


def _runs(unit_W, text_W, num_texts: int, size: int) -> tuple[np.ndarray, np.ndarray]:
  """(hash_S, text_S) of all runs of `size` units within a text, or of all its units if fewer."""
  count_T = np.bincount(text_W, minlength=num_texts)
  start_T = np.cumsum(count_T) - count_T
  num_T = np.where(count_T, np.maximum(count_T - size + 1, 1), 0)
  text_S = np.repeat(np.arange(num_texts), num_T)
  first_S = start_T[text_S] + np.arange(len(text_S)) - (np.cumsum(num_T) - num_T)[text_S]
  units_S = np.minimum(count_T[text_S], size)
  padded = np.concatenate([unit_W, np.zeros(size, np.uint64)])
  hash_S = units_S.astype(np.uint64)
  step = np.uint64(1)
  for i in range(size):
    step = np.uint64(int(step) * _STEP % 2**64)
    part = padded[first_S + i] * step
    hash_S += part if count_T.min(initial=size) >= size else np.where(i < units_S, part, 0)
  return running_hash.mixed(hash_S), text_S


@functools.lru_cache(maxsize=2)
def _word_table(is_ascii: bool) -> np.ndarray:
  """int8: 1 where the code point is a letter, a digit or an underscore."""
  points = range(128 if is_ascii else 0x110000)
  return np.fromiter((chr(c).isalnum() or c == 95 for c in points), np.int8, len(points))
