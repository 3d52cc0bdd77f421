import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.core import diffusion
from jaxmm.models import mixed_rows, transfusion
from jaxmm.models.transfusion import Transfusion, config_of
from tests.mixed_rows import mixed_batch
from tests.references import transfusion as reference

TINY = {
  'size': 'micro', 'width': 32, 'num_heads': 4, 'vocab_size': 11, 'length': 24, 'latent_size': 4,
  'latent_channels': 3, 'boi_id': 8, 'eoi_id': 9, 'null_id': 10, 'num_timesteps': 50,
}  # fmt: skip
CONFIG = config_of(TINY)
L, I = 24, 2
IMAGE = 'image'
# Caption first and image first, two documents in a row, two images in one, no image, no text.
ROWS = [
  [[1, 2, 3, IMAGE, 4], [5, IMAGE, 6, 7]],
  [[IMAGE, 3, 2], [1, 1, 2]],
  [[7, 6, IMAGE, 5, 4, IMAGE, 1]],
  [[1, 2, 3, 4, 5, 6, 7]],
  [[IMAGE], [IMAGE]],
  [[4, 4, 4, IMAGE]],
  [[IMAGE, 1], [2, IMAGE]],
  [[5, 5, 5, IMAGE]],
]
B = len(ROWS)


def random_params(config, num_images=I):
  """Random everywhere: zero heads would hide what comes before them."""
  batch = mixed_batch(config, [[[1]]], config.length, num_images)
  task = transfusion.TransfusionTask(config)
  shapes = jax.eval_shape(task.init, jax.random.key(0), batch)
  rng = np.random.default_rng(1)

  def draw(path, a):
    spread = 0.2 if a.ndim < 4 else 0.05  # stacked by depth, or a convolution
    return jnp.asarray(
      (path[-1].key == 'scale') + spread * rng.standard_normal(a.shape), jnp.float32
    )

  return jax.tree_util.tree_map_with_path(draw, nn.unbox(shapes)['params'])


@pytest.fixture(scope='module')
def params():
  return random_params(CONFIG)


@pytest.fixture(scope='module')
def batch():
  return mixed_batch(CONFIG, ROWS, L, I)


def rows_of(batch):
  return tuple(batch[name] for name in ('ids_BL', 'image_BL', 'patch_BL', 'segment_BL'))


@pytest.fixture(scope='module')
def forward():
  """Logits and predictions of a batch, images at timestep 20."""

  @jax.jit
  def run(params, batch):
    time_BI = jnp.full((len(batch['ids_BL']), I), 20)
    hidden, out = Transfusion(CONFIG).apply(
      {'params': params}, *rows_of(batch), batch['latent_BIYXC'], time_BI
    )
    return hidden @ params['head']['table'].T, out

  return run


@pytest.fixture(scope='module')
def grads_of():
  """Value, sums and gradient of a Task's loss, of any rows."""
  compiled = {}

  def run(params, batch, counts, **changes):
    name = tuple(changes.items())
    if name not in compiled:
      task = transfusion.TransfusionTask(dataclasses.replace(CONFIG, **changes))

      def loss(params, batch, counts):
        return task.loss({'params': params}, batch, jax.random.key(7), 0, counts)[:2]

      compiled[name] = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return compiled[name](params, batch, counts)

  return run


COUNTS = {'tokens': jnp.float32(20), 'images': jnp.float32(9)}
VARIANTS = {
  'paper': {},
  'causal': {'attention': 'causal', 'time': 'width', 'patch': 1, 'length': 48},
  'shared': {'image_positions': 'shared', 'patch': 4},
  'unet': {'patches': 'unet', 'unet_base': 4, 'unet_blocks': 2},
  'unet4': {'patches': 'unet', 'unet_base': 3, 'unet_blocks': 1, 'patch': 4},
}


@pytest.mark.parametrize('name', VARIANTS)
def test_the_forward_pass_is_that_of_the_blackboard(name):
  config = config_of({**TINY, **VARIANTS[name]})
  rows = [[[1, 2, IMAGE, 3], [IMAGE, 5]]]
  batch = mixed_batch(config, rows, 2 * config.num_patches + 9, I)
  params, time_BI = random_params(config), jnp.array([[17, 0]])
  hidden, out = jax.jit(
    lambda p: Transfusion(config).apply(
      {'params': p}, *rows_of(batch), batch['latent_BIYXC'], time_BI
    )
  )(params)
  logits, expected = reference.forward(
    jax.tree.map(lambda a: np.asarray(a, np.float64), params),
    config,
    *(np.asarray(a[0]) for a in rows_of(batch)),
    np.asarray(batch['latent_BIYXC'][0], np.float64),
    time_BI[0],
  )
  # float32 against float64 through two blocks with weights ten times those of initialisation.
  np.testing.assert_allclose(hidden[0] @ params['head']['table'].T, logits, atol=3e-5)
  np.testing.assert_allclose(out[0], expected, atol=3e-5)


def test_patches_and_maps_are_each_others_inverse():
  from jaxmm.models import transfusion_patches as patches

  x = np.random.default_rng(0).standard_normal((2, 8, 8, 3)).astype(np.float32)
  for k in (1, 2, 4, 8):
    cut = patches.patches_of(x, k)
    np.testing.assert_array_equal(patches.map_of(cut, k, 8), x)
    np.testing.assert_array_equal(cut[1, -1], reference.patch(x[1], (8 // k) ** 2 - 1, k))


def changed(before, after):
  """Positions (of logits [L, V]) or images (of predictions [I, ...]) that differ."""
  difference = np.abs(np.asarray(before) - np.asarray(after))
  return np.flatnonzero(difference.reshape(len(difference), -1).max(1) > 0).tolist()


def test_patches_of_an_image_see_one_another_and_nothing_later(params, batch, forward):
  """Row 2: 7 6 [image 1] 5 4 [image 2] 1, patches at 3 to 6 and 11 to 14."""
  logits, out = forward(params, batch)
  assert np.flatnonzero(batch['image_BL'][2] == 2).tolist() == [11, 12, 13, 14]

  last_patch = batch['latent_BIYXC'].at[2, 1, 3, 3].add(9)
  moved = dict(batch, latent_BIYXC=last_patch)
  new_logits, new_out = forward(params, moved)
  assert changed(logits[2], new_logits[2]) == list(range(11, 17))
  first_patch = lambda out: out[2, 1, :2, :2]
  assert np.all(first_patch(out) != first_patch(new_out))  # both ways
  assert changed(out[2], new_out[2]) == [1]  # no earlier image sees it

  for place, images in ((16, []), (8, [1]), (0, [0, 1])):  # text after, between, before them
    moved = dict(batch, ids_BL=batch['ids_BL'].at[2, place].set(3))
    new_logits, new_out = forward(params, moved)
    assert changed(logits[2], new_logits[2]) == list(range(place, 17))
    assert changed(out[2], new_out[2]) == images


def test_causal_attention_in_images_hides_later_patches(params, batch):
  config = dataclasses.replace(CONFIG, attention='causal')
  run = jax.jit(
    lambda x: Transfusion(config).apply(
      {'params': params}, *rows_of(batch), x, jnp.full((B, I), 20)
    )[1]
  )
  out = run(batch['latent_BIYXC'])
  moved = run(batch['latent_BIYXC'].at[2, 1, 3, 3].add(1))
  assert np.flatnonzero(np.abs(out - moved)[2, 1].max(-1)).tolist() == [10, 11, 14, 15]


def test_documents_of_a_row_do_not_see_each_other(params, batch, forward):
  """Row 0: 1 2 3 [image 1] 4, then 5 [image 2] 6 7 from position 10."""
  logits, out = forward(params, batch)
  moved = dict(
    batch,
    ids_BL=batch['ids_BL'].at[0, 1].set(7),
    latent_BIYXC=batch['latent_BIYXC'].at[0, 0].add(1),
  )
  new_logits, new_out = forward(params, moved)
  assert changed(logits[0], new_logits[0]) == list(range(1, 10))
  assert changed(out[0], new_out[0]) == [0]
  # And mean the same alone, at the row's beginning.
  alone = mixed_batch(CONFIG, [ROWS[0][1:]] * B, L, I)
  alone['latent_BIYXC'] = alone['latent_BIYXC'].at[:, 0].set(batch['latent_BIYXC'][0, 1])
  alone_logits, alone_out = forward(params, alone)
  np.testing.assert_allclose(logits[0, 10:19], alone_logits[0, :9], atol=2e-5)
  np.testing.assert_allclose(out[0, 1], alone_out[0, 0], atol=2e-5)


def test_the_losses_are_obvious_loops(params, batch, grads_of):
  """lambda times the mean over images of each one's mean square, and the mean over text."""
  weights = jnp.asarray(np.random.default_rng(3).choice([0.5, 1.0], (B, L)), jnp.float32)
  batch = dict(batch, weight_BL=batch['weight_BL'] * weights, valid_B=jnp.ones(B).at[6].set(0))
  batch['latent_BIYXC'] = batch['latent_BIYXC'].at[6].set(jnp.nan)  # could not be read
  task = transfusion.TransfusionTask(dataclasses.replace(CONFIG, caption_dropout=0.0))
  counts = task.counts(batch)
  (value, sums), _ = grads_of(params, batch, counts, caption_dropout=0.0)

  p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)
  level, keys = diffusion.cosine_alpha_bar(50), jax.random.key(7)
  nats, num_tokens, squares, num_images = 0.0, 0.0, 0.0, 0
  for b in range(B):
    if b == 6:
      continue
    x, time, noise = np.zeros((I, *CONFIG.latent_shape)), np.zeros(I, int), {}
    for i in range(I):
      key = jax.random.fold_in(jax.random.fold_in(keys, 100 + b), i + 1)
      uniform = float(jax.random.uniform(jax.random.fold_in(key, 0)))
      time[i] = 1 + int(np.floor(uniform * 50))
      noise[i] = np.asarray(jax.random.normal(jax.random.fold_in(key, 1), CONFIG.latent_shape))
      x0 = np.asarray(batch['latent_BIYXC'][b, i], np.float64)
      x[i] = np.sqrt(level[time[i]]) * x0 + np.sqrt(1 - level[time[i]]) * noise[i]
    row = [np.asarray(a[b]) for a in rows_of(batch)]
    logits, out = reference.forward(p, CONFIG, *row, x, time)
    for l in range(1, L):
      weight = float(batch['weight_BL'][b, l])
      nats -= weight * (logits[l - 1, row[0][l]] - np.log(np.exp(logits[l - 1]).sum()))
      num_tokens += weight
    for i in range(I):
      if batch['image_valid_BI'][b, i]:
        squares += np.mean((noise[i] - out[i]) ** 2)
        num_images += 1
  np.testing.assert_allclose(counts['tokens'], num_tokens)
  np.testing.assert_allclose(counts['images'], num_images)
  np.testing.assert_allclose(sums['cross_entropy'], (nats, num_tokens), rtol=2e-5)
  np.testing.assert_allclose(sums['denoising'], (squares, num_images), rtol=2e-5)
  np.testing.assert_allclose(value, nats / num_tokens + 5 * squares / num_images, rtol=2e-5)


def test_a_row_and_its_noise_are_the_same_anywhere_and_microbatches_add_up(params, batch, grads_of):
  task = transfusion.TransfusionTask(CONFIG)
  counts = task.counts(batch)
  (value, sums), grad = grads_of(params, batch, counts)
  np.testing.assert_allclose(sums['denoising'][1], counts['images'])
  np.testing.assert_allclose(sums['cross_entropy'][1], counts['tokens'])
  order = np.array([6, 1, 3, 0, 7, 2, 5, 4])
  moved = {k: v[order] for k, v in batch.items()}
  first = jnp.arange(B) < 3
  parts = [
    grads_of(params, {**moved, 'valid_B': moved['valid_B'] * mine}, counts)
    for mine in (first, ~first)
  ]
  np.testing.assert_allclose(value, parts[0][0][0] + parts[1][0][0], rtol=1e-5)
  # Gradients are sums over eight rows in another order; the largest are of the order of 1.
  jax.tree.map(
    lambda g, a, b: np.testing.assert_allclose(g, a + b, atol=5e-6, rtol=1e-3),
    grad,
    parts[0][1],
    parts[1][1],
  )
  other = {**batch, 'index_B': batch['index_B'] + 50}
  assert grads_of(params, other, counts)[0][0] != value


@pytest.mark.parametrize('rules,mesh', [('dp', (8, 1, 1)), ('tensor', (2, 2, 2))])
def test_the_loss_is_the_same_on_eight_devices(params, batch, grads_of, rules, mesh):
  task = transfusion.TransfusionTask(CONFIG)
  counts = task.counts(batch)
  (value, _), grad = grads_of(params, batch, counts)
  mesh = sharding.make_mesh(sharding.MeshConfig(*mesh))
  rules = sharding.rules_named(rules)
  boxed = jax.eval_shape(task.init, jax.random.key(0), batch)['params']
  placed = jax.device_put(params, sharding.tree_shardings(boxed, rules, mesh))
  with sharding.in_mesh(mesh, rules):
    rows = sharding.global_batch(mesh, {k: np.asarray(v) for k, v in batch.items()})
    loss = lambda p, rows: task.loss({'params': p}, rows, jax.random.key(7), 0, task.counts(rows))[
      0
    ]
    sharded, sharded_grad = jax.jit(jax.value_and_grad(loss))(placed, rows)
  np.testing.assert_allclose(sharded, value, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, atol=5e-6, rtol=1e-3), sharded_grad, grad
  )


def test_rows_without_images_or_without_text_have_a_finite_loss(params, batch, grads_of):
  text = mixed_batch(CONFIG, [[[1, 2, 3, 4]]] * B, L, I)
  (value, sums), grad = grads_of(params, text, transfusion.TransfusionTask(CONFIG).counts(text))
  assert sums['denoising'][1] == 0 and np.isfinite(value)
  assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(grad))
  assert not np.any(grad['patches']['patch_in']['kernel'])
  images = mixed_batch(CONFIG, [[[IMAGE]]] * B, L, I)
  (value, sums), grad = grads_of(params, images, transfusion.TransfusionTask(CONFIG).counts(images))
  assert sums['cross_entropy'][1] == 0 and sums['denoising'][1] == B and np.isfinite(value)
  assert all(np.all(np.isfinite(a)) for a in jax.tree.leaves(grad))
  assert not np.any(grad['head']['table'])


def test_what_has_no_weight_changes_nothing(params, batch, grads_of):
  loss = lambda b: grads_of(params, b, COUNTS)[0][0]
  padding = batch['segment_BL'] == 0
  assert loss(batch) == loss({**batch, 'ids_BL': jnp.where(padding, 2, batch['ids_BL'])})
  under = batch['image_BL'] > 0
  assert loss(batch) == loss({**batch, 'ids_BL': jnp.where(under, 2, batch['ids_BL'])})
  empty = (batch['image_valid_BI'] == 0)[..., None, None, None]
  filled = jnp.where(empty, 9.0, batch['latent_BIYXC'])
  assert loss(batch) == loss({**batch, 'latent_BIYXC': filled})


def drawn_times(config, is_first, rows=400):
  batch = {
    'index_B': jnp.arange(rows, dtype=jnp.uint32),
    'image_valid_BI': jnp.ones((rows, I)),
    'is_image_first_BI': jnp.full((rows, I), float(is_first)),
  }
  chosen = transfusion.choices(config, batch)
  keys = transfusion.image_keys(jax.random.key(0), batch['index_B'], I)
  return np.asarray(transfusion.timesteps(config, batch, keys, chosen.clean_BI)), chosen


def test_the_noise_limit_holds_for_images_that_come_first_alone():
  limited = dataclasses.replace(CONFIG, noise_limit=25)
  for config, is_first, last in ((limited, True, 25), (limited, False, 50), (CONFIG, True, 50)):
    times, _ = drawn_times(config, is_first)
    assert times.min() == 1 and times.max() == last
    # Uniform over 1 .. last: five standard errors of 800 draws.
    np.testing.assert_allclose(
      times.mean(), (1 + last) / 2, atol=5 * last / np.sqrt(12 * times.size)
    )
    assert np.any(times[:, 0] != times[:, 1])


def test_choices_have_their_rates_and_their_places():
  config = dataclasses.replace(CONFIG, caption_dropout=0.25, clean_rate=0.4)
  times, chosen = drawn_times(config, is_first=True)
  assert not np.any(chosen.uncaptioned_BI)
  np.testing.assert_array_equal(times == 0, chosen.clean_BI)
  np.testing.assert_allclose(np.mean(chosen.clean_BI), 0.4, atol=5 * np.sqrt(0.24 / 800))
  times, chosen = drawn_times(config, is_first=False)
  assert not np.any(chosen.clean_BI) and times.min() == 1
  np.testing.assert_allclose(np.mean(chosen.uncaptioned_BI), 0.25, atol=5 * np.sqrt(0.1875 / 800))


def test_a_dropped_caption_is_replaced_in_place_and_has_no_loss(batch):
  dropped = jnp.zeros((B, I), bool).at[0, 1].set(True).at[2, 1].set(True)
  chosen = transfusion.Choices(dropped, jnp.zeros((B, I), bool))
  ids, weight = transfusion.text_rows(CONFIG, batch, chosen)
  all_ids, all_weight = transfusion.text_rows(CONFIG, batch, transfusion.no_choices(batch))
  # Row 0: the 5 before its second image, and its own bracket as a target; row 2: 5 4 and bracket.
  np.testing.assert_array_equal(all_ids, batch['ids_BL'])
  assert np.argwhere(ids != all_ids).tolist() == [[0, 10], [2, 8], [2, 9]]
  assert np.all(ids[ids != all_ids] == CONFIG.null_id)
  # The first 5 begins its document and never was a target.
  assert np.argwhere(weight != all_weight).tolist() == [[0, 10], [2, 7], [2, 8], [2, 9]]
  assert np.all(weight[weight != all_weight] == 0)


def test_counts_know_which_captions_and_images_are_left_out(params, batch, grads_of):
  changes = {'caption_dropout': 0.6, 'clean_rate': 0.6}
  task = transfusion.TransfusionTask(dataclasses.replace(CONFIG, **changes))
  counts = task.counts(batch)
  assert counts['tokens'] < np.sum(batch['weight_BL'])
  assert counts['images'] < np.sum(batch['image_valid_BI'])
  (_, sums), _ = grads_of(params, batch, counts, **changes)
  assert sums['cross_entropy'][1] == counts['tokens']
  assert sums['denoising'][1] == counts['images']


def test_the_flow_objective_predicts_the_velocity_of_a_straight_path(params, batch, grads_of):
  config = dataclasses.replace(CONFIG, objective='flow')
  x0, noise = np.random.default_rng(0).standard_normal((2, 1, 3, *CONFIG.latent_shape))
  x = config.noised(x0, noise, jnp.array([[0, 20, 50]]))
  np.testing.assert_allclose(x[0, 0], x0[0, 0], atol=1e-6)
  np.testing.assert_allclose(x[0, 1], 0.6 * x0[0, 1] + 0.4 * noise[0, 1], atol=1e-6)
  np.testing.assert_allclose(x[0, 2], noise[0, 2], atol=1e-6)
  np.testing.assert_allclose(config.target(x0, noise), noise - x0)
  (value, _), _ = grads_of(params, batch, COUNTS, objective='flow')
  assert np.isfinite(value) and value != grads_of(params, batch, COUNTS)[0][0]


def test_evaluations_are_those_of_the_terms(params, batch, forward):
  task = transfusion.TransfusionTask(CONFIG)
  out = jax.jit(task.likelihood)({'params': params}, batch, jax.random.key(0))
  assert out['cross_entropy'][1] == np.sum(batch['weight_BL'])
  # Text after an image: 4, 6 7 | 3 2 | 5 4 (bracket) 1 | 1.
  assert out['cross_entropy_after_image'][1] == 3 + 2 + 4 + 1
  paired = [set(s[i > 0].tolist()) for s, i in zip(batch['segment_BL'], batch['image_BL'])]
  is_alone = [[s not in of for s in row.tolist()] for row, of in zip(batch['segment_BL'], paired)]
  assert out['cross_entropy_text'][1] == np.sum(batch['weight_BL'] * np.array(is_alone))
  given = (*rows_of(batch), batch['latent_BIYXC'], jnp.ones((B, I), jnp.int32))
  hidden, _ = jax.jit(Transfusion(CONFIG).apply)({'params': params}, *given)
  log_p = jax.nn.log_softmax(hidden @ params['head']['table'].T)
  nll = -np.take_along_axis(log_p[:, :-1], batch['ids_BL'][:, 1:, None], -1)[..., 0]
  expected = np.sum(nll * batch['weight_BL'][:, 1:])
  np.testing.assert_allclose(out['cross_entropy'][0], expected, rtol=1e-5)
  out = jax.jit(task.denoising)({'params': params}, batch, jax.random.key(0))
  names = [f'denoising_{t}' for t in (5, 15, 25, 35, 45)]
  assert set(out) == {'denoising', *names}
  assert all(out[name][1] == np.sum(batch['image_valid_BI']) for name in names)
  np.testing.assert_allclose(out['denoising'][0], sum(out[name][0] for name in names), rtol=1e-6)
  assert len({float(out[name][0]) for name in names}) == 5


def test_training_starts_at_the_uniform_distribution_and_no_noise(batch):
  task = transfusion.TransfusionTask(dataclasses.replace(CONFIG, caption_dropout=0.0))

  @jax.jit
  def sums_of(batch):
    variables = nn.unbox(task.init(jax.random.key(0), batch))
    return task.loss(variables, batch, jax.random.key(0), 0, COUNTS)[1]

  sums = {name: float(total / count) for name, (total, count) in sums_of(batch).items()}
  np.testing.assert_allclose(sums['cross_entropy'], np.log(11), rtol=1e-5)
  # The mean square of 12 images of 48 normal numbers: its standard error is 0.06.
  np.testing.assert_allclose(sums['denoising'], 1.0, atol=0.25)


# Millions of parameters; the published names are within 4 %.
SIZES = {'0.16B': 163, '0.37B': 374, '0.76B': 778, '1.4B': 1365, '7B': 6739}


@pytest.mark.parametrize('size', SIZES)
def test_published_sizes_have_their_parameters(size):
  config = config_of({'size': size})
  assert config.num_patches == 256 and config.latent_shape == (32, 32, 8)
  batch = {
    **{n: jnp.zeros((1, 300), jnp.int32) for n in ('ids_BL', 'image_BL', 'patch_BL', 'segment_BL')},
    'latent_BIYXC': jnp.zeros((1, 1, 32, 32, 8)),
    'image_valid_BI': jnp.zeros((1, 1)),
  }

  def count(**changes):
    task = transfusion.TransfusionTask(dataclasses.replace(config, **changes))
    shapes = jax.eval_shape(task.init, jax.random.key(0), batch)['params']
    return {name: sum(a.size for a in jax.tree.leaves(tree)) for name, tree in shapes.items()}

  num = count()
  total = sum(num.values())
  assert round(total / 1e6) == SIZES[size]
  np.testing.assert_allclose(total, float(size[:-1]) * 1e9, rtol=0.04)
  # "Fewer than 0.5 % extra parameters" of linear patches; "0.27B" of the U-Net at every size.
  assert num['patches'] < 0.005 * total
  assert 0.26e9 < count(patches='unet')['patches'] < 0.275e9


def test_flops_count_every_weight_but_the_embedding():
  task = transfusion.make_task({**TINY, 'row_length': 16, 'row_images': 2})
  stack = jax.eval_shape(task.init, jax.random.key(0), mixed_batch(CONFIG, ROWS, L, I))
  matrices = sum(a.size for a in jax.tree.leaves(stack['params']['stack']) if a.ndim > 2) + 11 * 32
  patches = 4 * 2 * 12 * 32 * 2  # patches, in and out, numbers, width, multiply and add
  expected = 3 * (16 * (6 * matrices + 12 * 2 * 32 * 16) + 2 * 3 * patches)
  assert task.step_flops(3) == expected


def test_positions_and_neighbours_of_a_row(batch):
  shared = mixed_rows.rotary_positions(
    batch['image_BL'], batch['patch_BL'], batch['segment_BL'], 'shared'
  )
  np.testing.assert_array_equal(shared[0, :10], [0, 1, 2, 3, 4, 4, 4, 4, 5, 6])
  np.testing.assert_array_equal(shared[0, 10:19], [0, 1, 2, 2, 2, 2, 3, 4, 5])
  nearest = lambda f: np.asarray(f(batch['image_BL'], batch['segment_BL'])[2, :17])
  expected = [1, 1, 1, 0, 0, 0, 0, 2, 2, 2, 2, 0, 0, 0, 0, 0, 0]
  np.testing.assert_array_equal(nearest(mixed_rows.next_image), expected)
  expected = [0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 0, 0, 0, 0, 2, 2]
  np.testing.assert_array_equal(nearest(mixed_rows.last_image), expected)


BAD = {
  'model.latent_size is 5, expected a multiple of model.patch, which is 2': {'latent_size': 5},
  'model.patch is 3, but a U-Net halves': {'latent_size': 6, 'patch': 3, 'patches': 'unet'},
  "model.attention is 'both', expected one of bidirectional, causal": {'attention': 'both'},
  "model.objective is 'edm', expected one of ddpm, flow": {'objective': 'edm'},
  'model.noise_limit is 51, expected 1 to model.num_timesteps 50': {'noise_limit': 51},
  'expected three different ids below model.vocab_size 11': {'boi_id': 11},
  'an image takes 66 positions, but model.length is 24': {'latent_size': 16},
  'model.caption_dropout is 1.0, expected it in': {'caption_dropout': 1.0},
  'model.clean_timestep is 2, expected 0, 1 or None': {'clean_timestep': 2},
}


@pytest.mark.parametrize('message', BAD)
def test_settings_that_cannot_be_are_named(message):
  with pytest.raises(ConfigError, match=message):
    config_of({**TINY, **BAD[message]})


def test_batches_that_do_not_fit_are_named(batch):
  init = lambda **changes: transfusion.TransfusionTask(CONFIG).init(
    jax.random.key(0), {**batch, **changes}
  )
  with pytest.raises(ConfigError, match=r'latents are \[4, 6, 3\], but .* \[4, 4, 3\]'):
    init(latent_BIYXC=jnp.zeros((B, I, 4, 6, 3)))
  with pytest.raises(ConfigError, match='places for 0 images, expected at least 1'):
    init(latent_BIYXC=jnp.zeros((B, 0, 4, 4, 3)))
  with pytest.raises(ConfigError, match='rows have 25 positions .* but model.length is 24'):
    init(ids_BL=jnp.zeros((B, 25), int))
  with pytest.raises(ConfigError, match='model.row_length is 40, expected 2 to model.length 24'):
    transfusion.make_task({**TINY, 'row_length': 40})
