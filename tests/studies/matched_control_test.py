"""How a control is found, and what is refused before hours are spent."""

import json

import pytest

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import matched_control, two_stage
from jaxmm.studies.matched_control import MatchedControl, add_search, interpolated_size
from jaxmm.studies.stages import Study, arm_flops
from jaxmm.studies.two_stage import TwoStage

CODES, WIDTH = 'model.vqgan.quantizer.codes', 'model.vqgan.channels'


@pytest.mark.parametrize(
  ('target', 'size', 'multiple'),
  [
    (0.040, 512, 1),  # better than the baseline: the baseline is the control
    (0.044, 512, 1),
    (0.054, 256, 1),  # half way in the logarithm of the size
    (0.0541, 254, 1),  # rounded towards more degradation
    (0.0541, 240, 16),
    (0.074, 64, 1),
    (0.084, 32, 32),
  ],
)
def test_the_control_has_the_regularized_error(target, size, multiple):
  assert interpolated_size({512: 0.044, 128: 0.064, 32: 0.084}, target, multiple) == size


def test_a_size_that_is_met_exactly_is_not_rounded_below_itself():
  errors = {16: 0.04, 12: 0.05, 10: 0.055, 6: 0.07}
  assert [interpolated_size(errors, e, 2) for e in errors.values()] == [16, 12, 10, 6]


def test_a_ladder_that_does_not_answer_is_refused():
  with pytest.raises(ConfigError, match='add a smaller one'):
    interpolated_size({512: 0.044, 128: 0.064}, 0.07)
  for wrong in (0.043, float('nan')):
    with pytest.raises(ConfigError, match='do not rise'):
      interpolated_size({512: 0.044, 128: wrong, 32: 0.08}, 0.05)


@pytest.fixture(scope='module')
def tokenizers():
  """Of the miniature on digits: 128 codes, 16 channels in groups of 8."""
  return {w: configs.plain(configs.load_config(f'crt/mini.py:{w}')) for w in ('baseline', 'crt')}


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'ladder': (64, 128)}, r'\(64, 128\), expected different sizes below the 128 that .*codes is'),
    ({'ladder': (64, 64)}, 'expected different sizes'),
    ({'ladder': ()}, 'expected different sizes'),
    ({'ladder': (32, 6), 'multiple': 4}, r'\(32, 6\), expected multiples of 4'),
    ({'multiple': 0}, 'multiple is 0'),
    ({'search_seeds': 0}, 'search_seeds is 0'),
    ({'equal': 'step'}, "equal is 'step', expected flops or steps"),
    ({'like': 'crtt'}, "arm 'crtt', but there are baseline, crt"),
    ({'arm': 'crt'}, 'called as an arm of the claim'),
    ({'setting': 'model.vqgan.chanels'}, 'no key .*did you mean .*model.vqgan.channels'),
    ({'setting': 'model.vqgan.multipliers'}, r'is \[1, 2, 2\], expected a whole number'),
    # 8 can be built, but 12 may come out.
    ({'setting': WIDTH, 'ladder': (8,), 'multiple': 4}, 'does not divide the width 12'),
  ],
)
def test_a_search_that_cannot_find_anything_is_refused(tmp_path, tokenizers, changes, said):
  control = {'arm': 'few', 'of': 'baseline', 'like': 'crt', 'setting': CODES, 'ladder': (32,)}
  study = Study(tmp_path)
  with pytest.raises(ConfigError, match=said):
    add_search(study, MatchedControl(**control | changes), tokenizers, seeds=(0,))
  assert not study.stages


@pytest.mark.parametrize(('setting', 'size'), [(CODES, 32), (WIDTH, 8)])
def test_a_degraded_tokenizer_differs_in_its_size_and_costs_the_same(tokenizers, setting, size):
  control = MatchedControl('worse', 'baseline', 'crt', setting, (size,))
  worse = matched_control.degraded(control, tokenizers, size)
  changed = configs.differences(tokenizers['baseline'], worse)
  assert {line.partition(':')[0] for line in changed} == {setting, 'steps'}
  assert matched_control.size_of(worse, setting) == size
  model = configs.plain(configs.load_config('crt/mini.py:image_lm'))
  plan = TwoStage({'crt': tokenizers['crt'], 'worse': worse}, model)
  flops = arm_flops([b for b in two_stage.budgets(plan) if b.stage == 'tokenizer'])
  assert flops['worse'] == pytest.approx(flops['crt'], rel=0.5 / worse['steps'])
  assert setting == CODES or worse['steps'] > 2 * tokenizers['crt']['steps']


def search(directory, monkeypatch, tokenizers, errors, **options):
  """(results of the searches, lines printed) where trainings give these errors."""

  def train(config, path, echo):
    sizes = [matched_control.size_of(config, setting) for setting in (WIDTH, CODES)]
    error = errors['crt' if 'regularizer' in config['model'] else tuple(sizes)]
    return {'mse': error + (0.01 if config['seed'] == 5 else 0.0)}

  monkeypatch.setattr(two_stage.evaluation, 'train_and_measure', train)
  lines = []
  study = Study(directory, lines.append)
  for control in (
    MatchedControl('few', 'baseline', 'crt', CODES, (32, 8), **options),
    MatchedControl('narrow', 'baseline', 'crt', WIDTH, (8,), 'steps', search_seeds=2, multiple=8),
  ):
    add_search(study, control, tokenizers, seeds=(4, 5))
  results = study.run()
  json.dumps(results, allow_nan=False)
  return {arm: results[arm] for arm in ('few', 'narrow')}, lines


def test_two_searches_share_what_both_need(tmp_path, monkeypatch, tokenizers):
  errors = {(16, 128): 0.04, (16, 32): 0.06, (16, 8): 0.08, (8, 128): 0.07, 'crt': 0.05}
  found, lines = search(tmp_path, monkeypatch, tokenizers, errors)
  assert found['few']['size'] == 64 and found['narrow']['size'] == 8
  assert found['few']['errors'] == {'128': 0.04, '32': 0.06, '8': 0.08}
  trained = sorted(path.parent.name for path in tmp_path.glob('seed-4/*/tokenizer'))
  assert trained == ['baseline', 'crt', 'search-few-32', 'search-few-8', 'search-narrow-8']
  assert '10 stages' in lines[0]  # and three tokenizers of the other seed
  assert found['narrow']['errors'] == pytest.approx({'16': 0.045, '8': 0.075})
  assert found['narrow']['target'] == pytest.approx(0.055)
  said = matched_control.remark('few', found['few'])
  assert said.startswith(f'Control few has {CODES}=64: ') and '0.06 at 32' in said
  assert '(one seed)' in said
  assert '(mean of 2 seeds)' in matched_control.remark('narrow', found['narrow'])
  assert any(said in line for line in lines)


def test_only_a_control_that_decides_nothing_may_do_without_an_answer(
  tmp_path, monkeypatch, tokenizers
):
  errors = {(16, 128): 0.04, (16, 32): 0.03, (16, 8): 0.08, (8, 128): 0.07, 'crt': 0.05}
  with pytest.raises(ConfigError, match='control few: the errors do not rise'):
    search(tmp_path / 'whole', monkeypatch, tokenizers, errors)
  found, lines = search(tmp_path / 'short', monkeypatch, tokenizers, errors, must_answer=False)
  assert found['few']['size'] == 32  # the nearest
  assert any('do not rise' in line and 'the nearest of the ladder' in line for line in lines)


def test_where_nothing_was_lost_the_arm_itself_is_the_control_whatever_the_ladder_gave():
  assert interpolated_size({16: 0.03, 12: 0.029, 8: 0.031}, 0.0299, 2) == 16
