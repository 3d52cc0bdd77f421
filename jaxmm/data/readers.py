"""One example from one record: reads, checks, transforms. A reader knows the arrays of its batches.

Axes: Y X rows and columns, C channels, V views, L tokens.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data.byte_images import image_bytes
from jaxmm.data.sources import Source, innermost
from jaxmm.data.transforms import cropped, decode_image, example_rng, ten_crop

if TYPE_CHECKING:
  from jaxmm.data.pipeline import DataConfig


class Reader(Protocol):
  """What `Batches` needs: the arrays of a row by name, and the values of one row."""

  source: Source
  fields: dict[str, tuple[tuple[int, ...], Any]]

  def read(self, record: int, index: int) -> dict[str, Any]:
    """The example with global index `index`, made of `record`; UnreadableRecord if damaged."""
    ...


class ImageReader:
  """`image_BYXC` uint8 (`image_BVYXC` with ten crops) and `label_B`."""

  def __init__(self, config: DataConfig, source: Source, seed: int, train: bool):
    self.source, self._config, self._seed = source, config, seed
    size, channels = config.image_size, config.channels
    self._is_ten = config.crop == 'ten'
    self._random_crop = train and config.crop == 'random'
    self._flip = train and config.flip and not self._is_ten
    view = (size, size, channels)
    self.fields: dict[str, tuple[tuple[int, ...], Any]] = {'label_B': ((), np.int32)}
    if self._is_ten:
      self.fields['image_BVYXC'] = ((10 * len(config.ten_crop_ratios), *view), np.uint8)
    else:
      self.fields['image_BYXC'] = (view, np.uint8)
    self._cache: dict[int, tuple[np.ndarray, int]] | None = {} if config.cache else None
    self._cache_bytes, self._lock = 0, threading.Lock()

  def read(self, record: int, index: int) -> dict[str, Any]:
    rng = example_rng(self._seed, index) if self._flip or self._random_crop else None
    image_YXC, label = self.image(record, rng)
    return {'image_BVYXC' if self._is_ten else 'image_BYXC': image_YXC, 'label_B': label}

  def image(self, record: int, rng: np.random.Generator | None) -> tuple[np.ndarray, int]:
    """The picture (or its views) and its label; `rng` is the example's, for crop and flip."""
    image_YXC, label = self._fixed_part(record)
    if self._random_crop:
      image_YXC = self._crop(image_YXC, record, rng)
    if self._flip and rng.random() < 0.5:
      image_YXC = image_YXC[:, ::-1]
    return image_YXC, label

  def _fixed_part(self, record: int) -> tuple[np.ndarray, int]:
    """The image as far as nothing random has happened to it, and the label; cached if asked."""
    if self._cache is not None and record in self._cache:
      return self._cache[record]
    values = self.source[record]
    label = checked_label(values['label'], self._config.num_classes, self.source, record)
    image_YXC = decode_image(
      values['image'],
      self._config.channels,
      self._config.convert_channels,
      self.source.name(record),
    )
    if self._is_ten:
      image_YXC = ten_crop(image_YXC, self._config.image_size, self._config.ten_crop_ratios)
    elif not self._random_crop:
      image_YXC = self._crop(image_YXC, record, None)
    if self._cache is not None:
      self._keep(record, np.ascontiguousarray(image_YXC), label)
    return image_YXC, label

  def _crop(self, image_YXC: np.ndarray, record: int, rng) -> np.ndarray:
    # A name costs more than a crop, so it is made only for the error.
    crop, size = self._config.crop, self._config.image_size
    if crop in ('none', 'pad') and image_YXC.shape[:2] != (size, size):
      return cropped(image_YXC, size, crop, rng, self.source.name(record))
    return cropped(image_YXC, size, crop, rng)

  def _keep(self, record: int, image_YXC: np.ndarray, label: int) -> None:
    with self._lock:
      if record not in self._cache:
        self._cache_bytes += image_YXC.nbytes
        self._cache[record] = (image_YXC, label)
    if self._cache_bytes > self._config.cache_gib * 2**30:
      raise ConfigError(
        f'data.cache holds {len(self._cache)} of {len(self.source)} pictures and is full at '
        f'data.cache_gib={self._config.cache_gib}; raise it or set data.cache=False'
      )


class ByteImageReader:
  """Each picture as a row of its bytes: the fields of packed bytes, and `label_B`.

  `ids_BL` are the bytes of ImageReader's picture in the order `data.bytes.image_order`,
  `segment_BL` is 1 and `weight_BL` 0 for the first byte, which nothing predicts, else 1.
  """

  def __init__(self, config: DataConfig, source: Source, seed: int, train: bool):
    if config.crop == 'ten':
      raise ConfigError(
        "data.crop is 'ten', which gives several views of a picture, but data.bytes.image_order is "
        f'{config.bytes.image_order!r}, which makes one row of it; set data.crop to another'
      )
    self.source, self._images = source, ImageReader(config, source, seed, train)
    self._order, self._patch = config.bytes.image_order, config.bytes.patch
    shape = (config.image_size, config.image_size, config.channels)
    # Says at once what every picture would.
    length = len(image_bytes(np.zeros(shape, np.uint8), self._order, self._patch))
    self.fields = {**packed_fields(length), 'label_B': ((), np.int32)}
    self._segment_L = np.ones(length, np.int32)
    self._weight_L = np.ones(length, np.float32)
    self._weight_L[0] = 0

  def read(self, record: int, index: int) -> dict[str, Any]:
    values = self._images.read(record, index)
    return {
      'ids_BL': image_bytes(values['image_BYXC'], self._order, self._patch),
      'weight_BL': self._weight_L,
      'segment_BL': self._segment_L,
      'label_B': values['label_B'],
    }


class TokenReader:
  """`ids_BL` and `label_B` of precomputed codes; one of their views an example, at random."""

  def __init__(self, config: DataConfig, source: Source, seed: int, train: bool):
    self.source, self._config, self._seed, self._train = source, config, seed, train
    tokens = innermost(source)
    views, length = tokens.num_views, tokens.length
    if not 0 <= config.eval_view < views:
      raise ConfigError(f'data.eval_view is {config.eval_view}, but there are {views} views')
    self.fields = {'ids_BL': ((length,), np.int32), 'label_B': ((), np.int32)}

  def read(self, record: int, index: int) -> dict[str, Any]:
    values = self.source[record]
    codes_VL = values['codes']
    label = checked_label(values['label'], self._config.num_classes, self.source, record)
    view = self._config.eval_view
    if self._train and len(codes_VL) > 1:
      view = int(example_rng(self._seed, index).integers(len(codes_VL)))
    return {'ids_BL': codes_VL[view], 'label_B': label}


class PackedReader:
  """`ids_BL`, `weight_BL` and `segment_BL` of packed documents (see `packing.PackedSource`)."""

  def __init__(self, config: DataConfig, source: Source, seed: int, train: bool):
    del config, seed, train  # a packed row has no randomness of its own
    self.source = source
    self.fields = packed_fields(innermost(source).length)

  def read(self, record: int, index: int) -> dict[str, Any]:
    del index
    values = self.source[record]
    return {
      'ids_BL': values['ids_L'],
      'weight_BL': values['weight_L'],
      'segment_BL': values['segment_L'],
    }


def packed_fields(length: int) -> dict[str, tuple[tuple[int, ...], Any]]:
  """The arrays of a row of ids."""
  return {
    'ids_BL': ((length,), np.int32),
    'weight_BL': ((length,), np.float32),
    'segment_BL': ((length,), np.int32),
  }


def checked_label(label: int, num_classes: int | None, source: Source, record: int) -> int:
  """The class id; ConfigError names the record if it is out of range."""
  if label < 0 or num_classes is not None and label >= num_classes:
    raise ConfigError(
      f'{source.name(record)} has class id {label}, but data.num_classes is {num_classes} '
      f'(class ids 0 to {(num_classes or 1) - 1}); set data.num_classes or mend the labels'
    )
  return label
