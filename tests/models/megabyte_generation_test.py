import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.models import megabyte_generation as generation
from jaxmm.models.megabyte_network import Megabyte
from tests.models.megabyte_cases import config_of, random_params

VARIANTS = {
  'plain': {},
  'all': {'conv_encoder': True, 'cross_patch': 3, 'local_depth': 3, 'pads': 'ids'},
}
PROMPTS = ([3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9], [], [2, 7, 1, 8, 2], [6, 0, 2, 2, 1, 4, 0, 7])
NEW = 9
GREEDY, DRAWN = SamplingConfig(greedy=True), SamplingConfig(temperature=0.9, top_k=9, top_p=0.9)
_generate = jax.jit(
  generation.generate,
  static_argnames=('config', 'sampling', 'num_bytes', 'stop_id', 'return_logits'),
)


@functools.cache
def prepared(name):
  config = config_of(VARIANTS[name])
  params = random_params(config)
  return config, params, jax.jit(generation.decode_params, static_argnums=1)(params, config)


def keys_of(rows):
  return jnp.stack([jax.random.key(sum(row)) for row in rows])


def continued(name, rows, sampling, num_bytes=NEW, **named):
  config, params, layout = prepared(name)
  prompt, length = generation.prompts(rows)
  args = (layout, params, config, prompt, length, keys_of(rows), sampling, num_bytes)
  return jax.tree.map(np.asarray, _generate(*args, **named))


@pytest.mark.parametrize('name', VARIANTS)
def test_cached_logits_and_bytes_are_the_uncached_ones(name):
  config, params, _ = prepared(name)
  new, logits = continued(name, PROMPTS, GREEDY, return_logits=True)
  uncached = jax.jit(lambda ids: Megabyte(config).apply({'params': params}, ids))
  for b, prompt in enumerate(PROMPTS):
    row = np.zeros((1, config.length), np.int32)
    row[0, : len(prompt) + NEW] = [*prompt, *new[b]]
    expected = uncached(row)[0, len(prompt) : len(prompt) + NEW]
    np.testing.assert_allclose(logits[b], expected, atol=1e-5)
    np.testing.assert_array_equal(new[b], np.argmax(expected, -1))
  assert len({tuple(row) for row in new}) > 1


def test_a_row_is_drawn_from_its_own_prompt_and_key():
  name = 'all'
  together = continued(name, PROMPTS, DRAWN)
  np.testing.assert_array_equal(continued(name, PROMPTS[::-1], DRAWN), together[::-1])
  assert len({tuple(row) for row in together}) == len(PROMPTS)
  # Neither other rows nor the room for prompts change what a row gets.
  np.testing.assert_array_equal(continued(name, PROMPTS[2:3], DRAWN)[0], together[2])


def test_the_stream_is_what_the_loop_gives():
  name = 'all'
  config, params, layout = prepared(name)
  pieces = list(generation.stream(layout, params, config, PROMPTS, keys_of(PROMPTS), DRAWN, NEW))
  assert len(pieces) > 3 and all(len(p) <= config.patch for row in pieces for p in row)
  assert any(len(row[1]) and not len(row[0]) for row in pieces)  # as they come
  streamed = np.stack([np.concatenate([row[b] for row in pieces]) for b in range(len(PROMPTS))])
  np.testing.assert_array_equal(streamed, continued(name, PROMPTS, DRAWN))
  assert streamed.dtype == np.uint8


def test_one_state_is_continued_more_than_once():
  config, params, layout = prepared('all')
  prompt, length = generation.prompts(PROMPTS)
  state = generation.begin(params, config, prompt, length, DRAWN, NEW)
  again = jax.jit(generation.continued, static_argnums=(1, 5, 6))
  other = jnp.stack([jax.random.key(90 + b) for b in range(len(PROMPTS))])
  for keys in (keys_of(PROMPTS), other):
    np.testing.assert_array_equal(
      again(layout, config, state, length, keys, DRAWN, NEW),
      _generate(layout, params, config, prompt, length, keys, DRAWN, NEW),
    )


def test_nothing_but_the_stop_byte_follows_it():
  free = continued('plain', PROMPTS, DRAWN)
  place = next(i for i in range(2, NEW) if free[0, i] not in free[0, :i])
  stop = int(free[0, place])
  stopped = continued('plain', PROMPTS, DRAWN, stop_id=stop)
  config, params, layout = prepared('plain')
  args = (layout, params, config, PROMPTS, keys_of(PROMPTS), DRAWN, NEW, stop)
  pieces = list(generation.stream(*args))
  for b, row in enumerate(free):
    at = np.append(np.flatnonzero(row == stop), NEW)[0]
    np.testing.assert_array_equal(stopped[b, : at + 1], row[: at + 1])
    assert np.all(stopped[b, at:] == stop)
    np.testing.assert_array_equal(np.concatenate([p[b] for p in pieces]), row[: at + 1])


def test_generation_ends_when_all_rows_have_stopped():
  config, params, layout = prepared('plain')
  rows = [[1, 2, 3]]
  stop = int(continued('plain', rows, GREEDY, 1)[0, 0])
  args = (layout, params, config, rows, keys_of(rows), GREEDY, 17, stop)
  assert [list(p[0]) for p in generation.stream(*args)] == [[stop]]
  assert np.all(continued('plain', rows, GREEDY, 17, stop_id=stop) == stop)


def test_the_global_cache_grows_through_many_lengths():
  config = config_of({'length': 4 * 200, 'local_depth': 1})
  params = random_params(config)
  layout = generation.decode_params(params, config)
  prompt, length = generation.prompts([[1] * 250, [2] * 120])
  keys = jax.random.split(jax.random.key(0), 2)
  new = _generate(layout, params, config, prompt, length, keys, GREEDY, 500)
  uncached = jax.jit(lambda ids: Megabyte(config).apply({'params': params}, ids))
  row = np.zeros((1, config.length), np.int32)
  row[0, :620] = [*[2] * 120, *np.asarray(new[1])]
  best = np.argmax(uncached(row)[0], -1)
  assert np.mean(best[120:620] == row[0, 120:620]) == 1.0


def test_half_precision_decodes():
  config = dataclasses.replace(prepared('plain')[0], dtype='bfloat16')
  params = prepared('plain')[1]
  layout = generation.decode_params(params, config)
  prompt, length = generation.prompts(PROMPTS)
  new, logits = _generate(
    layout, params, config, prompt, length, keys_of(PROMPTS), GREEDY, NEW, return_logits=True
  )
  row = jnp.concatenate([jnp.asarray([PROMPTS[0]]), new[:1]], axis=1)
  row = jnp.pad(row, ((0, 0), (0, config.length - row.shape[1])))
  exact = Megabyte(prepared('plain')[0]).apply({'params': params}, row)[0, 13 : 13 + NEW]
  assert logits.dtype == jnp.float32
  np.testing.assert_allclose(logits[0], exact, atol=0.5)


def test_prompts_that_cannot_be_are_named():
  prompt, length = generation.prompts([b'a\x00b', []])
  np.testing.assert_array_equal(prompt, [[97, 0, 98], [0, 0, 0]])
  np.testing.assert_array_equal(length, [3, 0])
  with pytest.raises(ConfigError, match='prompt 0 has 3 bytes, expected at most 2'):
    generation.prompts([b'abc'], 2)
  with pytest.raises(ConfigError, match='prompts of 13 bytes and 20 new ones.* model.length 32'):
    continued('plain', PROMPTS, GREEDY, 20)
  with pytest.raises(ConfigError, match='expected at least 1 new'):
    continued('plain', PROMPTS, GREEDY, 0)
  with pytest.raises(ConfigError, match='a MEGABYTE has no condition'):
    continued('plain', PROMPTS, SamplingConfig(guidance_scale=2.0))
