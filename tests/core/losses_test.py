import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.core import losses, metrics


def case(seed=0):
  rng = np.random.default_rng(seed)
  logits = rng.standard_normal((2, 3, 5)).astype(np.float32) * 4
  return jnp.asarray(logits), jnp.array([[0, 4, 2], [1, 1, 3]]), jnp.array([[1, 0, 2.0], [1, 1, 0]])


def test_cross_entropy_is_the_weighted_sum_and_the_sum_of_weights():
  logits, targets, weight = case()
  total, count = losses.cross_entropy(logits, targets, weight)
  expected = 0.0
  for b in range(2):
    for i in range(3):
      x = np.asarray(logits[b, i], np.float64)
      expected += float(weight[b, i]) * (np.log(np.exp(x).sum()) - x[targets[b, i]])
  np.testing.assert_allclose(total, expected, rtol=1e-6)
  assert count == 5 and losses.cross_entropy(logits, targets)[1] == 6


def test_gradient_is_that_of_log_softmax_in_bfloat16_too():
  logits, targets, weight = case()
  plain = lambda x: (
    -jnp.sum(jnp.take_along_axis(jax.nn.log_softmax(x), targets[..., None], -1)[..., 0] * weight)
  )
  ours = jax.grad(lambda x: losses.cross_entropy(x, targets, weight)[0])
  np.testing.assert_allclose(ours(logits), jax.grad(plain)(logits), atol=1e-6)
  half = ours(logits.astype(jnp.bfloat16))
  assert half.dtype == jnp.bfloat16
  np.testing.assert_allclose(half.astype(jnp.float32), ours(logits), atol=0.02)


def test_a_row_without_weight_may_hold_nan():
  logits, targets, weight = case()
  weight = weight.at[1].set(0.0)
  loss = lambda x: losses.cross_entropy(x, targets, weight)[0]
  bad = logits.at[1].set(jnp.nan)
  assert loss(bad) == loss(logits)
  error, count = losses.mean_squared_error(bad, logits, jnp.array([1.0, 0.0]))
  assert error == 0 and count == 1


def test_errors_are_summed_over_width_or_averaged_over_an_example():
  x, zero = jnp.array([[[3.0, 4.0], [0.0, 1.0]]]), jnp.zeros((1, 2, 2))
  assert [float(a) for a in losses.squared_error(x, zero)] == [26.0, 2.0]
  assert [float(a) for a in losses.mean_squared_error(x, zero)] == [6.5, 1.0]
  assert [float(a) for a in losses.mean_absolute_error(x, zero)] == [2.0, 1.0]


def test_projected_in_chunks_is_the_loss_of_the_logits_and_so_is_its_gradient():
  rng = np.random.default_rng(2)
  hidden, table = (jnp.asarray(rng.standard_normal(s), jnp.float32) for s in ((2, 7, 4), (9, 4)))
  targets, weight = jnp.asarray(rng.integers(0, 9, (2, 7))), jnp.asarray(rng.random((2, 7)))
  plain = lambda h, t: jnp.sum(losses.token_nll(h @ t.T, targets) * weight)
  expected = jax.value_and_grad(plain, (0, 1))(hidden, table)
  for chunk in (0, 3, 7):
    ours = lambda h, t, c=chunk: jnp.sum(losses.projected_nll(h, t, targets, c) * weight)
    out = jax.value_and_grad(ours, (0, 1))(hidden, table)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), out, expected)
  half = losses.projected_nll(hidden.astype(jnp.bfloat16), table, targets, 3)
  assert half.dtype == jnp.float32


def test_z_loss_is_the_squared_normaliser():
  logits, _, weight = case()
  total, _ = losses.z_loss(logits, weight)
  expected = np.sum(np.log(np.exp(np.asarray(logits, np.float64)).sum(-1)) ** 2 * weight)
  np.testing.assert_allclose(total, expected, rtol=1e-6)


def test_means_merge_exactly_and_an_empty_one_is_no_perfect_loss():
  a = metrics.Mean.of(jnp.array([1.0, 2.0, jnp.nan]), jnp.array([1.0, 1.0, 0.0]))
  b = metrics.Mean.of(jnp.array([9.0]), jnp.array([2.0]))
  assert a.merge(b).compute() == 21 / 4
  assert jnp.isnan(metrics.Mean.of(jnp.ones(2), jnp.zeros(2)).compute())
