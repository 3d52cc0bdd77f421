import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.models import megabyte
from jaxmm.models.megabyte_config import forward_flops
from jaxmm.models.megabyte_network import Megabyte, byte_nll
from tests.models.megabyte_cases import BASE, VARIANTS, L, P, V, config_of, random_params
from tests.references import megabyte as reference

B = 8
PARAMETERS = {
  'text-758M-262M': 934_453_504,
  'text-350M-290M': 555_723_904,
  'text-1.3B-218M': 1_400_247_552,
  'imagenet64-2.7B-350M': 2_836_272_878,
  'fig3-452M-151M': 606_556_864,
  'fig3-5.8B-604M': 6_450_250_240,
  'fig3-170B-3.2B': 173_579_793_920,
  'image256-125M-125M': 171_248_900,
  'image256-125M-125M-p48': 173_509_904,
  'image256-125M-125M-p768': 171_098_369,
  'image640-125M-83M': 147_026_180,
  'audio-350M-125M': 404_401_184,
}


@functools.cache
def prepared(name):
  config = config_of(VARIANTS[name])
  return config, random_params(config)


@functools.cache
def logits_of(name):
  config, params = prepared(name)
  return jax.jit(lambda ids, segment=None: Megabyte(config).apply({'params': params}, ids, segment))


def nll_of(logits, ids):
  logits = np.asarray(logits, np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  return -np.take_along_axis(log_p, np.asarray(ids)[..., None], -1)[..., 0]


def size_of(config):
  ids = jnp.zeros((1, 2 * config.patch), int)
  shapes = jax.eval_shape(Megabyte(config).init, jax.random.key(0), ids)['params']
  return sum(a.size for a in jax.tree.leaves(shapes))


def test_published_sizes_have_the_parameters_that_their_names_state():
  for name, number in PARAMETERS.items():
    assert size_of(megabyte.config_of({'size': name})) == number


@pytest.mark.parametrize('name', VARIANTS)
def test_logits_and_likelihoods_are_those_of_the_blackboard(name):
  config, params = prepared(name)
  ids = np.random.default_rng(5).integers(0, V, (1, 20))
  double = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  expected = reference.logits(double, config, ids[0])
  np.testing.assert_allclose(logits_of(name)(ids)[0], expected, atol=2e-5)
  for chunk in (3, 4) if name in ('plain', 'all') else ():
    part = dataclasses.replace(config, local_chunk=chunk)
    nll = jax.jit(byte_nll, static_argnums=1)(params, part, ids)
    np.testing.assert_allclose(nll[0], nll_of(expected, ids[0]), atol=2e-5, err_msg=str(chunk))


@pytest.mark.parametrize('name', VARIANTS)
def test_no_logit_sees_its_own_byte_or_a_later_one(name):
  config, params = prepared(name)
  # Each byte has a row of the tables of its own: the ids are positions.
  wide = dataclasses.replace(config, vocab_size=L)
  params = dict(random_params(wide))
  rng = np.random.default_rng(2)
  weight = jnp.asarray(rng.standard_normal((L, L)), jnp.float32)

  def outputs(tables):
    moved = {**params, **{k: {'table': t} for k, t in tables.items()}}
    # The head is the local table as well; here it is a constant.
    model = Megabyte(wide)
    ids = jnp.arange(L)[None]
    hidden, has_previous = model.apply({'params': moved}, ids, method='global_states')
    states = model.apply(
      {'params': moved}, hidden, ids.reshape(1, -1, P), has_previous,
      jnp.arange(L // P)[None], method='local_states',
    )  # fmt: skip
    logits = states.reshape(L, -1) @ params['local_embedding']['table'][:L].T
    return jnp.sum(logits * weight, axis=-1)

  tables = {n: params[n]['table'] for n in ('global_embedding', 'local_embedding')}
  slopes = jax.jit(jax.jacrev(outputs))(tables)
  by_global, by_local = (
    np.any(np.asarray(slopes[n])[:, :L] != 0, -1) for n in ('global_embedding', 'local_embedding')
  )
  t, s = np.mgrid[:L, :L]
  np.testing.assert_array_equal(by_global, s < t // P * P)
  own = (s < t) & (s // P == t // P)
  if not config.cross_patch:
    np.testing.assert_array_equal(by_local, own)
  else:  # through the patches before, but never what is not before it
    assert not np.any(by_local & (s >= t)) and np.all(by_local[own])
    assert np.any(by_local & (s < t // P * P))
  assert not np.any((by_global | by_local) & (s >= t))
  assert np.all((by_global | by_local)[s < t])


def test_initial_weights_are_a_normal_cut_at_two_deviations():
  config = megabyte.config_of({'size': 'micro'})
  ids = jnp.zeros((1, 8), int)
  params = nn.unbox(jax.jit(Megabyte(config).init)(jax.random.key(0), ids))['params']
  for path, a in jax.tree_util.tree_leaves_with_path(params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    if path[-1].key in ('scale', 'bias'):
      assert np.all(a == (path[-1].key == 'scale')), name
      continue
    assert np.abs(a).max() <= 0.012, name
    if a.size > 1000:
      np.testing.assert_allclose(np.std(a), 0.006 * 0.8796, rtol=0.06, err_msg=name)
      assert np.abs(np.mean(a)) < 0.001, name
  ids = np.random.default_rng(0).integers(0, 256, (1, 256))
  begins = jax.jit(byte_nll, static_argnums=1)(params, config, ids)
  assert np.mean(begins) == pytest.approx(np.log(256), abs=0.05)


@pytest.fixture(scope='module')
def batch():
  """Documents at patch boundaries, padding between and behind them, one unreadable row."""
  rng = np.random.default_rng(0)
  segment = np.zeros((B, L), np.int32)
  for row, lengths in enumerate(([6, 9, 10], [32], [3], [16, 16], [8, 1, 1, 1], [], [31], [5, 20])):
    at = 0
    for number, length in enumerate(lengths, 1):
      segment[row, at : at + length] = number
      at += -(-length // P) * P
  ids = np.where(segment > 0, rng.integers(0, V, (B, L)), V)
  assert np.sum((ids == 0) & (segment > 0)) > 3  # byte 0 is a value
  return {
    'ids_BL': jnp.asarray(ids, jnp.int32),
    'segment_BL': jnp.asarray(segment),
    'weight_BL': jnp.asarray(segment > 0, jnp.float32),
    'index_B': jnp.arange(100, 100 + B, dtype=jnp.uint32),
    'record_B': jnp.arange(B, dtype=jnp.int32),
    'valid_B': jnp.ones(B).at[3].set(0),
  }


def test_separate_documents_are_each_as_if_alone(batch):
  name = 'all'
  config, params = prepared(name)
  config = dataclasses.replace(config, separate_documents=True)
  ids, segment = np.asarray(batch['ids_BL']), np.asarray(batch['segment_BL'])
  packed = jax.jit(byte_nll, static_argnums=1)(params, config, ids, segment)
  for row, number in ((0, 2), (0, 3), (3, 2), (4, 4), (7, 1)):
    places = np.flatnonzero(segment[row] == number)
    alone = np.full((1, L), V)
    alone[0, : len(places)] = ids[row, places]
    expected = nll_of(logits_of(name)(alone)[0, : len(places)], ids[row, places])
    np.testing.assert_allclose(packed[row, places], expected, atol=2e-5)
  together = byte_nll(params, dataclasses.replace(config, separate_documents=False), ids, segment)
  second = np.flatnonzero(segment[0] == 2)
  assert np.abs(np.asarray(together)[0, second] - packed[0, second]).max() > 1e-3


@functools.cache
def loss_of(**changes):
  task = megabyte.make_task({**BASE, 'dropout': 0.1, 'separate_documents': True, **changes})

  def loss(params, batch, count):
    out, sums, _ = task.loss({'params': params}, batch, jax.random.key(7), 0, {'bytes': count})
    return out, sums

  return task, jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_every_byte_of_a_readable_document_counts_once(batch):
  _, params = prepared('plain')
  task, loss = loss_of()
  real = (np.asarray(batch['segment_BL']) > 0) & (np.arange(B) != 3)[:, None]
  assert task.counts(batch)['bytes'] == real.sum()
  assert loss(params, batch, 1.0)[0][1]['bits_per_byte'][1] == real.sum()
  ids, segment = batch['ids_BL'], batch['segment_BL']
  nll = np.asarray(byte_nll(params, task.config, ids, segment))
  assert np.all(np.isnan(nll[np.asarray(segment) == 0])) and np.all(np.isfinite(nll[real]))
  out = jax.jit(task.likelihood)({'params': params}, batch, None)
  expected = nll[real].sum() / np.log(2)
  np.testing.assert_allclose(out['bits_per_byte'], (expected, real.sum()), rtol=1e-5)
  by_place = [nll[:, i::P][real[:, i::P]].sum() / np.log(2) for i in range(P)]
  np.testing.assert_allclose(out['bits_per_byte_by_place'][0], by_place, rtol=1e-5)
  np.testing.assert_array_equal(
    out['bits_per_byte_by_place'][1], [real[:, i::P].sum() for i in range(P)]
  )
  nll_B, count_B = megabyte.scorer(params, task.config)(batch)
  np.testing.assert_allclose(nll_B, np.where(real, nll, 0).sum(1), rtol=1e-5)
  np.testing.assert_array_equal(count_B, real.sum(1))


def test_what_does_not_count_changes_nothing_and_dropout_follows_the_example(batch):
  _, params = prepared('plain')
  loss = lambda b: loss_of()[1](params, b, 100.0)[0][0]
  value = loss(batch)
  padding = batch['segment_BL'] == 0
  for changed in (
    {'ids_BL': batch['ids_BL'].at[3].set(1)},
    {'ids_BL': jnp.where(padding, 2, batch['ids_BL'])},
    {'weight_BL': batch['weight_BL'] * 0},
  ):
    assert loss({**batch, **changed}) == value
  order = np.array([6, 1, 3, 0, 7, 2, 5, 4])
  np.testing.assert_allclose(loss({k: a[order] for k, a in batch.items()}), value, rtol=1e-6)
  assert abs(loss({**batch, 'index_B': batch['index_B'] + 50}) - value) > 1e-4


CHUNKED = dict(
  cross_patch=2, local_chunk=3, remat='block', attention_backend='chunked', attention_chunk=3
)


@pytest.mark.slow
def test_local_chunks_and_remat_change_no_gradient(batch):
  params = random_params(config_of({'cross_patch': 2}))
  (value, _), grad = loss_of(cross_patch=2)[1](params, batch, 100.0)
  (chunked, _), chunked_grad = loss_of(**CHUNKED)[1](params, batch, 100.0)
  np.testing.assert_allclose(chunked, value, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=3e-6, rtol=3e-4), chunked_grad, grad
  )


@pytest.mark.slow
def test_the_loss_is_the_same_on_eight_devices(batch):
  task, loss = loss_of(**CHUNKED)
  params = random_params(task.config)
  (value, _), grad = loss(params, batch, 100.0)
  boxed = jax.eval_shape(task.init, jax.random.key(0), batch)['params']

  def on_devices(rules_name, sizes, function):
    mesh, rules = sharding.make_mesh(sharding.MeshConfig(**sizes)), sharding.rules_named(rules_name)
    placed = jax.device_put(params, sharding.tree_shardings(boxed, rules, mesh))
    with sharding.in_mesh(mesh, rules):
      rows = sharding.global_batch(mesh, {k: np.asarray(v) for k, v in batch.items()})
      return jax.jit(function)(placed, rows)  # traced anew: the names mean something only here

  of = lambda p, b: task.loss({'params': p}, b, jax.random.key(7), 0, {'bytes': 100.0})[0]
  sharded, sharded_grad = on_devices('dp', dict(data=8), jax.value_and_grad(of))
  np.testing.assert_allclose(sharded, value, rtol=1e-5)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5, rtol=1e-3), sharded_grad, grad
  )
  sharded = on_devices('tensor', dict(data=2, fsdp=2, tensor=2), of)
  np.testing.assert_allclose(sharded, value, rtol=1e-5)


def test_a_million_bytes_trace():
  settings = dict(
    size='micro', patch=8, length=2**20, local_chunk=1024, remat='block', dropout=0.1,
    attention_backend='chunked', cross_patch=2,
  )  # fmt: skip
  task = megabyte.make_task(settings)
  shape = lambda dtype, *sizes: jax.ShapeDtypeStruct((1, *sizes), dtype)
  batch = {
    'ids_BL': shape(np.int32, 2**20), 'segment_BL': shape(np.int32, 2**20),
    'index_B': shape(np.uint32), 'valid_B': shape(np.float32),
  }  # fmt: skip
  params = nn.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))['params']
  loss = lambda p, b: task.loss({'params': p}, b, jax.random.key(0), 0, task.counts(b))[0]
  grad = jax.eval_shape(jax.grad(loss), params, batch)
  assert jax.tree.map(jnp.shape, grad) == jax.tree.map(jnp.shape, params)
  text = str(jax.make_jaxpr(jax.grad(loss))(params, batch))
  # No array of all bytes by all byte values, nor of all patches by all patches.
  assert '1048576,256]' not in text and '131072,131072]' not in text


def test_flops_are_those_of_the_paper():
  config = megabyte.config_of({'size': 'text-758M-262M'})
  ids = jnp.zeros((1, 16), int)
  shapes = nn.unbox(jax.eval_shape(Megabyte(config).init, jax.random.key(0), ids))['params']
  matrices = lambda tree: sum(
    a.size for path, a in jax.tree_util.tree_leaves_with_path(tree) if path[-1].key == 'kernel'
  )
  m_g, m_l = matrices(shapes['global_stack']), matrices(shapes['local_stack'])
  T, heads = 8192, matrices(shapes['to_local']) + 256 * 1024
  attention = 4 * (1024**2 * 14 * 2048 + T * 8 * 18 * 1024)
  assert forward_flops(config, T) == 2 * T * (m_g / 8 + m_l + heads) + attention
  task = megabyte.make_task({'size': 'text-758M-262M', 'row_length': 4096})
  assert task.step_flops(3) == 9 * forward_flops(config, 4096)


def test_a_tiny_model_learns_a_text():
  text = np.frombuffer(b'the cat sat on the mat; the dog lay on the log. ' * 40, np.uint8)
  task = megabyte.make_task(
    {'size': 'micro', 'length': 32, 'init_std': 0.05, 'dropout': 0.0, 'cross_patch': 1}
  )
  rows = text[: len(text) // 32 * 32].reshape(-1, 32).astype(np.int32)
  optimizer = optax.adam(5e-3)

  @jax.jit
  def step(params, state, ids, i):
    batch = {
      'ids_BL': ids, 'segment_BL': jnp.ones_like(ids), 'valid_B': jnp.ones(len(ids)),
      'index_B': jnp.arange(len(ids), dtype=jnp.uint32),
    }  # fmt: skip
    loss = lambda p: task.loss({'params': p}, batch, jax.random.key(0), i, task.counts(batch))[0]
    value, grad = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grad, state)
    return optax.apply_updates(params, updates), state, value

  params = nn.unbox(jax.jit(task.init)(jax.random.key(0), {'ids_BL': rows[:1]}))['params']
  state, rng, values = optimizer.init(params), np.random.default_rng(0), []
  for i in range(40):
    at = rng.choice(len(rows), 8, replace=False)
    params, state, value = step(params, state, rows[at], i)
    values.append(float(value))
  assert values[0] == pytest.approx(np.log(256), abs=0.1)
  assert np.mean(values[-5:]) < 2.0  # the frequencies of the letters alone leave 2.5 nats


@pytest.mark.parametrize(
  'change, message',
  [
    ({'size': 'text'}, "model.size is 'text', expected one of micro, mini, text-758M"),
    ({'length': 30}, 'model.length is 30, expected a multiple of model.patch 4, such as 32'),
    ({'patch': 7, 'length': 28}, 'model.global_width is 24, expected a multiple .* such as 28'),
    ({'cross_patch': 5}, 'model.cross_patch is 5, expected at most model.patch 4'),
    ({'cross_patch': 2, 'local_head_dim': 3}, 'local heads are 3 wide'),
    ({'cross_patch': 2, 'local_chunk': 1}, 'local_chunk is 1, expected at least model.local_depth'),
    ({'pads': 'zeros'}, "model.pads is 'zeros', expected one of learned, ids"),
    ({'dropout': 1.0}, 'dropout is 1.0'),
    ({'row_length': 30}, 'rows have 30 bytes, which is no multiple of model.patch 4; pad .* 32'),
    ({'row_length': 64}, 'rows have 64 bytes, but model.length is 32'),
  ],
)
def test_settings_that_cannot_be_are_named(change, message):
  with pytest.raises(ConfigError, match=message):
    megabyte.make_task({**BASE, **change})


def test_rows_that_cannot_be_are_named(batch):
  with pytest.raises(ConfigError, match='rows have 30 bytes, which is no multiple'):
    logits_of('plain')(np.zeros((1, 30), int))
  task = megabyte.make_task({**BASE, 'length': 64})
  with pytest.raises(ConfigError, match='rows of 32 bytes .* set model.row_length=32'):
    task.init(jax.random.key(0), batch)
  assert np.all(np.isnan(logits_of('plain')(np.full((1, 8), V + 1))[0, 1:]))
