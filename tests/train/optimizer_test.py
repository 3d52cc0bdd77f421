"""Optimizers by label do what their fields say, and a config that does not fit its parameters is
refused.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmm.config import ConfigError, from_mapping
from jaxmm.core import axes
from jaxmm.train import optimizer as optimizers
from jaxmm.train.optimizer import OptimizerConfig

PARAMS = {
  'body': {'w': jnp.arange(6.0).reshape(2, 3) - 2, 'b': jnp.ones(3)},
  'head': {'w': jnp.full((3, 2), 2.0)},
}
GRADS = jax.tree.map(lambda p: 3 * p + 1, PARAMS)


def label(path):
  return path[0]


def updates_of(configs, labeller=label, steps=100, grads=GRADS, ndims=None, times=1):
  labels = optimizers.parameter_labels(labeller, PARAMS, configs)
  optimizer = optimizers.make_optimizer(configs, labels, steps, ndims)
  state = optimizer.init(PARAMS)
  for _ in range(times):
    updates, state = optimizer.update(grads, state, PARAMS)
  return updates


def slow_schedule(config, steps, s):
  """The schedules once more, in plain Python."""
  rise = min(1.0, (s + 1) / config.warmup) if config.warmup else 1.0
  progress = min(max((s - config.warmup) / (steps - config.warmup), 0), 1)
  if config.schedule == 'cosine':
    left = config.end + (1 - config.end) * (1 + math.cos(math.pi * progress)) / 2
  elif config.schedule == 'linear':
    left = config.end + (1 - config.end) * (1 - progress)
  elif config.schedule == 'rsqrt':
    left = max(config.end, math.sqrt(config.warmup / max(s + 1, config.warmup)))
  else:
    left = 1.0
  return config.learning_rate * rise * left


@pytest.mark.parametrize('schedule', ['constant', 'cosine', 'linear', 'rsqrt'])
@pytest.mark.parametrize('end', [0.0, 0.3])
def test_schedule_is_the_written_one(schedule, end):
  config = OptimizerConfig(learning_rate=0.2, schedule=schedule, warmup=10, end=end)
  ours = optimizers.learning_rate(config, 60)(np.arange(70))
  np.testing.assert_allclose(ours, [slow_schedule(config, 60, s) for s in range(70)], rtol=1e-5)
  assert ours[9] == pytest.approx(0.2) and ours[0] == pytest.approx(0.02)


def test_each_label_has_its_own_rule_and_rate():
  configs = {
    'body': OptimizerConfig('adamw', 1e-2, 0.8, 0.9, weight_decay=0.1),
    'head': OptimizerConfig('sgd', 1e-1, momentum=0.5),
  }
  ours = updates_of(configs, times=3)
  body = optax.adamw(1e-2, 0.8, 0.9, weight_decay=0.1, mask={'w': True, 'b': False})
  state = body.init(PARAMS['body'])
  head = optax.sgd(1e-1, 0.5)
  head_state = head.init(PARAMS['head'])
  for _ in range(3):
    expected, state = body.update(GRADS['body'], state, PARAMS['body'])
    expected_head, head_state = head.update(GRADS['head'], head_state)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), ours['body'], expected)
  np.testing.assert_allclose(ours['head']['w'], expected_head['w'], rtol=1e-6)


def test_clip_is_by_the_norm_of_one_label():
  sgd = dict(name='sgd', learning_rate=1.0)
  configs = {'body': OptimizerConfig(**sgd, clip=0.5), 'head': OptimizerConfig(**sgd)}
  ours = updates_of(configs)
  labels = {'body': {'w': 'body', 'b': 'body'}, 'head': {'w': 'head'}}
  norms = optimizers.norms_by_label(ours, labels)
  assert norms['body'] == pytest.approx(0.5, rel=1e-6)
  np.testing.assert_allclose(ours['head']['w'], -GRADS['head']['w'])


def test_decay_spares_biases_also_of_stacked_layers():
  boxed = {
    'w': nn.LogicallyPartitioned(jnp.ones((4, 3, 2)), (axes.LAYERS, axes.EMBED, axes.MLP)),
    'b': nn.LogicallyPartitioned(jnp.ones((4, 3)), (axes.LAYERS, axes.EMBED)),
    'plain': jnp.ones((3, 2)),
  }
  ndims = optimizers.parameter_ndims(boxed)
  assert ndims == {'w': 2, 'b': 1, 'plain': 2}
  params = {'w': jnp.ones((4, 3, 2)), 'b': jnp.ones((4, 3)), 'plain': jnp.ones((3, 2))}
  labels = jax.tree.map(lambda _: 'all', params)
  config = {'all': OptimizerConfig('sgd', 1.0, weight_decay=0.1)}
  optimizer = optimizers.make_optimizer(config, labels, 10, ndims)
  zeros = jax.tree.map(jnp.zeros_like, params)
  updates, _ = optimizer.update(zeros, optimizer.init(params), params)
  assert jnp.all(updates['b'] == 0)
  np.testing.assert_allclose(updates['w'], -0.1)
  np.testing.assert_allclose(updates['plain'], -0.1)


def test_frozen_parameters_do_not_move():
  by_label = updates_of(
    {'body': OptimizerConfig()}, lambda path: 'frozen' if path[0] == 'head' else 'body'
  )
  assert jnp.all(by_label['head']['w'] == 0) and jnp.all(by_label['body']['w'] != 0)
  by_pattern = updates_of({'body': OptimizerConfig(freeze=('*/b',)), 'head': OptimizerConfig()})
  assert jnp.all(by_pattern['body']['b'] == 0) and jnp.all(by_pattern['body']['w'] != 0)


def test_frozen_parameters_have_no_norm():
  labels = {'body': {'w': 'body', 'b': 'frozen'}, 'head': {'w': 'frozen'}}
  norms = optimizers.norms_by_label(GRADS, labels)
  assert set(norms) == {'body'}
  assert norms['body'] == pytest.approx(np.linalg.norm(GRADS['body']['w']), rel=1e-6)


@pytest.mark.parametrize(
  'configs, message',
  [
    ({'body': OptimizerConfig()}, "head/w has the label 'head'.*no optimizer.head.*it has body"),
    (
      {'body': OptimizerConfig(), 'head': OptimizerConfig(), 'bodi': OptimizerConfig()},
      "optimizer has no key 'bodi'; did you mean body",
    ),
    (
      {'body': OptimizerConfig(freeze=('x/*',)), 'head': OptimizerConfig()},
      r"optimizer.body.freeze has 'x/\*', but no parameter.*body/b",
    ),
  ],
)
def test_labels_and_config_must_fit(configs, message):
  with pytest.raises(ConfigError, match=message):
    optimizers.parameter_labels(label, PARAMS, configs)


@pytest.mark.parametrize(
  'values, message',
  [
    (dict(name='adamm'), 'adam'),
    (dict(learning_rat=1.0), 'did you mean learning_rate'),
    (dict(learning_rate=-1.0), 'optimizer.learning_rate is -1.0, expected a number >= 0'),
    (dict(b1=1.0), r'optimizer.b1 is 1.0, expected a number in \[0, 1\)'),
    (dict(clip=0.0), 'optimizer.clip is 0.0, expected a positive norm or None'),
    (dict(name='adam', weight_decay=0.1), 'use name="adamw"'),
    (dict(schedule='cosin'), 'schedule'),
    (dict(end=2.0), r'expected a fraction in \[0, 1\]'),
  ],
)
def test_settings_that_cannot_be_used_are_refused(values, message):
  with pytest.raises(ConfigError, match=message):
    from_mapping(OptimizerConfig, values, 'optimizer.body')
