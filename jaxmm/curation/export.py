"""Examples written out: those that a keep-list keeps, or those that it drops and why.

Records go as they stand in the corpus, every field of them, in the order of the corpus.
"""

from __future__ import annotations

import itertools
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from jaxmm.config import ConfigError
from jaxmm.curation.keep_list import KeepList
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig, Example

_ROWS = 4096


def export(
  inputs: CorpusConfig,
  keep: KeepList,
  output: str | os.PathLike,
  *,
  dropped: bool = False,
  echo: Callable[[str], None] | None = print,
) -> int:
  """Writes the kept examples, or the dropped ones and why; returns how many.

  Dropped ones have `id`, a string as in the list, and two more fields, `reason` and `error` ('' for
  what could be read); a field of theirs that is called so moves to `record.id`, `record.reason` or
  `record.error`, but for the id itself. An example that cannot be read has these three, and what of
  its record there is.

  Args:
    inputs: the corpus that the list was made of.
    keep: the list.
    output: a file; its name says the format: .jsonl, .jsonl.gz, .parquet or .array_record. It
      appears whole or not at all.
    dropped: those that are dropped, instead.
    echo: takes a line at the end.

  Raises:
    ConfigError: the corpus is not that of the list (named by the first example that differs), or
      the format is none of these or cannot hold the records.
  """
  path = pathlib.Path(output)
  write = _writer(path)
  if path.is_dir():
    raise ConfigError(f'--output is {str(path)!r}, which is a folder; name a file in it')
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.partial')
  try:
    number = write(partial, _chosen(inputs, keep, dropped))
    os.replace(partial, path)
  except BaseException:
    partial.unlink(missing_ok=True)
    raise
  if echo:
    echo(f'{number} {"dropped" if dropped else "kept"} examples: {path}')
  return number


def _chosen(inputs: CorpusConfig, keep: KeepList, dropped: bool) -> Iterator[dict[str, Any]]:
  columns = (keep.table[name].to_pylist() for name in ('id', 'digest', 'keep', 'reason'))
  of = {row[0]: (number, *row[1:]) for number, row in enumerate(zip(*columns))}
  errors, is_seen_N = keep.errors() if dropped else {}, np.zeros(len(of), bool)
  for shard in corpus.shards(inputs):
    for example in corpus.examples(shard, inputs):
      if example.id not in of:
        raise _other_corpus(f'example {example.id!r} is not in it')
      number, digest, is_kept, reason = of[example.id]
      if is_seen_N[number]:
        raise _other_corpus(f'example {example.id!r} comes more than once in the inputs')
      if digest != kept.digest(example.id, example.content):
        raise _other_corpus(f'example {example.id!r} is another now')
      is_seen_N[number] = True
      if is_kept != dropped:
        error = errors.get(example.id, example.error)
        yield _explained(example, reason, error) if dropped else _record(example)
  if not is_seen_N.all():
    first = keep.table['id'][int(np.argmin(is_seen_N))].as_py()
    raise _other_corpus(
      f'{int((~is_seen_N).sum()):,} of its {len(of):,} examples are not in the inputs, the first '
      f'{first!r}'
    )


def _other_corpus(what: str) -> ConfigError:
  return ConfigError(
    f'the keep-list belongs to another corpus: {what}; give the inputs and fields it was made with'
  )


def _explained(example: Example, reason: str, error: str) -> dict[str, Any]:
  """The record and why it is dropped.

  Ids of the corpus may be numbers, and those of broken lines are not, which Parquet cannot mix.
  """
  said = {'id': example.id, 'reason': reason, 'error': error}
  own = {f'record.{n}' if n in said else n: v for n, v in _record(example).items()}
  if str(own['record.id']) == example.id:
    del own['record.id']
  return {'id': example.id} | own | said


def _record(example: Example) -> dict[str, Any]:
  record: Mapping[str, Any] = example.record
  if not record:
    record = {'text': example.text} if example.text is not None else {}
  if example.image is not None and not any(isinstance(v, bytes) for v in record.values()):
    record = {**record, 'image': example.image}
  return {'id': example.id, **record}


def _writer(path: pathlib.Path) -> Callable[[pathlib.Path, Iterable[dict[str, Any]]], int]:
  name = path.name.lower()
  for suffixes, write in (
    (('.jsonl', '.jsonl.gz'), _write_json_lines),
    (('.parquet',), _write_parquet),
    (('.array_record',), _write_array_record),
  ):
    if name.endswith(suffixes):
      return write
  raise ConfigError(
    f'--output is {str(path)!r}, expected a name that ends in .jsonl, .jsonl.gz, .parquet or '
    '.array_record'
  )


def _write_json_lines(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> int:
  compression = 'gzip' if '.gz' in path.name else None
  number = 0
  with pa.output_stream(str(path), compression=compression) as f:
    for record in records:
      f.write(_json(record) + b'\n')
      number += 1
  return number


def _json(record: Mapping[str, Any]) -> bytes:
  for name, value in record.items():
    if isinstance(value, bytes):
      raise ConfigError(f'field {name!r} holds bytes, which JSON cannot; export to .parquet')
  text = json.dumps(record, ensure_ascii=False, default=str)
  try:
    return text.encode('utf-8')
  except UnicodeEncodeError:  # half a surrogate pair: escaped, as it came
    return json.dumps(record, default=str).encode('ascii')


def _write_parquet(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> int:
  """The columns are the fields of the first few thousand records; other ones are refused."""
  records, number = iter(records), 0
  batch = list(itertools.islice(records, _ROWS))
  schema = _table(batch, None).schema
  with pq.ParquetWriter(path, schema, compression='zstd') as writer:
    while batch:
      writer.write_table(_table(batch, schema))
      number += len(batch)
      batch = list(itertools.islice(records, _ROWS))
  return number


def _table(batch: Sequence[Mapping[str, Any]], schema: pa.Schema | None) -> pa.Table:
  names = dict.fromkeys(name for record in batch for name in record)
  if schema is not None and not set(names) <= set(schema.names):
    new = next(name for name in names if name not in schema.names)
    at = next(record['id'] for record in batch if new in record)
    raise ConfigError(
      f'example {at!r} has a field {new!r} that none of the first {_ROWS:,} has, which Parquet '
      'cannot hold; export to .jsonl'
    )
  try:
    if schema is not None:
      return pa.Table.from_pylist(batch, schema=schema)
    # Arrow takes the names from the first record alone.
    return pa.table({name: pa.array([r.get(name) for r in batch]) for name in names})
  except UnicodeEncodeError as error:
    raise ConfigError(
      f'a text has half a surrogate pair ({error}), which Parquet cannot hold; export to .jsonl'
    ) from error
  except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError) as error:
    raise ConfigError(
      f'a field has values of several types ({error}), which Parquet cannot hold; export to .jsonl'
    ) from error


def _write_array_record(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> int:
  from array_record.python import array_record_module

  # group_size:1 keeps every record readable on its own, which random access wants.
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  number = 0
  try:
    for record in records:
      number += 1
      images = [name for name, value in record.items() if isinstance(value, bytes)]
      header = {name: value for name, value in record.items() if name not in images}
      data = _json(header)
      writer.write(data + b'\n' + record[images[0]] if images else data)
  finally:
    writer.close()
  return number
