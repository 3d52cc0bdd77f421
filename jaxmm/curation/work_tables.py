"""Finished tables of per-document work, in a directory or below a URL that `fsspec` knows.

A table is there whole or not at all, also where two workers write the same one at the same time.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
import uuid

import pyarrow as pa

from jaxmm.config import RunError
from jaxmm.data import corpus
from jaxmm.data.input_files import file_system, is_url

# What the file systems of fsspec call it.
_VERSION = ('ETag', 'etag', 'generation', 'mtime', 'LastModified', 'last_modified', 'created')


def root(directory: str | os.PathLike) -> str:
  """The directory as the functions below take it, made if it is not there."""
  where = os.fspath(directory)
  if is_url(where):
    where = where.rstrip('/')
    fs, path = file_system(where)
    fs.makedirs(path, exist_ok=True)
    return where
  path = pathlib.Path(where.removeprefix('file://'))
  path.mkdir(parents=True, exist_ok=True)
  return str(path)


def names(directory: str) -> set[str]:
  """Of what is in a directory now."""
  if not is_url(directory):
    return set(os.listdir(directory))
  fs, path = file_system(directory)
  fs.invalidate_cache(path)
  if not fs.exists(path):  # an object store has no empty directories
    return set()
  return {found.rstrip('/').rsplit('/', 1)[-1] for found in fs.ls(path, detail=False)}


def is_there(path: str) -> bool:
  """Whether there is a file; for many files of a directory, `names` asks once."""
  if not is_url(path):
    return os.path.exists(path)
  fs, remote = file_system(path)
  return fs.exists(remote)


def state(path: str) -> list:
  """[size in bytes, what tells one version of a file from another], JSON values.

  The latter is the time of the last change, or what a store of objects has instead.

  Raises:
    FileNotFoundError: it is not there.
    RunError: the store does not say.
  """
  if corpus.is_tfds(path):
    from jaxmm.data import tfds_source  # seconds to import, for those who use it

    return tfds_source.state(path)
  if not is_url(path):
    status = os.stat(path.removeprefix('file://'))
    return [status.st_size, status.st_mtime_ns]
  fs, remote = file_system(path)
  try:
    found = fs.info(remote)
  except FileNotFoundError:
    raise
  except Exception as error:  # every store has its own
    raise RunError(f'{path} cannot be read: {type(error).__name__}: {error}') from error
  version = [str(found[name]) for name in _VERSION if found.get(name)]
  # What lies in an archive is as new as the archive.
  _, chained, behind = path.partition('::')
  return [found['size'], version + (state(behind) if chained else [])]


def write(table: pa.Table, path: str) -> None:
  """Writes a table, replacing one that is there."""
  partial = f'{path}.{uuid.uuid4().hex[:12]}.partial'
  if not is_url(path):
    try:
      _write_file(table, partial)
      os.replace(partial, path)
    finally:
      pathlib.Path(partial).unlink(missing_ok=True)
    return
  fs, to = file_system(path)
  _, beside = file_system(partial)
  with tempfile.TemporaryDirectory() as here:
    local = os.path.join(here, 'table.arrow')
    _write_file(table, local)
    # Only stores of objects show an upload when it is whole; everywhere else the rename does.
    fs.put_file(local, beside)
  fs.mv(beside, to)


def _write_file(table: pa.Table, path: str) -> None:
  with pa.OSFile(path, 'wb') as f, pa.ipc.new_file(f, table.schema) as writer:
    writer.write_table(table)


def read(path: str) -> pa.Table:
  """The table, memory-mapped; one that is far away from a copy that goes with the table."""
  if not is_url(path):
    return pa.ipc.open_file(pa.memory_map(path)).read_all()
  fs, remote = file_system(path)
  with tempfile.TemporaryDirectory() as here:
    local = os.path.join(here, 'table.arrow')
    fs.get_file(remote, local)
    return pa.ipc.open_file(pa.memory_map(local)).read_all()


def write_bytes(data: bytes, path: str) -> None:
  """Writes a small file that nobody reads before it is whole."""
  if is_url(path):
    fs, to = file_system(path)
    fs.pipe_file(to, data)
  else:
    pathlib.Path(path).write_bytes(data)


def read_bytes(path: str, start: int = 0, end: int | None = None) -> bytes:
  """A file, or its bytes from `start` to before `end`.

  Raises:
    FileNotFoundError: it is not there.
  """
  if is_url(path):
    fs, remote = file_system(path)
    return fs.cat_file(remote, start, end)
  with open(path, 'rb') as f:
    f.seek(start)
    return f.read(-1 if end is None else end - start)


def remove(path: str) -> None:
  """Removes a file, if it is there."""
  if not is_url(path):
    pathlib.Path(path).unlink(missing_ok=True)
    return
  fs, remote = file_system(path)
  if fs.exists(remote):
    fs.rm_file(remote)
