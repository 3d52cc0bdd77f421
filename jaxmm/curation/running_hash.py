"""Hashes of many words at once, out of one running sum over the code points of their texts.

Of the word x0 x1 ... the hash is x0 + x1 b + x2 b^2 + ... modulo 2^64, mixed: a difference of two
running sums, divided by the power of b at its start. It is a function of the word alone, the same
on every machine and in every batch. It is not cryptographic: who may write the texts can make two
words collide.

Axes: C code points, W words.
"""

from __future__ import annotations

import numpy as np

# Odd, so that it has an inverse modulo 2^64; otherwise arbitrary, and part of every hash.
_BASE = 0x9E3779B97F4A7C15


def points(text: str) -> np.ndarray:
  """Its code points: uint8 of ASCII, else uint32. Lone surrogates, of broken files, are kept."""
  if text.isascii():
    return np.frombuffer(text.encode('ascii'), np.uint8)
  return np.frombuffer(text.encode('utf-32-le', 'surrogatepass'), np.uint32)


def words(value_C: np.ndarray, first_W: np.ndarray, end_W: np.ndarray) -> np.ndarray:
  """The hash of every word, uint64.

  Args:
    value_C: uint64, one and the code point; overwritten.
    first_W, end_W: a word's first place, and the one after its last.
  """
  power_C, inverse_C = _powers(len(value_C))
  upto = np.zeros(len(value_C) + 1, np.uint64)
  value_C *= power_C
  np.cumsum(value_C, out=upto[1:])
  return mixed((upto[end_W] - upto[first_W]) * inverse_C[first_W])


def mixed(x: np.ndarray) -> np.ndarray:
  """A bijection of uint64, every output bit hanging on every input bit (splitmix64's last step)."""
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return x ^ (x >> np.uint64(31))


_POWERS: list[np.ndarray] = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
  """The first powers of the base and of its inverse, modulo 2^64; made once."""
  if len(_POWERS[0]) < length:
    size = 1 << (length - 1).bit_length()
    for k, base in enumerate((_BASE, pow(_BASE, -1, 2**64))):
      factors = np.full(size, base, np.uint64)
      factors[0] = 1
      _POWERS[k] = np.cumprod(factors)
  return _POWERS[0][:length], _POWERS[1][:length]
