"""A directory of equally long records in memory-mapped `.npy` shards: written by jobs.

    store/manifest.json            layout: fields, number of rows, rows a shard, origin (`meta`)
    store/shard-00003.codes.npy    one array a field and shard, [rows, *shape]
    store/shard-00003.json         sha256 and bytes of those; written last, so it says "finished"

Every file appears by rename, so a killed writer leaves a shard whole or absent. Shards have a
manifest each because several processes write at once and none may rewrite what another has written.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmm.config import ConfigError, differences

FORMAT = 'jaxmm-array-store-1'


class ArrayStoreWriter:
  """Writes shards in any order, from any number of processes; reopening a store continues it.

  Args:
    directory: created if absent.
    fields: `{name: (shape of one row, dtype)}`.
    num_rows: rows of the whole store.
    rows_per_shard: rows of every shard but the last.
    meta: JSON values that say what made the store; a store that holds another `meta` is refused.

  Raises:
    ConfigError: the directory holds a store of another layout, or a dtype cannot be kept in `.npy`.
  """

  def __init__(
    self,
    directory: str | os.PathLike,
    fields: Mapping[str, tuple[Sequence[int], Any]],
    num_rows: int,
    rows_per_shard: int,
    meta: Mapping[str, Any] | None = None,
  ):
    if num_rows < 1 or rows_per_shard < 1:
      raise ConfigError(
        f'an array store needs at least one row and one row a shard, got num_rows={num_rows}, '
        f'rows_per_shard={rows_per_shard}'
      )
    self.directory = pathlib.Path(directory)
    self._layout = {
      'format': FORMAT,
      'num_rows': int(num_rows),
      'rows_per_shard': int(rows_per_shard),
      'fields': {
        name: {'shape': [int(n) for n in shape], 'dtype': _dtype_name(name, dtype)}
        for name, (shape, dtype) in fields.items()
      },
      'meta': dict(meta or {}),
    }
    self._layout = json.loads(json.dumps(self._layout))
    self.directory.mkdir(parents=True, exist_ok=True)
    manifest = self.directory / 'manifest.json'
    if manifest.exists():
      old = _manifest(self.directory)
      if old != self._layout:
        raise ConfigError(
          f'{self.directory} holds another store; write to a new directory or delete it. '
          f'It differs in {"; ".join(differences(old, self._layout))}'
        )
    else:
      _write_whole(manifest, json.dumps(self._layout, indent=1).encode())

  @property
  def num_shards(self) -> int:
    return -(-self._layout['num_rows'] // self._layout['rows_per_shard'])

  def rows(self, shard: int) -> range:
    """The rows that `shard` holds."""
    if not 0 <= shard < self.num_shards:
      raise IndexError(f'{self.directory} has {self.num_shards} shards, asked for {shard}')
    start = shard * self._layout['rows_per_shard']
    return range(start, min(start + self._layout['rows_per_shard'], self._layout['num_rows']))

  def write_shard(self, shard: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes `{field: [rows, *shape]}`; the shard is finished only once all is on disk."""
    num_rows = len(self.rows(shard))
    fields = self._layout['fields']
    if set(arrays) != set(fields):
      raise ValueError(f'shard {shard} has fields {sorted(arrays)}, the store {sorted(fields)}')
    entry = {}
    for name, field in fields.items():
      array = np.asarray(arrays[name])
      expected = (num_rows, *field['shape'])
      if array.shape != expected or not _may_cast(array.dtype, np.dtype(field['dtype'])):
        raise ValueError(
          f'shard {shard}, field {name!r}: got {array.dtype}{array.shape}, '
          f'expected {field["dtype"]}{expected}'
        )
      array = _cast(array, np.dtype(field['dtype']), f'shard {shard}, field {name!r}')
      buffer = io.BytesIO()
      np.save(buffer, array, allow_pickle=False)
      data = buffer.getbuffer()
      _write_whole(self.directory / _array_name(shard, name), data)
      entry[name] = {'sha256': hashlib.sha256(data).hexdigest(), 'bytes': data.nbytes}
    _write_whole(self.directory / _entry_name(shard), json.dumps(entry, indent=1).encode())

  def finished(self, verify: bool = False) -> set[int]:
    """Shards that are on disk with the right size; `verify` reads them and compares sha256 too."""
    return {k for k in range(self.num_shards) if _damage(self.directory, k, verify) is None}


class ArrayStore:
  """Reads a finished store; rows are memory-mapped, so opening one costs nothing.

  `store[i]` is `{field: array of one row}`; `read(field, ids)` gathers many rows at once.

  Raises:
    ConfigError: there is no store at `directory`, or shards are missing or have the wrong size.
  """

  def __init__(self, directory: str | os.PathLike):
    self.directory = pathlib.Path(directory)
    self._layout = _manifest(self.directory)
    self.meta: dict[str, Any] = self._layout['meta']
    self.fields = {
      name: (tuple(f['shape']), np.dtype(f['dtype'])) for name, f in self._layout['fields'].items()
    }
    self._rows_per_shard = self._layout['rows_per_shard']
    self._arrays: dict[tuple[str, int], np.ndarray] = {}
    self.num_shards = -(-len(self) // self._rows_per_shard)
    self._refuse(verify=False)

  def __len__(self) -> int:
    return self._layout['num_rows']

  def __getitem__(self, i: int) -> dict[str, np.ndarray]:
    if not 0 <= i < len(self):
      raise IndexError(f'{self.directory} has {len(self)} rows, asked for {i}')
    shard, row = divmod(int(i), self._rows_per_shard)
    return {name: np.array(self._array(name, shard)[row]) for name in self.fields}

  def __getstate__(self):
    return {**self.__dict__, '_arrays': {}}

  def read(self, name: str, ids: Sequence[int] | np.ndarray | None = None) -> np.ndarray:
    """Rows `ids` (all of them if None) of one field, [len(ids), *shape], as a new array."""
    if name not in self.fields:
      raise KeyError(f'{self.directory} has fields {sorted(self.fields)}, asked for {name!r}')
    shape, dtype = self.fields[name]
    ids = np.arange(len(self)) if ids is None else np.asarray(ids, np.int64)
    if ids.size and not (0 <= ids.min() and ids.max() < len(self)):
      raise IndexError(f'{self.directory} has {len(self)} rows, asked for {ids.min()}..{ids.max()}')
    out = np.empty((len(ids), *shape), dtype)
    shards = ids // self._rows_per_shard
    for shard in np.unique(shards):
      here = np.flatnonzero(shards == shard)
      out[here] = self._array(name, int(shard))[ids[here] % self._rows_per_shard]
    return out

  def verify(self) -> None:
    """Compares every shard with its sha256; ConfigError names those that differ."""
    self._refuse(verify=True)

  def _refuse(self, verify: bool) -> None:
    damage = {k: _damage(self.directory, k, verify) for k in range(self.num_shards)}
    bad = {k: why for k, why in damage.items() if why}
    if bad:
      first = '; '.join(f'shard {k}: {why}' for k, why in list(bad.items())[:3])
      raise ConfigError(
        f'{self.directory}: {len(bad)} of {self.num_shards} shards cannot be used ({first}). '
        'Run the job that writes it again: it writes the shards that are missing'
      )

  def _array(self, name: str, shard: int) -> np.ndarray:
    key = (name, shard)
    if key not in self._arrays:
      path = self.directory / _array_name(shard, name)
      array = np.load(path, mmap_mode='r', allow_pickle=False)
      shape, dtype = self.fields[name]
      if array.shape[1:] != shape or array.dtype != dtype:
        raise ConfigError(
          f'{path} holds {array.dtype}{array.shape}, the manifest says {dtype}{shape} a row'
        )
      self._arrays[key] = array
    return self._arrays[key]


def _dtype_name(field: str, dtype: Any) -> str:
  dtype = np.dtype(dtype)
  if dtype.kind not in 'biufS':
    raise ConfigError(
      f'field {field!r} of an array store has dtype {dtype}, which .npy cannot keep; '
      'use a bool, integer or float type of numpy (float32 for bfloat16)'
    )
  return dtype.str


def _may_cast(old: np.dtype, new: np.dtype) -> bool:
  # Between integer types the values decide, in `_cast`.
  return (old.kind in 'iu' and new.kind in 'iu') or np.can_cast(old, new, 'same_kind')


def _cast(array: np.ndarray, dtype: np.dtype, where: str) -> np.ndarray:
  """`array` as `dtype`; integers that would wrap around are an error, not other integers."""
  if dtype.kind in 'iu' and array.dtype != dtype and array.size:
    info = np.iinfo(dtype)
    if array.min() < info.min or array.max() > info.max:
      raise ValueError(f'{where}: values {array.min()}..{array.max()} do not fit {dtype}')
  return np.ascontiguousarray(array, dtype).reshape(array.shape)


def _array_name(shard: int, field: str) -> str:
  return f'shard-{shard:05d}.{field}.npy'


def _entry_name(shard: int) -> str:
  return f'shard-{shard:05d}.json'


def _manifest(directory: pathlib.Path) -> dict[str, Any]:
  path = directory / 'manifest.json'
  if not path.is_file():
    raise ConfigError(f'{directory} is no array store: there is no {path}')
  layout = json.loads(path.read_text())
  if layout.get('format') != FORMAT:
    raise ConfigError(f'{path} has format {layout.get("format")!r}, expected {FORMAT!r}')
  return layout


def _damage(directory: pathlib.Path, shard: int, verify: bool) -> str | None:
  """Why the shard cannot be used, or None."""
  entry_path = directory / _entry_name(shard)
  if not entry_path.is_file():
    return 'not written'
  for name, expected in json.loads(entry_path.read_text()).items():
    path = directory / _array_name(shard, name)
    if not path.is_file():
      return f'{path.name} is missing'
    if path.stat().st_size != expected['bytes']:
      return f'{path.name} has {path.stat().st_size} bytes, expected {expected["bytes"]}'
    if verify and hashlib.sha256(path.read_bytes()).hexdigest() != expected['sha256']:
      return f'{path.name} has another sha256 than when it was written'
  return None


def _write_whole(path: pathlib.Path, data) -> None:
  """Writes a file so that it is there whole or not at all, also after a power cut."""
  part = path.with_name(f'.{path.name}.{os.getpid()}.part')
  try:
    with open(part, 'wb') as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, path)
  finally:
    part.unlink(missing_ok=True)
