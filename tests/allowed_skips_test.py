"""The rule that a skipped test fails under CI, tried on a small suite with this very conftest."""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

HERE = pathlib.Path(__file__).parent
SUITE = """
import pytest

def test_passes():
  assert True

@pytest.mark.parametrize('case', [1, 2])
@pytest.mark.skipif(True, reason='no such machine')
def test_skips(case):
  assert case
"""


def run_suite(directory, allowed, ci):
  tests = directory / 'tests'
  tests.mkdir()
  shutil.copy(HERE / 'conftest.py', tests)
  (tests / 'allowed_skips.txt').write_text(allowed)
  (tests / 'some_test.py').write_text(SUITE)
  (directory / 'pytest.ini').write_text('[pytest]\npython_files = *_test.py\n')
  return subprocess.run(
    [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', 'tests'],
    cwd=directory,
    env=os.environ | {'CI': ci, 'PYTEST_DISABLE_PLUGIN_AUTOLOAD': '1'},
    capture_output=True,
    text=True,
  )


def test_an_unlisted_skip_fails_under_ci_and_is_named(tmp_path):
  done = run_suite(tmp_path, 'tests/some_test.py::test_skips[1] | it is known\n', 'true')
  assert done.returncode == 1
  section = done.stdout.partition('allowed_skips.txt does not list')[2]
  assert 'test_skips[2]: ' in section and 'no such machine' in section
  assert 'test_skips[1]: ' not in section


@pytest.mark.parametrize('allowed, ci', [('', ''), ('tests/some_test.py::test_skips | known', '1')])
def test_a_skip_passes_without_ci_or_when_it_is_listed(tmp_path, allowed, ci):
  done = run_suite(tmp_path, allowed, ci)
  assert done.returncode == 0, done.stdout


def test_a_line_without_a_reason_stops_the_run(tmp_path):
  done = run_suite(tmp_path, 'tests/some_test.py::test_skips\n', 'true')
  assert done.returncode == pytest.ExitCode.USAGE_ERROR
  assert 'allowed_skips.txt:1 has no reason' in done.stdout + done.stderr
