"""Ids that come twice, found while files are still being read; all are compared at the end.

A corpus whose id field is the wrong one, or whose files number their records anew, is known by its
first examples, so that the first million ids are remembered: in one file, and of all files.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import pyarrow as pa

from jaxmm.config import ConfigError
from jaxmm.data.corpus import Example

_REMEMBERED = 1_000_000


def checked(examples: Iterable[Example]) -> Iterator[Example]:
  """The examples of one file.

  Raises:
    ConfigError: an id comes twice.
  """
  seen: set[str] = set()
  for example in examples:
    if len(seen) < _REMEMBERED:
      if example.id in seen:
        raise _twice(example.id)
      seen.add(example.id)
    yield example


class AcrossFiles:
  """Is called with the table of every file, in any order; a column `id`.

  Raises:
    ConfigError: an id comes twice.
  """

  def __init__(self):
    self._seen: set[str] = set()

  def __call__(self, table: pa.Table) -> None:
    for name in table['id'].slice(0, _REMEMBERED - len(self._seen)).to_pylist():
      if name in self._seen:
        raise _twice(name)
      self._seen.add(name)


def _twice(name: str) -> ConfigError:
  return ConfigError(
    f'the id {name!r} comes more than once; expected different ones: name another id field, or '
    'none (then file and row are the id)'
  )
