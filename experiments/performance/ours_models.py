"""jaxmm's side of the comparisons with MEGABYTE-pytorch and transfusion-pytorch.

The works are those of `peer_megabyte.py` and `peer_transfusion.py`. It keeps freed memory as the
command `jaxmm` does.
"""

import harness

harness.limit_threads()


import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import linen as nn  # noqa: E402

from jaxmm.core.decoding import SamplingConfig  # noqa: E402
from jaxmm.core.diffusion import SamplerConfig  # noqa: E402
from jaxmm.models import (  # noqa: E402  # noqa: E402
  megabyte,
  megabyte_generation,
  transfusion,
  transfusion_prompts,
  transfusion_sampling,
)
from jaxmm.task import example_keys  # noqa: E402
from jaxmm.train.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()
# The peer's depths, widths and heads; what its patch embedder does beside, ours (the paper's) does
# not.
MEGABYTE = dict(
  global_depth=6, global_width=512, global_heads=8, global_head_dim=64,
  local_depth=4, local_width=256, local_heads=8, local_head_dim=64,
  patch=8, length=4096, dropout=0.0,
)  # fmt: skip

# The peer's depth, width, heads and vocabulary. A block of the peer's has 1,050,112 weights a
# token, and 393,216 more join halves of its Stack; a hidden width of 784 makes ours 1 % more than
# these together. What tells the peer the time is not in this count: its 6 blocks take 9.4 million
# more weights to every token for it, ours a map an image.
TRANSFUSION = dict(
  depth=6, width=256, num_heads=8, head_dim=64, hidden=784, vocab_size=390,
  boi_id=386, eoi_id=387, null_id=388, length=384,
  latent_size=16, latent_channels=8, patch=1,
)  # fmt: skip


def _gradient(task, batch):
  """A function that computes loss and gradient, forward and backward."""
  variables = nn.unbox(jax.jit(task.init)(jax.random.key(0), batch))

  def loss(params, key):
    counts = task.counts(batch)
    return task.loss(dict(variables, params=params), batch, key, jnp.int32(0), counts)[0]

  gradient, keys = jax.jit(jax.value_and_grad(loss)), iter(range(10**9))
  params = variables['params']
  return lambda: jax.block_until_ready(gradient(params, jax.random.key(next(keys))))


def megabyte_train(options):
  """Forward and backward of rows of 4,096 bytes."""
  rows = options.batch or 2
  ids = np.random.default_rng(0).integers(0, 256, (rows, MEGABYTE['length']))
  batch = {
    'ids_BL': jnp.asarray(ids, jnp.int32),
    'segment_BL': jnp.ones(ids.shape, jnp.int32),
    'index_B': jnp.arange(rows, dtype=jnp.uint32),
    'valid_B': jnp.ones(rows),
  }
  return _gradient(megabyte.make_task(MEGABYTE), batch)


def transfusion_train(options):
  """Forward and backward of rows of text, a picture of 256 tokens, text.

  They have 329 positions, as the peer's of 64 text tokens: it adds a beginning, and the picture's
  shape as text.
  """
  task = transfusion.make_task(TRANSFUSION)
  config, rows = task.config, options.batch or 4
  P, before, after = config.num_patches, 39, 32
  rng = np.random.default_rng(0)
  text = lambda num: rng.integers(0, 256, (rows, num))
  brackets = np.broadcast_to([config.boi_id, config.eoi_id], (rows, 2))
  parts = (text(before), brackets[:, :1], np.zeros((rows, P)), brackets[:, 1:], text(after))
  ids = jnp.asarray(np.concatenate(parts, axis=1), jnp.int32)
  patch = jnp.arange(ids.shape[1]) - before - 1
  is_patch = jnp.broadcast_to((patch >= 0) & (patch < P), ids.shape)
  batch = {
    'ids_BL': ids,
    'image_BL': is_patch.astype(jnp.int32),
    'patch_BL': jnp.where(is_patch, patch, 0),
    'segment_BL': jnp.ones(ids.shape, jnp.int32),
    'weight_BL': jnp.where(is_patch, 0.0, 1.0),
    'latent_BIYXC': jnp.asarray(rng.standard_normal((rows, 1, *config.latent_shape)), jnp.float32),
    'image_valid_BI': jnp.ones((rows, 1)),
    'is_image_first_BI': jnp.zeros((rows, 1)),
    'index_B': jnp.arange(rows, dtype=jnp.uint32),
    'valid_B': jnp.ones(rows),
  }
  return _gradient(task, batch)


def transfusion_sample(options):
  """A guided picture for each of `batch` texts of 33 tokens.

  30 evaluations of the network, each with and without the text, and the pass that puts the finished
  picture into the cache.
  """
  config, rows = transfusion.config_of(TRANSFUSION), options.batch or 4
  text = np.random.default_rng(0).integers(0, 256, (rows, 33))
  room = text.shape[1] + config.num_patches + 2
  prompt = [[*ids, config.boi_id] for ids in text]
  prompt = jax.tree.map(jnp.asarray, transfusion_prompts.prompts(config, prompt, room))
  one = prompt.image_BS + 1
  init = jax.jit(transfusion.Transfusion(config).init)
  time_BI = jnp.zeros(prompt.latent_BIYXC.shape[:2], jnp.int32)
  given = (prompt.ids_BS, prompt.image_BS, prompt.patch_BS, one, prompt.latent_BIYXC, time_BI)
  params = nn.unbox(init(jax.random.key(0), *given))['params']
  layout = jax.jit(transfusion.decode_params, static_argnums=1)(params, config)
  sampler = SamplerConfig(steps=options.evaluations, method='ddim', guidance_scale=3.0)

  @jax.jit
  def draw(layout, params, prompt, key):
    keys_B = example_keys(key, jnp.arange(rows, dtype=jnp.uint32))
    return transfusion_sampling.generate(
      layout, params, config, prompt, keys_B, SamplingConfig(), sampler,
      num_positions=room, stop_after_images=True,
    )  # fmt: skip

  keys = iter(range(10**9))
  return lambda: jax.block_until_ready(draw(layout, params, prompt, jax.random.key(next(keys))))


def _sampled(given: int, new: int, after: bool = False):
  config = megabyte.config_of(MEGABYTE)
  ids = jnp.zeros((1, config.patch), jnp.int32)
  init = jax.jit(megabyte.Megabyte(config).init)
  params = nn.unbox(init(jax.random.key(0), ids))['params']
  layout = jax.jit(megabyte_generation.decode_params, static_argnums=1)(params, config)
  prompt = np.random.default_rng(0).integers(1, 256, (1, given)).astype(np.int32)
  length_B, keys = jnp.full(1, given, jnp.int32), iter(range(10**9))
  sampling = SamplingConfig(top_k=25)  # the peer's filter keeps a tenth

  begin = jax.jit(
    lambda: megabyte_generation.begin(params, config, prompt, length_B, sampling, new)
  )
  state = begin() if after else None

  @jax.jit
  def draw(layout, params, state, key):
    keys_B = example_keys(key, jnp.arange(1, dtype=jnp.uint32))
    if after:
      return megabyte_generation.continued(layout, config, state, length_B, keys_B, sampling, new)
    return megabyte_generation.generate(
      layout, params, config, prompt, length_B, keys_B, sampling, new
    )

  return lambda: jax.block_until_ready(draw(layout, params, state, jax.random.key(next(keys))))


def megabyte_sample(options):
  """The first 256 bytes from nothing."""
  del options
  return _sampled(0, 256)


def megabyte_sample_late(options):
  """16 bytes after 3,840, the pass over these included."""
  del options
  return _sampled(3840, 16)


def megabyte_sample_after(options):
  """16 bytes after 3,840 that are in the caches."""
  del options
  return _sampled(3840, 16, after=True)


if __name__ == '__main__':
  works = (
    megabyte_train, megabyte_sample, megabyte_sample_late, megabyte_sample_after,
    transfusion_train, transfusion_sample,
  )  # fmt: skip
  harness.serve({work.__name__: work for work in works}, __doc__)
