"""A trained Transfusion as an object that draws what a text says, and says what an image shows.

Axes: B prompts or images, Y X rows and columns, C channels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.core.diffusion import SamplerConfig
from jaxmm.models import transfusion, transfusion_prompts, transfusion_sampling
from jaxmm.studies.loaded import LoadedRun
from jaxmm.studies.loaded_codes import maker_of
from jaxmm.studies.loaded_text import Codec
from jaxmm.task import example_keys

# Compiled once for all calls of one shape and settings.
_layout = jax.jit(transfusion.decode_params, static_argnums=1)
_generate = jax.jit(
  transfusion_sampling.generate,
  static_argnames=(
    'config', 'sampling', 'sampler', 'num_positions', 'num_images', 'stop_id', 'stop_after_images',
  ),
)  # fmt: skip
_caption = jax.jit(
  transfusion_sampling.caption,
  static_argnames=('config', 'sampling', 'num_tokens', 'stop_id', 'before'),
)


class LoadedTransfusion(LoadedRun):
  """A trained Transfusion with the autoencoder whose latents it was trained on."""

  def autoencoder(self, directory: str | os.PathLike | None = None) -> LoadedRun:
    """The autoencoder in `directory`; None is that of the run's latents, at their step.

    Raises:
      ConfigError: the run read pixels or another's latents, or its autoencoder is gone.
    """
    return maker_of(self, 'latents', directory)

  def draw(
    self,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    autoencoder: str | os.PathLike | None = None,
    **sampler: Any,
  ) -> np.ndarray:
    """An image for each text, uint8 [B, Y, X, C].

    What a text gets hangs on it, its place among the prompts and the seed, on no other prompt.

    Args:
      prompts: captions.
      seed: of the noise.
      autoencoder: a run directory; None is that of the latents the model was trained on.
      **sampler: of `SamplerConfig` (steps, method, guidance_scale, ...).

    Raises:
      ConfigError: texts too long for an image behind them, or settings that cannot be.
    """
    config, codec = self.task.config, Codec.of(self.config)
    settings = configs.from_mapping(SamplerConfig, sampler, 'sampler')
    rows = [[*codec.before, *codec.encode(p.encode()), config.boi_id] for p in prompts]
    if not rows:
      raise ConfigError('there is no prompt; an empty one, "", is one')
    num = max(map(len, rows)) + config.num_patches + 1
    if num > config.length:
      raise ConfigError(
        f'the longest prompt and an image take {num} positions, but model.length is '
        f'{config.length}; give shorter ones'
      )
    mixed = _generate(
      self._layout, self.variables['params'],
      prompt=transfusion_prompts.prompts(config, rows, num),
      key_B=example_keys(jax.random.key(seed), np.arange(len(rows), dtype=np.uint32)),
      config=config, sampling=SamplingConfig(), sampler=settings, num_positions=num,
      num_images=1, stop_after_images=True,
    )  # fmt: skip
    return self.autoencoder(autoencoder).decode(np.asarray(mixed.latent_BIYXC[:, 0]))

  def describe(
    self,
    image_BYXC: np.ndarray,
    length: int = 64,
    *,
    seed: int = 0,
    autoencoder: str | os.PathLike | None = None,
    **sampling: Any,
  ) -> list[str]:
    """A text for each image.

    Args:
      image_BYXC: uint8 images of the autoencoder's size.
      length: tokens of a text at most.
      seed: of what is drawn.
      autoencoder: see `draw`.
      **sampling: of `SamplingConfig`, without guidance.
    """
    config, codec = self.task.config, Codec.of(self.config)
    settings = configs.from_mapping(SamplingConfig, sampling, 'sampling')
    latent = self.autoencoder(autoencoder).encode(image_BYXC)
    ids = _caption(
      self._layout, self.variables['params'], latent_BYXC=latent,
      key_B=example_keys(jax.random.key(seed), np.arange(len(latent), dtype=np.uint32)),
      config=config, sampling=settings, num_tokens=length, stop_id=codec.eos_id,
      before=codec.before,
    )  # fmt: skip
    return [codec.decode(row).decode(errors='replace') for row in np.asarray(ids)]

  @functools.cached_property
  def _layout(self):
    return _layout(self.variables['params'], self.task.config)
