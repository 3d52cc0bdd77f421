"""What a run says of itself: `log.jsonl`, TensorBoard files and one line on the terminal.

A line of `log.jsonl` is `{"step": 50, "kind": "train", "loss": 0.7, ..., "time": {...}}`. All but
`time` follows from the config: two runs that must agree are compared without that key.
"""

from __future__ import annotations

import functools
import json
import math
import os
import pathlib
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TextIO

import jax
import jax.numpy as jnp
import numpy as np
from tensorboardX import SummaryWriter

# Dense bfloat16 peak of one jax device in FLOP/s, from the makers' data sheets (without sparsity).
# A TPU v2 or v3 device is one of the chip's two cores, a TPU7x device one of its two chiplets. The
# first name found in `device_kind` counts.
_PEAK_FLOPS = (
  ('TPU v2', 22.5e12),
  ('TPU v3', 61.5e12),
  ('TPU v4 lite', 138e12),
  ('TPU v4', 275e12),
  ('TPU v5 lite', 197e12),
  ('TPU v5e', 197e12),
  ('TPU v5', 459e12),
  ('TPU v6', 918e12),
  ('TPU7x', 1153.5e12),
  ('TPU v7', 1153.5e12),
  ('GB200', 2500e12),
  ('B200', 2250e12),
  ('H200', 989.4e12),
  ('H100 PCIe', 756e12),
  ('H100 NVL', 835e12),
  ('H100', 989.4e12),
  ('H800', 989.4e12),
  ('H20', 148e12),
  ('A100', 312e12),
  ('A800', 312e12),
  ('A10G', 70e12),
  ('A10', 125e12),
  ('L40S', 362e12),
  ('L40', 181e12),
  ('L4', 121e12),
  ('RTX 4090', 165.2e12),
  ('RTX 3090', 71e12),
)

_CLEAR = '\r\x1b[K'  # to the start of the line, and erase it
_SECONDS_BETWEEN_PLAIN_LINES = 10.0


class RunLog:
  """Writes the log of one run; on all processes but the first its methods do nothing."""

  def __init__(
    self,
    workdir: str | os.PathLike,
    resume_step: int = 0,
    *,
    echo: Callable[[str], None] | None = None,
    steps: int | None = None,
    stream: TextIO | None = None,
    process_index: int | None = None,
  ):
    """Opens the log and cuts what an earlier run wrote beyond `resume_step`.

    Args:
      workdir: gets `log.jsonl` and `tensorboard/`.
      resume_step: the step of the checkpoint that the run starts from, 0 for a new one.
      echo: takes the lines meant for a person; default: prints them on `stream`.
      steps: how many steps the run has, to be shown beside the step.
      stream: standard error by default. If it is a terminal, progress is one line there that
        is written over; if not, a line through `echo` every ten seconds or more.
      process_index: default `jax.process_index()`.
    """
    self._stream = sys.stderr if stream is None else stream
    self._echo = echo or (lambda line: print(line, file=self._stream, flush=True))
    self._on_terminal = bool(getattr(self._stream, 'isatty', lambda: False)())
    self._steps, self._is_shown, self._last_plain = steps, False, -math.inf
    self._file = self._board = None
    if (jax.process_index() if process_index is None else process_index) != 0:
      return
    directory = pathlib.Path(workdir)
    directory.mkdir(parents=True, exist_ok=True)
    cut(directory / 'log.jsonl', resume_step)
    self._file = open(directory / 'log.jsonl', 'a', encoding='utf-8')
    board = directory / 'tensorboard'
    # A reader of the event files drops what was written earlier for steps from purge_step on.
    is_stale = board.is_dir() and any(board.iterdir())
    self._board = SummaryWriter(
      str(board),
      purge_step=resume_step + 1 if is_stale else None,
      filename_suffix=f'.{time.time_ns()}',  # else two runs within a second share a file
    )

  def write(
    self,
    kind: str,
    step: int,
    values: Mapping[str, Any],
    timing: Mapping[str, float | None] | None = None,
  ) -> None:
    """One line of the log, its scalars on TensorBoard as `kind/name`, and progress if `train`.

    Args:
      kind: `train`, or the name of an evaluation.
      step: the number of steps taken.
      values: scalars, strings, lists, dicts or arrays, all of them deterministic.
      timing: what depends on the clock; goes under `time`. Of these, the progress line shows
        `steps_per_second`, `examples_per_second`, `eta_seconds` and `mfu` (a fraction).

    Raises:
      ValueError: a value is called `step`, `kind` or `time`.
    """
    if self._file is None:
      return
    for name in ('step', 'kind', 'time'):
      if name in values:
        raise ValueError(f'log value {name!r} has the name of a field of every line; rename it')
    timing = dict(timing or {})
    line = {'step': int(step), 'kind': kind, **values, 'time': {'at': time.time(), **timing}}
    self._file.write(json.dumps(jsonable(line), allow_nan=False) + '\n')
    self._file.flush()
    for name, value in [*values.items(), *((f'time/{k}', v) for k, v in timing.items())]:
      if _is_number(value):
        self._board.add_scalar(f'{kind}/{name}', float(value), int(step))
    if kind == 'train':
      self._show(progress_line(step, self._steps, values, timing), step == self._steps)

  def has(self, kind: str, step: int) -> bool:
    """Whether there is a line of this kind and step; False on all processes but the first."""
    if self._file is None:
      return False
    self._file.flush()
    return any(line['kind'] == kind and line['step'] == step for line in read(self._file.name))

  def message(self, text: str) -> None:
    """A line for the user that stays, above the progress line of a terminal."""
    if self._file is not None:
      self._clear()
      self._echo(text)

  def flush(self) -> None:
    """Returns when all that was written is on disk."""
    if self._file is not None:
      self._file.flush()
      os.fsync(self._file.fileno())
      self._board.flush()

  def close(self) -> None:
    """Closes the files; the last progress line stays."""
    if self._file is not None:
      if self._is_shown:
        print(file=self._stream, flush=True)
      self.flush()
      self._file.close()
      self._board.close()
      self._file = self._board = None

  def __enter__(self) -> RunLog:
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def _show(self, text: str, is_last: bool) -> None:
    if self._on_terminal:
      width = max(shutil.get_terminal_size().columns - 1, 20)
      self._stream.write(f'{_CLEAR}{text[:width]}')
      self._stream.flush()
      self._is_shown = True
    elif is_last or time.monotonic() - self._last_plain >= _SECONDS_BETWEEN_PLAIN_LINES:
      self._last_plain = time.monotonic()
      self._echo(text)

  def _clear(self) -> None:
    if self._is_shown:
      self._stream.write(_CLEAR)
      self._stream.flush()
      self._is_shown = False


def progress_line(
  step: int, steps: int | None, values: Mapping[str, Any], timing: Mapping[str, float | None]
) -> str:
  """`step 150/1000 | 12.3 steps/s | 98 examples/s | ETA 1:09 | MFU 41.2% | loss 0.1234`."""
  parts = [f'step {step}' + (f'/{steps}' if steps else '')]
  for name, shown in (
    ('steps_per_second', lambda x: f'{x:.3g} steps/s'),
    ('examples_per_second', lambda x: f'{x:.4g} examples/s'),
    ('eta_seconds', lambda x: f'ETA {_clock(x)}'),
    ('mfu', lambda x: f'MFU {100 * x:.1f}%'),
  ):
    if timing.get(name) is not None:
      parts.append(shown(timing[name]))
  for name, value in values.items():
    if _is_number(value) and not isinstance(value, int):
      parts.append(f'{name} {float(value):.4g}')
  return ' | '.join(parts)


def _is_number(value: Any) -> bool:
  if isinstance(value, (bool, str, Mapping)) or value is None or np.ndim(value):
    return False
  return jnp.issubdtype(np.asarray(value).dtype, np.number)


def cut(path: pathlib.Path, step: int) -> None:
  """Keeps the lines of a log up to `step`, in one atomic replacement; a torn last line goes."""
  if not path.exists():
    return
  kept, unreadable, number = [], [], 0
  with open(path, encoding='utf-8', errors='replace') as file:
    for number, line in enumerate(file, 1):
      try:
        record = json.loads(line)
        if not line.endswith('\n'):
          raise ValueError
        if record['step'] <= step:
          kept.append(line)
      except (ValueError, KeyError, TypeError):
        unreadable.append(number)
  # The last one alone: the run was killed while it wrote.
  if unreadable and unreadable != [number]:
    warnings.warn(f'{path}: lines {unreadable[:10]} are unreadable and dropped', stacklevel=2)
  temporary = path.with_name(path.name + '.tmp')
  with open(temporary, 'w', encoding='utf-8') as file:
    file.writelines(kept)
    file.flush()
    os.fsync(file.fileno())
  os.replace(temporary, path)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The lines of a `log.jsonl`, without a torn last one; non-finite numbers are strings there."""
  lines = pathlib.Path(path).read_text(encoding='utf-8').split('\n')
  return [json.loads(line) for line in lines[:-1]]


def jsonable(value: Any) -> Any:
  """Arrays and numbers as JSON has them; non-finite ones as the strings 'nan', 'inf', '-inf'."""
  if isinstance(value, Mapping):
    return {str(k): jsonable(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [jsonable(v) for v in value]
  if isinstance(value, (jax.Array, np.ndarray, np.generic)):
    array = np.asarray(value)
    if jnp.issubdtype(array.dtype, jnp.floating):
      array = array.astype(np.float64)  # bfloat16 has no JSON form of its own
    return jsonable(array.tolist())
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def peak_flops(device: jax.Device) -> float | None:
  """Peak FLOP/s of one device in dense bfloat16 (TPU, NVIDIA), or None where it is not known.

  For a CPU it is measured, once a process: what a float32 matrix product of size 1024 reaches on
  the machine, divided by the number of CPU devices (which share the cores).
  """
  if device.platform == 'cpu':
    return _cpu_flops() / len([d for d in jax.local_devices() if d.platform == 'cpu'])
  for name, flops in _PEAK_FLOPS:
    if name in device.device_kind:
      return flops
  return None


@functools.cache
def _cpu_flops() -> float:
  size, best = 1024, math.inf
  x = jax.device_put(np.ones((size, size), np.float32), jax.local_devices(backend='cpu')[0])
  product = jax.jit(jnp.dot)
  for _ in range(4):  # the first one compiles
    start = time.perf_counter()
    product(x, x).block_until_ready()
    best = min(best, time.perf_counter() - start)
  return 2 * size**3 / best


def _clock(seconds: float) -> str:
  minutes, s = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  return f'{hours}:{minutes:02}:{s:02}' if hours else f'{minutes}:{s:02}'
