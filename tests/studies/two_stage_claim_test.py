"""A whole claim, from pictures to the verdict; killed between stages it ends as if it had not been.

Arms, the search for the control, and the judge are those of `jaxmm reproduce crt`; only the configs
and the features of the Frechet distance are small (`tests/tiny_claim.py`).
"""

import json
import signal

import pytest

from jaxmm.studies import matched_control, two_stage, two_stage_markdown
from jaxmm.studies.stages import read_records
from jaxmm.studies.verdict import Verdict, judge
from tests import programs, tiny_claim

# The reference; a degraded tokenizer on three seeds and the answer; three arms on three seeds.
STAGES = 1 + 3 + 1 + 45
# Before the second seed's CRT has an image model: the search and both arms' tokenizers for it, the
# reference, the rest of the first seed and of the second's baseline, reconstructions and codes of
# its CRT.
DONE = 6 + 4 + 1 + 13 + 4 + 2
# Interrupted before the stage that `stop_at` names; run again, killed before that of `die_at`.
SCRIPT = """
import os, pathlib, signal, sys
from jaxmm.studies import two_stage_claim
from tests import tiny_claim
workdir, pictures, stop_at, die_at = sys.argv[1:]

def run(echo):
  two_stage_claim.run(tiny_claim.claim(), pathlib.Path(workdir), data_path=pictures, echo=echo)

def stopping(line):
  if stop_at in line:
    raise KeyboardInterrupt
  print(line, flush=True)

def dying(line):
  if die_at and die_at in line:
    os.kill(os.getpid(), signal.SIGKILL)
  print(line, flush=True)

if stop_at:
  try:
    run(stopping)
  except KeyboardInterrupt:
    done = len(list(pathlib.Path(workdir).rglob('result.json')))
    print('interrupted with', done, 'stages done')
run(dying)
"""


def start(at, stop_at='', die_at=''):
  """(exit status, output) of the claim's run in a process of its own."""
  return programs.run_script(
    SCRIPT,
    [at / 'claim', at / 'digits', stop_at, die_at],
    JAX_COMPILATION_CACHE_DIR=str(at / 'cache'),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS='0',
  )


def finished(workdir):
  """When each stage that is done was done."""
  return {f: f.stat().st_mtime_ns for f in workdir.rglob('result.json')}


@pytest.mark.slow
def test_a_claim_runs_to_its_verdict_and_repeats_nothing(tmp_path):
  workdir = tmp_path / 'claim'
  tiny_claim.write_digits(tmp_path / 'digits')

  status, said = start(
    tmp_path,
    stop_at='arm search-narrow-2: tokenizer ...',
    die_at='seed 2, arm crt: image model ...',
  )
  assert status == -signal.SIGKILL, said[-3000:]
  before, after = said.split('interrupted with 2 stages done')  # a tokenizer of each arm
  assert f': {STAGES} stages, 0 of them done; to do:' in before and f'[1/{STAGES}]' in before
  assert f': {STAGES} stages, 2 of them done; to do, about' in after
  assert after.count(': done before (') == 2
  first = finished(workdir)
  assert len(first) == DONE
  assert after.count('  Control narrow has model.vqgan.channels') == 1

  status, said = start(tmp_path)
  assert status == 0, said[-3000:]
  assert said.count(': done before (') == DONE and f'[{STAGES}/{STAGES}]' in said
  second = finished(workdir)
  assert len(second) == STAGES and {f: second[f] for f in first} == first
  assert (workdir / 'report.html').stat().st_size > 10_000

  # The verdict follows from what the stages left, and is the one that was printed.
  verdict = json.loads((workdir / 'verdict.json').read_text())
  claim, measured = tiny_claim.claim(), two_stage.read_measurements(workdir)
  assert {arm: set(seeds) for arm, seeds in measured.items()} == dict.fromkeys(
    ('baseline', 'crt', 'narrow'), {1, 2, 3}
  )
  again = judge(claim.claim, measured)
  assert again.to_json() == verdict and again.text() in said
  assert Verdict.from_json(verdict).to_json() == verdict
  page = (workdir / 'report.html').read_text()
  assert said.count('reported, not judged') == 2 == page.count('reported, not judged')

  text = two_stage_markdown.markdown(workdir)
  assert text.startswith(f'**{again.outcome.capitalize()}**: {again.sentence()} Control narrow')
  found = read_records(workdir)['narrow']['result']
  assert found['size'] in range(min(tiny_claim.LADDER), tiny_claim.CHANNELS + 1)
  assert set(found['errors']) == {str(s) for s in (tiny_claim.CHANNELS, *tiny_claim.LADDER)}
  config = json.loads((workdir / 'seed-3/narrow/tokenizer/config.json').read_text())
  assert matched_control.size_of(config, found['setting']) == found['size']
  sentence = matched_control.remark('narrow', found)
  assert sentence in text and sentence.split(' (')[0] in page
  row = next(line for line in text.splitlines() if line.startswith('| stage-2 bits an image'))
  values = [run['bits_per_image'] for run in measured['crt'].values()]
  assert f'({min(values):.4g} to {max(values):.4g})' in row
