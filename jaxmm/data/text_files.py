"""Text files as documents with ids, in the order of `corpus`, and rows packed of them.

    *.jsonl, *.json.gz, *.jsonl.zst   a document a line, in the field `text`
    *.parquet                         a document a row, in the column `text`
    *.array_record*                   a document a record of JSON, in the field `text`
    *.txt, *.md, `suffixes`           a document a file
    one file.txt                      one document; its last `test_fraction` of lines is 'test'

A folder may hold files of all kinds, and a folder for each split. Files are read once, in order, so
compressed ones serve as well as others.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.bad_records import BadRecords
from jaxmm.data.corpus import CorpusConfig, Example, Shard
from jaxmm.data.kept import Verdicts
from jaxmm.data.packing import METHODS, Documents, PackedSource, check_align
from jaxmm.data.sources import check_split, in_test_split, split_files

_RECORDS = ('.jsonl', '.jsonl.gz', '.jsonl.zst', '.json.gz', '.json.zst', '.parquet')
_PLAIN = ('.txt', '.md')
_KINDS = ', '.join((*_RECORDS, '.array_record', *_PLAIN))


@dataclasses.dataclass(frozen=True)
class TextConfig:
  """How text becomes rows of ids.

  Attributes:
    length: tokens of a row.
    packing: 'concat' or 'first_fit' (see `packing.packing_plan`).
    align: documents begin at its multiples in a row (for models of patches); 1 leaves no gaps.
    field: of a record that holds the text.
    suffixes: of the files taken from a folder, such as ('.py',); () takes those named above.
    exclude: patterns of files and folders of it that are passed over (see `data.corpus`).
    tokenizer: 'bytes' (ids 0-255 are the UTF-8 bytes), or the file of a trained tokenizer, which
      the caller loads and hands in as `encode`.
    bos_id: put before every document, or None.
    eos_id: put after every document, or None.
    pad_id: fills rows.
  """

  length: int = 256
  packing: str = 'concat'
  align: int = 1
  field: str = 'text'
  suffixes: tuple[str, ...] = ()
  exclude: tuple[str, ...] = ()
  tokenizer: str = 'bytes'
  bos_id: int | None = None
  eos_id: int | None = None
  pad_id: int = 0

  def __post_init__(self):
    if self.length < 2:
      raise ConfigError(f'data.text.length is {self.length}, expected at least 2 tokens')
    if self.packing not in METHODS:
      raise ConfigError(f'data.text.packing is {self.packing!r}, expected one of {METHODS}')
    check_align('data.text', self.align, self.length)


@dataclasses.dataclass(frozen=True)
class Document:
  """One record of the files.

  Attributes:
    name: its file and its place there, whatever its id; decides about its split.
    example: its id, its text or what is wrong with it, as the maker of a keep-list sees it.
    text: the part of it that is of the split.
    is_chosen: whether it is of the split.
    is_break: it stands for the rest of a file that breaks off.
  """

  name: str
  example: Example
  text: str
  is_chosen: bool
  is_break: bool

  @property
  def error(self) -> str:
    """Why it cannot be read; '' if it can."""
    return self.example.error


class TextFiles:
  """The files that `data.path` names, as documents.

  Args:
    path: a file or a folder.
    split: 'train', 'test' or 'all'.
    test_fraction: share of 'test' where no folders are splits.
    field: of a record that holds the text.
    id_field: of a record that holds its id; '' for file and row.
    suffixes: of the files; () for those that are text by their names.
    exclude: patterns of files and folders that are passed over.
    setting: that names the path, for messages.

  Raises:
    ConfigError: nothing there, or no text.
  """

  def __init__(
    self,
    path: str,
    split: str,
    test_fraction: float,
    field: str = 'text',
    id_field: str = '',
    suffixes: Sequence[str] = (),
    exclude: Sequence[str] = (),
    setting: str = 'data.path',
  ):
    check_split(split)
    self.described = f'{setting} {path!r}, split {split!r}'
    self._split, self._test_fraction = split, test_fraction
    self._places = CorpusConfig((path,), text_field=field)
    self._named = dataclasses.replace(self._places, id_field=id_field)
    root = pathlib.Path(path)
    self._is_plain = root.is_file() and corpus.format_of(root.name) == 'text'
    kinds = ', '.join(suffixes) or _KINDS
    if root.is_file():
      if not _is_text(root.name, suffixes):
        raise ConfigError(f'{setting} {path!r} is no text ({kinds})')
      self._shards, self._others = [_shard(root, root.name)], []
      self._by_hash = split != 'all' and not self._is_plain
    elif root.is_dir():
      files = sorted(p.relative_to(root).as_posix() for p in root.rglob('*') if p.is_file())
      files = [f for f in files if _is_text(f, suffixes) and not corpus.is_hidden(f)]
      files = [f for f in files if not corpus.is_excluded(f, exclude)]
      if not files:
        raise ConfigError(f'{setting} {path!r} holds no text ({kinds})')
      of_split = split_files(files, split, path)
      self._by_hash = of_split is None and split != 'all'
      chosen = files if of_split is None else of_split
      self._shards = [_shard(root / f, f) for f in chosen]
      self._others = [_shard(root / f, f) for f in sorted(set(files) - set(chosen))]
    else:
      raise ConfigError(f'{setting} {path!r} does not exist')

  @property
  def advice(self) -> str:
    """For the case that the split is empty."""
    if not self._by_hash:
      return ''
    return (
      f': documents are split by a hash of their names, {self._test_fraction} of them for test, '
      'and with few of them a split may get none; make folders train and test, set test_fraction '
      'higher, or give a single plain text, whose last lines are test'
    )

  def documents(self) -> Iterator[Document]:
    """Those of the split, in order, and among them those of the same files that are not."""
    for shard in self._shards:
      for example in corpus.examples(shard, self._places):
        name = example.id
        if self._named.id_field and example.record:
          example = corpus.of_record(example.record, name, self._named)
        is_break = name == corpus.broken_id(shard.name)
        yield Document(
          name, example, self._part(example.text or ''), self._is_in_split(name), is_break
        )

  def other_ids(self) -> Iterator[str]:
    """The ids in the files of other splits."""
    for shard in self._others:
      yield from corpus.ids(shard, self._named.id_field)

  def _is_in_split(self, name: str) -> bool:
    if not self._by_hash:
      return True
    return in_test_split(name, self._test_fraction) == (self._split == 'test')

  def _part(self, text: str) -> str:
    """Of a single plain file the split's part: whole lines, the test part last."""
    if not self._is_plain or self._split == 'all':
      return text
    cut = text.find('\n', int(len(text) * (1 - self._test_fraction))) + 1 or len(text)
    return text[cut:] if self._split == 'test' else text[:cut]


def _is_text(name: str, suffixes: Sequence[str]) -> bool:
  if suffixes:
    return name.endswith(tuple(suffixes))
  return name.endswith(_RECORDS + _PLAIN) or '.array_record' in name


def _shard(path: pathlib.Path, name: str) -> Shard:
  return Shard(str(path), name, corpus.format_of(name))


def text_source(
  files: TextFiles,
  config: TextConfig,
  encode: Callable[[str], Sequence[int]] | None = None,
  max_bad_fraction: float = 0.01,
  verdicts: Verdicts | None = None,
  checks_digests: bool = True,
) -> PackedSource:
  """Reads, encodes and packs the documents of a split; their tokens are held in memory.

  The arguments, and what is raised, are those of `encoded_documents`.
  """
  documents, fingerprint = encoded_documents(
    files, config, encode, max_bad_fraction, verdicts, checks_digests
  )
  return PackedSource(
    documents, config.length, config.packing, config.pad_id, fingerprint, config.align
  )


def encoded_documents(
  files: TextFiles,
  config: TextConfig,
  encode: Callable[[str], Sequence[int]] | None = None,
  max_bad_fraction: float = 0.01,
  verdicts: Verdicts | None = None,
  checks_digests: bool = True,
) -> tuple[Documents, str]:
  """Ids of the documents of a split, `bos_id` and `eos_id` included; and the `kept_fingerprint`.

  Unreadable documents are left out, counted and named like any unreadable record.

  Args:
    encode: text -> ids; None for bytes.
    verdicts: of a keep-list; what it drops is neither encoded nor counted.
    checks_digests: refuse texts that are others than when the keep-list was made.

  Raises:
    ConfigError: no text there, a file that breaks off, a tokenizer that is named but not handed in,
      or a keep-list of other data.
    TooManyBadRecords: more documents are unreadable than `max_bad_fraction`.
  """
  encode = checked_encode(config, encode)
  before = [] if config.bos_id is None else [config.bos_id]
  after = [] if config.eos_id is None else [config.eos_id]
  ids, names, bad_names = [], [], {}
  bad = BadRecords(None, max_bad_fraction, bad_names.get)
  number = -1
  for number, document in enumerate(_chosen(files, verdicts, checks_digests)):
    if why := document.error:
      bad_names[number] = document.name
      bad.add(number, why)
      continue
    bad.read(number)
    encoded = np.asarray(encode(document.text), np.int32)
    if len(encoded):
      ids.append(np.concatenate([before, encoded, after]).astype(np.int32))
      names.append(document.name)
  fingerprint = verdicts.settled(files.described) if verdicts else ''
  bad.finish(number + 1)
  if not ids:
    raise ConfigError(f'{files.described} holds no text{files.advice}')
  return Documents.of(ids, names), fingerprint


def checked_encode(
  config: TextConfig, encode: Callable[[str], Sequence[int]] | None
) -> Callable[[str], Sequence[int]]:
  """`encode`, or that of bytes; ConfigError if a tokenizer is named but not handed in."""
  if encode is None and config.tokenizer != 'bytes':
    raise ConfigError(
      f'data.text.tokenizer is {config.tokenizer!r}: load it and pass its `encode` to make_batches'
    )
  return encode or _utf8_ids


def _chosen(
  files: TextFiles, verdicts: Verdicts | None, checks_digests: bool
) -> Iterator[Document]:
  """The documents of the split that are kept."""
  for document in files.documents():
    example = document.example
    if document.is_break and verdicts is None:
      raise ConfigError(
        f'{example.error}; mend or remove the file (a keep-list that drops {example.id!r} goes on '
        'with what can be read)'
      )
    if not document.is_chosen:
      if verdicts:
        verdicts.elsewhere([example.id])
    elif verdicts is None or verdicts.keeps(
      example.id, example.content if checks_digests else None
    ):
      yield document
  if verdicts and verdicts.has_more:
    verdicts.elsewhere(files.other_ids())


def _utf8_ids(text: str) -> np.ndarray:
  return np.frombuffer(text.encode(), np.uint8)
