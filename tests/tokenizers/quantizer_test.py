import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm.config import ConfigError
from jaxmm.tokenizers import quantizer as qz
from tests.references.nearest_code import nearest_code as looped


def normal(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def built(latent_BLD, **settings):
  config = qz.QuantizerConfig(codes=11, width=4, **settings)
  module = qz.Quantizer(config)
  return config, module, {'params': {'codebook': jnp.asarray(normal(1, 11, 4))}}


@pytest.mark.parametrize('block_elements', [1, 14 * 3, 14 * 10, 2**24])
def test_nearest_code_is_that_of_two_loops_whatever_the_blocks(block_elements):
  z, codes = normal(0, 2, 7, 5), normal(1, 23, 5)
  ids = qz.nearest_code(z, codes, block_elements)
  np.testing.assert_array_equal(ids.reshape(-1), looped(z.reshape(-1, 5), codes))
  assert ids.shape == (2, 7) and ids.dtype == jnp.int32


@pytest.mark.parametrize('block_elements', [6 * 3, 2**24])
def test_ties_go_to_the_lowest_index_also_across_blocks(block_elements):
  # Small integers: all distances are exact, so equal ones are equal bit for bit.
  codes = np.array([[2, 0], [0, 1], [1, 0], [0, 1], [-1, 0], [1, 0], [0, 1], [1, 0]], np.float32)
  z = np.array([[1, 0], [0, 1], [0, 0], [1, 1], [-2, 0], [0, 3]], np.float32)
  ids = qz.nearest_code(z, codes, block_elements)
  np.testing.assert_array_equal(ids, [2, 1, 1, 1, 4, 1])


def test_search_is_float32_for_bfloat16_latents():
  z = jnp.asarray(normal(0, 64, 8), jnp.bfloat16)
  codes = np.asarray(qz.unit(normal(1, 500, 8)))
  ids = qz.nearest_code(z, codes)
  np.testing.assert_array_equal(ids, looped(np.asarray(z, np.float32), codes))


def array_sizes(jaxpr):
  """Elements of every array that a program and its inner programs make."""
  for eqn in jaxpr.eqns:
    for var in eqn.outvars:
      yield int(np.prod(var.aval.shape))
    for param in eqn.params.values():
      for inner in param if isinstance(param, (list, tuple)) else [param]:
        inner = getattr(inner, 'jaxpr', inner)
        if hasattr(inner, 'eqns'):
          yield from array_sizes(inner)


def test_131072_codes_never_build_more_than_the_bound():
  codes, rows, bound = 2**17, 2048, 2**21  # the whole product would be 2**28
  shapes = [jax.ShapeDtypeStruct(s, jnp.float32) for s in ((8, rows // 8, 8), (codes, 8))]
  search = lambda z, e: qz.nearest_code(z, e, bound)
  largest = max(array_sizes(jax.make_jaxpr(search)(*shapes).jaxpr))
  assert rows <= largest <= bound
  memory = jax.jit(search).lower(*shapes).compile().memory_analysis()
  assert memory.temp_size_in_bytes < 4 * 4 * bound

  def entropy(z, e):
    return qz.assignment_entropy(z, e, jnp.ones(z.shape[:2]), temperature=1.0, block_elements=bound)

  grad = jax.grad(lambda z, e: entropy(z, e)[0].sum() + (entropy(z, e)[1] ** 2).sum(), (0, 1))
  assert max(array_sizes(jax.make_jaxpr(grad)(*shapes).jaxpr)) <= bound


def test_init_makes_unit_rows_in_random_directions():
  module = qz.Quantizer(qz.QuantizerConfig(codes=64, width=8))
  boxed = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 2, 8)))
  assert boxed['params']['codebook'].names == ('codes', 'code_dim')
  codes = np.asarray(nn.unbox(boxed)['params']['codebook'])
  np.testing.assert_allclose(np.linalg.norm(codes, axis=1), 1, rtol=1e-5)
  assert np.abs(codes.mean(0)).max() < 0.2


def test_errors_and_codes_by_their_definition():
  z = normal(0, 2, 6, 4)
  config, module, variables = built(z)
  out = module.apply(variables, z)
  raw = np.asarray(variables['params']['codebook'], np.float64)
  codes = raw / np.linalg.norm(raw, axis=1, keepdims=True)  # normalised on use, not as stored
  latent = z / np.linalg.norm(z, axis=-1, keepdims=True)
  ids = looped(latent.reshape(-1, 4), codes).reshape(2, 6)
  np.testing.assert_array_equal(out.ids_BL, ids)
  np.testing.assert_allclose(out.z_BLD, codes[ids], atol=1e-6)
  error = ((codes[ids] - latent) ** 2).mean(-1)
  np.testing.assert_allclose(out.codebook_error_BL, error, atol=1e-6)
  np.testing.assert_allclose(out.commitment_error_BL, error, atol=1e-6)
  np.testing.assert_array_equal(module.apply(variables, z, method='ids'), ids)
  looked_up = module.apply(variables, ids, method='lookup')
  np.testing.assert_allclose(looked_up, codes[ids], atol=1e-6)
  assert module.apply(variables, jnp.asarray(z, jnp.bfloat16)).z_BLD.dtype == jnp.bfloat16


def test_gradients_go_straight_through_and_each_error_moves_one_side():
  z = normal(0, 1, 5, 4)
  _, module, variables = built(z, normalize=False)
  cotangent = normal(3, 1, 5, 4)

  def term(name):
    def f(z, variables):
      out = module.apply(variables, z)
      return jnp.sum(out.z_BLD * cotangent) if name == 'z' else getattr(out, name).sum()

    gz, gv = jax.grad(f, (0, 1))(z, variables)
    return gz, gv['params']['codebook']

  gz, ge = term('z')
  np.testing.assert_allclose(gz, cotangent, rtol=1e-6)
  assert not ge.any()
  gz, ge = term('codebook_error_BL')
  assert not gz.any() and ge.any()
  gz, ge = term('commitment_error_BL')
  assert gz.any() and not ge.any()


def test_zero_latents_have_finite_gradients():
  _, module, variables = built(None)
  loss = lambda z: jnp.sum(module.apply(variables, z).commitment_error_BL)
  assert np.isfinite(jax.jit(jax.grad(loss))(jnp.zeros((1, 3, 4)))).all()


def llamagen_entropy(z, codes, temperature):
  """The entropy terms from the whole matrix of distances."""
  distance = ((z[:, None] - codes[None]) ** 2).sum(-1)
  p = jax.nn.softmax(-distance / temperature, axis=-1)
  sample = -(p * jnp.log(p + 1e-30)).sum(-1)
  average = p.mean(0)
  return sample, -(average * jnp.log(average + 1e-5)).sum(), p.sum(0)


@pytest.mark.parametrize('block_elements', [9 * 4, 2**20])
def test_entropy_terms_from_blocks_equal_the_dense_ones(block_elements):
  z, codes = qz.unit(normal(0, 10, 4)), qz.unit(normal(1, 9, 4))
  weight = jnp.ones((2, 5))

  def blocked(z, codes):
    sample, total = qz.assignment_entropy(
      z.reshape(2, 5, 4), codes, weight, temperature=0.5, block_elements=block_elements
    )
    return sample.reshape(-1), qz.average_entropy(total / 10), total

  @jax.jit
  def values_and_gradients(z, codes):
    def both(f):
      value = lambda z, e: (f(z, e)[0].mean() - f(z, e)[1], f(z, e))
      return jax.grad(value, (0, 1), has_aux=True)(z, codes)

    return both(blocked), both(lambda z, e: llamagen_entropy(z, e, 0.5))

  (gradients, values), (dense_gradients, dense_values) = values_and_gradients(z, codes)
  for a, b in zip(values, dense_values):
    np.testing.assert_allclose(a, b, rtol=1e-5)
  for a, b in zip(gradients, dense_gradients):
    np.testing.assert_allclose(a, b, atol=1e-5)


def test_running_reference_has_the_entropys_gradient_and_is_linear():
  logits = normal(0, 12, 6)
  mean = lambda x: jax.nn.softmax(x, -1).mean(0)
  reference = mean(logits)
  gradient = lambda f: jax.jit(jax.grad(f))(logits)
  own = gradient(lambda x: qz.average_entropy(mean(x)))
  running = gradient(lambda x: qz.average_entropy(mean(x), reference))
  np.testing.assert_allclose(running, own, atol=1e-5)
  halves = [qz.average_entropy(mean(logits[i::2]), reference) for i in (0, 1)]
  np.testing.assert_allclose(
    np.mean(halves), qz.average_entropy(mean(logits), reference), rtol=1e-6
  )
  own_halves = [qz.average_entropy(mean(logits[i::2])) for i in (0, 1)]
  assert abs(np.mean(own_halves) - qz.average_entropy(mean(logits))) > 1e-3  # why it exists


def stats_of(config, module, variables, z, weight, index, total):
  keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.key(7), i))(index)
  out = module.apply(variables, z, weight)
  return qz.batch_statistics(config, out, weight, keys, total)


@pytest.fixture(scope='module')
def statistics_case():
  z = normal(0, 8, 6, 4)
  config, module, variables = built(
    z,
    update='ema',
    revive_after=2,
    revive_slots=16,
    entropy_weight=0.1,
    entropy_reference='running',
  )
  weight = np.ones((8, 6), np.float32)
  weight[[2, 7]] = 0
  args = z, weight, np.arange(8, dtype=np.uint32)
  f = jax.jit(lambda z, w, i, n: stats_of(config, module, variables, z, w, i, n))
  return config, args, f, f(*args, np.float32(36))


def test_statistics_of_microbatches_add_up_to_those_of_the_batch(statistics_case):
  _, args, f, whole = statistics_case
  parts = [f(*(a[i::2] for a in args), np.float32(36)) for i in (0, 1)]
  added = jax.tree.map(jnp.add, *parts)
  for name in ('count_K', 'slot_count_R'):
    np.testing.assert_array_equal(added[name], whole[name])
  single = np.asarray(whole['slot_count_R']) == 1
  assert single.sum() >= 2
  # A drawn encoder output is a sum of itself and zeros: the same bits however the batch is cut.
  np.testing.assert_array_equal(added['slot_sum_RD'][single], whole['slot_sum_RD'][single])
  np.testing.assert_allclose(added['sum_KD'], whole['sum_KD'], atol=1e-6)
  np.testing.assert_allclose(added['probability_K'], whole['probability_K'], atol=1e-5)
  assert whole['count_K'].sum() == 36


def test_statistics_are_the_same_on_eight_devices(statistics_case):
  _, args, f, whole = statistics_case
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.device_put(args, NamedSharding(mesh, P('data')))
  sharded = f(*spread, np.float32(36))
  for name in ('count_K', 'slot_count_R'):
    np.testing.assert_array_equal(sharded[name], whole[name])
  for name in ('slot_sum_RD', 'sum_KD', 'probability_K'):
    np.testing.assert_allclose(sharded[name], whole[name], atol=1e-5)


def test_the_reservoir_holds_encoder_outputs_of_valid_rows(statistics_case):
  _, (z, weight, _), _, whole = statistics_case
  rows = np.asarray(qz.unit(z[weight[:, 0] > 0].reshape(-1, 4)))
  for r in np.flatnonzero(np.asarray(whole['slot_count_R']) == 1):
    assert (np.abs(rows - np.asarray(whole['slot_sum_RD'][r])).max(-1) < 1e-6).sum() == 1


def hand_made(count, slot_count=(1, 2, 0, 1)):
  slot_sum = np.arange(8, dtype=np.float32).reshape(4, 2) + 10
  return {
    'count_K': jnp.asarray(count, jnp.float32),
    'slot_count_R': jnp.asarray(slot_count, jnp.float32),
    'slot_sum_RD': jnp.asarray(slot_sum),
  }


def test_codes_are_revived_after_n_unused_steps_each_from_its_own_draw():
  config = qz.QuantizerConfig(codes=6, width=2, revive_after=2, revive_slots=4)
  codes = jnp.zeros((6, 2))
  statistics = qz.initial_statistics(config, codes)
  sums = hand_made([3, 0, 0, 1, 0, 0])
  codes, statistics, revived = qz.update_codebook(
    config, codes, statistics, sums, jax.random.key(0)
  )
  assert not revived.any() and not codes.any()
  np.testing.assert_array_equal(statistics['unused_K'], [0, 1, 1, 0, 1, 1])
  codes, statistics, revived = qz.update_codebook(
    config, codes, statistics, sums, jax.random.key(1)
  )
  revived = np.flatnonzero(revived)
  # Slots 0 and 3 were hit once, so two of the four dead codes are revived; the others wait.
  assert len(revived) == 2 and set(revived) <= {1, 2, 4, 5}
  drawn = {tuple(codes[k].tolist()) for k in revived}
  assert drawn == {(10.0, 11.0), (16.0, 17.0)}
  untouched = [k for k in range(6) if k not in revived]
  assert not np.asarray(codes)[untouched].any()
  waiting = set(range(6)) - set(revived) - {0, 3}
  assert all(statistics['unused_K'][k] == (2 if k in waiting else 0) for k in range(6))


def test_which_dead_codes_are_revived_is_the_keys_choice():
  config = qz.QuantizerConfig(codes=40, width=2, revive_after=1, revive_slots=4)
  sums, seen = hand_made(np.zeros(40)), set()
  statistics = qz.initial_statistics(config, jnp.zeros((40, 2)))
  for seed in range(4):
    args = config, jnp.zeros((40, 2)), statistics, sums, jax.random.key(seed)
    revived = qz.update_codebook(*args)[2]
    np.testing.assert_array_equal(revived, qz.update_codebook(*args)[2])
    seen.add(tuple(np.flatnonzero(revived)))
  assert len(seen) > 1


def test_ema_codebook_follows_the_mean_of_its_latents():
  config = qz.QuantizerConfig(codes=3, width=2, update='ema', ema_decay=0.5, normalize=False)
  codes = jnp.asarray([[1.0, 0], [0, 1], [5, 5]])
  statistics = qz.initial_statistics(config, codes)
  sums = {
    'count_K': jnp.asarray([2.0, 0, 1]),
    'sum_KD': jnp.asarray([[2.0, 2], [0, 0], [5, 7]]),
  }
  codes, statistics, _ = qz.update_codebook(config, codes, statistics, sums, jax.random.key(0))
  # decayed sum over decayed count: (0.5 * 1 + 0.5 * 2) / (0.5 + 0.5 * 2) and so on
  np.testing.assert_allclose(codes, [[1, 2 / 3], [0, 1], [5, 6]], rtol=1e-6)
  for _ in range(300):  # an unused code's count underflows; the code stays
    sums = {'count_K': jnp.zeros(3), 'sum_KD': jnp.zeros((3, 2))}
    codes, statistics, _ = qz.update_codebook(config, codes, statistics, sums, jax.random.key(0))
  np.testing.assert_allclose(codes, [[1, 2 / 3], [0, 1], [5, 6]], rtol=1e-4)


def test_usage_and_perplexity_from_counts():
  assert qz.usage(np.array([3, 0, 1, 0])) == 0.5
  assert qz.perplexity(np.ones(7)) == pytest.approx(7)
  assert qz.perplexity(np.array([9, 0, 0])) == pytest.approx(1)
  assert qz.perplexity(np.array([3, 1])) == pytest.approx(
    np.exp(-(0.75 * np.log(0.75) + 0.25 * np.log(0.25)))
  )
  assert qz.perplexity(np.zeros(3)) == 0


@pytest.mark.parametrize(
  'settings',
  [
    {'codes': 0},
    {'update': 'adam'},
    {'ema_decay': 1.0},
    {'entropy_temperature': 0.0},
    {'revive_after': -1},
    {'entropy_reference': 'x'},
  ],
)
def test_unusable_settings_are_named(settings):
  with pytest.raises(ConfigError, match=f'quantizer.{next(iter(settings))} is'):
    qz.QuantizerConfig(**settings)
