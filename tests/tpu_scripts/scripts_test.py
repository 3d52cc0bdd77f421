"""The scripts for TPU pods: what they would do, and what they do as `gcloud` answers."""

import os
import pathlib
import re
import shutil
import subprocess

import pytest

from jaxmm.checkpoint import Checkpoints

HERE = pathlib.Path(__file__).parent
SCRIPTS = HERE.parent.parent / 'tpu_scripts'
NAMES = sorted(p.stem for p in SCRIPTS.glob('*.sh') if p.stem != 'lib')
POD = ('--name', 'crt', '--zone', 'us-west4-a', '--project', 'p')
DRY_RUNS = HERE / 'dry_runs.txt'

# Writes down how it is called. `states` and `ends` are what it answers, one a call: the state of
# the queued resource, the exit status of a run that is followed. With `home` it does what is asked
# for over ssh, there.
GCLOUD = r"""#!/usr/bin/env bash
cd "$FAKE"
next() { head -n 1 "$1"; sed -i 1d "$1"; }
printf '%s\n' "${*//$'\n'/ }" >> calls
case "$*" in
  *queued-resources\ describe*)
    answer=$(next states)
    case $answer in
      MISSING) echo 'ERROR: NOT_FOUND: no such resource' >&2; exit 1 ;;
      DENIED) echo 'ERROR: PERMISSION_DENIED' >&2; exit 1 ;;
      *) echo "$answer" ;;
    esac ;;
  *jaxmm-status*done*|*tail\ -n*) [ -d home ] || exit "$(next ends)" ;;
esac
if [ -d home ] && [[ "$*" == *tpu-vm\ ssh* ]]; then
  cd home
  for word in "$@"; do
    case $word in --command=*) HOME=$FAKE/home exec bash -c "${word#--command=}" ;; esac
  done
fi
"""


@pytest.fixture
def cloud(tmp_path, monkeypatch):
  """A folder with a fake `gcloud`, which is the one on the PATH."""
  folder = tmp_path / 'cloud'
  (folder / 'bin').mkdir(parents=True)
  fake = folder / 'bin' / 'gcloud'
  fake.write_text(GCLOUD)
  fake.chmod(0o755)
  monkeypatch.setenv('FAKE', str(folder))
  monkeypatch.setenv('PATH', f'{folder / "bin"}{os.pathsep}{os.environ["PATH"]}')
  monkeypatch.setenv('JAXMM_POLL_SECONDS', '0')
  for name in ('JAXMM_POD', 'JAXMM_ZONE', 'JAXMM_PROJECT', 'JAXMM_SLICES', 'XLA_FLAGS'):
    monkeypatch.delenv(name, raising=False)
  return folder


def script(name, *words, timeout=60):
  return subprocess.run(
    [SCRIPTS / f'{name}.sh', *words],
    cwd=SCRIPTS.parent, text=True, capture_output=True, timeout=timeout,
  )  # fmt: skip


def calls(cloud):
  """The verbs that `gcloud` was asked for, in order."""
  lines = (cloud / 'calls').read_text().splitlines() if (cloud / 'calls').exists() else []
  verb = r'(?:queued-resources|tpu-vm|storage) \w+'
  return [re.search(verb, line)[0].split()[1] for line in lines]


def dry_runs():
  """{command line: what it prints} of the snapshot."""
  text = DRY_RUNS.read_text()
  return dict(part.split('\n', 1) for part in text.removeprefix('$ ').split('\n$ '))


def test_shellcheck_finds_nothing():
  tool = shutil.which('shellcheck')
  assert tool, "shellcheck is missing: pip install 'jaxmm[test]'"
  files = sorted(SCRIPTS.glob('*.sh'))
  done = subprocess.run([tool, '-x', *files], cwd=SCRIPTS.parent, text=True, capture_output=True)
  assert done.returncode == 0, done.stdout


@pytest.mark.parametrize('name', NAMES)
def test_help_says_what_it_does_and_every_option(name, cloud):
  said = script(name, '--help')
  assert said.returncode == 0 and f'{name}.sh' in said.stdout and '--dry-run' in said.stdout
  source = (SCRIPTS / f'{name}.sh').read_text()
  taken = re.findall(r"^(?:values|switches)\+?='?([\w ]+)'?$", source, re.M)
  for option in ' '.join(taken).split():
    assert f'--{option.replace("_", "-")}' in said.stdout, option


@pytest.mark.parametrize('line', list(dry_runs()))
def test_a_dry_run_prints_the_commands_of_the_snapshot_and_does_nothing(line, cloud):
  name, *words = line.split()
  said = script(name, *words)
  assert said.returncode == 0 and not said.stderr
  assert said.stdout == dry_runs()[line].rstrip('\n') + '\n'
  assert calls(cloud) == []


def test_every_script_has_a_dry_run_in_the_snapshot():
  assert {line.split()[0] for line in dry_runs()} == set(NAMES)


@pytest.mark.parametrize(
  'name, words, message',
  [
    ('create', ('--name', 'a'), '--zone is missing'),
    ('create', (*POD, '--topology', 'v9:2x2'), "--topology is 'v9:2x2', expected v4:AxBxC"),
    ('create', (*POD, '--topology', 'tpu7x:2x2'), 'rented through Kubernetes'),
    ('create', (*POD, '--slices', '0', '--topology', 'v5e:4x4'), "--slices is '0'"),
    ('create', (*POD, '--topologi', 'v5e:4x4'), 'there is no option --topologi'),
    ('create', (*POD, '--topology'), '--topology needs a value'),
    ('run', POD, 'write it after --'),
    ('delete', ('crt',), "'crt' is no option"),
    ('collect', (*POD, '--to', 'd', '--bucket', 'b'), '--run is missing'),
    ('rehearse_locally', ('--processes', 'x', '--', 'train'), "--processes is 'x'"),
    ('rehearse_locally', ('--', 'train'), 'no command with a --workdir'),
    ('rehearse_locally', ('--processes', '1', '--', 'train', '--workdir', 'r'), 'none is left'),
  ],
)
def test_bad_usage_is_told_and_nothing_is_done(name, words, message, cloud):
  said = script(name, *words)
  assert said.returncode == 2 and message in said.stderr and calls(cloud) == []


def test_create_waits_until_the_pod_is_there(cloud):
  (cloud / 'states').write_text('MISSING\nWAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n')
  said = script('create', *POD, '--topology', 'v5e:4x4')
  assert said.returncode == 0, said.stderr
  assert calls(cloud) == ['describe', 'create', *['describe'] * 3]


def test_create_leaves_a_pod_that_is_there(cloud):
  (cloud / 'states').write_text('ACTIVE\nACTIVE\n')
  assert script('create', *POD, '--topology', 'v5e:4x4').returncode == 0
  assert 'create' not in calls(cloud)


@pytest.mark.parametrize(
  'states, message',
  [
    ('MISSING\nFAILED\n', 'crt is FAILED; delete.sh it'),
    ('MISSING\nWAITING_FOR_RESOURCES\nSUSPENDED\n', 'crt is SUSPENDED'),
    ('DENIED\n', 'cannot ask for the state of crt: ERROR: PERMISSION_DENIED'),
  ],
)
def test_create_says_when_there_will_be_no_pod(states, message, cloud):
  (cloud / 'states').write_text(states)
  said = script('create', *POD, '--topology', 'v5e:4x4')
  assert said.returncode == 1 and message in said.stderr


def keep_running(cloud, states, ends, *words):
  (cloud / 'states').write_text('\n'.join(states) + '\n')
  (cloud / 'ends').write_text('\n'.join(map(str, ends)) + '\n')
  command = ('--', 'train', '--config', 'c.py', '--workdir', '/mnt/runs/r')
  return script('keep_running', *POD, '--topology', 'v5e:4x4', '--spot', *words, *command)


SET_UP = ['scp', 'ssh']
RUN = ['ssh', 'ssh']  # start, follow


def test_a_run_is_kept_running_over_a_preemption(cloud):
  states = ['MISSING', 'MISSING', 'ACTIVE', 'SUSPENDED', 'MISSING', 'ACTIVE']
  said = keep_running(cloud, states, [75, 0])
  assert said.returncode == 0, said.stderr
  first = ['describe', 'describe', 'create', 'describe', *SET_UP, *RUN]
  again = ['describe', 'delete', 'describe', 'create', 'describe', *SET_UP, *RUN]
  assert calls(cloud) == first + again
  lines = (cloud / 'calls').read_text().splitlines()
  started = [line for line in lines if 'nohup' in line]
  assert len(started) == 2 and started[0] == started[1]  # the same command: it resumes
  assert all('--spot' in line for line in lines if 'create' in line)


def test_a_process_that_was_lost_on_a_pod_that_is_there_starts_the_run_again(cloud):
  said = keep_running(cloud, ['ACTIVE', 'ACTIVE', 'ACTIVE'], [75, 143, 0])
  assert said.returncode == 0, said.stderr
  assert calls(cloud) == ['describe', *RUN] * 3


def test_a_run_that_fails_for_its_own_reason_is_not_started_again(cloud):
  said = keep_running(cloud, ['ACTIVE'], [2])
  assert said.returncode == 2 and 'which another try would not mend' in said.stderr
  assert calls(cloud) == ['describe', *RUN]


def test_it_gives_up_after_so_many_starts(cloud):
  said = keep_running(cloud, ['ACTIVE'] * 2, [75, 75], '--tries', '2')
  assert said.returncode == 1 and 'given up after 2 starts' in said.stderr


def test_without_permission_nothing_is_tried(cloud):
  said = keep_running(cloud, ['DENIED'], [])
  assert said.returncode == 1 and 'PERMISSION_DENIED' in said.stderr
  assert calls(cloud) == ['describe']


@pytest.fixture
def host(cloud):
  """The fake `gcloud` does what is asked for over ssh, in this home with a `jaxmm` of ours."""
  home = cloud / 'home'
  (home / 'jaxmm').mkdir(parents=True)
  (home / 'jaxmm-env' / 'bin').mkdir(parents=True)
  program = home / 'jaxmm-env' / 'bin' / 'jaxmm'
  program.write_text(
    '#!/bin/sh\nprintf "<%s>" "$@"; echo\nuntil [ -e ~/go ]; do sleep 0.1; done; exit 75\n'
  )
  program.chmod(0o755)
  return home


def test_a_run_goes_on_without_us_once_and_gives_its_status_to_who_follows(host):
  words = ('--', 'train', '--workdir', "it's here", '--config.data.path=$HOME')
  assert script('run', *POD, *words).returncode == 0
  assert 'it runs already' in script('run', *POD, *words).stdout
  (host / 'go').touch()
  said = script('follow', *POD)
  assert said.returncode == 75
  # Words come as they were given; one start, one line.
  expected = "<train><--workdir><it's here><--config.data.path=$HOME><--distributed>\n"
  assert said.stdout == expected
  (host / 'go').unlink()
  assert script('run', *POD, *words).returncode == 0  # over, so it starts again
  (host / 'go').touch()
  assert script('follow', *POD).returncode == 75
  assert (host / 'jaxmm-log').read_text() == 2 * expected


def test_setup_brings_the_files_that_git_knows(cloud):
  keep = '#!/bin/sh\nfor w in "$@"; do case $w in *.tar.gz) cp "$w" "$FAKE/sent";; esac; done\n'
  (cloud / 'bin' / 'gcloud').write_text(keep)
  said = script('setup', *POD)
  assert said.returncode == 0, said.stderr
  names = subprocess.run(['tar', '-tzf', cloud / 'sent'], text=True, capture_output=True).stdout
  assert 'jaxmm/cli.py\n' in names and 'setup.cfg\n' in names and '.git/' not in names


REHEARSED = re.compile(
  r'process (\d) of 4 was killed\n(?:process \d ended with status (?:75|134): '
  r'jaxmm: process \1 of 4 was lost; .*\n){3}resuming in 2 process\(es\)\n.*resumes from step '
)


@pytest.mark.slow
def test_a_rehearsal_kills_a_process_and_resumes(tmp_path, monkeypatch):
  text = tmp_path / 'text.txt'
  text.write_text('\n'.join(f'{i} is a number, {i * i} its square.' for i in range(3000)))
  monkeypatch.setenv('XLA_FLAGS', '--xla_backend_optimization_level=0')
  monkeypatch.setenv('JAX_ENABLE_COMPILATION_CACHE', 'false')
  monkeypatch.setenv('PYTHONPATH', str(SCRIPTS.parent))
  run = tmp_path / 'run'
  settings = {
    'data.path': text, 'data.text.length': 32, 'model.depth': 1, 'model.width': 16,
    'model.num_heads': 2, 'model.hidden': 16, 'batch': 8, 'steps': 300, 'log.every': 10,
    'checkpoint.every': 10, 'evaluate.batches': 1,
  }  # fmt: skip
  words = ['train', '--config', 'lm/mini.py', '--workdir', str(run)]
  words += [f'--config.{name}={value}' for name, value in settings.items()]
  options = ('--kill-within', '1', '--seed', '1', '--logs', str(tmp_path / 'logs'))
  said = script('rehearse_locally', *options, '--', *words, timeout=900)
  assert said.returncode == 0, said.stdout + said.stderr
  assert REHEARSED.match(said.stdout), said.stdout
  assert Checkpoints(run / 'checkpoints').steps()[-1] == 300
