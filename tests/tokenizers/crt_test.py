import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.tokenizers import crt
from jaxmm.tokenizers.crt import CausalRegularizer, RegularizerConfig
from jaxmm.tokenizers.quantizer import Quantizer, QuantizerConfig
from jaxmm.tokenizers.vqgan import VqganOutput

GRID, L, D = (2, 3), 6, 4


def latents(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture(scope='module')
def learned():
  config = RegularizerConfig(width=16, heads=2, hidden=16)
  net = CausalRegularizer(config)
  params = jax.jit(net.init, static_argnums=2)(jax.random.key(0), jnp.zeros((1, L, D)), GRID)
  # Larger weights than the initial ones, so that a leak would show.
  return config, net, jax.tree.map(lambda x: x * 3 + 0.1, nn.unbox(params))


@pytest.mark.parametrize('start', ['learned', 'skip'])
def test_no_prediction_sees_its_own_latent_or_a_later_one(start, learned):
  _, net, params = learned
  if start == 'skip':
    net = CausalRegularizer(RegularizerConfig(width=16, heads=2, hidden=16, start='skip'))
    params = {'params': {k: v for k, v in params['params'].items() if k != 'start'}}
  predict = lambda x: net.apply(params, x[None], GRID)[0]
  jacobian = jax.jit(jax.jacrev(predict))(latents(1, L, D))  # [predictions, D, latents, D]
  seen = np.abs(np.asarray(jacobian)).max((1, 3)) > 0
  first = L - len(seen)
  assert len(seen) == (L if start == 'learned' else L - 1)
  for row, sees in enumerate(seen):
    position = row + first
    assert sees[:position].all() and not sees[position:].any()


def test_the_weight_rises_from_zero_to_lambda():
  for ramp in ('linear', 'cosine'):
    config = RegularizerConfig(weight=4.0, ramp_steps=1000, ramp=ramp)
    at = [float(crt.weight_at(config, jnp.int32(s))) for s in (0, 250, 500, 1000, 5000)]
    assert at[0] == 0 and at[3] == at[4] == 4 and at[2] == pytest.approx(2)
    assert at[1] == pytest.approx(1 if ramp == 'linear' else 4 * (0.5 - 0.5 * np.cos(np.pi / 4)))
  assert crt.weight_at(RegularizerConfig(ramp_steps=0), jnp.int32(0)) == 4


def test_errors_by_their_definition():
  p, x = latents(0, 2, L, D), latents(1, 2, L, D)
  square = ((p - x) ** 2).astype(np.float64)
  want = {
    'mean_square': square.mean((1, 2)),
    'squared_norm': square.sum(-1).mean(1),
    'norm': np.sqrt(square.sum(-1)).mean(1),
  }
  for loss, value in want.items():
    config = RegularizerConfig(loss=loss)
    np.testing.assert_allclose(crt.causal_error(config, p, x), value, rtol=1e-5)
    grad = jax.grad(lambda p, c=config: crt.causal_error(c, p, x).sum())(x)  # exact hits
    assert np.isfinite(grad).all()
  # With start='skip' predictions are those of positions 1 on.
  shorter = crt.causal_error(RegularizerConfig(), p[:, 1:], x)
  np.testing.assert_allclose(shorter, square[:, 1:].mean((1, 2)), rtol=1e-5)


def test_the_gradient_reaches_the_latents_and_the_target_only_if_wanted(learned):
  _, net, params = learned

  @jax.jit
  def gradients(x):
    def errors(x):
      prediction = net.apply(params, x, GRID)
      configs = [RegularizerConfig(stop_grad_target=stop) for stop in (False, True)]
      return jnp.stack([crt.causal_error(c, prediction, x).sum() for c in configs])

    return jax.jacrev(errors)(x)

  for stop, grad in zip((False, True), gradients(latents(1, 1, L, D))[:, 0]):
    assert np.abs(grad[:-1]).min() > 0  # every latent but the last is part of some past
    assert bool(np.any(grad[-1])) is not stop  # the last one is only ever a target


def test_half_precision_inside_leaves_the_loss_in_float32(learned):
  config, _, params = learned
  net = CausalRegularizer(dataclasses.replace(config, dtype='bfloat16'))
  program = jax.make_jaxpr(lambda x: net.apply(params, x, GRID))(latents(1, 1, L, D))
  assert program.out_avals[0].dtype == jnp.float32 and 'bf16[' in str(program)


def test_diagnostics_tell_constant_latents_from_varied_ones():
  config = RegularizerConfig()
  x = latents(0, 2, L, D)
  x[1] = x[1, :1]  # constant along the raster order
  out = crt.diagnostics(config, jnp.asarray(x))
  copied = ((x[0, 1:] - x[0, :-1]) ** 2).mean()
  np.testing.assert_allclose(out['copy_left'], [copied, 0], rtol=1e-5)
  np.testing.assert_allclose(out['latent_std'], [x[0].std(0).mean(), 0], rtol=1e-5, atol=1e-6)


def test_each_latent_is_the_tensor_it_names():
  quantizer = Quantizer(QuantizerConfig(codes=16, width=D))
  z_BYXD, features_BYXC = latents(0, 2, *GRID, D), latents(1, 2, *GRID, 3)
  z_BLD = z_BYXD.reshape(2, L, D)
  params = quantizer.init(jax.random.key(0), z_BLD)
  codes = quantizer.bind(params).codes()

  def chosen(latent, z_BLD):
    quantized = quantizer.apply(params, z_BLD)
    out = VqganOutput(None, quantized, z_BLD.reshape(z_BYXD.shape), features_BYXC, None)
    return crt.latent_of(RegularizerConfig(latent=latent), out)

  unit = z_BLD / np.linalg.norm(z_BLD, axis=-1, keepdims=True)
  nearest = codes[quantizer.apply(params, z_BLD).ids_BL]
  for latent, expected in (
    ('normalized', unit),
    ('projected', z_BLD),
    ('features', features_BYXC.reshape(2, L, 3)),
    ('quantized', nearest),
  ):
    np.testing.assert_allclose(chosen(latent, z_BLD), expected, atol=1e-6)
  # What pulls at the codes reaches the encoder as if it pulled at the latents.
  pull = latents(2, 2, L, D)
  pulled = lambda z_BLD, latent: jnp.vdot(pull, chosen(latent, z_BLD))
  grads = [jax.grad(pulled)(z_BLD, latent) for latent in ('quantized', 'normalized')]
  np.testing.assert_allclose(*grads, atol=1e-6)
  assert np.abs(grads[0]).max() > 0.1


def test_unusable_settings_are_named(learned):
  for settings, message in (
    ({'ramp': 'exp'}, 'regularizer.ramp is'),
    ({'latent': 'codes'}, 'regularizer.latent is'),
    ({'width': 30, 'heads': 2}, 'multiple of 4'),
    ({'weight': -1.0}, 'regularizer.weight'),
  ):
    with pytest.raises(ConfigError, match=message):
      RegularizerConfig(**settings)
  _, net, params = learned
  with pytest.raises(ValueError, match='does not hold 6'):
    net.apply(params, latents(0, 1, 6, D), (2, 2))
