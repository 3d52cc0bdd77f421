"""The scale of an autoencoder's latents: measured over its data, kept beside its checkpoint.

    RUN/latent_scale-STEP.json    scale, shift, and what they were measured on

A scale belongs to the parameters of one step; other parameters have other latents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxmm import batch_job, sharding
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import loading, tokens
from jaxmm.tokenizers import latent_scale
from jaxmm.tokenizers.latent_scale import LatentScale, Moments


def measure(
  directory: str | os.PathLike,
  *,
  split: str = 'train',
  per_channel: bool = False,
  center: bool = False,
  batch: int = 64,
  overrides: Sequence[str] = (),
  replace: bool = False,
  echo: Callable[[str], None] | None = print,
) -> LatentScale:
  """Measures the scale of a run's latents and keeps it with the run.

  Args:
    directory: the run of an autoencoder.
    split: of the run's data.
    per_channel, center: as in `latent_scale.latent_scale`.
    batch: images a step; the result depends on it by rounding alone.
    overrides: `data.key=value` settings on top of the run's own data.
    replace: whether a scale that the step has already may become another one. Latents that were
      written with the old one, and models of them, still need that one; their store remembers it.
    echo: receives progress lines.

  Raises:
    ConfigError: not an autoencoder's run, an unknown setting, latents without variance, or another
      scale there already.
  """
  loaded = loading.load(directory)
  if not isinstance(loaded, loading.LoadedAutoencoder):
    raise ConfigError(
      f'{directory} is a run of {loaded.config["task"]}, whose codes have no scale; expected an '
      'autoencoder with continuous latents (jaxmm.tokenizers.vae_task)'
    )
  data = tokens.data_config(loaded.config, split, 'one', overrides)
  moments = _moments(loaded, tokens.batches_of(loaded, data, batch), echo)
  origin = {
    'num_images': moments.num_images,
    'mean': moments.mean_D.tolist(),
    'std': moments.std_D.tolist(),
    'split': split,
    'data': configs.plain(data),
  }
  scale = latent_scale.latent_scale(moments, per_channel=per_channel, center=center, origin=origin)
  path = loading.scale_path(loaded.directory, loaded.step)
  old = loading.read_scale(loaded.directory, loaded.step, loaded.weights)
  if old is not None and _is_close(old, scale):
    return old  # measured again, on another mesh perhaps
  if old is not None and not replace:
    raise ConfigError(
      f'{path} already holds another scale, {_shown(old)}; this one would be {_shown(scale)}. '
      'Models of latents that were written with the old one need it: replace it aloud '
      '(replace=True, --replace), or keep it'
    )
  if jax.process_index() == 0:
    loading.write_scale(loaded.directory, loaded.step, loaded.weights, scale)
  if echo:
    echo(f'{_shown(scale)} over {moments.num_images} images: {path}')
  return scale


def _moments(loaded: loading.LoadedAutoencoder, batches: Any, echo) -> Moments:
  """Moments of the means that the encoder gives to the images of one pass."""
  model, task = loaded.model, loaded.task

  def image_moments(variables, batch):
    z_BYXD = model.apply(variables, task.pixels(batch), method='encode')
    return latent_scale.image_moments(z_BYXD)

  rows, columns = task.config.grid
  results = batch_job.outputs(
    batches,
    image_moments,
    variables=loaded.network(),
    mesh=sharding.make_mesh(sharding.MeshConfig()),
    rules=sharding.RULES['dp'],
  )
  mean_D, square_D = (np.zeros((0, loaded.latent_dim)) for _ in range(2))
  moments = Moments.of(rows * columns, mean_D, square_D)
  for _, result in results:
    seen = result['valid']
    part = Moments.of(rows * columns, result['mean'][seen], result['square'][seen])
    moments = moments.merged(part)
  return moments


def _is_close(a: LatentScale, b: LatentScale) -> bool:
  pairs = ((a.scale, b.scale), (a.shift, b.shift))
  return all(len(x) == len(y) and np.allclose(x, y, rtol=1e-5, atol=1e-6) for x, y in pairs)


def _shown(scale: LatentScale) -> str:
  def numbers(values):
    return f'{values[0]:.6g}' if len(values) == 1 else f'{len(values)} channels'

  return f'scale {numbers(scale.scale)}, shift {numbers(scale.shift)}'
