"""Filters in the middle of a grain pipeline: a keep-list, or a rule that looks at one record.

    ds = grain.MapDataset.source(records).shuffle(seed=0).repeat().to_iter_dataset()
    ds = ds.filter(Kept('keep.parquet', id='id')).filter(Passes(TextLength(fewest=200)))

For pipelines of one's own. They go where grain filters do: in a `MapDataset` dropped places stay
empty until `to_iter_dataset()`. So records cannot be dealt out evenly before they are filtered; the
library's own training (`data.keep_list`) instead knows which records are kept before the first is
read, and stays in random access.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import grain
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data import kept


class Kept(grain.transforms.Filter):
  """Keeps the records that a keep-list keeps.

  The list is read when the first record comes, in each process that filters.

  Args:
    path: the keep-list.
    id: the field that holds a record's id, or record -> id (of a source of this library: map
      `{'id': source.id(i), **source[i]}` over the range of its numbers).

  Raises:
    ConfigError: when a record comes that the list does not know, or that has no id, or the list
      cannot be read.
  """

  def __init__(self, path: str | os.PathLike, id: str | Callable[[Any], str] = 'id'):
    self._path, self._id = os.fspath(path), id
    self._keeps: dict[str, bool] | None = None
    self._lock = threading.Lock()

  def filter(self, element: Any) -> bool:
    name = self._id(element) if callable(self._id) else str(_field(element, self._id))
    try:
      return self._verdicts()[name]
    except KeyError:
      raise ConfigError(
        f'the keep-list {self._path!r} belongs to other data: it does not know the id {name!r}; '
        'make it of what the pipeline reads, or name the field (or function) of its ids'
      ) from None

  def _verdicts(self) -> dict[str, bool]:
    with self._lock:
      if self._keeps is None:
        ids, keep_N, _ = kept.read_columns(self._path)
        self._keeps = dict(zip(ids, keep_N.tolist(), strict=True))
      return self._keeps

  def __getstate__(self):
    return {**self.__dict__, '_keeps': None, '_lock': None}

  def __setstate__(self, state):
    self.__dict__.update(state, _lock=threading.Lock())


class Passes(grain.transforms.Filter):
  """Keeps the records that a rule passes; whatever else looks at one record alone can be a rule.

  Args:
    rule: value -> whether it is kept (bool), or why it is dropped ('' keeps), as in a keep-list.
    field: of a record, which is handed to the rule; None for the record itself.

  Raises:
    ConfigError: when a record comes that lacks the field.
    TypeError: when the rule returns neither a bool nor a string.
  """

  def __init__(self, rule: Callable[[Any], bool | str], field: str | None = 'text'):
    self._rule, self._field = rule, field

  def filter(self, element: Any) -> bool:
    return not self.reason(element)

  def reason(self, element: Any) -> str:
    """Why a record is dropped; '' if it is kept. A rule that says only no gives its name."""
    said = self._rule(element if self._field is None else _field(element, self._field))
    if isinstance(said, str):
      return said
    if not isinstance(said, bool | np.bool_):
      raise TypeError(f'{self._rule} returned {said!r}; a rule says True, False or a reason')
    return '' if said else getattr(self._rule, '__name__', type(self._rule).__name__)


@dataclasses.dataclass(frozen=True)
class TextLength:
  """A rule: texts of `fewest` to `most` characters (None for any number) pass."""

  fewest: int = 1
  most: int | None = None

  def __post_init__(self):
    if self.fewest < 0 or self.most is not None and self.most < self.fewest:
      raise ConfigError(
        f'fewest is {self.fewest} and most {self.most}, expected 0 <= fewest <= most'
      )

  def __call__(self, text: str) -> str:
    if len(text) < self.fewest:
      return 'empty' if not text else 'too_short'
    return 'too_long' if self.most is not None and len(text) > self.most else ''


def _field(record: Any, name: str) -> Any:
  if not isinstance(record, Mapping) or name not in record:
    has = sorted(record) if isinstance(record, Mapping) else type(record).__name__
    raise ConfigError(f'a record has no field {name!r}; it has {has}')
  return record[name]
