"""Reads PyTorch checkpoint files (.pt, .pth, .bin) without PyTorch, and without running anything
they contain.

A checkpoint is a pickle that says how to build the tensors, beside their raw bytes: as members of
an uncompressed zip (PyTorch 1.6 and later) or appended to the pickle (before). A pickle may name
any function of any module, which is how malicious ones run code. Here a name is looked up in a
short allow-list and nowhere else: an ordered dict, the two functions that rebuild a tensor, the
kinds of storage, and an inert stand-in for the settings that some training scripts save. Every
other name is an error before anything is called. What remains to a hostile file is to be refused or
to use up memory.
"""

from __future__ import annotations

import collections
import io
import math
import pathlib
import pickle
import zipfile
from collections.abc import Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxmm.config import ConfigError

# The number every file of the older format starts with (as a pickle of its own), and the version
# that follows.
_LEGACY_MAGIC, _LEGACY_VERSION = 0x1950A86A20F9469CFC6C, 1001

_STORAGE_DTYPES = {
  'DoubleStorage': np.dtype(np.float64),
  'FloatStorage': np.dtype(np.float32),
  'HalfStorage': np.dtype(np.float16),
  'BFloat16Storage': np.dtype(ml_dtypes.bfloat16),
  'LongStorage': np.dtype(np.int64),
  'IntStorage': np.dtype(np.int32),
  'ShortStorage': np.dtype(np.int16),
  'CharStorage': np.dtype(np.int8),
  'ByteStorage': np.dtype(np.uint8),
  'BoolStorage': np.dtype(np.bool_),
}


def read_torch_file(path: str | pathlib.Path, *, under: str | None = None) -> dict[str, np.ndarray]:
  """All tensors of a PyTorch checkpoint, by name.

  Args:
    path: a file written by `torch.save`.
    under: read only this entry of the outermost dict (`'model'` where a training script saved
      `{'model': weights, 'optimizer': ...}`); the names are then those below it.

  Returns:
    `{name: array}` in the file's order; names of nested dicts are joined with a dot, list items are
    numbered, anything that is no tensor (step numbers, settings) is left out. Arrays are read-only;
    bfloat16 stays bfloat16.

  Raises:
    ConfigError: no such file, not a PyTorch file, damaged, an entry that is not there, or a pickle
      that names anything outside the allow-list.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConfigError(f'{path}: there is no such file; expected a checkpoint written by torch.save')
  try:
    with path.open('rb') as file:
      is_zip = file.read(4) == b'PK\x03\x04'
      file.seek(0)
      content = _read_zip(file, path) if is_zip else _read_legacy(file, path)
  except ConfigError:
    raise
  except Exception as error:  # an unpickler fed with rubbish raises nearly anything
    raise ConfigError(f'{path}: not a readable PyTorch checkpoint ({error!r})') from error
  if under is not None:
    if not isinstance(content, Mapping) or under not in content:
      held = (
        ', '.join(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
      )
      raise ConfigError(f'{path} has no entry {under!r} at the top; it holds {held[:500]}')
    content = content[under]
  if isinstance(content, np.ndarray):
    raise ConfigError(f'{path} holds one tensor without a name, expected a dict of tensors')
  return dict(_named_tensors(content, ''))


def _named_tensors(content: Any, prefix: str):
  if isinstance(content, np.ndarray):
    yield prefix[:-1], content
  elif isinstance(content, Mapping):
    for key, value in content.items():
      yield from _named_tensors(value, f'{prefix}{key}.')
  elif isinstance(content, (list, tuple)):
    for i, value in enumerate(content):
      yield from _named_tensors(value, f'{prefix}{i}.')


class _Inert:
  """What the allow-list hands out. Has no attributes to set, so a pickle cannot change it for later
  files."""

  __slots__ = ()

  def __setstate__(self, state):
    raise pickle.UnpicklingError('the pickle sets attributes of a function')


class _Storage(_Inert):
  """A kind of storage, named by the pickle in a tensor's persistent id; cannot be called."""

  __slots__ = ('dtype',)

  def __init__(self, dtype: np.dtype):
    object.__setattr__(self, 'dtype', dtype)

  def __setattr__(self, name, value):
    raise pickle.UnpicklingError('the pickle sets attributes of a storage type')


class _RebuildTensor(_Inert):
  """`torch._utils._rebuild_tensor_v2`: a strided view of a storage, checked to lie inside it."""

  __slots__ = ()

  def __call__(self, storage, offset, shape, strides, *unused):
    if not isinstance(storage, np.ndarray) or storage.ndim != 1:
      raise pickle.UnpicklingError('a tensor is built from something that is no storage')
    numbers = (offset, *shape, *strides)
    if any(type(n) is not int or n < 0 for n in numbers) or len(shape) != len(strides):
      raise pickle.UnpicklingError(f'impossible tensor: shape {shape}, strides {strides}')
    last = offset + sum((n - 1) * s for n, s in zip(shape, strides))
    if math.prod(shape) and last >= storage.size:
      raise pickle.UnpicklingError(
        f'tensor of shape {shape} reaches past its storage of {storage.size} items'
      )
    if not math.prod(shape):
      return np.zeros(shape, storage.dtype)
    steps = [s * storage.itemsize for s in strides]
    return np.lib.stride_tricks.as_strided(storage[offset:], shape, steps, writeable=False)


class _RebuildParameter(_Inert):
  """`torch._utils._rebuild_parameter`: the tensor itself."""

  __slots__ = ()

  def __call__(self, tensor, *unused):
    return tensor


class _Settings:
  """Stands in for `argparse.Namespace`; what is stored in it is dropped."""

  __slots__ = ()

  def __setstate__(self, state):
    pass


class _AllowListUnpickler(pickle.Unpickler):
  """Knows the names of the allow-list; asks `storages` for the bytes."""

  def __init__(self, file: BinaryIO, storages: _ZipStorages | _AppendedStorages):
    super().__init__(file, encoding='utf-8')
    self._storages = storages

  def find_class(self, module: str, name: str) -> Any:
    if (module, name) == ('collections', 'OrderedDict'):
      return collections.OrderedDict
    if (module, name) == ('torch._utils', '_rebuild_tensor_v2'):
      return _RebuildTensor()
    if (module, name) == ('torch._utils', '_rebuild_parameter'):
      return _RebuildParameter()
    if module in ('torch', 'torch.storage') and name in _STORAGE_DTYPES:
      return _Storage(_STORAGE_DTYPES[name])
    if (module, name) == ('argparse', 'Namespace'):
      # A pickle makes it by `cls.__new__(cls)`, so this is a class; it has nothing to set.
      return _Settings
    raise ConfigError(
      f'the checkpoint names {module}.{name}, which is none of the few things a file of weights '
      f'needs; it is not '
      'opened, because building it could run code. If you trust the file, load it with PyTorch, '
      'keep the tensors only '
      '(`torch.save(state_dict, path)`) and read that'
    )

  def persistent_load(self, pid: Any) -> np.ndarray:
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] == 'storage'):
      raise pickle.UnpicklingError(f'unknown kind of stored object {pid!r}')
    kind, key, _, size = pid[1:5]
    if not isinstance(kind, _Storage) or type(size) is not int or size < 0:
      raise pickle.UnpicklingError(f'impossible storage {pid!r}')
    return self._storages.get(str(key), kind.dtype, size, pid[5] if len(pid) > 5 else None)


class _ZipStorages:
  """Storages that are members of the zip; each is read once."""

  def __init__(self, archive: zipfile.ZipFile, root: str):
    self._archive, self._root, self._read = archive, root, {}

  def get(self, key: str, dtype: np.dtype, size: int, view: Any) -> np.ndarray:
    del view  # only the older format has views of storages
    if key not in self._read:
      info = self._archive.getinfo(f'{self._root}/data/{key}')
      if info.compress_type != zipfile.ZIP_STORED:
        raise pickle.UnpicklingError(f'storage {key} is compressed, which torch.save never does')
      self._read[key] = self._archive.read(info)
    return np.frombuffer(self._read[key], dtype, count=size)


def _read_zip(file: BinaryIO, path: pathlib.Path) -> Any:
  with zipfile.ZipFile(file) as archive:
    pickles = [n for n in archive.namelist() if n.count('/') == 1 and n.endswith('/data.pkl')]
    if len(pickles) != 1:
      raise ConfigError(f'{path} is a zip, but not one that torch.save wrote (no data.pkl in it)')
    root = pickles[0].partition('/')[0]
    order = f'{root}/byteorder'
    if order in archive.namelist() and archive.read(order) != b'little':
      raise ConfigError(f'{path} was written on a big-endian machine; save it again on another')
    return _AllowListUnpickler(
      io.BytesIO(archive.read(pickles[0])), _ZipStorages(archive, root)
    ).load()


class _AppendedStorages:
  """Storages whose bytes follow the pickle: handed out empty, filled afterwards."""

  def __init__(self, file_bytes: int):
    self._left, self.roots = file_bytes, {}

  def get(self, key: str, dtype: np.dtype, size: int, view: Any) -> np.ndarray:
    if key not in self.roots:
      self._left -= size * dtype.itemsize
      if self._left < 0:
        raise pickle.UnpicklingError('the storages are larger than the file')
      self.roots[key] = np.zeros(size, dtype)
    if view is None:
      return self.roots[key]
    _, offset, length = view
    return self.roots[key][offset : offset + length]


def _read_legacy(file: BinaryIO, path: pathlib.Path) -> Any:
  storages = _AppendedStorages(path.stat().st_size)

  def load() -> Any:
    return _AllowListUnpickler(file, storages).load()

  if load() != _LEGACY_MAGIC or load() != _LEGACY_VERSION:
    raise ConfigError(f'{path} is no PyTorch checkpoint of a known version')
  if not load().get('little_endian', True):
    raise ConfigError(f'{path} was written on a big-endian machine; save it again on another')
  content, keys = load(), load()
  for key in keys:
    values = storages.roots[str(key)]
    count = int.from_bytes(file.read(8), 'little')
    data = file.read(values.nbytes)
    if count != values.size or len(data) != values.nbytes:
      raise ConfigError(f'{path} is damaged: storage {key} is cut short or has another size')
    values[:] = np.frombuffer(data, values.dtype)
  if len(keys) != len(storages.roots):
    raise ConfigError(f'{path} is damaged: tensors without bytes')
  return content
