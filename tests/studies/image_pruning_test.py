"""A claim about pruned pictures at the smallest size: interrupted, continued, judged."""

import dataclasses
import importlib.util
import json
import pathlib

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list
from jaxmm.models.classifier import BlockGroup, ClassifierConfig
from jaxmm.studies import encoders, image_pruning, image_pruning_claim, image_pruning_markdown
from jaxmm.studies.image_pruning import Arm
from jaxmm.studies.image_pruning_claim import ImagePruningClaim
from jaxmm.studies.planted_images import PlantedConfig
from jaxmm.studies.stages import read_records
from jaxmm.studies.verdict import Claim, Criterion, judge
from tests.references import efficientnet as reference

ROOT = pathlib.Path(__file__).parents[2]
ARMS = {
  'random': Arm('random', is_deduplicated=False),
  'deduplicated': Arm('random'),
  'easy': Arm('prototypes', prefer='easy'),
  'dbp': Arm('dbp'),
  'full': Arm('all', is_deduplicated=False),
}
SEEDS = (1, 2, 3)


def get_config() -> ConfigDict:
  data = dict(
    name='mnist5k', split='train', image_size=16, channels=3, crop='none', num_classes=3, threads=0
  )
  return ConfigDict(
    dict(
      task='jaxmm.models.resnet', seed=0, steps=3, batch=8, data=data,
      model=dict(num_classes=3, image_size=16, channels=(4,), norm_groups=2, stem_stride=4),
      eval_data=dict(data, split='test'),
      optimizer=dict(model=dict(name='adamw', learning_rate=1e-2, schedule='cosine', warmup=1)),
      checkpoint=dict(every=0, keep=1), log=dict(every=1), evaluate=dict(every=0),
    )
  )  # fmt: skip


@pytest.fixture
def weights(tmp_path, monkeypatch):
  """A tiny EfficientNet in the place of the published one."""
  groups = [(1, 3, 1, 1, 4), (1, 3, 2, 2, 4)]
  config = ClassifierConfig(
    stem=4, groups=tuple(BlockGroup(*g) for g in groups), features=6, classes=3, image_size=32
  )
  state = reference.random_state(np.random.default_rng(0), 4, groups, 6, 3)
  np.savez(tmp_path / 'w.npz', **state)
  monkeypatch.setattr(encoders.classifier, 'LITE0', config)
  monkeypatch.setattr(image_pruning_claim, 'read_classifier', lambda path: None)
  return str(tmp_path / 'w.npz')


@pytest.fixture
def pictures(tmp_path):
  rng = np.random.default_rng(0)
  for split, number in (('train', 20), ('test', 5)):
    for i in range(3 * number):
      path = tmp_path / 'pictures' / split / str(i % 3) / f'{i:03}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      coarse = rng.integers(0, 256, (4, 4, 3)).astype(np.uint8)
      Image.fromarray(np.kron(coarse, np.ones((4, 4, 1), np.uint8))).save(path)
  return tmp_path / 'pictures'


def claim_of(weights):
  criteria = (
    Criterion('more', metric='accuracy', arm='dbp', against='deduplicated', claimed='above'),
    Criterion(
      'shown', metric='accuracy', arm='full', against='easy', claimed='above', is_reported=True
    ),
  )
  planted = PlantedConfig(20, imbalance=2, copied=6, copies=6, kinds=('jpeg', 'brightness'))
  return ImagePruningClaim(
    Claim('toy', 'a sentence', criteria), __file__, planted, ARMS, SEEDS, 'A title', 'a subtitle',
    departures=('It is tiny.',),
    settings=dict(keep=0.5, eps=1e-6, clusters=3, feature_size=32, feature_weights=weights),
  )  # fmt: skip


def started(claim, tmp_path, echo, **options):
  """The page of the study, run or continued."""
  return image_pruning_claim.run(
    claim, tmp_path / 'study', data_path=str(tmp_path / 'pictures'), echo=echo, **options
  )


def stopped_at(said, where):
  """Takes progress lines until one that an interrupt comes at."""

  def echo(line):
    if where in line:
      raise KeyboardInterrupt
    said.append(line)

  return echo


def seconds(tmp_path):
  return {n: r['seconds'] for n, r in read_records(tmp_path / 'study').items()}


def test_an_interrupted_study_goes_on_and_repeats_nothing(tmp_path, weights, pictures):
  claim, said = claim_of(weights), []
  arms = {name: ARMS[name] for name in ('deduplicated', 'dbp')}
  claim = dataclasses.replace(
    claim, arms=arms, claim=dataclasses.replace(claim.claim, criteria=claim.claim.criteria[:1])
  )
  with pytest.raises(KeyboardInterrupt):
    started(claim, tmp_path, stopped_at(said, 'seed 1: dbp ...'), seeds=[1])
  first = seconds(tmp_path)
  assert set(first) == {'pool', 'vectors', 'seed-1/lists', 'seed-1/deduplicated'}
  page = started(claim, tmp_path, said.append, seeds=[1])
  after = seconds(tmp_path)
  assert set(after) - set(first) == {'seed-1/dbp'} and {n: after[n] for n in first} == first
  assert any('no verdict: 1 seeds at scale 1.0' in line for line in said)
  assert 'A title' in page.read_text() and 'It is tiny.' in page.read_text()
  pool = read_records(tmp_path / 'study')['pool']['result']
  assert pool == {'originals': 44, 'copies': 36, 'class_sizes': [20, 14, 10]}
  kept = {}
  for arm in arms:
    keep = keep_list.read(tmp_path / f'study/seed-1/lists/{arm}.parquet')
    config = json.loads((tmp_path / f'study/seed-1/{arm}/config.json').read_text())
    assert len(keep) == pool['originals'] + pool['copies']
    assert config['data']['keep_list'].endswith(f'{arm}.parquet') and config['seed'] == 1
    assert config['steps'] == 3 and not config['eval_data'].get('keep_list')
    kept[arm] = keep.num_kept
  assert kept['deduplicated'] == kept['dbp'] < len(keep) / 2


@pytest.mark.slow
def test_a_claim_runs_to_its_verdict(tmp_path, weights, pictures):
  claim, said = claim_of(weights), []
  started(claim, tmp_path, said.append)
  records = read_records(tmp_path / 'study')
  assert len(records) == 2 + 3 + 3 * 5
  lists = records['seed-1/lists']['result']
  assert lists['full']['kept'] == 80 and lists['full']['different'] == 44
  rest = lists['deduplicated']['kept']
  assert all(lists[arm]['kept'] == rest for arm in ('random', 'easy', 'dbp'))
  measured = {
    arm: {
      s: {'accuracy': 100 * records[f'seed-{s}/{arm}']['result']['accuracy']} for s in SEEDS
    }
    for arm in ARMS
  }  # fmt: skip
  verdict = json.loads((tmp_path / 'study/verdict.json').read_text())
  again = judge(claim.claim, measured)
  text = image_pruning_markdown.markdown(tmp_path / 'study')
  assert text.startswith(f'**{again.outcome.capitalize()}**: {again.sentence()}')
  assert '| different originals among them | ' in text and '| more |' in text
  assert again.to_json() == verdict and any(again.text() in line for line in said)


def test_the_lists_are_what_the_methods_keep(weights):
  """On vectors whose duplicates are known: two clusters of which one is wide."""
  import pyarrow as pa

  from jaxmm.curation.vectors import Vectors

  rng = np.random.default_rng(0)
  wide = np.array([1.0, 0, 0, 0]) + 0.25 * rng.standard_normal((20, 4))
  tight = np.array([0, 0, 0, 1.0]) + 0.05 * rng.standard_normal((20, 4))
  x_ND = np.concatenate([wide, tight, wide[:5]]).astype(np.float32)
  x_ND /= np.linalg.norm(x_ND, axis=1, keepdims=True)
  ids = [f'train/000/{n:06}.png' for n in range(40)]
  ids += [f'train/000/{n:06}-copy-00-jpeg.png' for n in range(5)]
  order = np.argsort(ids)
  of = Vectors(
    pa.array(sorted(ids)), np.arange(45, dtype=np.uint64), x_ND[order], np.full(45, '', object)
  )
  claim = dataclasses.replace(claim_of(weights), config=__file__)
  plan = image_pruning_claim.planned(claim)
  plan = dataclasses.replace(plan, eps=1e-5, clusters=2, allocation={'temperature': 0.01})
  lists = image_pruning.keep_lists(of, plan, 3)
  assert lists['semdedup'].num_kept == 40
  assert {name: keep.num_kept for name, keep in lists.items()} == {
    'semdedup': 40, 'random': 20, 'deduplicated': 20, 'easy': 20, 'dbp': 20, 'full': 45,
  }  # fmt: skip
  kept = lambda name: {
    image_pruning.planted_images.origin(i).number
    for i in lists[name].table.filter(lists[name].table['keep'])['id'].to_pylist()
  }
  # One ranking takes the tight cluster, the complex one gets all but what each must have.
  assert kept('easy') == set(range(20, 40)) and len(kept('dbp') & set(range(20))) == 19
  assert kept('deduplicated') != kept('random')
  again = image_pruning.keep_lists(of, plan, 4)
  assert not again['random'].table['keep'].equals(lists['random'].table['keep'])


def test_what_cannot_work_is_said_before_anything_is_written(tmp_path, weights):
  claim = claim_of(weights)
  for change, options, message in (
    ({}, {'scale': 0}, 'scale is 0'),
    ({}, {'seeds': [1, 1]}, 'each only once'),
    ({'arms': {'random': ARMS['random']}}, {}, "for criterion 'more', has no key 'dbp'"),
    ({'settings': {'eps': 3.0}}, {}, 'eps is 3.0'),
    ({'settings': {'feature_size': 16}}, {}, 'feature_size is 16'),
  ):
    with pytest.raises(ConfigError, match=message):
      image_pruning_claim.run(
        dataclasses.replace(claim, **change), tmp_path / 'study', echo=print, **options
      )
  assert not (tmp_path / 'study').exists()
  with pytest.raises(ConfigError, match="method is 'dbp', which is taken of what SemDeDup keeps"):
    Arm('dbp', is_deduplicated=False)
  with pytest.raises(ConfigError, match="method is 'best', expected one of all, random"):
    Arm('best')


def test_the_claim_of_dbp_is_planned():
  spec = importlib.util.spec_from_file_location('dbp_claim', ROOT / 'experiments/dbp/claim.py')
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  study = dataclasses.replace(module.STUDY, config=str(ROOT / 'experiments/dbp/mini.py'))
  whole = image_pruning_claim.planned(study)
  half = image_pruning_claim.planned(study, data_path='x.zip', scale=0.5)
  assert half.classifier['steps'] * 2 == whole.classifier['steps']
  warmup = lambda plan: plan.classifier['optimizer']['model']['warmup']
  assert warmup(half) * 2 == warmup(whole)
  assert half.classifier['data']['path'] == half.classifier['eval_data']['path'] == 'x.zip'
  assert whole.classifier['data']['name'] == 'cifar10'
  assert module.CLAIM.judged_arms() == {'dbp', 'random', 'prototypes', 'with_copies'}
  assert whole.planted.class_sizes(10) == [500] * 10
  # Arms differ in their list alone.
  configs = [image_pruning.classifier_config(whole, 1, arm, 'pool', 'lists') for arm in whole.arms]
  lists = [config['data'].pop('keep_list') for config in configs]
  assert all(config == configs[0] for config in configs) and len(set(lists)) == len(lists)
  assert lists[list(whole.arms).index('full')] == ''
