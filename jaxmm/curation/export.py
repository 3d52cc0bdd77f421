"""Examples written out: those that a keep-list keeps, or those that it drops and why.

Records go as they stand in the corpus, every field of them, in the order of the corpus.
"""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

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
  """Writes the kept examples, or the dropped ones with a field `reason`; returns how many.

  Args:
    inputs: the corpus that the list was made of.
    keep: the list.
    output: a file; its name says the format: .jsonl, .jsonl.gz, .parquet or .array_record. It
      appears whole or not at all.
    dropped: those that are dropped, instead.
    echo: takes a line at the end.

  Raises:
    ConfigError: the corpus is not that of the list (named by the first example that differs), or
      the format is none of these.
  """
  path = pathlib.Path(output)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'{path.name}.partial')
  number = _writer(path)(partial, _chosen(inputs, keep, dropped))
  os.replace(partial, path)
  if echo:
    echo(f'{number} {"dropped" if dropped else "kept"} examples: {path}')
  return number


def _chosen(inputs: CorpusConfig, keep: KeepList, dropped: bool) -> Iterator[dict[str, Any]]:
  columns = (keep.table[name].to_pylist() for name in ('id', 'digest', 'keep', 'reason'))
  of = {i: (digest, is_kept, reason) for i, digest, is_kept, reason in zip(*columns)}
  seen = 0
  for shard in corpus.shards(inputs):
    for example in corpus.examples(shard, inputs):
      if example.id not in of or of[example.id][0] != kept.digest(example.id, example.content):
        what = 'is another now' if example.id in of else 'is not in it'
        raise ConfigError(
          f'the keep-list belongs to another corpus: example {example.id!r} {what}; give the '
          'inputs and fields it was made with'
        )
      seen += 1
      _, is_kept, reason = of[example.id]
      if is_kept != dropped:
        yield _record(example) | ({'reason': reason} if dropped else {})
  if seen != len(of):
    raise ConfigError(
      f'the keep-list belongs to another corpus: it has {len(of)} examples, the inputs {seen}'
    )


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
  writer, batch, number = None, [], 0

  def flush():
    nonlocal writer
    try:
      table = pa.Table.from_pylist(batch, schema=writer.schema if writer else None)
    except UnicodeEncodeError as error:
      raise ConfigError(
        f'a text has half a surrogate pair ({error}), which Parquet cannot hold; export to .jsonl'
      ) from error
    writer = writer or pq.ParquetWriter(path, table.schema, compression='zstd')
    writer.write_table(table)
    batch.clear()

  for record in records:
    batch.append(record)
    number += 1
    if len(batch) == _ROWS:
      flush()
  if batch or writer is None:
    flush()
  writer.close()
  return number


def _write_array_record(path: pathlib.Path, records: Iterable[dict[str, Any]]) -> int:
  from array_record.python import array_record_module

  # group_size:1 keeps every record readable on its own, which random access wants.
  writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
  number = 0
  for record in records:
    number += 1
    images = [name for name, value in record.items() if isinstance(value, bytes)]
    header = {name: value for name, value in record.items() if name not in images}
    data = _json(header)
    writer.write(data + b'\n' + record[images[0]] if images else data)
  writer.close()
  return number
