"""How likely a model finds data, in units that can be compared: bits an image, a dimension, a byte.

What travels is a sum of negative log-likelihoods in nats and a count.
`jaxmm.core.losses.position_sums` gives one pair for each position, so that a curve and the total
come from the same numbers.

Axes: L positions.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from jaxmm.config import ConfigError

_NATS_TO_BITS = 1.0 / math.log(2.0)


@dataclasses.dataclass(frozen=True)
class PositionCurve:
  """Cross-entropy at every position over a data set; float64, merged by adding. Immutable.

  Attributes:
    nats_L: sums over examples.
    count_L: how many tokens each sum has.
  """

  nats_L: np.ndarray
  count_L: np.ndarray

  @classmethod
  def of(cls, nats_L: Any, count_L: Any) -> PositionCurve:
    """From sums and counts as `core.losses.position_sums` gives; they become float64."""
    nats_L, count_L = np.asarray(nats_L, np.float64), np.asarray(count_L, np.float64)
    if nats_L.ndim != 1 or nats_L.shape != count_L.shape:
      raise ValueError(f'sums {nats_L.shape} and counts {count_L.shape}, expected one shape [L]')
    return cls(nats_L, count_L)

  def merge(self, other: PositionCurve) -> PositionCurve:
    """The curve over both sets."""
    return PositionCurve.of(self.nats_L + other.nats_L, self.count_L + other.count_L)

  def nats(self) -> np.ndarray:
    """Mean nats a token at each position, [L]; NaN where nothing was counted."""
    return np.divide(
      self.nats_L, self.count_L, out=np.full(self.nats_L.shape, np.nan), where=self.count_L > 0
    )

  def bits(self) -> np.ndarray:
    """Mean bits a token at each position, [L]."""
    return self.nats() * _NATS_TO_BITS

  def mean_nats(self) -> float:
    """Mean nats a token over all positions: the cross-entropy that training reports."""
    return _ratio(self.nats_L.sum(), self.count_L.sum(), 'tokens')

  def perplexity(self) -> float:
    """exp of `mean_nats`."""
    return math.exp(self.mean_nats())

  def bits_per_example(self) -> float:
    """Sum of the curve: bits to code one example, as an image whose every position is one token.

    Raises:
      ValueError: a position that no example has; the sum would leave it out.
    """
    if not self.count_L.all():
      empty = np.flatnonzero(self.count_L == 0)
      raise ValueError(f'position {empty[0]} ({len(empty)} in all) has no token; bits a token only')
    return float(self.bits().sum())


def bits_per_image(nll_nats: float, num_images: float) -> float:
  """Bits to code one image's tokens.

  Comparable between tokenizers of one data set, also of different lengths and codebooks, as what
  stage 2 pays; it says nothing of what the tokenizer has dropped.

  Args:
    nll_nats: summed over all tokens of all images, in nats.
    num_images: how many images that is.
  """
  return _ratio(nll_nats, num_images, 'images') * _NATS_TO_BITS


def bits_per_dim(nll_nats: float, num_dims: float) -> float:
  """Bits a dimension, for likelihoods of pixels: `num_dims` is images * Y * X * C."""
  return _ratio(nll_nats, num_dims, 'dimensions') * _NATS_TO_BITS


def bits_per_byte(nll_nats: float, num_bytes: float) -> float:
  """Bits a byte, comparable across text tokenizers.

  Args:
    nll_nats: of the whole texts, summed over tokens, in nats.
    num_bytes: length of the same texts in UTF-8 bytes, special tokens not counted.
  """
  return _ratio(nll_nats, num_bytes, 'bytes') * _NATS_TO_BITS


def _ratio(total: float, count: float, what: str) -> float:
  if not count > 0:
    raise ConfigError(f'a likelihood over {count} {what}: nothing was counted; is the data empty?')
  return float(total) / float(count)
