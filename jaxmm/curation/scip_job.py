"""SCIP over a corpus whose examples have been clustered: files and clusters in, keep-list out."""

from __future__ import annotations

import hashlib
import os
import pathlib

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list, runners, scip, token_counts
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.scip import ScipConfig
from jaxmm.data.corpus import CorpusConfig

_COLUMNS = ('id', 'cluster', 'distance')
_DIGEST = 'digest'


def run(
  inputs: CorpusConfig,
  clusters: pa.Table,
  config: ScipConfig,
  workdir: str | os.PathLike,
  *,
  counter: str = 'bytes',
  runner: runners.Runner = runners.LOCAL,
  echo: runners.Echo | None = print,
) -> KeepList:
  """Prunes a corpus by clusters of its examples.

  The list has the column `tokens` beside those of `scip.judged`: for `config.length_bins`, and to
  see how distances go with length (`length_confounding.report`).

  Args:
    inputs: the corpus.
    clusters: columns `id`, `cluster` (whole numbers) and `distance` (1 - cosine to the centroid of
      that cluster), a row for each example that can be read and is not empty, in any order. Where
      they have `digest` (uint64, as keep-lists have it), it is compared with the corpus; where they
      do not, that is said.
    config: how many are pruned and which.
    workdir: for digests and token counts.
    counter: how length is counted, a name of `token_counts`.
    runner: who reads and counts files.
    echo: takes progress lines.

  Raises:
    ConfigError: columns or rows are missing, or there are rows of other examples, or of examples
      that were others then.
  """
  _check(clusters)
  if echo and _DIGEST not in clusters.column_names:
    echo(
      f'the clusters have no column {_DIGEST!r}, so only the ids say that they are of these inputs'
    )
  counts = token_counts.counts(inputs, counter, workdir, runner=runner, echo=echo)
  is_bad_N = pc.greater(pc.binary_length(counts['error']), 0).to_numpy()
  tokens_N = pc.fill_null(counts['tokens'], 0).to_numpy()
  other_N = np.where(tokens_N == 0, keep_list.EMPTY, '').astype(object)
  other_N[is_bad_N] = keep_list.UNREADABLE
  place = pc.index_in(counts['id'], value_set=clusters['id'].combine_chunks())
  _check_ids(counts['id'], clusters['id'], place, other_N)
  if _DIGEST in clusters.column_names:
    _check_digests(counts, clusters[_DIGEST].take(place))
  cluster_N = pc.fill_null(clusters['cluster'].take(place), -1).to_numpy()
  distance_N = pc.cast(clusters['distance'].take(place), pa.float32()).to_numpy()
  parameters = {
    'clusters': _fingerprint(cluster_N, distance_N),
    'counter': counter,
    'counter_identity': token_counts.identity(counter),
  }
  return scip.judged(
    counts['id'].combine_chunks(),
    counts['digest'].to_numpy(),
    cluster_N,
    distance_N,
    config,
    other_reason_N=other_N,
    length_N=tokens_N,
    columns={
      'tokens': pa.array(tokens_N, mask=is_bad_N),
      'error': pc.if_else(pa.array(is_bad_N), counts['error'], None),
    },
    parameters=parameters,
  )


def read_clusters(path: str | os.PathLike) -> pa.Table:
  """The columns of a Parquet file.

  Raises:
    ConfigError: there is none, or it lacks a column.
  """
  if not pathlib.Path(path).exists():
    raise ConfigError(f'clusters {str(path)!r}: no such file, expected Parquet with {_COLUMNS}')
  try:
    names = pq.read_schema(path).names
    table = pq.read_table(path, columns=[n for n in (*_COLUMNS, _DIGEST) if n in names])
  except (pa.ArrowInvalid, OSError) as error:
    raise ConfigError(f'clusters {path} cannot be read as Parquet ({error})') from error
  _check(table)
  return table


def _check(clusters: pa.Table) -> None:
  missing = [name for name in _COLUMNS if name not in clusters.column_names]
  if missing:
    raise ConfigError(
      f'clusters lack {", ".join(missing)}; they have {", ".join(clusters.column_names)}, expected '
      f'{", ".join(_COLUMNS)}'
    )
  for name, is_right, expected in (
    ('id', lambda t: pa.types.is_string(t) or pa.types.is_large_string(t), 'strings'),
    ('cluster', pa.types.is_integer, 'whole numbers'),
    ('distance', pa.types.is_floating, 'floats'),
    (_DIGEST, lambda t: t == pa.uint64(), 'uint64'),
  ):
    if name not in clusters.column_names:
      continue
    kind = clusters.schema.field(name).type
    if not is_right(kind):
      raise ConfigError(f'column {name!r} of the clusters is {kind}, expected {expected}')


def _check_ids(ids, clustered, place, other_N) -> None:
  """Every example that needs one has one row, and no row is of another example."""
  counted = pc.value_counts(clustered.combine_chunks())
  again = counted.filter(pc.greater(counted.field('counts'), 1))
  if len(again):
    first = min(again.field('values').to_pylist())
    raise ConfigError(f'{len(again)} ids come more than once in the clusters, the first {first!r}')
  unknown = clustered.filter(pc.invert(pc.is_in(clustered, value_set=ids.combine_chunks())))
  if len(unknown):
    raise ConfigError(
      f'{len(unknown)} rows of the clusters are of no example of the inputs, the first '
      f'{min(unknown.to_pylist())!r}; they belong to other data'
    )
  is_missing = place.is_null().to_numpy() & (other_N == '')
  if is_missing.any():
    first = ids[int(np.argmax(is_missing))].as_py()
    raise ConfigError(
      f'{int(is_missing.sum())} examples of the inputs have no row in the clusters, the first '
      f'{first!r}; embed and cluster all that can be read'
    )


def _check_digests(counts: pa.Table, of_clusters: pa.ChunkedArray) -> None:
  is_other = pc.fill_null(pc.not_equal(of_clusters, counts['digest']), False)
  others = counts['id'].filter(is_other)
  if len(others):
    raise ConfigError(
      f'the clusters belong to other data: {len(others):,} of their examples are others in the '
      f'inputs, the first {others[0].as_py()!r}; embed and cluster these inputs, with the same '
      '--text-field and --image-field'
    )


def _fingerprint(cluster_N: np.ndarray, distance_N: np.ndarray) -> str:
  """Of clusters in the order of the ids."""
  of = hashlib.sha256(np.ascontiguousarray(cluster_N, '<i8').tobytes())
  of.update(np.ascontiguousarray(distance_N, '<f4').tobytes())
  return of.hexdigest()[:16]
