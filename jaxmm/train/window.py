"""What happened since the last log line, added up exactly: the sums of steps, and the rows that
were unreadable.

A window travels in the checkpoint, so a resumed run writes the very line that the uninterrupted one
would have.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmm.task import Summary

Totals = dict[str, tuple[np.ndarray, np.ndarray]]


def added(totals: Totals, sums: Mapping[str, tuple[Any, Any]]) -> Totals:
  """`totals` plus the sums of one more batch, in float64."""
  out = dict(totals)
  for name, (total, count) in sums.items():
    pair = (np.asarray(total, np.float64), np.asarray(count, np.float64))
    before = out.get(name)
    out[name] = pair if before is None else (before[0] + pair[0], before[1] + pair[1])
  return out


def shown(totals: Totals, summaries: Mapping[str, Summary]) -> dict[str, Any]:
  """What the log shows of sums: the scalars of its summary for a metric that has one
  (`Task.summaries`), for others `sum / count`: floats or (nested) lists, None where nothing was
  counted.

  Raises:
    ValueError: a summary's scalar has the name of another.
  """
  out: dict[str, Any] = {}
  for name, (total, count) in sorted(totals.items()):
    values = summaries[name](total, count) if name in summaries else {name: _mean(total, count)}
    if clash := sorted(set(values) & set(out)):
      raise ValueError(f'the summary of {name!r} uses names that are taken: {", ".join(clash)}')
    out |= values
  return out


def _mean(total: np.ndarray, count: np.ndarray) -> Any:
  total, count = np.broadcast_arrays(total, count)
  return _plain(total / np.where(count == 0, 1, count), count)


class Window:
  """The steps since the last log line.

  Attributes:
    totals: sums and counts by name.
    unreadable: what is to be said of the records whose rows had zero weight, each once.
  """

  def __init__(self, saved: Mapping[str, Any] | None = None):
    saved = saved or {'totals': {}, 'unreadable': []}
    self.totals: Totals = {
      name: (np.asarray(total, np.float64), np.asarray(count, np.float64))
      for name, (total, count) in saved['totals'].items()
    }
    self.unreadable: list[str] = list(saved['unreadable'])

  def add(self, sums: Mapping[str, tuple[Any, Any]], unreadable: list[str]) -> None:
    """One more step."""
    self.totals = added(self.totals, sums)
    self.unreadable += [r for r in dict.fromkeys(unreadable) if r not in self.unreadable]

  def saved(self) -> dict[str, Any]:
    """The window as JSON can hold it; float64 survives the round trip exactly."""
    totals = {name: [t.tolist(), c.tolist()] for name, (t, c) in self.totals.items()}
    return {'totals': totals, 'unreadable': self.unreadable}


def _plain(mean: np.ndarray, count: np.ndarray) -> Any:
  if mean.ndim:
    return [_plain(m, c) for m, c in zip(mean, count)]
  return float(mean) if count else None
