"""Runs of the trainer's cases, in this process or in one of their own, and what they left."""

import json
import os
import subprocess
import sys

import jax
import numpy as np

from jaxmm import sharding
from jaxmm.checkpoint import Checkpoints
from jaxmm.train import log, loop
from tests import multiprocess, train_cases

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

# A run in another process: case, workdir, overrides (JSON); `die_at` kills it at that batch,
# `die_saving` [step, seconds] so long after that step's checkpoint is begun.
SCRIPT = """
import json, os, signal, sys, threading
sys.path.insert(0, os.getcwd())
import jax
from tests import train_cases
overrides = json.loads(sys.argv[3])
die_at, die_saving = overrides.pop('die_at', None), overrides.pop('die_saving', None)
case = train_cases.CASES[sys.argv[1]]
batches = case.make_batches(jax.process_index(), jax.process_count())
if die_at is not None:
  from_step = batches.from_step
  def dying(step):
    for number, rows in enumerate(from_step(step), step):
      if number == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
      yield rows
  batches.from_step = dying
print('ready', flush=True)
from jaxmm.train import loop
if die_saving is not None:
  step, seconds = die_saving
  save = loop.Checkpoints.save
  def dying(self, now, *args, **kwargs):
    if now == step:
      threading.Timer(seconds, os.kill, (os.getpid(), signal.SIGKILL)).start()
    save(self, now, *args, **kwargs)
  loop.Checkpoints.save = dying
state = loop.train(
  case.run_config(**overrides), case.make_task(), batches, sys.argv[2],
  eval_batches=case.make_eval(jax.process_index(), jax.process_count()),
  echo=lambda line: print(line, flush=True))
"""


def train(
  case,
  workdir,
  mesh_name='one',
  lines=None,
  *,
  task=None,
  batches=None,
  held_out=None,
  config=None,
  **kw,
):
  """A run of a case in this process, on one entry of MESHES."""
  mesh, rules, microbatches = train_cases.make_mesh(mesh_name)
  name = next(n for n, table in sharding.RULES.items() if table is rules)
  overrides = dict(rules=name, microbatches=microbatches) | (config or {})
  return loop.train(
    case.run_config(**overrides),
    task or case.make_task(),
    batches or case.make_batches(0, 1),
    str(workdir),
    eval_batches=held_out or case.make_eval(0, 1),
    mesh=mesh,
    echo=(lines if lines is not None else []).append,
    **kw,
  )


def spawn(case_name, workdir, devices=1, **overrides):
  """The same run in a process of its own, on so many devices."""
  env = dict(os.environ, XLA_FLAGS=multiprocess.xla_flags(devices))
  args = [sys.executable, '-c', SCRIPT, case_name, str(workdir), json.dumps(overrides)]
  return subprocess.Popen(
    args, env=env, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
  )


def log_of(workdir):
  """The deterministic part of the log."""
  return [
    {k: v for k, v in line.items() if k != 'time'} for line in log.read(workdir / 'log.jsonl')
  ]


def assert_same_state(a, b, **tolerance):
  """Bit for bit, or within a tolerance."""
  compare = np.testing.assert_allclose if tolerance else np.testing.assert_array_equal
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    compare(np.asarray(x), np.asarray(y), err_msg=jax.tree_util.keystr(path), **tolerance)


def saved_state(case, workdir):
  """The newest checkpoint, on one device."""
  mesh, rules, _ = train_cases.make_mesh('one')
  return Checkpoints(workdir / 'checkpoints').restore(train_cases.plan(case, mesh, rules).abstract)[
    0
  ]
