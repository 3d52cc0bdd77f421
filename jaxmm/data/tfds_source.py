"""TFDS data sets, downloaded, prepared and read without TensorFlow.

Reading needs none (TFDS's `data_source`). Preparing calls it for two things only in most picture
sets: to open files and to encode arrays as PNG. Where TensorFlow is not installed both are done
here while a set is prepared; a set that wants more of it says so.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import os
import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.sources import Record, check_split


class TfdsSource:
  """A TFDS data set with the features `image` and `label`.

  Args:
    name: `cifar10` or `tfds:cifar10`; a configuration follows a slash, as in TFDS.
    split: 'train', 'test' ('validation' where there is no test) or 'all'.
    data_dir: where TFDS keeps it; '' for its default.

  Raises:
    ConfigError: TFDS cannot download, prepare or read it.
  """

  def __init__(self, name: str, split: str, data_dir: str = ''):
    self._of, self._records = _read(name, split, data_dir)
    features = self._records.dataset_info.features
    if 'image' not in features:
      name = name.removeprefix('tfds:')
      raise ConfigError(f'TFDS {name!r} has no feature "image", it has {sorted(features)}')
    self.num_classes = features['label'].num_classes if 'label' in features else None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, i: int) -> Record:
    record = self._records[i]
    return {'image': record['image'], 'label': int(record.get('label', 0))}

  def with_contents(self, i: int) -> tuple[Record, tuple[bytes, ...]]:
    record = self[i]
    return record, (corpus.Example('', image=record['image']).content,)

  def name(self, i: int) -> str:
    return _id(self._of, i)

  def id(self, i: int) -> str:
    return self.name(i)


def named_records(given: str) -> Iterator[tuple[str, dict[str, Any]]]:
  """(id, record) of all records of `tfds:NAME/SPLIT`; ids are those of TfdsSource.

  A record has the features by name: pictures as encoded bytes, texts as str (bytes where they are
  no UTF-8). TFDS looks where it always does: TFDS_DATA_DIR names another directory.

  Raises:
    ConfigError: as TfdsSource.
  """
  of, records = _read(*_name_and_split(given))
  features = records.dataset_info.features
  for i in range(len(records)):
    record = records[i].items()
    yield _id(of, i), {name: _plain(value, features[name]) for name, value in record}


def state(given: str) -> list:
  """[size in bytes, what tells one version of `tfds:NAME/SPLIT` from another], JSON values."""
  info = _read(*_name_and_split(given))[1].dataset_info
  splits = {name: list(of.shard_lengths) for name, of in info.splits.items()}
  return [int(info.dataset_size), [info.full_name, str(info.data_dir), splits]]


def _name_and_split(given: str) -> tuple[str, str]:
  name, slash, split = given.removeprefix('tfds:').rpartition('/')
  if not name or split not in ('train', 'test', 'all'):
    raise ConfigError(
      f"input {given!r}: expected tfds:NAME/SPLIT, where SPLIT is 'train', 'test' or 'all'"
    )
  return name, split


def _id(of: str, i: int) -> str:
  return f'{of}[{i}]'


def _plain(value: Any, feature: Any) -> Any:
  if isinstance(feature, tfds.features.Text):
    try:
      return value.decode('utf-8')
    except UnicodeDecodeError:
      return value
  return value.item() if isinstance(value, np.generic) else value


def _read(name: str, split: str, data_dir: str = ''):
  """(what ids begin with, records) of a data set, prepared first if it is not."""
  check_split(split)
  name = name.removeprefix('tfds:')
  try:
    builder = tfds.builder(name, data_dir=data_dir or None, file_format='array_record')
    if not builder.is_prepared():
      with _no_tensorflow(builder):
        builder.download_and_prepare()
    if split == 'test' and 'test' not in builder.info.splits:
      split = 'validation'  # ImageNet, for one, has labels only there
    features = builder.info.features
    pictures = [n for n in features if isinstance(features[n], tfds.features.Image)]
    decoders = {n: tfds.decode.SkipDecoding() for n in pictures}
    return f'tfds:{name}/{split}', builder.as_data_source(split=split, decoders=decoders)
  except Exception as e:  # TFDS raises what its many downloaders raise.
    raise ConfigError(
      f'TFDS cannot give {name!r}, split {split!r}: {type(e).__name__}: {e}. It downloads on '
      'first use (a network is needed) and prepares some data sets only where TensorFlow is '
      f'installed; `tfds build {name} --file_format=array_record` prepares one anywhere, and '
      'data.path (TFDS_DATA_DIR in `jaxmm curate`) names the directory that holds it'
    ) from e


@contextlib.contextmanager
def _no_tensorflow(builder):
  """Stands in for an absent TensorFlow in the modules that download and prepare `builder`."""
  if importlib.util.find_spec('tensorflow') is not None:
    yield
    return
  _encode_by_pillow(builder)
  prefix = 'tensorflow_datasets.core.download.'
  names = (type(builder).__module__, f'{prefix}extractor', f'{prefix}downloader')
  modules = [sys.modules[n] for n in names if hasattr(sys.modules.get(n), 'tf')]
  before = [module.tf for module in modules]
  files = types.SimpleNamespace(GFile=lambda path, mode='r': open(os.fspath(path), mode))
  stand_in = types.SimpleNamespace(
    io=types.SimpleNamespace(gfile=files),
    compat=types.SimpleNamespace(as_text=os.fsdecode),
    errors=types.SimpleNamespace(UnimplementedError=NotImplementedError),
  )
  try:
    for module in modules:
      module.tf = stand_in
    yield
  finally:
    for module, tf in zip(modules, before, strict=True):
      module.tf = tf


def _encode_by_pillow(builder) -> None:
  """Pictures that come as arrays are handed to TFDS as PNG files."""
  features = builder.info.features
  feature = features['image'] if 'image' in features else None
  if not isinstance(feature, tfds.features.Image):
    return
  encode = feature.encode_example

  def encode_example(image):
    if isinstance(image, np.ndarray) and image.dtype == np.uint8:
      png = io.BytesIO()
      Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(png, 'PNG')
      image = io.BytesIO(png.getvalue())
    return encode(image)

  feature.encode_example = encode_example
