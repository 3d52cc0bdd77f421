r"""Lines of texts, and what the rules of `text_quality` count in them, many lines at once.

Every character is of one kind, by Python's `str` methods:

    word character   `isalnum()`; and ' or ’ between two of these
    space            `isspace()`
    mark             any other: punctuation, symbols, underscores, combining signs

A word is a maximal run of word characters (`don't`, `2nd`, `1984`), a number a word of nothing but
`isdigit()`, a token a word or a single mark. Words are compared by 48 bits of a hash of their
lower-cased characters, within one line; who may write the texts can make two words collide.

Axes: L lines of a batch, C code points, W words.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence

import numpy as np

from jaxmm.curation import running_hash

UNITS = ('lines', 'sentences')
_WORD, _SPACE, _UPPER, _LOWER, _DIGIT, _APOSTROPHE, _CURLY, _LETTER = (1 << i for i in range(8))
_BREAK = re.compile('\r\n|\r|\n')
# After a mark that ends a sentence, and a quote or bracket that closes it.
_SENTENCE = re.compile(r'(?<=[.!?])\s+|(?<=[.!?]["\'”’)\]])\s+')
_HASH_BITS = 48
# At once: a few arrays of eight bytes each that stay in the cache; and 16 bits of line number.
_POINTS, _LINES = 1 << 18, 1 << 16


def lines_of(text: str, unit: str = 'lines') -> list[str]:
  r"""The lines of a text, stripped of the space around them; those of nothing else are left out.

  Lines end at \n, \r\n or \r. 'sentences' also cuts them in front of space that follows one of
  `.!?`, or one of these and a closing quote or bracket.
  """
  lines = _BREAK.split(text) if '\r' in text else text.split('\n')
  if unit == 'sentences':
    lines = [part for line in lines for part in _SENTENCE.split(line)]
  return [line for line in map(str.strip, lines) if line]


def batches(lines: Sequence[str]) -> Iterator[Lines]:
  """All lines, as many at a time as bounds memory; where they are cut changes nothing."""
  end_L = np.cumsum(np.fromiter(map(len, lines), np.int64, len(lines)) + 1)
  first = 0
  while first < len(lines):
    before = end_L[first - 1] if first else 0
    end = int(np.searchsorted(end_L, before + _POINTS, side='right'))
    end = min(max(end, first + 1), first + _LINES)
    yield Lines(lines[first:end])
    first = end


class Lines:
  """What is counted in a batch of lines, each thing when it is first asked for.

  Attributes:
    lines: L strings as `lines_of` gives them, at most 65,536.
  """

  def __init__(self, lines: Sequence[str]):
    if len(lines) > _LINES:
      raise ValueError(f'{len(lines)} lines at once, expected at most {_LINES}; use batches')
    self.lines = lines
    joined = '\n'.join([*lines, ''])
    self._point_C = running_hash.points(joined)
    self._is_ascii = self._point_C.dtype == np.uint8
    length_L = np.fromiter(map(len, lines), np.int64, len(lines))
    self._bound = np.concatenate([[0], np.cumsum(length_L + 1)])
    self._kind_C = _kinds(self._is_ascii)[self._point_C]

  def __len__(self) -> int:
    return len(self.lines)

  @functools.cached_property
  def starts_upper_L(self) -> np.ndarray:
    """Whether the first character is a capital (`isupper`)."""
    return self._has(self._kind_C[self._bound[:-1]], _UPPER)

  @functools.cached_property
  def first_letter_upper_L(self) -> np.ndarray:
    """Whether the first letter (`isalpha`) is a capital; False where there is none."""
    letter = np.flatnonzero(self._kind_C & _LETTER)
    place_L = np.searchsorted(letter, self._bound[:-1])
    first_L = np.append(letter, len(self._kind_C) - 1)[place_L]
    return (first_L < self._bound[1:]) & self._has(self._kind_C[first_L], _UPPER)

  @functools.cached_property
  def _any_kind_L(self) -> np.ndarray:
    if not len(self):
      return np.zeros(0, np.uint8)
    return np.bitwise_or.reduceat(self._kind_C, self._bound[:-1])

  @property
  def all_caps_L(self) -> np.ndarray:
    """Whether there are capitals and no small (or title-case) letters: `str.isupper`."""
    return self._has(self._any_kind_L, _UPPER) & ~self._has(self._any_kind_L, _LOWER)

  @property
  def has_curly_L(self) -> np.ndarray:
    """Whether there is a curly bracket."""
    return self._has(self._any_kind_L, _CURLY)

  def ends_in(self, characters: str) -> np.ndarray:
    """Whether the last character is one of these, bool [L]."""
    last_L = self._point_C[np.maximum(self._bound[1:] - 2, 0)]
    return np.isin(last_L, [ord(c) for c in characters]) & (np.diff(self._bound) > 1)

  def contains(self, phrases: Sequence[str]) -> np.ndarray:
    """Whether one of the phrases (ASCII, lower case) is in the line, case ignored; bool [L]."""
    # Bytes are put into lower case many times faster than a text with other letters in it.
    lower = lambda text: text.encode('utf-8', 'surrogatepass').lower()
    joined = lower('\n'.join(self.lines))
    there = [phrase for phrase in map(str.encode, phrases) if phrase in joined]
    if not there:
      return np.zeros(len(self), bool)
    return np.array([any(phrase in lower(line) for phrase in there) for line in self.lines], bool)

  @functools.cached_property
  def _is_word_C(self) -> np.ndarray:
    """With one place in front and one behind."""
    is_word = np.zeros(len(self._kind_C) + 2, bool)
    is_word[1:-1] = self._kind_C & _WORD
    at = np.flatnonzero(self._kind_C & _APOSTROPHE) + 1
    # All are looked up before any is set: of two in a row neither is inside a word.
    is_word[at[is_word[at - 1] & is_word[at + 1]]] = True
    return is_word

  @functools.cached_property
  def _words(self) -> tuple[np.ndarray, np.ndarray]:
    """First place of every word, and the one after its last."""
    edge = np.flatnonzero(self._is_word_C[1:] != self._is_word_C[:-1])
    return edge[::2], edge[1::2]

  @functools.cached_property
  def words_L(self) -> np.ndarray:
    """How many words."""
    return self._count(self._words[0])

  @functools.cached_property
  def marks_L(self) -> np.ndarray:
    """How many marks."""
    is_mark = ~(self._is_word_C[1:-1] | self._has(self._kind_C, _SPACE))
    return self._count(np.flatnonzero(is_mark))

  @functools.cached_property
  def digits_L(self) -> np.ndarray:
    """How many digits."""
    return self._count(np.flatnonzero(self._kind_C & _DIGIT))

  @functools.cached_property
  def numbers_L(self) -> np.ndarray:
    """How many words of nothing but digits."""
    first_W, end_W = self._words
    digit = np.flatnonzero(self._kind_C & _DIGIT)
    # Digits are few: a word is a number if as many of them lie in it as it is long.
    candidates = np.flatnonzero(self._has(self._kind_C[first_W], _DIGIT))
    first, end = first_W[candidates], end_W[candidates]
    inside = np.searchsorted(digit, end) - np.searchsorted(digit, first)
    return self._count(first[inside == end - first])

  @functools.cached_property
  def pieces_L(self) -> np.ndarray:
    """How many runs of characters that are not space."""
    is_space = np.ones(len(self._kind_C) + 1, bool)
    is_space[1:] = self._has(self._kind_C, _SPACE)
    return self._count(np.flatnonzero(is_space[:-1] & ~is_space[1:]))

  @functools.cached_property
  def bytes_L(self) -> np.ndarray:
    """Length in UTF-8."""
    if self._is_ascii:
      return np.diff(self._bound) - 1
    return np.array([len(line.encode('utf-8', 'surrogatepass')) for line in self.lines], np.int64)

  @functools.cached_property
  def _hash_W(self) -> np.ndarray:
    first_W, end_W = self._words
    return _hashes(self._point_C, first_W, end_W, self._is_ascii)

  @functools.cached_property
  def _distinct(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(line, hash, how many there are) of the distinct words of each line."""
    line_W = np.repeat(np.arange(len(self), dtype=np.uint64), self.words_L)
    key_W = np.sort(line_W << np.uint64(_HASH_BITS) | self._hash_W)
    is_new = np.ones(len(key_W), bool)
    is_new[1:] = key_W[1:] != key_W[:-1]
    first = np.flatnonzero(is_new)
    key, count = key_W[first], np.diff(np.append(first, len(key_W)))
    line = (key >> np.uint64(_HASH_BITS)).astype(np.int64)
    return line, key & np.uint64(2**_HASH_BITS - 1), count

  @functools.cached_property
  def distinct_words_L(self) -> np.ndarray:
    """How many different words, upper and lower case being the same."""
    return np.bincount(self._distinct[0], minlength=len(self))

  @functools.cached_property
  def most_frequent_L(self) -> np.ndarray:
    """How often the most frequent word comes; 0 without words."""
    line, _, count = self._distinct
    most_L = np.zeros(len(self), np.int64)
    np.maximum.at(most_L, line, count)
    return most_L

  def words_of(self, words: Sequence[str], is_distinct: bool) -> np.ndarray:
    """How many of its words, or of its distinct ones, are among these (lower case), int64 [L]."""
    wanted = _hash_of_words(tuple(words))
    if is_distinct:
      line, hashes, _ = self._distinct
      return np.bincount(line[np.isin(hashes, wanted)], minlength=len(self))
    return self._count(self._words[0][np.isin(self._hash_W, wanted)])

  def _count(self, place: np.ndarray) -> np.ndarray:
    """How many of these places (ascending) lie in each line, int64 [L]."""
    return np.diff(np.searchsorted(place, self._bound))

  @staticmethod
  def _has(kind: np.ndarray, bit: int) -> np.ndarray:
    return (kind & bit) != 0


@functools.lru_cache(maxsize=2)
def _kinds(is_ascii: bool) -> np.ndarray:
  """Bits of every code point, uint8."""
  points = range(128 if is_ascii else 0x110000)
  kinds = np.fromiter((_kind(chr(c)) for c in points), np.uint8, len(points))
  for bit, characters in ((_APOSTROPHE, "'’"), (_CURLY, '{}')):
    for c in characters:
      if ord(c) < len(kinds):
        kinds[ord(c)] |= bit
  return kinds


def _kind(c: str) -> int:
  if not c.isprintable() and not c.isspace():
    return 0
  kind = _WORD * c.isalnum() | _SPACE * c.isspace() | _UPPER * c.isupper()
  kind |= _LOWER * (c.islower() or c.istitle() and not c.isupper())
  return kind | _DIGIT * c.isdigit() | _LETTER * c.isalpha()


@functools.lru_cache(maxsize=2)
def _values(is_ascii: bool) -> np.ndarray:
  """1 and every code point's lower case, uint64; its own where that is several characters."""
  lower = np.arange(128 if is_ascii else 0x110000, dtype=np.uint64)
  for c in np.flatnonzero(_kinds(is_ascii) & (_UPPER | _LOWER)).tolist():
    one = chr(c).lower()
    lower[c] = ord(one) if len(one) == 1 else c
  return lower + np.uint64(1)


def _hashes(point_C, first_W, end_W, is_ascii: bool) -> np.ndarray:
  """48 bits of every word's lower-cased characters, uint64."""
  hash_W = running_hash.words(_values(is_ascii)[point_C], first_W, end_W)
  return hash_W >> np.uint64(64 - _HASH_BITS)


@functools.lru_cache(maxsize=8)
def _hash_of_words(words: tuple[str, ...]) -> np.ndarray:
  point_C = np.array([ord(c) for word in words for c in word], np.uint32)
  end_W = np.cumsum([len(word) for word in words])
  return _hashes(point_C, np.append(0, end_W[:-1]), end_W, ''.join(words).isascii())
