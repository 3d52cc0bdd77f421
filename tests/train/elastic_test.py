"""A run in several processes is killed and goes on in others: the same rows, the same losses."""

import json
import random
import signal

import pytest

from jaxmm.train import log, watch
from tests import elastic_runs, multiprocess, train_cases, train_runs

# Rows on other devices are summed in another order.
RTOL = 1e-5


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """The log of an undisturbed run of so many steps, of one process with four devices."""
  done = {}

  def run(steps):
    if steps not in done:
      workdir = tmp_path_factory.mktemp('undisturbed')
      processes = elastic_runs.start(workdir, 1, 4, steps)
      assert elastic_runs.statuses(processes, 200) == [0], elastic_runs.last_line(workdir, 0)
      done[steps] = curve(workdir), elastic_runs.rows_read(workdir)
    return done[steps]

  return run


def curve(workdir):
  lines = log.read(workdir / 'log.jsonl')
  return [
    {k: v for k, v in line.items() if not (k == 'time' or 'second' in k and k != 'second')}
    for line in lines
  ]


def assert_same_run(workdir, reference, steps):
  expected, rows = reference
  train_cases.assert_same_log(curve(workdir), expected, RTOL)
  assert [line['step'] for line in expected if line['kind'] == 'train'] == list(range(1, steps + 1))
  read = elastic_runs.rows_read(workdir)
  used = {position: rows[position] for position in range(steps)}
  assert {position: read[position] for position in used} == used


def assert_all_ended(workdir, processes, victim):
  """The victim was killed; the others said so in their last line, and how to resume."""
  ends = elastic_runs.statuses(processes, 30)
  assert ends.pop(victim) == -signal.SIGKILL
  # Once in some tens of kills a thread of jax aborts between the last line and the exit.
  assert set(ends) <= {watch.LOST, -signal.SIGABRT}, ends
  for i in set(range(len(processes))) - {victim}:
    line = elastic_runs.last_line(workdir, i)
    assert line == f'jaxmm: process {victim} of {len(processes)} was lost; run it again'


@pytest.mark.slow
def test_four_processes_of_which_one_is_killed_go_on_as_two(reference, tmp_path):
  rng, steps, workdir = random.Random(0), 40, tmp_path / 'run'
  processes = elastic_runs.start(workdir, 4, 2, steps, seconds=0.1)
  saved = lambda: (workdir / 'checkpoints' / '8').is_dir()
  assert elastic_runs.wait_until(saved, processes, 120), elastic_runs.last_line(workdir, 0)
  victim = elastic_runs.kill_one(processes, rng.uniform(0, 1), rng)
  assert_all_ended(workdir, processes, victim)
  processes = elastic_runs.start(workdir, 2, 2, steps)
  assert elastic_runs.statuses(processes, 120) == [0, 0], elastic_runs.last_line(workdir, 0)
  assert 'resumes from step' in (workdir / 'said-0').read_text()
  assert_same_run(workdir, reference(steps), steps)


@pytest.mark.slow
def test_twenty_kills_at_random_moments(reference, tmp_path):
  rng, steps, workdir = random.Random(1), 600, tmp_path / 'run'
  kills = 0
  while kills < 20:
    count, devices = rng.choice([(4, 2), (2, 2), (2, 4)])
    processes = elastic_runs.start(workdir, count, devices, steps, seconds=0.05)
    # Most of them at work, some while they restore and compile.
    word = rng.choice(['joined', 'first step', 'first step', 'first step'])
    begun = lambda word=word: word in (workdir / 'said-0').read_text()
    assert elastic_runs.wait_until(begun, processes, 120), elastic_runs.last_line(workdir, 0)
    victim = elastic_runs.kill_one(processes, rng.uniform(0, 3), rng)
    assert victim is not None, 'the run is too short for its kills'
    assert_all_ended(workdir, processes, victim)
    kills += 1
  processes = elastic_runs.start(workdir, 2, 2, steps)
  assert elastic_runs.statuses(processes, 200) == [0, 0], elastic_runs.last_line(workdir, 0)
  assert_same_run(workdir, reference(steps), steps)


# Two processes whose devices lie in the mesh as a pod's network may want them.
PLACED = """
import json, sys
import numpy as np
from jaxmm import sharding
from jaxmm.train import loop
from tests import train_cases
order, shape, overrides = json.loads(sys.argv[2])
devices = np.array(jax.devices())[order].reshape(shape)
auto = (jax.sharding.AxisType.Auto,) * 3
mesh = jax.sharding.Mesh(devices, sharding.MESH_AXES, axis_types=auto)
share, case = sharding.share_of_rows(mesh), train_cases.TOY
loop.train(
  case.run_config(**overrides), case.make_task(), case.make_batches(*share), sys.argv[1],
  eval_batches=case.make_eval(*share), mesh=mesh,
)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
  'order, shape',
  [([0, 2, 3, 1], (4, 1, 1)), ([0, 2, 1, 3], (2, 1, 2))],
  ids=['permuted', 'tensor across processes'],
)
def test_the_curve_is_the_same_however_processes_lie_in_the_mesh(order, shape, tmp_path):
  steps = dict(steps=8, log=dict(every=2), rules='tensor')
  arguments = [str(tmp_path / 'placed'), json.dumps([order, shape, steps])]
  multiprocess.run_processes(2, PLACED, 2, arguments, timeout=200)
  train_runs.train(train_cases.TOY, tmp_path / 'one', config=steps)
  train_cases.assert_same_log(curve(tmp_path / 'placed'), curve(tmp_path / 'one'), RTOL)
