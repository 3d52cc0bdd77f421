"""MinHash over a corpus: files in, keep-list out.

1. Every file by itself: ids, digests and band keys (200 bytes a document at 25 bands).
2. One band after the other: documents with equal keys are candidates (8 bytes a document at once).
3. The files again, only the candidates: their shingles, which are compared exactly.
4. Connected components, of which one document survives.

Axes: N documents, in the order of their ids; E pairs.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list, minhash, runners, shingles, unique_ids
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.minhash import MinHashConfig
from jaxmm.curation.shingles import ShingleConfig
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig, Shard

# Who survives of a cluster; then the least id.
SURVIVORS = ('longest', 'shortest', 'first_id')
# Texts that are hashed together: bounds memory, changes nothing.
_TEXTS = 1024


def run(
  inputs: CorpusConfig,
  config: MinHashConfig,
  workdir: str | os.PathLike,
  *,
  survivor: str = 'longest',
  runner: runners.Runner = runners.LOCAL,
  echo: runners.Echo | None = print,
) -> KeepList:
  """Finds near-duplicates in a corpus and keeps one document of each cluster.

  Columns of the list: `cluster` (the least id of the cluster, null if it is alone), `nearest` and
  `similarity` (the most similar duplicate, by `config.check`). The score is the similarity.

  Args:
    inputs: the corpus.
    config: what a duplicate is.
    workdir: for what is kept between the stages; a path or a URL.
    survivor: 'longest' or 'shortest' (in characters), 'first_id'; ties go to the least id.
    runner: who reads and hashes files.
    echo: takes progress lines.

  Raises:
    ConfigError: files or fields are not there, or an id comes more than once.
  """
  if survivor not in SURVIVORS:
    raise ConfigError(f'survivor is {survivor!r}, expected one of {", ".join(SURVIVORS)}')
  files = corpus.shards(inputs)
  settings = {'corpus': dataclasses.asdict(inputs), 'minhash': dataclasses.asdict(config)}
  common = dict(settings=settings, runner=runner, echo=echo)
  tables = runners.map_shards(
    keyed, files, workdir, name='keys', each=unique_ids.AcrossFiles(files, inputs), **common
  )
  runners.check_some(tables, files, inputs)
  documents = _Documents(tables)
  pair_E2 = _candidates(documents, config)
  if echo:
    echo(f'{len(documents.table)} documents, {len(pair_E2)} candidate pairs')
  similarity_E = np.ones(len(pair_E2))
  if config.check == 'exact' and len(pair_E2):
    rows = documents.rows_by_file(np.unique(pair_E2))
    chosen = [i for i, r in enumerate(rows) if len(r)]
    sets = runners.map_shards(
      shingle_table,
      [files[i] for i in chosen],
      workdir,
      name='shingles',
      particulars=[rows[i].tolist() for i in chosen],
      **common,
    )
    similarity_E = _similarity(documents, pair_E2, chosen, sets)
  elif config.check == 'signature':
    similarity_E = minhash.agreement(documents.array('signature'), pair_E2)
  is_pair = similarity_E >= config.threshold
  return _judged(
    documents, pair_E2[is_pair], similarity_E[is_pair], survivor,
    {**settings['minhash'], 'survivor': survivor, 'bands_rows': list(config.layout)},
  )  # fmt: skip


def keyed(shard: Shard, settings: Mapping[str, Any], _) -> pa.Table:
  """Of every example: id, digest, error, characters, whether it has shingles, band keys."""
  inputs, config = _configs(settings)
  bands, rows = config.layout
  parts = []
  for examples in _batches(unique_ids.checked(shard, inputs)):
    texts = ['' if e.error else e.text or '' for e in examples]
    signature_NP, has_N = minhash.signatures(texts, config)
    columns = {
      'id': [e.id for e in examples],
      'digest': np.array([kept.digest(e.id, e.content) for e in examples], np.uint64),
      'error': [e.error for e in examples],
      'length': np.array([len(t) for t in texts], np.int64),
      'has': has_N,
      'keys': _lists(minhash.band_keys(signature_NP, bands, rows).T),
    }
    if config.check == 'signature':
      columns['signature'] = _lists(signature_NP)
    parts.append(pa.table(columns))
  return pa.concat_tables(parts).combine_chunks() if parts else _no_rows(config)


def _no_rows(config: MinHashConfig) -> pa.Table:
  empty = {'id': pa.string(), 'digest': pa.uint64(), 'error': pa.string(), 'length': pa.int64()}
  empty |= {'has': pa.bool_(), 'keys': pa.list_(pa.uint64(), config.layout[0])}
  if config.check == 'signature':
    empty['signature'] = pa.list_(pa.uint32(), config.permutations)
  return pa.schema(empty).empty_table()


def shingle_table(shard: Shard, settings: Mapping[str, Any], rows: Sequence[int]) -> pa.Table:
  """The distinct shingles of the documents at `rows` (ascending) of a file."""
  inputs, config = _configs(settings)
  wanted, texts = iter(rows), []
  row = next(wanted)
  for number, example in enumerate(corpus.examples(shard, inputs)):
    if number == row:
      texts.append(example.text or '')
      row = next(wanted, None)
      if row is None:
        break
  hash_S, start_T = shingles.shingle_sets(texts, config.shingles)
  return pa.table({'shingles': pa.LargeListArray.from_arrays(start_T, hash_S)})


def _configs(settings: Mapping[str, Any]) -> tuple[CorpusConfig, MinHashConfig]:
  of_minhash = dict(settings['minhash'])
  of_minhash['shingles'] = ShingleConfig(**of_minhash['shingles'])
  return corpus.of_json(settings['corpus']), MinHashConfig(**of_minhash)


def _batches(examples):
  batch = []
  for example in examples:
    batch.append(example)
    if len(batch) == _TEXTS:
      yield batch
      batch = []
  if batch:
    yield batch


def _lists(array_NK: np.ndarray) -> pa.Array:
  flat = pa.array(np.ascontiguousarray(array_NK).reshape(-1))
  return pa.FixedSizeListArray.from_arrays(flat, array_NK.shape[1])


class _Documents:
  """What the first stage left, in the order of the ids, so that numbers compare like ids."""

  def __init__(self, tables: Sequence[pa.Table]):
    self.table = pa.concat_tables(tables)
    self._starts = np.cumsum([0, *(len(table) for table in tables)])
    order = pc.sort_indices(self.table, [('id', 'ascending')])
    self.order = order.to_numpy().astype(np.int64)
    ids = self.table['id'].take(order).combine_chunks()
    self.ids = ids.combine_chunks() if isinstance(ids, pa.ChunkedArray) else ids
    self.has_N = self.array('has')

  def array(self, name: str) -> np.ndarray:
    """A column, in the order of the ids; [N] or [N, K]."""
    column = self.table[name]
    if pa.types.is_fixed_size_list(column.type):
      flat = np.concatenate([c.flatten().to_numpy() for c in column.chunks])
      return flat.reshape(len(self.table), -1)[self.order]
    return column.to_numpy()[self.order]

  def keys(self, band: int) -> np.ndarray:
    """The keys of one band, uint64 [N]."""
    parts = []
    for chunk in self.table['keys'].chunks:
      parts.append(chunk.flatten().to_numpy().reshape(len(chunk), -1)[:, band])
    return np.concatenate(parts)[self.order]

  def rows_by_file(self, documents: np.ndarray) -> list[np.ndarray]:
    """Of documents (by number) the rows in each file, ascending."""
    place = np.sort(self.order[documents])
    files = np.searchsorted(self._starts, place, side='right') - 1
    num_files = len(self._starts) - 1
    return [place[files == f] - self._starts[f] for f in range(num_files)]

  def places(self, file: int) -> tuple[int, int]:
    """The first and the one after the last row of a file, in all rows."""
    return self._starts[file], self._starts[file + 1]


def _candidates(documents: _Documents, config: MinHashConfig) -> np.ndarray:
  return minhash.pairs_of_equal(documents.keys, config.layout[0], documents.has_N)


def _similarity(documents: _Documents, pair_E2, chosen, sets) -> np.ndarray:
  """Exact Jaccard similarity of the pairs."""
  rank = np.empty(len(documents.order), np.int64)
  rank[documents.order] = np.arange(len(rank))
  of: dict[int, np.ndarray] = {}
  rows = documents.rows_by_file(np.unique(pair_E2))
  for file, table in zip(chosen, sets):
    first, _ = documents.places(file)
    column = table['shingles'].combine_chunks()
    for row, values in zip(rows[file], column):
      of[int(rank[first + row])] = values.values.to_numpy()
  return np.array([minhash.jaccard_of_sets(of[i], of[j]) for i, j in pair_E2.tolist()])


def _judged(documents, pair_E2, similarity_E, survivor: str, parameters) -> KeepList:
  N = len(documents.order)
  cluster_N = minhash.clusters(pair_E2, N)
  in_cluster = np.zeros(N, bool)
  in_cluster[pair_E2.reshape(-1)] = True
  length_N = documents.array('length')
  better_N = {'longest': -length_N, 'shortest': length_N, 'first_id': np.zeros(N, np.int64)}[
    survivor
  ]
  survives = np.zeros(N, bool)
  by_cluster = np.lexsort((np.arange(N), better_N, cluster_N))
  is_first = np.ones(N, bool)
  is_first[1:] = cluster_N[by_cluster][1:] != cluster_N[by_cluster][:-1]
  survives[by_cluster[is_first]] = True
  nearest_N, best_N = _nearest(pair_E2, similarity_E, N)
  error_N = documents.table['error'].take(documents.order)
  is_bad = pc.greater(pc.binary_length(error_N), 0).to_numpy()
  reason_N = np.where(survives, '', 'duplicate').astype(object)
  reason_N[~documents.has_N] = keep_list.EMPTY
  reason_N[is_bad] = keep_list.UNREADABLE
  take = lambda number_N, mask_N: documents.ids.take(pa.array(number_N, mask=~mask_N))
  return keep_list.make(
    documents.ids,
    documents.array('digest'),
    reason_N == '',
    score_N=best_N,
    reason_N=reason_N,
    columns={
      'cluster': take(cluster_N, in_cluster),
      'nearest': take(nearest_N, in_cluster),
      'similarity': best_N,
      'error': pc.if_else(pa.array(is_bad), error_N, None),
    },
    method='minhash',
    parameters=parameters,
  )


def _nearest(pair_E2, similarity_E, N: int) -> tuple[np.ndarray, np.ndarray]:
  """(number, similarity) of each document's most similar duplicate, the least number of several."""
  both = np.concatenate([pair_E2, pair_E2[:, ::-1]])
  similarity = np.concatenate([similarity_E, similarity_E])
  order = np.lexsort((both[:, 1], -similarity, both[:, 0]))
  first, place = np.unique(both[order, 0], return_index=True)
  nearest_N, best_N = np.zeros(N, np.int64), np.full(N, np.nan)
  nearest_N[first] = both[order, 1][place]
  best_N[first] = similarity[order][place]
  return nearest_N, best_N
