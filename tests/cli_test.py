"""The verbs: help with a real example, mistakes named, nothing heavy imported for either."""

import dataclasses
import subprocess
import sys

import jax
import pytest

from jaxmm import cli
from jaxmm.cli_curate import training
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.studies import convert, pictures

VERBS = (
  'quickstart',
  'train',
  'latent-scale',
  'tokenize',
  'reconstruct',
  'sample',
  'evaluate',
  'reproduce',
  'convert',
  'report',
)


@pytest.mark.parametrize('verb', VERBS)
def test_every_verb_shows_a_real_example(verb, capsys):
  with pytest.raises(SystemExit) as stopped:
    cli.main([verb, '--help'])
  assert stopped.value.code == 0
  assert f'example:\n  jaxmm {verb} ' in capsys.readouterr().out


def test_help_imports_nothing_heavy():
  code = (
    'import sys\nfrom jaxmm import cli\n'
    'try:\n  cli.main(["train", "--help"])\nexcept SystemExit:\n  pass\n'
    'assert not {"jax", "flax", "numpy"} & set(sys.modules), "heavy imports for --help"\n'
  )
  subprocess.run([sys.executable, '-c', code], check=True, capture_output=True)


def test_the_package_itself_is_the_command():
  run = subprocess.run(
    [sys.executable, '-m', 'jaxmm', 'train', '--help'], check=True, capture_output=True, text=True
  )
  assert run.stdout.startswith('usage: jaxmm train ')


def test_overrides_come_in_both_spellings():
  args, overrides = cli._split_overrides(
    ['train', '--config.steps=3', '--workdir', 'd', '--config.data.path', 'x', '--config', 'f.py']
  )
  assert args == ['train', '--workdir', 'd', '--config', 'f.py']
  assert overrides == ['steps=3', 'data.path=x']


def test_a_misspelt_setting_names_its_neighbour(tmp_path, capsys):
  status = cli.main(
    ['train', '--config', 'crt/mini.py', '--config.stpes=3', '--workdir', str(tmp_path)]
  )
  assert status == 2
  assert 'did you mean steps' in capsys.readouterr().err
  assert not list(tmp_path.iterdir())


def test_a_setting_where_none_is_taken_is_an_error(capsys):
  with pytest.raises(SystemExit) as stopped:
    cli.main(['report', 'x', '--config.steps=3'])
  assert stopped.value.code == 2
  assert 'takes no --config' in capsys.readouterr().err


def test_a_directory_that_is_no_run_is_named(tmp_path, capsys):
  assert cli.main(['evaluate', '--run', str(tmp_path)]) == 2
  assert f'{tmp_path} is not a run directory' in capsys.readouterr().err


def test_a_paper_without_a_claim_lists_those_with_one(capsys):
  assert cli.main(['reproduce', 'nothing']) == 2
  assert 'there are crt' in capsys.readouterr().err


@pytest.mark.parametrize('text', ['5', '5:', '9:3', 'a:b'])
def test_a_profile_window_that_is_none_is_refused(text):
  with pytest.raises(ConfigError, match='FIRST:LAST'):
    training.window(text)


def test_every_sampling_setting_has_a_flag(monkeypatch, capsys):
  seen = {}
  monkeypatch.setattr(pictures, 'sample', lambda *a, **given: seen.update(given))
  verb = ['sample', '--run', 'r', '--output', 'x.png']
  fields = {f.name for f in dataclasses.fields(SamplingConfig)} - {'allowed'}  # the program's own
  assert cli.main(verb) == 0
  assert SamplingConfig(**{k: v for k, v in seen.items() if k in fields}) == SamplingConfig()
  words = '--temperature 0.5 --top-k 3 --top-p 0.9 --guidance 2 --guidance-interval 7 --greedy'
  assert cli.main([*verb, *words.split()]) == 0
  chosen = SamplingConfig(**{k: v for k, v in seen.items() if k in fields})
  assert chosen == SamplingConfig(0.5, 3, 0.9, 2.0, 7, True) and fields <= seen.keys()


@pytest.mark.parametrize(
  ('flag', 'weights'), [([], 'auto'), (['--ema'], 'ema'), (['--no-ema'], 'params')]
)
def test_which_weights_are_converted(flag, weights, monkeypatch, capsys):
  seen = {}
  monkeypatch.setattr(convert, 'run', lambda *a, **given: seen.update(given))
  cli.main(['convert', '--format', 'llamagen-vq', '--input', 'a', '--output', 'b', *flag])
  assert seen['weights'] == weights


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ('--coordinator n:1', '--coordinator is given without --process-id, --process-count'),
    ('--process-id 0 --process-count 2', 'given without --coordinator'),
    ('--distributed --process-id 0', '--process-id is given; leave one out'),
    ('--coordinator n --process-id 0 --process-count 2', 'expected HOST:PORT'),
    ('--coordinator n:1 --process-id 2 --process-count 2', 'expected ids from 0 to count - 1'),
  ],
)
def test_half_given_processes_are_refused(words, message, tmp_path, capsys):
  argv = ['train', '--config', 'crt/mini.py', '--workdir', str(tmp_path / 'run'), *words.split()]
  assert cli.main(argv) == 2
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()


def test_processes_are_joined_before_the_config_is_read(monkeypatch, tmp_path, capsys):
  joined = []
  monkeypatch.setattr(jax.distributed, 'initialize', lambda **given: joined.append(given))
  argv = ['train', '--config', 'absent.py', '--workdir', str(tmp_path)]
  words = ['--coordinator', '[::1]:12', '--process-id', '1', '--process-count', '2']
  assert cli.main([*argv, *words]) == 2 and 'absent.py' in capsys.readouterr().err
  assert cli.main([*argv, '--distributed']) == 2
  given = dict(coordinator_address='[::1]:12', num_processes=2, process_id=1)
  assert joined == [given, {}]
  assert cli.main(argv) == 2 and len(joined) == 2

  def lost(**given):
    raise RuntimeError('nobody there')

  monkeypatch.setattr(jax.distributed, 'initialize', lost)
  assert cli.main([*argv, *words]) == 1
  said = capsys.readouterr().err
  assert 'could not join the 2 processes at [::1]:12 (nobody there)' in said
