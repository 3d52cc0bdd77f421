"""A trained Transfusion as an object: it draws what a text says, changes an image as one says, says
what an image shows, and goes on with both.

Axes: B prompts or images, Y X rows and columns, C channels.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.core.diffusion import SamplerConfig
from jaxmm.models import transfusion, transfusion_prompts, transfusion_sampling
from jaxmm.studies.loaded import LoadedMixed
from jaxmm.studies.loaded_text import Codec, prompt_bytes
from jaxmm.task import example_keys

# Compiled once for all calls of one shape and settings.
_layout = jax.jit(transfusion.decode_params, static_argnums=1)
_generate = jax.jit(
  transfusion_sampling.generate,
  static_argnames=(
    'config', 'sampling', 'sampler', 'num_positions', 'num_images', 'stop_id', 'stop_after_images',
  ),
)  # fmt: skip
# Prompts are padded to its multiples, so that few lengths are compiled.
_PROMPT_BUCKET = 32
_caption = jax.jit(
  transfusion_sampling.caption,
  static_argnames=('config', 'sampling', 'num_tokens', 'stop_id', 'before'),
)


class LoadedTransfusion(LoadedMixed):
  """A trained Transfusion with the autoencoder whose latents it was trained on."""

  stored = 'latents'

  def sampler_config(self, sampler: Mapping[str, Any]) -> SamplerConfig:
    """Settings by name; without a `method` the one that is every model's of this objective."""
    method = 'euler' if self.task.config.objective == 'flow' else 'ancestral'
    return configs.from_mapping(SamplerConfig, {'method': method, **sampler}, 'sampler')

  def draw(
    self,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    batch: int = 64,
    autoencoder: str | os.PathLike | None = None,
    **sampler: Any,
  ) -> np.ndarray:
    """An image for each text, uint8 [B, Y, X, C].

    What a text gets hangs on it, its place among the prompts and the seed, on no other prompt.

    Args:
      prompts: captions.
      seed: of the noise.
      batch: images that are drawn at one time.
      autoencoder: a run directory; None is that of the latents the model was trained on.
      **sampler: of `SamplerConfig` (steps, method, guidance_scale, ...); a model of flow is drawn
        from by 'euler' unless told otherwise.

    Raises:
      ConfigError: texts too long for an image behind them, or settings that cannot be.
    """
    coder, encode = self.autoencoder(autoencoder), Codec.of(self.config).encode
    rows = [encode(p) for p in prompt_bytes(prompts)]
    return coder.decode(self.latents_after(rows, seed=seed, batch=batch, **sampler), batch=batch)

  def edit(
    self,
    image_BYXC: np.ndarray,
    instructions: Sequence[str],
    *,
    seed: int = 0,
    batch: int = 64,
    autoencoder: str | os.PathLike | None = None,
    **sampler: Any,
  ) -> np.ndarray:
    """Each image as its instruction wants it, uint8 [B, Y, X, C].

    The model goes on from the clean image and the text, so it must have been trained on such
    sequences (`parts` of `data.captions`). Guidance is towards the instruction; the image is seen
    with and without it.

    Args:
      image_BYXC: uint8 images of the autoencoder's size.
      instructions: one an image.
      seed, batch, autoencoder, **sampler: see `draw`.

    Raises:
      ConfigError: as many texts as images are wanted; else as `draw`.
    """
    coder, encode = self.autoencoder(autoencoder), Codec.of(self.config).encode
    given = prompt_bytes(instructions)
    if len(image_BYXC) != len(instructions):
      raise ConfigError(
        f'there are {len(image_BYXC)} images and {len(instructions)} instructions, expected one '
        'for each'
      )
    latent = coder.encode(image_BYXC, batch)
    rows = [[x, *encode(text)] for x, text in zip(latent, given)]
    return coder.decode(self.latents_after(rows, seed=seed, batch=batch, **sampler), batch=batch)

  def latents_after(
    self,
    rows: Sequence[Sequence[Any]],
    *,
    seed: int = 0,
    batch: int = 64,
    echo: Callable[[str], Any] = lambda line: None,
    **sampler: Any,
  ) -> np.ndarray:
    """The latent of an image that comes after each row of text and images, float32 [B, Y, X, C].

    Args:
      rows: ids and latents in order, see `transfusion_prompts.prompts`, without the first id of a
        document and the bracket of the image that is wanted.
      seed, batch, **sampler: see `draw`.
      echo: is given progress lines.

    Raises:
      ConfigError: see `draw`.
    """
    config, before = self.task.config, Codec.of(self.config).before
    settings = self.sampler_config(sampler)
    rows = [[*before, *row, config.boi_id] for row in rows]
    if not rows:
      raise ConfigError('there is no prompt; an empty one, "", is one')
    behind = config.num_patches + 1
    longest = max(sum(behind + 1 if np.ndim(item) else 1 for item in row) for row in rows)
    if longest + behind > config.length:
      raise ConfigError(
        f'the longest prompt and an image take {longest + behind} positions, but model.length is '
        f'{config.length}; give shorter ones'
      )
    length = min(-(-longest // _PROMPT_BUCKET) * _PROMPT_BUCKET, config.length - behind)
    most = max(1, *(sum(np.ndim(item) > 0 for item in row) for row in rows))
    out = []
    for index, chunk in _chunks(rows, batch):
      prompt = transfusion_prompts.prompts(
        config, chunk, length + behind, length=length, num_images=most
      )
      mixed = _generate(
        self._layout, self.variables['params'], prompt=prompt,
        key_B=example_keys(jax.random.key(seed), index),
        config=config, sampling=SamplingConfig(), sampler=settings,
        num_positions=length + behind, num_images=1, stop_after_images=True,
      )  # fmt: skip
      latent_BIYXC, last_B = np.asarray(mixed.latent_BIYXC), np.asarray(mixed.images_B) - 1
      out.append(latent_BIYXC[np.arange(len(last_B)), last_B])
      echo(f'drawn: {min(sum(map(len, out)), len(rows)):,}/{len(rows):,} images')
    return np.concatenate(out)[: len(rows)]

  def describe(
    self,
    image_BYXC: np.ndarray,
    length: int = 64,
    *,
    seed: int = 0,
    batch: int = 64,
    autoencoder: str | os.PathLike | None = None,
    **sampling: Any,
  ) -> list[str]:
    """A text for each image.

    Args:
      image_BYXC: uint8 images of the autoencoder's size.
      length: tokens of a text at most.
      seed: of what is drawn.
      batch: images that are described at one time.
      autoencoder: see `draw`.
      **sampling: of `SamplingConfig`, without guidance.

    Raises:
      ConfigError: images of another size, a length for which there is no room behind an image, or
        settings that cannot be.
    """
    latent = self.autoencoder(autoencoder).encode(image_BYXC, batch)
    return self.texts_after(latent, length, seed=seed, batch=batch, **sampling)

  def texts_after(
    self,
    latent_BYXC: np.ndarray,
    length: int,
    *,
    seed: int = 0,
    batch: int = 64,
    echo: Callable[[str], Any] = lambda line: None,
    **sampling: Any,
  ) -> list[str]:
    """`describe` of latents; `echo` is given progress lines."""
    config, codec = self.task.config, Codec.of(self.config)
    settings, texts = configs.from_mapping(SamplingConfig, sampling, 'sampling'), []
    room = config.length - len(codec.before) - config.num_patches - 2
    if not 1 <= length <= room:
      raise ConfigError(
        f'length is {length}, but behind an image model.length {config.length} has room for {room} '
        f'tokens: expected 1 to {room}'
      )
    if settings.is_guided:
      raise ConfigError(
        f'guidance_scale of text is {settings.guidance_scale}, but only images are guided; use 1'
      )
    for index, chunk in _chunks(list(latent_BYXC), batch):
      ids = _caption(
        self._layout, self.variables['params'], latent_BYXC=np.stack(chunk),
        key_B=example_keys(jax.random.key(seed), index),
        config=config, sampling=settings, num_tokens=length, stop_id=codec.eos_id,
        before=codec.before,
      )  # fmt: skip
      texts += [codec.decode(row).decode(errors='replace') for row in np.asarray(ids)]
      echo(f'described: {min(len(texts), len(latent_BYXC)):,}/{len(latent_BYXC):,} images')
    return texts[: len(latent_BYXC)]

  def compose(
    self,
    prompts: Sequence[str | Sequence[str | np.ndarray]],
    length: int,
    *,
    images: int = 1,
    seed: int = 0,
    batch: int = 64,
    autoencoder: str | os.PathLike | None = None,
    sampling: Mapping[str, Any] | None = None,
    **sampler: Any,
  ) -> list[list[str | np.ndarray]]:
    """What the model puts behind each prompt: texts, and images where it begins one, in order.

    Args:
      prompts: a text, or texts and uint8 images [Y, X, C] of the autoencoder's size in order.
      length: new positions at most, those of images included.
      images: that each may have at most; then the model goes on with text alone.
      seed, batch, autoencoder, **sampler: see `draw`.
      sampling: of `SamplingConfig`, for text, without guidance.

    Returns:
      Of each prompt its new parts, strings and uint8 images; of a text that ends no more.

    Raises:
      ConfigError: no room for so much, or settings that cannot be.
    """
    config, codec, coder = self.task.config, Codec.of(self.config), self.autoencoder(autoencoder)
    of_images = self.sampler_config(sampler)
    of_text = configs.from_mapping(SamplingConfig, dict(sampling or {}), 'sampling')
    if isinstance(prompts, str) or not prompts:
      raise ConfigError(f'prompts is {prompts!r}, expected a list with at least one')
    rows = [self._row(prompt, codec, coder) for prompt in prompts]
    behind = config.num_patches + 2
    longest = max(sum(behind if np.ndim(item) else 1 for item in row) for row in rows)
    if length < 1 or longest + length > config.length:
      raise ConfigError(
        f'length is {length}, but model.length {config.length} has room for '
        f'{config.length - longest} positions behind the longest prompt of {longest}'
      )
    out: list[list[str | np.ndarray]] = []
    for index, chunk in _chunks(rows, batch):
      prompt = transfusion_prompts.prompts(config, chunk, longest + length, length=longest)
      mixed = _generate(
        self._layout, self.variables['params'], prompt=prompt,
        key_B=example_keys(jax.random.key(seed), index),
        config=config, sampling=of_text, sampler=of_images, num_positions=longest + length,
        num_images=images, stop_id=codec.eos_id,
      )  # fmt: skip
      mixed = jax.tree.map(np.asarray, mixed)
      for b in range(len(chunk)):
        new = transfusion_prompts.pieces(mixed, b, int(prompt.length_B[b]))
        out.append([_shown(part, codec, coder) for part in new])
    return [[part for part in parts if not isinstance(part, str) or part] for parts in out][
      : len(rows)
    ]

  def _row(self, prompt, codec: Codec, coder) -> list[Any]:
    """Ids and latents of a prompt."""
    row: list[Any] = [*codec.before]
    for part in [prompt] if isinstance(prompt, str) else prompt:
      is_text = isinstance(part, str)
      row.extend(codec.encode(prompt_bytes([part])[0]) if is_text else coder.encode(part[None]))
    return row

  @functools.cached_property
  def _layout(self):
    return _layout(self.variables['params'], self.task.config)


def _shown(part, codec: Codec, coder) -> str | np.ndarray:
  """A piece of a row as text, or as the image that a latent is of."""
  if isinstance(part, np.ndarray):
    return coder.decode(part[None])[0]
  return codec.decode(np.array(part)).decode(errors='replace')


def _chunks(rows: list[Any], batch: int) -> Iterator[tuple[np.ndarray, list[Any]]]:
  """Numbers and rows of chunks of one size, so that it is compiled once; the last row is repeated
  for what the last chunk lacks.
  """
  if batch < 1:
    raise ConfigError(f'batch is {batch}, expected at least 1')
  size = min(batch, len(rows))
  for start in range(0, len(rows), max(size, 1)):
    chunk = rows[start : start + size]
    yield np.arange(start, start + size, dtype=np.uint32), chunk + rows[-1:] * (size - len(chunk))
