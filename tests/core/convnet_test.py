"""The blocks of image tokenizers against slow, obvious computations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core import convnet


def random(*shape, seed=0):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def slow_group_norm(x, scale, bias, groups, eps):
  out = np.empty(x.shape, np.float64)
  width = x.shape[-1] // groups
  for b in range(x.shape[0]):
    for g in range(groups):
      part = x[b, :, :, g * width : (g + 1) * width].astype(np.float64)
      out[b, :, :, g * width : (g + 1) * width] = (part - part.mean()) / np.sqrt(part.var() + eps)
  return out * scale + bias


@pytest.mark.parametrize('offset', [0.0, 300.0])
def test_group_norm_and_swish(offset):
  x, scale, bias = random(2, 3, 5, 8) + offset, random(8, seed=1), random(8, seed=2)
  expected = slow_group_norm(x, scale, bias, 4, 1e-6)
  plain = convnet.group_norm(x, scale, bias, 4)
  tolerance = 1e-5 + 1e-6 * offset  # the input itself has 24 bits
  np.testing.assert_allclose(plain, expected, atol=tolerance * 10, rtol=1e-4)
  swished = convnet.group_norm(x, scale, bias, 4, swish=True)
  np.testing.assert_allclose(swished, plain / (1 + np.exp(-plain)), atol=1e-5)


@pytest.mark.parametrize('swish', [False, True])
def test_the_gradient_of_group_norm_is_that_of_its_formula(swish):
  args = random(2, 3, 5, 8), random(8, seed=1), random(8, seed=2)
  weight = random(2, 3, 5, 8, seed=3)

  def formula(x, scale, bias):
    part = x.reshape(2, 15, 4, 2)
    mean, var = part.mean((1, 3), keepdims=True), part.var((1, 3), keepdims=True)
    y = ((part - mean) / jnp.sqrt(var + 1e-6)).reshape(x.shape) * scale + bias
    return y * jax.nn.sigmoid(y) if swish else y

  ours = lambda *a: convnet.group_norm(*a, 4, 1e-6, swish)
  gradient = lambda f: jax.grad(lambda *a: jnp.sum(weight * f(*a)), (0, 1, 2))(*args)
  for a, b in zip(gradient(ours), gradient(formula)):
    np.testing.assert_allclose(a, b, atol=2e-5)


def test_statistics_of_a_low_precision_map_are_float32():
  x = jnp.asarray(random(1, 16, 16, 4) + 20, jnp.bfloat16)
  y = convnet.group_norm(x, jnp.ones(4), jnp.zeros(4), 2)
  exact = slow_group_norm(np.asarray(x, np.float32), 1, 0, 2, 1e-6)
  assert y.dtype == jnp.bfloat16
  np.testing.assert_allclose(y.astype(jnp.float32), exact, atol=2**-8 * np.abs(exact).max())


def test_groups_that_do_not_divide_the_channels():
  with pytest.raises(ConfigError, match='norm_groups is 32.*48 channels.*16'):
    convnet.GroupNorm().init(jax.random.key(0), jnp.zeros((1, 2, 2, 48)))


def test_down_pads_below_and_right_only():
  layer, x = convnet.Down(), np.ones((1, 4, 6, 1), np.float32)
  kernel = np.ones((3, 3, 1, 1), np.float32)
  y = layer.apply({'params': {'conv': {'kernel': kernel, 'bias': np.zeros(1)}}}, x)
  np.testing.assert_array_equal(y[0, :, :, 0], [[9, 9, 6], [6, 6, 4]])


def test_up_repeats_every_value_before_the_convolution():
  kernel = np.zeros((3, 3, 2, 2), np.float32)
  kernel[1, 1] = np.eye(2)
  x = random(1, 2, 3, 2)
  y = convnet.Up().apply({'params': {'conv': {'kernel': kernel, 'bias': np.zeros(2)}}}, x)
  np.testing.assert_array_equal(y, x.repeat(2, axis=1).repeat(2, axis=2))


def test_attention_against_a_loop_over_positions():
  layer, x = convnet.Attn(groups=2), random(1, 2, 3, 4)
  params = {
    name: {'kernel': random(1, 1, 4, 4, seed=i), 'bias': random(4, seed=9 + i)}
    for i, name in enumerate(('q', 'k', 'v', 'proj'))
  } | {'norm': {'scale': random(4, seed=20), 'bias': random(4, seed=21)}}
  h = slow_group_norm(x, params['norm']['scale'], params['norm']['bias'], 2, 1e-6).reshape(6, 4)
  q, k, v = (h @ params[n]['kernel'][0, 0] + params[n]['bias'] for n in 'qkv')
  out = np.empty((6, 4))
  for i in range(6):
    weight = np.exp(k @ q[i] / 2)
    out[i] = weight @ v / weight.sum()
  out = x.reshape(6, 4) + out @ params['proj']['kernel'][0, 0] + params['proj']['bias']
  np.testing.assert_allclose(layer.apply({'params': params}, x)[0].reshape(6, 4), out, atol=1e-4)


def test_a_residual_block_projects_its_input_only_where_the_width_changes():
  init = lambda features: jax.eval_shape(
    convnet.Res(features, groups=2).init, jax.random.key(0), jnp.zeros((1, 4, 4, 4))
  )['params']
  assert 'shortcut' not in init(4) and init(6)['shortcut']['kernel'].value.shape == (1, 1, 4, 6)


def test_initial_weights_are_uniform_by_fan_in():
  layer = convnet.Conv(64)
  params = layer.init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)))['params']
  for leaf in jax.tree.leaves(params):
    assert float(jnp.abs(leaf).max()) <= 1 / 12 and float(jnp.std(leaf)) > 0.04
