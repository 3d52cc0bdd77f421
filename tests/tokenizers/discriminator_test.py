import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm.config import ConfigError
from jaxmm.tokenizers import discriminator as disc
from jaxmm.tokenizers.discriminator import Discriminator, DiscriminatorConfig


def images(seed, *shape):
  return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conv(x, layer, stride):
  """4x4 convolution with padding 1 by sums over the kernel."""
  x = np.pad(x.astype(np.float64), ((0, 0), (1, 1), (1, 1), (0, 0)))
  kernel = np.asarray(layer['kernel'], np.float64)
  rows, columns = ((s - 4) // stride + 1 for s in x.shape[1:3])
  out = 0
  for a in range(4):
    for b in range(4):
      met = x[:, a : a + stride * rows : stride, b : b + stride * columns : stride]
      out = out + met[:, :rows, :columns] @ kernel[a, b]
  return out + np.asarray(layer.get('bias', 0), np.float64)


def reference(params, image, valid):
  """Two layers (stride 2, then batch norm over valid rows and stride 1) and the logits."""
  leaky = lambda x: np.where(x > 0, x, 0.2 * x)
  x = leaky(conv(image, params['conv_0'], 2))
  x = conv(x, params['conv_1'], 1)
  seen = x[valid > 0].reshape(-1, x.shape[-1])
  norm = params['norm_1']
  x = (x - seen.mean(0)) / np.sqrt(seen.var(0) + 1e-5) * norm['scale'] + norm['bias']
  return conv(leaky(x), params['conv_out'], 1)[..., 0], seen


@pytest.fixture(scope='module')
def small():
  config = DiscriminatorConfig(channels=4, layers=1)
  net = Discriminator(config)
  image, valid = images(0, 8, 12, 10, 3), np.array([1, 1, 0, 1, 1, 1, 0, 1], np.float32)
  variables = nn.unbox(jax.jit(net.init)(jax.random.key(0), image, valid))
  params = jax.tree.map(lambda x: x * 5 if x.ndim == 4 else x + 0.1, variables['params'])
  f = jax.jit(lambda image, valid: net.apply({'params': params}, image, valid))
  return config, net, params, f, image, valid


def test_logits_equal_the_reference_with_statistics_of_valid_rows(small):
  config, _, params, f, image, valid = small
  logits, _ = f(image, valid)
  want, _ = reference(params, image, valid)
  np.testing.assert_allclose(logits, want, atol=1e-5)
  assert logits.shape[1:] == config.patches(12, 10)
  other = image.copy()
  other[valid == 0] = np.nan  # a row that could not be read
  np.testing.assert_array_equal(f(other, valid)[0][valid > 0], logits[valid > 0])


def test_batch_statistics_are_those_of_the_global_batch_on_eight_devices(small):
  *_, f, image, valid = small
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  spread = jax.device_put((image, valid), NamedSharding(mesh, P('data')))
  for a, b in zip(jax.tree.leaves(f(*spread)), jax.tree.leaves(f(image, valid))):
    np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-5)


def test_running_statistics_come_from_sums_over_everything_judged(small):
  config, net, params, f, image, valid = small
  halves = [f(image[i::2], valid[i::2])[1] for i in (0, 1)]
  assert halves[0]['norm_1']['count'] + halves[1]['norm_1']['count'] == 6 * np.prod(
    np.array(config.patches(12, 10)) + 1
  )
  _, seen = reference(params, image, valid)
  running = disc.initial_running(config)
  sums = f(image, valid)[1]
  running = disc.update_running(running, sums)
  np.testing.assert_allclose(running['norm_1']['mean_C'], 0.1 * seen.mean(0), atol=1e-6)
  want = 0.9 + 0.1 * seen.var(0, ddof=1)
  np.testing.assert_allclose(running['norm_1']['var_C'], want, rtol=1e-5)
  nothing = jax.tree.map(jnp.zeros_like, sums)
  jax.tree.map(np.testing.assert_array_equal, disc.update_running(running, nothing), running)
  # Normalised by running statistics, a row no longer depends on the others.
  judge = jax.jit(lambda image, valid: net.apply({'params': params}, image, valid, running)[0])
  alone, together = judge(image[:4], valid[:4]), judge(image, valid)
  np.testing.assert_allclose(alone, together[:4], atol=1e-5)


def test_group_norm_does_not_mix_rows_and_none_normalises_nothing():
  for norm in ('group', 'none'):
    config = DiscriminatorConfig(channels=4, layers=1, norm=norm)
    net, image = Discriminator(config), images(0, 4, 8, 8, 3)
    params = nn.unbox(jax.jit(net.init)(jax.random.key(0), image, jnp.ones(4)))
    f = jax.jit(net.apply)
    logits, sums = f(params, image, jnp.ones(4))
    np.testing.assert_allclose(f(params, image[:2], jnp.ones(2))[0], logits[:2], atol=1e-6)
    assert sums == {} and disc.initial_running(config) == {}


def test_the_default_is_the_published_network():
  net = Discriminator(DiscriminatorConfig())
  shapes = jax.eval_shape(
    lambda: nn.unbox(net.init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)), jnp.ones(1)))
  )['params']
  kernels = [shapes[f'conv_{i}']['kernel'].shape for i in (0, 1, 2, 3, 'out')]
  widths = [3, 64, 128, 256, 512, 1]
  assert kernels == [(4, 4, a, b) for a, b in zip(widths, widths[1:])]
  assert [('bias' in shapes[f'conv_{i}']) for i in (0, 1, 2, 3, 'out')] == [1, 0, 0, 0, 1]
  assert sum(x.size for x in jax.tree.leaves(shapes)) == 2_765_633
  assert DiscriminatorConfig().patches(256, 256) == (30, 30)


def test_losses_by_their_definition():
  real, fake = images(0, 3, 2, 2), images(1, 3, 2, 2)
  weight = np.array([1, 0, 1], np.float32)
  mean = lambda x: x.mean((1, 2))[[0, 2]].sum()
  log_sigmoid = lambda x: -np.log1p(np.exp(-x))
  want = {
    'hinge': (0.5 * (np.maximum(1 - real, 0) + np.maximum(1 + fake, 0)), -fake),
    'non_saturating': (-0.5 * (log_sigmoid(real) + log_sigmoid(-fake)), -log_sigmoid(fake)),
  }
  for kind, (critic, maker) in want.items():
    total, count = disc.discriminator_loss(kind, real, fake, weight)
    np.testing.assert_allclose([total, count], [mean(critic), 2], rtol=1e-5)
    total, count = disc.generator_loss(kind, fake, weight)
    np.testing.assert_allclose([total, count], [mean(maker), 2], rtol=1e-5)
    # What helps the generator hurts the discriminator: opposite slopes in the fake logits.
    up = jax.grad(lambda x, kind=kind: disc.generator_loss(kind, x, weight)[0])(fake)
    down = jax.grad(lambda x, kind=kind: disc.discriminator_loss(kind, real, x, weight)[0])(fake)
    assert (up[0] < 0).all() and (down[0] >= 0).all() and down[0].any()


def test_adaptive_weight_is_clipped_and_fixed():
  a, b = images(0, 3, 3), images(1, 3, 3)
  want = np.linalg.norm(a) / (np.linalg.norm(b) + 1e-4)
  np.testing.assert_allclose(disc.adaptive_weight(a, b), want, rtol=1e-6)
  assert disc.adaptive_weight(a * 1e6, b) == 1e4
  assert not jax.grad(lambda a: disc.adaptive_weight(a, b))(a).any()


def test_unusable_settings_are_named():
  with pytest.raises(ConfigError, match='discriminator.norm'):
    DiscriminatorConfig(norm='layer')
  with pytest.raises(ConfigError, match='no patch is left'):
    DiscriminatorConfig().patches(16, 16)
  with pytest.raises(ConfigError, match='adversarial.loss'):
    disc.generator_loss('wasserstein', jnp.zeros((1, 1, 1)), jnp.ones(1))
