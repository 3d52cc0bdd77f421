"""The loss of the Gaussian autoencoder: its terms, who they move, and that no batch cut shows."""

import copy
import dataclasses
import functools
import types

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm.config import ConfigError
from jaxmm.task import TrainState, example_keys
from jaxmm.tokenizers.vae_task import VaeTask, identity_distance, make_task

MODEL = {
  'image_size': 8,
  'perceptual': {'name': 'none'},
  'kl_weight': 1e-3,
  'vae': {
    'channels': 4, 'multipliers': [1, 1], 'res_blocks': 1, 'attention': False, 'z_channels': 4,
    'norm_groups': 2, 'latent_dim': 3,
  },
  'adversarial': {
    'start': 20, 'discriminator': {'channels': 4, 'layers': 1, 'norm': 'group'},
  },
}  # fmt: skip
# Compiling is all that these tests cost; the programs run for microseconds.
QUICK = {'xla_llvm_disable_expensive_passes': True, 'xla_backend_optimization_level': 0}
KEY = jax.random.key(5)


def changed(**settings):
  return copy.deepcopy(MODEL) | settings


def pictures(rows=8, side=8):
  """A half plane of another colour each; two rows could not be read."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:side, :side]
  images = []
  for _ in range(rows):
    edge, angle, colour = rng.uniform(2, 6), rng.uniform(0, 1), rng.integers(0, 256, (2, 3))
    images.append(np.where((angle * y + (1 - angle) * x < edge)[..., None], *colour))
  valid = np.ones(rows, np.float32)
  valid[[1, 6]] = 0
  return {
    'image_BYXC': np.stack(images).astype(np.uint8),
    'index_B': np.arange(rows, dtype=np.uint32) + 100,
    'valid_B': valid,
    'label_B': np.zeros(rows, np.int32),
  }


@pytest.fixture(scope='module')
def case():
  task, batch = make_task(MODEL), pictures()
  variables = nn.unbox(jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0), batch))
  params = variables['params']

  @functools.partial(jax.jit, compiler_options=QUICK)
  def gradient(params, rows, step, counts):
    def objective(params):
      scalar, sums, stats = task.loss({'params': params}, rows, KEY, step, counts)
      return scalar, (sums, stats)

    return jax.value_and_grad(objective, has_aux=True)(params)

  counts = task.counts(batch)
  whole = gradient(params, batch, jnp.int32(25), counts)
  return types.SimpleNamespace(
    task=task, batch=batch, params=params, gradient=gradient, counts=counts, whole=whole
  )


def assert_close(a, b, tolerance=2e-5):
  """Leaf by leaf, relative to the leaf's largest entry."""
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    scale = max(float(np.abs(np.asarray(y)).max(initial=0)), 1e-3)
    error = float(np.abs(np.asarray(x) - np.asarray(y)).max(initial=0))
    assert error <= tolerance * scale, f'{jax.tree_util.keystr(path)}: {error} of {scale}'


def test_terms_are_those_of_a_slow_reference(case):
  scalar, (sums, _) = case.whole[0]
  image = case.batch['image_BYXC'] / np.float32(127.5) - 1
  keys = example_keys(KEY, jnp.asarray(case.batch['index_B']))
  out = jax.jit(case.task.model.apply)({'params': case.params['vae']}, image, keys)
  recon = np.asarray(out.recon_BYXC, np.float64)
  mean, log_var = (
    np.asarray(x, np.float64) for x in (out.posterior.mean_BYXD, out.posterior.log_var_BYXD)
  )
  l1, kl, seen = 0.0, 0.0, 0
  for b in np.flatnonzero(case.batch['valid_B']):
    l1 += np.abs(recon[b] - image[b]).mean()
    for m, v in zip(mean[b].ravel(), log_var[b].ravel()):
      kl += (m * m + np.exp(v) - 1 - v) / 2
    seen += 1
  assert (sums['reconstruction'][1], sums['kl'][1]) == (seen, seen) == (6, 6)
  assert float(sums['reconstruction'][0]) == pytest.approx(l1, rel=1e-4)
  assert float(sums['kl'][0]) == pytest.approx(kl, rel=1e-4)
  judged = sum(float(sums[name][0]) for name in ('adversarial', 'discriminator')) / seen
  want = (l1 + 1e-3 * kl) / seen + 0.5 * judged
  assert float(scalar) == pytest.approx(want, rel=1e-4)


def test_ragged_microbatches_give_the_full_batch(case):
  parts = []
  for rows in (slice(0, 3), slice(3, 8)):
    # Padded to the batch's shape, so that it is the program that is compiled already.
    def padded(x, rows=rows):
      return np.concatenate([x[rows], np.zeros((8 - len(x[rows]), *x.shape[1:]), x.dtype)])

    batch = jax.tree.map(padded, case.batch)
    parts.append(case.gradient(case.params, batch, jnp.int32(25), case.counts))
  assert_close(jax.tree.map(jnp.add, *parts), case.whole)


def test_an_examples_noise_follows_its_index_not_its_row(case):
  turned = jax.tree.map(lambda x: x[::-1].copy(), case.batch)
  found = case.gradient(case.params, turned, jnp.int32(25), case.counts)
  assert_close(found, case.whole)
  other = case.batch | {'index_B': case.batch['index_B'] + 1}
  moved = case.gradient(case.params, other, jnp.int32(25), case.counts)
  assert abs(float(moved[0][0] - case.whole[0][0])) > 1e-5


def test_eight_devices_give_the_same_step(case):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.device_put(case.batch, NamedSharding(mesh, P('data')))
  assert_close(case.gradient(case.params, rows, jnp.int32(25), case.counts), case.whole)


def test_unreadable_rows_change_nothing(case):
  batch = {**case.batch, 'image_BYXC': case.batch['image_BYXC'].copy()}
  batch['image_BYXC'][case.batch['valid_B'] == 0] = 77
  assert_close(case.gradient(case.params, batch, jnp.int32(25), case.counts), case.whole)


def test_before_its_start_the_discriminator_does_nothing(case):
  (_, (sums, _)), grad = case.gradient(case.params, case.batch, jnp.int32(0), case.counts)
  assert not any(np.any(x) for x in jax.tree.leaves(grad['discriminator']))
  assert sums['discriminator'] == (0, 0) and sums['adversarial'] == (0, 0)
  later = case.whole[1]
  assert all(np.any(x) for x in jax.tree.leaves(later['discriminator']) if x.ndim > 1)


def test_each_adversarial_term_moves_its_own_network(case):
  @functools.partial(jax.jit, compiler_options=QUICK)
  def gradients(params):
    def term(name):
      def f(params):
        image, valid = case.task.pixels(case.batch), jnp.asarray(case.batch['valid_B'])
        out = case.task.model.apply(case.task.network(params), image)
        terms, _, _ = case.task.adversarial_terms(
          {'params': params}, image, out, valid, jnp.int32(20)
        )
        return terms[name][1][0]

      return jax.grad(f)(params)

    return term('adversarial'), term('discriminator')

  maker, critic = gradients(case.params)
  moved = lambda tree: any(np.any(x) for x in jax.tree.leaves(tree))
  assert moved(maker['vae']) and not moved(maker['discriminator'])
  assert moved(critic['discriminator']) and not moved(critic['vae'])


def test_evaluation_decodes_the_mean_of_valid_rows(case):
  sums = case.task.evaluations()['reconstruction']({'params': case.params}, case.batch, KEY)
  assert set(sums) == {'mse', 'l1', 'psnr', 'kl'}
  image = case.batch['image_BYXC'] / np.float32(127.5) - 1
  out = case.task.model.apply({'params': case.params['vae']}, image)
  recon = np.clip(out.recon_BYXC, -1, 1)[case.batch['valid_B'] > 0]
  square = np.square(recon - image[case.batch['valid_B'] > 0]).mean((1, 2, 3))
  assert float(sums['mse'][0]) == pytest.approx(square.sum(), rel=1e-5) and sums['mse'][1] == 6
  assert float(sums['psnr'][0]) == pytest.approx(np.sum(10 * np.log10(4 / square)), rel=1e-5)


def test_forty_steps_lower_the_error(case):
  optimizer = optax.adam(1e-2)
  params, state = case.params, optimizer.init(case.params)
  errors = []
  for _ in range(40):
    (_, (sums, _)), grad = case.gradient(params, case.batch, jnp.int32(0), case.counts)
    updates, state = optimizer.update(grad, state)
    params = optax.apply_updates(params, updates)
    errors.append(float(sums['reconstruction'][0] / sums['reconstruction'][1]))
  assert errors[-1] < 0.6 * errors[0]


def test_running_statistics_of_the_discriminator_are_kept():
  task = make_task(changed(adversarial={'discriminator': {'channels': 4, 'layers': 1}}))
  shapes = jax.eval_shape(task.init, jax.random.key(0), pictures())
  assert set(shapes) == {'params', 'discriminator_stats'}
  assert set(shapes['params']) == {'vae', 'discriminator'}
  extra = {'discriminator_stats': {'norm_1': {'mean_C': jnp.zeros(2), 'var_C': jnp.ones(2)}}}
  sums = {'count': jnp.float32(4), 'sum_C': jnp.ones(2) * 8, 'square_C': jnp.ones(2) * 16}
  state = TrainState(jnp.int32(0), {}, extra, (), None, jnp.zeros(2, jnp.uint32))
  new = task.after_update(state, {'discriminator': {'norm_1': sums}}, KEY, jnp.int32(0))
  moved_C = new.extra['discriminator_stats']['norm_1']['mean_C']
  np.testing.assert_allclose(moved_C, [0.2, 0.2], rtol=1e-6)  # a tenth of 8 / 4


def test_labels_and_work():
  task, plain = make_task(MODEL), make_task(changed(adversarial=None))
  assert [task.label(p) for p in (('vae', 'x'), ('discriminator', 'x'))] == [
    'generator', 'discriminator',
  ]  # fmt: skip
  assert task.step_flops(2) == 2 * task.step_flops(1) > 2 * plain.step_flops(1) > 0


def test_training_with_the_identity_term_is_refused_without_its_network(case):
  task, batch = make_task(changed(identity_weight=0.2)), case.batch
  with pytest.raises(ConfigError, match=r'identity_weight is 0.2, but no feature network.*MoCo-v2'):
    jax.eval_shape(task.init, jax.random.key(0), batch)
  with pytest.raises(ConfigError, match=r'identity_weight is 0.2, but no feature network'):
    task.loss({'params': case.params}, batch, KEY, jnp.int32(0), case.counts)
  # What a trained one is used for needs no network.
  assert task.model.config.latent_dim == 3
  assert set(task.evaluations()) == {'reconstruction'}


def test_the_identity_term_with_a_network(case):
  rng = np.random.default_rng(3)
  matrix = rng.standard_normal((3, 5)).astype(np.float32)
  features = lambda x: (x @ matrix, jnp.mean(x, axis=(1, 2)))
  config = make_task(changed(adversarial=None)).config
  task = VaeTask(dataclasses.replace(config, identity_weight=0.2), identity_features=features)
  params = {'vae': case.params['vae']}
  with_term, sums, _ = task.loss({'params': params}, case.batch, KEY, jnp.int32(0), case.counts)
  without, _, _ = VaeTask(config).loss(
    {'params': params}, case.batch, KEY, jnp.int32(0), case.counts
  )
  total, count = sums['identity']
  assert float(with_term - without) == pytest.approx(0.2 * float(total / count), rel=1e-3)
  a, b = rng.standard_normal((2, 2, 4, 4, 3)).astype(np.float32)
  want = []
  for i in range(2):
    pairs = ((a[i] @ matrix, b[i] @ matrix), (a[i].mean((0, 1)), b[i].mean((0, 1))))
    cosine = [np.vdot(x, y) / np.linalg.norm(x) / np.linalg.norm(y) for x, y in pairs]
    want.append(1 - np.mean(cosine))
  np.testing.assert_allclose(identity_distance(features, a, b), want, rtol=1e-4)


def test_bad_settings_and_images_are_named(case):
  for model, message in (
    ({}, 'model.perceptual is not set'),
    (changed(image_size=9), 'model.image_size is 9.*multiples of 2'),
    (changed(kl_weight=-1.0), 'model.kl_weight is -1.0'),
    (changed(reconstruction='l3'), 'model.reconstruction'),
    (changed(vqgan={}), "no key 'vqgan'"),
    (changed(perceptual={'name': 'lpips'}), 'perceptual.weights names no file'),
  ):
    with pytest.raises(ConfigError, match=message):
      make_task(model)
  without_file = make_task(changed(perceptual={'name': 'lpips', 'weights': 'nowhere.npz'}))
  with pytest.raises(ConfigError, match='no such file'):
    _ = without_file.constants
  with pytest.raises(ConfigError, match='model.vae.image_channels'):
    case.task.pixels({'image_BYXC': case.batch['image_BYXC'][..., :1]})
