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
    num_records: of the source.
    max_fraction: of the distinct records seen so far (at least 1,000 count as seen, or all there
      are) that may be unreadable.
    name: record -> its name.

  Attributes:
    reasons: `{record: why}`, in the order in which they were met.
  """

  def __init__(self, num_records: int, max_fraction: float, name: Callable[[int], str]):
    self.reasons: dict[int, str] = {}
    self._max_fraction, self._name = max_fraction, name
    self._seen = np.zeros(num_records, bool)
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return len(self.reasons)

  def read(self, record: int) -> None:
    """Notes a record that could be read."""
    self._seen[record] = True

  def add(self, record: int, why: str) -> None:
    """Notes an unreadable record; TooManyBadRecords if that is one too many."""
    with self._lock:
      self._seen[record] = True
      if record not in self.reasons:
        self.reasons[record] = why
        logging.getLogger(__name__).warning(
          'unreadable record, its row gets weight 0: %s: %s', self._name(record), why
        )
      seen = max(int(self._seen.sum()), min(len(self._seen), _FEWEST_SEEN))
      if len(self.reasons) > self._max_fraction * seen:
        raise TooManyBadRecords(self._message(seen))

  def _message(self, seen: int) -> str:
    first = '; '.join(f'{self._name(r)}: {why}' for r, why in list(self.reasons.items())[:5])
    return (
      f'{len(self.reasons)} unreadable records of {seen}, more than '
      f'data.max_bad_fraction={self._max_fraction} allows; the first: {first}. '
      'Mend or remove them, or set data.max_bad_fraction higher'
    )
