"""Files of any kind as documents of bytes, read from the files as rows are asked for.

    any file                    its bytes, as they stand there
    *.wav                       the bytes of its samples (16-bit PCM, little endian) without the
                                header, or with `wav='file'` the file as any other
    one file                    one document; its last `test_fraction` of bytes is 'test'

The plan knows sizes only, so a folder of any size is a data set. Id 0 is the byte 0; `PAD` fills
rows.

Axes: D documents, T bytes of all documents.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
import wave
from collections.abc import Iterator, Sequence
from typing import BinaryIO

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.bad_records import BadRecords
from jaxmm.data.kept import Verdicts
from jaxmm.data.packing import METHODS, PackedSource, check_align
from jaxmm.data.sources import UnreadableRecord, check_split, in_test_split, split_files

# The id that fills rows: the first that is no byte.
PAD = 256
WAV = ('samples', 'file')
# What `wave` raises on damaged, cut or compressed sound.
_NO_WAV = (wave.Error, EOFError, RuntimeError)
IMAGE_ORDERS = ('', 'raster', 'patch')


@dataclasses.dataclass(frozen=True)
class BytesConfig:
  """How files or pictures become rows of bytes.

  Attributes:
    length: bytes of a row of files; a picture is one row of its own length.
    packing: 'concat' or 'first_fit' (see `packing.packing_plan`).
    align: files begin at its multiples in a row (for models of patches); 1 leaves no gaps.
    suffixes: of the files taken from a folder, such as ('.wav',); () takes all.
    exclude: patterns of files and folders of it that are passed over (see `data.corpus`).
    wav: 'samples' reads the samples of .wav files without their header, 'file' the files as any.
    image_order: '' leaves pictures alone; 'raster' or 'patch' makes each picture of an image source
      a row of bytes in that order (see `data.byte_images`).
    patch: bytes of a patch in the order 'patch' (192 are 8 x 8 pixels of 3 channels).
  """

  length: int = 8192
  packing: str = 'concat'
  align: int = 1
  suffixes: tuple[str, ...] = ()
  exclude: tuple[str, ...] = ()
  wav: str = 'samples'
  image_order: str = ''
  patch: int = 192

  def __post_init__(self):
    if self.length < 2:
      raise ConfigError(f'data.bytes.length is {self.length}, expected at least 2 bytes')
    for field, known in (('packing', METHODS), ('wav', WAV), ('image_order', IMAGE_ORDERS)):
      value = getattr(self, field)
      if value not in known:
        raise ConfigError(f'data.bytes.{field} is {value!r}, expected one of {known}')
    if self.patch < 1:
      raise ConfigError(f'data.bytes.patch is {self.patch}, expected at least 1 byte')
    check_align('data.bytes', self.align, self.length)


@dataclasses.dataclass(frozen=True)
class Extent:
  """The part of a file that is a document.

  Attributes:
    path: of the file.
    size: of the whole file when it was found; another size later is an error.
    first: where in the file's bytes, or in its samples' bytes, the document begins.
    num_bytes: of the document.
    frame: bytes of a frame of samples; 0 for a file that is read as it is.
  """

  path: str
  size: int
  first: int
  num_bytes: int
  frame: int = 0

  def read(self, start: int, length: int) -> bytes:
    """`length` bytes of the document from `start` on.

    Raises:
      UnreadableRecord: the file is gone, has another size, or breaks off.
    """
    try:
      with open(self.path, 'rb') as f:
        size = os.fstat(f.fileno()).st_size
        if size != self.size:
          raise UnreadableRecord(f'{self.path} has {size} bytes, it had {self.size} at the start')
        data = self._bytes(f, self.first + start, length)
    except (OSError, *_NO_WAV) as e:
      raise UnreadableRecord(f'{self.path}: {type(e).__name__}: {e}') from e
    if len(data) != length:
      raise UnreadableRecord(f'{self.path} breaks off: {len(data)} of {length} bytes are there')
    return data

  def _bytes(self, f: BinaryIO, at: int, length: int) -> bytes:
    if not self.frame:
      f.seek(at)
      return f.read(length)
    skipped = at % self.frame
    with wave.open(f) as sound:
      sound.setpos(at // self.frame)
      return sound.readframes(-(-(skipped + length) // self.frame))[skipped:][:length]


class ByteDocuments:
  """Extents of files as a `packing.Packable`."""

  def __init__(self, extents: Sequence[Extent], names: Sequence[str]):
    self.names = names
    self._extents = extents
    sizes = np.array([extent.num_bytes for extent in extents], np.int64)
    self.offsets_D = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)

  def __len__(self) -> int:
    return len(self._extents)

  def slice(self, start: int, length: int) -> np.ndarray:
    d = int(np.searchsorted(self.offsets_D, start, side='right')) - 1
    data = self._extents[d].read(start - int(self.offsets_D[d]), length)
    return np.frombuffer(data, np.uint8)


class ByteFiles:
  """The files that `data.path` names.

  Args:
    path: a file or a folder.
    split: 'train', 'test' or 'all'; folders of that name where there are some, else by a hash of
      the files' names. Of a single file the end is 'test'.
    test_fraction: share of 'test' where no folders are splits.
    config: which files.

  Raises:
    ConfigError: nothing there.
  """

  def __init__(self, path: str, split: str, test_fraction: float, config: BytesConfig):
    check_split(split)
    self.described = f'data.path {path!r}, split {split!r}'
    self._root = pathlib.Path(path)
    self._split, self._test_fraction, self._wav = split, test_fraction, config.wav
    self._is_one = self._root.is_file()
    if self._is_one:
      self.names, self.others = [self._root.name], []
    elif self._root.is_dir():
      files = _folder_files(self._root, config)
      if not files:
        of = f' of the kinds {", ".join(config.suffixes)}' if config.suffixes else ''
        raise ConfigError(f'data.path {path!r} holds no files{of}')
      self.names = self._of_split(files, path)
      self.others = sorted(set(files) - set(self.names))
    else:
      raise ConfigError(f'data.path {path!r} does not exist')

  def extent(self, name: str) -> Extent:
    """The document of a file.

    Raises:
      UnreadableRecord: it cannot be read, or is a .wav file of other than 16-bit samples.
    """
    path = self._root if self._is_one else self._root / name
    is_sound = self._wav == 'samples' and name.lower().endswith('.wav')
    try:
      size = path.stat().st_size
      frame, num_bytes = _samples(path) if is_sound else (0, size)
    except OSError as e:
      raise UnreadableRecord(f'{type(e).__name__}: {e}') from e
    except _NO_WAV as e:
      raise UnreadableRecord(
        f'no 16-bit PCM sound ({str(e) or "it breaks off"}); convert it, or read .wav files as any '
        "with data.bytes.wav='file'"
      ) from e
    first, last = self._part(num_bytes, max(frame, 1))
    return Extent(str(path), size, first, last - first, frame)

  def _of_split(self, files: list[str], path: str) -> list[str]:
    of_split = split_files(files, self._split, path)
    if of_split is not None or self._split == 'all':
      return files if of_split is None else of_split
    is_test = self._split == 'test'
    return [f for f in files if in_test_split(f, self._test_fraction) == is_test]

  def _part(self, num_bytes: int, unit: int) -> tuple[int, int]:
    """Of a single file the split's part: whole units, the test part last."""
    if not self._is_one or self._split == 'all':
      return 0, num_bytes
    cut = int(num_bytes // unit * (1 - self._test_fraction)) * unit
    return (cut, num_bytes) if self._split == 'test' else (0, cut)


def _folder_files(root: pathlib.Path, config: BytesConfig) -> list[str]:
  files = (p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file())
  return sorted(
    f
    for f in files
    if (not config.suffixes or f.endswith(config.suffixes))
    and not corpus.is_hidden(f)
    and not corpus.is_excluded(f, config.exclude)
  )


def _samples(path: pathlib.Path) -> tuple[int, int]:
  """Bytes of a frame, and of all samples.

  Raises:
    wave.Error: compressed, damaged, or not of 16 bits.
  """
  with wave.open(str(path)) as sound:
    frame, num = sound.getsampwidth() * sound.getnchannels(), sound.getnframes()
    if sound.getsampwidth() != 2:
      raise wave.Error(f'samples of {8 * sound.getsampwidth()} bits, expected 16')
    if num:
      sound.setpos(num - 1)
      if len(sound.readframes(1)) != frame:
        raise wave.Error(f'it breaks off before the last of its {num} frames')
  return frame, num * frame


def byte_source(
  files: ByteFiles,
  config: BytesConfig,
  max_bad_fraction: float = 0.01,
  verdicts: Verdicts | None = None,
) -> PackedSource:
  """Rows of the bytes of the files of a split.

  Files that cannot be read are left out of the plan, counted and named like any unreadable record;
  a file that cannot be read later, or has another size then, is an unreadable record itself.

  Args:
    files: which.
    config: how they are packed.
    max_bad_fraction: share of the files that may be unreadable.
    verdicts: of a keep-list, whose ids are the files' paths below `data.path`; contents are not
      compared with its digests.

  Raises:
    ConfigError: no bytes there, or a keep-list of other data.
    TooManyBadRecords: more files are unreadable than `max_bad_fraction`.
  """
  names = list(_kept_names(files, verdicts))
  fingerprint = verdicts.settled(files.described) if verdicts else ''
  bad = BadRecords(len(names), max_bad_fraction, names.__getitem__)
  extents, readable = [], []
  for number, name in enumerate(names):
    try:
      extents.append(files.extent(name))
    except UnreadableRecord as e:
      bad.add(number, str(e))
      continue
    bad.read(number)
    readable.append(name)
  documents = ByteDocuments(extents, readable)
  if not documents.offsets_D[-1]:
    raise ConfigError(f'{files.described} holds no bytes ({len(names)} files)')
  return PackedSource(documents, config.length, config.packing, PAD, fingerprint, config.align)


def _kept_names(files: ByteFiles, verdicts: Verdicts | None) -> Iterator[str]:
  for name in files.names:
    if verdicts is None or verdicts.keeps(name):
      yield name
  if verdicts and verdicts.has_more:
    verdicts.elsewhere(files.others)
