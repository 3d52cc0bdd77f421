"""jaxmm's side of the comparisons with LlamaGen; the works are those of `peer_llamagen.py`.

It keeps freed memory as the command `jaxmm` does.
"""

import harness

harness.limit_threads()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import linen as nn  # noqa: E402

from jaxmm.core.decoding import SamplingConfig  # noqa: E402
from jaxmm.models import image_lm  # noqa: E402
from jaxmm.task import example_keys  # noqa: E402
from jaxmm.tokenizers import vqgan  # noqa: E402
from jaxmm.train.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()


def vq_train(options):
  """VQ-16 at 128x128: forward and backward of MSE, codebook and commitment terms."""
  model = vqgan.Vqgan(vqgan.VQ_16)
  x = jax.random.uniform(jax.random.key(1), (options.batch or 2, 128, 128, 3), minval=-1)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), x))

  def loss(params):
    out = model.apply(params, x)
    q, weight = out.quantized, model.config.quantizer.commitment_weight
    mse = jnp.mean(jnp.square(out.recon_BYXC - x))
    return mse + jnp.mean(q.codebook_error_BL) + weight * jnp.mean(q.commitment_error_BL)

  gradient = jax.jit(jax.value_and_grad(loss))
  return lambda: jax.block_until_ready(gradient(params))


def gpt_train(options):
  """GPT at 256 tokens with its dropouts: forward and backward of the cross entropy."""
  task = image_lm.make_task({'size': options.preset, 'grid': 16})
  rows = options.batch or 2
  rng = np.random.default_rng(0)
  batch = {
    'ids_BL': jnp.asarray(rng.integers(0, 16_384, (rows, 256)), jnp.int32),
    'label_B': jnp.asarray(rng.integers(0, 1000, rows), jnp.int32),
    'index_B': jnp.arange(rows, dtype=jnp.uint32),
    'valid_B': jnp.ones(rows),
  }
  params = nn.unbox(jax.jit(task.init)(jax.random.key(0), batch))['params']

  def loss(params, key):
    counts = task.counts(batch)
    return task.loss({'params': params}, batch, key, jnp.int32(0), counts)[0]

  gradient, keys = jax.jit(jax.value_and_grad(loss)), iter(range(10**9))
  return lambda: jax.block_until_ready(gradient(params, jax.random.key(next(keys))))


def gpt_sample(options):
  """256 tokens for each of `batch` classes, guidance 2.0, top-k 2000."""
  config = image_lm.config_of({'size': options.preset, 'grid': 16})
  labels = np.arange(options.batch or 4) * 97 % 1000
  model = image_lm.ImageLm(config)
  ids = jnp.zeros((1, 256), jnp.int32)
  params = nn.unbox(jax.jit(model.init)(jax.random.key(0), jnp.zeros(1, jnp.int32), ids))['params']
  head = params['head']['kernel']  # zero at first: give it a distribution
  params['head']['kernel'] = 0.02 * jax.random.normal(jax.random.key(1), head.shape)
  sampling = SamplingConfig(guidance_scale=2.0, top_k=2000)
  layout = jax.jit(image_lm.decode_params, static_argnums=1)(params, config)
  index_B, keys = jnp.arange(len(labels), dtype=jnp.uint32), iter(range(10**9))

  @jax.jit
  def draw(layout, key):
    keys_B = example_keys(key, index_B)
    return image_lm.generate(layout, config, jnp.asarray(labels), keys_B, sampling)

  return lambda: jax.block_until_ready(draw(layout, jax.random.key(next(keys))))


if __name__ == '__main__':
  harness.serve({'vq_train': vq_train, 'gpt_train': gpt_train, 'gpt_sample': gpt_sample}, __doc__)
