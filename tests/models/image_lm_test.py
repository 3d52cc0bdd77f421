import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.models import image_lm
from jaxmm.models.image_lm import ImageLm, config_of

SMALL = {'size': 'micro', 'num_codes': 24, 'num_classes': 5, 'grid': 3, 'width': 32}
CONFIG = config_of(SMALL)
B = 8


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'ids_BL': jnp.asarray(rng.integers(0, 24, (B, 9)), jnp.int32),
    'label_B': jnp.asarray(rng.integers(0, 5, B), jnp.int32),
    'index_B': jnp.arange(100, 100 + B, dtype=jnp.uint32),
    'record_B': jnp.arange(B, dtype=jnp.int32),
    'valid_B': jnp.ones(B).at[3].set(0),
  }


@pytest.fixture(scope='module')
def params():
  """Random everywhere: a zero head would hide what comes before it."""
  model = ImageLm(CONFIG)
  init = jax.jit(lambda k: model.init(k, jnp.zeros(1, jnp.int32), jnp.zeros((1, 9), jnp.int32)))
  rng = np.random.default_rng(1)
  return jax.tree.map(
    lambda a: jnp.asarray(a + 0.2 * rng.standard_normal(a.shape).astype(np.float32)),
    nn.unbox(init(jax.random.key(0)))['params'],
  )


@pytest.fixture(scope='module')
def logits_of():
  return jax.jit(lambda params, label, ids: ImageLm(CONFIG).apply({'params': params}, label, ids))


@pytest.fixture(scope='module')
def grads_of():
  """Gradient of the Task's loss, and its sums, of any rows of the batch."""
  task = image_lm.make_task(SMALL)

  def loss(params, batch, tokens):
    out, sums, _ = task.loss({'params': params}, batch, jax.random.key(7), 0, {'tokens': tokens})
    return out, sums

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_published_sizes_have_their_published_parameter_counts():
  millions = {'B': 110.9, 'L': 342.9, 'XL': 774.7, 'XXL': 1411, '3B': 3097}
  hidden = {'B': 2048, 'L': 2816, 'XL': 3584, 'XXL': 4096, '3B': 8704}
  for size, expected in millions.items():
    config = config_of({'size': size})
    shapes = jax.eval_shape(
      ImageLm(config).init, jax.random.key(0), jnp.zeros(1, int), jnp.zeros((1, 256), int)
    )
    count = sum(a.size for a in jax.tree.leaves(shapes)) / 1e6
    assert abs(count / expected - 1) < 1e-3
    assert config.hidden_width() == hidden[size]


def test_no_logit_sees_its_own_code_or_a_later_one(params):
  # Through the embeddings of the codes: each code of one example has a row of the table of its own.
  ids = jnp.arange(9)[None]

  def logit_sum(table, position):
    moved = {**params, 'token_embedding': {'table': table}}
    logits = ImageLm(CONFIG).apply({'params': moved}, jnp.array([1]), ids)
    return jnp.sum(logits[0, position] * jnp.cos(jnp.arange(24)))

  grad = jax.jit(jax.grad(logit_sum))(params['token_embedding']['table'], 4)
  seen = np.any(np.asarray(grad) != 0, axis=-1)
  assert seen.tolist() == [True] * 4 + [False] * 20


def test_training_starts_from_the_uniform_distribution(batch):
  task = image_lm.make_task(SMALL)
  variables = nn.unbox(jax.jit(task.init)(jax.random.key(0), batch))
  assert not np.any(variables['params']['head']['kernel'])
  scale = np.std(variables['params']['stack']['groups']['block0_self']['mlp']['up']['kernel'])
  assert abs(scale - 0.02) < 0.002


def test_microbatches_in_any_order_give_the_gradient_of_the_batch(params, batch, grads_of):
  (loss, sums), grad = grads_of(params, batch, 63.0)
  # Rows of the other microbatch stand in with no weight, so that one compiled shape does for all.
  order = np.array([6, 1, 3, 0, 7, 2, 5, 4])
  moved = {k: v[order] for k, v in batch.items()}
  first = jnp.arange(B) < 3
  parts = [
    grads_of(params, {**moved, 'valid_B': moved['valid_B'] * mine}, 63.0)
    for mine in (first, ~first)
  ]
  np.testing.assert_allclose(loss, parts[0][0][0] + parts[1][0][0], rtol=1e-5)
  assert sums['cross_entropy'][1] == 63
  jax.tree.map(
    lambda g, a, b: np.testing.assert_allclose(g, a + b, atol=2e-6, rtol=1e-3),
    grad,
    parts[0][1],
    parts[1][1],
  )


def test_a_row_that_could_not_be_read_changes_nothing(params, batch, grads_of):
  other = {
    **batch,
    'ids_BL': batch['ids_BL'].at[3].set(1),
    'label_B': batch['label_B'].at[3].set(0),
  }
  assert grads_of(params, batch, 63.0)[0][0] == grads_of(params, other, 63.0)[0][0]


def test_dropout_follows_the_example_and_is_on(params, batch, grads_of):
  loss = lambda b: grads_of(params, b, 63.0)[0][0]
  assert loss(batch) != loss({**batch, 'index_B': batch['index_B'] + 50})


def test_labels_are_dropped_at_their_rate():
  model = ImageLm(dataclasses.replace(CONFIG, class_dropout=0.25))
  keys = jax.random.key_data(jax.random.split(jax.random.key(0), 4000))
  labels = model.apply(
    {'params': {}}, jnp.zeros(4000, jnp.int32), keys, method='with_dropped_classes'
  )
  assert set(np.unique(labels)) == {0, CONFIG.num_classes}
  assert abs(np.mean(labels == CONFIG.num_classes) - 0.25) < 0.035  # five standard deviations


def test_likelihood_by_position_adds_up(params, batch, logits_of):
  likelihood = jax.jit(image_lm.make_task(SMALL).evaluations()['likelihood'])
  out = likelihood({'params': params}, batch, jax.random.key(0))
  logits = np.asarray(logits_of(params, batch['label_B'], batch['ids_BL']), np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  nll = -np.take_along_axis(log_p, np.asarray(batch['ids_BL'])[..., None], -1)[..., 0]
  nll[3] = 0.0
  np.testing.assert_allclose(out['cross_entropy_by_position'][0], nll.sum(0), rtol=1e-5)
  assert out['cross_entropy_by_position'][1].tolist() == [7.0] * 9
  np.testing.assert_allclose(out['cross_entropy'], (nll.sum(), 63), rtol=1e-5)
  np.testing.assert_allclose(out['bits_per_image'], (nll.sum() / np.log(2), 7), rtol=1e-5)


@pytest.fixture(scope='module')
def sampled(params):
  """Greedy guided codes, twice in another order, and random ones; one layout."""
  layout = jax.jit(image_lm.decode_params, static_argnums=1)(params, CONFIG)
  labels, keys = jnp.array([0, 3, 4]), jax.random.split(jax.random.key(3), 3)
  generate = jax.jit(image_lm.generate, static_argnames=('config', 'sampling'))
  greedy = SamplingConfig(greedy=True, guidance_scale=2.0, guidance_interval=3)
  drawn = SamplingConfig(top_k=8, temperature=0.9)
  run = lambda order, how: np.asarray(generate(layout, CONFIG, labels[order], keys[order], how))
  there, back = np.arange(3), np.arange(3)[::-1]
  return labels, run(there, greedy), run(there, drawn), run(back, drawn)


def test_cached_guided_codes_are_those_of_uncached_logits(params, sampled, logits_of):
  labels, ids, _, _ = sampled
  given = logits_of(params, labels, jnp.asarray(ids))
  free = logits_of(params, jnp.full_like(labels, CONFIG.num_classes), jnp.asarray(ids))
  mixed = free + 2.0 * (given - free)
  # The interval ends after token 3 + 1.
  expected = jnp.where(jnp.arange(9)[None, :, None] <= 4, mixed, given)
  np.testing.assert_array_equal(ids, jnp.argmax(expected, -1))


def test_an_image_is_drawn_from_its_own_key_wherever_it_stands(sampled):
  _, _, there, back = sampled
  np.testing.assert_array_equal(there, back[::-1])
  assert there.min() >= 0 and there.max() < 24 and len({tuple(r) for r in there}) == 3


def test_logits_are_the_same_under_every_rule_table(params, batch, logits_of):
  expected = logits_of(params, batch['label_B'], batch['ids_BL'])
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
  rules = sharding.rules_named('tensor')
  boxed = jax.eval_shape(
    ImageLm(CONFIG).init, jax.random.key(0), batch['label_B'], batch['ids_BL']
  )['params']
  placed = jax.device_put(params, sharding.tree_shardings(boxed, rules, mesh))
  query = placed['stack']['groups']['block0_self']['attention']['query']['kernel']
  assert query.sharding.spec[1:3] == ('fsdp', 'tensor')
  with sharding.in_mesh(mesh, rules):
    rows = sharding.global_batch(mesh, {k: np.asarray(v) for k, v in batch.items()})
    # Traced anew: the names mean something only here.
    out = jax.jit(lambda p, l, i: ImageLm(CONFIG).apply({'params': p}, l, i))(
      placed, rows['label_B'], rows['ids_BL']
    )
  np.testing.assert_allclose(out, expected, atol=2e-5)


def test_settings_that_cannot_be_are_named(params):
  with pytest.raises(ConfigError, match="model.size is 'b', expected one of micro, mini, B"):
    config_of({'size': 'b'})
  with pytest.raises(ConfigError, match='no key .dropuot.; did you mean'):
    config_of({'size': 'B', 'dropuot': 0.0})
  with pytest.raises(ConfigError, match='2-D rotary positions need head widths'):
    config_of({**SMALL, 'width': 36, 'num_heads': 6})
  with pytest.raises(ConfigError, match='model.class_dropout is 1.0'):
    config_of({**SMALL, 'class_dropout': 1.0})
  with pytest.raises(ValueError, match='4 codes an image, but model.grid 3 means 9'):
    ImageLm(CONFIG).apply({'params': params}, jnp.array([0]), jnp.zeros((1, 4), int))
  plain = config_of({**SMALL, 'class_dropout': 0.0})
  with pytest.raises(ConfigError, match='no row for no class'):
    image_lm.generate({}, plain, jnp.array([0]), None, SamplingConfig(guidance_scale=2.0))
