"""Runs that cannot judge lines are refused; what one says is in cli_curate/quality_test.py."""

import pytest

from jaxmm.config import ConfigError
from jaxmm.models import lm
from jaxmm.studies import loading, text_judge

TEXT = {'tokenizer': 'bytes', 'bos_id': 257, 'eos_id': 258, 'pad_id': 256}


def loaded(monkeypatch, tmp_path, task=None, **data):
  config = {'task': 'jaxmm.models.lm', 'data': {'name': 'text', 'text': TEXT} | data}
  task = task or lm.LmTask(lm.config_of({'size': 'micro', 'length': 48}))
  run = loading.LoadedRun(tmp_path, config, task, 1, {'params': {}})
  monkeypatch.setattr(loading, 'load', lambda directory: run)


def test_the_settings_of_the_run_are_those_of_the_judge(monkeypatch, tmp_path):
  loaded(monkeypatch, tmp_path)
  judge = text_judge.line_scorer(tmp_path, batch=5)
  assert (judge.bos_id, judge.pad_id, judge.length, judge.batch) == (257, 256, 48, 5)
  assert judge.encode('é') == [195, 169]


def test_runs_that_cannot_judge(monkeypatch, tmp_path):
  with pytest.raises(ConfigError, match='is not a run directory'):
    text_judge.line_scorer(tmp_path)
  loaded(monkeypatch, tmp_path, task=object())
  with pytest.raises(ConfigError, match="a run of 'jaxmm.models.lm' on data 'text', expected"):
    text_judge.line_scorer(tmp_path)
  loaded(monkeypatch, tmp_path, name='tokens')
  with pytest.raises(ConfigError, match="on data 'tokens', expected jaxmm.models.lm on 'text'"):
    text_judge.line_scorer(tmp_path)
  loaded(monkeypatch, tmp_path, text={**TEXT, 'bos_id': None})
  with pytest.raises(ConfigError, match='was trained with data.text.bos_id None'):
    text_judge.line_scorer(tmp_path)
