"""What a run directory remembers, and what may change when the run goes on."""

import json

import jax
import pytest

import jaxmm
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.train import run_config


def config(steps=20, schedule='constant', **settings):
  optimizer = dict(a=dict(schedule=schedule), b=dict(schedule='rsqrt', warmup=3))
  return configs.from_mapping(
    run_config.RunConfig, dict(task='t', steps=steps, batch=4, optimizer=optimizer, **settings)
  )


def settle(directory, settings, accept=False):
  """What is said when a run goes on."""
  lines = []
  run_config.settle_config(directory, settings, True, accept, lines.append)
  return lines


@pytest.mark.parametrize('schedule', ['cosine', 'linear'])
def test_steps_are_not_free_where_a_learning_rate_follows_them(schedule, tmp_path):
  settle(tmp_path, config(20, schedule))
  with pytest.raises(
    ConfigError, match=r'(?s):\n  steps: 20 -> 30 \(a learning rate ends .*--accept-conf'
  ):
    settle(tmp_path, config(30, schedule))
  assert json.loads((tmp_path / 'config.json').read_text())['steps'] == 20
  lines = settle(tmp_path, config(30, schedule), accept=True)
  assert lines == ['setting changed: steps: 20 -> 30']
  assert json.loads((tmp_path / 'config.json').read_text())['steps'] == 30


def test_a_run_may_grow_longer_where_nothing_follows_its_length(tmp_path):
  settle(tmp_path, config(20))
  lines = settle(tmp_path, config(30, rules='fsdp'))
  assert lines == ["setting changed: rules: 'dp' -> 'fsdp'", 'setting changed: steps: 20 -> 30']


def test_the_environment_is_written_and_its_changes_are_told(tmp_path):
  path = tmp_path / 'environment.json'
  settle(tmp_path, config())
  found = json.loads(path.read_text())
  assert found['versions']['jax'] == jax.__version__
  assert found['versions']['jaxmm'] == jaxmm.__version__
  assert {'python', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain'} <= {*found['versions']}
  assert (found['platform'], found['device_count'], found['process_count']) == ('cpu', 8, 1)
  assert found['device_kind'] == jax.devices()[0].device_kind
  path.write_text(json.dumps(found | {'device_count': 2}))
  assert settle(tmp_path, config()) == ['environment changed: device_count: 2 -> 8']
  path.write_text('{"cut off')
  assert settle(tmp_path, config()) == [] and json.loads(path.read_text()) == found
