"""Runs a script in a process of its own, with programs that are compiled quickly."""

import os
import subprocess
import sys
from collections.abc import Sequence

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# These programs run for a moment; compiling them is most of what they cost.
_QUICK = '--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true'


def run_script(
  script: str, arguments: Sequence[object] = (), *, typed: str = '', **environment: str
) -> tuple[int, str]:
  """(exit status, output and errors in one) of Python source; negative is the signal it died of.

  Args:
    script: the source; `arguments` are its `sys.argv[1:]`.
    typed: its standard input.
    environment: variables besides this process's.
  """
  done = subprocess.run(
    [sys.executable, '-c', script, *map(str, arguments)],
    input=typed,
    env=dict(os.environ, XLA_FLAGS=_QUICK, **environment),
    cwd=ROOT,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.STDOUT,
  )
  return done.returncode, done.stdout


_VERBS = """
import sys
from jaxmm import cli
for line in sys.stdin.read().splitlines():
  status = cli.main(line.split())
  if status:
    sys.exit(status)
"""


def run_verbs(*lines: str) -> str:
  """Command lines one after another in one process of its own; what they printed.

  Raises:
    AssertionError: one failed.
  """
  status, said = run_script(_VERBS, typed='\n'.join(lines))
  assert status == 0, said[-3000:]
  return said
