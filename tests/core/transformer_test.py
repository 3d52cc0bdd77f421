import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core import axes, masks, positions, transformer
from jaxmm.core.transformer import Stack, StackConfig
from tests.references import transformer as reference

B, L, S, D = 2, 7, 5, 16
CONFIGS = {
  'llama': StackConfig(depth=2, width=D, num_heads=4, num_kv_heads=2, hidden=24, rotary='adjacent'),
  'gpt with cross blocks': StackConfig(
    depth=4,
    width=D,
    num_heads=2,
    head_dim=6,
    hidden=20,
    mlp='gelu',
    norm='layer',
    bias=True,
    qk_norm=True,
    pattern=('self', 'cross'),
    attention_scale=0.3,
    attention_backend='chunked',
    attention_chunk=4,
    init_std=None,
  ),
  'post-norm with cross blocks': StackConfig(
    depth=4,
    width=D,
    num_heads=4,
    hidden=20,
    mlp='gelu',
    norm='layer',
    norm_eps=1e-12,
    norm_place='post',
    bias=True,
    pattern=('self', 'cross'),
    final_norm=False,
  ),
}


def random_params(tree, seed=0):
  """Every parameter away from its initial zeros and ones, so that each one matters."""
  rng = np.random.default_rng(seed)
  return jax.tree.map(
    lambda a: jnp.asarray(a + 0.3 * rng.standard_normal(a.shape).astype(np.float32)), nn.unbox(tree)
  )


def inputs(config, seed=1):
  rng = np.random.default_rng(seed)
  x = rng.standard_normal((B, L, D)).astype(np.float32)
  context = rng.standard_normal((B, S, 12)).astype(np.float32)
  rotary = positions.rotary_1d(jnp.arange(L), config.head_width)
  bias = rng.standard_normal((config.num_heads, L, L)).astype(np.float32)
  return x, context, rotary, bias


@pytest.fixture(scope='module', params=CONFIGS)
def run(request):
  """One config: its parameters and a jitted forward pass with all outputs."""
  config = CONFIGS[request.param]
  x, context, rotary, bias = inputs(config)
  context = context if 'cross' in config.pattern else None
  model = Stack(config)
  boxed = jax.jit(lambda k: model.init(k, x, mask=masks.Causal(), context=context))(
    jax.random.key(0)
  )
  params = random_params(boxed)['params']

  @jax.jit
  def forward(params, x):
    return model.apply(
      {'params': params},
      x,
      mask=masks.Causal(),
      rotary=rotary,
      context=context,
      bias_NLS=bias,
      return_states=True,
    )

  return config, params, boxed, forward, (x, context, rotary, bias)


def test_stack_equals_the_blackboard(run):
  config, params, _, forward, (x, context, rotary, bias) = run
  hidden, states = forward(params, x)
  blocks = jax.tree.map(np.asarray, transformer.unstacked(params, config))
  tables = (np.asarray(rotary.cos, np.float64), np.asarray(rotary.sin, np.float64))
  for b in range(B):
    expected_states, expected = reference.stack(
      blocks,
      params.get('final_norm'),
      config,
      x[b].astype(np.float64),
      np.tril(np.ones((L, L), bool)),
      tables,
      None if context is None else context[b],
      bias,
    )
    np.testing.assert_allclose(states[:, b], expected_states, atol=2e-4, rtol=1e-4)
    np.testing.assert_allclose(hidden[b], expected, atol=2e-5)


def test_no_hidden_state_sees_its_own_future(run):
  _, params, _, forward, (x, *_) = run
  # d(hidden at 3)/d(inputs) must vanish after 3, whatever the weights are.
  weights = np.random.default_rng(2).standard_normal(D).astype(np.float32)
  grad = jax.grad(lambda x: jnp.sum(forward(params, x)[0][:, 3] * weights))(jnp.asarray(x))
  assert np.all(grad[:, 4:] == 0)
  assert np.all(np.any(np.asarray(grad[:, :4]) != 0, axis=-1))


def test_parameters_carry_logical_axes_and_a_leading_axis_of_groups(run):
  config, _, boxed, *_ = run
  boxes = jax.tree.leaves(boxed, is_leaf=lambda b: isinstance(b, nn.LogicallyPartitioned))
  assert all(len(b.names) == b.value.ndim for b in boxes)
  block = boxed['params']['groups'][transformer.block_name(0, 'self')]
  query = block['attention']['query']['kernel']
  assert query.names == (axes.LAYERS, axes.EMBED, axes.HEADS, axes.HEAD_DIM)
  assert query.value.shape[0] == config.depth // len(config.pattern)
  # Initialised block by block, not one block copied.
  assert not np.array_equal(query.value[0], query.value[1])


def test_unstacked_blocks_stack_again(run):
  config, params, *_ = run
  again = transformer.stacked(transformer.unstacked(params, config), config)
  jax.tree.map(np.testing.assert_array_equal, again, dict(params['groups']))
  with pytest.raises(ValueError, match='1 blocks for a Stack of depth'):
    transformer.stacked(transformer.unstacked(params, config)[:1], config)


SMALL = StackConfig(depth=2, width=D, num_heads=2, hidden=16, dropout=0.4, init_std=None)


@pytest.fixture(scope='module')
def dropped():
  """Loss gradient and hidden states under dropout, by remat policy and unrolling, one program."""
  x = jnp.asarray(inputs(SMALL)[0])
  model = Stack(SMALL)
  init = jax.jit(lambda key: model.init(key, x, mask=masks.Causal()))
  params = nn.unbox(init(jax.random.key(0)))

  @jax.jit
  def all_variants(params, x, keys):
    out = {}
    for name, change in {'none': {}, 'dots': {'remat': 'dots', 'unroll': 2}}.items():
      model = Stack(dataclasses.replace(SMALL, **change))

      def loss(params, model=model):
        hidden = model.apply(params, x, mask=masks.Causal(), dropout_key_B=keys)
        return jnp.sum(hidden**2 * jnp.arange(D)), hidden

      out[name] = jax.grad(loss, has_aux=True)(params)
    return out

  return params, x, all_variants


def test_rematerialisation_changes_no_gradient(dropped):
  params, x, all_variants = dropped
  out = all_variants(params, x, jax.random.split(jax.random.key(1), B))
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=1e-4), out['none'], out['dots']
  )


def test_dropout_follows_the_example_not_its_row(dropped):
  params, x, all_variants = dropped
  keys = jax.random.split(jax.random.key(1), B)
  hidden = all_variants(params, x, keys)['none'][1]
  swapped = all_variants(params, x[::-1], keys[::-1])['none'][1]
  np.testing.assert_allclose(swapped[::-1], hidden, atol=1e-6)
  other = all_variants(params, x, keys[::-1])['none'][1]
  assert np.abs(np.asarray(other) - hidden).max() > 0.1


@pytest.mark.parametrize('back', [1, 3])
def test_pieces_that_overlap_are_a_sequence_with_a_mask(back):
  size, pieces = 3, 4
  config = dataclasses.replace(SMALL, depth=3, dropout=0.0)
  x = jnp.asarray(np.random.default_rng(4).standard_normal((B, pieces * size, D)), jnp.float32)
  model, whole = Stack(config), masks.PatchOverlap(size, back)
  flat = positions.rotary_1d(jnp.arange(pieces * size), config.head_width)
  init = jax.jit(lambda key: model.init(key, x, mask=whole, rotary=flat))
  params = random_params(init(jax.random.key(0)))
  keys = jnp.arange(back + size)
  # The first piece of each sequence has nothing before it.
  exists = (jnp.arange(B * pieces) % pieces > 0)[:, None] | (keys >= back)
  seen = masks.Segments(jnp.ones_like(exists, jnp.int32), exists.astype(jnp.int32))

  def folded(params, x):
    return model.apply(
      params,
      x.reshape(B * pieces, size, D),
      mask=masks.Shifted(masks.Causal() & seen, back),
      rotary=positions.rotary_1d(keys, config.head_width),
      overlap=transformer.Overlap(back, pieces),
    ).reshape(x.shape)

  def loss(function):
    weighted = lambda p, x: jnp.sum(function(p, x) * jnp.cos(jnp.arange(x.size)).reshape(x.shape))
    return jax.jit(jax.value_and_grad(weighted, (0, 1)))(params, x)

  expected = loss(lambda p, x: model.apply(p, x, mask=whole, rotary=flat))
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-3)
  jax.tree.map(close, loss(folded), expected)


def test_initial_weights_can_be_cut():
  config = dataclasses.replace(SMALL, width=64, hidden=64, init_std=0.01, init_cut=2.0)
  x = jnp.ones((1, 2, 64))
  params = nn.unbox(Stack(config).init(jax.random.key(0), x, mask=masks.Causal()))
  kernels = [a for a in jax.tree.leaves(params) if a.ndim > 2]
  assert len(kernels) == 7 and all(0.018 < np.abs(a).max() <= 0.02 for a in kernels)
  for change in (dict(init_cut=0.0), dict(init_std=None, init_cut=2.0)):
    with pytest.raises(ConfigError, match='StackConfig.init_cut is .* expected a cut'):
      dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
  'change, message',
  [
    (dict(mlp='swish'), "StackConfig.mlp is 'swish', expected one of swiglu"),
    (dict(num_heads=3), 'width 16 is not a multiple of num_heads 3'),
    (dict(num_kv_heads=3), 'num_kv_heads 3 does not divide num_heads 2'),
    (dict(pattern=('self', 'cross', 'self')), 'divides depth 2'),
    (dict(pattern=('sefl',)), 'expected kinds from self, cross'),
    (dict(norm_place='both'), "norm_place is 'both', expected one of pre, post"),
    (dict(dropout=1.0), 'dropout is 1.0'),
    (dict(depth=0), 'depth is 0'),
  ],
)
def test_settings_that_cannot_be_are_named(change, message):
  with pytest.raises(ConfigError, match=message):
    dataclasses.replace(SMALL, **change)


def test_wrong_inputs_are_named():
  with pytest.raises(ValueError, match='embeddings are 4 wide, StackConfig.width is 16'):
    Stack(SMALL).init(jax.random.key(0), jnp.ones((1, 3, 4)), mask=masks.Causal())
  cross = dataclasses.replace(SMALL, pattern=('cross',))
  with pytest.raises(ValueError, match='needs a context'):
    Stack(cross).init(jax.random.key(0), jnp.ones((1, 3, D)), mask=masks.Causal())
  with pytest.raises(ValueError, match='make them with jaxmm.task.example_keys'):
    Stack(SMALL).init(
      jax.random.key(0), jnp.ones((1, 3, D)), mask=masks.Causal(), dropout_key_B=jnp.zeros(2)
    )
