"""Times work on request, so that two processes can be compared repetition by repetition.

A side (`ours.py`, `peer_llamagen.py`) warms up, prints READY, and then does one repetition for
every line on its standard input, printing the seconds. `compare.py` interleaves two sides, so that
a slow drift of the machine falls on both alike; only one of them works at any moment. Standard
library only.

BENCH_THREADS sets the threads of both sides. BENCH_CLOCK=cpu counts a side's CPU seconds instead of
those that pass, which other work on the machine disturbs less; use it with one thread, as more of
them may spin while they wait.
"""

from __future__ import annotations

import argparse
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

THREADS = int(os.environ.get('BENCH_THREADS', str(len(os.sched_getaffinity(0)))))
CLOCK = os.environ.get('BENCH_CLOCK', 'wall')


def limit_threads() -> None:
  """The same number of threads for both sides; call it before numpy, torch or jax is imported."""
  for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
    os.environ[name] = str(THREADS)
  os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:THREADS]))


def serve(
  works: Mapping[str, Callable[[argparse.Namespace], Callable[[], None]]], doc: str
) -> None:
  """The main function of a side.

  Args:
    works: `{name: make}`; `make(options)` returns the function that does one repetition.
    doc: printed by --help.
  """
  parser = argparse.ArgumentParser(description=doc)
  parser.add_argument('work', choices=sorted(works))
  parser.add_argument('--batch', type=int)
  parser.add_argument('--warmup', type=int, default=2)
  parser.add_argument('--evaluations', type=int, default=30, help='of transfusion_sample')
  parser.add_argument('--attention', default='default')
  parser.add_argument('--preset', default='B')
  options = parser.parse_args()
  clock = {'wall': time.perf_counter, 'cpu': time.process_time}[CLOCK]
  repetition = works[options.work](options)
  for _ in range(options.warmup):
    repetition()
  print('READY', flush=True)
  for line in sys.stdin:
    if not line.strip():
      break
    start = clock()
    repetition()
    print(f'{clock() - start:.6f}', flush=True)


class Side:
  """A started side."""

  def __init__(self, command: str):
    self.command = command
    self._process = subprocess.Popen(
      shlex.split(command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    self._read('READY', lambda line: line.strip() == 'READY')

  def seconds(self) -> float:
    """One repetition."""
    self._process.stdin.write('go\n')
    self._process.stdin.flush()
    return float(self._read('a time', lambda line: line.replace('.', '', 1).strip().isdigit()))

  def close(self) -> None:
    """Ends the process."""
    self._process.stdin.close()
    self._process.wait(timeout=60)

  def _read(self, what, wanted) -> str:
    for line in self._process.stdout:
      if wanted(line):
        return line
    raise SystemExit(f'ended before it printed {what}: {self.command}')


def interleave(commands: Mapping[str, str], repeat: int) -> dict[str, list[float]]:
  """Seconds of every side, `repeat` repetitions each, in alternating order."""
  sides = {name: Side(command) for name, command in commands.items()}
  seconds = {name: [] for name in sides}
  for i in range(repeat):
    for name in sorted(sides, reverse=i % 2 == 1):
      seconds[name].append(sides[name].seconds())
  for side in sides.values():
    side.close()
  return seconds


def ratio(numerator: list[float], denominator: list[float]) -> dict[str, float]:
  """Median, least and largest of the ratios pair by pair."""
  ratios = sorted(a / b for a, b in zip(numerator, denominator))
  return {
    'ratio': round(statistics.median(ratios), 3),
    'ratio_min': round(ratios[0], 3),
    'ratio_max': round(ratios[-1], 3),
  }
