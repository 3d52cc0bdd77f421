"""Tokenizers compared by what an image model makes of their codes.

Every arm trains a tokenizer, writes the codes of the data, trains the same image model on them, and
is measured: reconstruction, codebook, held-out likelihood at every position, and the Frechet
distance of samples. Arms of one seed share their data order; all numbers go to `measurements`.

Axes: N images, B batch, Y X rows and columns, C channels, L codes of an image.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import jaxmm
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance
from jaxmm.evaluate.features import feature_statistics
from jaxmm.interop.efficientnet import read_classifier
from jaxmm.studies import evaluation, loading, run, stages, tokens
from jaxmm.studies.stages import Budget, Stage, Study, paired

Echo = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class TwoStage:
  """Settings of a study.

  Attributes:
    tokenizers: `{arm: run config}` of stage 1, plain dicts.
    image_model: run config of stage 2; its data, codes and grid are filled in.
    seeds: every arm is trained with each.
    views: of the tokens ('one', 'flip', 'ten'; see `studies.tokens`).
    num_samples: images sampled from each image model.
    sampling: of `SamplingConfig`.
    features: 'components' (principal components of the training images: no weights needed) or
      'classifier' (EfficientNet-Lite0, from its package or `feature_weights`).
    feature_size: pixels a side at which the classifier sees images; or how many components.
    feature_weights: file of the classifier's weights; None for the installed package's.
    reference: how many training images the Frechet distance is taken to.
  """

  tokenizers: Mapping[str, Mapping[str, Any]]
  image_model: Mapping[str, Any]
  seeds: Sequence[int] = (0,)
  views: str = 'one'
  num_samples: int = 1000
  sampling: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  features: str = 'components'
  feature_size: int = 64
  feature_weights: str | None = None
  reference: int = 20_000


def add_stages(study: Study, plan: TwoStage) -> None:
  """Adds all stages of the plan: for each seed and arm a tokenizer, its reconstructions, its
  tokens, an image model, its samples.
  """
  first = next(iter(plan.tokenizers.values()))
  study.add(
    Stage(
      'reference',
      lambda path: _write_reference(path, first, plan, study.echo),
      _feature_settings(plan) | {'data': first['data']},
      title='statistics of the training images',
      cost=5.0,
    )
  )
  for seed, arm in paired(plan.seeds, list(plan.tokenizers)):
    _add_arm(study, plan, seed, arm)


def add_tokenizer(study: Study, config: Mapping[str, Any], seed: int, arm: str) -> str:
  """Adds the stage that trains a tokenizer, if the study does not have it yet; its name."""
  name, config = f'seed-{seed}/{arm}/tokenizer', dict(config, seed=seed)
  if name not in study.stages:
    study.add(
      Stage(
        name,
        lambda path: evaluation.train_and_measure(config, path, study.echo),
        config | {'jaxmm': jaxmm.__version__},
        title=f'seed {seed}, arm {arm}: tokenizer',
        cost=run.seconds_on_a_cpu(config),
      )
    )
  return name


def _add_arm(study: Study, plan: TwoStage, seed: int, arm: str) -> None:
  at, title = f'seed-{seed}/{arm}', f'seed {seed}, arm {arm}'
  tokenizer = dict(plan.tokenizers[arm], seed=seed)
  model = dict(plan.image_model, seed=seed)
  add_tokenizer(study, tokenizer, seed, arm)
  study.add(
    Stage(
      f'{at}/tokens',
      lambda path: _write_tokens(study.path(f'{at}/tokenizer'), path, plan.views, study.echo),
      {'views': plan.views},
      (f'{at}/tokenizer',),
      title=f'{title}: codes of the data',
      cost=20.0,
    )
  )
  study.add(
    Stage(
      f'{at}/reconstructions',
      lambda path: _reconstruct(study, plan, at),
      _feature_settings(plan) | {'num': plan.num_samples},
      (f'{at}/tokenizer', 'reference'),
      title=f'{title}: reconstructions',
      cost=15.0,
    )
  )
  full = stage_two(model, tokenizer, study.path(f'{at}/tokens'))
  study.add(
    Stage(
      f'{at}/image_model',
      lambda path: evaluation.train_and_measure(full, path, study.echo),
      stage_two(model, tokenizer, 'tokens') | {'jaxmm': jaxmm.__version__},
      (f'{at}/tokens',),
      title=f'{title}: image model',
      cost=run.seconds_on_a_cpu(full),
    )
  )
  study.add(
    Stage(
      f'{at}/samples',
      lambda path: _sample(study, plan, at, seed, path),
      _feature_settings(plan) | {'num': plan.num_samples, 'sampling': dict(plan.sampling)},
      (f'{at}/image_model', 'reference'),
      title=f'{title}: samples',
      cost=20.0,
    )
  )


def budgets(plan: TwoStage) -> list[Budget]:
  """Planned training compute of every arm."""
  out = []
  for arm, tokenizer in plan.tokenizers.items():
    full = stage_two(plan.image_model, tokenizer, 'tokens')
    for stage, config in (('tokenizer', tokenizer), ('image model', full)):
      flops = run.make_task(config).step_flops(config['batch'])
      out.append(Budget(arm, stage, config['steps'], flops))
  return out


def at_equal_flops(config: Mapping[str, Any], like: Mapping[str, Any]) -> dict[str, Any]:
  """`config` with as many steps as cost what `like` costs; both are tokenizers' run configs."""
  target = run.make_task(like).step_flops(like['batch']) * like['steps']
  steps = max(1, round(target / run.make_task(config).step_flops(config['batch'])))
  return dict(config, steps=steps)


def stage_two(
  model: Mapping[str, Any], tokenizer: Mapping[str, Any], where: str | pathlib.Path
) -> dict[str, Any]:
  """The image model's run config on the tokens of a tokenizer."""
  out = copy.deepcopy(dict(model))
  config = run.make_task(tokenizer).config
  rows, columns = config.grid
  if rows != columns:
    raise ConfigError(
      f'the tokenizer has a grid of {rows}x{columns}; the image model needs squares'
    )
  out['model'] |= {'num_codes': config.network.quantizer.codes, 'grid': rows}
  for section, split in (('data', 'train'), ('eval_data', 'test')):
    out[section] = {**out.get(section, {}), 'name': 'tokens', 'path': str(where), 'split': split}
  return out


# What the stages do.


def _write_tokens(
  tokenizer: pathlib.Path, path: pathlib.Path, views: str, echo: Echo
) -> dict[str, Any]:
  stores = {}
  for split, kind in (('train', views), ('test', 'one')):
    stores[split] = tokens.write(tokenizer, path / split, split=split, views=kind, echo=echo)
  return {f'{split}_images': len(store) for split, store in stores.items()}


def _reconstruct(study: Study, plan: TwoStage, at: str) -> dict[str, Any]:
  """How far reconstructions of training images are from them: the samples can hardly be nearer."""
  tokenizer = loading.load(study.path(f'{at}/tokenizer'))
  images = _training_images(tokenizer.config, plan.num_samples)
  own = Features(plan, study.path('reference')).statistics(
    tokenizer.decode(tokenizer.encode(images))
  )
  reference = FeatureStatistics.load(study.path('reference') / 'statistics.npz')
  return {'frechet': frechet_distance(own, reference), 'images': len(images)}


def _sample(study: Study, plan: TwoStage, at: str, seed: int, path: pathlib.Path) -> dict[str, Any]:
  model = loading.load(study.path(f'{at}/image_model'))
  labels = np.arange(plan.num_samples) % model.task.config.num_classes
  images = model.sample(
    labels, seed=seed, batch=100, tokenizer=study.path(f'{at}/tokenizer'), **plan.sampling
  )
  np.savez_compressed(path / 'samples.npz', arr_0=images, label=labels)
  reference = FeatureStatistics.load(study.path('reference') / 'statistics.npz')
  own = Features(plan, study.path('reference')).statistics(images)
  return {'frechet': frechet_distance(own, reference), 'samples': len(images)}


def _feature_settings(plan: TwoStage) -> dict[str, Any]:
  return {
    'features': plan.features,
    'feature_weights': plan.feature_weights,
    'feature_size': plan.feature_size,
    'reference': plan.reference,
  }


def _write_reference(
  path: pathlib.Path, tokenizer: Mapping[str, Any], plan: TwoStage, echo: Echo
) -> dict[str, Any]:
  images = _training_images(tokenizer, plan.reference)
  echo(f'{len(images)} training images')
  if plan.features == 'components':
    np.savez(path / 'components.npz', **principal_components(images, plan.feature_size))
  Features(plan, path).statistics(images).save(path / 'statistics.npz')
  return {'images': len(images)}


def _training_images(tokenizer: Mapping[str, Any], number: int) -> np.ndarray:
  """Training images as the tokenizer sees them, without randomness, uint8 [N, Y, X, C]."""
  # Evenly spaced records: folders and zips come sorted by class.
  data = dict(tokenizer['data'], flip=False, max_records=number, keep_list='')
  batches = run.make_batches(dict(tokenizer, eval_data=data), train=False, batch=100)
  return np.concatenate([batch['image_BYXC'][batch['valid_B'] > 0] for batch in batches.once()])


def principal_components(images: np.ndarray, number: int) -> dict[str, np.ndarray]:
  """Mean [D] and the leading principal directions [number, D] of uint8 images, scaled to [0, 1]."""
  rows = images.reshape(len(images), -1).astype(np.float64) / 255
  mean = rows.mean(axis=0)
  _, vectors = np.linalg.eigh(np.cov(rows - mean, rowvar=False))
  return {'mean': mean, 'directions': vectors[:, ::-1][:, :number].T}


class Features:
  """Feature statistics of images, as a plan says."""

  def __init__(self, plan: TwoStage, reference: pathlib.Path):
    if plan.features not in ('components', 'classifier'):
      raise ConfigError(f"features is {plan.features!r}, expected 'components' or 'classifier'")
    self._plan, self._reference = plan, reference

  def statistics(self, images: np.ndarray) -> FeatureStatistics:
    """Of uint8 images [N, Y, X, C]."""
    plan = self._plan
    if plan.features == 'classifier':
      return feature_statistics(
        images,
        read_classifier(plan.feature_weights),
        mesh=sharding.make_mesh(sharding.MeshConfig()),
        rules=sharding.RULES['dp'],
        size=plan.feature_size,
      )
    basis = np.load(self._reference / 'components.npz')
    rows = images.reshape(len(images), -1).astype(np.float64) / 255 - basis['mean']
    return FeatureStatistics.of(rows @ basis['directions'].T)


# What comes out.


def measurements(study: Study, plan: TwoStage) -> dict[str, dict[int, dict[str, float]]]:
  """`{arm: {seed: {metric: value}}}` of a study that has run; bits are per image."""
  out: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in plan.tokenizers}
  for seed, arm in paired(plan.seeds, list(plan.tokenizers)):
    out[arm][seed] = _measures({s: study.result(f'seed-{seed}/{arm}/{s}') for s in _MEASURED})
  return out


def read_measurements(directory: str | os.PathLike) -> dict[str, dict[int, dict[str, float]]]:
  """`measurements` of all arms and seeds that are done in a study's directory."""
  records, out = stages.read_records(directory), {}
  for name in records:
    found = re.fullmatch(r'seed-(\d+)/([^/]+)/samples', name)
    parts = {s: f'{name.removesuffix("samples")}{s}' for s in _MEASURED}
    if found and all(part in records for part in parts.values()):
      results = {s: records[part]['result'] for s, part in parts.items()}
      out.setdefault(found[2], {})[int(found[1])] = _measures(results)
  return out


_MEASURED = ('tokenizer', 'reconstructions', 'image_model', 'samples')


def _measures(results: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
  """The metrics of one arm and seed, from the results of its stages."""
  of_tokenizer = {m: results['tokenizer'][m] for m in ('psnr', 'code_perplexity', 'code_usage')}
  samples, rebuilt = (results[stage]['frechet'] for stage in ('samples', 'reconstructions'))
  return of_tokenizer | {
    'reconstruction_mse': results['tokenizer']['mse'],
    'bits_per_image': results['image_model']['bits_per_image'],
    'frechet': samples,
    'reconstruction_frechet': rebuilt,
    'generation_gap': samples - rebuilt,
  }


def bits_by_position(study: Study, plan: TwoStage) -> dict[str, np.ndarray]:
  """`{arm: bits [seeds, L]}` of the held-out codes at each position."""
  return {
    arm: np.array(
      [
        study.result(f'seed-{seed}/{arm}/image_model')['cross_entropy_by_position']
        for seed in plan.seeds
      ]
    )
    / math.log(2)
    for arm in plan.tokenizers
  }
