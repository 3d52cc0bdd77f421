"""CRT's claim as planned: what is trained, at what cost, and what it refuses at once."""

import dataclasses
import importlib.util
import pathlib

import pytest

from jaxmm.config import ConfigError
from jaxmm.studies import reproduce, two_stage, two_stage_claim
from jaxmm.studies.stages import Study, arm_flops


@pytest.fixture(scope='module')
def claim():
  spec = importlib.util.spec_from_file_location('crt_claim', reproduce.papers()['crt'])
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


def test_what_cannot_work_is_said_before_anything_is_trained(claim, tmp_path):
  with pytest.raises(ConfigError, match='expected at least one and each only once'):
    claim.run(pathlib.Path(tmp_path), seeds=[0, 0])
  with pytest.raises(ConfigError, match='scale is 0'):
    claim.run(pathlib.Path(tmp_path), scale=0)
  assert not list(tmp_path.iterdir())


def test_the_plan_is_said_whole_before_the_control_is_known(claim, tmp_path):
  study = Study(tmp_path)
  plan = two_stage_claim.planned(claim.STUDY, study)
  assert set(plan.tokenizers) == {'baseline', 'crt'} and plan.seeds == (1, 2, 3)
  assert plan.num_samples == 5000 and plan.features == 'classifier'
  crt, baseline = plan.tokenizers['crt'], plan.tokenizers['baseline']
  assert crt['model']['vqgan'] == baseline['model']['vqgan'] and crt['data'] == baseline['data']
  flops = arm_flops(two_stage.budgets(plan))
  assert flops['crt'] == pytest.approx(flops['baseline'], rel=1e-3)
  # A tokenizer of each arm, two smaller codebooks, the interpolation; the rest is foreseen.
  assert len(study.stages) == 5
  text = study.plan_text()
  assert ': 40 stages, 0 of them done; to do:' in text
  for line in (
    'seed 1, arm search-32: tokenizer',
    'codebook size of the control',
    'seed 3, arm control: tokenizer, codes of the data, image model, samples',
  ):
    assert f'\n  {line}' in text
  assert not list(tmp_path.iterdir())


def test_scaling_a_run_scales_its_ramp_and_warmup(claim, tmp_path):
  options = ({'data_path': 'x.zip', 'scale': scale} for scale in (1.0, 0.5))
  whole, half = (two_stage_claim.planned(claim.STUDY, Study(tmp_path), **o) for o in options)
  assert half.image_model['steps'] * 2 == whole.image_model['steps']
  assert half.num_samples == 1500
  whole, half = (plan.tokenizers['crt'] for plan in (whole, half))
  assert half['steps'] * 2 == whole['steps']
  ramp = lambda config: config['model']['regularizer']['ramp_steps']
  assert ramp(half) * 2 == ramp(whole)
  warmup = lambda config: config['optimizer']['generator']['warmup']
  assert warmup(half) * 2 == warmup(whole)
  assert half['data']['path'] == half['eval_data']['path'] == 'x.zip'


def test_no_control_that_the_search_may_find_is_refused_after_it(claim, tmp_path):
  narrow = dataclasses.replace(claim.STUDY, budget_tolerance=0.03)
  with pytest.raises(ConfigError, match=r'differ by 3\.\d+% of training FLOPs'):
    two_stage_claim.planned(narrow, Study(tmp_path))
