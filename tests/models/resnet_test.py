import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.models import resnet

SMALL = {
  'num_classes': 5, 'image_size': 8, 'channels': (4, 8), 'norm_groups': 2, 'stem_stride': 2,
  'dropout': 0.3,
}  # fmt: skip
TASK = resnet.make_task(SMALL)
B = 6


@pytest.fixture(scope='module')
def batch():
  rng = np.random.default_rng(0)
  return {
    'image_BYXC': jnp.asarray(rng.integers(0, 256, (B, 8, 8, 3)), jnp.uint8),
    'label_B': jnp.asarray(rng.integers(0, 5, B), jnp.int32),
    'index_B': jnp.arange(20, 20 + B, dtype=jnp.uint32),
    'valid_B': jnp.ones(B).at[2].set(0),
  }


@pytest.fixture(scope='module')
def params(batch):
  return nn.unbox(jax.jit(TASK.init)(jax.random.key(0), batch))['params']


@pytest.fixture(scope='module')
def grads_of():
  def loss(params, batch, images):
    out, sums, _ = TASK.loss({'params': params}, batch, jax.random.key(7), 0, {'images': images})
    return out, sums

  return jax.jit(jax.value_and_grad(loss, has_aux=True))


@jax.jit
def classified(params, batch):
  return TASK.classification({'params': params}, batch, jax.random.key(0))


def test_microbatches_add_up_to_the_batch_whatever_the_dropout(params, batch, grads_of):
  images = TASK.counts(batch)['images']
  assert images == B - 1
  (loss, sums), grads = grads_of(params, batch, images)
  parts = [
    grads_of(params, {k: v[rows] for k, v in batch.items()}, images)
    for rows in (slice(0, 3), slice(3, 6))
  ]
  np.testing.assert_allclose(sum(p[0][0] for p in parts), loss, rtol=1e-5)
  added = jax.tree.map(lambda *g: sum(g), *(p[1] for p in parts))
  for a, b in zip(jax.tree.leaves(added), jax.tree.leaves(grads)):
    np.testing.assert_allclose(a, b, atol=1e-6)
  for name, (total, count) in sums.items():
    assert count == B - 1 and sum(p[0][1][name][0] for p in parts) == pytest.approx(total), name


def test_accuracy_counts_the_valid_whose_largest_logit_is_right(params, batch):
  network = jax.jit(resnet.ResNet(TASK.config).apply)
  logits_BV = network({'params': params}, TASK.pixels(batch))
  sums = classified(params, batch)
  log_p = np.log(np.exp(logits_BV) / np.exp(logits_BV).sum(1, keepdims=True))
  label_B, valid = np.asarray(batch['label_B']), np.asarray(batch['valid_B']) > 0
  assert sums['accuracy'] == ((np.argmax(logits_BV, 1) == label_B)[valid].sum(), B - 1)
  np.testing.assert_allclose(
    sums['cross_entropy'][0], -log_p[np.arange(B), label_B][valid].sum(), rtol=1e-5
  )
  beyond = batch | {'label_B': batch['label_B'].at[0].set(5)}
  assert np.isnan(classified(params, beyond)['cross_entropy'][0])


def test_it_learns_pictures_by_heart(params, batch):
  task = resnet.make_task(SMALL | {'dropout': 0.0})
  counts = task.counts(batch)

  @jax.jit
  def step(params):
    loss = lambda p: task.loss({'params': p}, batch, jax.random.key(0), 0, counts)[0]
    return jax.tree.map(lambda p, g: p - 0.3 * g, params, jax.grad(loss)(params))

  for _ in range(80):
    params = step(params)
  assert classified(params, batch)['accuracy'][0] == B - 1


def test_flops_are_those_of_the_kernels_at_every_position():
  task = resnet.make_task({'channels': (8, 16), 'res_blocks': 2, 'stem_stride': 2})
  images = {'image_BYXC': jnp.zeros((1, 32, 32, 3), jnp.uint8)}
  shapes = nn.unbox(jax.eval_shape(task.init, jax.random.key(0), images))['params']
  side = {'stem': 16, 'stage_0': 16, 'down_1': 8, 'stage_1': 8, 'head': 1}
  products = 0
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes):
    if path[-1].key == 'kernel':
      name = next(n for n in side if path[0].key.startswith(n))
      products += side[name] ** 2 * leaf.size
  assert task.step_flops(3) == 3 * 6 * products


@pytest.mark.parametrize(
  'settings, message',
  [
    ({'channels': (4, 7)}, r'model.channels is \(4, 7\), expected multiples of model.norm_groups'),
    ({'channels': ()}, 'model.channels is empty'),
    ({'image_size': 10}, 'model.image_size is 10, expected a multiple of 4'),
    ({'num_classes': 1}, 'model.num_classes is 1, expected at least 2'),
    ({'dropout': 1.0}, 'model.dropout is 1.0'),
  ],
)
def test_sizes_that_cannot_be(settings, message):
  with pytest.raises(ConfigError, match=message):
    resnet.make_task(SMALL | settings)


def test_pictures_of_another_size_are_refused():
  with pytest.raises(ConfigError, match=r'images have shape \(9, 8, 3\).*expects \(8, 8, 3\)'):
    TASK.pixels({'image_BYXC': jnp.zeros((1, 9, 8, 3), jnp.uint8)})
