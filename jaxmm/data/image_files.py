"""Pictures in a folder or in a zip: sorted, so that record i is the same file on every machine.

    root/<class>/*.jpg             the class is the folder, numbered in sorted order
    root/train/<class>/*.jpg       the split is the first folder where all of them are splits:
                                   train, and the first there is of test, val, validation
                                   (not one of flat pictures where another has classes)
    root/*.jpg and a labels csv    columns `file` and `label` (or `class_index`, or `class`)

Pictures that lie flat, with no csv, are all of class 0; so are those that have no classes by the
word of the user (`labels='none'`), wherever they lie.
"""

from __future__ import annotations

import csv
import hashlib
import math
import os
import pathlib
import struct
import threading
import zipfile
import zlib
from collections.abc import Callable, Sequence

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.sources import (
  Record,
  Source,
  UnreadableRecord,
  check_split,
  in_test_split,
  split_files,
  split_folders,
)


class FileSource:
  """Named pictures with labels, read by `read(file) -> bytes`; `others` are of other splits."""

  def __init__(
    self, root: str, files: Sequence[str], labels: Sequence[int], classes, read, others=()
  ):
    self._root, self._files, self._labels, self._read = root, list(files), list(labels), read
    self._others = others
    self.classes: tuple[str, ...] = tuple(classes)
    self.num_classes = len(self.classes) or None

  def __len__(self) -> int:
    return len(self._files)

  def __getitem__(self, i: int) -> Record:
    try:
      return {'image': self._read(self._files[i]), 'label': self._labels[i]}
    except (OSError, zlib.error) as e:
      raise UnreadableRecord(f'{type(e).__name__}: {e}') from e

  def with_contents(self, i: int) -> tuple[Record, tuple[bytes, ...]]:
    record = self[i]
    return record, (corpus.Example('', image=record['image']).content,)

  def name(self, i: int) -> str:
    return f'{self._root}/{self._files[i]}'

  def id(self, i: int) -> str:
    return self._files[i]

  def other_ids(self) -> Sequence[str]:
    return self._others

  def digest(self) -> str:
    """Of the names in their order: what is stored by a picture's number belongs to these alone."""
    names = '\0'.join(self._files).encode('utf-8', 'surrogatepass')
    return hashlib.blake2b(names, digest_size=16).hexdigest()


def image_source(path: str, split: str, test_fraction: float = 0.1, labels: str = '') -> Source:
  """The pictures under a folder or in a zip.

  Args:
    path: the folder or the zip.
    split: 'train', 'test' or 'all'; folders of that name where there are some, else about
      `test_fraction` of the files, chosen by a hash of their names, are 'test'.
    labels: a csv file with the classes; '' takes them from the folders; 'none' has none.

  Raises:
    ConfigError: nothing there, no pictures, a split folder or a label is missing.
  """
  check_split(split)
  files, read = _listed(path)
  all_files = files
  if not labels:
    files = _without_unlabelled_split(files)
  chosen, below = _split_files(files, split, test_fraction, path)
  if not chosen:
    raise ConfigError(
      f'data.path {path!r}: split {split!r} is empty ({len(files)} pictures in all)'
    )
  if labels == 'none':
    class_ids, classes = [0] * len(chosen), ()
  elif labels:
    class_ids, classes = _csv_classes(labels, chosen)
  else:
    # From all files, not the chosen ones: a class has the same number in every split.
    classes = sorted({_folder_class(f, below) for f in files})
    if '' in classes and len(classes) > 1:
      flat = next(f for f in files if not _folder_class(f, below))
      raise ConfigError(
        f'data.path {path!r}: {flat!r} lies beside the class folders {", ".join(classes[1:4])}, so '
        'it has no class; put it into one or away, name the classes in a csv (data.labels), or '
        "set data.labels='none'"
      )
    number = {name: i for i, name in enumerate(classes)}
    class_ids = [number[_folder_class(f, below)] for f in chosen]
  others = sorted(set(all_files) - set(chosen))
  return FileSource(str(path), chosen, class_ids, classes, read, others)


def _listed(path: str) -> tuple[list[str], Callable[[str], bytes]]:
  """The pictures of a folder or zip, sorted, and what reads one."""
  root = pathlib.Path(path)
  if root.is_dir():
    files, read = _folder_files(root), _FolderReader(root)
  elif root.is_file() and zipfile.is_zipfile(root):
    reader = ZipReader(root)
    files, read = reader.files, reader
  elif root.exists():
    raise ConfigError(f'data.path {path!r} is neither a folder nor a zip of pictures')
  else:
    raise ConfigError(f'data.path {path!r} does not exist')
  files = sorted(f for f in files if f.lower().endswith(corpus.IMAGES) and not corpus.is_hidden(f))
  if not files:
    raise ConfigError(f'data.path {path!r} holds no pictures ({", ".join(corpus.IMAGES)})')
  return files, read


def _folder_files(root: pathlib.Path) -> list[str]:
  found = []
  for folder, _, names in os.walk(root, followlinks=True):
    inner = pathlib.Path(folder).relative_to(root)
    found += [(inner / n).as_posix() for n in names]
  return found


def _without_unlabelled_split(files: list[str]) -> list[str]:
  """Without a held-out folder of flat pictures (ImageNet's `test`) where another has classes."""
  tops = split_folders(files)
  held_out = [top for top, split in tops.items() if split == 'test']
  flat = [top for top in held_out if all(f.count('/') == 1 for f in files if _top(f) == top)]
  if len(tops) > len(held_out) and 0 < len(flat) < len(held_out):
    return [f for f in files if _top(f) not in flat]
  return files


def _top(file: str) -> str:
  return file.split('/')[0]


def _split_files(
  files: list[str], split: str, test_fraction: float, path: str
) -> tuple[list[str], int]:
  """The files of a split, and how many leading folders are not the class."""
  chosen = split_files(files, split, path)
  if chosen is not None:
    return chosen, 1
  if split == 'all':
    return files, 0
  return [f for f in files if in_test_split(f, test_fraction) == (split == 'test')], 0


def _folder_class(file: str, below: int) -> str:
  parts = file.split('/')[below:]
  return parts[0] if len(parts) > 1 else ''


def _csv_classes(labels: str, files: list[str]) -> tuple[list[int], tuple[str, ...]]:
  """Class ids of the files, and the class names; integers in the csv are class ids already."""
  path = pathlib.Path(labels)
  if not path.is_file():
    raise ConfigError(f'data.labels {labels!r} does not exist')
  with open(path, newline='', encoding='utf-8-sig') as f:  # Excel writes a byte order mark
    rows = list(csv.DictReader(f))
  columns = list(rows[0]) if rows else []
  column = next((c for c in ('label', 'class_index', 'class') if c in columns), None)
  if 'file' not in columns or column is None:
    raise ConfigError(
      f'data.labels {labels!r} has columns {columns}, expected `file` and one of `label`, '
      '`class_index`, `class`'
    )
  of = {row['file']: row[column] for row in rows}
  missing = [f for f in files if f not in of]
  if missing:
    raise ConfigError(
      f'data.labels {labels!r} has no row for {len(missing)} pictures, first {missing[0]!r}'
    )
  of = {file: (value or '').strip() for file, value in of.items()}
  blank = [file for file, value in of.items() if not value]
  if blank:
    raise ConfigError(f'data.labels {labels!r}: {column} of {blank[0]!r} is empty')
  numbers = {file: _number(value) for file, value in of.items()}
  if None not in numbers.values():
    wrong = [file for file, number in numbers.items() if number < 0 or number != int(number)]
    if wrong:
      raise ConfigError(
        f'data.labels {labels!r}: {column} of {wrong[0]!r} is {of[wrong[0]]}, expected a class id '
        '(0, 1, ...) or, in all rows, names'
      )
    classes = range(int(max(numbers.values())) + 1)
    return [int(numbers[f]) for f in files], tuple(map(str, classes))
  names = sorted(set(of.values()))
  number = {name: i for i, name in enumerate(names)}
  return [number[of[f]] for f in files], tuple(names)


def _number(text: str) -> float | None:
  try:
    value = float(text)
  except ValueError:
    return None
  return value if math.isfinite(value) else None


class _FolderReader:
  def __init__(self, root: pathlib.Path):
    self._root = root

  def __call__(self, file: str) -> bytes:
    return (self._root / file).read_bytes()


class ZipReader:
  """Reads members of a zip by position, so that threads and forked processes do not disturb.

  `zipfile` shares one file offset behind a lock; `pread` needs neither.
  """

  def __init__(self, path: str | os.PathLike):
    self._path = os.fspath(path)
    self._lock, self._file = threading.Lock(), None
    with zipfile.ZipFile(path) as archive:
      infos = [i for i in archive.infolist() if not i.is_dir()]
    for info in infos:
      if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ConfigError(
          f'{path}: {info.filename} is encrypted or compressed by method {info.compress_type}; '
          'only stored and deflated members can be read'
        )
    self._members = {
      i.filename: (i.header_offset, i.compress_size, i.file_size, i.CRC, i.compress_type)
      for i in infos
    }
    self.files = list(self._members)

  def __getstate__(self):
    return {**self.__dict__, '_lock': None, '_file': None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())

  def __call__(self, file: str) -> bytes:
    offset, compressed, size, crc, method = self._members[file]
    descriptor = self._descriptor()
    header = os.pread(descriptor, 30, offset)
    if len(header) < 30 or header[:4] != b'PK\x03\x04':
      raise OSError(f'no zip member at byte {offset}')
    # The local header's name and extra field may be longer than the directory's.
    name_bytes, extra_bytes = struct.unpack('<HH', header[26:30])
    data = os.pread(descriptor, compressed, offset + 30 + name_bytes + extra_bytes)
    if method == zipfile.ZIP_DEFLATED:
      data = zlib.decompress(data, -15)
    if len(data) != size or zlib.crc32(data) != crc:
      raise OSError('its bytes differ from the checksum in the zip')
    return data

  def _descriptor(self) -> int:
    with self._lock:
      if self._file is None:
        self._file = open(self._path, 'rb')
      return self._file.fileno()
