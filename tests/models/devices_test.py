"""What is drawn hangs on a row's prompt and key, not on the devices that draw it; nor does a loss
(the trainer's tests and those of each model say more of losses)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.core.decoding import SamplingConfig
from jaxmm.core.diffusion import SamplerConfig
from jaxmm.models import megabyte_generation, transfusion, transfusion_sampling
from jaxmm.models.megabyte_network import Megabyte
from jaxmm.models.transfusion_prompts import prompts
from tests.mixed_rows import mixed_batch
from tests.models import megabyte_cases, transfusion_test

DRAWN = SamplingConfig(temperature=1.2)
KEYS = jax.random.split(jax.random.key(3), 8)
MESHES = [('dp', (8, 1, 1)), ('tensor', (2, 2, 2))]


def on_devices(rules_name, sizes, run, params, boxed, rows):
  """`run(params, rows)` with rows and parameters spread as the rules say."""
  rules, mesh = sharding.rules_named(rules_name), sharding.make_mesh(sharding.MeshConfig(*sizes))
  params = jax.device_put(params, sharding.tree_shardings(boxed, rules, mesh))
  rows = jax.tree.map(lambda a: jax.device_put(a, sharding.batch_sharding(mesh)), rows)
  with sharding.in_mesh(mesh, rules):
    # A function of its own: one that was traced elsewhere would not know this mesh.
    out = jax.jit(lambda params, rows: run(params, rows))(params, rows)
  spread = {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(rows)}
  assert spread == {8}
  return jax.device_get(out)


@pytest.mark.slow
@pytest.mark.parametrize('rules, sizes', MESHES)
def test_bytes(rules, sizes):
  config = megabyte_cases.config_of(megabyte_cases.VARIANTS['all'])
  params = megabyte_cases.random_params(config)
  boxed = jax.eval_shape(Megabyte(config).init, jax.random.key(0), jnp.zeros((1, 8), int))
  rng = np.random.default_rng(0)
  given = [rng.integers(0, config.vocab_size, n).tolist() for n in (0, 1, 3, 4, 5, 9, 13, 8)]
  prompt_BN, length_B = megabyte_generation.prompts(given)

  def run(params, rows):
    layout = megabyte_generation.decode_params(params, config)
    return megabyte_generation.generate(layout, params, config, *rows, DRAWN, 15)

  rows = (prompt_BN, length_B, KEYS)
  one = jax.device_get(jax.jit(run)(params, rows))
  assert len({tuple(row) for row in one}) == 8
  np.testing.assert_array_equal(on_devices(rules, sizes, run, params, boxed['params'], rows), one)


@pytest.mark.slow
@pytest.mark.parametrize('rules, sizes', MESHES)
def test_text_and_images(rules, sizes):
  """Rows in different modes, images under guidance."""
  config = transfusion.config_of({**transfusion_test.TINY, 'length': 32})
  params = transfusion_test.random_params(config)
  batch = mixed_batch(config, [[[1]]], config.length, 2)
  task = transfusion.TransfusionTask(config)
  boxed = jax.eval_shape(task.init, jax.random.key(0), batch)['params']
  image = np.random.default_rng(5).standard_normal(config.latent_shape).astype(np.float32)
  boi = config.boi_id
  given = [[3, 1], [5, 2, 6, boi], [image], [1, image, 4, boi], [6], [boi], [2, 2], [image, 3]]
  prompt = prompts(config, given, 28)

  def run(params, rows):
    layout = transfusion.decode_params(params, config)
    prompt, key_B = rows
    return transfusion_sampling.generate(
      layout, params, config, prompt, key_B, DRAWN, SamplerConfig(4, guidance_scale=2.0),
      num_positions=28, num_images=1, stop_id=7,
    )  # fmt: skip

  rows = (prompt, KEYS)
  one = jax.device_get(jax.jit(run)(params, rows))
  assert one.images_B.max() == 2 and len(set(one.length_B.tolist())) > 1
  many = on_devices(rules, sizes, run, params, boxed, rows)
  for name in ('ids_BS', 'image_BS', 'patch_BS', 'length_B', 'images_B'):
    np.testing.assert_array_equal(getattr(many, name), getattr(one, name), err_msg=name)
  # The first of 4 steps of the cosine schedule multiplies rounding by hundreds, guidance by 3.
  np.testing.assert_allclose(many.latent_BIYXC, one.latent_BIYXC, atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize('rules, sizes', MESHES)
def test_the_loss_with_unet_patches(rules, sizes):
  changes = transfusion_test.VARIANTS['unet'] | {'clean_rate': 0.3, 'noise_limit': 25}
  config = transfusion.config_of({**transfusion_test.TINY, **changes})
  params, task = transfusion_test.random_params(config), transfusion.TransfusionTask(config)
  batch = mixed_batch(config, transfusion_test.ROWS, transfusion_test.L, transfusion_test.I)
  boxed = jax.eval_shape(task.init, jax.random.key(0), batch)['params']

  def run(params, rows):
    return task.loss({'params': params}, rows, KEYS[0], 0, task.counts(rows))[:2]

  one, many = jax.jit(run)(params, batch), on_devices(rules, sizes, run, params, boxed, batch)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6), many, one)
