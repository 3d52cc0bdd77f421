"""The embedding job: a corpus through an encoder into a directory of vectors.

1. Every file by itself: ids, digests, and which examples have nothing to embed.
2. The files again, a shard of the store at a time: its examples become rows for the encoder, are
   sorted by length, run in batches on whatever mesh, and written in the order of the corpus.
3. `examples.parquet`, which says that all is there.

Each part that is finished is not done again. Neither the batch nor the order within a shard shows
in a row but by float32 rounding.

Axes: N examples in the order of the corpus, B batch, D width.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from jax.experimental import multihost_utils

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError
from jaxmm.core.protocols import Batch
from jaxmm.curation import embeddings, keep_list, runners
from jaxmm.curation.embedding_inputs import Inputs, listed
from jaxmm.curation.embeddings import Embeddings
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig, Example, Shard


@dataclasses.dataclass(frozen=True)
class Embedder:
  """An encoder and what it needs; made by `studies.encoders`, or by the user.

  Attributes:
    identity: JSON values that determine the vectors: name, digest of the weights, where texts are
      cut off.
    width: D.
    encode: pure; `encode(variables, batch)` -> float32 [B, D]; with its variables bound it is a
      `core.protocols.Encoder`.
    variables: arrays that `encode` reads.
    inputs: what it reads of an example.
  """

  identity: Mapping[str, Any]
  width: int
  encode: Callable[[Any, Batch], jax.Array]
  variables: Any
  inputs: Inputs


def run(
  inputs: CorpusConfig,
  embedder: Embedder,
  directory: str | os.PathLike,
  *,
  batch_size: int = 32,
  rows_per_shard: int = 2048,
  mesh: jax.sharding.Mesh | None = None,
  rules: sharding.Rules | None = None,
  anew: bool = False,
  runner: runners.Runner = runners.LOCAL,
  echo: runners.Echo | None = print,
) -> Embeddings:
  """Embeds a corpus; a job that was stopped, even killed, is continued.

  Every process of a program calls this, with one file system; all read the corpus.

  Args:
    inputs: the corpus.
    embedder: the encoder.
    directory: see `embeddings`.
    batch_size: rows of a batch, over all devices; a multiple of these.
    rows_per_shard: rows of a shard of the store: what is lost at most and held in memory, and
      among how many rows those of one length are sought; a multiple of the batch size.
    mesh, rules: where the encoder runs; None is all devices, each with its own rows.
    anew: replace vectors of another corpus that the directory holds, rather than refuse; of another
      encoder they are refused.
    runner: who reads and hashes files at first.
    echo: takes progress lines.

  Raises:
    ConfigError: the directory holds vectors of another corpus or encoder, an id that comes twice, a
      batch that does not fit, a corpus that changed meanwhile or of which nothing can be read.
  """
  if batch_size < 1 or rows_per_shard % batch_size:
    raise ConfigError(
      f'rows_per_shard is {rows_per_shard}, expected a multiple of batch_size {batch_size}'
    )
  directory = pathlib.Path(directory)
  mesh = sharding.make_mesh() if mesh is None else mesh
  rules = sharding.rules_named('dp') if rules is None else rules
  tables = listed(inputs, embedder.inputs.kind, directory / 'work', runner, echo)
  examples = pa.concat_tables(tables)
  embeddings.check_ids(examples['id'].combine_chunks())
  digest_N = examples['digest'].to_numpy()
  sorted_pass = SortedPass(
    corpus.shards(inputs), inputs, [len(t) for t in tables], digest_N, embedder.inputs,
    batch_size, rows_per_shard,
  )  # fmt: skip
  meta = {'identity': dict(embedder.identity), 'fingerprint': keep_list.fingerprint(digest_N)}
  meta['order'] = _order_digest(digest_N)
  if anew:
    _make_room(directory, meta, echo)
  embeddings.check_same(directory, meta)
  store = batch_job.run(
    sorted_pass,
    lambda variables, batch: {'x': embedder.encode(variables, batch).astype(np.float32)},
    directory / embeddings.VECTORS,
    variables=embedder.variables,
    fields={'x': ((embedder.width,), np.float32)},
    mesh=mesh,
    rules=rules,
    rows_per_shard=rows_per_shard,
    meta=meta,
    restored=sorted_pass.restored,
    echo=echo,
  )
  valid_N = store.read(batch_job.VALID)
  examples = sorted_pass.explained(examples, valid_N)
  if not valid_N.any() and pc.all(pc.greater(pc.binary_length(examples['error']), 0)).as_py():
    first = examples.slice(0, 1).to_pylist()[0]
    raise runners.none_readable(len(examples), first['id'], first['error'])
  return _finished(directory, examples, embedder.identity, echo)


def _make_room(directory: pathlib.Path, meta: Mapping[str, Any], echo) -> None:
  was = embeddings.other_corpus(directory, meta)
  _wait_for_all(f'{directory} was looked at')
  if was and jax.process_index() == 0:
    embeddings.remove(directory)
  if was and echo:
    echo(f'{directory} held vectors {was}; all are embedded anew')
  _wait_for_all(f'{directory} has room')


def _wait_for_all(where: str) -> None:
  if jax.process_count() > 1:
    multihost_utils.sync_global_devices(f'jaxmm.embedding_job {where}')


def _finished(directory, examples, identity, echo) -> Embeddings:
  if jax.process_index() == 0:
    out = embeddings.finish(directory, examples, identity)
  _wait_for_all(f'{directory}')
  if jax.process_index():
    out = embeddings.read(directory)
  if echo:
    bad = ''.join(f', {number:,} {name}' for name, number in out.reasons().items())
    echo(f'{directory}: {len(out):,} examples, width {out.x_ND.shape[1]}{bad}')
  return out


def _order_digest(digest_N: np.ndarray) -> int:
  """Of the order of the examples, which a fingerprint does not see."""
  weight_N = np.arange(1, 2 * len(digest_N), 2, np.uint64)
  with np.errstate(over='ignore'):
    return int(np.sum(digest_N * weight_N, dtype=np.uint64))


class SortedPass:
  """A corpus as a `batch_job.Pass` whose records are sorted by length within each shard.

  Args:
    files: of the corpus, in order.
    config: how they are read.
    sizes: examples of each file.
    digest_N: of every example.
    inputs: what the encoder reads.
    batch_size: rows of a global batch.
    rows_per_shard: a multiple of the batch size.
  """

  def __init__(
    self,
    files: list[Shard],
    config: CorpusConfig,
    sizes: list[int],
    digest_N: np.ndarray,
    inputs: Inputs,
    batch_size: int,
    rows_per_shard: int,
  ):
    self.num_records, self.batch_size = len(digest_N), batch_size
    self._files, self._config, self._digest_N = files, config, digest_N
    self._start_F = np.cumsum([0, *sizes])
    self._inputs, self._rows = inputs, rows_per_shard
    # Of the shards that were read and not yet restored: the row of each record.
    self._row_of: dict[int, np.ndarray] = {}

  def record_ids(self, step: int) -> np.ndarray:
    """Records of the rows of one global batch."""
    return np.arange(step * self.batch_size, (step + 1) * self.batch_size)

  def from_step(self, step: int) -> Iterator[dict[str, np.ndarray]]:
    """This process's rows of the batches from `step` on."""
    first = step * self.batch_size // self._rows
    examples = self._examples(first * self._rows)
    for shard in range(first, -(-self.num_records // self._rows)):
      low = shard * self._rows
      here = [next(examples) for _ in range(min(self._rows, self.num_records - low))]
      rows = self._inputs.rows(here)
      length_R = np.array([self._inputs.length(row) for row in rows])
      order_R = np.argsort(length_R, kind='stable')
      self._row_of[shard] = order_R
      ordered = [rows[i] for i in order_R]
      for start in range(0, len(ordered), self.batch_size):
        if low + start >= step * self.batch_size:
          yield self._batch(low + start, ordered[start : start + self.batch_size])

  def _batch(self, record: int, rows: list[Any]) -> dict[str, np.ndarray]:
    # Every process must give its rows the one shape, so the length is that of the global batch.
    length = max(self._inputs.length(row) for row in rows)
    rows = rows + [None] * (self.batch_size - len(rows))
    share = self.batch_size // jax.process_count()
    mine = slice(share * jax.process_index(), share * (jax.process_index() + 1))
    batch = self._inputs.batch(rows[mine], length)
    record_B = np.arange(record, record + self.batch_size, dtype=np.int32)[mine]
    valid_B = np.array([row is not None for row in rows[mine]], np.float32)
    return {**batch, 'record_B': record_B, 'valid_B': valid_B}

  def restored(
    self, results: Iterable[tuple[int, dict[str, np.ndarray]]]
  ) -> Iterator[tuple[int, dict[str, np.ndarray]]]:
    """Results of whole shards in the order of the corpus, a shard at a time."""
    pieces: list[dict[str, np.ndarray]] = []
    for start, result in results:
      pieces.append(result)
      shard = start // self._rows
      low, high = shard * self._rows, min((shard + 1) * self._rows, self.num_records)
      num = len(result[batch_job.VALID])
      if start + num < high:
        continue
      row_R = self._row_of.pop(shard)
      out = {}
      for name in result:
        values = np.concatenate([piece[name] for piece in pieces])
        out[name] = np.empty_like(values)
        out[name][row_R] = values
      pieces = []
      yield low, out

  def explained(self, examples: pa.Table, valid_N: np.ndarray) -> pa.Table:
    """The listed examples with the error of each that turned out to be damaged.

    Their files are read again: the batches that met them may be of a run that was stopped.
    """
    is_damaged_N = (examples['reason'].to_numpy() == '') & ~valid_N
    if not is_damaged_N.any():
      return examples
    error_N = examples['error'].to_numpy().astype(object)
    for shard, start, end in zip(self._files, self._start_F, self._start_F[1:]):
      if is_damaged_N[start:end].any():
        for row, example in enumerate(corpus.examples(shard, self._config), start):
          if row < end and is_damaged_N[row]:
            error_N[row] = self._inputs.error(example)
    at = examples.column_names.index('error')
    return examples.set_column(at, 'error', pa.array(error_N, pa.string()))

  def _examples(self, first: int) -> Iterator[Example]:
    """The corpus's examples from one on, compared with what was listed."""
    file = int(np.searchsorted(self._start_F, first, side='right')) - 1
    number = int(self._start_F[file])
    for shard, end in zip(self._files[file:], self._start_F[file + 1 :]):
      for example in corpus.examples(shard, self._config):
        if number >= end:
          break
        if number >= first:
          if kept.digest(example.id, example.content) != self._digest_N[number]:
            raise _changed(shard)
          yield example
        number += 1
      if number != end:
        raise _changed(shard)


def _changed(shard: Shard) -> ConfigError:
  return ConfigError(
    f'{shard.path} changed while it was embedded; run the same command again with another output'
  )
