"""Runs a script in several real jax processes on this machine, as on several hosts."""

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

# What C++ prints (gloo's greetings, in pieces) goes to stderr: stdout is the script's alone.
_PREAMBLE = """
import os, sys
sys.stdout = os.fdopen(os.dup(1), 'w', buffering=1)
os.dup2(2, 1)
import jax
jax.config.update('jax_cpu_collectives_implementation', 'gloo')
jax.distributed.initialize(os.environ['COORDINATOR'], int(os.environ['PROCESSES']),
                           int(os.environ['PROCESS']))
"""


def xla_flags(devices: int) -> str:
  """The flags of this process (see conftest) for one with another number of devices."""
  flags = [
    f for f in os.environ.get('XLA_FLAGS', '').split() if 'host_platform_device_count' not in f
  ]
  return ' '.join([*flags, f'--xla_force_host_platform_device_count={devices}'])


def run_processes(
  num_processes: int,
  script: str,
  devices_per_process: int = 1,
  args: Sequence[str] = (),
  timeout: float = 120.0,
) -> list[str]:
  """Runs `script` (Python source) in processes joined by `jax.distributed` (CPU, gloo).

  The script starts with jax imported and initialised; `args` are its `sys.argv[1:]`. One process
  (`num_processes=1`) runs the same way, so that its results can be compared.

  Returns:
    What each process printed, in the order of the processes.

  Raises:
    AssertionError: a process failed or did not finish in `timeout` seconds; all are ended, the
      message holds their last lines.
  """
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  common = dict(
    os.environ,
    JAX_PLATFORMS='cpu',
    XLA_FLAGS=xla_flags(devices_per_process),
    COORDINATOR=f'localhost:{port}',
    PROCESSES=str(num_processes),
    PYTHONPATH=os.pathsep.join([root, os.environ.get('PYTHONPATH', '')]),
  )
  if num_processes > 1:
    # Only the first process finds what it compiled before; while the others compile, gloo gives up
    # waiting for them after 30 seconds.
    common['JAX_ENABLE_COMPILATION_CACHE'] = 'false'
  outs = [tempfile.TemporaryFile('w+') for _ in range(num_processes)]
  errs = [tempfile.TemporaryFile('w+') for _ in range(num_processes)]
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', _PREAMBLE + script, *map(str, args)],
      env=dict(common, PROCESS=str(i)),
      stdout=outs[i],
      stderr=errs[i],
      cwd=root,
    )
    for i in range(num_processes)
  ]
  deadline = time.time() + timeout
  try:
    while any(p.poll() is None for p in processes):
      # One that died leaves the others at a barrier: give them a moment for their own message.
      if any(p.poll() not in (None, 0) for p in processes):
        deadline = min(deadline, time.time() + 5)
      if time.time() > deadline:
        break
      time.sleep(0.05)
  finally:
    for p in processes:
      if p.poll() is None:
        p.kill()
        p.wait()
  texts, failures = [], []
  for i, (p, out, err) in enumerate(zip(processes, outs, errs)):
    out.seek(0)
    err.seek(0)
    texts.append(out.read())
    if p.returncode != 0:
      failures.append(
        f'--- process {i}: exit {p.returncode}\n{texts[-1][-1000:]}\n{err.read()[-3000:]}'
      )
    out.close()
    err.close()
  assert not failures, '\n'.join(failures)
  return texts
