"""What a keep-list leaves of a data set, the slow way: the data written anew without the rest.

Shares no code with `jaxmm.data.kept`, `jaxmm.data.corpus` or `jaxmm.curation`.
"""

import gzip
import json
import pathlib

import pyarrow as pa
import pyarrow.parquet as pq


def write_texts(path: pathlib.Path, records: list[dict]) -> None:
  """Records in the format that the file's name says; bytes stand for a line that is no record."""
  path.parent.mkdir(parents=True, exist_ok=True)
  line = lambda r: r if isinstance(r, bytes) else json.dumps(r).encode()
  data = b''.join(line(r) + b'\n' for r in records)
  if path.name.endswith('.parquet'):
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=4)
  elif '.array_record' in path.name:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
    for record in records:
      writer.write(line(record))
    writer.close()
  elif path.name.endswith('.zst'):
    with pa.output_stream(str(path), compression='zstd') as f:
      f.write(data)
  else:
    path.write_bytes(gzip.compress(data) if path.name.endswith('.gz') else data)


def write_list(path: pathlib.Path, kept: dict[str, bool], **columns) -> pathlib.Path:
  """A keep-list with nothing but `{id: keep}` and the given columns."""
  path.parent.mkdir(parents=True, exist_ok=True)
  table = {'id': list(kept), 'keep': list(kept.values())}
  pq.write_table(pa.table(table | columns), path)
  return path


def kept_only(records: list[dict], ids: list[str], kept: dict[str, bool]) -> list[dict]:
  """The records with the ids that are kept, one by one."""
  out = []
  for record, name in zip(records, ids, strict=True):
    if kept[name]:
      out.append(record)
  return out
