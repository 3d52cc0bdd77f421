"""Vectors that the user brings: .npy and .npz, Parquet, zarr.

    x.npy + ids.txt    memory-mapped; an id a line (or ids.npy, an array of strings or integers)
    x.npz              one array of vectors, one of ids; read whole
    x.parquet          or a folder of them: a column of ids, one of lists of numbers; read whole
    x.zarr + ids.txt   read in pieces, by `tensorstore`

Axes: N examples, D width.
"""

from __future__ import annotations

import os
import pathlib
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxmm.config import ConfigError
from jaxmm.curation import embeddings
from jaxmm.curation.embeddings import Embeddings

MISSING = 'no_embedding'


def brought(
  path: str | os.PathLike,
  ids: str | os.PathLike | None = None,
  *,
  vector_field: str = 'x',
  id_field: str = 'id',
) -> Embeddings:
  """The vectors of a file, in its order; the digests are of id and vector (see `matched`).

  Args:
    path: .npy, .npz, .parquet (or a folder of them), or a zarr array.
    ids: file of the ids, for .npy and zarr.
    vector_field, id_field: names of the arrays of .npz and of the columns of Parquet.

  Raises:
    ConfigError: a file, field or id that is not there, vectors of different widths, other numbers
      of ids than vectors, or an id that comes twice.
  """
  path = pathlib.Path(path)
  if not path.exists():
    raise ConfigError(f'{path}: there is no such file of vectors')
  has_ids = path.suffix == '.npz' or _is_parquet(path)
  if has_ids != (ids is None):
    what = 'holds its ids itself; name no file of ids' if has_ids else 'needs a file of ids'
    raise ConfigError(f'{path} {what}')
  if path.suffix == '.npz':
    names, x_ND = _npz(path, vector_field, id_field)
  elif has_ids:
    names, x_ND = _parquet(path, vector_field, id_field)
  else:
    x_ND = _npy(path) if path.suffix == '.npy' else _zarr(path)
    names = _ids(pathlib.Path(ids))
  identity = {'encoder': 'brought', 'file': path.name}
  try:
    return embeddings.of_arrays(names, x_ND, identity=identity)
  except ConfigError as error:
    raise ConfigError(f'{path}: {error}') from error


def matched(vectors: Embeddings, examples: pa.Table) -> Embeddings:
  """The vectors as those of a corpus: its order and digests, so that keep-lists belong to it.

  An example without a vector gets the reason MISSING; what the corpus says of an example ('empty',
  'unreadable') comes before what its vector says.

  Args:
    vectors: in any order.
    examples: columns id, digest, reason and error (`embedding_inputs.listed`).

  Raises:
    ConfigError: a vector whose id the corpus does not have.
  """
  strange = pc.index_in(vectors.ids, pa.array(examples['id'].combine_chunks()))
  if strange.null_count:
    name = vectors.ids.filter(pc.is_null(strange))[0].as_py()
    raise ConfigError(
      f'{strange.null_count} vectors have ids that the corpus does not have, the first {name!r}; '
      'name the id field that the vectors were made with'
    )
  place_N = pc.index_in(examples['id'].combine_chunks(), vectors.ids)
  is_there = pc.is_valid(place_N).to_numpy(zero_copy_only=False)
  place_N = pc.fill_null(place_N, 0).to_numpy().astype(np.int64)
  reason_N = examples['reason'].to_numpy().astype(object)
  of_vector = np.where(is_there, vectors.reason_N[place_N], MISSING)
  reason_N = np.where(reason_N == '', of_vector, reason_N)
  norm_N = np.where(reason_N == '', vectors.x_ND.norm_N[place_N], np.nan)
  rows = embeddings.Rows(_Taken(vectors.x_ND, place_N), norm_N)
  digest_N = examples['digest'].to_numpy()
  ids = examples['id'].combine_chunks()
  error_N = examples['error'].to_numpy().astype(object)
  return Embeddings(ids, digest_N, rows, reason_N, vectors.identity, error_N)


class _Taken:
  """Raw rows of a source, in another order."""

  def __init__(self, rows: embeddings.Rows, place_N: np.ndarray):
    self._rows, self._place = rows, place_N
    self.shape = (len(place_N), rows.shape[1])

  def __getitem__(self, key):
    return self._rows.raw(self._place[key])


def _is_parquet(path: pathlib.Path) -> bool:
  return path.suffix == '.parquet' or (path.is_dir() and any(path.glob('*.parquet')))


def _npy(path: pathlib.Path) -> np.ndarray:
  try:
    return np.load(path, mmap_mode='r', allow_pickle=False)
  except (ValueError, OSError, EOFError) as error:
    raise ConfigError(f'{path}: not an array that can be read ({error})') from error


def _npz(path: pathlib.Path, vector_field: str, id_field: str) -> tuple[list[str], np.ndarray]:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      for name in (vector_field, id_field):
        if name not in arrays.files:
          raise ConfigError(f'{path} has no array {name!r}; it has {", ".join(arrays.files)}')
      x_ND, names = arrays[vector_field], arrays[id_field]
  except ConfigError:
    raise
  except Exception as error:  # zip, header and pickle errors, each of another type
    raise ConfigError(f'{path}: not an archive that can be read ({error})') from error
  return _names(names, path), x_ND


def _ids(path: pathlib.Path) -> list[str]:
  if not path.is_file():
    raise ConfigError(f'{path}: there is no such file of ids')
  if path.suffix == '.npy':
    return _names(_npy(path), path)
  try:
    text = path.read_text('utf-8')
  except UnicodeDecodeError as error:
    raise ConfigError(f'{path}: not UTF-8 ({error}); expected an id a line') from error
  return text.removesuffix('\n').split('\n') if text else []


def _names(ids: np.ndarray, path: pathlib.Path) -> list[str]:
  if ids.ndim != 1 or ids.dtype.kind not in 'Uiu':
    raise ConfigError(
      f'{path}: ids are {ids.dtype}{list(ids.shape)}, expected one axis of strings or integers'
    )
  return [str(name) for name in ids.tolist()]


def _parquet(path: pathlib.Path, vector_field: str, id_field: str) -> tuple[pa.Array, np.ndarray]:
  files = sorted(path.glob('*.parquet')) if path.is_dir() else [path]
  names, parts = [], []
  for file in files:
    try:
      parquet = pq.ParquetFile(file)
    except (pa.ArrowInvalid, OSError) as error:
      raise ConfigError(f'{file} cannot be read as Parquet ({error})') from error
    lacking = {vector_field, id_field} - set(parquet.schema_arrow.names)
    if lacking:
      found = ', '.join(parquet.schema_arrow.names)
      raise ConfigError(f'{file} has no column {sorted(lacking)[0]!r}; it has {found}')
    for batch in parquet.iter_batches(columns=[id_field, vector_field]):
      names.append(batch[id_field].cast(pa.string()))
      parts.append(_lists(batch[vector_field], batch[id_field], file))
  widths = {part.shape[1] for part in parts if part.shape[1]}
  if len(widths) != 1:
    raise ConfigError(f'{path}: vectors have widths {sorted(widths)}, expected the same everywhere')
  width = widths.pop()
  empty = lambda part: part if part.shape[1] else np.full((len(part), width), np.nan, np.float32)
  return pa.concat_arrays(names), np.concatenate([empty(part) for part in parts])


def _lists(column: pa.Array, ids: pa.Array, file: pathlib.Path) -> np.ndarray:
  """[n, D] of a column of lists; NaN for a null, D 0 where all are null."""
  kind = column.type
  if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)
          or pa.types.is_fixed_size_list(kind)):  # fmt: skip
    raise ConfigError(f'{file}: vectors are of type {kind}, expected lists of numbers')
  if not (pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)):
    raise ConfigError(f'{file}: vectors are lists of {kind.value_type}, expected numbers')
  length = pc.list_value_length(column)
  known = length.drop_null().to_numpy()
  width = int(known[0]) if len(known) else 0
  if (known != width).any():
    other = ids.filter(pc.not_equal(length, width))[0].as_py()
    raise ConfigError(f'{file}: the vector of {other!r} has another width than {width}')
  dtype = np.float64 if pa.types.is_float64(kind.value_type) else np.float32
  out = np.full((len(column), width), np.nan, dtype)
  # A fixed-size list keeps numbers under its nulls; `drop_null` leaves them out.
  flat = column.drop_null().flatten().to_numpy(zero_copy_only=False)
  out[pc.is_valid(column).to_numpy(zero_copy_only=False)] = flat.reshape(len(known), width)
  return out


class _Zarr:
  """A zarr array, indexed like one of NumPy."""

  def __init__(self, store: Any):
    self._store = store
    self.shape, self.dtype = tuple(store.shape), store.dtype.numpy_dtype

  def __getitem__(self, key):
    return self._store[key].read().result()


def _zarr(path: pathlib.Path) -> _Zarr:
  drivers = {'zarr.json': 'zarr3', '.zarray': 'zarr'}
  driver = next((name for file, name in drivers.items() if (path / file).is_file()), None)
  if driver is None:
    raise ConfigError(
      f'{path}: expected .npy, .npz, .parquet, a folder of Parquet files or a zarr array'
    )
  try:
    import tensorstore
  except ImportError as error:
    raise ConfigError(
      f'{path} is read by tensorstore, which is not installed: pip install tensorstore'
    ) from error
  spec = {'driver': driver, 'kvstore': {'driver': 'file', 'path': f'{path}/'}}
  try:
    return _Zarr(tensorstore.open(spec, read=True).result())
  except ValueError as error:
    raise ConfigError(f'{path}: not a zarr array that can be read ({error})') from error
