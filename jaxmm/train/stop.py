"""How a run is asked to stop, and how it says that it did."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable


class Stopped(SystemExit):
  """A run saved its state and left because it was told to; the process's exit code is 128 + signal.

  143 after SIGTERM, 130 after SIGINT (Ctrl-C). Running the same command again goes on.

  Attributes:
    step: the step that was saved.
    signal: the number of the signal.
  """

  def __init__(self, step: int, signum: int):
    super().__init__(128 + signum)
    self.step, self.signal = step, signum

  def __str__(self) -> str:
    return f'stopped by {signal.Signals(self.signal).name}; saved at step {self.step}'


class StopRequest:
  """Listens for SIGTERM and SIGINT while it is entered; the handlers before it come back
  afterwards.

  The first signal only sets `signum`. A second one acts as it would have without us, so that a run
  that hangs can be ended. Off the main thread Python allows no handlers; then nothing is listened
  to.
  """

  def __init__(self, echo: Callable[[str], None] = lambda line: None):
    self.signum: int | None = None
    self._echo = echo
    self._before: dict[int, object] = {}

  def __enter__(self) -> StopRequest:
    if threading.current_thread() is threading.main_thread():
      for number in (signal.SIGTERM, signal.SIGINT):
        self._before[number] = signal.signal(number, self._heard)
    return self

  def __exit__(self, *unused) -> None:
    self._restore()

  def _heard(self, number, frame) -> None:
    del frame
    self.signum = number
    self._restore()
    self._echo(f'{signal.Signals(number).name}: saving after this step; once more to leave at once')

  def _restore(self) -> None:
    for number, handler in self._before.items():
      # A handler that was not set from Python cannot be put back; the default is the nearest.
      signal.signal(number, handler if handler is not None else signal.SIG_DFL)
    self._before = {}
