"""Images of classes that an image model draws, and their features, as one resumable store.

The image of row i depends on (seed, i) alone, so it is the same on any mesh, in any batch and after
any interruption; class labels go round.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm import batch_job, sharding
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.data.array_store import ArrayStore
from jaxmm.evaluate.images import to_pixels
from jaxmm.models import image_lm
from jaxmm.studies import image_sets, loading
from jaxmm.studies.encoders import weights_digest
from jaxmm.studies.image_sets import Network
from jaxmm.task import example_keys
from jaxmm.tokenizers.vqgan import Vqgan

Echo = Callable[[str], None]
# Rows that a command that was stopped has to draw again, at most.
_ROWS_A_SHARD = 256


def draw(
  loaded: loading.LoadedImageLm,
  num: int,
  network: Network | None,
  directory: pathlib.Path,
  *,
  batch: int = 64,
  seed: int = 0,
  tokenizer: str | None = None,
  echo: Echo = print,
  **sampling: Any,
) -> ArrayStore:
  """The store of `num` images (uint8 `image`) and their features.

  Args:
    loaded: the image model.
    num: images.
    network: of the features; None stores images alone.
    directory: below which the store is kept.
    batch: images at a time; rounded up to the mesh.
    seed: of all images.
    tokenizer: a run directory; None is the tokenizer whose codes the model was trained on.
    echo: is given progress lines.
    **sampling: of `SamplingConfig`.

  Raises:
    ConfigError: fewer than 2 images, a tokenizer with other codes, or settings that sampling
      refuses.
  """
  if num < 2:
    raise ConfigError(f'--samples is {num}, expected 2 or more images to compare')
  decoder = loading.load(tokenizer) if tokenizer else loaded.tokenizer()
  config, settings = loaded.task.config, configs.from_mapping(SamplingConfig, sampling, 'sampling')
  if decoder.num_codes != config.num_codes:
    raise ConfigError(
      f'the tokenizer in {decoder.directory} has {decoder.num_codes} codes, the model in '
      f'{loaded.directory} {config.num_codes}'
    )
  layout = jax.jit(image_lm.decode_params, static_argnums=1)(loaded.variables['params'], config)
  variables = {
    'layout': layout,
    'decoder': decoder.network(),
    'features': network and network.params,
    'key': jax.random.key_data(jax.random.key(seed)),
  }

  def fn(variables, batch):
    keys = example_keys(jax.random.wrap_key_data(variables['key']), batch['index_B'])
    ids_BL = image_lm.generate(variables['layout'], config, batch['label_B'], keys, settings)
    image = Vqgan(decoder.model.config).apply(
      variables['decoder'], ids_BL, None, method='decode_ids'
    )
    image = to_pixels(image)
    found = network.fn(variables['features'], image) if network else {}
    return {'image': image.astype(jnp.uint8), **found}

  shape = jax.eval_shape(
    lambda v: Vqgan(decoder.model.config).apply(
      v, jnp.zeros((1, config.length), jnp.int32), None, method='decode_ids'
    ),
    decoder.network(),
  ).shape[1:]
  identity = {
    'samples': num,
    'seed': seed,
    'sampling': configs.plain(settings),
    'model': weights_digest(loaded.variables['params']),
    'tokenizer': weights_digest(decoder.network()),
    'network': network and dict(network.identity),
  }
  mesh = image_sets.mesh_of_all()
  labels = {
    'label_B': np.arange(num, dtype=np.int32) % config.num_classes,
    'index_B': np.arange(num, dtype=np.uint32),
  }
  return batch_job.run(
    batch_job.ArrayPass(labels, batch, mesh),
    fn,
    directory / f'drawn-{image_sets.digest(identity)}',
    variables=variables,
    fields={'image': (shape, np.uint8), **(network.fields if network else {})},
    mesh=mesh,
    rules=sharding.RULES['dp'],
    rows_per_shard=_ROWS_A_SHARD,
    meta=identity,
    echo=echo,
  )
