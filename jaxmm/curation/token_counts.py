"""How long every example of a corpus is, in the tokens of any tokenizer.

A counter is a function `count(text) -> int`. Between processes and into caches only its name goes:

    bytes                    of UTF-8; what cannot be encoded counts 1, as `tokenizers.text` does it
    characters               code points
    words                    runs of what is not white space
    PATH.json                a tokenizer: the file of the library `tokenizers` (Hugging Face), or
                             one that a tokenizer of jaxmm saved; special tokens are not added
    package.module:function  any other function that can be imported
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxmm.config import ConfigError
from jaxmm.curation import runners, unique_ids
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig, Shard

Count = Callable[[str], int]
_BUILTIN: dict[str, Count] = {
  'bytes': lambda text: len(text.encode('utf-8', 'replace')),
  'characters': len,
  'words': lambda text: len(text.split()),
}
BUILTIN = tuple(_BUILTIN)
_OWN_FORMAT = 'jaxmm-text-tokenizer'
SCHEMA = pa.schema(
  {'id': pa.string(), 'digest': pa.uint64(), 'error': pa.string(), 'tokens': pa.int64()}
)


def counter(name: str) -> Count:
  """The function of a name.

  Raises:
    ConfigError: there is none of that name, or the file is no tokenizer.
  """
  return _loaded(name, identity(name))


def identity(name: str) -> str:
  """A digest of the file that a counter is read from, '' for a built-in one.

  What has been counted with a file that has changed is not taken for a new count.
  """
  if name in _BUILTIN:
    return ''
  if name.endswith('.json'):
    path = pathlib.Path(name)
    if not path.is_file():
      raise ConfigError(f'counter {name!r}: no such file, expected a tokenizer.json')
    return hashlib.sha256(path.read_bytes()).hexdigest()[:16]
  module, colon, function = name.partition(':')
  if not (module and colon and function):
    raise ConfigError(
      f'counter is {name!r}, expected one of {", ".join(BUILTIN)}, the path of a tokenizer.json, '
      'or package.module:function'
    )
  file = getattr(_imported(module, name), '__file__', None)  # none where it is built in
  return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:16] if file else ''


@functools.lru_cache(maxsize=8)
def _loaded(name: str, digest: str) -> Count:
  if identity(name) != digest:
    raise ConfigError(f'counter {name!r} is not the same file everywhere, or has been changed')
  if name in _BUILTIN:
    return _BUILTIN[name]
  if name.endswith('.json'):
    return _of_file(pathlib.Path(name))
  module, _, function = name.partition(':')
  found = getattr(_imported(module, name), function, None)
  if not callable(found):
    raise ConfigError(f'counter {name!r}: {module} has no function {function!r}')
  return found


def _imported(module: str, name: str):
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ConfigError(f'counter {name!r}: {module} cannot be imported ({error})') from error


def _of_file(path: pathlib.Path) -> Count:
  import tokenizers

  try:
    state = json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise ConfigError(f'counter {path}: not JSON ({error})') from error
  if isinstance(state, dict) and str(state.get('format')).startswith(_OWN_FORMAT):
    if state.get('kind') == 'bytes':
      return _BUILTIN['bytes']
    state = state.get('tokenizer')
  try:
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps(state))
  except Exception as error:  # the library raises nothing narrower
    raise ConfigError(f'counter {path}: not a tokenizer.json ({error})') from error
  # Files of encoders often cut every text to what the encoder reads, which would count as short.
  tokenizer.no_truncation()
  tokenizer.no_padding()

  def count(text: str) -> int:
    encodable = text.encode('utf-8', 'replace').decode('utf-8')
    return len(tokenizer.encode(encodable, add_special_tokens=False).ids)

  return count


def counts(
  inputs: CorpusConfig,
  name: str,
  workdir: str | os.PathLike,
  *,
  runner: runners.Runner = runners.LOCAL,
  echo: runners.Echo | None = print,
) -> pa.Table:
  """Of every example its id, digest, error ('' if it can be read) and tokens, ascending by id.

  Args:
    inputs: the corpus.
    name: of the counter, see above.
    workdir: a path or a URL where finished files are kept; a run that was stopped goes on there.
    runner: who reads and counts files.
    echo: takes progress lines.

  Returns:
    Columns of SCHEMA; tokens are null where the example cannot be read.
  """
  settings = {'corpus': dataclasses.asdict(inputs), 'counter': name, 'identity': identity(name)}
  counter(name)  # what is wrong with it shows before any process starts
  files = corpus.shards(inputs)
  tables = runners.map_shards(
    counted,
    files,
    workdir,
    name='tokens',
    settings=settings,
    each=unique_ids.AcrossFiles(files, inputs),
    runner=runner,
    echo=echo,
  )
  runners.check_some(tables, files, inputs)
  table = pa.concat_tables(tables)
  return table.take(pc.sort_indices(table, [('id', 'ascending')])).combine_chunks()


def counted(shard: Shard, settings: Mapping[str, Any], _) -> pa.Table:
  """The columns of SCHEMA for the examples of one file."""
  inputs = corpus.of_json(settings['corpus'])
  count = _loaded(settings['counter'], settings['identity'])
  ids, digests, errors, tokens = [], [], [], []
  for example in unique_ids.checked(shard, inputs):
    ids.append(example.id)
    digests.append(kept.digest(example.id, example.content))
    errors.append(example.error)
    tokens.append(None if example.error else int(count(example.text or '')))
  columns = [ids, np.array(digests, np.uint64), errors, tokens]
  return pa.table([pa.array(c, f.type) for c, f in zip(columns, SCHEMA)], schema=SCHEMA)
