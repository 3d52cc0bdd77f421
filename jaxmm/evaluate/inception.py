"""Features of images under the FID Inception, in both of the conventions that papers use.

Published FIDs come from two programs that prepare the same images differently and so give
different numbers; statistics of the one must not be compared with those of the other:

    adm          the suite of Dhariwal and Nichol 2021 (arXiv:2105.05233), and FIDs of most papers
                 on ImageNet: pixels in [0, 255] are resized to 299 as TensorFlow 1 does (bilinear,
                 corner of pixel 0 on corner of pixel 0, no antialiasing), then (x - 128) / 128.
                 This is `legacy_tensorflow` of clean-fid.
    pytorch-fid  the package of that name: pixels / 255 are resized bilinearly with half-pixel
                 centres, without antialiasing, then 2 x - 1. This is `legacy_pytorch` of clean-fid.

The weights are a file of the user's (`jaxmm.interop.inception`), and those published for PyTorch
differ from TensorFlow's by rounding alone. With any other weights a distance is no FID.

Axes: B batch, Y X rows and columns, C channels, D pooled features, S spatial features, N images,
V classes, P parts of a set.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxmm.config import ConfigError
from jaxmm.models.inception import FEATURES, IMAGE_SIZE, SPATIAL_FEATURES, Inception

CONVENTIONS = ('adm', 'pytorch-fid')
# What `image_features` returns, `{name: shape of one row}`, as a `batch_job` wants to know it.
FIELDS = {'pool': ((FEATURES,), np.float32), 'spatial': ((SPATIAL_FEATURES,), np.float32)}


def image_features(
  params: Any, image_BYXC: jax.Array, convention: str = 'adm'
) -> dict[str, jax.Array]:
  """`{'pool': [B, 2048], 'spatial': [B, 2023]}` of pictures, float32: what FID and sFID compare.

  Args:
    params: of `models.inception.Inception`.
    image_BYXC: pixels in [0, 255], three channels, of any size (uint8 or whole floats).
    convention: 'adm' or 'pytorch-fid'.

  Raises:
    ConfigError: an unknown convention, or images without three channels.
  """
  out = Inception().apply({'params': params}, network_input(image_BYXC, convention))
  return {'pool': out.pool_BD, 'spatial': out.spatial_BS}


def network_input(image_BYXC: jax.Array, convention: str) -> jax.Array:
  """Pictures as the network sees them, float32 [B, 299, 299, 3]; arguments as `image_features`."""
  if convention not in CONVENTIONS:
    raise ConfigError(f'convention is {convention!r}, expected one of {", ".join(CONVENTIONS)}')
  if image_BYXC.ndim != 4 or image_BYXC.shape[-1] != 3:
    raise ConfigError(
      f'image_BYXC has shape {tuple(image_BYXC.shape)}, expected [B, Y, X, 3]; a grey image must '
      'be repeated to three channels, an opacity channel dropped'
    )
  x = image_BYXC.astype(jnp.float32)
  # What a batch holds beside a row must not move it: the same products for every row.
  for axis, spec in ((1, 'RY,BYXC->BRXC'), (2, 'RX,BYXC->BYRC')):
    if x.shape[axis] != IMAGE_SIZE:
      weight = resize_weights(x.shape[axis], convention)
      x = jnp.einsum(spec, weight, x, precision=lax.Precision.HIGHEST)
  return (x - 128.0) / 128.0 if convention == 'adm' else x / 127.5 - 1.0


def resize_weights(length: int, convention: str) -> np.ndarray:
  """How much of each of `length` pixels is in each of the 299: float32 [299, length]."""
  at = np.arange(IMAGE_SIZE) * (length / IMAGE_SIZE)
  if convention == 'pytorch-fid':
    at = np.maximum((np.arange(IMAGE_SIZE) + 0.5) * (length / IMAGE_SIZE) - 0.5, 0.0)
  low = np.minimum(np.floor(at).astype(int), length - 1)
  high, share = np.minimum(low + 1, length - 1), at - low
  weight = np.zeros((IMAGE_SIZE, length))
  np.add.at(weight, (np.arange(IMAGE_SIZE), low), 1.0 - share)
  np.add.at(weight, (np.arange(IMAGE_SIZE), high), share)
  return weight.astype(np.float32)


def class_probabilities(params: Mapping[str, Any], pool_ND: np.ndarray) -> np.ndarray:
  """Probabilities of the 1008 classes from pooled features, float64 [N, V], as ADM has them: the
  bias of the last layer is left out."""
  kernel = np.asarray(params['fc']['kernel'], np.float64)
  logits = np.asarray(pool_ND, np.float64) @ kernel
  power = np.exp(logits - logits.max(-1, keepdims=True))
  return power / power.sum(-1, keepdims=True)


@dataclasses.dataclass(frozen=True)
class ClassSums:
  """What the Inception Score is made of; float64, merged by adding. Immutable.

  Salimans et al. 2016 (arXiv:1606.03498), section 4: exp of the mean divergence of an image's
  classes from those of its part of the set; the mean over parts.

  Attributes:
    count_P: images of each part.
    negentropy_P: sums over them of sum_v p log p.
    sum_PV: sums over them of the probabilities.
  """

  count_P: np.ndarray
  negentropy_P: np.ndarray
  sum_PV: np.ndarray

  @classmethod
  def empty(cls, parts: int, classes: int) -> ClassSums:
    """Sums of nothing."""
    return cls(np.zeros(parts, np.int64), np.zeros(parts), np.zeros((parts, classes)))

  @classmethod
  def of(cls, probability_NV: np.ndarray, part_N: np.ndarray, parts: int) -> ClassSums:
    """Sums of the rows, each of which belongs to one part."""
    p = np.asarray(probability_NV, np.float64)
    negentropy = np.sum(p * np.log(np.where(p > 0, p, 1.0)), -1)
    out = cls.empty(parts, p.shape[1])
    np.add.at(out.count_P, part_N, 1)
    np.add.at(out.negentropy_P, part_N, negentropy)
    np.add.at(out.sum_PV, part_N, p)
    return out

  def merge(self, other: ClassSums) -> ClassSums:
    """Sums of both."""
    return ClassSums(
      self.count_P + other.count_P,
      self.negentropy_P + other.negentropy_P,
      self.sum_PV + other.sum_PV,
    )

  def score(self) -> float:
    """The Inception Score, between 1 and the number of classes.

    Raises:
      ValueError: no images.
    """
    if not self.count_P.any():
      raise ValueError('the Inception Score of no images')
    scores = []
    for count, negentropy, sum_V in zip(self.count_P, self.negentropy_P, self.sum_PV):
      if count:
        mean_V = sum_V / count
        entropy = -np.sum(mean_V * np.log(np.where(mean_V > 0, mean_V, 1.0)))
        scores.append(np.exp(negentropy / count + entropy))
    return float(np.mean(scores))


def inception_score(
  params: Mapping[str, Any], pool_ND: np.ndarray, rows_a_part: int = 5000
) -> float:
  """The Inception Score of a set from its pooled features.

  Parts are the set's rows in order, 5,000 each, as in ADM's program. A set in the order of its
  classes has parts of few classes and a score that is too low: mix it first.
  """
  pool_ND = np.asarray(pool_ND)
  parts = -(-len(pool_ND) // rows_a_part)
  total = None
  for start in range(0, len(pool_ND), 1000):
    rows = pool_ND[start : start + 1000]
    part_N = np.arange(start, start + len(rows)) // rows_a_part
    sums = ClassSums.of(class_probabilities(params, rows), part_N, parts)
    total = sums if total is None else total.merge(sums)
  if total is None:
    raise ValueError('the Inception Score of no images')
  return total.score()
