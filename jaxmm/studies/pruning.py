"""Selections of a corpus compared by what a language model learns from them in equal steps.

Every arm is a keep-list over a pool of texts. For each seed and arm the same model trains for the
same number of steps on what the list keeps (which is repeated as often as it takes) and is
evaluated on held-out texts that no list touches. Seeds change the model's start, the order of the
data and whatever a selection draws.

A small model learns nothing but the frequency of tokens for some hundred steps, and when it begins
to see more hangs on chance: that would be most of what differs between runs. So all arms of a seed
may begin with one model that has been trained on other texts of the pool's kind (`START`).
"""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import jaxmm
from jaxmm import config as configs
from jaxmm.curation import embedding_job, embeddings, keep_list, vectors
from jaxmm.curation.embedding_job import Embedder
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.vectors import Vectors
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig
from jaxmm.evaluate import likelihood
from jaxmm.studies import evaluation, loading, pruning_corpora, run
from jaxmm.studies.pruning_corpora import HELD_OUT, POOLS
from jaxmm.studies.stages import Stage, Study, paired
from jaxmm.tokenizers import text

Echo = Callable[[str], None]
_TOKENIZER = 'tokenizer.json'
# Name of the pool, and of the stage, of a common start.
START = 'start'


@dataclasses.dataclass(frozen=True)
class Pool:
  """What a selection chooses from.

  Attributes:
    path: the JSON lines, with ids.
    embedded: where its vectors are; None where the study has no encoder.
  """

  path: pathlib.Path
  embedded: pathlib.Path | None = None

  @property
  def inputs(self) -> CorpusConfig:
    """As the methods take it."""
    return CorpusConfig((str(self.path),), id_field='id')

  @functools.cached_property
  def examples(self) -> list[corpus.Example]:
    """All of them, in the order of the file."""
    (shard,) = corpus.shards(self.inputs)
    return list(corpus.examples(shard, self.inputs))

  def vectors(self) -> Vectors:
    """Of all examples."""
    return vectors.of_embeddings(embeddings.read(self.embedded))

  def only(self, keep_N: np.ndarray, method: str, **parameters: Any) -> KeepList:
    """The list that keeps these examples, in the order of the file."""
    return keep_list.make(
      [e.id for e in self.examples],
      np.array([kept.digest(e.id, e.content) for e in self.examples], np.uint64),
      keep_N,
      reason_N=np.where(keep_N, '', f'not_{method}').astype(object),
      method=method,
      parameters=parameters,
    )


# (pool, seed, directory for its stages, echo) -> the list
Select = Callable[[Pool, int, pathlib.Path, Echo], KeepList]


@dataclasses.dataclass(frozen=True)
class Arm:
  """One way to choose training texts.

  Attributes:
    pool: name of the pool.
    select: gives the keep-list.
    settings: all that `select` depends on but the pool and the seed, JSON values.
    needs_vectors: whether it reads the pool's vectors.
  """

  pool: str
  select: Select
  settings: Mapping[str, Any]
  needs_vectors: bool = False


@dataclasses.dataclass(frozen=True)
class Pruning:
  """A study's plan.

  Attributes:
    corpora: writes the pools and held-out texts below a directory and returns their sizes.
    corpora_settings: all that these depend on, JSON values.
    arms: by name.
    model: run config of the LM; its data is filled in.
    held_out: names of the held-out texts.
    means: {metric: names of held-out texts} whose mean bits a byte is one.
    seeds: every arm is trained with each.
    start: run config of the model that all arms of a seed begin with, trained on the pool START;
      None begins with random weights.
    vocab_size: of a BPE that is trained on the first pool, the same for all arms; 0 for bytes.
    encoder: of the vectors, made when it is needed.
    encoder_settings: its name, JSON values.
  """

  corpora: Callable[[pathlib.Path], Mapping[str, Any]]
  corpora_settings: Mapping[str, Any]
  arms: Mapping[str, Arm]
  model: Mapping[str, Any]
  held_out: Sequence[str]
  means: Mapping[str, Sequence[str]]
  seeds: Sequence[int] = (0,)
  start: Mapping[str, Any] | None = None
  vocab_size: int = 0
  encoder: Callable[[], Embedder] | None = None
  encoder_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def add_stages(study: Study, plan: Pruning) -> None:
  """Corpora, vectors, and for each seed and arm a list and a model."""
  study.add(
    Stage(
      'corpora',
      lambda path: _write_corpora(plan, path),
      {**plan.corpora_settings, 'vocab_size': plan.vocab_size},
      title='corpora',
      cost=10.0,
    )
  )
  for pool in sorted({arm.pool for arm in plan.arms.values() if arm.needs_vectors}):
    study.add(
      Stage(
        f'vectors/{pool}',
        lambda path, pool=pool: _embed(study, plan, pool, path),
        plan.encoder_settings,
        ('corpora',),
        title=f'vectors of {pool}',
        cost=200.0,
      )
    )
  for seed, name in paired(plan.seeds, list(plan.arms)):
    _add_start(study, plan, seed)
    _add_arm(study, plan, seed, name)


def _add_start(study: Study, plan: Pruning, seed: int) -> None:
  name = f'seed-{seed}/{START}'
  if plan.start is None or name in study.stages:
    return
  study.add(
    Stage(
      name,
      lambda path: _train_start(study, plan, seed, path),
      dict(plan.start, seed=seed) | {'jaxmm': jaxmm.__version__},
      ('corpora',),
      title=f'seed {seed}: common start',
      cost=60.0,
    )
  )


def _train_start(study: Study, plan: Pruning, seed: int, path: pathlib.Path) -> dict[str, Any]:
  config = _with_data(study, plan, dict(plan.start, seed=seed), START)
  run.train_from_config(config, path, evaluates=False, echo=study.echo)
  return {'steps': config['steps']}


def _add_arm(study: Study, plan: Pruning, seed: int, name: str) -> None:
  arm, at, title = plan.arms[name], f'seed-{seed}/{name}', f'seed {seed}, arm {name}'
  after = ('corpora', *([f'vectors/{arm.pool}'] if arm.needs_vectors else []))
  study.add(
    Stage(
      f'{at}/list',
      lambda path: _select(study, arm, seed, path),
      {**arm.settings, 'pool': arm.pool, 'seed': seed},
      after,
      title=f'{title}: list',
      cost=5.0,
    )
  )
  model = dict(plan.model, seed=seed)
  study.add(
    Stage(
      f'{at}/model',
      lambda path: _train(study, plan, name, seed, path),
      model | {'held_out': list(plan.held_out), 'jaxmm': jaxmm.__version__},
      (f'{at}/list', *([] if plan.start is None else [f'seed-{seed}/{START}'])),
      title=f'{title}: model',
      cost=60.0,
    )
  )


def _write_corpora(plan: Pruning, path: pathlib.Path) -> Mapping[str, Any]:
  counts = plan.corpora(path)
  if plan.vocab_size:
    first = pruning_corpora.file_of(path, POOLS, next(iter(counts[POOLS])))
    texts = [e.text for e in Pool(first).examples]
    text.BpeTokenizer.train(texts, plan.vocab_size).save(path / _TOKENIZER)
  return counts


def _pool(study: Study, name: str) -> Pool:
  path = pruning_corpora.file_of(study.path('corpora'), POOLS, name)
  embedded = f'vectors/{name}'
  return Pool(path, study.path(embedded) if embedded in study.stages else None)


def _embed(study: Study, plan: Pruning, pool: str, path: pathlib.Path) -> dict[str, Any]:
  of = _pool(study, pool)
  found = embedding_job.run(of.inputs, plan.encoder(), path, rows_per_shard=512, echo=study.echo)
  return {'vectors': len(found), 'unusable': found.reasons(), 'identity': dict(found.identity)}


def _select(study: Study, arm: Arm, seed: int, path: pathlib.Path) -> dict[str, Any]:
  pool = _pool(study, arm.pool)
  keep = arm.select(pool, seed, path / 'work', study.echo)
  keep_list.write(keep, path / 'keep.parquet')
  stays = set(keep.table.filter(keep.table['keep'])['id'].to_pylist())
  sizes = [len(e.content) for e in pool.examples if e.id in stays]
  return {
    'texts': len(keep),
    'kept': keep.num_kept,
    'kept_bytes': sum(sizes),
    'reasons': keep.reasons(),
    'parameters': configs.plain(dict(keep.parameters)),
  }


def config_of(plan: Pruning, study: Study, name: str, seed: int) -> dict[str, Any]:
  """The run config of one arm's model."""
  config = _with_data(study, plan, dict(plan.model, seed=seed), plan.arms[name].pool)
  lists = study.path(f'seed-{seed}/{name}/list') / 'keep.parquet'
  config['data'] |= {'keep_list': str(lists), 'id_field': 'id'}
  return config


def _with_data(study: Study, plan: Pruning, config: Mapping[str, Any], pool: str) -> dict[str, Any]:
  """A run config with its pool, the tokenizer, and the first of the held-out texts."""
  out = configs.plain(dict(config))
  path = pruning_corpora.file_of(study.path('corpora'), POOLS, pool)
  out['data'] = dict(out['data'], name='text', path=str(path), split='all')
  if plan.vocab_size:
    where = study.path('corpora') / _TOKENIZER
    tokenizer = text.load(where)
    ids = {f'{name}_id': tokenizer.special_id(f'<{name}>') for name in ('pad', 'bos', 'eos')}
    out['data']['text'] = out['data']['text'] | {'tokenizer': str(where), **ids}
    out['model']['vocab_size'] = tokenizer.vocab_size
  held_out = pruning_corpora.file_of(study.path('corpora'), HELD_OUT, plan.held_out[0])
  out['eval_data'] = dict(out['data'], path=str(held_out), keep_list='')
  return out


def _train(study: Study, plan: Pruning, name: str, seed: int, path: pathlib.Path) -> dict[str, Any]:
  config = config_of(plan, study, name, seed)
  start = None if plan.start is None else str(study.path(f'seed-{seed}/{START}'))
  run.train_from_config(config, path, evaluates=False, init_from=start, echo=study.echo)
  loaded = loading.load(path)
  sizes, out = study.result('corpora')[HELD_OUT], {}
  for held_out in plan.held_out:
    of = pruning_corpora.file_of(study.path('corpora'), HELD_OUT, held_out)
    data = dict(loaded.config['eval_data'], path=str(of))
    there = dataclasses.replace(loaded, config={**loaded.config, 'eval_data': data})
    nats, _ = evaluation.run_sums(there)['likelihood']['cross_entropy']
    out[f'bits/{held_out}'] = likelihood.bits_per_byte(nats, sizes[held_out]['bytes'])
  return out


def measurements(study: Study, plan: Pruning) -> dict[str, dict[int, dict[str, float]]]:
  """{arm: {seed: {metric: value}}}: bits a byte of every held-out text, and the plan's means."""
  out: dict[str, dict[int, dict[str, float]]] = {}
  for seed, name in paired(plan.seeds, list(plan.arms)):
    values = dict(study.result(f'seed-{seed}/{name}/model'))
    for metric, names in plan.means.items():
      values[metric] = float(np.mean([values[f'bits/{n}'] for n in names]))
    lists = study.result(f'seed-{seed}/{name}/list')
    values |= {'kept_texts': lists['kept'], 'kept_bytes': lists['kept_bytes']}
    out.setdefault(name, {})[seed] = values
  return out


def log_of(study: Study, seed: int, name: str) -> str | os.PathLike:
  """The training log of an arm."""
  return study.path(f'seed-{seed}/{name}/model') / 'log.jsonl'
