"""What a person looks at: originals beside reconstructions, and samples, as PNG grids."""

from __future__ import annotations

import math
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.data import byte_images, transforms
from jaxmm.data.pipeline import DataConfig
from jaxmm.report.images import tiled
from jaxmm.studies import loading, run
from jaxmm.studies.loaded import LoadedMixed
from jaxmm.studies.loaded_text import LoadedText

# What a grid shows at most; all samples are in the array.
_GRID = 256


def held_out_images(loaded: loading.LoadedRun, num: int) -> np.ndarray:
  """The first `num` images of the run's evaluation data, uint8 [num, Y, X, C]."""
  batches = run.make_batches(loaded.config, train=False, batch=min(num, 64))
  images, have = [], 0
  for rows in batches.once():
    good = rows['image_BYXC'][rows['valid_B'] > 0]
    images.append(good)
    have += len(good)
    if have >= num:
      break
  return np.concatenate(images)[:num]


def image_files(loaded: loading.LoadedRun, files: Sequence[str]) -> np.ndarray:
  """Picture files as the run's data would make them without randomness: size, channels, crop."""
  data = loaded.config['data']
  size, channels = data.get('image_size', 28), data.get('channels', 3)
  # Files may have any size, whatever those of the data had.
  crop = 'resize' if data.get('crop') == 'resize' else 'center'
  views = []
  for file in files:
    try:
      image = transforms.decode_image(pathlib.Path(file).read_bytes(), channels, True, file)
    except transforms.UnreadableRecord as error:
      raise ConfigError(f'{file} is no picture that can be read: {error}') from error
    views.append(transforms.cropped(image, size, crop, None, file))
  return np.stack(views)


def reconstruct(
  directory: str | os.PathLike,
  output: str | os.PathLike,
  *,
  num: int = 16,
  files: Sequence[str] | None = None,
) -> str:
  """Writes a PNG with each original above its reconstruction; returns what it says of them."""
  _check_wanted(output, num)
  loaded = loading.load(directory)
  if not isinstance(loaded, (loading.LoadedTokenizer, loading.LoadedAutoencoder)):
    raise ConfigError(f'{directory} is a run of {loaded.config["task"]}, expected a tokenizer')
  originals = image_files(loaded, files) if files else held_out_images(loaded, num)
  rebuilt = loaded.reconstruct(originals)
  write_pairs(originals, rebuilt, output)
  error = float(np.mean((originals.astype(np.float64) - rebuilt) ** 2))
  psnr = 10 * np.log10(255**2 / max(error, 1e-12))
  return f'{len(originals)} images, PSNR {psnr:.2f} dB: {output}'


def sample(
  directory: str | os.PathLike,
  output: str | os.PathLike,
  *,
  num: int = 64,
  labels: Sequence[int] | None = None,
  array: str | os.PathLike | None = None,
  tokenizer: str | os.PathLike | None = None,
  seed: int = 0,
  **sampling: Any,
) -> str:
  """Writes a PNG grid of samples (and their array); returns what it wrote.

  Args:
    directory: a run of an image model of classes, or of a model of the bytes of pictures.
    output: the grid.
    num: how many.
    labels: class ids; None is all in turn.
    array: uint8 images as `arr_0`.
    tokenizer: of an image model; None is the one whose codes it was trained on.
    seed: of what is drawn.
    **sampling: of `SamplingConfig`.

  Raises:
    ConfigError: another kind of run, or options that do nothing for it.
  """
  _check_wanted(output, num)
  loaded = loading.load(directory)
  if isinstance(loaded, LoadedText) and loaded.config['data'].get('bytes', {}).get('image_order'):
    images = _of_bytes(loaded, num, labels, tokenizer, seed, sampling)
    return _write_samples(images, output, array)
  if not isinstance(loaded, loading.LoadedImageLm):
    takes_prompts = isinstance(loaded, LoadedMixed | LoadedText)
    mend = ' of classes; give this one a --prompt' if takes_prompts else ''
    raise ConfigError(
      f'{directory} is a run of {loaded.config["task"]}, expected an image model{mend}'
    )
  classes = list(labels) if labels else list(range(loaded.task.config.num_classes))
  images = loaded.sample(np.resize(classes, num), seed=seed, tokenizer=tokenizer, **sampling)
  return _write_samples(images, output, array)


def _of_bytes(model: LoadedText, num, labels, tokenizer, seed, sampling) -> np.ndarray:
  """Pictures of a model of their bytes, from nothing; uint8 [num, Y, X, C]."""
  if labels or tokenizer:
    raise ConfigError(
      f'{model.directory} is a model of the bytes of pictures: it has neither classes (--labels) '
      'nor a tokenizer (--tokenizer)'
    )
  sampling.pop('guidance_interval', None)  # of guidance, which `write` refuses
  data = configs.from_mapping(DataConfig, model.config['data'], 'data')
  shape, of = (data.image_size, data.image_size, data.channels), data.bytes
  rows = model.write([b''] * num, math.prod(shape), seed=seed, **sampling)
  ids = (np.frombuffer(row, np.uint8) for row in rows)
  return np.stack([byte_images.image_of_bytes(row, shape, of.image_order, of.patch) for row in ids])


def _write_samples(images: np.ndarray, output, array) -> str:
  shown = images[:_GRID]
  _write_png(tiled(shown, int(np.ceil(np.sqrt(len(shown))))), output)
  if array:
    np.savez(array, arr_0=images)
  first = f' (the first {_GRID})' if len(images) > _GRID else ''
  return f'{len(images)} samples: {output}{first}' + (f', {array}' if array else '')


def draw(
  model: LoadedMixed,
  prompts: Sequence[str],
  output: str | os.PathLike,
  *,
  files: Sequence[str] | None = None,
  array: str | os.PathLike | None = None,
  **settings: Any,
) -> str:
  """Writes a PNG grid of an image for each prompt (and their array); returns what it wrote.

  Args:
    model: a run of a model of text and images.
    prompts: what is to be drawn, or done to the pictures.
    output: the grid.
    files: pictures that the prompts are to change, one for all or one a prompt, or several for one
      prompt; None draws from the texts alone.
    array: uint8 images as `arr_0`.
    **settings: of the model's `draw`.

  Raises:
    ConfigError: other numbers of pictures and prompts, or a file that is no picture.
  """
  _check_wanted(output, len(prompts))
  if files is None:
    images = model.draw(prompts, **settings)
  else:
    num = max(len(files), len(prompts))
    if min(len(files), len(prompts)) not in (1, num):
      raise ConfigError(
        f'there are {len(files)} pictures (--image) and {len(prompts)} prompts, expected one of '
        'either or as many'
      )
    given = image_files(model.autoencoder(settings.get('autoencoder')), files)
    repeated = lambda of: list(of) * (num // len(of))
    images = model.edit(np.stack(repeated(given)), repeated(prompts), **settings)
  _write_png(tiled(images, int(np.ceil(np.sqrt(len(images))))), output)
  if array:
    np.savez(array, arr_0=images)
  return f'{len(images)} images: {output}' + (f', {array}' if array else '')


def write_pairs(above: np.ndarray, below: np.ndarray, output: str | os.PathLike) -> None:
  """Writes a PNG with each image of the one array above that of the other, uint8 [B, Y, X, C]."""
  columns = min(len(above), 8)
  # Missing ones of the last row are as grey as the gaps.
  missing = np.full((-len(above) % columns, *above.shape[1:]), 128, np.uint8)
  whole = (np.concatenate([images, missing]) for images in (above, below))
  by_row = (images.reshape(-1, columns, *images.shape[1:]) for images in whole)
  pairs = np.stack(list(by_row), axis=1)
  _write_png(tiled(pairs.reshape(-1, *above.shape[1:]), columns), output)


def _check_wanted(output: str | os.PathLike, num: int) -> None:
  if pathlib.Path(output).suffix.lower() not in ('.png', '.jpg', '.jpeg', '.webp'):
    raise ConfigError(f'--output is {str(output)!r}, expected a picture file such as out.png')
  if num < 1:
    raise ConfigError(f'--num is {num}, expected at least 1')


def _write_png(image_YXC: np.ndarray, output: str | os.PathLike) -> None:
  pathlib.Path(output).parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(image_YXC[..., 0] if image_YXC.shape[-1] == 1 else image_YXC).save(output)
