"""The sampler against a loop that knows no cache: the whole row through the network every time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.core.diffusion import SamplerConfig
from jaxmm.models import transfusion
from jaxmm.models import transfusion_sampling as sampling
from jaxmm.models.transfusion import config_of
from jaxmm.models.transfusion_prompts import Mixed, pieces, prompts
from tests.models.transfusion_test import TINY, random_params
from tests.models.transfusion_uncached import Uncached

S, P, BOI, EOI, NULL, STOP = 32, 4, 8, 9, 10, 7
CONFIG = config_of({**TINY, 'length': 40})
VARIANTS = {
  'paper': {},
  'causal': {'attention': 'causal', 'clean_timestep': 1},
  'shared': {'image_positions': 'shared', 'time': 'width', 'num_kv_heads': 2},
  'unet': {'patches': 'unet', 'unet_base': 4, 'unet_blocks': 1},
  'flow': {'objective': 'flow'},
}
DRAWN, GREEDY = SamplingConfig(temperature=1.3), SamplingConfig(greedy=True)
ANCESTRAL = SamplerConfig(4, guidance_scale=2.5)
DRAW = np.random.default_rng(5)
PICTURES = DRAW.standard_normal((3, *CONFIG.latent_shape)).astype(np.float32)
# Text; an image that is asked for at once; images in front; an image and an instruction.
PROMPTS = [[3, 1], [5, 2, 6, BOI], [PICTURES[0]], [1, PICTURES[1], 4, 4, PICTURES[2], 2, BOI], [6]]
_generate = jax.jit(
  sampling.generate,
  static_argnames=(
    'config', 'sampling', 'sampler', 'num_positions', 'num_images', 'stop_id', 'stop_after_images',
  ),
)  # fmt: skip


def generated(config, params, rows, keys, text=DRAWN, sampler=ANCESTRAL, pad=0, **options):
  layout = jax.jit(transfusion.decode_params, static_argnums=1)(params, config)
  options = {'num_positions': S, 'num_images': 2, 'stop_id': STOP, **options}
  prompt = prompts(config, rows, options['num_positions'])
  if pad:
    length = prompt.ids_BS.shape[1] + pad
    prompt = prompts(config, rows, options['num_positions'], length=length, num_images=3)
  keys = jnp.stack([jax.random.key(k) for k in keys])
  return _generate(layout, params, config, prompt, keys, sampling=text, sampler=sampler, **options)


def check_latents(ours, theirs, sampler):
  """The same but for float32: outputs agree to 1e-6, and a step multiplies that by what it keeps of
  the output; the first of few steps of the cosine schedule by hundreds, guidance by 2 s - 1.
  """
  _, plan = sampler.plan(CONFIG.num_timesteps)
  growth = np.max(plan.keep_x0 * plan.from_output) * (2 * sampler.guidance_scale - 1)
  np.testing.assert_allclose(ours, theirs, atol=1e-6 * max(growth, 10))
  # That is a bound: most numbers are cut on the way, or shrink again.
  assert ours.size == 0 or np.median(np.abs(ours - theirs)) < 1e-5


def check_row(mixed: Mixed, row, expected: Uncached, sampler):
  num = expected.length
  assert mixed.length_B[row] == num and mixed.images_B[row] == len(expected.latents)
  np.testing.assert_array_equal(mixed.ids_BS[row], expected.ids)
  np.testing.assert_array_equal(mixed.image_BS[row], expected.image)
  np.testing.assert_array_equal(mixed.patch_BS[row], expected.patch)
  for i, latent in enumerate(expected.latents):
    check_latents(mixed.latent_BIYXC[row, i], latent, sampler)


SAMPLERS = {
  'paper': ANCESTRAL,
  'causal': SamplerConfig(3, method='ddim', eta=0.5, guidance_scale=2.0),
  'shared': SamplerConfig(3, method='ddim'),
  'unet': SamplerConfig(2, guidance_scale=1.5),
  'flow': SamplerConfig(4, method='euler', guidance_scale=2.0),
}


@pytest.mark.parametrize(
  'name',
  [pytest.param(n, marks=[pytest.mark.slow] * (n in ('shared', 'flow'))) for n in VARIANTS],
)
def test_rows_are_those_of_an_uncached_loop(name):
  config = dataclasses.replace(CONFIG, **VARIANTS[name])
  params = random_params(config)
  keys = [11, 12, 13, 14, 15]
  mixed = generated(config, params, PROMPTS, keys, sampler=SAMPLERS[name])
  drawn = 0
  checked = range(5) if name == 'paper' else (1, 3)
  for b in checked:
    given = sum(np.ndim(item) > 0 for item in PROMPTS[b])
    row = Uncached(config, params, jax.random.key(keys[b]), given + 2, S)
    row.all(PROMPTS[b], DRAWN, SAMPLERS[name], STOP)
    drawn += len(row.latents) - given
    check_row(mixed, b, row, SAMPLERS[name])
  assert drawn >= len(checked) // 2


@pytest.fixture(scope='module')
def params():
  return random_params(CONFIG)


@pytest.fixture(scope='module')
def together(params):
  return generated(CONFIG, params, PROMPTS, [11, 12, 13, 14, 15])


def check_same(one: Mixed, i, other: Mixed, j):
  num = one.images_B[i]
  for name in ('ids_BS', 'image_BS', 'patch_BS', 'length_B', 'images_B'):
    np.testing.assert_array_equal(getattr(one, name)[i], getattr(other, name)[j])
  check_latents(one.latent_BIYXC[i, :num], other.latent_BIYXC[j, :num], ANCESTRAL)


@pytest.mark.slow
def test_a_row_is_the_same_alone_in_any_order_and_behind_any_padding(params, together):
  modes = [int(n) for n in together.images_B]
  assert len(set(modes)) > 1  # not all rows draw as many images
  back = generated(CONFIG, params, PROMPTS[::-1], [15, 14, 13, 12, 11], pad=3)
  for b in range(5):
    check_same(together, b, back, 4 - b)
  for b in (0, 3):
    check_same(together, b, generated(CONFIG, params, PROMPTS[b : b + 1], [11 + b]), 0)


def test_brackets_and_null_ids_stand_only_where_they_may(params):
  """Many rows: every image is whole, closed, and nothing else is ever a bracket."""
  rows, keys = [[1 + b % 6] for b in range(24)], range(24)
  mixed = generated(CONFIG, params, rows, keys, sampler=SamplerConfig(2), stop_id=None)
  assert np.all(mixed.length_B == S)
  assert {0, 1, 2} >= set(mixed.images_B.tolist()) and mixed.images_B.max() == 2
  arrays = (np.asarray(a) for a in (mixed.ids_BS, mixed.image_BS, mixed.images_B))
  for ids, image, num in zip(*arrays):
    opened = np.flatnonzero((ids == BOI) & (image == 0)).tolist()
    assert len(opened) == num and NULL not in ids
    assert np.flatnonzero((ids == EOI) & (image == 0)).tolist() == [i + P + 1 for i in opened]
    assert all(image[i + 1 : i + 1 + P].tolist() == [n] * P for n, i in enumerate(opened, 1))
  assert np.all(np.isfinite(mixed.latent_BIYXC))


def test_an_image_begins_at_the_last_place_where_it_fits_and_no_later(params):
  """A model that finds every id equally likely, and so tries the bracket often."""
  even = {**params, 'head': {'table': jnp.zeros_like(params['head']['table'])}}
  for length, images in ((S - P - 2, 1), (S - P - 1, 0)):
    mixed = generated(
      CONFIG, even, [[1] * length] * 40, range(40), sampler=SamplerConfig(1), num_images=1
    )
    assert mixed.images_B.max() == images and mixed.length_B.max() == S
    whole = np.asarray(mixed.images_B) == 1
    # The first token drawn is the last that can open an image.
    assert np.all(np.asarray(mixed.ids_BS)[whole, length] == BOI)
    assert np.all(np.asarray(mixed.ids_BS)[whole, S - 1] == EOI)


def test_phases_can_be_cut_and_mixed_without_changing_a_row(params, together):
  """Three tokens at a time, images as soon as one is due: rows in different modes every time."""
  layout = transfusion.decode_params(params, CONFIG)
  keys = jnp.stack([jax.random.key(k) for k in (11, 12, 13, 14, 15)])
  begin = jax.jit(lambda p: sampling.begin(p, CONFIG, prompts(CONFIG, PROMPTS, S), S, 2))
  text = jax.jit(
    lambda s: sampling.text_phase(layout, CONFIG, s, keys, DRAWN, stop_id=STOP, num_tokens=3)
  )
  image = jax.jit(lambda s: sampling.image_phase(layout, params, CONFIG, s, keys, ANCESTRAL))
  state, mixtures = begin(params), set()
  while np.any(state.mode_B != sampling.DONE):
    state = text(state)
    mixtures.add(tuple(state.mode_B.tolist()))
    if np.any(state.mode_B == sampling.IMAGE):
      state = image(state)
  assert any({sampling.TEXT, sampling.IMAGE} <= set(modes) for modes in mixtures)
  for b in range(5):
    check_same(together, b, state.mixed, b)


def test_captions_are_what_follows_the_image(params):
  layout = transfusion.decode_params(params, CONFIG)
  keys = jnp.stack([jax.random.key(k) for k in (3, 4, 5)])
  run = jax.jit(
    lambda x: sampling.caption(layout, params, CONFIG, x, keys, DRAWN, 8, stop_id=STOP, before=(2,))
  )
  out = run(jnp.asarray(PICTURES))
  rows = [[2, picture] for picture in PICTURES]
  mixed = generated(CONFIG, params, rows, [3, 4, 5], num_positions=P + 11, num_images=0)
  for b in range(3):
    expected = mixed.ids_BS[b, P + 3 : mixed.length_B[b]].tolist()
    assert out[b].tolist() == expected + [NULL] * (8 - len(expected))
  assert not np.any(np.isin(out, (BOI, EOI)))


def test_rows_may_end_with_their_last_image(params):
  mixed = generated(
    CONFIG, params, [[1, BOI], [PICTURES[0], 2, BOI]], [1, 2], num_images=1, stop_after_images=True,
  )  # fmt: skip
  assert mixed.images_B.tolist() == [1, 2] and mixed.length_B.tolist() == [7, 13]
  first, second = pieces(mixed, 0), pieces(mixed, 1)
  assert [type(p) for p in second] == [list, np.ndarray, list, np.ndarray, list]
  assert first[0] == [1, BOI] and first[2] == [EOI] and second[2] == [EOI, 2, BOI]
  np.testing.assert_array_equal(second[1], PICTURES[0])
  np.testing.assert_array_equal(second[3], mixed.latent_BIYXC[1, 1])


def test_greedy_text_is_the_likeliest_that_is_allowed(params):
  rows = [[3, 1, PICTURES[0]], [4]]
  mixed = generated(CONFIG, params, rows, [0, 1], text=GREEDY, num_images=0, stop_id=None)
  for b, row in enumerate(rows):
    expected = Uncached(CONFIG, params, jax.random.key(9), 1, S)
    expected.given(row)
    while expected.length < S:
      nothing = [np.zeros(CONFIG.latent_shape)]
      logits, _ = expected.through(expected.latents or nothing, [0])
      logits = np.where(np.isin(np.arange(11), (BOI, EOI, NULL)), -np.inf, logits)
      expected.append(int(np.argmax(logits)))
    np.testing.assert_array_equal(mixed.ids_BS[b], expected.ids)


def test_what_cannot_be_drawn_is_named(params):
  run = lambda rows=PROMPTS, config=CONFIG, **options: generated(
    config, params, rows, range(len(rows)), **options
  )
  with pytest.raises(ConfigError, match='prompt 1 needs 0 positions, expected 1 to 32'):
    run([[1], []])
  with pytest.raises(ConfigError, match='prompt 0 needs 33 positions, expected 1 to 32'):
    run([[1] * 33])
  with pytest.raises(ConfigError, match='needs 33 positions with the image it asks for'):
    run([[1] * 27 + [BOI]])
  with pytest.raises(ConfigError, match=r'prompt 0 has an image of shape \[4, 6, 3\], expected'):
    run([[np.zeros((4, 6, 3))]])
  with pytest.raises(ConfigError, match=r'brackets \[8\] among its ids'):
    run([[1, BOI, 2]])
  with pytest.raises(ConfigError, match='num_positions is 41, expected it from the prompts'):
    run(num_positions=41)
  with pytest.raises(ConfigError, match='guidance_scale of text is 2.0'):
    run(text=SamplingConfig(guidance_scale=2.0))
  with pytest.raises(ConfigError, match='model.caption_dropout is 0: this model never saw'):
    run(config=dataclasses.replace(CONFIG, caption_dropout=0.0))
  with pytest.raises(ConfigError, match="method is 'euler', but model.objective is 'ddpm'"):
    run(sampler=SamplerConfig(4, method='euler'))
  with pytest.raises(ConfigError, match='more than length=3'):
    prompts(CONFIG, [[1, 2, 3, 4]], S, length=3)


def test_given_images_stand_at_a_timestep_that_is_trained():
  at = lambda **settings: dataclasses.replace(CONFIG, **settings).given_timestep
  assert at() == 1 and at(clean_rate=0.5) == 0 and at(clean_timestep=0) == 0
