"""Two processes of one run, started as a user starts them."""

import json
import os
import socket
import subprocess
import sys

import pytest

from jaxmm.checkpoint import Checkpoints
from tests import multiprocess, tiny_runs

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@pytest.mark.slow
def test_two_processes_started_from_the_command_line(tmp_path):
  pictures = tiny_runs.write_pictures(tmp_path / 'pictures')
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  words = [sys.executable, '-m', 'jaxmm.cli', 'train', '--workdir', str(tmp_path / 'run')]
  words += ['--config', tiny_runs.__file__, '--config.evaluate.batches=1']
  words += [f'--config.{section}.path={pictures}' for section in ('data', 'eval_data')]
  words += ['--coordinator', f'localhost:{port}', '--process-count', '2']
  flags = f'{multiprocess.xla_flags(1)} --xla_backend_optimization_level=0'
  processes = [
    subprocess.Popen(
      [*words, '--process-id', str(i)],
      env=dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=flags),
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in (0, 1)
  ]
  try:
    said = [process.communicate(timeout=240) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], said
  printed = [
    [line for line in out.splitlines() if not line.startswith('[Gloo]')] for out, _ in said
  ]
  assert 'in 2 process(es)' in '\n'.join(printed[0]) and not printed[1]
  assert Checkpoints(tmp_path / 'run' / 'checkpoints').steps()[-1] == 4
  environment = json.loads((tmp_path / 'run' / 'environment.json').read_text())
  assert (environment['process_count'], environment['device_count']) == (2, 2)


FOUND = """
from jaxmm.train import processes
processes.join(is_found=True)
import jax
print(jax.process_index(), jax.process_count(), jax.device_count())
"""


def test_under_slurm_the_processes_find_each_other():
  # Slurm says which job, on which nodes, how many tasks; jax makes the port of the job's number.
  job = {'SLURM_JOB_ID': str(os.getpid()), 'SLURM_STEP_NODELIST': 'localhost', 'SLURM_NTASKS': '2'}
  flags = multiprocess.xla_flags(1)
  processes = [
    subprocess.Popen(
      [sys.executable, '-c', FOUND],
      env=dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=flags, **job)
      | {'SLURM_PROCID': str(i), 'SLURM_LOCALID': str(i)},
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in (0, 1)
  ]
  try:
    said = [process.communicate(timeout=120) for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [process.returncode for process in processes] == [0, 0], said
  assert [out.splitlines()[-1] for out, _ in said] == ['0 2 2', '1 2 2']
