import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.core import decode, masks, positions
from jaxmm.core.transformer import Context, Stack, StackConfig
from tests.core.transformer_test import CONFIGS, random_params

B, L, S, D, PROMPT = 3, 6, 4, 16, 2
# The decoder ignores the backend; the Stack it is compared with need not use the slow one.
VARIANTS = {
  name: dataclasses.replace(config, attention_backend='xla') for name, config in CONFIGS.items()
}


@pytest.fixture(scope='module', params=VARIANTS)
def run(request):
  config: StackConfig = VARIANTS[request.param]
  rng = np.random.default_rng(3)
  x = jnp.asarray(rng.standard_normal((B, L, D)).astype(np.float32))
  rotary = positions.rotary_1d(jnp.arange(L), config.head_width)
  # The first example has a shorter prompt: its first token is padding, a segment of its own.
  mask = masks.Causal() & masks.Segments(jnp.ones((B, L), jnp.int32).at[0, 0].set(0))
  valid = jnp.array([[1, 1, 1, 1], [1, 0, 1, 0], [0, 1, 1, 1]], bool)
  context = Context(jnp.asarray(rng.standard_normal((B, S, 12)).astype(np.float32)), valid)
  context = context if 'cross' in config.pattern else None
  model, args = Stack(config), dict(mask=mask, context=context)
  params = random_params(jax.jit(lambda k: model.init(k, x, **args))(jax.random.key(0)))

  @jax.jit
  def both(params, x):
    hidden, kv = model.apply(params, x, rotary=rotary, return_kv=True, **args)
    layout = decode.decode_layout(params['params'], config)
    cross, extra = None, {}
    if context is not None:
      cross = decode.context_cache(params['params'], config, context)
      extra = {'context': cross, 'context_valid_RS': valid}

    def feed(cache, start):
      def step(cache, i):
        h, cache = decode.decode_step(
          layout, config, x[:, i].T, cache, i, rotary=rotary.at(i), mask=mask, **extra
        )
        return cache, h.T

      cache, out = jax.lax.scan(step, cache, jnp.arange(start, L))
      return jnp.swapaxes(out, 0, 1), cache

    prompt_kv = jax.tree.map(lambda a: a[:, :, :PROMPT], kv)
    return (
      hidden,
      feed(decode.empty_cache(config, B, L), 0),
      feed(decode.cache_of(prompt_kv, config, L), PROMPT),
    )

  return config, both(params, x)


def test_token_by_token_equals_the_stack(run):
  _, (hidden, (stepped, _), _) = run
  np.testing.assert_allclose(stepped, hidden, atol=1e-5)


def test_a_prompt_goes_through_the_stack_and_its_cache_continues(run):
  _, (hidden, (_, cache), (continued, continued_cache)) = run
  np.testing.assert_allclose(continued, hidden[:, PROMPT:], atol=1e-5)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), cache, continued_cache)


def test_layout_is_one_array_a_matrix_out_by_in(run):
  config, _ = run
  model = Stack(config)
  context = jnp.ones((1, 1, 12)) if 'cross' in config.pattern else None
  shapes = jax.eval_shape(
    lambda k: decode.decode_layout(
      nn.unbox(model.init(k, jnp.ones((1, 2, D)), mask=masks.Causal(), context=context))['params'],
      config,
    ),
    jax.random.key(0),
  )
  assert len(shapes['blocks']) == config.depth
  heads = config.num_heads + 2 * config.kv_heads
  block = shapes['blocks'][0]
  assert block['qkv']['kernel'].shape == (heads * config.head_width, D)
  gates = 2 if config.mlp == 'swiglu' else 1
  assert block['up']['kernel'].shape == (gates * config.hidden, D)
  assert block['down']['kernel'].shape == (D, config.hidden)


def test_a_cache_grows_and_keeps_what_it_holds():
  config = VARIANTS['llama']
  cache = jax.tree.map(lambda a: a + 1, decode.empty_cache(config, 2, 3))
  grown = decode.grown_cache(cache, 5)
  for filled in jax.tree.leaves(grown):
    assert filled.shape == (2, config.kv_heads, 5, config.head_width)
    assert np.all(filled[:, :, :3] == 1) and np.all(filled[:, :, 3:] == 0)
  assert decode.grown_cache(grown, 5) is grown


@pytest.mark.parametrize('two_way', [False, True])
@pytest.mark.parametrize('name', [n for n, c in VARIANTS.items() if 'cross' not in c.pattern])
def test_several_tokens_from_each_rows_own_position_equal_the_stack(name, two_way):
  """Three tokens at once, from positions 1, 3 and 0; before and after them one at a time."""
  config, start = VARIANTS[name], jnp.array([1, 3, 0])
  x = jnp.asarray(np.random.default_rng(3).standard_normal((B, L, D)).astype(np.float32))
  rotary = positions.rotary_1d(jnp.arange(L), config.head_width)
  is_inside = (jnp.arange(L) >= start[:, None]) & (jnp.arange(L) < start[:, None] + 3)
  mask = masks.Causal() | masks.TwoWayGroups(is_inside * two_way)
  model = Stack(config)
  params = random_params(jax.jit(lambda k: model.init(k, x, mask=mask))(jax.random.key(0)))

  @jax.jit
  def both(params, x):
    hidden, kv = model.apply(params, x, mask=mask, rotary=rotary, return_kv=True)
    layout = decode.decode_layout(params['params'], config)
    # What a row holds from its position on must not matter.
    is_before = (jnp.arange(L + 2) < start[:, None])[:, None, :, None]
    cache = jax.tree.map(lambda a: jnp.where(is_before, a, 7.0), decode.cache_of(kv, config, L + 2))

    def feed(cache, position_R, num, two_way):
      place_RL = position_R[:, None] + jnp.arange(num)
      tokens = jnp.take_along_axis(x, jnp.minimum(place_RL, L - 1)[..., None], axis=1)
      tables = positions.rotary_1d(place_RL, config.head_width)
      hidden, kv = decode.decode_tokens(
        layout, config, tokens, cache, position_R, rotary=tables, two_way=two_way
      )
      return hidden, decode.with_tokens(cache, kv, position_R)

    together, cache = feed(cache, start, 3, two_way)
    after, cache = feed(cache, start + 3, 1, False)
    return hidden, together, after, cache, decode.cache_of(kv, config, L)

  hidden, together, after, cache, expected = both(params, x)
  for b, first in enumerate(start.tolist()):
    np.testing.assert_allclose(together[b], hidden[b, first : first + 3], atol=1e-5)
    if first + 3 < L:
      np.testing.assert_allclose(after[b, 0], hidden[b, first + 3], atol=1e-5)
    last = min(first + 4, L)
    for ours, theirs in zip(jax.tree.leaves(cache), jax.tree.leaves(expected)):
      np.testing.assert_allclose(ours[b, :, :last], theirs[b, :, :last], atol=1e-4)
