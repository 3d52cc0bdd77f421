"""What Transfusion's sampler is given and gives: rows of text and images, beside one another.

Axes: B rows, S positions, I images a row has room for, Y X C of a latent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.models.transfusion_config import TransfusionConfig


@flax.struct.dataclass
class Mixed:
  """Rows of text and images, each at its beginning of S positions.

  Attributes:
    ids_BS: token ids, 0 at patches.
    image_BS: 0 on text, i on the patches of the i-th image.
    patch_BS: a patch's number in its image.
    length_B: positions that are filled.
    latent_BIYXC: the images.
    images_B: how many.
  """

  ids_BS: jax.Array
  image_BS: jax.Array
  patch_BS: jax.Array
  length_B: jax.Array
  latent_BIYXC: jax.Array
  images_B: jax.Array


def prompts(
  config: TransfusionConfig,
  prompt: Sequence[Sequence[Any]],
  num_positions: int,
  *,
  length: int | None = None,
  num_images: int | None = None,
) -> Mixed:
  """Prompts of different lengths as `generate` takes them, NumPy arrays.

  Args:
    config: the model's.
    prompt: of each row, ids and images ([Y, X, C] latents of unit variance) in order; images get
      their brackets. A last id of `config.boi_id` asks for an image.
    num_positions: S of the generation it is for.
    length: positions of the arrays, to compile once for many calls; None is the longest prompt.
    num_images: images that a row has room for, likewise; None is the largest number, or 1.

  Raises:
    ConfigError: no prompt or an empty one, one that does not fit, brackets among the ids or ids
      outside the vocabulary, an image of another shape.
  """
  if not prompt:
    raise ConfigError('there is no prompt; give a row at least')
  given = [[np.asarray(item) for item in row if np.ndim(item)] for row in prompt]
  filled = [_filled(config, i, row, num_positions) for i, row in enumerate(prompt)]
  longest = max(len(ids) for ids, _, _ in filled)
  most = max(1, *(len(images) for images in given))
  length, num_images = length or longest, num_images or most
  if longest > length or most > num_images:
    raise ConfigError(
      f'prompts have up to {longest} positions and {most} images, more than length={length} or '
      f'num_images={num_images}'
    )
  out = np.zeros((3, len(prompt), length), np.int32)
  latent = np.zeros((len(prompt), num_images, *config.latent_shape), np.float32)
  for b, (columns, images) in enumerate(zip(filled, given)):
    out[:, b, : len(columns[0])] = columns
    for i, image in enumerate(images):
      latent[b, i] = image
  lengths = np.array([len(ids) for ids, _, _ in filled], np.int32)
  return Mixed(*out, lengths, latent, np.array([len(images) for images in given], np.int32))


def _filled(config: TransfusionConfig, number: int, row: Sequence[Any], num_positions: int):
  """Ids, image numbers and patch numbers of one prompt."""
  ids, image, patch, num, P = [], [], [], 0, config.num_patches
  for item in row:
    shape = np.shape(item)
    if not shape:
      ids.append(int(item))
      image.append(0)
      patch.append(0)
      continue
    if shape != config.latent_shape:
      raise ConfigError(
        f'prompt {number} has an image of shape {list(shape)}, expected a latent of '
        f'{list(config.latent_shape)} (model.latent_size twice, model.latent_channels)'
      )
    num += 1
    ids += [config.boi_id, *[0] * P, config.eoi_id]
    image += [0, *[num] * P, 0]
    patch += [0, *range(P), 0]
  outside = [i for i in ids if not 0 <= i < config.vocab_size]
  if outside:
    raise ConfigError(
      f'prompt {number} has id {outside[0]}, but model.vocab_size is {config.vocab_size} (ids 0 to '
      f'{config.vocab_size - 1}); was it encoded for another model?'
    )
  last_is_boi = bool(row) and not np.shape(row[-1]) and int(row[-1]) == config.boi_id
  brackets = [int(i) for i in row if not np.shape(i) and int(i) in (config.boi_id, config.eoi_id)]
  if len(brackets) > last_is_boi:
    raise ConfigError(
      f'prompt {number} has brackets {brackets} among its ids; give images as arrays, and '
      f'boi_id {config.boi_id} as the last id alone'
    )
  needed = len(ids) + (P + 1 if last_is_boi else 0)
  if not ids or needed > num_positions:
    raise ConfigError(
      f'prompt {number} needs {needed} positions{" with the image it asks for" * last_is_boi}, '
      f'expected 1 to {num_positions}'
    )
  return ids, image, patch


def pieces(mixed: Mixed, row: int, first: int = 0) -> list[Any]:
  """A row as it is read, on the host, from a position on: lists of ids, and images [Y, X, C];
  brackets are among the ids.
  """
  ids, image = (
    np.asarray(a[row])[first : int(mixed.length_B[row])] for a in (mixed.ids_BS, mixed.image_BS)
  )
  out, last = [], 0
  for token, number in zip(ids.tolist(), image.tolist()):
    if number:
      if number != last:
        out.append(np.asarray(mixed.latent_BIYXC[row, number - 1]))
      last = number
    elif out and isinstance(out[-1], list):
      out[-1].append(token)
    else:
      out.append([token])
  return out
