"""Does a score only measure length?

Singh et al. 2024 (arXiv:2407.00434) find that scores made of embeddings of code follow it. Look at
`report` before a score is trusted; where it is confounded, `stratified` asks instead how an
example stands among those of its own length.

Axes: N examples, B bins of length.
"""

from __future__ import annotations

import dataclasses
import math

import numpy as np

from jaxmm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Confounding:
  """How a score goes with length.

  Attributes:
    examples: with a finite score and a length above 0; only these are looked at.
    correlation, low, high: Spearman's rank correlation of score and log length, and its interval
      (Fisher's z with the standard error of Bonett and Wright 2000); nan where there is none.
    stratified: the correlation that is left when the score is ranked within bins.
    length_B: the median length in each bin.
    score_B: the median score in each bin.
    examples_B: how many are in each bin.
  """

  examples: int
  correlation: float
  low: float
  high: float
  stratified: float
  length_B: tuple[float, ...]
  score_B: tuple[float, ...]
  examples_B: tuple[int, ...]

  def lines(self) -> list[str]:
    """For a terminal."""
    rows = zip(self.length_B, self.score_B, self.examples_B)
    return [
      f'rank correlation of score and length: {self.correlation:+.3f} ({self.low:+.3f} to '
      f'{self.high:+.3f}, {self.examples:,} examples); within bins {self.stratified:+.3f}',
      *(f'  length {x:,.0f}: median score {y:.6g} ({n:,} examples)' for x, y, n in rows),
    ]


def report(
  score_N: np.ndarray, length_N: np.ndarray, bins: int = 10, confidence: float = 0.95
) -> Confounding:
  """Of a score and the lengths of the examples, both in the same order.

  Logarithm and length have the same ranks, so the correlation is that of either.
  """
  score_N, length_N = _pair(score_N, length_N)
  has_N = np.isfinite(score_N) & (length_N > 0)
  score_N, length_N = score_N[has_N], length_N[has_N]
  rho = _rank_correlation(score_N, length_N)
  low, high = _interval(rho, len(score_N), confidence)
  bin_N = length_bins(length_N, bins)
  groups = [bin_N == b for b in np.unique(bin_N)]
  return Confounding(
    len(score_N),
    rho,
    low,
    high,
    _rank_correlation(stratified(score_N, length_N, bins), length_N),
    tuple(float(np.median(length_N[g])) for g in groups),
    tuple(float(np.median(score_N[g])) for g in groups),
    tuple(int(g.sum()) for g in groups),
  )


def stratified(score_N: np.ndarray, length_N: np.ndarray, bins: int = 10) -> np.ndarray:
  """Each score's place among those of similar length; float64 [N] in (0, 1), nan stays nan.

  (rank - 1/2) / examples in the bin; equal scores share the mean of their ranks, so no order of the
  examples shows.
  """
  score_N, length_N = _pair(score_N, length_N)
  place_N = np.full(len(score_N), np.nan)
  has_N = ~np.isnan(score_N)
  bin_N = np.full(len(score_N), -1)
  bin_N[has_N] = length_bins(length_N[has_N], bins)
  for b in np.unique(bin_N[has_N]):
    here = bin_N == b
    place_N[here] = (_ranks(score_N[here]) - 0.5) / here.sum()
  return place_N


def length_bins(length_N: np.ndarray, bins: int) -> np.ndarray:
  """Which quantile of the lengths each example is in; int64 [N] in [0, bins).

  Equal lengths are in the same bin, so bins may be uneven, or empty.
  """
  if not isinstance(bins, int) or bins < 1:
    raise ConfigError(f'bins is {bins!r}, expected a whole number of 1 or more')
  length_N = np.asarray(length_N)
  if not len(length_N):
    return np.zeros(0, np.int64)
  # Of equal lengths the first in the sorted order decides for all.
  first_N = np.searchsorted(np.sort(length_N), length_N, side='left')
  return first_N * bins // len(length_N)


def _pair(score_N, length_N) -> tuple[np.ndarray, np.ndarray]:
  score_N, length_N = np.asarray(score_N, np.float64), np.asarray(length_N)
  if score_N.shape != length_N.shape or score_N.ndim != 1:
    raise ConfigError(
      f'scores and lengths have the shapes {score_N.shape} and {length_N.shape}, expected the same '
      '[N]'
    )
  return score_N, length_N


def _ranks(value_N: np.ndarray) -> np.ndarray:
  """From 1; equal values share the mean of their ranks."""
  _, inverse, number = np.unique(value_N, return_inverse=True, return_counts=True)
  last = np.cumsum(number)
  return (last - (number - 1) / 2)[inverse]


def _rank_correlation(a_N: np.ndarray, b_N: np.ndarray) -> float:
  if len(a_N) < 2:
    return math.nan
  a_N, b_N = (_ranks(x_N) - (len(x_N) + 1) / 2 for x_N in (a_N, b_N))
  scale = math.sqrt(float(a_N @ a_N) * float(b_N @ b_N))
  return float(a_N @ b_N) / scale if scale else math.nan


def _interval(rho: float, number: int, confidence: float) -> tuple[float, float]:
  if not 0 < confidence < 1:
    raise ConfigError(f'confidence is {confidence}, expected in (0, 1)')
  if number < 4 or math.isnan(rho) or abs(rho) >= 1:
    return (rho, rho) if abs(rho) >= 1 else (math.nan, math.nan)
  from scipy.special import ndtri  # scipy takes a moment to import

  error = math.sqrt((1 + rho**2 / 2) / (number - 3))
  half = float(ndtri((1 + confidence) / 2)) * error
  return math.tanh(math.atanh(rho) - half), math.tanh(math.atanh(rho) + half)
