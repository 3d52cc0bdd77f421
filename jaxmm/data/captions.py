"""Captioned pictures: records that name pictures, and their captions.

    {"image": "a.jpg", "caption": "a dog"}                    one picture
    {"image": ["a.jpg", "b.jpg"], "caption": "two dogs"}      several pictures of one caption
    {"image": "a.jpg", "caption": ["a dog", "an animal"]}     a caption each: a pair each

A record may instead say what comes after what: any number of texts and pictures in their order,
such as a picture, an instruction and the picture that it asks for.

    {"parts": [{"image": "a.jpg"}, {"text": "make it blue"}, {"image": "b.jpg"}]}

Files of records are those of `data.corpus` (JSON lines, Parquet, ...); pictures are named by their
paths below the folder, or in the zip, that holds them.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig, Example, Shard
from jaxmm.data.sources import check_split, in_test_split, split_of_name


@dataclasses.dataclass(frozen=True)
class Entry:
  """Texts and pictures that belong together.

  Attributes:
    name: file and place of its record, and which of its captions it is.
    pictures: names of pictures; () for text alone.
    texts: the caption alone ('' for none), whose place is before the pictures or after them; or,
      of a record that says the order, what stands before each picture and after the last one.
  """

  name: str
  pictures: tuple[str, ...]
  texts: tuple[str, ...]

  @property
  def is_ordered(self) -> bool:
    """Whether its record says the order."""
    return len(self.texts) > 1


@dataclasses.dataclass(frozen=True)
class Record:
  """One record of the file.

  Attributes:
    example: its id, its fields or what is wrong with it, as the maker of a keep-list sees it.
    entries: what it says, one for each of its captions.
    is_chosen: whether it is of the split.
    error: why it cannot be used; '' if it can.
  """

  example: Example
  entries: tuple[Entry, ...]
  is_chosen: bool
  error: str


class CaptionFile:
  """A file of records.

  Args:
    path: the file.
    split: 'train', 'test' or 'all'.
    test_fraction: share of 'test', by a hash of the (first) picture's name, so that all captions of
      a picture are of one split.
    split_field: of a record that says its split ('train', 'val', 'test', ...); '' splits by hash.
    image_field: of a record that names its pictures.
    caption_field: of a record that holds its captions.
    parts_field: of a record that says its texts and pictures in their order; where it is there, the
      other two are not read.
    max_captions: of a record that are used, the first ones; None for all.
    id_field: of a record that holds its id; '' for file and row.

  Raises:
    ConfigError: no such file.
  """

  def __init__(
    self,
    path: str,
    split: str,
    test_fraction: float,
    *,
    split_field: str = '',
    image_field: str = 'image',
    caption_field: str = 'caption',
    parts_field: str = 'parts',
    max_captions: int | None = None,
    id_field: str = '',
  ):
    check_split(split)
    file = pathlib.Path(path)
    if not file.is_file():
      raise ConfigError(
        f'data.mixed.captions is {path!r}, but there is no such file; name the one whose records '
        'name pictures and their captions'
      )
    self.described = f'data.mixed.captions {path!r}, split {split!r}'
    self._shard = Shard(path, file.name, corpus.format_of(file.name))
    if self._shard.format not in ('jsonl', 'parquet', 'array_record'):
      raise ConfigError(
        f'data.mixed.captions is {path!r}, expected records (.jsonl, .jsonl.gz, .parquet, ...)'
      )
    self._split, self._test_fraction, self._split_field = split, test_fraction, split_field
    self._image_field, self._caption_field = image_field, caption_field
    self._parts_field = parts_field
    self._max_captions = max_captions
    self._places = CorpusConfig((path,), text_field='')
    self._named = dataclasses.replace(self._places, id_field=id_field)

  def records(self) -> Iterator[Record]:
    """Every record, in order.

    Raises:
      ConfigError: the file breaks off, or a record says a split that is none.
    """
    for example in corpus.examples(self._shard, self._places):
      place = example.id
      if place == corpus.broken_id(self._shard.name):
        raise ConfigError(f'{self.described}: {example.error}; mend the file')
      if self._named.id_field and example.record:
        example = corpus.of_record(example.record, place, self._named)
      yield self._record(example, place)

  def _record(self, example: Example, place: str) -> Record:
    pictures: tuple[str, ...] = ()
    texts: list[tuple[str, ...]] = []
    error = example.error
    if not error:
      try:
        parts = example.record.get(self._parts_field)
        if parts is None:
          pictures = _names(example.record, self._image_field)
          captions = _texts(example.record, self._caption_field)
          texts = [(caption,) for caption in captions[: self._max_captions]]
        else:
          pictures, around = _parts(parts, self._parts_field)
          texts = [around]
      except _Unusable as e:
        error = str(e)
    # A picture's name keeps it on its side, whatever else happens to the file.
    is_chosen = self._is_in_split(example, pictures[0] if pictures else place)
    entries = tuple(
      Entry(place if len(texts) == 1 else f'{place}#{i}', pictures, around)
      for i, around in enumerate(texts)
    )
    return Record(example, entries, is_chosen, error)

  def _is_in_split(self, example: Example, name: str) -> bool:
    if self._split == 'all':
      return True
    if not self._split_field:
      return in_test_split(name, self._test_fraction) == (self._split == 'test')
    value = example.record.get(self._split_field)
    split = split_of_name(value) if isinstance(value, str) else None
    if split is None and example.record:
      raise ConfigError(
        f'{example.id} has {value!r} in field {self._split_field!r} (data.mixed.split_field), '
        "which is no split; expected 'train', 'test', 'val', 'valid' or such, or set "
        "data.mixed.split_field='' to split by hash"
      )
    return split == self._split


class _Unusable(Exception):
  """A record that lacks what it should have."""


def _names(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
  """The pictures of a record; none where an empty list says so."""
  value = record.get(field)
  names = value if isinstance(value, list) else [value]
  if not all(isinstance(name, str) and name for name in names):
    raise _Unusable(
      f'no name of a picture in field {field!r} (data.mixed.image_field); the record has '
      f'{sorted(record)}; set data.mixed.image_field to the field that names its picture'
    )
  return tuple(names)


def _texts(record: Mapping[str, Any], field: str) -> tuple[str, ...]:
  """The captions of a record."""
  value = record.get(field)
  texts = value if isinstance(value, list) else [value]
  if not texts or not all(isinstance(text, str) for text in texts):
    raise _Unusable(
      f'no caption in field {field!r} (data.mixed.caption_field); the record has '
      f'{sorted(record)}; set data.mixed.caption_field to the field that holds its caption'
    )
  return tuple(map(_utf8, texts))


def _parts(parts: Any, field: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
  """The pictures of a list of parts, and what is said before each and after the last."""
  pictures, around = [], ['']
  for number, part in enumerate(parts if isinstance(parts, list) else [parts]):
    # A table's rows have both fields, one of them empty.
    said = {k: v for k, v in part.items() if v is not None} if isinstance(part, Mapping) else {}
    (kind, value), *more = said.items() or [('', None)]
    if more or kind not in ('image', 'text') or not isinstance(value, str):
      raise _Unusable(
        f'part {number} in field {field!r} is {part!r}, expected {{"image": NAME}} or '
        '{"text": TEXT}'
      )
    if kind == 'text':
      around[-1] += _utf8(value)
      continue
    if not value:
      raise _Unusable(f'part {number} in field {field!r} names no picture')
    pictures.append(value)
    around.append('')
  if not pictures and not around[0]:
    raise _Unusable(f'no part in field {field!r}')
  return tuple(pictures), tuple(around)


def _utf8(text: str) -> str:
  try:
    text.encode()
  except UnicodeEncodeError as e:  # JSON can say half a character
    raise _Unusable(f'the caption is not UTF-8: {e}') from e
  return text
