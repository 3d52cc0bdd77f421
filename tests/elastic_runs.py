"""Runs of the toy in several processes that can be killed, and what each really read.

Also a program: `python -m tests.elastic_runs WORKDIR COORDINATOR INDEX COUNT STEPS SECONDS` is one
process of a run; SECONDS is slept before each batch, so that a kill finds it at work.
"""

import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time

from tests import multiprocess

ROOT = pathlib.Path(__file__).resolve().parent.parent


def start(workdir, count, devices, steps, seconds=0.0):
  """The processes of one run, started; `workdir/said-I` is what process I prints."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    where = f'localhost:{s.getsockname()[1]}'
  flags = f'{multiprocess.xla_flags(devices)} --xla_backend_optimization_level=0'
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=flags, JAX_ENABLE_COMPILATION_CACHE='false')
  workdir.mkdir(exist_ok=True)
  out = []
  for i in range(count):
    words = [str(workdir), where, str(i), str(count), str(steps), str(seconds)]
    with open(workdir / f'said-{i}', 'w') as said:
      out.append(
        subprocess.Popen(
          [sys.executable, '-m', 'tests.elastic_runs', *words],
          env=env, cwd=ROOT, stdout=said, stderr=subprocess.STDOUT,
        )
      )  # fmt: skip
  return out


def wait_until(what, processes, timeout):
  """Returns when `what()` is true or a process has ended; whether it is true."""
  deadline = time.monotonic() + timeout
  while not what():
    if any(p.poll() is not None for p in processes):
      return what()
    assert time.monotonic() < deadline, f'not in {timeout} s'
    time.sleep(0.02)
  return True


def statuses(processes, timeout):
  """Exit statuses, once all have ended; kills those that do not."""
  try:
    deadline = time.monotonic() + timeout
    for p in processes:
      p.wait(max(0.0, deadline - time.monotonic()))
  finally:
    for p in processes:
      p.kill()
      p.wait()
  return [p.returncode for p in processes]


def kill_one(processes, seconds, rng: random.Random):
  """Kills a random process after so many seconds; which, or None if the run ended before."""
  time.sleep(seconds)
  if any(p.poll() is not None for p in processes):
    return None
  victim = rng.randrange(len(processes))
  processes[victim].send_signal(signal.SIGKILL)
  return victim


def last_line(workdir, i):
  """What process I said last."""
  return (workdir / f'said-{i}').read_text().rstrip().rpartition('\n')[2]


def rows_read(workdir):
  """`{position: records in the order of the global batch}`; asserts that no two starts of the run
  differ."""
  parts = {}
  for path in workdir.glob('rows-*'):
    for line in path.read_text().splitlines():
      start, position, index, count, records = json.loads(line)
      parts.setdefault((position, start, count), {})[index] = records
  out = {}
  for (position, _, count), found in parts.items():
    if len(found) == count:  # killed in between, one process had read it and another had not
      records = [r for i in range(count) for r in found[i]]
      assert out.setdefault(position, records) == records, position
  return out


def _record(batches, workdir, start, index, count, seconds):
  """Makes batches tell a file what is read, before it is used."""
  from_step = batches.from_step

  def told(step):
    with open(workdir / f'rows-{start}-{index}', 'a', buffering=1) as file:
      for position, rows in enumerate(from_step(step), step):
        time.sleep(seconds)
        file.write(json.dumps([start, position, index, count, rows['record_B'].tolist()]) + '\n')
        yield rows

  batches.from_step = told


def main(workdir, coordinator, index, count, steps, seconds):
  """One process of a run."""
  from jaxmm.train import loop, processes
  from tests import train_cases

  index, count, workdir = int(index), int(count), pathlib.Path(workdir)
  processes.join(coordinator, index, count, resume='run it again')
  print('joined', flush=True)
  case = train_cases.TOY
  batches = case.make_batches(index, count)
  _record(batches, workdir, coordinator.rpartition(':')[2], index, count, float(seconds))
  config = case.run_config(
    steps=int(steps), log=dict(every=1), evaluate=dict(every=0), rules='fsdp', mesh=dict(fsdp=2)
  )
  loop.train(
    config, case.make_task(), batches, str(workdir), echo=lambda line: print(line, flush=True)
  )


if __name__ == '__main__':
  main(*sys.argv[1:])
