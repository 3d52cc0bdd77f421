"""Features of a set of images under a classifier, and their statistics, on whatever mesh.

Axes: N images, B batch, Y X rows and columns, C channels, D feature width.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError
from jaxmm.evaluate.distances import FeatureStatistics
from jaxmm.models.classifier import LITE0, ClassifierConfig, image_features

# Each merge writes a D x D matrix several times, which for few rows costs more than their products.
_ROWS_AT_ONCE = 1024


def feature_statistics(
  images: np.ndarray | batch_job.Pass,
  params: Any,
  *,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  size: int | None = None,
  config: ClassifierConfig = LITE0,
  batch_size: int = 64,
  echo: Callable[[str], None] | None = None,
) -> FeatureStatistics:
  """Statistics of the classifier's pooled features over a set of images.

  Args:
    images: uint8 [N, Y, X, C] in memory, or one ordered pass over a data set (`data.pipeline`,
      `train=False`), of which rows that cannot be read are left out.
    params: of the classifier (`interop.efficientnet.read_classifier`).
    mesh, rules: where it runs.
    size: side in pixels at which the network sees them; both sets of a comparison need the same.
    config: sizes of the network.
    batch_size: images a step, for images in memory; rounded up to the mesh.
    echo: is given progress lines.

  Raises:
    ConfigError: images of another type or shape, grey images included.
  """
  rows = _parts(images, params, mesh, rules, size, config, batch_size, echo)
  total, held = FeatureStatistics.empty(config.features), []
  for part in rows:
    held.append(part)
    if sum(map(len, held)) >= _ROWS_AT_ONCE:
      total, held = total.merge(FeatureStatistics.of(np.concatenate(held))), []
  return total.merge(FeatureStatistics.of(np.concatenate(held))) if held else total


def feature_rows(
  images: np.ndarray | batch_job.Pass,
  params: Any,
  *,
  mesh: jax.sharding.Mesh,
  rules: sharding.Rules,
  size: int | None = None,
  config: ClassifierConfig = LITE0,
  batch_size: int = 64,
  echo: Callable[[str], None] | None = None,
) -> np.ndarray:
  """The features themselves, float32 [N, D]; arguments as of `feature_statistics`."""
  parts = list(_parts(images, params, mesh, rules, size, config, batch_size, echo))
  return np.concatenate(parts) if parts else np.zeros((0, config.features), np.float32)


def _parts(images, params, mesh, rules, size, config, batch_size, echo) -> Iterator[np.ndarray]:
  """Features of the rows that can be read, a batch at a time."""
  passes = image_pass(images, batch_size, mesh) if isinstance(images, np.ndarray) else images

  def features(params, batch):
    image_BYXC = batch['image_BYXC']
    return {'features': image_features(params, image_BYXC, size=size, config=config)}

  results = batch_job.outputs(passes, features, variables=params, mesh=mesh, rules=rules)
  for start, result in results:
    yield result['features'][result[batch_job.VALID]]
    if echo:
      echo(f'features: {start + len(result["features"]):,}/{passes.num_records:,} images')


def image_pass(
  image_NYXC: np.ndarray, batch_size: int, mesh: jax.sharding.Mesh
) -> batch_job.ArrayPass:
  """Images in memory (or in a mapped file) as one ordered pass.

  Raises:
    ConfigError: images of another type or shape, or none.
  """
  if image_NYXC.ndim != 4 or image_NYXC.dtype != np.uint8 or not len(image_NYXC):
    raise ConfigError(
      f'images are {image_NYXC.dtype}{image_NYXC.shape}, expected uint8 [N, Y, X, C], N >= 1'
    )
  return batch_job.ArrayPass({'image_BYXC': image_NYXC}, batch_size, mesh)
