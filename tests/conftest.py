"""Eight fake CPU devices for every test, nothing that needs an accelerator, and no silent skips."""

import gc
import os
import pathlib
import resource
import sys

import pytest

os.environ.setdefault('JAX_PLATFORMS', 'cpu')
for flag in (
  '--xla_force_host_platform_device_count=8',
  # With several devices on few cores this scheduler can start collectives that wait for each other
  # in different orders on different devices, for ever.
  '--xla_cpu_enable_concurrency_optimized_scheduler=false',
):
  if flag.partition('=')[0] not in os.environ.get('XLA_FLAGS', ''):
    os.environ['XLA_FLAGS'] = f'{os.environ.get("XLA_FLAGS", "")} {flag}'.strip()

# Resident bytes of a process above which a finished module's compiled programs are thrown away.
CROWDED = 3 * 2**30
ALLOWED_SKIPS = pathlib.Path(__file__).parent / 'allowed_skips.txt'
_skipped: dict[str, str] = {}


def pytest_configure(config):
  # Most of the fast suite's time is compilation, and nothing in it depends on how well LLVM
  # optimises; the slow suite runs as users run. No test module has imported jax yet.
  if (
    config.option.markexpr.startswith('not slow')
    and '--xla_backend_opt' not in os.environ['XLA_FLAGS']
  ):
    os.environ['XLA_FLAGS'] += ' --xla_backend_optimization_level=0'
  _skipped.clear()
  _allowed_skips()  # a line that cannot be read must stop the run before it begins


@pytest.fixture(autouse=True, scope='module')
def _memory_is_given_back():
  yield
  statm = pathlib.Path('/proc/self/statm')
  resident = int(statm.read_text().split()[1]) * resource.getpagesize() if statm.exists() else 0
  if resident > CROWDED and 'jax' in sys.modules:
    sys.modules['jax'].clear_caches()
    gc.collect()


def pytest_runtest_logreport(report):
  _note_skip(report)


def pytest_collectreport(report):
  _note_skip(report)


def _note_skip(report):
  if report.skipped and not hasattr(report, 'wasxfail'):
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    _skipped[report.nodeid] = reason


def _allowed_skips() -> dict[str, str]:
  allowed = {}
  for number, line in enumerate(ALLOWED_SKIPS.read_text().splitlines(), 1):
    if not line.strip() or line.startswith('#'):
      continue
    nodeid, _, reason = (part.strip() for part in line.partition(' | '))
    if not reason:
      raise pytest.UsageError(f'{ALLOWED_SKIPS.name}:{number} has no reason: {line!r}')
    allowed[nodeid] = reason
  return allowed


def _forbidden_skips() -> dict[str, str]:
  """Skips that nobody listed, under CI=true only."""
  if os.environ.get('CI', '').lower() not in ('1', 'true'):
    return {}
  allowed = _allowed_skips()
  return {
    nodeid: reason
    for nodeid, reason in _skipped.items()
    if not any(nodeid == a or nodeid.startswith((a + '::', a + '[')) for a in allowed)
  }


def pytest_sessionfinish(session, exitstatus):
  if _forbidden_skips() and exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
    session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter):
  forbidden = _forbidden_skips()
  if forbidden:
    terminalreporter.section('skips that tests/allowed_skips.txt does not list', red=True)
    for nodeid, reason in sorted(forbidden.items()):
      terminalreporter.line(f'{nodeid}: {reason}', red=True)
