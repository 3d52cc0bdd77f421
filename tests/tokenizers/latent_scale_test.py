"""Moments merge exactly whatever the cut, and the scale they give leaves unit variance."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.tokenizers.latent_scale import LatentScale, Moments, image_moments, latent_scale


def latents(number=7):
  """Channels far from zero compared with their spread, where squares of sums would cancel."""
  rng = np.random.default_rng(0)
  spread, centre = np.array([0.01, 1.0, 3.0]), np.array([50.0, -2.0, 0.5])
  z = rng.standard_normal((number, 4, 2, 3)) * spread + centre
  return (z + 0.3 * rng.standard_normal((number, 1, 1, 3)) * spread).astype(np.float32)


def moments_of(z_BYXD):
  found = image_moments(jnp.asarray(z_BYXD))
  return Moments.of(8, found['mean'], found['square'])


@pytest.mark.parametrize('cut', [1, 3, 6])
def test_moments_of_parts_are_those_of_the_whole(cut):
  z = latents()
  merged = moments_of(z[:cut]).merged(moments_of(z[cut:]))
  exact = z.astype(np.float64).reshape(-1, 3)
  assert merged.num_images == 7
  np.testing.assert_allclose(merged.mean_D, exact.mean(0), rtol=1e-6)
  np.testing.assert_allclose(merged.std_D, exact.std(0), rtol=2e-4)
  assert merged.mean == pytest.approx(exact.mean(), rel=1e-6)
  assert merged.std == pytest.approx(exact.std(), rel=1e-6)


def test_no_images_add_nothing():
  none = Moments.of(8, np.zeros((0, 3)), np.zeros((0, 3)))
  some = moments_of(latents())
  for both in (none.merged(some), some.merged(none)):
    assert both.num_images == 7
    np.testing.assert_array_equal(both.mean_D, some.mean_D)
    np.testing.assert_array_equal(both.square_D, some.square_D)
  assert none.merged(none).num_images == 0
  with pytest.raises(ConfigError, match='no image could be read'):
    latent_scale(none)


def test_one_number_for_all_channels_leaves_unit_variance():
  z = latents()
  scale = latent_scale(moments_of(z))
  assert len(scale.scale) == 1 and scale.shift == (0.0,)
  scaled = np.asarray(scale.scaled(z), np.float64)
  assert scaled.std() == pytest.approx(1, rel=1e-5)
  assert scaled.mean() == pytest.approx(z.mean() / z.std(), rel=1e-4)
  np.testing.assert_allclose(scale.unscaled(scale.scaled(z)), z, rtol=1e-6)


def test_every_channel_by_its_own_numbers():
  z = latents()
  scale = latent_scale(moments_of(z), per_channel=True, center=True)
  scaled = np.asarray(scale.scaled(z), np.float64)
  np.testing.assert_allclose(scaled.mean((0, 1, 2)), 0, atol=1e-3)
  np.testing.assert_allclose(scaled.std((0, 1, 2)), 1, rtol=1e-3)
  np.testing.assert_allclose(scale.unscaled(scale.scaled(z)), z, rtol=1e-6, atol=1e-6)
  assert latent_scale(moments_of(z), per_channel=True).shift == (0.0, 0.0, 0.0)


def test_latents_without_variance_are_refused():
  z = latents()
  z[..., 1] = 4
  with pytest.raises(ConfigError, match='1 of 3 latent channels have no variance over 7 images'):
    latent_scale(moments_of(z), per_channel=True)
  assert latent_scale(moments_of(z)).scale[0] > 0
  with pytest.raises(ConfigError, match='no variance'):
    latent_scale(moments_of(np.zeros((2, 4, 2, 3), np.float32)))


@pytest.mark.parametrize('scale, shift', [((0.0,), (0.0,)), ((np.inf,), (0.0,)), ((), (0.0,))])
def test_numbers_that_scale_nothing_are_refused(scale, shift):
  with pytest.raises(ConfigError, match='expected finite numbers'):
    LatentScale(scale, shift)
