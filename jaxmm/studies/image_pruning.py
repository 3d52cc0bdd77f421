"""Pruned sets of pictures compared by what a small classifier learns of them in equally many steps.

A pool of pictures with planted near-copies is written and embedded once. Of every seed come the
keep-lists of all arms, then for each arm a classifier trained on what its list keeps, and its
accuracy on held-out pictures. Arms of one seed keep equally many pictures (but the one that keeps
all) and start from the same weights.

Axes: N examples of the pool, U those that SemDeDup keeps, V classes.
"""

from __future__ import annotations

import copy
import dataclasses
import os
import pathlib
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import jaxmm
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.curation import (
  dbp,
  embedding_job,
  embeddings,
  keep_list,
  prototypes,
  semdedup,
  vectors,
)  # fmt: skip
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.stages import Stages
from jaxmm.curation.vectors import Vectors
from jaxmm.data import pipeline
from jaxmm.data.corpus import CorpusConfig
from jaxmm.studies import encoders, evaluation, planted_images, run
from jaxmm.studies.planted_images import PlantedConfig
from jaxmm.studies.stages import Stage, Study, paired, read_records

METHODS = ('all', 'random', 'prototypes', 'dbp')
NOT_DRAWN = 'not_drawn'
Echo = Callable[[str], None]


@dataclasses.dataclass(frozen=True)
class Arm:
  """Which pictures are trained on.

  Attributes:
    method: 'all' of them, as many at 'random', the first of one ranking ('prototypes'), or the
      first of every cluster, more where it is complex ('dbp').
    is_deduplicated: of what SemDeDup keeps; else of the whole pool.
    prefer: who comes first, the 'hard', far from their centroids, or the 'easy'.
  """

  method: str
  is_deduplicated: bool = True
  prefer: str = 'hard'

  def __post_init__(self):
    if self.method not in METHODS:
      raise ConfigError(f'method is {self.method!r}, expected one of {", ".join(METHODS)}')
    if self.prefer not in prototypes.PREFER:
      raise ConfigError(f'prefer is {self.prefer!r}, expected {" or ".join(prototypes.PREFER)}')
    if self.method in ('prototypes', 'dbp') and not self.is_deduplicated:
      raise ConfigError(f'method is {self.method!r}, which is taken of what SemDeDup keeps')


@dataclasses.dataclass(frozen=True)
class ImagePruning:
  """Settings of a study.

  Attributes:
    classifier: run config of the classifier, a plain dict; the pool is made of its `data`.
    planted: which pictures are in the pool, and which near-copies.
    arms: `{arm: what it trains on}`.
    seeds: of k-means, of what is drawn and of the classifier; every arm is trained with each.
    keep: share of what SemDeDup keeps; so many pictures are in every arm but 'all'.
    eps: of SemDeDup; of several the one farthest from its centroid stays, as in the paper.
    clusters: of k-means, before SemDeDup and after it.
    allocation: other settings of `DbpConfig` (temperature, neighbours, balance).
    feature_size: pixels a side at which EfficientNet-Lite0 sees pictures.
    feature_weights: file of its weights; None for the installed package's.
  """

  classifier: Mapping[str, Any]
  planted: PlantedConfig
  arms: Mapping[str, Arm]
  seeds: Sequence[int] = (0,)
  keep: float = 0.5
  eps: float = 0.2
  clusters: int = 100
  allocation: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  feature_size: int = 64
  feature_weights: str | None = None

  def __post_init__(self):
    self.semdedup()
    self.dbp('hard')
    self.kmeans(0)
    if self.feature_size < 32:
      raise ConfigError(f'feature_size is {self.feature_size}, expected 32 or more pixels')

  def semdedup(self) -> semdedup.SemDedupConfig:
    return semdedup.SemDedupConfig('hard', eps=self.eps)

  def dbp(self, prefer: str) -> dbp.DbpConfig:
    return dbp.DbpConfig(prefer, self.keep, **self.allocation)

  def kmeans(self, seed: int) -> KMeansConfig:
    return KMeansConfig(clusters=self.clusters, seed=seed)


def add_stages(study: Study, plan: ImagePruning) -> None:
  """Adds all stages of the plan: the pool, its vectors, and of each seed the lists and a classifier
  for each arm.
  """
  study.add(
    Stage(
      'pool',
      lambda path: _write_pool(plan, path),
      {'planted': configs.plain(plan.planted), 'data': dict(plan.classifier['data'])},
      title='pictures and planted copies',
      cost=10.0,
    )
  )
  study.add(
    Stage(
      'vectors',
      lambda path: _embed(study, plan, path),
      {'feature_size': plan.feature_size, 'feature_weights': plan.feature_weights},
      ('pool',),
      title='features of the pictures',
      cost=40.0,
    )
  )
  for seed in plan.seeds:
    study.add(
      Stage(
        f'seed-{seed}/lists',
        lambda path, seed=seed: _write_lists(study, plan, seed, path),
        _list_settings(plan) | {'seed': seed},
        ('vectors',),
        title=f'seed {seed}: keep-lists',
        cost=5.0,
      )
    )
  for seed, arm in paired(plan.seeds, list(plan.arms)):
    _add_classifier(study, plan, seed, arm)


def _add_classifier(study: Study, plan: ImagePruning, seed: int, arm: str) -> None:
  # The settings must not hold where the study lies; the lists are named by the stage before.
  settings = classifier_config(plan, seed, arm, 'pool', 'lists')
  full = classifier_config(
    plan, seed, arm, study.path('pool') / POOL, study.path(f'seed-{seed}/lists')
  )
  study.add(
    Stage(
      f'seed-{seed}/{arm}',
      lambda path: evaluation.train_and_measure(full, path, study.echo),
      settings | {'jaxmm': jaxmm.__version__},
      (f'seed-{seed}/lists',),
      title=f'seed {seed}: {arm}',
      cost=10.0 + run.make_task(full).step_flops(full['batch']) * full['steps'] / 5e10,
    )
  )


POOL = 'pool.zip'


def classifier_config(
  plan: ImagePruning, seed: int, arm: str, pool: str | pathlib.Path, lists: str | pathlib.Path
) -> dict[str, Any]:
  """The run config of one arm's classifier: the same for all but for the list."""
  out = copy.deepcopy(dict(plan.classifier, seed=seed))
  keep = '' if plan.arms[arm].method == 'all' else str(pathlib.Path(lists, f'{arm}.parquet'))
  out['data'] |= {'name': 'images', 'path': str(pool), 'split': 'train', 'keep_list': keep}
  return out


def _list_settings(plan: ImagePruning) -> dict[str, Any]:
  fields = ('keep', 'eps', 'clusters')
  return {name: getattr(plan, name) for name in fields} | {
    'allocation': dict(plan.allocation),
    'arms': {name: dataclasses.asdict(arm) for name, arm in plan.arms.items()},
  }


# What the stages do.


def _write_pool(plan: ImagePruning, path: pathlib.Path) -> dict[str, Any]:
  settings = plan.classifier['data'] | {'keep_list': ''}
  data = configs.from_mapping(pipeline.DataConfig, settings, 'data')
  return planted_images.write(pipeline.open_source(data), plan.planted, path / POOL)


def _embed(study: Study, plan: ImagePruning, path: pathlib.Path) -> dict[str, Any]:
  found = embedding_job.run(
    CorpusConfig((str(study.path('pool') / POOL),)),
    encoders.image(plan.feature_weights, plan.feature_size),
    path / 'vectors',
    batch_size=128,
    echo=study.echo,
  )
  return {'examples': len(found)} | found.reasons()


def _write_lists(study: Study, plan: ImagePruning, seed: int, path: pathlib.Path) -> dict[str, Any]:
  of = vectors.of_embeddings(embeddings.read(study.path('vectors') / 'vectors'))
  out = {}
  for arm, keep in keep_lists(of, plan, seed, Stages(path / 'work')).items():
    keep_list.write(keep, path / f'{arm}.parquet')
    out[arm] = described(keep)
  return out


def keep_lists(
  of: Vectors, plan: ImagePruning, seed: int, stages: Stages | None = None
) -> dict[str, KeepList]:
  """The list of every arm, each over the whole pool; and 'semdedup', from which most are drawn."""
  stages, kmeans = stages or Stages(), plan.kmeans(seed)
  first = semdedup.run(of, plan.semdedup(), kmeans, stages)
  rest = of.only_kept(first)
  number = round(plan.keep * len(rest))
  out = {'semdedup': first}
  for name, arm in plan.arms.items():
    among = rest if arm.is_deduplicated else of
    if arm.method == 'all':
      keep = drawn(among, len(among), seed)
    elif arm.method == 'random':
      keep = drawn(among, number, seed)
    elif arm.method == 'prototypes':
      settings = prototypes.PrototypesConfig(arm.prefer, plan.keep)
      keep = prototypes.run(among, settings, kmeans, stages)
    else:
      keep = dbp.run(among, plan.dbp(arm.prefer), kmeans, stages)[0]
    out[name] = keep_list.then(first, keep) if arm.is_deduplicated else keep
  return out


def drawn(of: Vectors, number: int, seed: int) -> KeepList:
  """A list that keeps `number` of the usable examples at random; the score is the number drawn."""
  score_U = np.random.default_rng(seed).random(len(of.usable_U))
  keep_U = np.zeros(len(score_U), bool)
  keep_U[np.argsort(score_U, kind='stable')[:number]] = True
  return vectors.judged(
    of,
    np.where(keep_U, '', NOT_DRAWN).astype(object),
    score_U=score_U,
    columns_U={},
    method='random',
    parameters={'number': number, 'seed': seed},
  )


def described(keep: KeepList) -> dict[str, Any]:
  """What a list keeps of a pool: pictures, different originals among them, and of each class."""
  kept = keep.table.filter(keep.table['keep'])['id'].to_pylist()
  origins = [planted_images.origin(name) for name in kept]
  label_N = np.array([o.label for o in origins], np.int64)
  return {
    'kept': len(kept),
    'different': len({(o.label, o.number) for o in origins}),
    'classes': np.bincount(label_N).tolist(),
  }


# What comes out.


def measurements(study: Study, plan: ImagePruning) -> dict[str, dict[int, dict[str, float]]]:
  """`{arm: {seed: {metric: value}}}` of a study that has run; accuracy in %, of a list how many it
  keeps and how many different originals, and classes as the exp of the entropy of their shares.
  """
  out: dict[str, dict[int, dict[str, float]]] = {arm: {} for arm in plan.arms}
  for seed, arm in paired(plan.seeds, list(plan.arms)):
    kept = study.result(f'seed-{seed}/lists')[arm]
    out[arm][seed] = _measures(study.result(f'seed-{seed}/{arm}'), kept)
  return out


def read_measurements(directory: str | os.PathLike) -> dict[str, dict[int, dict[str, float]]]:
  """`measurements` of all arms and seeds that are done in a study's directory."""
  records, out = read_records(directory), {}
  for name, record in records.items():
    found = re.fullmatch(r'seed-(\d+)/([^/]+)', name)
    if found and found[2] != 'lists':
      kept = records[f'seed-{found[1]}/lists']['result'][found[2]]
      out.setdefault(found[2], {})[int(found[1])] = _measures(record['result'], kept)
  return out


def _measures(found: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, float]:
  share_V = np.array(kept['classes'], np.float64) / kept['kept']
  share_V = share_V[share_V > 0]
  return {
    'accuracy': 100 * found['accuracy'],
    'cross_entropy': found['cross_entropy'],
    'kept': float(kept['kept']),
    'different': float(kept['different']),
    'class_perplexity': float(np.exp(-np.sum(share_V * np.log(share_V)))),
  }
