"""The rejects file: of every malformed record its id and what is wrong, a line of JSON each.

It stands beside a keep-list, of whatever method, and says no more than the list does.
"""

from __future__ import annotations

import json
import os
import pathlib

import pyarrow.compute as pc

from jaxmm.curation.keep_list import UNREADABLE, KeepList


def write(keep: KeepList, path: str | os.PathLike) -> pathlib.Path | None:
  """Writes `PATH.rejects.jsonl` with id, reason and error of what cannot be read.

  Args:
    keep: the list.
    path: where it stands.

  Returns:
    The file; None where every record can be read. One of an earlier list is removed then.
  """
  path = pathlib.Path(f'{os.fspath(path)}.rejects.jsonl')
  ids = keep.table.filter(pc.equal(keep.table['reason'], UNREADABLE))['id'].to_pylist()
  if not ids:
    path.unlink(missing_ok=True)
    return None
  errors = keep.errors()
  partial = path.with_name(f'{path.name}.partial')
  with open(partial, 'w', encoding='utf-8') as f:
    for name in ids:
      row = {'id': name, 'reason': UNREADABLE, 'error': errors.get(name, '')}
      f.write(json.dumps(row) + '\n')
  os.replace(partial, path)
  return path
