"""Text: JSON lines (also .gz) and plain text files, as documents with names.

    corpus.jsonl, corpus.jsonl.gz   a document a line, in the field `text`; named file:line
    folder of *.txt                 a document a file
    one file.txt                    one document; its last `test_fraction` of lines is 'test'

A folder may hold files of both kinds, and a folder for each split.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data.bad_records import BadRecords
from jaxmm.data.packing import METHODS, Documents, PackedSource
from jaxmm.data.sources import (
  Record,
  UnreadableRecord,
  check_split,
  in_test_split,
  split_files,
)

JSON_LINES = ('.jsonl', '.jsonl.gz', '.json.gz')
PLAIN = ('.txt', '.md')


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """How text becomes rows of ids.

  Attributes:
    length: tokens of a row.
    packing: 'concat' or 'first_fit' (see `packing.packing_plan`).
    field: of a JSON line that holds the text.
    tokenizer: 'bytes' (ids 0-255 are the UTF-8 bytes), or the file of a trained tokenizer, which
      the caller loads and hands in as `encode`.
    bos_id: put before every document, or None.
    eos_id: put after every document, or None.
    pad_id: fills rows.
  """

  length: int = 256
  packing: str = 'concat'
  field: str = 'text'
  tokenizer: str = 'bytes'
  bos_id: int | None = None
  eos_id: int | None = None
  pad_id: int = 0

  def __post_init__(self):
    if self.length < 2:
      raise ConfigError(f'data.text.length is {self.length}, expected at least 2 tokens')
    if self.packing not in METHODS:
      raise ConfigError(f'data.text.packing is {self.packing!r}, expected one of {METHODS}')


class JsonLines:
  """Random access to the lines of a JSON-lines file.

  A plain file is read through an index of line offsets; a gzip file has no random access and is
  held in memory.
  """

  num_classes = None

  def __init__(self, path: str | os.PathLike):
    self._path = pathlib.Path(path)
    self._lines: list[bytes] | None = None
    if self._path.name.endswith('.gz'):
      with gzip.open(self._path, 'rb') as f:
        self._lines = f.read().splitlines()
      self._numbers = [n for n, line in enumerate(self._lines) if line.strip()]
      return
    offsets, self._numbers = [0], []
    with open(self._path, 'rb') as f:
      for number, line in enumerate(f):
        if line.strip():
          self._numbers.append(number)
        offsets.append(offsets[-1] + len(line))
    self._offsets = np.array(offsets, np.int64)

  def __len__(self) -> int:
    return len(self._numbers)

  def __getitem__(self, i: int) -> Record:
    try:
      record = json.loads(self._line(self._numbers[i]))
    except ValueError as e:
      raise UnreadableRecord(f'{type(e).__name__}: {e}') from e
    if not isinstance(record, dict):
      raise UnreadableRecord(f'a JSON {type(record).__name__}, expected an object')
    return record

  def name(self, i: int) -> str:
    return f'{self._path.name}:{self._numbers[i] + 1}'

  def _line(self, number: int) -> bytes:
    if self._lines is not None:
      return self._lines[number]
    with open(self._path, 'rb') as f:
      f.seek(int(self._offsets[number]))
      return f.read(int(self._offsets[number + 1] - self._offsets[number]))


def text_source(
  path: str,
  split: str,
  test_fraction: float,
  config: TextConfig,
  encode: Callable[[str], Sequence[int]] | None = None,
  max_bad_fraction: float = 0.01,
) -> PackedSource:
  """Reads, encodes and packs the documents of a split; ids are held in memory.

  Unreadable documents are left out of the plan, counted and named like any unreadable record.

  Args:
    encode: text -> ids; None for bytes.

  Raises:
    ConfigError: no text there, or a tokenizer is named but not handed in.
    TooManyBadRecords: more documents are unreadable than `max_bad_fraction`.
  """
  if encode is None and config.tokenizer != 'bytes':
    raise ConfigError(
      f'data.text.tokenizer is {config.tokenizer!r}: load it and pass its `encode` to make_batches'
    )
  encode = encode or _utf8_ids
  before = [] if config.bos_id is None else [config.bos_id]
  after = [] if config.eos_id is None else [config.eos_id]
  ids, names = [], []
  found = list(documents(path, split, test_fraction, config.field))
  bad = BadRecords(len(found), max_bad_fraction, lambda i: found[i][0])
  for i, (name, read) in enumerate(found):
    try:
      text = read()
    except (UnreadableRecord, OSError, UnicodeDecodeError) as e:
      bad.add(i, str(e))
      continue
    encoded = np.asarray(encode(text), np.int32)
    if len(encoded):
      ids.append(np.concatenate([before, encoded, after]).astype(np.int32))
      names.append(name)
  if not ids:
    raise ConfigError(f'data.path {path!r}, split {split!r}, holds no text')
  return PackedSource(Documents.of(ids, names), config.length, config.packing, config.pad_id)


def documents(
  path: str, split: str, test_fraction: float, field: str = 'text'
) -> Iterator[tuple[str, Callable[[], str]]]:
  """Names of the documents of a split, in order, and what reads each."""
  check_split(split)
  root = pathlib.Path(path)
  if root.is_file():
    files, by_hash = [root], split != 'all'
    if root.name.endswith(PLAIN):
      yield root.name, lambda: _part(root, split, test_fraction)
      return
  elif root.is_dir():
    inner = [p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file()]
    inner = sorted(f for f in inner if f.endswith(JSON_LINES + PLAIN))
    if not inner:
      raise ConfigError(f'data.path {path!r} holds no text ({", ".join(JSON_LINES + PLAIN)})')
    chosen = split_files(inner, split, path)
    files, by_hash = [root / f for f in chosen or inner], chosen is None and split != 'all'
  else:
    raise ConfigError(f'data.path {path!r} does not exist')

  def is_in(name: str) -> bool:
    return not by_hash or in_test_split(name, test_fraction) == (split == 'test')

  for file in files:
    if file.name.endswith(JSON_LINES):
      lines = JsonLines(file)
      for i in range(len(lines)):
        if is_in(lines.name(i)):
          yield lines.name(i), _line_reader(lines, i, field)
    elif file.name.endswith(PLAIN):
      name = file.relative_to(root).as_posix()
      if is_in(name):
        yield name, _file_reader(file)
    else:
      raise ConfigError(f'data.path {path!r} is no text ({", ".join(JSON_LINES + PLAIN)})')


def _line_reader(lines: JsonLines, i: int, field: str) -> Callable[[], str]:
  def read() -> str:
    record = lines[i]
    if not isinstance(record.get(field), str):
      raise UnreadableRecord(f'no text in field {field!r}; it has {sorted(record)}')
    return record[field]

  return read


def _file_reader(file: pathlib.Path) -> Callable[[], str]:
  return lambda: file.read_text('utf-8')


def _part(file: pathlib.Path, split: str, test_fraction: float) -> str:
  """One file's part of a split: whole lines, the test part last."""
  text = file.read_text('utf-8')
  if split == 'all':
    return text
  cut = text.find('\n', int(len(text) * (1 - test_fraction))) + 1 or len(text)
  return text[cut:] if split == 'test' else text[:cut]


def _utf8_ids(text: str) -> np.ndarray:
  return np.frombuffer(text.encode(), np.uint8)
