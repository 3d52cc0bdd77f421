"""Files of many records, as plain pieces: tar and ArrayRecord, where what is damaged says so."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Iterator
from typing import BinaryIO

from jaxmm.config import RunError


def tar_groups(file: BinaryIO) -> Iterator[tuple[str, dict[str, bytes]]]:
  """(stem, {suffix: content}) of files in a tar that follow one another with one stem.

  Raises:
    tarfile.TarError: it is damaged, or ends without the mark of an end.
  """
  with tarfile.open(fileobj=file, mode='r|*', tarinfo=_Header) as tar:
    files = ((*_stem_and_suffix(m.name), tar.extractfile(m).read()) for m in tar if m.isfile())
    for stem, group in itertools.groupby(files, key=lambda file: file[0]):
      yield stem, {suffix: data for _, suffix, data in group}


class _Header(tarfile.TarInfo):
  """A header that is none is an error: `tarfile` takes it for the end of the archive."""

  @classmethod
  def fromtarfile(cls, archive):
    try:
      return super().fromtarfile(archive)
    except tarfile.EOFHeaderError:  # the mark of the end
      raise
    except tarfile.HeaderError as error:
      said = f'{error or "no header"} at byte {archive.offset}, before any mark of an end'
      raise tarfile.ReadError(said) from error


def _stem_and_suffix(name: str) -> tuple[str, str]:
  folder, _, base = name.rpartition('/')
  stem, _, suffix = base.partition('.')
  return (f'{folder}/{stem}' if folder else stem), suffix.lower()


class ArrayRecords:
  """The records of a local ArrayRecord file, in random access.

  Raises:
    ValueError: the file, or the record that is asked for, is damaged.
    RunError: the system cannot read it.
  """

  def __init__(self, path: str):
    from array_record.python import array_record_data_source

    self._path = path
    try:
      self._records = array_record_data_source.ArrayRecordDataSource([path])
      self._num = len(self._records)  # reads the file's end
    except RuntimeError as error:
      raise self._said(error) from error

  def __len__(self) -> int:
    return self._num

  def __getitem__(self, i: int) -> bytes:
    try:
      return bytes(self._records[i])
    except RuntimeError as error:
      raise self._said(error) from error

  def _said(self, error: RuntimeError) -> Exception:
    if '() failed' in str(error):  # open(), pread(): the library has one error for all
      return RunError(f'{self._path} cannot be read: {error}')
    return ValueError(str(error))
