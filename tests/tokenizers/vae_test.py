"""The Gaussian autoencoder: its size, its divergence and draws, and the errors of wrong arrays."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from jaxmm.config import ConfigError, from_mapping
from jaxmm.task import example_keys
from jaxmm.tokenizers.vae import Gaussian, Vae, VaeConfig, forward_macs

TINY = VaeConfig(
  image_channels=1, channels=8, multipliers=(1, 2), res_blocks=1, z_channels=8, norm_groups=4,
  latent_dim=3,
)  # fmt: skip


def parameters(config, side=16):
  image = jax.ShapeDtypeStruct((1, side, side, config.image_channels), jnp.float32)
  return nn.unbox(jax.eval_shape(Vae(config).init, jax.random.key(0), image))


@pytest.fixture(scope='module')
def variables():
  rng = np.random.default_rng(1)
  draw = lambda s: rng.uniform(-0.3, 0.3, s.shape).astype(np.float32)
  return jax.tree.map(draw, parameters(TINY))


@pytest.fixture(scope='module')
def image():
  return np.random.default_rng(0).uniform(-1, 1, (2, 8, 4, 1)).astype(np.float32)


def test_the_papers_size_and_latents():
  count = sum(leaf.size for leaf in jax.tree.leaves(parameters(VaeConfig())))
  assert round(count / 1e6) == 86
  assert VaeConfig().grid(256, 256) == (32, 32) and VaeConfig().latent_dim == 8


def test_divergence_is_that_of_the_integral():
  def integral(mean, log_var):
    # By quadrature over the logarithm of the ratio of the two densities.
    std = np.exp(log_var / 2)
    density = lambda x: np.exp(-0.5 * ((x - mean) / std) ** 2) / (std * np.sqrt(2 * np.pi))
    ratio = lambda x: -0.5 * ((x - mean) / std) ** 2 - log_var / 2 + 0.5 * x**2
    return scipy.integrate.quad(
      lambda x: density(x) * ratio(x), mean - 12 * std, mean + 12 * std, limit=200
    )[0]

  rng = np.random.default_rng(0)
  mean, log_var = rng.normal(0, 2, (2, 2, 1, 3)), rng.normal(-1, 1, (2, 2, 1, 3))
  found = Gaussian(jnp.asarray(mean), jnp.asarray(log_var)).kl()
  want = [
    sum(integral(m, v) for m, v in zip(mean[b].ravel(), log_var[b].ravel())) for b in range(2)
  ]
  np.testing.assert_allclose(found, want, rtol=1e-5)
  zeros = jnp.zeros((1, 2, 2, 3))
  assert Gaussian(zeros, zeros).kl().tolist() == [0.0]


def test_draws_have_the_gaussians_moments_and_follow_the_key():
  mean_BYXD = jnp.broadcast_to(jnp.array([-1.0, 3.0]), (1, 64, 64, 2))
  log_var = jnp.broadcast_to(jnp.log(jnp.array([4.0, 0.25])), mean_BYXD.shape)
  keys = example_keys(jax.random.key(0), jnp.array([5]))
  drawn = np.asarray(Gaussian(mean_BYXD, log_var).sample(keys))
  np.testing.assert_allclose(drawn.mean((0, 1, 2)), [-1, 3], atol=0.15)
  np.testing.assert_allclose(drawn.std((0, 1, 2)), [2, 0.5], rtol=0.05)
  # The draw of example 5 is the same in another row of another batch.
  wide = jax.tree.map(lambda x: jnp.repeat(x, 3, 0), Gaussian(mean_BYXD, log_var))
  again = wide.sample(example_keys(jax.random.key(0), jnp.array([2, 9, 5])))
  np.testing.assert_array_equal(again[2], drawn[0])
  assert np.abs(np.asarray(again[0]) - drawn[0]).max() > 0.1


def test_without_keys_the_mean_is_decoded(variables, image):
  model = Vae(TINY)

  @jax.jit
  def both(image, keys):
    out, sampled = model.apply(variables, image), model.apply(variables, image, keys)
    mean = model.apply(variables, image, method='encode')
    return out, sampled, mean, model.apply(variables, mean, method='decode')

  out, sampled, mean, decoded = both(image, jax.random.split(jax.random.key(0), 2))
  assert mean.shape == (2, 4, 2, 3) and mean.dtype == jnp.float32
  np.testing.assert_allclose(out.z_BYXD, mean, atol=1e-6)
  np.testing.assert_allclose(out.recon_BYXC, decoded, atol=1e-5)
  assert out.recon_BYXC.shape == image.shape and out.last_BYXC.shape == (2, 8, 4, 8)
  np.testing.assert_allclose(sampled.posterior.mean_BYXD, mean, atol=1e-6)
  noise = (sampled.z_BYXD - mean) / sampled.posterior.std_BYXD
  keys = jax.random.split(jax.random.key(0), 2)
  want = jax.vmap(lambda key: jax.random.normal(key, (4, 2, 3)))(keys)
  np.testing.assert_allclose(noise, want, rtol=1e-3, atol=1e-4)


def test_log_variances_stay_in_their_range(variables, image):
  far = jax.tree.map(np.array, variables)
  far['params']['quant_conv']['bias'] = np.array([500, 0, 0, 99, -99, 0], np.float32)
  gaussian = Vae(TINY).apply(far, image, method='posterior')
  assert np.all(gaussian.log_var_BYXD[..., 0] == 20) and np.all(
    gaussian.log_var_BYXD[..., 1] == -30
  )
  assert np.all(gaussian.mean_BYXD[..., 0] > 400)  # means are not clipped
  assert np.isfinite(gaussian.kl()).all()


def test_low_precision_keeps_the_gaussian_high(variables, image):
  low = Vae(dataclasses.replace(TINY, dtype='bfloat16'))
  out = jax.eval_shape(low.apply, variables, image)
  assert out.recon_BYXC.dtype == jnp.bfloat16 and out.posterior.mean_BYXD.dtype == jnp.float32


def test_attention_in_the_middle_alone():
  inside = parameters(TINY)['params']
  for half in ('encoder', 'decoder'):
    assert [name for name in inside[half] if 'attn' in name or name == 'mid_1'] == ['mid_1']
  more = parameters(dataclasses.replace(TINY, level_attention=True))['params']
  assert {'level_1_attn_0', 'mid_1'} <= set(more['encoder'])


def test_work_is_counted_as_the_compiler_counts_it():
  config = dataclasses.replace(TINY, channels=32, norm_groups=8)
  variables, shape = parameters(config, 32), jax.ShapeDtypeStruct
  inputs = (shape((1, 32, 32, 1), jnp.float32), shape((1, 16, 16, 3), jnp.float32))
  for macs, method, x in zip(forward_macs(config, 32, 32), ('encode', 'decode'), inputs):
    apply = jax.jit(lambda v, x, method=method: Vae(config).apply(v, x, method=method))
    assert 0.85 < apply.lower(variables, x).cost_analysis()['flops'] / (2 * macs) < 1.1


@pytest.mark.parametrize(
  'shape, message',
  [
    ((2, 16, 9, 1), r'16x9 .* multiples of 2'),
    ((2, 16, 8, 3), r'3 channels .* vae.image_channels'),
    ((16, 8, 1), r'four axes'),
  ],
)
def test_wrong_images_are_refused(shape, message):
  with pytest.raises(ConfigError, match=message):
    jax.eval_shape(Vae(TINY).init, jax.random.key(0), jnp.zeros(shape))


def test_wrong_latents_are_refused(variables):
  for shape in ((4, 2, 3), (1, 4, 2, 8)):
    with pytest.raises(ConfigError, match=r'expected \[B, rows, columns, 3\]'):
      Vae(TINY).apply(variables, jnp.zeros(shape), method='decode')


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'latent_dim': 0}, 'vae.latent_dim is 0'),
    ({'norm_groups': 48}, 'vae.norm_groups is 48'),
    ({'latent_dims': 4}, 'did you mean latent_dim'),
  ],
)
def test_settings_that_cannot_be_used(settings, message):
  with pytest.raises(ConfigError, match=message):
    from_mapping(VaeConfig, settings)
