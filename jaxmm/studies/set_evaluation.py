"""Evaluations that need no run: two sets of pictures, a classifier on labelled ones, embeddings."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError
from jaxmm.core.losses import weighted_sum
from jaxmm.data import pipeline
from jaxmm.evaluate import inception, retrieval, statistics_file
from jaxmm.evaluate.classification import classification_sums
from jaxmm.interop.efficientnet import read_classifier
from jaxmm.models.classifier import LITE0, image_logits
from jaxmm.studies import image_sets, reconstructions
from jaxmm.studies.encoders import weights_digest
from jaxmm.studies.stages import write_json

Echo = Callable[[str], None]


def compare(
  images: str,
  output: str | os.PathLike,
  *,
  weights: str = '',
  convention: str = 'adm',
  reference: str = '',
  is_paired: bool = False,
  lpips: Sequence[str] = (),
  statistics: str = '',
  few_samples: str = 'error',
  batch: int = 64,
  image_size: int | None = None,
  max_images: int | None = None,
  echo: Echo = print,
) -> dict[str, Any]:
  """What can be said of a set of pictures and of two; prints it, writes `OUTPUT/evaluation.json`.

  Args:
    images: folder, zip or sample batch that is judged.
    output: directory of the results, and of the features they are made of.
    weights: file of the FID Inception; '' leaves out what needs it.
    convention: 'adm' or 'pytorch-fid'.
    reference: another set, or public statistics; '' for none.
    is_paired: whether picture i of the one belongs to picture i of the other.
    lpips: files of LPIPS weights, for pairs.
    statistics: where to write the statistics of `images`; '' for nowhere.
    few_samples: 'accept' computes Frechet distances of fewer pictures than features.
    batch, image_size, max_images: see `image_sets.open_pictures`.
    echo: is given lines.

  Raises:
    ConfigError: nothing asked for, or files that cannot be read or compared.
  """
  if not (weights or is_paired):
    raise ConfigError(
      f'nothing to do with {images}: name the FID Inception (--inception FILE) or pairs (--pairs)'
    )
  if is_paired and not reference:
    raise ConfigError('--pairs compares --images with a --reference; name one')
  mesh = image_sets.mesh_of_all()
  options = dict(mesh=mesh, batch=batch, image_size=image_size, max_images=max_images)
  results: dict[str, Any] = {}
  network = None
  if is_paired:
    results |= _pairs(images, reference, reconstructions.read_lpips(lpips), options)
  elif lpips:
    raise ConfigError('--lpips is of pairs; say --pairs')
  if weights:
    network = image_sets.inception_network(weights, convention)
    results |= _of_features(
      images, reference, network, output, statistics, few_samples, options, echo
    )
  settings = dict(
    images=str(images), reference=str(reference), convention=convention, few_samples=few_samples,
    image_size=image_size, max_images=max_images, features=network and dict(network.identity),
  )  # fmt: skip
  report(pathlib.Path(output, 'evaluation.json'), results, settings, echo)
  return results


def _of_features(images, reference, network, output, statistics, few_samples, options, echo):
  output = pathlib.Path(output)
  pictures = image_sets.open_pictures(images, **options)
  if reference:  # what is wrong with it is said before hours are spent
    image_sets.check_enough(pictures.batches.num_records, network, few_samples)
    other = image_sets.reference_of(reference, network, output, echo=echo, **options)
  store = image_sets.features_of(pictures, network, output, mesh=options['mesh'], echo=echo)
  own = image_sets.set_of_store(store)
  if own.rows is None or not len(own.rows):
    raise ConfigError(f'{images}: none of its {len(store)} pictures could be read')
  results = {'images': len(own.rows), 'unreadable': own.unreadable}
  results['inception_score'] = inception.inception_score(network.params, own.rows)
  if statistics and jax.process_index() == 0:
    statistics_file.write_statistics(statistics, dict(own.statistics))
    echo(f'statistics of {len(own.rows)} images: {statistics}')
  if reference:
    results |= image_sets.compared(own, other, few_samples=few_samples, echo=echo)
  return results


def _pairs(images: str, reference: str, lpips: Any, options: Mapping[str, Any]) -> dict[str, Any]:
  """Means over the pairs of which both can be read."""
  found = []
  for path in (images, reference):
    pictures = image_sets.open_pictures(path, **options)
    found.append(pictures.batches)
  one, two = found
  if one.num_records != two.num_records:
    raise ConfigError(
      f'--pairs: {images} has {one.num_records} pictures, {reference} {two.num_records}; expected '
      'as many'
    )

  def sums(lpips, batch):
    valid_B = batch['valid_B'] * batch['other_valid_B']
    rows = reconstructions.pair_rows(batch['image_BYXC'], batch['other_BYXC'], lpips)
    return {name: weighted_sum(value, valid_B > 0) for name, value in rows.items()}

  mesh = options['mesh']
  totals = batch_job.run_sums(
    _Both(one, two), sums, variables=lpips, mesh=mesh, rules=sharding.RULES['dp']
  )
  return {name: total / count if count else None for name, (total, count) in totals.items()}


class _Both:
  """Two passes side by side."""

  def __init__(self, one: batch_job.Pass, two: batch_job.Pass):
    self._passes = one, two
    self.num_records, self.batch_size = one.num_records, len(one.record_ids(0))
    self.record_ids = one.record_ids

  def from_step(self, step: int):
    one, two = (p.from_step(step) for p in self._passes)
    for rows, others in zip(one, two):
      if rows['image_BYXC'].shape != others['image_BYXC'].shape:
        shapes = [tuple(x['image_BYXC'].shape[1:]) for x in (rows, others)]
        raise ConfigError(f'--pairs of pictures of {shapes[0]} and {shapes[1]}, expected one shape')
      yield {**rows, 'other_BYXC': others['image_BYXC'], 'other_valid_B': others['valid_B']}


def classify(
  images: str,
  output: str | os.PathLike,
  *,
  weights: str = '',
  labels: str = '',
  size: int | None = None,
  batch: int = 64,
  max_images: int | None = None,
  echo: Echo = print,
) -> dict[str, Any]:
  """Top-1, top-5 and likelihood of EfficientNet-Lite0 on pictures with ImageNet's classes.

  Args:
    images: folder or zip of pictures.
    output: directory of the results.
    weights: file of the classifier; '' for that of the installed package.
    labels: csv of classes; '' takes the folders in sorted order.
    size: pixels at which the network sees them; None is 224, which pictures are cropped to.
    batch, max_images: rows a step; use only so many, evenly spaced.
    echo: is given lines.
  """
  params = read_classifier(weights or None)
  size = LITE0.image_size if size is None else size
  config = pipeline.DataConfig(
    name='images', path=str(images), split='all', labels=labels, image_size=size, crop='center',
    convert_channels=True, max_records=max_images, num_classes=LITE0.classes,
  )  # fmt: skip
  mesh = image_sets.mesh_of_all()

  def sums(params, batch):
    logits_BV = image_logits(params, batch['image_BYXC'], size=size)
    return classification_sums(logits_BV, batch['label_B'], batch['valid_B'])

  totals = batch_job.run_sums(
    image_sets.folder_pass(config, mesh, batch),
    sums,
    variables=params,
    mesh=mesh,
    rules=sharding.RULES['dp'],
    echo=echo,
  )
  results = {name: total / count if count else None for name, (total, count) in totals.items()}
  results['images'] = int(totals['nll'][1])
  settings = dict(images=str(images), size=size, weights=weights_digest(params))
  report(pathlib.Path(output, 'evaluation.json'), results, settings, echo)
  return results


def retrieve(
  queries: str,
  keys: str,
  output: str | os.PathLike,
  *,
  relevant: str = '',
  at: Sequence[int] = (1, 5, 10),
  is_cosine: bool = True,
  echo: Echo = print,
) -> dict[str, Any]:
  """Recall and mean reciprocal rank over given embeddings.

  Args:
    queries, keys: `.npy` files [Q, D] and [N, D].
    output: directory of the results.
    relevant: JSON list of the keys of each query; '' where key i belongs to query i.
    at: the k of recall@k.
    is_cosine: whether rows are normalised first.
    echo: is given lines.

  Raises:
    ConfigError: files that cannot be read, or that do not belong together.
  """
  query_QD, key_ND = (_array(path) for path in (queries, keys))
  if relevant:
    try:
      wanted = json.loads(pathlib.Path(relevant).read_text(encoding='utf-8'))
    except ValueError as error:
      raise ConfigError(
        f'{relevant}: not a JSON list of the keys of each query ({error})'
      ) from error
  else:
    wanted = np.arange(len(query_QD))
  if is_cosine:
    query_QD, key_ND = (
      x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (query_QD, key_ND)
    )
  rank_Q = retrieval.first_ranks(
    query_QD, key_ND, wanted, mesh=image_sets.mesh_of_all(), rules=sharding.RULES['dp']
  )
  results = {'queries': len(rank_Q), 'keys': len(key_ND)}
  results |= retrieval.RankSums.of(rank_Q, at).metrics()
  settings = dict(queries=str(queries), keys=str(keys), relevant=str(relevant), cosine=is_cosine)
  report(pathlib.Path(output, 'evaluation.json'), results, settings, echo)
  return results


def _array(path: str) -> np.ndarray:
  try:
    array = np.load(path, allow_pickle=False)
  except (ValueError, OSError) as error:
    if isinstance(error, FileNotFoundError):
      raise
    raise ConfigError(f'{path}: not a readable .npy file ({error})') from error
  if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind != 'f':
    found = f'{array.dtype}{array.shape}' if isinstance(array, np.ndarray) else 'several arrays'
    raise ConfigError(f'{path}: holds {found}, expected embeddings [N, D] of a float type')
  return array.astype(np.float32)


def show(results: Mapping[str, Any], echo: Echo) -> None:
  """A line a metric."""
  for name, value in results.items():
    if isinstance(value, list):
      shown = f'{len(value)} values'
    else:
      shown = 'nothing was counted' if value is None else f'{value:.6g}'
    echo(f'{name:48} {shown}')


def report(path: pathlib.Path, results: Mapping[str, Any], settings: Any, echo: Echo) -> None:
  """Shows results and writes them; of several processes the first writes."""
  show(results, echo)
  if jax.process_index() == 0:
    write_json(path, {'settings': settings, 'results': dict(results)})
    echo(f'written to {path}')
