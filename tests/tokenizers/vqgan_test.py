"""The autoencoder: sizes, shapes, precision, and the errors of wrong images."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError, from_mapping
from jaxmm.tokenizers.quantizer import QuantizerConfig
from jaxmm.tokenizers.vqgan import VQ_8, VQ_16, Vqgan, VqganConfig, forward_macs

TINY = VqganConfig(
  image_channels=1,
  channels=8,
  multipliers=(1, 2),
  res_blocks=1,
  z_channels=8,
  norm_groups=4,
  quantizer=QuantizerConfig(codes=16, width=4),
)
LOW = dataclasses.replace(TINY, dtype='bfloat16')


@pytest.fixture(scope='module')
def image():
  rng = np.random.default_rng(0)
  return rng.uniform(-1, 1, (2, 8, 4, 1)).astype(np.float32)


@pytest.fixture(scope='module')
def variables():
  return drawn(TINY)


def drawn(config):
  """Weights, drawn here, because compiling the initialisation would take longer than the tests."""
  rng = np.random.default_rng(1)
  shapes = nn.unbox(parameters(config))
  return jax.tree.map(lambda s: rng.uniform(-0.3, 0.3, s.shape).astype(np.float32), shapes)


@pytest.fixture(scope='module')
def everything(variables, image):
  """(the output, ids, the image of these ids, encoded in float32, encoded in bfloat16)."""
  model = Vqgan(TINY)

  @jax.jit
  def f(image):
    out = model.apply(variables, image)
    ids = model.apply(variables, image, method='encode_ids')
    decoded = model.apply(variables, ids, (4, 2), method='decode_ids')
    low = Vqgan(LOW).apply(variables, image, method='encode')
    return out, ids, decoded, model.apply(variables, image, method='encode'), low

  return f(image)


@functools.cache
def parameters(config):
  image = jax.ShapeDtypeStruct((1, 16, 16, config.image_channels), jnp.float32)
  return jax.eval_shape(Vqgan(config).init, jax.random.key(0), image)


@pytest.mark.parametrize(
  'config, millions', [(VQ_16, 71.88), pytest.param(VQ_8, 70.11, marks=pytest.mark.slow)]
)
def test_published_number_of_parameters(config, millions):
  count = sum(leaf.size for leaf in jax.tree.leaves(parameters(config)))
  assert round(count / 1e6, 2) == millions


def test_published_work_of_vq_16():
  encode, decode = forward_macs(VQ_16, 256, 256)
  assert (round(encode / 1e9), round(decode / 1e9)) == (69, 126)
  assert forward_macs(VQ_16, 512, 256)[1] > 2 * decode  # attention grows faster than the area


@pytest.mark.parametrize('attention', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_work_is_counted_as_the_compiler_counts_it(attention):
  # One residual block a level and a map so large that what is not counted hardly matters.
  config = dataclasses.replace(
    TINY, channels=32, multipliers=(1, 2), norm_groups=8, attention=attention
  )
  variables = nn.unbox(parameters(config))
  image = jax.ShapeDtypeStruct((1, 32, 32, 1), jnp.float32)
  z = jax.ShapeDtypeStruct((1, 16, 16, config.quantizer.width), jnp.float32)
  for macs, method, x in zip(forward_macs(config, 32, 32), ('encode', 'decode'), (image, z)):
    apply = jax.jit(lambda v, x, method=method: Vqgan(config).apply(v, x, method=method))
    flops = apply.lower(variables, x).cost_analysis()['flops']
    # The compiler counts no products with the zeros of the padding (6 % of those of a 3x3 kernel
    # at 32 pixels, 12 % at 16), but norms and activations.
    assert 0.85 < flops / (2 * macs) < 1.1


def test_every_parameter_names_its_axes():
  for leaf in jax.tree.leaves(
    parameters(TINY), is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned)
  ):
    assert isinstance(leaf, nn.LogicallyPartitioned) and len(leaf.names) == leaf.value.ndim


def test_attention_stands_at_the_lowest_resolution_only():
  params = parameters(VQ_16)['params']
  assert [n for n in sorted(params['encoder']) if 'attn' in n] == [
    'level_4_attn_0',
    'level_4_attn_1',
  ]
  assert [n for n in sorted(params['decoder']) if 'attn' in n] == [
    f'level_0_attn_{j}' for j in range(3)
  ]
  bare = parameters(dataclasses.replace(TINY, attention=False))['params']
  assert not [n for part in bare.values() for n in part if 'attn' in n or n == 'mid_1']


def test_shapes_and_raster_order(everything, variables, image):
  out, ids, decoded, z, _ = everything
  assert out.recon_BYXC.shape == image.shape and out.z_BYXD.shape == (2, 4, 2, 4)
  assert out.features_BYXC.shape == (2, 4, 2, 8) and out.last_BYXC.shape == (2, 8, 4, 8)
  np.testing.assert_array_equal(ids, out.quantized.ids_BL)
  np.testing.assert_allclose(z, out.z_BYXD, atol=1e-6)
  np.testing.assert_allclose(decoded, out.recon_BYXC, atol=1e-5)
  codes_KD = np.asarray(variables['params']['quantizer']['codebook'])
  codes_KD = codes_KD / np.linalg.norm(codes_KD, axis=-1, keepdims=True)
  z_unit = z / np.linalg.norm(z, axis=-1, keepdims=True)
  for y, x in ((0, 1), (3, 0)):
    assert ids[1, 2 * y + x] == np.argmax(codes_KD @ z_unit[1, y, x])


def test_bfloat16_computes_low_and_keeps_parameters_and_errors_high(everything, variables, image):
  def loss(v):
    out = Vqgan(LOW).apply(v, image)
    assert out.recon_BYXC.dtype == jnp.bfloat16
    assert out.quantized.codebook_error_BL.dtype == jnp.float32
    return jnp.mean(out.recon_BYXC.astype(jnp.float32) ** 2)

  grads = jax.eval_shape(jax.grad(loss), variables)
  assert {leaf.dtype.name for leaf in jax.tree.leaves(grads)} == {'float32'}
  *_, exact, low = everything
  distance = np.linalg.norm(low.astype(jnp.float32) - exact) / np.linalg.norm(exact)
  assert 1e-4 < distance < 0.05  # eight bits of mantissa, through a dozen layers


def test_recomputation_changes_no_gradient(image):
  config = dataclasses.replace(TINY, multipliers=(1,), attention=False)

  def gradient(config):
    loss = lambda v: jnp.mean(Vqgan(config).apply(v, image, method='encode') ** 2)
    return jax.grad(loss)

  both = lambda v: (gradient(config)(v), gradient(dataclasses.replace(config, remat=True))(v))
  plain, again = jax.jit(both)(drawn(config))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-4), plain, again)


@pytest.mark.parametrize(
  'shape, message',
  [
    ((2, 16, 9, 1), r'16x9 .* multiples of 2'),
    ((2, 16, 8, 3), r'3 channels .* image_channels=1'),
    ((16, 8, 1), r'four axes'),
  ],
)
def test_wrong_images_are_refused(shape, message):
  with pytest.raises(ValueError, match=message):
    jax.eval_shape(Vqgan(TINY).init, jax.random.key(0), jnp.zeros(shape))


def test_ids_that_fill_no_grid_are_refused(variables):
  for ids, grid in ((jnp.zeros((1, 8), int), None), (jnp.zeros((1, 8), int), (3, 2))):
    with pytest.raises(ValueError, match='8 ids an image'):
      Vqgan(TINY).apply(variables, ids, grid, method='decode_ids')


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'norm_groups': 32, 'channels': 48}, 'vqgan.norm_groups is 32'),
    ({'multipliers': ()}, 'vqgan.multipliers'),
    ({'dtype': 'float16'}, 'dtype'),
    ({'res_blocks': 0}, 'vqgan.res_blocks is 0'),
    ({'quantizer': {'code': 8}}, 'codes'),
  ],
)
def test_settings_that_cannot_be_used(settings, message):
  with pytest.raises(ConfigError, match=message):
    from_mapping(VqganConfig, settings)
