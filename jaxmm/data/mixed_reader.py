"""One mixed row: its layout, and its pictures as pixels or latents.

Axes: B batch, L positions, I pictures of a row, Y X rows and columns, C channels, V views.
"""

from __future__ import annotations

import pathlib
from typing import TYPE_CHECKING, Any

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStore
from jaxmm.data.image_files import FileSource
from jaxmm.data.readers import ImageReader, packed_fields
from jaxmm.data.sources import Source, UnreadableRecord, innermost
from jaxmm.data.transforms import example_rng

if TYPE_CHECKING:
  from jaxmm.data.pipeline import DataConfig


class MixedReader:
  """The arrays of rows of text and pictures.

  `ids_BL` (0 at patches), `image_BL` (0 for text, else which of the row's pictures, from 1, the
  position is a patch of), `patch_BL` (which patch of it), `segment_BL` (0 is padding), `weight_BL`
  (of the position as a target of text: 0 for patches, EOI, padding and a segment's first, BOI
  counts), `is_image_first_BI` (text follows it in its segment, and none stands before it),
  `image_valid_BI` (0 where a row has fewer pictures), and `pixels_BIYXC` uint8 or `latent_BIYXC`
  float32. With codes there is no such field: they are the ids at patches, and weigh 1.

  Training draws by the example's index, so that an order is another one in another epoch;
  evaluation by the record, so that it is always the same.
  """

  def __init__(self, config: DataConfig, source: Source, seed: int, train: bool):
    self.source, self._mixed = source, innermost(source)
    self._seed, self._train = seed, train
    self._caption_first = config.mixed.caption_first
    if config.mixed.latents:
      self._images = _Latents(config, self._mixed.pictures, train)
    elif config.mixed.codes:
      self._images = _Codes(config, self._mixed.pictures, train)
    else:
      self._images = _Pixels(config, self._mixed.pictures, seed, train)
    length, num = self._mixed.layout.length, self._mixed.max_images
    self.fields = {
      **packed_fields(length),
      'image_BL': ((length,), np.int32),
      'patch_BL': ((length,), np.int32),
      'is_image_first_BI': ((num,), np.bool_),
      'image_valid_BI': ((num,), np.float32),
    }
    if self._images.name:
      self.fields[self._images.name] = ((num, *self._images.shape), self._images.dtype)

  def read(self, record: int, index: int) -> dict[str, Any]:
    units = self.source[record]['units']
    rng = example_rng(self._seed, index) if self._train else example_rng(0, record)
    is_first = (rng.random(len(units)) >= self._caption_first).tolist()
    units = [unit.placed(first) for unit, first in zip(units, is_first)]
    row = self._mixed.layout.row(units)
    out = {name.removesuffix('L') + 'BL': value for name, value in row.items()}
    numbers = [i for unit in units for i in unit.pictures]
    num = self._mixed.max_images
    images = np.zeros((num, *self._images.shape), self._images.dtype)
    for slot, number in enumerate(numbers):
      images[slot] = self._images.image(number, rng)
    first = [first for unit in units for first in unit.is_image_first()]
    out |= {
      'is_image_first_BI': np.array(first + [False] * (num - len(first)), np.bool_),
      'image_valid_BI': (np.arange(num) < len(numbers)).astype(np.float32),
    }
    if self._images.name:
      return out | {self._images.name: images}
    is_code = out['image_BL'] > 0
    out['ids_BL'][is_code] = images[out['image_BL'][is_code] - 1, out['patch_BL'][is_code]]
    out['weight_BL'][is_code] = 1
    return out


class _Pixels:
  """Pictures as `ImageReader` gives them."""

  name, dtype = 'pixels_BIYXC', np.uint8

  def __init__(self, config: DataConfig, pictures: FileSource, seed: int, train: bool):
    if config.crop == 'ten':
      raise ConfigError("data.crop is 'ten', but a mixed row has one view of a picture")
    self._reader = ImageReader(config, pictures, seed, train)
    self.shape = (config.image_size, config.image_size, config.channels)

  def image(self, number: int, rng: np.random.Generator) -> np.ndarray:
    try:
      return self._reader.image(number, rng)[0]
    except UnreadableRecord as e:
      raise UnreadableRecord(f'{self._reader.source.name(number)}: {e}') from e


class _Stored:
  """Pictures as a tokenizer wrote them; one of their views an example, at random.

  Args:
    config: of the data.
    path: of the store, `data.mixed.FIELD`.
    field: of the store.
    rank: dimensions of one view.
    kinds: of its type, as NumPy has them.
    expected: these two in words.
    pictures: what the store has a row for.
    train: whether views are drawn.
  """

  def __init__(
    self,
    config: DataConfig,
    path: str,
    field: str,
    rank: int,
    kinds: str,
    expected: str,
    pictures: FileSource,
    train: bool,
  ):
    where = f'data.mixed.{field} {path!r}'
    if not pathlib.Path(path, 'manifest.json').is_file():
      raise ConfigError(f'{where} is no store of {field}; `jaxmm tokenize` writes one')
    self._store, self._train, self._view = ArrayStore(path), train, config.eval_view
    self._field, self.meta = field, self._store.meta
    if field not in self._store.fields:
      raise ConfigError(f'{where} has fields {sorted(self._store.fields)}, expected `{field}`')
    shape, dtype = self._store.fields[field]
    if len(shape) not in (rank, rank + 1) or dtype.kind not in kinds:
      raise ConfigError(f'{where}: {field} are {dtype}{shape} a picture, expected {expected}')
    if len(self._store) != len(pictures):
      raise ConfigError(
        f'{where} has {len(self._store)} rows, but data.path {config.path!r} has {len(pictures)} '
        f"pictures; write the {field} of all of them (data.name 'images', data.labels 'none', "
        "split 'all')"
      )
    # The names tell pictures of the same number apart; stores of other makers may not have them.
    if self._store.meta.get('pictures', pictures.digest()) != pictures.digest():
      raise ConfigError(
        f'{where} are of pictures with other names than those of data.path {config.path!r}, which '
        f'would each get the {field} of another; write the {field} again'
      )
    if config.flip or config.crop == 'random':
      raise ConfigError(
        f'data.flip is {config.flip} and data.crop {config.crop!r}, but {where} are of pictures '
        "that were cropped before; set data.flip=False and data.crop='center', or write views"
      )
    self._num_views = shape[0] if len(shape) == rank + 1 else 1
    if not 0 <= self._view < self._num_views:
      raise ConfigError(f'data.eval_view is {self._view}, but there are {self._num_views} views')
    self.shape = tuple(shape[-rank:])

  def image(self, number: int, rng: np.random.Generator) -> np.ndarray:
    row = self._store[number]
    if not row.get('valid', True):
      raise UnreadableRecord(f'picture {number} could not be read when the {self._field} were made')
    view = self._view
    if self._train and self._num_views > 1:
      view = int(rng.integers(self._num_views))
    return row[self._field].reshape(self._num_views, *self.shape)[view]


class _Latents(_Stored):
  """Latents of pictures, float32 [Y, X, C]."""

  name, dtype = 'latent_BIYXC', np.float32

  def __init__(self, config: DataConfig, pictures: FileSource, train: bool):
    expected = 'floats [Y, X, C] or [V, Y, X, C]'
    super().__init__(config, config.mixed.latents, 'latents', 3, 'f', expected, pictures, train)


class _Codes(_Stored):
  """Codes of pictures as ids of the row, int32 [P]."""

  name, dtype = None, np.int32  # they stand in the row itself

  def __init__(self, config: DataConfig, pictures: FileSource, train: bool):
    mixed, text = config.mixed, config.text
    expected = 'whole numbers [P] or [V, P]'
    super().__init__(config, mixed.codes, 'codes', 1, 'iu', expected, pictures, train)
    if self.shape != (mixed.patches,):
      raise ConfigError(
        f'data.mixed.codes {mixed.codes!r} has {self.shape[0]} codes a picture, but '
        f'data.mixed.patches is {mixed.patches}; set it to {self.shape[0]}'
      )
    self._first, end = mixed.first_code, mixed.first_code + self.meta['num_codes']
    taken = [i for i in (text.bos_id, text.eos_id, text.pad_id) if i is not None]
    if any(self._first <= i < end for i in taken):
      raise ConfigError(
        f'data.mixed.first_code is {self._first}, so codes are the ids to {end - 1}, but bos, eos '
        f'and pad of data.text are {taken}; set first_code above them'
      )

  def image(self, number: int, rng: np.random.Generator) -> np.ndarray:
    return super().image(number, rng).astype(np.int32) + self._first
