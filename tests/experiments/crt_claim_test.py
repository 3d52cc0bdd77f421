"""CRT's claim as planned: what is trained, at what cost, and what it refuses at once."""

import dataclasses
import importlib.util
import pathlib

import pytest

from jaxmm.config import ConfigError
from jaxmm.studies import reproduce, two_stage, two_stage_claim
from jaxmm.studies.matched_control import MatchedControl
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


def test_the_plan_is_said_whole_before_the_controls_are_known(claim, tmp_path):
  study = Study(tmp_path)
  plan = two_stage_claim.planned(claim.STUDY, study)
  assert set(plan.tokenizers) == {'baseline', 'crt'} and plan.seeds == (4, 5, 6, 7, 8)
  assert plan.num_samples == 5000 and plan.features == 'classifier'
  crt, baseline = plan.tokenizers['crt'], plan.tokenizers['baseline']
  assert crt['model']['vqgan'] == baseline['model']['vqgan'] and crt['data'] == baseline['data']
  flops = arm_flops(two_stage.budgets(plan))
  assert flops['crt'] == pytest.approx(flops['baseline'], rel=1e-3)
  # On five seeds a tokenizer of each arm and two narrower ones; an interpolation; the rest is
  # foreseen: the reference, and of three arms what else there is.
  assert len(study.stages) == 5 * 4 + 1
  text = study.plan_text()
  assert ': 87 stages, 0 of them done; to do:' in text
  for line in (
    'seed 8, arm search-narrow-12: tokenizer',
    'control narrow: size',
    'seed 8, arm narrow: tokenizer, codes of the data, reconstructions, image model, samples',
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


def test_every_arm_is_judged(claim):
  assert claim.CLAIM.judged_arms() == {'baseline', 'crt', 'narrow'}
  (gap,) = [c for c in claim.CLAIM.criteria if c.is_reported]
  assert gap.metric == 'generation_gap' and (gap.arm, gap.against) == ('crt', 'baseline')
  (control,) = claim.STUDY.controls
  assert control.equal == 'steps' and control.search_seeds == len(claim.STUDY.seeds)


def test_no_control_that_the_search_may_find_is_refused_after_it(claim, tmp_path):
  # Fewer codes make the image model cheaper; where they decide, that is too much.
  few = MatchedControl(
    'narrow', of='baseline', like='crt', setting='model.vqgan.quantizer.codes', ladder=(128, 32)
  )
  judged = dataclasses.replace(claim.STUDY, controls=(few,), budget_tolerance=0.0)
  with pytest.raises(ConfigError, match=r'differ by \d+\.\d+% of training FLOPs'):
    two_stage_claim.planned(judged, Study(tmp_path / 'judged'))
  without = dataclasses.replace(claim.STUDY, controls=())
  with pytest.raises(ConfigError, match="fewer than on the narrow.*has no key 'narrow'"):
    two_stage_claim.planned(without, Study(tmp_path / 'without'))
