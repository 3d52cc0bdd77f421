"""How fast a run is, and a look inside: the clock of the log, and the profiler's window of
steps.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Callable

import jax


class Clock:
  """Steps a second between log lines, without the time that evaluations and checkpoints took."""

  def __init__(self, step: int):
    self._began, self._lost, self._step = time.perf_counter(), 0.0, step

  @contextlib.contextmanager
  def paused(self):
    """Time within does not count."""
    before = time.perf_counter()
    try:
      yield
    finally:
      self._lost += time.perf_counter() - before

  def rate(self, done: int) -> float:
    """Steps a second since the last call (or since the start), `done` steps being done now."""
    now = time.perf_counter()
    seconds, number = now - self._began - self._lost, done - self._step
    self._began, self._lost, self._step = now, 0.0, done
    return number / max(seconds, 1e-9)


class Tracer:
  """Traces the steps first..last (both included) with jax's profiler."""

  def __init__(
    self,
    directory: pathlib.Path,
    window: tuple[int, int] | None,
    echo: Callable[[str], None],
    settle: Callable[[], None],
  ):
    """`settle` waits for the steps under way, so that none of them is cut in two."""
    self._directory, self._window, self._echo, self._settle = directory, window, echo, settle
    self._is_on = False

  def before(self, step: int) -> None:
    """To be called before `step` is dispatched."""
    if self._window is not None and step == self._window[0]:
      self._settle()
      jax.profiler.start_trace(str(self._directory))
      self._is_on = True

  def after(self, step: int) -> None:
    """To be called after `step` was dispatched."""
    if self._is_on and step == self._window[1]:
      self._settle()
      self.close()

  def close(self) -> None:
    """Ends the trace, if one is running."""
    if self._is_on:
      self._is_on = False
      jax.profiler.stop_trace()
      self._echo(f'profile: {self._directory} (open with TensorBoard, xprof or Perfetto)')
