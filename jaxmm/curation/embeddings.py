"""Vectors of a corpus's examples: what k-means and every method on vectors read.

A directory, written by `embedding_job` or by `write`:

    DIR/vectors/           array store: `x` float32 [D] as the encoder gave it, `valid`
    DIR/examples.parquet   a row each, in the same order: id, digest, reason, error, norm

An example without a usable vector keeps its row and says why: 'unreadable' or 'empty', or
'bad_embedding' where the vector has NaN or infinity, or no length to divide by.

Axes: N examples in the order of the corpus, D width.
"""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxmm.config import ConfigError, differences
from jaxmm.curation import keep_list
from jaxmm.data import kept
from jaxmm.data.array_store import ArrayStore, ArrayStoreWriter

BAD = 'bad_embedding'
VECTORS, EXAMPLES = 'vectors', 'examples.parquet'
_HEADER = b'jaxmm'
# Numbers that are read at once where all rows are passed over.
_AT_ONCE = 1 << 22


class Rows:
  """A source of vectors as rows of length 1, float32 [N, D], made when they are read.

  `rows[i]`, `rows[a:b]`, `rows[index array]`, `rows[bool array]` and `np.asarray(rows)` are arrays;
  rows that cannot be used are zeros.

  Args:
    source: [N, D], anything that NumPy indexes so: an array, a memory map, a field of a store.
    norm_N: the rows' lengths; NaN where a row cannot be used.
  """

  ndim, dtype = 2, np.dtype(np.float32)

  def __init__(self, source: Any, norm_N: np.ndarray):
    self._source, self.norm_N = source, norm_N
    self.shape = (len(norm_N), int(source.shape[1]))

  def __len__(self) -> int:
    return self.shape[0]

  def __getitem__(self, key) -> np.ndarray:
    norm = np.asarray(self.norm_N[key])[..., None]
    rows = as_float(self._source[key])
    with np.errstate(invalid='ignore', over='ignore'):
      rows = rows / norm.astype(rows.dtype)
    return np.where(np.isnan(norm), 0.0, rows).astype(np.float32)

  def __array__(self, dtype=None, copy=None) -> np.ndarray:
    if copy is False:
      raise ValueError('the rows are normalised when they are read, which makes a copy')
    rows = self[:]
    return rows if dtype is None else rows.astype(dtype)

  def raw(self, key) -> np.ndarray:
    """Rows as the source has them."""
    return np.asarray(self._source[key])


@dataclasses.dataclass(frozen=True)
class Embeddings:
  """Vectors of N examples.

  Attributes:
    ids: strings, all different.
    digest_N: uint64, of id and content (see `data.kept.digest`).
    x_ND: float32 rows of length 1, zeros where not usable: `Rows`, read in pieces from disk, or an
      array.
    reason_N: why a row cannot be used; '' where it can.
    identity: JSON values that say what made the vectors.
    error_N: what is wrong with an example that cannot be read, '' for the others; None for no such.
  """

  ids: pa.Array
  digest_N: np.ndarray
  x_ND: Rows | np.ndarray
  reason_N: np.ndarray
  identity: Mapping[str, Any] = dataclasses.field(default_factory=dict)
  error_N: np.ndarray | None = None

  def __post_init__(self):
    lengths = [len(self.ids), len(self.digest_N), len(self.x_ND), len(self.reason_N)]
    if len(set(lengths)) != 1:
      raise ConfigError(f'ids, digests, vectors and reasons are {lengths} in number')
    check_ids(self.ids)

  def __len__(self) -> int:
    return len(self.ids)

  @property
  def usable_N(self) -> np.ndarray:
    """bool: rows that have a vector."""
    return self.reason_N == ''

  @property
  def fingerprint(self) -> str:
    """Of the corpus, as keep-lists have it."""
    return keep_list.fingerprint(self.digest_N)

  def reasons(self) -> dict[str, int]:
    """How many rows cannot be used for each reason."""
    names, counts = np.unique(self.reason_N.astype(str), return_counts=True)
    return {name: int(count) for name, count in zip(names.tolist(), counts) if name}


def of_arrays(
  ids: Sequence[str] | pa.Array,
  x_ND: Any,
  *,
  digest_N: np.ndarray | None = None,
  reason_N: np.ndarray | None = None,
  identity: Mapping[str, Any] | None = None,
) -> Embeddings:
  """Embeddings of vectors that need not be normalised; rows that cannot be become BAD.

  Args:
    ids: N different strings.
    x_ND: numbers; read in pieces, so it may be a memory map.
    digest_N: of the examples; None takes them of id and vector, which fits no corpus of texts.
    reason_N: '' or why a row has no vector, whatever stands in it.
    identity: JSON values that say what made the vectors.

  Raises:
    ConfigError: shapes that do not fit, no numbers, or an id that comes twice.
  """
  ids = _strings(ids)
  shape, dtype = tuple(x_ND.shape), np.dtype(x_ND.dtype)
  if len(shape) != 2 or dtype.kind not in 'fiu' or not shape[1]:
    raise ConfigError(f'vectors are {dtype}{list(shape)}, expected numbers [N, D], D at least 1')
  if len(ids) != shape[0]:
    raise ConfigError(f'there are {len(ids)} ids and {shape[0]} vectors; expected one each')
  check_ids(ids)
  norm_N = norms(x_ND)
  given = np.full(len(ids), '', object) if reason_N is None else np.array(reason_N, object)
  norm_N[given != ''] = np.nan
  given[(given == '') & np.isnan(norm_N)] = BAD
  if digest_N is None:
    digest_N = _digests(ids, x_ND)
  x_ND = Rows(x_ND, norm_N)
  return Embeddings(ids, np.asarray(digest_N, np.uint64), x_ND, given, dict(identity or {}))


def norms(x_ND: Any) -> np.ndarray:
  """Lengths of the rows, float64 [N]; NaN for a row with NaN or infinity, or whose length is 0 or
  no float32."""
  out, limits = np.empty(x_ND.shape[0]), np.finfo(np.float32)
  for piece in pieces(x_ND.shape):
    rows = np.asarray(x_ND[piece], np.float64)
    out[piece] = np.sqrt(np.einsum('nd,nd->n', rows, rows))
  out[~((out >= limits.tiny) & (out <= limits.max))] = np.nan
  return out


def pieces(shape: Sequence[int]) -> Iterator[slice]:
  """Slices of rows that together are all of them, each a few megabytes."""
  step = max(1, _AT_ONCE // max(shape[1], 1))
  yield from (slice(low, min(low + step, shape[0])) for low in range(0, shape[0], step))


def as_float(rows: Any) -> np.ndarray:
  """float32, or float64 where it was that."""
  rows = np.asarray(rows)
  return rows if rows.dtype == np.float64 else rows.astype(np.float32)


def check_ids(ids: pa.Array) -> None:
  """ConfigError names an id that comes more than once, or is null."""
  if ids.null_count:
    raise ConfigError(f'{ids.null_count} ids are null; every example needs one')
  counts = ids.value_counts()
  times = counts.field('counts').to_numpy()
  if times.max(initial=1) > 1:
    again = counts.field('values')[int(np.argmax(times > 1))].as_py()
    raise ConfigError(
      f'{int((times > 1).sum())} ids come more than once, the first {again!r}; expected different '
      'ones: name another id field, or none (then file and row are the id)'
    )


def _strings(ids: Sequence[str] | pa.Array) -> pa.Array:
  ids = pa.array(ids, pa.string()) if not isinstance(ids, pa.Array | pa.ChunkedArray) else ids
  ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
  return ids.cast(pa.string())


def _digests(ids: pa.Array, x_ND: Any) -> np.ndarray:
  out = np.empty(len(ids), np.uint64)
  for piece in pieces(x_ND.shape):
    rows = np.ascontiguousarray(as_float(x_ND[piece]))
    for i, row in zip(range(piece.start, piece.stop), rows):
      out[i] = kept.digest(ids[i].as_py(), row.tobytes())
  return out


class _StoreField:
  """One field of a store, indexed like an array."""

  def __init__(self, store: ArrayStore, name: str):
    self._store, self._name = store, name
    shape, self.dtype = store.fields[name]
    self.shape = (len(store), *shape)

  def __getitem__(self, key):
    if isinstance(key, int | np.integer):
      return self[np.array([key])][0]
    if isinstance(key, slice):
      return self._store.read(self._name, np.arange(*key.indices(len(self._store))))
    key = np.asarray(key)
    return self._store.read(self._name, np.flatnonzero(key) if key.dtype == bool else key)


def finish(
  directory: str | os.PathLike, examples: pa.Table, identity: Mapping[str, Any]
) -> Embeddings:
  """Writes `examples.parquet` of a directory whose vectors are written; the whole as `read` has it.

  Args:
    directory: with `vectors`.
    examples: columns id, digest, reason and error, a row for each vector.
    identity: JSON values that say what made the vectors.
  """
  directory = pathlib.Path(directory)
  store = ArrayStore(directory / VECTORS)
  norm_N = norms(_StoreField(store, 'x'))
  valid_N = store.read('valid')
  reason_N = examples['reason'].to_numpy().astype(object)
  # Readable at first, but not as what the encoder needs: a damaged picture.
  reason_N[(reason_N == '') & ~valid_N] = keep_list.UNREADABLE
  norm_N[reason_N != ''] = np.nan
  reason_N[(reason_N == '') & np.isnan(norm_N)] = BAD
  table = pa.table(
    {
      'id': examples['id'],
      'digest': examples['digest'],
      'reason': pa.array(reason_N, pa.string()),
      'error': examples['error'],
      'norm': pa.array(norm_N),
    }
  )
  header = {'identity': dict(identity), 'versions': keep_list.versions()}
  table = table.replace_schema_metadata({_HEADER: json.dumps(header, sort_keys=True).encode()})
  partial = directory / f'.{EXAMPLES}.{os.getpid()}.partial'
  pq.write_table(table, partial, compression='zstd')
  os.replace(partial, directory / EXAMPLES)
  return read(directory)


def check_same(directory: str | os.PathLike, meta: Mapping[str, Any]) -> None:
  """Refuses a directory that holds other vectors than those that are to be written.

  Args:
    directory: need not be there.
    meta: of the vectors: identity, fingerprint and, where it matters, order.

  Raises:
    ConfigError: names what differs: the encoder, its weights, its settings, or the corpus.
  """
  other = [what for what in _others(directory, meta) if what]
  if other:
    raise ConfigError(
      f'{directory} holds vectors {", and ".join(other)}; name another folder or delete this one'
    )


def other_corpus(directory: str | os.PathLike, meta: Mapping[str, Any]) -> str:
  """Of which other corpus a directory holds vectors, of the same encoder; '' where of none."""
  encoder, of_corpus = _others(directory, meta)
  return '' if encoder else of_corpus


def remove(directory: str | os.PathLike) -> None:
  """Removes the vectors of a directory, the file that says that they are finished first."""
  (pathlib.Path(directory) / EXAMPLES).unlink(missing_ok=True)
  shutil.rmtree(pathlib.Path(directory) / VECTORS)


def _others(directory: str | os.PathLike, meta: Mapping[str, Any]) -> tuple[str, str]:
  manifest = pathlib.Path(directory) / VECTORS / 'manifest.json'
  if not manifest.is_file():
    return '', ''
  was, now = json.loads(manifest.read_text()).get('meta', {}), json.loads(json.dumps(dict(meta)))
  return _other_encoder(was, now), _other_corpus(was, now)


def _other_encoder(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  old, new = was.get('identity', {}), now['identity']
  if old.get('encoder') != new.get('encoder'):
    return f'of the encoder {old.get("encoder")!r}, not {new.get("encoder")!r}'
  if old.get('weights') != new.get('weights'):
    return f'of other weights of {new.get("encoder")!r}'
  found = '; '.join(differences(old, new))
  return f'made with other settings ({found})' if found else ''


def _other_corpus(was: Mapping[str, Any], now: Mapping[str, Any]) -> str:
  old, new = was.get('fingerprint', ''), now['fingerprint']
  if old == new:
    is_other = was.get('order') != now.get('order')
    return 'of the same examples in another order' if is_other else ''
  number, then = (int(f.partition('-')[0] or 0) for f in (old, new))
  how = f'{number:,} examples, not {then:,}' if number != then else 'other ids or contents'
  return f'of another corpus ({how})'


def read(directory: str | os.PathLike) -> Embeddings:
  """The embeddings of a directory; vectors stay on disk until they are asked for.

  Raises:
    ConfigError: nothing there, not finished, or its parts do not belong together.
  """
  directory = pathlib.Path(directory)
  if not (directory / EXAMPLES).is_file():
    begun = ' (it is begun: run the same command again)' if (directory / VECTORS).exists() else ''
    raise ConfigError(
      f'{directory} holds no embeddings{begun}; `jaxmm curate embed --output DIR` writes them'
    )
  table = pq.read_table(directory / EXAMPLES)
  raw = (table.schema.metadata or {}).get(_HEADER)
  if raw is None:
    raise ConfigError(f'{directory / EXAMPLES} is a Parquet file without the header of embeddings')
  store = ArrayStore(directory / VECTORS)
  if len(store) != len(table):
    raise ConfigError(f'{directory} has {len(store)} vectors and {len(table)} examples')
  return Embeddings(
    _strings(table['id']),
    table['digest'].to_numpy(),
    Rows(_StoreField(store, 'x'), np.array(table['norm'].to_numpy(), np.float64)),
    table['reason'].to_numpy().astype(object),
    json.loads(raw)['identity'],
    table['error'].to_numpy().astype(object),
  )


def write(
  embeddings: Embeddings, directory: str | os.PathLike, rows_per_shard: int = 4096
) -> Embeddings:
  """Copies embeddings into a directory; a copy that was stopped goes on."""
  directory = pathlib.Path(directory)
  shape, identity = embeddings.x_ND.shape, dict(embeddings.identity)
  meta = {'identity': identity, 'fingerprint': embeddings.fingerprint}
  check_same(directory, meta)
  fields = {'x': ((shape[1],), np.float32), 'valid': ((), np.bool_)}
  writer = ArrayStoreWriter(directory / VECTORS, fields, shape[0], rows_per_shard, meta)
  rows, usable_N = embeddings.x_ND, embeddings.usable_N
  for shard in sorted(set(range(writer.num_shards)) - writer.finished()):
    piece = slice(writer.rows(shard).start, writer.rows(shard).stop)
    x_ND = rows.raw(piece) if isinstance(rows, Rows) else rows[piece]
    x_ND = np.where(usable_N[piece, None], as_float(x_ND), 0.0).astype(np.float32)
    writer.write_shard(shard, {'x': x_ND, 'valid': usable_N[piece]})
  columns = {'id': embeddings.ids, 'digest': pa.array(embeddings.digest_N)}
  columns['reason'] = pa.array(embeddings.reason_N, pa.string())
  error_N = np.full(len(embeddings), '') if embeddings.error_N is None else embeddings.error_N
  columns['error'] = pa.array(error_N, pa.string())
  return finish(directory, pa.table(columns), identity)
