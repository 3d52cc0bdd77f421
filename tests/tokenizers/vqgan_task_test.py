import copy
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
from jaxmm.core import convnet
from jaxmm.task import TrainState
from jaxmm.tokenizers import quantizer
from jaxmm.tokenizers.discriminator import Discriminator
from jaxmm.tokenizers.vqgan_task import VqganTask, make_task

MODEL = {
  'image_size': 6,
  'perceptual': {'name': 'none'},
  'vqgan': {
    'channels': 4,
    'multipliers': [1],
    'res_blocks': 1,
    'attention': False,
    'z_channels': 4,
    'norm_groups': 2,
    'quantizer': {
      'codes': 12,
      'width': 4,
      'revive_after': 50,
      'revive_slots': 8,
      'entropy_weight': 0.1,
      'entropy_temperature': 0.5,
      'entropy_reference': 'running',
    },
  },
  'adversarial': {
    'start': 20,
    'discriminator': {'channels': 4, 'layers': 1, 'norm': 'group'},
  },
  'regularizer': {'width': 8, 'heads': 2, 'hidden': 8, 'ramp_steps': 50},
}


# Compiling is all that these tests cost; the programs run for microseconds.
QUICK = {'xla_llvm_disable_expensive_passes': True, 'xla_backend_optimization_level': 0}


def changed(**settings):
  """`MODEL` with some settings replaced; dots in names are double underscores."""
  model = copy.deepcopy(MODEL)
  for name, value in settings.items():
    *parents, leaf = name.split('__')
    node = model
    for parent in parents:
      node = node[parent]
    node[leaf] = value
  return model


def blobs(rows: int, side: int = 6) -> dict[str, np.ndarray]:
  """One round patch of colour an image; two rows could not be read."""
  rng = np.random.default_rng(0)
  y, x = np.mgrid[:side, :side]
  images = []
  for _ in range(rows):
    centre, colour = rng.uniform(1, side - 1, 2), rng.integers(0, 256, (2, 3))
    inside = np.hypot(y - centre[0], x - centre[1]) < side / 3
    images.append(np.where(inside[..., None], *colour))
  valid = np.ones(rows, np.float32)
  valid[[1, 6]] = 0
  return {
    'image_BYXC': np.stack(images).astype(np.uint8),
    'index_B': np.arange(rows, dtype=np.uint32),
    'valid_B': valid,
    'label_B': np.zeros(rows, np.int32),
  }


def means_of(sums):
  """Of the metrics that are numbers, as far as anything was counted."""
  return {
    name: float(total / count) for name, (total, count) in sums.items() if count and not total.ndim
  }


@pytest.fixture(scope='module')
def case():
  task, batch = make_task(MODEL), blobs(8)
  variables = nn.unbox(jax.jit(task.init, compiler_options=QUICK)(jax.random.key(0), batch))
  params, extra = variables['params'], {k: v for k, v in variables.items() if k != 'params'}

  @functools.partial(jax.jit, compiler_options=QUICK)
  def gradient(params, extra, rows, step, counts):
    def objective(params):
      scalar, sums, stats = task.loss(
        {**extra, 'params': params}, rows, jax.random.key(5), step, counts
      )
      return scalar, (sums, stats)

    return jax.value_and_grad(objective, has_aux=True)(params)

  counts = task.counts(batch)
  whole = gradient(params, extra, batch, jnp.int32(25), counts)
  return types.SimpleNamespace(
    task=task,
    batch=batch,
    params=params,
    extra=extra,
    gradient=gradient,
    counts=counts,
    whole=whole,
  )


def assert_close(a, b, tolerance=1e-5):
  """Leaf by leaf, relative to the leaf's largest entry."""
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    scale = max(float(np.abs(np.asarray(y)).max(initial=0)), 1e-3)
    error = float(np.abs(np.asarray(x) - np.asarray(y)).max(initial=0))
    assert error <= tolerance * scale, f'{jax.tree_util.keystr(path)}: {error} of {scale}'


def test_ragged_microbatches_give_the_full_batch(case):
  parts = []
  for rows in (slice(0, 4), slice(4, 8)):
    # Padded to the batch's shape, so that it is the program that is compiled already.
    batch = jax.tree.map(lambda x, r=rows: np.concatenate([x[r], np.zeros_like(x[r])]), case.batch)
    parts.append(case.gradient(case.params, case.extra, batch, jnp.int32(25), case.counts))
  added = jax.tree.map(jnp.add, *parts)
  ((scalar, (sums, stats)), grad) = added
  ((want, (want_sums, want_stats)), want_grad) = case.whole
  np.testing.assert_allclose(scalar, want, rtol=1e-5)
  assert_close(grad, want_grad, 2e-5)
  assert_close(sums, want_sums, 2e-5)
  np.testing.assert_array_equal(stats['codes']['count_K'], want_stats['codes']['count_K'])
  assert_close(stats, want_stats)
  assert want_stats['codes']['count_K'].sum() == 6 * 36


def test_unreadable_rows_change_nothing(case):
  batch = {**case.batch, 'image_BYXC': case.batch['image_BYXC'].copy()}
  batch['image_BYXC'][case.batch['valid_B'] == 0] = 77
  assert_close(
    case.gradient(case.params, case.extra, batch, jnp.int32(25), case.counts), case.whole
  )


@pytest.mark.slow
def test_eight_devices_give_the_same_step(case):
  mesh = jax.make_mesh((8,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
  rows = jax.device_put(case.batch, NamedSharding(mesh, P('data')))
  sharded = case.gradient(case.params, case.extra, rows, jnp.int32(25), case.counts)
  codes, want = sharded[0][1][1]['codes'], case.whole[0][1][1]['codes']
  np.testing.assert_array_equal(codes['count_K'], want['count_K'])
  assert_close(sharded, case.whole, 2e-5)


def test_before_their_start_discriminator_and_regularizer_do_nothing(case):
  (_, (sums, _)), grad = case.gradient(
    case.params, case.extra, case.batch, jnp.int32(0), case.counts
  )
  assert not any(np.any(x) for x in jax.tree.leaves([grad['discriminator'], grad['regularizer']]))
  assert any(np.any(x) for x in jax.tree.leaves(grad['vqgan']))
  assert sums['discriminator'] == (0, 0)  # the log says nothing rather than 0
  later = case.whole[1]
  for group in ('discriminator', 'regularizer'):
    # The bias of the regularizer's key projection and the like may get none; every kernel does.
    assert all(np.any(x) for x in jax.tree.leaves(later[group]) if x.ndim > 1)


def test_each_adversarial_term_moves_its_own_network(case):
  recon = jnp.asarray(np.random.default_rng(1).uniform(-1, 1, (8, 6, 6, 3)), jnp.float32)
  image, valid = case.task.pixels(case.batch), jnp.asarray(case.batch['valid_B'])

  @jax.jit
  def gradients(params, recon):
    def term(name):
      def f(params, recon):
        out = types.SimpleNamespace(recon_BYXC=recon, last_BYXC=None)
        variables = {'params': {'discriminator': params}}
        return case.task._judged(variables, image, out, valid)[name][0]

      return jax.grad(f, (0, 1))(params, recon)

    return term('adversarial'), term('discriminator')

  maker, critic = gradients(case.params['discriminator'], recon)
  assert not any(np.any(x) for x in jax.tree.leaves(maker[0])) and np.any(maker[1])
  assert any(np.any(x) for x in jax.tree.leaves(critic[0])) and not np.any(critic[1])


def test_the_objective_is_the_weighted_sum_of_the_logged_means(case):
  scalar, (sums, _) = case.whole[0]
  means = means_of(sums)
  want = (
    means['reconstruction']
    + means['codebook']
    + 0.25 * means['commitment']
    + 0.1 * (means['sample_entropy'] - means['average_entropy'])
    + 0.5 * (means['adversarial'] + means['discriminator'])
    + 2.0 * means['causal']  # 4.0 after 50 steps, at step 25
  )
  assert float(scalar) == pytest.approx(want, rel=1e-5)
  assert means['codes_in_use'] == 1
  counts, total = sums['code_counts']
  assert total == 6 * 36
  shown = case.task.summaries()['code_counts'](np.asarray(counts), np.asarray(total))
  assert shown['code_usage'] == np.mean(counts > 0)
  assert shown['code_perplexity'] == quantizer.perplexity(counts)
  assert {'copy_left', 'latent_std', 'logits_real', 'logits_fake'} <= set(means)


def test_adaptive_weight_is_the_ratio_of_gradient_norms_at_the_last_convolution(case):
  task = make_task(
    changed(adversarial__weighting='adaptive', adversarial__discriminator__norm='none')
  )
  judge_net = Discriminator(task.config.adversarial.discriminator)
  image, valid = task.pixels(case.batch), jnp.asarray(case.batch['valid_B'])
  judge_params = nn.unbox(jax.jit(judge_net.init)(jax.random.key(1), image, valid))
  judge = lambda x: judge_net.apply(judge_params, x, valid)[0]
  last = np.random.default_rng(2).standard_normal((8, 6, 6, 4)).astype(np.float32)
  layer, conv = case.params['vqgan']['decoder']['conv_out'], convnet.Conv(3)

  @jax.jit
  def terms(kernel):
    recon = conv.apply({'params': {**layer, 'kernel': kernel}}, last)
    look = (jnp.square(recon - image).mean((1, 2, 3)) * valid).sum() / valid.sum()
    return jnp.stack([look, -(judge(recon).mean((1, 2)) * valid).sum() / valid.sum()])

  out = types.SimpleNamespace(last_BYXC=last)
  ratio = task._adaptive_weight({'params': case.params}, image, out, valid, judge)
  # Every entry of the kernel moved a little both ways.
  kernel, step = np.asarray(layer['kernel']), 1e-3
  moved = np.eye(kernel.size, dtype=np.float32).reshape(-1, *kernel.shape) * step
  slopes = [(terms(kernel + m) - terms(kernel - m)) / (2 * step) for m in moved]
  norms = np.linalg.norm(np.asarray(slopes), axis=0)
  assert float(ratio) == pytest.approx(norms[0] / (norms[1] + 1e-4), rel=2e-3)


def state_of(params, extra, optimizer, ema=None):
  return TrainState(
    step=jnp.int32(0),
    params=params,
    extra=extra,
    opt_state=optimizer.init(params),
    ema=ema,
    key=jnp.zeros(2, jnp.uint32),
  )


def test_a_revived_code_loses_its_moments_and_its_average():
  model = changed(vqgan__quantizer={'codes': 4, 'width': 2, 'revive_after': 1, 'revive_slots': 4})
  task = make_task(model)
  codes = jnp.arange(8.0).reshape(4, 2)
  params = {'vqgan': {'quantizer': {'codebook': codes}, 'quant_conv': {'bias': jnp.ones((4, 2))}}}
  labels = {'vqgan': {'quantizer': {'codebook': 'generator'}, 'quant_conv': {'bias': 'generator'}}}
  optimizer = optax.partition({'generator': optax.adam(0.1)}, labels)
  statistics = quantizer.initial_statistics(task.config.network.quantizer, codes)
  state = state_of(params, {'codebook_stats': statistics}, optimizer, ema=params)
  state = state.replace(opt_state=jax.tree.map(lambda x: x + 1, state.opt_state))
  stats = {
    'codes': {
      'count_K': jnp.array([2.0, 0, 1, 0]),
      'slot_count_R': jnp.array([0.0, 1, 0, 0]),
      'slot_sum_RD': jnp.array([[0.0, 0], [7, 8], [0, 0], [0, 0]]),
    }
  }
  new = task.after_update(state, stats, jax.random.key(0), jnp.int32(0))
  codebook = np.asarray(new.params['vqgan']['quantizer']['codebook'])
  (row,) = np.flatnonzero((codebook != codes).any(1))
  assert row in (1, 3) and codebook[row].tolist() == [7, 8]
  np.testing.assert_array_equal(new.ema['vqgan']['quantizer']['codebook'], codebook)
  adam = new.opt_state.inner_states['generator'].inner_state[0]
  for moment in (adam.mu, adam.nu):
    zeroed = np.flatnonzero(~np.asarray(moment['vqgan']['quantizer']['codebook']).any(1))
    assert zeroed.tolist() == [row]
    assert np.all(np.asarray(moment['vqgan']['quant_conv']['bias']) == 1)
  assert adam.count == 1


def test_ema_codebooks_are_frozen_for_the_optimizer_and_moved_by_the_statistics():
  task = make_task(changed(vqgan__quantizer={'codes': 3, 'width': 2, 'update': 'ema'}))
  path = ('vqgan', 'quantizer', 'codebook')
  assert task.label(path) == 'frozen' and make_task(MODEL).label(path) == 'generator'
  labels = [task.label(p) for p in (('vqgan', 'x'), ('discriminator', 'x'), ('regularizer', 'x'))]
  assert labels == ['generator', 'discriminator', 'regularizer']
  codes = jnp.eye(3, 2)
  statistics = quantizer.initial_statistics(task.config.network.quantizer, codes)
  params = {'vqgan': {'quantizer': {'codebook': codes}}}
  state = state_of(params, {'codebook_stats': statistics}, optax.identity())
  sums = {'count_K': jnp.array([1.0, 0, 0]), 'sum_KD': jnp.array([[0.0, 1], [0, 0], [0, 0]])}
  new = task.after_update(state, {'codes': sums}, jax.random.key(0), jnp.int32(0))
  np.testing.assert_allclose(
    new.params['vqgan']['quantizer']['codebook'][0], [0.99, 0.01], rtol=1e-5
  )


@pytest.mark.parametrize('new', ['codebook_stats', 'discriminator'])
def test_after_init_from_the_loaded_codebook_stays_at_an_update(new):
  task = make_task(changed(vqgan__quantizer={'codes': 3, 'width': 2, 'update': 'ema'}))
  make = functools.partial(quantizer.initial_statistics, task.config.network.quantizer)
  codes = jnp.eye(3, 2)
  params = {'vqgan': {'quantizer': {'codebook': codes}}}
  state = state_of(params, {'codebook_stats': make(codes + 5)}, optax.identity())
  state = task.after_init_from(state, frozenset({new}))
  sums = {'count_K': jnp.zeros(3), 'sum_KD': jnp.zeros((3, 2))}
  after = task.after_update(state, {'codes': sums}, jax.random.key(0), jnp.int32(0))
  kept = codes if new == 'codebook_stats' else codes + 5  # loaded statistics are not touched
  np.testing.assert_allclose(after.params['vqgan']['quantizer']['codebook'], kept, rtol=1e-6)


def test_thirty_steps_on_blobs_lower_the_loss(case):
  optimizer = optax.flatten(optax.adam(1e-2))
  state = state_of(case.params, case.extra, optimizer)

  @functools.partial(jax.jit, compiler_options=QUICK)
  def update(state, grad, stats):
    updates, opt_state = optimizer.update(grad, state.opt_state)
    params = optax.apply_updates(state.params, updates)
    state = state.replace(params=params, opt_state=opt_state)
    return case.task.after_update(state, stats, jax.random.key(1), state.step)

  def step(state, at):
    (_, (sums, stats)), grad = case.gradient(
      state.params, state.extra, case.batch, jnp.int32(at), case.counts
    )
    return update(state, grad, stats), means_of(sums)

  errors = []
  for _ in range(30):  # as at step 0: the autoencoder alone
    state, means = step(state, 0)
    errors.append(means['reconstruction'])
  seen = np.asarray(case.task.pixels(case.batch))[case.batch['valid_B'] > 0]
  best_constant = np.mean((seen - seen.mean((0, 1, 2))) ** 2)
  assert errors[-1] < 0.9 * best_constant < errors[0]  # so the codes carry the images
  # Then with the discriminator and half of lambda.
  state, first = step(state, 25)
  state, _ = step(state, 25)
  state, third = step(state, 25)
  assert third['discriminator'] < first['discriminator'] and third['causal'] < first['causal']
  assert np.isfinite(list(third.values())).all()


def test_evaluation_counts_codes_and_errors_of_valid_rows(case):
  evaluate = jax.jit(case.task.evaluations()['reconstruction'], compiler_options=QUICK)
  variables = {'params': case.params, **case.extra}
  whole = evaluate(variables, case.batch, jax.random.key(0))
  assert set(whole) == {'mse', 'l1', 'psnr', 'code_counts'}
  counts, total = whole['code_counts']
  assert counts.dtype == jnp.int32 and counts.sum() == total == 6 * 36
  mse = whole['mse'][0] / whole['mse'][1]
  assert whole['mse'][1] == 6 and 0 < mse < 4
  assert quantizer.perplexity(counts) <= 12


def test_parameters_and_statistics_carry_their_names(case):
  shapes = jax.eval_shape(lambda: case.task.init(jax.random.key(0), case.batch))
  assert set(shapes['params']) == {'vqgan', 'discriminator', 'regularizer'}
  boxes = jax.tree.leaves(shapes, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))
  assert all(isinstance(x, nn.LogicallyPartitioned) for x in boxes)
  assert shapes['codebook_stats']['unused_K'].names == ('codes',)


def test_step_flops_of_the_full_size_regularizer_are_five_percent():
  plain = {'perceptual': {'name': 'none'}}
  base = make_task(plain).step_flops(1)
  assert base == pytest.approx(6 * 196e9, rel=0.02)  # 69 + 126 GMAC an image
  assert make_task(plain | {'regularizer': {}}).step_flops(1) / base == pytest.approx(
    1.05, abs=0.01
  )
  assert make_task(plain).step_flops(4) == 4 * base


def test_bad_settings_and_images_are_named(case):
  for model, message in (
    ({}, 'model.perceptual is not set'),
    (changed(image_size=0), 'model.image_size is 0'),
    (changed(vqgan='vq_32'), "model.vqgan is 'vq_32'"),
    (changed(reconstruction='l3'), 'model.reconstruction'),
    (changed(adversarial__discriminator__layers=4), 'no patch is left'),
    (changed(vqgan__chanels=3), 'did you mean channels'),
    (changed(adversarial__weighting='auto'), 'adversarial.weighting'),
  ):
    with pytest.raises(ConfigError, match=message):
      make_task(model)
  with pytest.warns(UserWarning, match='stand in for LPIPS'):
    make_task(changed(perceptual={'name': 'edges'}))
  without_file = make_task(changed(perceptual={'name': 'lpips', 'weights': 'nowhere.npz'}))
  with pytest.raises(ConfigError, match='no such file'):
    _ = without_file.constants
  given = VqganTask(without_file.config, perceptual_weights={'head_0': np.ones(2)})
  assert given.constants == {'perceptual': given.perceptual_weights}
  image = case.batch['image_BYXC']
  for wrong in (image[:, :4], image[..., :1], image.astype(np.float32)):
    with pytest.raises(ConfigError, match='expect'):
      case.task.pixels({'image_BYXC': wrong})
