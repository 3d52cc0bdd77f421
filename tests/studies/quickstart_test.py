"""The quickstart is fair as planned, and one that is killed ends as one that is not."""

import json
import signal

import pytest

from jaxmm.studies import quickstart, two_stage
from jaxmm.studies.stages import Study, arm_flops
from tests import programs, tiny_runs

# A quickstart of tiny models on a folder of pictures; SIGKILL when the `die_run`-th training of the
# process asks for batch `die_step`.
SCRIPT = """
import os, signal, sys
from jaxmm import config as configs
from jaxmm.data import pipeline
from jaxmm.studies import quickstart
from tests import tiny_runs
workdir, pictures, die_run, die_step = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])

def load_config(spec):
  what = spec.partition(':')[2]
  config = tiny_runs.get_config({'crt': 'tokenizer'}.get(what, what))
  config.checkpoint.every, config.log.every = 10, 5
  if what != 'image_lm':
    config.data.path = config.eval_data.path = pictures
  return config

configs.load_config = load_config
quickstart.NUM_SAMPLES = 70
from_step, runs = pipeline.Batches.from_step, []

def dying(self, step):
  if self.batch_size != tiny_runs.get_config().batch:  # not a training
    yield from from_step(self, step)
    return
  runs.append(step)
  for number, rows in enumerate(from_step(self, step), step):
    if (len(runs) - 1, number) == (die_run, die_step):
      os.kill(os.getpid(), signal.SIGKILL)
    yield rows

pipeline.Batches.from_step = dying
quickstart.run(workdir, steps=(40, 30), echo=lambda line: print(line, flush=True))
print('trainings began at', runs)
"""


def start(workdir, pictures, die_run=-1, die_step=-1):
  """(exit status, output) of a quickstart in a process of its own."""
  return programs.run_script(SCRIPT, [workdir, pictures, die_run, die_step])


def results(workdir):
  """The result of every stage, and what says when it was made."""
  files = sorted(workdir.rglob('result.json'))
  return {str(f.parent.relative_to(workdir)): json.loads(f.read_text())['result'] for f in files}


@pytest.mark.slow
def test_killed_in_two_stages_it_goes_on_and_says_the_same(tmp_path):
  pictures = tiny_runs.write_pictures(tmp_path / 'pictures', train=80, test=20)
  whole, killed = tmp_path / 'whole', tmp_path / 'killed'
  status, said = start(whole, pictures)
  assert status == 0, said[-3000:]
  assert len(results(whole)) == 11  # the reference, and five stages of each arm

  status, said = start(killed, pictures, die_run=1, die_step=25)  # in the first image model
  assert status == -signal.SIGKILL, said[-3000:]
  done = {f: f.stat().st_mtime_ns for f in killed.rglob('result.json')}
  assert len(done) == 4  # the reference, a tokenizer, its reconstructions and codes
  status, said = start(killed, pictures, die_run=1, die_step=38)  # in the second tokenizer
  assert status == -signal.SIGKILL, said[-3000:]
  status, said = start(killed, pictures)
  assert status == 0, said[-3000:]
  assert said.count(': done before (') == 6
  # The second tokenizer goes on from its checkpoint, its image model is new.
  assert any(f'trainings began at [{step}, 0]' in said for step in (20, 30))
  assert {f: f.stat().st_mtime_ns for f in done} == done
  assert results(killed) == results(whole)
  assert (killed / 'report.html').stat().st_size > 10_000

  # A third time nothing is done again.
  status, said = start(killed, pictures)
  assert status == 0 and 'trainings began at []' in said


def test_the_arms_cost_the_same_and_differ_in_the_regularizer_alone(tmp_path):
  plan = quickstart.plan()
  flops = arm_flops(two_stage.budgets(plan))
  assert flops['crt'] == pytest.approx(flops['baseline'], rel=0.02)
  crt, baseline = plan.tokenizers['crt'], plan.tokenizers['baseline']
  assert 'regularizer' in crt['model'] and 'regularizer' not in baseline['model']
  assert crt['model']['vqgan'] == baseline['model']['vqgan']
  assert crt['data'] == baseline['data'] and crt['seed'] == baseline['seed']
  assert baseline['steps'] >= crt['steps']
  study = Study(tmp_path)
  two_stage.add_stages(study, plan)
  stages = ('tokenizer', 'reconstructions', 'tokens', 'image_model', 'samples')
  arms = {f'seed-0/{arm}/{stage}' for arm in ('baseline', 'crt') for stage in stages}
  assert set(study.stages) == arms | {'reference'}
