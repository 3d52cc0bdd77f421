"""A claim about models at equal compute, from a text to the verdict; nothing is done twice."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.studies import claim_markdown, models, models_claim
from jaxmm.studies.models_claim import Arm, ModelsClaim
from jaxmm.studies.verdict import Claim, Criterion

SETTINGS = (
  'steps=6', 'batch=8', 'model.width=16', 'model.depth=1', 'model.num_heads=2',
  'data.text.length=32', 'checkpoint.every=100',
)  # fmt: skip


def text_of(path):
  return [f'data.path={path}'] if path else []


def parameters(run, directory, seed, echo):
  """What is measured beside the Task's evaluations."""
  echo(f'measured with seed {seed}')
  (directory / 'seen.txt').write_text(str(seed))
  return {'parameters': sum(x.size for x in jax.tree.leaves(run.variables['params']))}


CLAIM = ModelsClaim(
  claim=Claim(
    'toy', 'Deep is large.',
    (
      Criterion('fewer bits', 'bits_per_token', 'deep', 'flat', 'below'),
      Criterion('is larger', 'parameters', 'deep', 'flat', 'above', test='mean', is_condition=True),
    ),
  ),
  arms={
    'flat': Arm('lm/mini.py', SETTINGS, data=text_of),
    'deep': Arm('lm/mini.py', (*SETTINGS, 'model.depth=2'), equal_to='flat', data=text_of),
  },
  seeds=(1, 2, 3),
  title='Toy', subtitle='of tests',
  departures=('All of it.',),
  measure=parameters,
  measure_settings={'what': 'parameters'},
)  # fmt: skip


@pytest.fixture(scope='module')
def text(tmp_path_factory):
  path = tmp_path_factory.mktemp('text') / 'text.txt'
  rng = np.random.default_rng(0)
  lines = (' '.join(rng.choice(['the', 'cat', 'sat', 'on', 'mats'], 8)) for _ in range(300))
  path.write_text('\n'.join(lines))
  return str(path)


@pytest.mark.slow
def test_runs_to_a_verdict_and_does_nothing_twice(text, tmp_path):
  said = []
  page = models_claim.run(CLAIM, tmp_path, data_path=text, echo=said.append)
  verdict = json.loads((tmp_path / 'verdict.json').read_text())
  assert verdict['outcome'] in ('reproduced', 'not reproduced', 'inconclusive')
  measured = json.loads((tmp_path / 'measurements.json').read_text())
  assert set(measured) == {'flat', 'deep'} and set(measured['flat']) == {'1', '2', '3'}
  flat, deep = measured['flat']['2'], measured['deep']['2']
  assert 0 < flat['bits_per_token'] < 9 and deep['parameters'] > flat['parameters']
  assert flat['bits_per_token'] != measured['flat']['1']['bits_per_token']
  assert 'Planned compute' in page.read_text() and 'All of it.' in page.read_text()
  text_of_page = claim_markdown.markdown(tmp_path)
  assert '| parameters |' in text_of_page and verdict['sentence'] in text_of_page

  trained = (tmp_path / 'seed-1/flat/model/log.jsonl').stat().st_mtime_ns
  said.clear()
  models_claim.run(CLAIM, tmp_path, data_path=text, echo=said.append)
  assert (tmp_path / 'seed-1/flat/model/log.jsonl').stat().st_mtime_ns == trained
  assert not any('measured with seed' in line for line in said)


def test_an_arm_spends_the_flops_of_the_other(text):
  long = tuple(s if not s.startswith('steps') else 'steps=400' for s in SETTINGS)
  arms = {
    'flat': dataclasses.replace(CLAIM.arms['flat'], settings=long),
    'deep': dataclasses.replace(CLAIM.arms['deep'], settings=(*long, 'model.depth=2')),
  }
  plan = models_claim.planned(dataclasses.replace(CLAIM, arms=arms), data_path=text)
  flat, deep = (models.budgets(plan, [a])[0] for a in ('flat', 'deep'))
  assert flat.steps == 400 > deep.steps and abs(deep.flops / flat.flops - 1) < 0.01
  assert models_claim.planned(CLAIM, data_path=text, seeds=(9,)).seeds == (9,)


@pytest.mark.parametrize(
  'changes, options, message',
  [
    ({}, {'scale': 0}, 'scale is 0'),
    ({}, {'data_path': 'nowhere.txt'}, 'nowhere.txt'),
    ({}, {'data_path': None}, 'needs data.path'),
    ({'equal_to': 'none'}, {}, "'none'"),
    ({'equal_to': 'deep'}, {}, 'keeps the steps'),
    ({'settings': (*SETTINGS, 'model.dpeth=2')}, {}, 'dpeth'),
  ],
)
def test_what_cannot_be_is_said_before_training(text, changes, options, message):
  arms = dict(CLAIM.arms, deep=dataclasses.replace(CLAIM.arms['deep'], **changes))
  claim = dataclasses.replace(CLAIM, arms=arms)
  with pytest.raises(ConfigError, match=message):
    models_claim.planned(claim, **{'data_path': text, **options})


@pytest.mark.slow
def test_data_that_is_made_first_and_a_study_that_is_moved(text, tmp_path):
  def prepared(path, scale):
    def write(directory):
      (directory / 'text.txt').write_text(path.read_text())
      return {'bytes': path.stat().st_size}

    return models.Prepared(write, {'scale': scale})

  arms = {
    name: dataclasses.replace(arm, data=lambda path: ['data.path={data}/text.txt'])
    for name, arm in CLAIM.arms.items()
  }
  claim = dataclasses.replace(CLAIM, arms=arms, prepared=prepared)
  first, second = tmp_path / 'first', tmp_path / 'second'
  models_claim.run(claim, first, data_path=text, seeds=(1,), echo=lambda line: None)
  first.rename(second)
  said = []
  page = models_claim.run(claim, second, data_path=text, seeds=(1,), echo=said.append)
  assert not any('first step' in line for line in said)
  assert 'bytes' in page.read_text()
