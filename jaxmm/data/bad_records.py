"""Accounting of records that cannot be read: counted and named, an error only above a set share."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import numpy as np

from jaxmm.config import RunError

# Below so many records seen, one damaged file is no rate yet.
_FEWEST_SEEN = 1000


class TooManyBadRecords(RunError, RuntimeError):
  """More records are unreadable than the config allows; the message names the first."""


class BadRecords:
  """Which records could not be read, and why.

  Args:
    num_records: of the source; None where it shows only at the end (`finish`).
    max_fraction: of the distinct records seen so far (at least 1,000 count as seen, or all there
      are) that may be unreadable.
    name: record -> its name.

  Attributes:
    reasons: `{record: why}`, in the order in which they were met.
  """

  def __init__(self, num_records: int | None, max_fraction: float, name: Callable[[int], str]):
    self.reasons: dict[int, str] = {}
    self._max_fraction, self._name = max_fraction, name
    self._num_records = num_records
    self._seen = np.zeros(_FEWEST_SEEN if num_records is None else num_records, bool)
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self.reasons)

  def read(self, record: int) -> None:
    """Notes a record that could be read."""
    self._see(record)

  def add(self, record: int, why: str) -> None:
    """Notes an unreadable record; TooManyBadRecords if that is one too many."""
    with self._lock:
      self._see(record)
      if record not in self.reasons:
        self.reasons[record] = why
        logging.getLogger(__name__).warning(
          'unreadable record, its row gets weight 0: %s: %s', self._name(record), why
        )
      self._judge()

  def finish(self, num_records: int) -> None:
    """Tells how many records there are, all of them seen; TooManyBadRecords as in `add`."""
    self._num_records = num_records
    self._judge()

  def _see(self, record: int) -> None:
    if self._num_records is None and record >= len(self._seen):
      self._seen = np.concatenate([self._seen, np.zeros(max(len(self._seen), record), bool)])
    self._seen[record] = True

  def _judge(self) -> None:
    all_there_are = _FEWEST_SEEN if self._num_records is None else self._num_records
    seen = max(int(self._seen.sum()), min(all_there_are, _FEWEST_SEEN))
    if len(self.reasons) > self._max_fraction * seen:
      raise TooManyBadRecords(self._message())

  def _message(self) -> str:
    first = '; '.join(f'{self._name(r)}: {why}' for r, why in list(self.reasons.items())[:5])
    return (
      f'{len(self.reasons)} unreadable records of the first {int(self._seen.sum())}, more than '
      f'data.max_bad_fraction={self._max_fraction} allows; the first: {first}. '
      'Mend or remove them, or set data.max_bad_fraction higher'
    )
