"""The sampler against a loop that knows no cache: the whole row through the network every time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.core import decoding, diffusion
from jaxmm.core.decoding import SamplingConfig
from jaxmm.core.diffusion import SamplerConfig
from jaxmm.models import transfusion
from jaxmm.models import transfusion_sampling as sampling
from jaxmm.models.transfusion import Transfusion, config_of
from jaxmm.models.transfusion_prompts import Mixed, prompts
from tests.models.transfusion_test import TINY, random_params

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


class Uncached:
  """One row, position by position, by what training computes alone."""

  def __init__(self, config, params, key, most, num_positions=S):
    self.config, self.params, self.key = config, params, key
    self.ids, self.image, self.patch = np.zeros((3, num_positions), np.int32)
    self.latents, self.most, self.length = [], most, 0
    self.run = jax.jit(
      lambda *a: Transfusion(config).apply({'params': params}, *(x[None] for x in a))
    )

  def append(self, token, image=0, patch=0):
    for row, value in zip((self.ids, self.image, self.patch), (token, image, patch)):
      row[self.length] = value
    self.length += 1

  def through(self, latents, times, ids=None):
    """Logits of the last position, and what is predicted of the last image."""
    filled = np.zeros((self.most, *self.config.latent_shape), np.float32)
    filled[: len(latents)] = latents
    segment = (np.arange(len(self.ids)) < self.length).astype(np.int32)
    time = np.zeros(self.most, np.int32)
    time[: len(times)] = times
    ids = self.ids if ids is None else ids
    hidden, out = self.run(ids, self.image, self.patch, segment, filled, time)
    logits = hidden[0, self.length - 1] @ self.params['head']['table'].T
    return logits, out[0, len(latents) - 1]

  def given(self, row):
    for item in row:
      if np.ndim(item):
        self.append(BOI)
        self.put(item)
      else:
        self.append(item)

  def put(self, latent):
    self.latents.append(latent)
    for p in range(P):
      if self.image[self.length] == 0:
        self.image[self.length] = len(self.latents)
        self.patch[self.length] = p
      self.length += 1
    self.append(EOI)

  def text(self, config):
    clean = self.config.clean_timestep
    logits, _ = self.through(self.latents or [np.zeros(self.config.latent_shape)],
                             [clean] * max(1, len(self.latents)))  # fmt: skip
    fits = self.length + 1 + P + 1 <= len(self.ids) and len(self.latents) < self.most
    for never in (EOI, NULL, *([] if fits else [BOI])):
      logits = logits.at[never].set(-jnp.inf)
    key = jax.random.fold_in(self.key, self.length)
    self.append(int(decoding.next_ids(logits[None], 0, key[None], config)[0]))

  def picture(self, sampler):
    """Denoises with the noisy image in its place, its positions filled for the while."""
    first, number = self.length, len(self.latents) + 1
    key = jax.random.fold_in(self.key, first)
    normal = lambda i: jax.random.normal(jax.random.fold_in(key, i), self.config.latent_shape)
    x, clean = normal(0), [self.config.clean_timestep] * len(self.latents)
    for p in range(P):
      self.append(0, number, p)
    # The caption: from the last bracket, or the beginning, to this image's bracket.
    free = self.ids.copy()
    for i in reversed(range(first - 1)):
      if free[i] == EOI:
        break
      free[i] = NULL
    times, plan = sampler.plan(self.config.num_timesteps)
    for i, t in enumerate(times):
      out = self.through([*self.latents, x], [*clean, t])[1]
      if sampler.is_guided:
        without = self.through([*self.latents, x], [*clean, t], free)[1]
        out = diffusion.guided(out, without, sampler.guidance_scale)
      update = jax.tree.map(lambda a, i=i: a[i], plan)
      fresh = normal(i + 1) if sampler.is_random else None
      x = diffusion.updated(x, out, update, fresh, sampler.clip_x0)
    self.length = first
    self.put(np.asarray(x))

  def all(self, row, text, sampler, stop_id=STOP):
    self.given(row)
    while True:
      if self.ids[self.length - 1] == BOI:
        if self.length + P + 1 > len(self.ids) or len(self.latents) >= self.most:
          return self
        self.picture(sampler)
      if self.length == len(self.ids):
        return self
      self.text(text)
      if self.ids[self.length - 1] == stop_id:
        return self


def check_row(mixed: Mixed, row, expected: Uncached, atol):
  num = expected.length
  assert mixed.length_B[row] == num and mixed.images_B[row] == len(expected.latents)
  np.testing.assert_array_equal(mixed.ids_BS[row], expected.ids)
  np.testing.assert_array_equal(mixed.image_BS[row], expected.image)
  np.testing.assert_array_equal(mixed.patch_BS[row], expected.patch)
  for i, latent in enumerate(expected.latents):
    np.testing.assert_allclose(mixed.latent_BIYXC[row, i], latent, atol=atol)


SAMPLERS = {
  'paper': ANCESTRAL,
  'causal': SamplerConfig(3, method='ddim', eta=0.5, guidance_scale=2.0),
  'shared': SamplerConfig(3, method='ddim'),
  'unet': SamplerConfig(2, guidance_scale=1.5),
  'flow': SamplerConfig(4, method='euler', guidance_scale=2.0),
}


@pytest.mark.parametrize('name', VARIANTS)
def test_rows_are_those_of_an_uncached_loop(name):
  config = dataclasses.replace(CONFIG, **VARIANTS[name])
  params = random_params(config)
  keys = [11, 12, 13, 14, 15]
  mixed = generated(config, params, PROMPTS, keys, sampler=SAMPLERS[name])
  drawn = 0
  checked = range(5) if name == 'paper' else (1, 3)
  for b in checked:
    given = sum(np.ndim(item) > 0 for item in PROMPTS[b])
    row = Uncached(config, params, jax.random.key(keys[b]), given + 2)
    row.all(PROMPTS[b], DRAWN, SAMPLERS[name])
    drawn += len(row.latents) - given
    # A few steps, of which the first multiplies float32's errors by a hundred; x_0 is cut at 5.
    check_row(mixed, b, row, atol=1e-3)
  assert drawn >= len(checked) // 2
