"""The verbs: help with a real example, mistakes named, nothing heavy imported for either."""

import subprocess
import sys

import pytest

from jaxmm import cli
from jaxmm.config import ConfigError

VERBS = (
  'quickstart',
  'train',
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
    cli._window(text)
