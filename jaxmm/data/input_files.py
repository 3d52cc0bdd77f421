"""Files that an input names: paths, folders, patterns, and URLs that `fsspec` knows.

A chain of URLs names a file in an archive or a cache in front of a store:

    zip://texts/*.txt::file:///data/texts.zip       tar://*.py::s3://bucket/code.tar
    simplecache::s3://bucket/corpus/*.jsonl.gz

Where bytes cannot be had (a connection breaks, a disk fails, a file may not be opened) there is
nothing to say about what they hold: a RunError ends the command, and the same command goes on.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import gzip
import io
import itertools
import os
import pathlib
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

from jaxmm.config import ConfigError, RunError

# What an archive in a chain of URLs raises where it is damaged itself.
_DAMAGE = (gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError)


@dataclasses.dataclass(frozen=True)
class NamedFile:
  """A file that an input stands for.

  Attributes:
    path: where it is: a path or a URL.
    name: the path below a folder; else the file's own.
    below: the path below the folder, or below what is fixed of a pattern.
    is_in_folder: whether a folder was named.
  """

  path: str
  name: str
  below: str
  is_in_folder: bool = False


def named_files(given: str) -> Iterator[NamedFile]:
  """The files that an input stands for.

  Raises:
    ConfigError: a URL of a protocol that is not there.
    RunError: what it names cannot be listed.
  """
  given = given.removeprefix('file://')
  if is_url(given):
    yield from _remote_files(given)
  elif os.path.isdir(given):
    root = pathlib.Path(given)
    for path in sorted(p for p in root.rglob('*') if p.is_file()):
      name = path.relative_to(root).as_posix()
      yield NamedFile(str(path), name, name, True)
  elif os.path.isfile(given):
    yield NamedFile(given, os.path.basename(given), os.path.basename(given))
  else:
    above = _fixed_part(given)
    for path in sorted(glob.glob(given, recursive=True)):
      if os.path.isfile(path):
        yield NamedFile(path, os.path.basename(path), path[len(above) :].lstrip('/'))


def _remote_files(given: str) -> Iterator[NamedFile]:
  fs, path = file_system(given)
  root = path.rstrip('/')
  try:
    is_folder = fs.isdir(root)
    found = sorted(fs.find(root)) if is_folder else sorted(fs.glob(root))
    found = found if is_folder else [p for p in found if not fs.isdir(p)]
  except FileNotFoundError:
    return
  except Exception as error:  # every store has its own
    raise RunError(f'{given} cannot be listed: {_said(error)}') from error
  above = root if is_folder else _fixed_part(root)
  for p in found:
    below = p[len(above) :].lstrip('/')
    name = below if is_folder else p.rsplit('/', 1)[-1]
    yield NamedFile(_url(given, fs, p), name, below, is_folder)


def _fixed_part(pattern: str) -> str:
  """The folders in front of the first wildcard."""
  parts = pattern.split('/')
  fixed = itertools.takewhile(lambda part: not glob.has_magic(part), parts[:-1])
  return '/'.join(fixed)


def _url(given: str, fs: Any, path: str) -> str:
  """The URL of a file that was found, with the rest of the chain that found it."""
  links = given.split('::')
  if len(links) == 1:
    return fs.unstrip_protocol(path).removeprefix('file://')
  # A cache has no path of its own; the first link with one is what names files.
  i = next(i for i, link in enumerate(links) if '://' in link)
  protocol = links[i].partition('://')[0]
  links[i] = path if path.startswith(f'{protocol}://') else f'{protocol}://{path}'
  return '::'.join(links)


def is_url(path: str) -> bool:
  """Whether `fsspec` opens it; `file://` is a path as any other."""
  return '://' in path and not path.startswith('file://')


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
  """Whether a path below an input, or a folder of it, is one that `exclude` passes over."""
  parts = name.split('/')
  folders = list(itertools.accumulate(parts, '{}/{}'.format))
  for pattern in patterns:
    wanted = pattern.strip('/')
    of = folders if '/' in wanted else parts
    if any(fnmatch.fnmatchcase(one, wanted) for one in of):
      return True
  return False


def is_hidden(name: str) -> bool:
  """Whether a file is passed over: it or a folder above it begins with a dot or __MACOSX."""
  return any(part.startswith(('.', '__MACOSX')) for part in name.split('/'))


def file_system(url: str) -> tuple[Any, str]:
  """(fsspec file system, path there) of a URL.

  Raises:
    ConfigError: fsspec, or what the protocol needs, is not installed, or there is no such protocol.
    RunError: the store does not let us in.
  """
  try:
    import fsspec
  except ImportError as error:
    raise ConfigError(
      f"{url} is opened through fsspec, which is not installed: pip install 'jaxmm[curation]' and "
      'what its protocol needs (gcsfs, s3fs, ...)'
    ) from error
  protocols = [link.partition('://')[0] for link in url.split('::') if '://' in link]
  # fsspec takes a single word for a protocol, too: `simplecache::`.
  protocols += [link for link in url.split('::')[:-1] if link.isalpha() and link.islower()]
  for protocol in protocols:
    try:
      fsspec.get_filesystem_class(protocol)
    except ValueError as error:
      raise ConfigError(
        f'{url}: fsspec knows no protocol {protocol!r}; known are '
        f'{", ".join(fsspec.available_protocols())}'
      ) from error
    except ImportError as error:
      raise ConfigError(
        f'{url}: the protocol {protocol!r} needs a package that is not installed: {error}'
      ) from error
  try:
    return fsspec.core.url_to_fs(url)
  except Exception as error:  # every store has its own: no credentials, no network
    raise RunError(f'{url} cannot be reached: {_said(error)}') from error


def opened(path: str, name: str) -> BinaryIO:
  """The file, decompressed as it is read if the name says so.

  Raises:
    ConfigError: as `file_system`.
    RunError: here and when it is read: its bytes cannot be had.
  """
  raw = io.BufferedReader(_Bytes(path), 1 << 17)
  if name.lower().endswith('.gz'):
    return gzip.GzipFile(fileobj=raw)
  if name.lower().endswith('.zst'):
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw), 'zstd'))
  return raw


class _Bytes(io.RawIOBase):
  """A file as it lies there, whose failures are RunErrors, never those of a damaged content."""

  def __init__(self, path: str):
    self._path, self._file = path, None
    # Held as long as the file: an archive in a chain closes when it goes.
    self._remote = remote = file_system(path) if is_url(path) else None
    try:
      self._file = remote[0].open(remote[1], 'rb') if remote else open(path, 'rb', buffering=0)
    except Exception as error:
      raise self._failure(error) from error

  def _failure(self, error: Exception) -> RunError:
    return RunError(f'{self._path} cannot be read: {_said(error)}; run the same command to go on')

  def _read(self, size: int) -> bytes:
    try:
      return self._file.read(size)
    except _DAMAGE:
      raise
    except Exception as error:  # of a network: whatever its library raises
      raise self._failure(error) from error

  def readinto(self, buffer) -> int:
    data = self._read(len(buffer))
    buffer[: len(data)] = data
    return len(data)

  def readall(self) -> bytes:
    return b''.join(iter(lambda: self._read(1 << 24), b''))

  def seek(self, offset: int, whence: int = 0) -> int:
    try:
      return self._file.seek(offset, whence)
    except Exception as error:
      if offset < 0:  # a place before the file, which a damaged archive names
        raise
      raise self._failure(error) from error

  def tell(self) -> int:
    return self._file.tell()

  def readable(self) -> bool:
    return True

  def seekable(self) -> bool:
    return True

  def close(self) -> None:
    if self._file is not None and not self.closed:
      self._file.close()
    super().close()


def _said(error: Exception) -> str:
  return f'{type(error).__name__}: {error}'
