"""How a codebook is used: counts of codes over a data set, exact for any mesh and any size.

Neither usage nor perplexity is a mean over batches, so only counts travel: int32 on the device
over one batch (`quantizer.code_counts`, exact below 2^31), int64 on the host over batches. float32
counts would stop growing at 2^24, about 16 million.

Axes: K codebook entries.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from jaxmm.tokenizers import quantizer


@dataclasses.dataclass(frozen=True)
class CodeCounts:
  """Counts of codes over any number of batches; int64, merged by adding. Immutable."""

  count_K: np.ndarray

  @classmethod
  def empty(cls, num_codes: int) -> CodeCounts:
    """Counts of nothing."""
    return cls(np.zeros(num_codes, np.int64))

  @classmethod
  def of(cls, ids: Any, num_codes: int) -> CodeCounts:
    """Counts of ids in memory, of any shape.

    Raises:
      ValueError: an id outside [0, num_codes).
    """
    ids = np.asarray(ids).reshape(-1)
    if ids.size and (ids.min() < 0 or ids.max() >= num_codes):
      raise ValueError(f'ids {ids.min()}..{ids.max()}, expected 0..{num_codes - 1}')
    return cls(np.bincount(ids, minlength=num_codes).astype(np.int64))

  def merge(self, other: CodeCounts | Any) -> CodeCounts:
    """Counts of both; `other` may be an array of integers, as `quantizer.code_counts` gives.

    Raises:
      ValueError: another number of codes, or counts that are no integers.
    """
    more_K = other.count_K if isinstance(other, CodeCounts) else np.asarray(other)
    if more_K.shape != self.count_K.shape or more_K.dtype.kind not in 'iu':
      raise ValueError(
        f'counts {more_K.dtype}{more_K.shape}, expected integers of shape {self.count_K.shape}'
      )
    return CodeCounts(self.count_K + more_K.astype(np.int64))

  @property
  def total(self) -> int:
    """Number of ids counted."""
    return int(self.count_K.sum())

  @property
  def used(self) -> int:
    """Number of codes that occur."""
    return int(np.count_nonzero(self.count_K))

  @property
  def usage(self) -> float:
    """Share of the codebook that occurs, in [0, 1]; grows with the amount of data counted."""
    return quantizer.usage(self.count_K)

  @property
  def perplexity(self) -> float:
    """exp of the entropy (nats) of the code frequencies: K if all are used alike; 0 of nothing."""
    return quantizer.perplexity(self.count_K)

  @property
  def entropy_bits(self) -> float:
    """Entropy of the code frequencies in bits a position: what an ideal order-0 coder would pay."""
    return float(np.log2(max(self.perplexity, 1.0)))
