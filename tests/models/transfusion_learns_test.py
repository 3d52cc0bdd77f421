"""The whole of it at once: a tiny model learns to draw what it is told and name what it sees."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxmm.core.decoding import SamplingConfig
from jaxmm.core.diffusion import SamplerConfig
from jaxmm.models import transfusion
from jaxmm.models import transfusion_sampling as sampling
from jaxmm.models.transfusion_prompts import prompts
from tests.mixed_rows import mixed_batch

IMAGE, BOI = 'image', 4
MODEL = {
  'depth': 2, 'width': 48, 'num_heads': 4, 'hidden': 96, 'vocab_size': 7, 'length': 8,
  'latent_size': 4, 'latent_channels': 1, 'boi_id': BOI, 'eoi_id': 5, 'null_id': 6,
  'time': 'width', 'clean_timestep': 1,
}  # fmt: skip
PICTURES = np.sign(np.random.default_rng(0).standard_normal((2, 4, 4, 1))).astype(np.float32)


@pytest.mark.parametrize('objective', ['ddpm', pytest.param('flow', marks=pytest.mark.slow)])
def test_a_tiny_model_draws_what_it_is_told_and_names_what_it_sees(objective):
  task = transfusion.make_task({**MODEL, 'objective': objective})
  # Ids 1 and 2 name the two pictures; each name before its picture and after it.
  batch = mixed_batch(
    task.config, [[[1, IMAGE]], [[2, IMAGE]], [[IMAGE, 1]], [[IMAGE, 2]]] * 4, 8, 1
  )
  batch['latent_BIYXC'] = jnp.asarray(np.tile(PICTURES[:, None], (8, 1, 1, 1, 1)))
  optimizer = optax.adam(optax.cosine_decay_schedule(6e-3, 800))

  @jax.jit
  def trained(batch):
    params = nn.unbox(task.init(jax.random.key(0), batch))['params']

    def step(i, carry):
      params, state = carry
      rows = {**batch, 'index_B': batch['index_B'] + 16 * i.astype(jnp.uint32)}
      loss = lambda p: task.loss({'params': p}, rows, jax.random.key(1), i, task.counts(rows))[0]
      updates, state = optimizer.update(jax.grad(loss)(params), state)
      return optax.apply_updates(params, updates), state

    return jax.lax.fori_loop(0, 800, step, (params, optimizer.init(params)))[0]

  params = trained(batch)
  config, layout = task.config, transfusion.decode_params(params, task.config)
  keys = jax.random.split(jax.random.key(5), 8)
  method = 'euler' if objective == 'flow' else 'ancestral'

  @jax.jit
  def drawn_and_named(params, layout):
    drawn = sampling.generate(
      layout, params, config, prompts(config, [[1, BOI], [2, BOI]] * 4, 8), keys,
      SamplingConfig(), SamplerConfig(25, method=method, guidance_scale=1.5), num_positions=8,
      num_images=1, stop_after_images=True,
    )  # fmt: skip
    named = sampling.caption(
      layout, params, config, jnp.asarray(PICTURES), keys[:2], SamplingConfig(greedy=True), 1
    )
    return drawn.latent_BIYXC[:, 0], named

  drawn, named = drawn_and_named(params, layout)
  assert named[:, 0].tolist() == [1, 2]
  apart = np.mean((np.asarray(drawn)[:, None] - PICTURES) ** 2, axis=(2, 3, 4))
  # The pictures are 1.5 apart in mean square; noise would be 2 from both.
  assert np.argmin(apart, 1).tolist() == [0, 1] * 4
  assert apart.min(1).max() < 0.2, apart
