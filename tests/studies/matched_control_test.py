"""How a control is found, and what is refused before hours are spent."""

import pytest

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import two_stage
from jaxmm.studies.matched_control import MatchedControl, add_search, codes_of, interpolated_codes
from jaxmm.studies.stages import Study


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
def test_the_control_has_the_regularized_error(target, codes):
  assert interpolated_codes({512: 0.044, 128: 0.064, 32: 0.084}, target) in (codes, codes - 1)


def test_a_ladder_that_does_not_answer_is_refused():
  with pytest.raises(ConfigError, match='add a smaller codebook'):
    interpolated_codes({512: 0.044, 128: 0.064}, 0.07)
  with pytest.raises(ConfigError, match='do not rise'):
    interpolated_codes({512: 0.044, 128: 0.043, 32: 0.08}, 0.05)


@pytest.mark.parametrize(
  ('changes', 'said'),
  [
    ({'ladder': (64, 128)}, r'\(64, 128\), expected sizes of codebook below the 128 of baseline'),
    ({'ladder': ()}, 'expected sizes of codebook'),
    ({'like': 'crtt'}, "arm 'crtt', but there are baseline, crt"),
  ],
)
def test_a_search_that_cannot_find_anything_is_refused(tmp_path, changes, said):
  control = MatchedControl(**{'of': 'baseline', 'like': 'crt', 'ladder': (32,)} | changes)
  tokenizers = {w: configs.plain(configs.load_config(f'crt/mini.py:{w}')) for w in _ARMS}
  assert codes_of(tokenizers['baseline']) == 128
  study = Study(tmp_path)
  with pytest.raises(ConfigError, match=said):
    add_search(study, control, tokenizers, seed=0)
  assert not study.stages


_ARMS = ('baseline', 'crt')


def search(directory, monkeypatch, errors, **options):
  """(what the search says, the lines it printed) where trainings give these errors, by codes."""

  def train(config, path, echo):
    return {'mse': errors['crt' if 'regularizer' in config['model'] else codes_of(config)]}

  monkeypatch.setattr(two_stage, 'train_and_measure', train)
  tokenizers = {w: configs.plain(configs.load_config(f'crt/mini.py:{w}')) for w in _ARMS}
  lines = []
  study = Study(directory, lines.append)
  add_search(study, MatchedControl('baseline', 'crt', (32, 8)), tokenizers, seed=4, **options)
  return study.run()['control'], lines


def test_the_search_trains_what_it_interpolates(tmp_path, monkeypatch):
  errors = {128: 0.04, 32: 0.06, 8: 0.08, 'crt': 0.05}
  found, lines = search(tmp_path, monkeypatch, errors)
  assert found == {'codes': 64}
  trained = sorted(path.parent.name for path in tmp_path.glob('seed-4/*/tokenizer'))
  assert trained == ['baseline', 'crt', 'search-32', 'search-8'] and '5 stages' in lines[0]


def test_only_a_run_that_decides_nothing_may_do_without_a_control(tmp_path, monkeypatch):
  errors = {128: 0.04, 32: 0.03, 8: 0.08, 'crt': 0.05}
  with pytest.raises(ConfigError, match='do not rise'):
    search(tmp_path / 'whole', monkeypatch, errors)
  found, lines = search(tmp_path / 'short', monkeypatch, errors, must_answer=False)
  assert found == {'codes': 32}
  assert any('do not rise' in line and 'it gets 32 codes' in line for line in lines)
