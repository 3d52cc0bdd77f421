"""The loss of one process ends the others soon, with a last line that says which and what to do."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from jaxmm.train import watch
from tests import multiprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
RESUME = 'run it again'
SCRIPT = f"""
import os, signal, sys, threading, time
from jaxmm.train import processes, watch
i = int(sys.argv[1])
processes.join(sys.argv[2], i, 3, resume={RESUME!r})
from jax.experimental import multihost_utils
meet = lambda: multihost_utils.process_allgather(i)
meet()
print('met', flush=True)
"""
MEET_FOR_EVER = 'while True: meet()'


def run(body, timeout=90):
  """[(exit status, last line, seconds after the first end)] of three processes, and all they said.

  `body` follows SCRIPT.
  """
  with socket.socket() as s:
    s.bind(('localhost', 0))
    where = f'localhost:{s.getsockname()[1]}'
  env = dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=multiprocess.xla_flags(1))
  started = [
    subprocess.Popen(
      [sys.executable, '-c', SCRIPT + body, str(i), where],
      env=env, cwd=ROOT, text=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
    )
    for i in range(3)
  ]  # fmt: skip
  ends, deadline = {}, time.monotonic() + timeout
  try:
    while len(ends) < 3:
      assert time.monotonic() < deadline, 'a process did not end'
      for i, process in enumerate(started):
        if process.poll() is not None:
          ends.setdefault(i, time.monotonic())
      time.sleep(0.02)
  finally:
    for process in started:
      process.kill()
    said = [process.communicate()[1] for process in started]
  first = min(ends.values())
  last = [text.rstrip().rpartition('\n')[2] for text in said]
  return [(p.returncode, last[i], ends[i] - first) for i, p in enumerate(started)], said


@pytest.mark.parametrize('victim', [0, 2])
def test_a_killed_process_ends_the_others_and_is_named(victim):
  ends, said = run(
    f'if i == {victim}: threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGKILL)).start()\n'
    + MEET_FOR_EVER
  )
  assert ends[victim][0] == -signal.SIGKILL
  for i in {0, 1, 2} - {victim}:
    status, last, seconds = ends[i]
    assert last == f'jaxmm: process {victim} of 3 was lost; {RESUME}', said[i]
    assert status == watch.LOST and seconds < 15


def test_one_killed_while_the_others_wait_in_their_exit():
  ends, said = run('if i == 1:\n  time.sleep(2)\n  os.kill(os.getpid(), signal.SIGKILL)')
  for i in (0, 2):
    status, last, seconds = ends[i]
    assert last == f'jaxmm: process 1 of 3 was lost; {RESUME}', said[i]
    assert status == watch.LOST and seconds < 15


@pytest.mark.slow
def test_an_error_of_one_process_ends_the_others_with_its_words():
  ends, said = run(f'if i == 1: raise ValueError("the disk is gone")\n{MEET_FOR_EVER}')
  assert ends[1][:2] == (1, 'ValueError: the disk is gone')
  for i in (0, 2):
    status, last, seconds = ends[i]
    failed = f'jaxmm: process 1 of 3 failed: ValueError: the disk is gone; {RESUME}'
    assert last == failed, said[i]
    assert status == watch.LOST and seconds < 25


@pytest.mark.slow
def test_an_error_of_all_processes_is_told_by_each_itself():
  ends, said = run('time.sleep(i)\nraise ValueError(f"no {i}")')
  assert [end[:2] for end in ends] == [(1, f'ValueError: no {i}') for i in range(3)], said


def test_processes_that_end_well_end_well():
  ends, said = run('time.sleep(i)\nif i: sys.exit(0)')
  assert [status for status, _, _ in ends] == [0, 0, 0], said
  assert not any('jaxmm:' in text for text in said)


def test_a_process_that_cannot_be_reached_is_named(monkeypatch):
  monkeypatch.setattr(watch, '_CONNECT_SECONDS', 0.3)
  with pytest.raises(watch.RunError, match='process 0 was not reached by processes 1, 2 in'):
    watch.Watch(0, 3, lambda news: news, RESUME)
  with socket.socket() as s:
    s.bind(('localhost', 0))  # and does not listen
    news = {'port': s.getsockname()[1], 'hosts': ['localhost'], 'token': ''}
    with pytest.raises(watch.RunError, match='process 1 cannot reach process 0 at localhost, port'):
      watch.Watch(1, 3, lambda _: news, RESUME)


def test_a_stranger_is_turned_away(monkeypatch):
  monkeypatch.setattr(watch, '_CONNECT_SECONDS', 0.5)
  strangers = []

  def tell(news):
    strangers.append(socket.create_connection(('localhost', news['port'])))
    strangers[0].sendall(b'{"token": "guessed", "process": 1}\n')
    return news

  with pytest.raises(watch.RunError, match='not reached by process 1 in'):
    watch.Watch(0, 2, tell, RESUME)
  assert strangers[0].recv(1) == b''
