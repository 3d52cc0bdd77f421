import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.core import transformer
from jaxmm.core.decoding import SamplingConfig
from jaxmm.data.packing import Documents, PackedSource
from jaxmm.models import lm
from jaxmm.models.lm import Lm, config_of
from jaxmm.studies import run
from tests.references import transformer as reference

V, B, L = 23, 8, 12
LLAMA = {
  'size': 'micro', 'width': 32, 'num_heads': 4, 'num_kv_heads': 2, 'vocab_size': V, 'length': L,
  'dropout': 0.1, 'token_dropout': 0.1,
}  # fmt: skip
GPT = {
  'size': 'micro', 'width': 32, 'num_heads': 2, 'vocab_size': V, 'length': L, 'hidden': 48,
  'mlp': 'gelu_tanh', 'norm': 'layer', 'bias': True, 'positions': 'learned', 'tied_head': True,
}  # fmt: skip
QWEN = {**LLAMA, 'head_dim': 6, 'qk_norm': True, 'rotary': 'adjacent', 'rotary_base': 500.0}
MODELS = {'llama': LLAMA, 'gpt': GPT, 'qwen': QWEN}
CONFIG = config_of(LLAMA)


def random_params(config):
  """Random everywhere: a zero head would hide what comes before it."""
  shapes = jax.eval_shape(Lm(config).init, jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
  rng = np.random.default_rng(1)
  draw = lambda path, a: jnp.asarray(
    (path[-1].key == 'scale') + 0.2 * rng.standard_normal(a.shape), jnp.float32
  )
  return jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes)['params'])


@pytest.fixture(scope='module')
def params():
  return random_params(CONFIG)


@pytest.fixture(scope='module')
def batch():
  """Packed documents, weights ragged over rows and within them, one unreadable row."""
  rng = np.random.default_rng(0)
  lengths = [5, 4, 3, 12, 2, 2, 8, 7, 5, 1, 11, 9, 12, 6, 3]
  rows = PackedSource(
    Documents.of([rng.integers(0, V, n) for n in lengths]), L, 'first_fit', pad_id=V - 1
  )
  assert len(rows) == B
  out = {
    f'{name}_BL': jnp.stack([rows[i][f'{name}_L'] for i in range(B)])
    for name in ('ids', 'weight', 'segment')
  }
  out['weight_BL'] = out['weight_BL'] * jnp.asarray(rng.choice([0.0, 0.5, 1.0], (B, L)))
  return out | {
    'index_B': jnp.arange(100, 100 + B, dtype=jnp.uint32),
    'record_B': jnp.arange(B, dtype=jnp.int32),
    'valid_B': jnp.ones(B).at[3].set(0),
  }


@pytest.fixture(scope='module')
def logits_of():
  return jax.jit(lambda p, ids, segment: Lm(CONFIG).apply({'params': p}, ids, segment))


@pytest.fixture(scope='module')
def scores_of(params):
  return lm.scorer(params, CONFIG)


@pytest.fixture(scope='module')
def grads_of():
  """Gradient of the Task's loss, and its sums, of any rows of the batch."""
  task = lm.make_task(LLAMA)

  def loss(params, batch, tokens):
    out, sums, _ = task.loss({'params': params}, batch, jax.random.key(7), 0, {'tokens': tokens})
    return out, sums

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


def test_published_sizes_have_their_published_parameter_counts():
  expected = {
    'GPT-2': 124_439_808,
    'SmolLM2-135M': 134_515_008,
    'SmolLM2-360M': 361_821_120,
    'TinyLlama-1.1B': 1_100_048_384,
  }
  for size, count in expected.items():
    shapes = jax.eval_shape(
      Lm(config_of({'size': size})).init, jax.random.key(0), jnp.zeros((1, 8), int)
    )
    assert sum(a.size for a in jax.tree.leaves(shapes)) == count


@pytest.mark.parametrize('name', MODELS)
def test_logits_and_states_are_those_of_the_blackboard(name):
  config = config_of(MODELS[name])
  params = random_params(config)
  ids = np.random.default_rng(5).integers(0, V, L)
  segment = np.array([1] * 5 + [2] * 7)
  logits, states = jax.jit(
    lambda p: Lm(config).apply({'params': p}, ids[None], segment[None], return_states=True)
  )(params)

  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  place = np.array([0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5, 6])
  x, rotary = p['token_embedding']['table'][ids], None
  if config.positions == 'learned':
    x = x + p['position_embedding']['table'][place]
  else:
    width = config.stack().head_width
    angle = place[:, None] * config.rotary_base ** (-np.arange(0, width, 2) / width)
    rotary = np.cos(angle), np.sin(angle)
  allowed = np.tril(np.ones((L, L), bool)) & (segment[:, None] == segment[None, :])
  blocks = transformer.unstacked(p['stack'], config.stack())
  expected_states, hidden = reference.stack(
    blocks, p['stack']['final_norm'], config.stack(), x, allowed, rotary
  )
  np.testing.assert_allclose(states[:, 0], expected_states, atol=2e-5)
  expected = hidden @ lm.head_table(p, config).T
  np.testing.assert_allclose(logits[0], expected, atol=5e-5)


def test_no_logit_sees_a_later_token_or_another_document(params):
  # Each token has a row of the table of its own.
  ids, segment = jnp.arange(L)[None], jnp.array([[1] * 4 + [2] * 6 + [0] * 2])

  def logit_sum(table, position):
    moved = {**params, 'token_embedding': {'table': table}}
    logits = Lm(CONFIG).apply({'params': moved}, ids, segment)
    return jnp.sum(logits[0, position] * jnp.cos(jnp.arange(V)))

  grad = jax.jit(jax.grad(logit_sum))
  for position, expected in ((2, range(3)), (6, range(4, 7))):
    seen = np.any(np.asarray(grad(params['token_embedding']['table'], position)) != 0, axis=-1)
    assert np.flatnonzero(seen).tolist() == list(expected)


def test_a_document_means_the_same_wherever_it_is_packed(params, batch, logits_of):
  packed = logits_of(params, batch['ids_BL'], batch['segment_BL'])
  alone = batch['ids_BL'].at[0, :4].set(batch['ids_BL'][0, 5:9])
  np.testing.assert_array_equal(batch['segment_BL'][0], [1] * 5 + [2] * 4 + [3] * 3)
  alone = logits_of(params, alone, jnp.ones((B, L), jnp.int32))
  np.testing.assert_allclose(packed[0, 5:9], alone[0, :4], atol=1e-5)


def test_scores_are_those_of_the_logits(params, batch, logits_of, scores_of):
  logits = np.asarray(logits_of(params, batch['ids_BL'], batch['segment_BL']), np.float64)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  ids, weight = np.asarray(batch['ids_BL']), np.asarray(batch['weight_BL'])
  expected = np.zeros(B)
  for b in range(B):
    for i in range(1, L):
      expected[b] -= log_p[b, i - 1, ids[b, i]] * weight[b, i]
  expected[3] = 0  # could not be read
  nll_B, count_B = scores_of(batch)
  np.testing.assert_allclose(nll_B, expected, rtol=1e-5)
  np.testing.assert_allclose(count_B, weight[:, 1:].sum(1) * (np.arange(B) != 3))
  out = jax.jit(lm.make_task(LLAMA).likelihood)({'params': params}, batch, None)
  np.testing.assert_allclose(out['cross_entropy'], (nll_B.sum(), count_B.sum()), rtol=1e-6)
  np.testing.assert_allclose(out['bits_per_token'][0], nll_B.sum() / np.log(2), rtol=1e-6)


def test_an_id_outside_the_vocabulary_is_never_a_number(batch, scores_of):
  for place in (5, L - 1):
    ids = batch['ids_BL'].at[1, place].set(V)
    nll_B, _ = scores_of({**batch, 'ids_BL': ids, 'weight_BL': np.ones((B, L), np.float32)})
    assert np.isnan(nll_B[1]) and np.isfinite(nll_B[2])


def test_microbatches_in_any_order_give_the_gradient_of_the_batch(params, batch, grads_of):
  count = lm.make_task(LLAMA).counts(batch)['tokens']
  (loss, sums), grad = grads_of(params, batch, count)
  np.testing.assert_allclose(sums['cross_entropy'][1], count)
  # Rows of the other microbatch stand in with no weight, so that one compiled shape does for all.
  order = np.array([6, 1, 3, 0, 7, 2, 5, 4])
  moved = {k: v[order] for k, v in batch.items()}
  first = jnp.arange(B) < 3
  parts = [
    grads_of(params, {**moved, 'valid_B': moved['valid_B'] * mine}, count)
    for mine in (first, ~first)
  ]
  np.testing.assert_allclose(loss, parts[0][0][0] + parts[1][0][0], rtol=1e-5)
  jax.tree.map(
    lambda g, a, b: np.testing.assert_allclose(g, a + b, atol=2e-6, rtol=1e-3),
    grad,
    parts[0][1],
    parts[1][1],
  )


def test_what_has_no_weight_changes_nothing_and_dropout_follows_the_example(
  params, batch, grads_of
):
  loss = lambda b: grads_of(params, b, 30.0)[0][0]
  assert loss(batch) == loss({**batch, 'ids_BL': batch['ids_BL'].at[3].set(1)})
  padding = (batch['segment_BL'] == 0) & (jnp.arange(B) != 3)[:, None]
  assert np.sum(padding) > 3
  assert loss(batch) == loss({**batch, 'ids_BL': jnp.where(padding, 2, batch['ids_BL'])})
  assert loss(batch) != loss({**batch, 'index_B': batch['index_B'] + 50})


def test_the_loss_in_chunks_is_the_same(params, batch, grads_of):
  chunked = lm.make_task({**LLAMA, 'loss_chunk': 5})
  loss = lambda p: chunked.loss({'params': p}, batch, jax.random.key(7), 0, {'tokens': 30.0})[0]
  value, grad = jax.jit(jax.value_and_grad(loss))(params)
  (expected, _), expected_grad = grads_of(params, batch, 30.0)
  np.testing.assert_allclose(value, expected, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6, rtol=1e-4), grad, expected_grad
  )


PROMPTS = ([3, 1, 4], [1], [5, 9, 2, 6, 5], [3, 5])
GREEDY, DRAWN = SamplingConfig(greedy=True), SamplingConfig(temperature=0.9, top_k=9, top_p=0.9)
_generate = jax.jit(lm.generate, static_argnames=('config', 'sampling', 'num_tokens', 'stop_id'))


def continued(config, params, rows, sampling, num_tokens=6, stop_id=None):
  layout = jax.jit(lm.decode_params, static_argnums=1)(params, config)
  keys = jnp.stack([jax.random.key(sum(row)) for row in rows])
  prompt, lengths = lm.prompts(rows)
  args = (layout, params, config, prompt, lengths, keys, sampling, num_tokens, stop_id)
  return np.asarray(_generate(*args))


@pytest.mark.parametrize('name', ['llama', 'gpt'])
def test_cached_tokens_are_those_of_uncached_logits(name):
  config = config_of(MODELS[name])
  params = random_params(config)
  out = continued(config, params, PROMPTS, GREEDY)
  uncached = jax.jit(lambda ids: Lm(config).apply({'params': params}, ids))
  for prompt, new in zip(PROMPTS, out):
    ids = np.zeros((1, L), np.int32)
    row = [*prompt, *new]
    ids[0, : len(row)] = row
    best = np.argmax(uncached(ids)[0], -1)
    np.testing.assert_array_equal(new, best[len(prompt) - 1 : len(row) - 1])


def test_a_row_is_drawn_from_its_own_prompt_and_key(params):
  together = continued(CONFIG, params, PROMPTS, DRAWN)
  back = continued(CONFIG, params, PROMPTS[::-1], DRAWN)
  np.testing.assert_array_equal(together, back[::-1])
  assert together.min() >= 0 and together.max() < V and len({tuple(r) for r in together}) == 4


def test_logits_are_the_same_under_every_rule_table(params, batch, logits_of):
  expected = logits_of(params, batch['ids_BL'], batch['segment_BL'])
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
  rules = sharding.rules_named('tensor')
  boxed = jax.eval_shape(Lm(CONFIG).init, jax.random.key(0), batch['ids_BL'])['params']
  placed = jax.device_put(params, sharding.tree_shardings(boxed, rules, mesh))
  with sharding.in_mesh(mesh, rules):
    rows = sharding.global_batch(mesh, {k: np.asarray(v) for k, v in batch.items()})
    # Traced anew: the names mean something only here.
    out = jax.jit(lambda p, i, s: Lm(CONFIG).apply({'params': p}, i, s))(
      placed, rows['ids_BL'], rows['segment_BL']
    )
  np.testing.assert_allclose(out, expected, atol=2e-5)


def test_a_tiny_model_learns_a_text():
  text = np.frombuffer(b'the cat sat on the mat; the dog lay on the log. ' * 40, np.uint8)
  rows = PackedSource(Documents.of([text]), 32)
  ids, weight, segment = (
    np.stack([rows[r][name] for r in range(len(rows))])
    for name in ('ids_L', 'weight_L', 'segment_L')
  )
  fixed = {'index_B': np.arange(8, dtype=np.uint32), 'valid_B': np.ones(8, np.float32)}
  task = lm.make_task({'size': 'micro', 'width': 48, 'length': 32})

  optimizer = optax.adam(5e-3)

  @jax.jit
  def begin(batch):
    params = nn.unbox(task.init(jax.random.key(0), batch))['params']
    return params, optimizer.init(params)

  @jax.jit
  def step(params, state, batch):
    def loss(p):
      return task.loss({'params': p}, batch, jax.random.key(0), 0, task.counts(batch))[0]

    value, grad = jax.value_and_grad(loss)(params)
    updates, state = optimizer.update(grad, state)
    return optax.apply_updates(params, updates), state, value

  rng, values, params, state = np.random.default_rng(0), [], None, None
  for i in range(40):
    at = rng.choice(len(rows), 8, replace=False)
    batch = fixed | {'ids_BL': ids[at], 'weight_BL': weight[at], 'segment_BL': segment[at]}
    params, state = begin(batch) if i == 0 else (params, state)
    params, state, value = step(params, state, batch)
    values.append(float(value))
  np.testing.assert_allclose(values[0], np.log(259), rtol=1e-5)  # the uniform distribution
  assert np.mean(values[-5:]) < 2.0  # the frequencies of the letters alone leave 2.5 nats


def test_the_miniature_config_reads_a_text_file(tmp_path):
  file = tmp_path / 'text.txt'
  file.write_text('Naïve café.\n' * 100)
  config = configs.load_config('experiments/lm/mini.py')
  settings = [f'data.path={file}', 'data.text.length=64', 'eval_data.test_fraction=0.5', 'batch=4']
  configs.override(config, settings)
  assert config.eval_data.path == str(file) and config.data.test_fraction == 0.1
  task, batches = run.make_task(config), run.make_batches(config, train=False)
  assert batches.config.split == 'test' and task.config.length == 64
  batch = batches.at(0)
  assert batch['ids_BL'].shape == (4, 64) and batch['ids_BL'][0, 0] == 257
  variables = nn.unbox(jax.eval_shape(task.init, jax.random.key(0), batch))
  shapes = jax.eval_shape(task.likelihood, variables, batch, jax.random.key(0))
  assert set(shapes) == {'cross_entropy', 'bits_per_token'}


def test_flops_count_every_weight_but_the_embedding():
  task = lm.make_task({**LLAMA, 'row_length': 8})
  shapes = jax.eval_shape(Lm(CONFIG).init, jax.random.key(0), jnp.zeros((1, 3), int))['params']
  matrices = sum(a.size for a in jax.tree.leaves(shapes) if a.ndim > 2) + V * 32
  assert task.step_flops(3) == 3 * 8 * (6 * matrices + 12 * 2 * 32 * 8)


def test_settings_that_cannot_be_are_named(params, batch):
  with pytest.raises(ConfigError, match="model.size is 'gpt2', expected one of micro, mini, GPT-2"):
    config_of({'size': 'gpt2'})
  with pytest.raises(ConfigError, match='no key .dropuot.; did you mean'):
    config_of({'size': 'mini', 'dropuot': 0.0})
  with pytest.raises(ConfigError, match="model.positions is 'rotery'"):
    config_of({**LLAMA, 'positions': 'rotery'})
  with pytest.raises(ConfigError, match='heads 5 wide'):
    config_of({**LLAMA, 'head_dim': 5})
  with pytest.raises(ConfigError, match='model.dropout is 1.0'):
    config_of({**LLAMA, 'dropout': 1.0})
  with pytest.raises(ConfigError, match='model.row_length is 40, expected 2 to model.length 12'):
    lm.make_task({**LLAMA, 'row_length': 40})
  with pytest.raises(ConfigError, match='rows have 13 tokens, but model.length is 12'):
    Lm(CONFIG).apply({'params': params}, jnp.zeros((1, 13), int))
  for length, field in ((64, 'row_length'), (8, 'length')):
    with pytest.raises(ConfigError, match=f'rows of 12 tokens, .* set model.{field}=12'):
      lm.LmTask(dataclasses.replace(CONFIG, length=length)).init(jax.random.key(0), batch)
  with pytest.raises(ConfigError, match='prompt 1 has 0 tokens, expected 1 to 2; begin with'):
    lm.prompts([[1, 2], []])
  with pytest.raises(ConfigError, match='prompts of 5 and 8 new tokens, but model.length is 12'):
    continued(CONFIG, params, PROMPTS, GREEDY, num_tokens=8)
  with pytest.raises(ConfigError, match='an LM has no condition'):
    continued(CONFIG, params, PROMPTS, SamplingConfig(guidance_scale=2.0))
