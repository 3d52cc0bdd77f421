"""Diffusion against the blackboard, and against what diffusers computed (tests/golden/diffusers).

Where diffusers differs: its timesteps are one lower; `set_alpha_to_one=False` ends at its timestep
0 (our 1) instead of at the clean signal; without `use_clipped_model_output` DDIM keeps the noise
estimate of an x_0 that it cut; a spacing is followed only if the timesteps are given as a list.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core import diffusion
from jaxmm.core.diffusion import SamplerConfig
from tests.references import diffusion as reference

T = 1000
DRAW = np.random.default_rng(0)
X, NOISE, FRESH = DRAW.standard_normal((3, 4, 3, 2))


@pytest.fixture(scope='module')
def golden():
  path = pathlib.Path(__file__).parents[1] / 'golden' / 'diffusers' / 'schedulers.npz'
  return dict(np.load(path))


@pytest.mark.parametrize('num', [1, 10, 1000])
def test_the_schedule_is_the_running_product_of_the_cut_betas(num):
  np.testing.assert_allclose(diffusion.cosine_alpha_bar(num), reference.alpha_bars(num), rtol=1e-9)


def test_the_schedule_and_the_noising_are_those_of_diffusers(golden):
  level = diffusion.cosine_alpha_bar(T)
  # diffusers multiplies a thousand float32 numbers.
  np.testing.assert_allclose(level[1:], golden['alpha_bar'], rtol=1e-4, atol=1e-7)
  out = diffusion.noised(golden['x'], golden['output'], golden['noised_at'] + 1, level)
  np.testing.assert_allclose(out, golden['noised'], atol=2e-5)
  stops = diffusion.spaced_timesteps(T, 20)
  np.testing.assert_array_equal(stops[:-1] - 1, golden['linspace'])


@pytest.mark.parametrize('num', [1, 2, 7, 250, 999, 1000])
def test_any_number_of_steps_goes_from_the_noisiest_to_the_clean_timestep(num):
  stops = diffusion.spaced_timesteps(T, num)
  assert len(stops) == num + 1 and stops[0] == T and stops[-1] == 0 and np.all(np.diff(stops) < 0)
  gaps = -np.diff(stops)[:-1]
  assert num < 3 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize('now,before', [(1000, 996), (500, 499), (500, 3), (2, 1)])
def test_the_posterior_is_bayes_rule(now, before):
  level = diffusion.cosine_alpha_bar(T)
  mean, variance = diffusion.posterior(
    jnp.float32(X), jnp.float32(NOISE), np.full(4, level[now]), level[before]
  )
  expected, spread = reference.posterior(X, NOISE, level[now], level[before])
  np.testing.assert_allclose(mean, expected, rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(variance, [spread] * 4, rtol=1e-5)
  update = diffusion.ancestral_update(level[now], level[before])
  np.testing.assert_allclose(update.keep_x0 * X + update.keep_state * NOISE, expected, rtol=1e-9)
  np.testing.assert_allclose(update.keep_noise**2, spread, rtol=1e-9)


def test_noise_and_clean_signal_say_each_other():
  level, t = diffusion.cosine_alpha_bar(T), jnp.array([0, 1, 300, 700])
  x = diffusion.noised(X, NOISE, t, level)
  np.testing.assert_array_equal(x[0], jnp.float32(X[0]))
  # The little noise at t = 1 keeps its digits: 1 - abar is 4e-5 there.
  spread = np.sqrt(1 - level[1])
  np.testing.assert_allclose(x[1] - np.sqrt(level[1]) * X[1], spread * NOISE[1], atol=4e-7)
  np.testing.assert_allclose(diffusion.x0_from_noise(x, NOISE, t, level), X, atol=1e-5)
  time = jnp.array([0.0, 0.25, 0.5, 1.0])
  x = diffusion.interpolated(X, NOISE, time)
  np.testing.assert_allclose(x - time[:, None, None] * diffusion.velocity(X, NOISE), X, atol=1e-6)


@pytest.mark.parametrize('variance', ['small', 'large'])
@pytest.mark.parametrize('clip', [None, 1.5])
def test_ancestral_steps_are_those_of_diffusers(golden, variance, clip):
  expected = golden[f'ancestral_{variance}_{"free" if clip is None else "clip"}']
  sampler = SamplerConfig(20, variance=variance, clip_x0=clip)
  times, plan = sampler.plan(T)
  assert times[0] == T and times[-1] == 1
  for i in range(20):
    update = jax.tree.map(lambda a, i=i: a[i], plan)
    out = diffusion.updated(golden['x'][i], golden['output'][i], update, golden['fresh'][i], clip)
    # abar_T is 2e-9 here and a float32 product there: unless x_0 is cut, its error is that of 1e4.
    rtol = 3e-3 if i == 0 and clip is None else 2e-4
    np.testing.assert_allclose(out, expected[i], rtol=rtol, atol=2e-5)


@pytest.mark.parametrize('eta', [0.0, 0.5])
def test_ddim_steps_are_those_of_diffusers(golden, eta):
  level = diffusion.cosine_alpha_bar(T)
  now = golden['leading'] + 1
  before = np.append(now[1:], 0)
  # 'leading' numbers every 50th timestep from 0, so its predecessor of 0 would be -50: clean.
  np.testing.assert_array_equal(now[:-1] - now[1:], 50)
  for last, name in ((0, 'one'), (1, 'first')):
    for i in range(20):
      to = last if i == 19 else before[i]
      if to == now[i]:  # set_alpha_to_one=False stays where it is
        continue
      update = diffusion.ddim_update(level[now[i]], level[to], eta)
      out = diffusion.updated(golden['x'][i], golden['output'][i], update, golden['fresh'][i], 1.5)
      np.testing.assert_allclose(out, golden[f'ddim_{eta}_{name}'][i], atol=5e-5)


def test_euler_steps_are_those_of_diffusers(golden):
  times, plan = SamplerConfig(20, method='euler', clip_x0=None).plan(20)
  np.testing.assert_allclose(golden['flow_sigmas'], [*times / 20, 0], atol=1e-6)
  for i in range(20):
    update = jax.tree.map(lambda a, i=i: a[i], plan)
    out = diffusion.updated(golden['x'][i], golden['output'][i], update)
    np.testing.assert_allclose(out, golden['flow'][i], atol=1e-6)


@pytest.mark.parametrize('eta', [0.0, 0.3, 1.0])
def test_ddim_steps_are_those_of_the_blackboard(eta):
  level = diffusion.cosine_alpha_bar(T)
  for now, before in ((1000, 900), (400, 399), (80, 1), (50, 0)):
    update = diffusion.ddim_update(level[now], level[before], eta)
    expected = reference.ddim(X, NOISE, level[now], level[before], eta, FRESH)
    x0 = update.from_state * X - update.from_output * NOISE
    out = update.keep_x0 * x0 + update.keep_state * X + update.keep_noise * FRESH
    np.testing.assert_allclose(out, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('method', ['ancestral', 'ddim', 'euler'])
def test_a_sampler_that_knows_the_answer_reaches_it(method):
  """With the exact noise (or velocity) of one point of data, every path ends there."""
  data, x = jnp.array([1.5, -0.5]), jnp.array([0.3, 2.0])
  times, plan = SamplerConfig(30, method=method, eta=0.5).plan(T)
  level = diffusion.cosine_alpha_bar(T)
  for i, t in enumerate(times):
    if method == 'euler':
      output = (x - data) / (t / T)
    else:
      output = (x - np.sqrt(level[t]) * data) / np.sqrt(1 - level[t])
    update = jax.tree.map(lambda a, i=i: a[i], plan)
    x = diffusion.updated(x, output, update, jnp.float32(FRESH[i % 4, 0]), clip_x0=5.0)
  np.testing.assert_allclose(x, data, atol=1e-5)


def test_ancestral_samples_of_a_gaussian_have_its_moments():
  """N(1, 0.5^2) has a known best denoiser; 100 steps bring its mean and spread back."""
  times, plan = SamplerConfig(100).plan(T)
  level = diffusion.cosine_alpha_bar(T)[times]

  def body(i, carry):
    x, key = carry
    key, now = jax.random.split(key)
    a = jnp.asarray(level, jnp.float32)[i]
    # E[noise | x] of x = sqrt(a) x_0 + sqrt(1 - a) noise.
    output = jnp.sqrt(1 - a) * (x - jnp.sqrt(a)) / (a * 0.25 + 1 - a)
    update = jax.tree.map(lambda b: jnp.asarray(b)[i], plan)
    return diffusion.updated(x, output, update, jax.random.normal(now, x.shape)), key

  start = jax.random.normal(jax.random.key(1), (20_000,))
  x, _ = jax.jit(lambda x: jax.lax.fori_loop(0, 100, body, (x, jax.random.key(0))))(start)
  np.testing.assert_allclose(x.mean(), 1.0, atol=0.02)  # 5 standard errors
  np.testing.assert_allclose(x.std(), 0.5, atol=0.02)  # 100 steps leave a bias of about 0.01


def test_guidance_of_one_is_the_conditional_output():
  np.testing.assert_allclose(diffusion.guided(X, NOISE, 1.0), X)
  np.testing.assert_allclose(diffusion.guided(X, NOISE, 3.0), 3 * X - 2 * NOISE)


def test_time_features_tell_timesteps_apart_and_begin_with_ones():
  features = np.asarray(diffusion.time_features(jnp.arange(1001), 32))
  np.testing.assert_array_equal(features[0], [1] * 16 + [0] * 16)
  np.testing.assert_allclose(features[7, 3], np.cos(7 * 10_000 ** (-3 / 16)), rtol=1e-5)
  apart = np.linalg.norm(features[1:] - features[:-1], axis=-1)
  assert apart.min() > 0.1 and len(np.unique(features.round(5), axis=0)) == 1001


def test_settings_that_cannot_be_are_named():
  with pytest.raises(ConfigError, match='steps is 1001, expected 1 to the 1000 timesteps'):
    SamplerConfig(1001).plan(T)
  with pytest.raises(ConfigError, match="method is 'ddpm', expected one of ancestral, ddim, euler"):
    SamplerConfig(method='ddpm')
  with pytest.raises(ConfigError, match='guidance_scale is 0.5'):
    SamplerConfig(guidance_scale=0.5)
  with pytest.raises(ConfigError, match='clip_x0 is 0, expected it above 0, or None'):
    SamplerConfig(clip_x0=0)
  with pytest.raises(ConfigError, match='eta is 2'):
    SamplerConfig(eta=2)
  with pytest.raises(ConfigError, match='num_timesteps is 0'):
    diffusion.cosine_alpha_bar(0)
  with pytest.raises(ConfigError, match='3 wide'):
    diffusion.time_features(jnp.zeros(1), 3)
