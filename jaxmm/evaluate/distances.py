"""How far two sets of images are apart, by the features that a network makes of them.

The Frechet distance between Gaussians fitted to features (Heusel et al. 2017, arXiv:1706.08500,
eq. 6), and the kernel distance, which few images suffice for. The features are the caller's: with
those of `jaxmm.evaluate.inception` these are FID and KID, with others they are not.

Axes: N M rows of a set, D feature width.
"""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, Literal

import numpy as np

from jaxmm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class FeatureStatistics:
  """Number, mean and scatter (sum of outer products of deviations) of feature rows; on the host.

  All is float64. Sets merge in any order and split (Chan, Golub and LeVeque 1983): deviations from
  a set's own mean are summed, never squares less a square of a sum, so features whose mean is large
  against their spread lose nothing. Features travel to the host as the float32 they are computed
  in (8 KiB an image): sums of them on the device in float32, or in pairs of float32, would need
  more memory traffic there than that, and float64 is not to be had on a TPU. Immutable: every
  method returns new statistics.

  Attributes:
    count: rows; None where a public file of statistics does not say.
    mean_D: their mean.
    scatter_DD: their covariance times count - 1; where the count is not known, the covariance.
  """

  count: int | None
  mean_D: np.ndarray
  scatter_DD: np.ndarray

  @classmethod
  def empty(cls, width: int) -> FeatureStatistics:
    """Statistics of no rows."""
    return cls(0, np.zeros(width), np.zeros((width, width)))

  @classmethod
  def of(cls, features_ND: Any, valid_N: Any = None) -> FeatureStatistics:
    """Statistics of the rows of one array, without those where `valid_N` is 0.

    Raises:
      ValueError: a feature is not finite.
    """
    rows_ND = np.asarray(features_ND)
    if valid_N is not None:
      rows_ND = rows_ND[np.asarray(valid_N) > 0]
    rows_ND = rows_ND.astype(np.float64)
    if not np.isfinite(rows_ND).all():
      bad = np.flatnonzero(~np.isfinite(rows_ND).all(1))
      raise ValueError(f'{len(bad)} of {len(rows_ND)} feature rows are not finite, first {bad[0]}')
    if not len(rows_ND):
      return cls.empty(rows_ND.shape[1])
    mean_D = rows_ND.mean(0)
    rows_ND = rows_ND - mean_D
    # What is left of the mean by its own rounding.
    rest_D = rows_ND.mean(0)
    scatter_DD = rows_ND.T @ rows_ND - len(rows_ND) * np.outer(rest_D, rest_D)
    return cls(len(rows_ND), mean_D + rest_D, scatter_DD)

  def merge(self, other: FeatureStatistics) -> FeatureStatistics:
    """Statistics of both sets.

    Raises:
      ValueError: other widths, or a set whose number of rows is not known.
    """
    if self.width != other.width:
      raise ValueError(f'features of width {self.width} and {other.width} cannot be merged')
    if self.count is None or other.count is None:
      raise ValueError('statistics without their number of rows cannot be merged')
    if not self.count or not other.count:
      return other if other.count else self
    count = self.count + other.count
    step_D = other.mean_D - self.mean_D
    between_DD = np.outer(step_D, step_D) * (self.count * (other.count / count))
    return FeatureStatistics(
      count,
      self.mean_D + step_D * (other.count / count),
      self.scatter_DD + other.scatter_DD + between_DD,
    )

  @property
  def width(self) -> int:
    """Feature width D."""
    return len(self.mean_D)

  def mean(self) -> np.ndarray:
    """Mean row, [D]."""
    if self.count == 0:
      raise ValueError('the mean of no features; the pass found no valid image')
    return self.mean_D

  def covariance(self) -> np.ndarray:
    """Unbiased covariance (divided by count - 1), [D, D]."""
    if self.count is None:
      return self.scatter_DD
    if self.count < 2:
      raise ValueError(f'the covariance of {self.count} feature rows; at least 2 are needed')
    return self.scatter_DD / (self.count - 1)

  def save(self, path: str | pathlib.Path) -> None:
    """Writes an `.npz`, for a set that is compared with often."""
    with open(path, 'wb') as file:  # given a name, savez would append its own ending
      np.savez(file, count=np.int64(self.count), mu=self.mean(), sigma=self.covariance())

  @classmethod
  def load(cls, path: str | pathlib.Path) -> FeatureStatistics:
    """Reads what `save` wrote.

    Raises:
      ConfigError: the file holds something else.
    """
    with np.load(path, allow_pickle=False) as arrays:
      if not {'count', 'mu', 'sigma'} <= set(arrays.files):
        raise ConfigError(
          f'{path}: holds {", ".join(arrays.files)}, expected count, mu and sigma; remove it, and '
          'what made it makes it anew'
        )
      count = int(arrays['count'])
      return cls(count, arrays['mu'], arrays['sigma'] * (count - 1))


def frechet_distance(
  a: FeatureStatistics, b: FeatureStatistics, *, few_samples: Literal['error', 'accept'] = 'error'
) -> float:
  """Squared Frechet distance between the Gaussians with the means and covariances of two sets.

  |m_a - m_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2) in float64; nothing is added to the covariances.
  The trace of the last root is the sum of the singular values of A^1/2 B^1/2: real and never below
  zero, and where a covariance is singular (fewer rows than features) its rounding is not taken the
  root of, as that of a product of covariances is. It is biased upwards by about 1 / samples:
  compare only figures of one number of samples and one feature network.

  Args:
    a, b: the sets; the result is symmetric.
    few_samples: a set of no more than D rows has a singular covariance, and its distance says more
      of its size than of its images. 'error' refuses; 'accept' computes it all the same. Of public
      statistics the number is not known, and they pass.

  Raises:
    ConfigError: other widths, or too few samples.
  """
  if a.width != b.width:
    raise ConfigError(f'features of width {a.width} and {b.width}: not of one network')
  if few_samples not in ('error', 'accept'):
    raise ConfigError(f"few_samples is {few_samples!r}, expected 'error' or 'accept'")
  known = [x.count for x in (a, b) if x.count is not None]
  if known and min(known) <= a.width and few_samples == 'error':
    counts = ' and '.join('an unknown number' if x.count is None else str(x.count) for x in (a, b))
    raise ConfigError(
      f'a Frechet distance in {a.width} features needs more than {a.width} samples of each set, '
      f'got {counts}; take more, or say few_samples="accept"'
    )
  cov_a, cov_b = a.covariance(), b.covariance()
  gap_D = a.mean() - b.mean()
  distance = gap_D @ gap_D + np.trace(cov_a) + np.trace(cov_b) - 2.0 * root_trace(cov_a, cov_b)
  return float(max(distance, 0.0))


def root_trace(a_DD: np.ndarray, b_DD: np.ndarray) -> float:
  """tr((A B)^1/2) of two covariances: the sum of the singular values of A^1/2 B^1/2."""
  # Roots may be turned on the outer side: with A = F F', those of F' G are the same.
  return float(np.linalg.svd(_factor(a_DD).T @ _factor(b_DD), compute_uv=False).sum())


def _factor(covariance_DD: np.ndarray) -> np.ndarray:
  """F [D, R] with F F' the covariance, of R eigenvalues that are more than rounding."""
  values_D, vectors_DD = np.linalg.eigh(covariance_DD)
  # Below this an eigenvalue is rounding; its root would be 1e8 times as large.
  least = len(values_D) * np.finfo(np.float64).eps * max(values_D[-1], 0.0)
  kept = values_D > least
  return vectors_DD[:, kept] * np.sqrt(values_D[kept])


def kernel_distance(a_ND: np.ndarray, b_MD: np.ndarray) -> float:
  """The squared maximum mean discrepancy of two sets of features, without bias.

  Its kernel is (x y / D + 1)^3 (Binkowski et al. 2018, arXiv:1801.01401, eq. 4 and section 3). May
  be below 0 where the sets are alike. Unlike the Frechet distance its mean does not depend on how
  many images there are, so it serves sets smaller than the features are wide.

  Args:
    a_ND, b_MD: features, at least two rows each.

  Raises:
    ValueError: fewer rows, or rows of different widths.
  """
  if min(len(a_ND), len(b_MD)) < 2 or a_ND.shape[1] != b_MD.shape[1]:
    raise ValueError(
      f'features are {list(a_ND.shape)} and {list(b_MD.shape)}, expected at least two rows of one '
      'width in each'
    )
  a, b = np.asarray(a_ND, np.float64), np.asarray(b_MD, np.float64)
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1.0) ** 3

  def summed(x, y):
    # A tile at a time: of 50,000 rows the whole would be 20 GB.
    return sum(kernel(x[i : i + _TILE], y).sum() for i in range(0, len(x), _TILE))

  def within(x):
    own = ((np.einsum('ND,ND->N', x, x) / x.shape[1] + 1.0) ** 3).sum()
    return (summed(x, x) - own) / (len(x) * (len(x) - 1))

  return float(within(a) + within(b) - 2.0 * summed(a, b) / (len(a) * len(b)))


_TILE = 1000
