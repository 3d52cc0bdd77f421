"""Ids that come twice, found while files are still being read; all are compared at the end.

A corpus whose id field is the wrong one, or whose files number their records anew, is known by its
first examples, so that the first million ids are remembered: in one file, and of all files. Where
one comes twice the files are read once more, as far, to say where, and how many do.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence

import pyarrow as pa

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig, Example, Shard

_REMEMBERED = 1_000_000


def checked(shard: Shard, inputs: CorpusConfig) -> Iterator[Example]:
  """The examples of one file.

  Raises:
    ConfigError: an id comes twice; also what reading it raises.
  """
  seen: set[str] = set()
  for example in corpus.examples(shard, inputs):
    if len(seen) < _REMEMBERED:
      if example.id in seen:
        raise repeated(example.id, [shard], inputs)
      seen.add(example.id)
    yield example


class AcrossFiles:
  """Is called with the table of every file, in any order; a column `id`.

  Args:
    shards, inputs: the files, and how they are read, to say where an id is.

  Raises:
    ConfigError: an id comes twice.
  """

  def __init__(self, shards: Sequence[Shard], inputs: CorpusConfig):
    self._shards, self._inputs = shards, inputs
    self._seen: set[str] = set()

  def __call__(self, table: pa.Table) -> None:
    for name in table['id'].slice(0, _REMEMBERED - len(self._seen)).to_pylist():
      if name in self._seen:
        raise repeated(name, self._shards, self._inputs)
      self._seen.add(name)


def repeated(name: str, shards: Sequence[Shard], inputs: CorpusConfig) -> ConfigError:
  """The error for an id that comes more than once: where, and how many more do."""
  first: dict[str, str] = {}
  second: dict[str, str] = {}
  number = 0
  for other, place in itertools.islice(_placed(shards, inputs), _REMEMBERED):
    number += 1
    if other not in first:
      first[other] = place
    else:
      second.setdefault(other, place)
  where = f' ({first[name]} and {second[name]})' if name in second else ''
  many = len(second.keys() | {name})
  among = f' among the first {number:,} examples' if number == _REMEMBERED else ''
  others = f', one of {many:,} ids that do{among}' if many > 1 else ''
  return ConfigError(
    f'the id {name!r} comes more than once{where}{others}; expected different ones: name another '
    'id field, or none (then file and row are the id)'
  )


def _placed(shards: Sequence[Shard], inputs: CorpusConfig) -> Iterator[tuple[str, str]]:
  """(id, file and row) of the examples."""
  by_place = dataclasses.replace(inputs, id_field='')
  for shard in shards:
    for example in corpus.examples(shard, by_place):
      name = example.id
      if inputs.id_field and example.record:
        name = corpus.of_record(example.record, example.id, inputs).id
      inner = example.id.removeprefix(shard.name)
      yield name, f'{shard.path}{inner}' if inner != example.id else f'{shard.path}: {inner}'
