"""A run from its config: settings that the config leaves out can be set all the same."""

import pytest

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import run
from tests import tiny_runs


def settings(*assignments, what='tokenizer'):
  before = tiny_runs.get_config(what).lock()
  return configs.differences(
    before, run.with_settings(before.copy_and_resolve_references(), assignments)
  )


def test_defaults_of_trainer_data_and_optimizer_can_be_set():
  assert settings(
    'mesh.fsdp=2', 'skip_batches=(5, 7)', 'ema=0.5', 'checkpoint.keep_every=10', 'data.cache=true',
    'optimizer.generator.schedule=cosine',
  ) == [
    "checkpoint.keep_every: '(absent)' -> 10",
    "data.cache: '(absent)' -> True",
    "ema: '(absent)' -> 0.5",
    "mesh.fsdp: '(absent)' -> 2",
    "optimizer.generator.schedule: '(absent)' -> 'cosine'",
    "skip_batches: '(absent)' -> [5, 7]",
  ]  # fmt: skip


def test_what_the_config_has_is_replaced_and_nothing_else_is_added():
  assert settings('steps=7') == ['steps: 4 -> 7']
  assert settings() == []


@pytest.mark.parametrize(
  'assignment, message',
  [
    ('mesh.fdsp=2', "no key 'mesh.fdsp'"),
    ('ema=much', '--config.ema=much: expected float'),
    ('optimizer.judge.name=sgd', "no key 'optimizer.judge.name'"),
    ('model.size=B', "no key 'model.size'"),
  ],
)
def test_others_are_refused(assignment, message):
  with pytest.raises(ConfigError, match=message):
    settings(assignment)
