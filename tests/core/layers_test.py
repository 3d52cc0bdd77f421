import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.core import layers

SEEDS = layers.dropout_seeds(jax.random.split(jax.random.key(0), 64))


def test_dropout_has_its_rate_and_keeps_the_mean():
  x = jnp.ones((64, 32, 48))
  out = np.asarray(layers.dropout(x, 0.1, SEEDS))
  assert set(np.unique(out)) == {np.float32(0.0), np.float32(1 / 0.9)}
  # 98,304 draws: five standard deviations are 0.0048.
  assert abs(np.mean(out == 0) - 0.1) < 0.0048
  # Also for each position and each channel on its own (2,048 or 3,072 draws).
  assert np.abs(np.mean(out == 0, axis=(0, 2)) - 0.1).max() < 0.03
  assert np.abs(np.mean(out == 0, axis=(0, 1)) - 0.1).max() < 0.035


def test_dropout_streams_are_not_correlated():
  def signs(seeds):
    bits = np.asarray(layers.uniform_bits(seeds, (40, 64)), np.float64) / 2**32
    return (bits - 0.5).reshape(64, -1) * np.sqrt(12)

  a = signs(layers.fold_seeds(SEEDS, 3, 0))
  for other in (layers.fold_seeds(SEEDS, 3, 1), layers.fold_seeds(SEEDS, 4, 0), SEEDS):
    assert abs(np.mean(a * signs(other))) < 5 / np.sqrt(a.size)
  between = a @ a.T / a.shape[1] - np.eye(64)  # examples
  assert np.abs(between - np.diag(np.diag(between))).max() < 5.5 / np.sqrt(a.shape[1])
  neighbours = np.mean(a[:, 1:] * a[:, :-1])
  assert abs(neighbours) < 5 / np.sqrt(a.size)


def test_dropout_without_keys_or_rate_is_the_identity():
  x = jnp.ones((2, 3))
  assert layers.dropout(x, 0.5, None) is x and layers.dropout(x, 0.0, SEEDS[:2]) is x


def test_keys_typed_or_raw_give_the_same_seeds_and_others_are_refused():
  keys = jax.random.split(jax.random.key(7), 3)
  raw = jax.random.key_data(keys)
  np.testing.assert_array_equal(layers.dropout_seeds(keys), layers.dropout_seeds(raw))
  with pytest.raises(ValueError, match='example_keys'):
    layers.dropout_seeds(jnp.zeros((3, 2)))


def test_norms_run_in_float32_and_give_back_the_dtype():
  x = (1e4 + jnp.arange(8.0))[None].astype(jnp.bfloat16)
  x32 = np.asarray(x, np.float64)
  out = layers.layer_norm(x, jnp.ones(8), None, 1e-5)
  assert out.dtype == jnp.bfloat16
  expected = (x32 - x32.mean()) / np.sqrt(x32.var() + 1e-5)
  np.testing.assert_allclose(np.asarray(out, np.float64), expected, atol=0.02)
  columns = layers.rms_norm(x.T, jnp.full((8, 1), 2.0), 1e-5, axis=0)
  np.testing.assert_allclose(columns.T, layers.rms_norm(x, 2.0, 1e-5))


def test_dense_over_several_axes_is_an_einsum_with_fan_in_of_all_inputs():
  dense = layers.Dense(
    (50,), ('heads', 'head_dim', 'embed'), 2, True, nn.initializers.lecun_normal()
  )
  x = jax.random.normal(jax.random.key(0), (2, 3, 40, 25))
  variables = nn.unbox(dense.init(jax.random.key(1), x))
  kernel = variables['params']['kernel']
  assert kernel.shape == (40, 25, 50) and abs(kernel.std() - 1000**-0.5) < 0.002
  expected = np.einsum('blnh,nhd->bld', x, kernel)
  np.testing.assert_allclose(dense.apply(variables, x), expected, atol=1e-5)


def test_an_id_outside_the_table_is_loud():
  table = layers.Embedding(3, 4)
  variables = table.init(jax.random.key(0), jnp.array([0]))
  out = table.apply(variables, jnp.array([2, 3]))
  assert np.isfinite(out[0]).all() and np.isnan(out[1]).all()
  logits = table.apply(variables, out[:1], method='attend')
  rows = nn.unbox(variables)['params']['table']
  np.testing.assert_allclose(logits, out[:1] @ rows.T, atol=1e-6)


@pytest.mark.parametrize('num_in', [1, 2])
def test_linear_and_its_gradients_are_those_of_the_product(num_in):
  shape = (6, 4)[:num_in]
  x = jax.random.normal(jax.random.key(0), (3, 5, *shape))
  kernel = jax.random.normal(jax.random.key(1), (*shape, 2, 7))

  def product(x, kernel):
    return jnp.tensordot(x, kernel, num_in)

  def value(function):
    weigh = jnp.arange(3 * 5 * 2 * 7).reshape(3, 5, 2, 7) / 100.0
    return lambda x, kernel: jnp.sum(jnp.sin(function(x, kernel)) * weigh)

  got = jax.jit(jax.value_and_grad(value(lambda *a: layers.linear(*a, num_in)), (0, 1)))(x, kernel)
  want = jax.value_and_grad(value(product), (0, 1))(x, kernel)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), got, want)
  native = layers.native_linear_grads(num_in, x, kernel, jnp.cos(product(x, kernel)))
  mine = layers.cpu_linear_grads(num_in, x, kernel, jnp.cos(product(x, kernel)))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5), native, mine)
