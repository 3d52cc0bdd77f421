"""CRT's claim: how its control is found, and what it refuses before hours are spent."""

import importlib.util
import pathlib

import pytest

from jaxmm.config import ConfigError
from jaxmm.studies import reproduce


@pytest.fixture(scope='module')
def claim():
  spec = importlib.util.spec_from_file_location('crt_claim', reproduce.papers()['crt'])
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module


@pytest.mark.parametrize(
  ('target', 'codes'),
  [
    (0.040, 512),  # better than the baseline: the baseline is the control
    (0.044, 512),
    (0.054, 256),  # half way in the logarithm of the size
    (0.0541, 255),  # rounded towards more degradation
    (0.074, 64),
    (0.084, 32),
  ],
)
def test_the_control_has_the_regularized_error(claim, target, codes):
  assert claim.interpolated_codes({512: 0.044, 128: 0.064, 32: 0.084}, target) in (codes, codes - 1)


def test_a_ladder_that_does_not_answer_is_refused(claim):
  with pytest.raises(ConfigError, match='add a smaller codebook'):
    claim.interpolated_codes({512: 0.044, 128: 0.064}, 0.07)
  with pytest.raises(ConfigError, match='do not rise'):
    claim.interpolated_codes({512: 0.044, 128: 0.043, 32: 0.08}, 0.05)


def test_what_cannot_work_is_said_before_anything_is_trained(claim, tmp_path):
  with pytest.raises(ConfigError, match='expected at least one and each only once'):
    claim.run(pathlib.Path(tmp_path), seeds=[0, 0])
  with pytest.raises(ConfigError, match='scale is 0'):
    claim.run(pathlib.Path(tmp_path), scale=0)
  assert not list(tmp_path.iterdir())


def test_scaling_a_run_scales_its_ramp_and_warmup(claim):
  whole, half = (claim._config('crt', 'x.zip', scale) for scale in (1.0, 0.5))
  assert half['steps'] * 2 == whole['steps']
  ramp = lambda config: config['model']['regularizer']['ramp_steps']
  assert ramp(half) * 2 == ramp(whole)
  assert half['data']['path'] == half['eval_data']['path'] == 'x.zip'
