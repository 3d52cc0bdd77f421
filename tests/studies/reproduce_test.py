"""A paper's claim is found by its id and gets what the user said."""

import pathlib

import pytest

from jaxmm.config import ConfigError
from jaxmm.studies import reproduce

CLAIM = """
def run(workdir, *, data_path, seeds, scale, echo):
  echo(f'{data_path} {seeds} {scale}')
  return workdir / 'report.html'
"""


def test_the_papers_that_have_a_claim():
  assert 'crt' in reproduce.papers()
  with pytest.raises(ConfigError, match="no claim of 'crtt'; there are .*crt"):
    reproduce.run('crtt', pathlib.Path('nowhere'))
  assert not pathlib.Path('nowhere').exists()


def test_a_claim_gets_what_the_user_said(tmp_path, monkeypatch):
  (tmp_path / 'claim.py').write_text(CLAIM)
  monkeypatch.setattr(reproduce, 'papers', lambda: {'toy': tmp_path / 'claim.py'})
  said = []
  page = reproduce.run('toy', tmp_path, data_path='x.zip', seeds=[3], scale=0.5, echo=said.append)
  assert page == tmp_path / 'report.html' and said == ['x.zip [3] 0.5']
