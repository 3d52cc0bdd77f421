"""Who may import whom, what a room is made of, and that `import jaxmm` stays instant.

Imports are read from the source, those inside functions and `importlib.import_module('jaxmm...')`
included, and compared with the table below. A room that is new is added to the table first.
"""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PACKAGE = ROOT / 'jaxmm'
ANYTHING = None
# Room (or module directly below jaxmm/) -> what of ours it may import, besides itself and config.
MAY_IMPORT = {
  'core': set(),
  'data': set(),
  'config': set(),
  'report': set(),
  'task': {'core'},
  'sharding': {'core'},
  'checkpoint': {'core'},
  'batch_job': {'core', 'data', 'sharding', 'checkpoint'},
  'tokenizers': {'core', 'task'},
  'models': {'core', 'task', 'tokenizers'},
  'composition': {'core', 'task', 'tokenizers', 'models'},
  'retrieval': {'core', 'task', 'tokenizers', 'models'},
  'compression': {'core', 'task', 'tokenizers', 'models'},
  'interop': {'core', 'tokenizers', 'models'},
  'curation': {'core', 'data', 'sharding', 'checkpoint', 'batch_job'},
  'train': {'core', 'data', 'task', 'sharding', 'checkpoint'},
  'evaluate': {'core', 'data', 'tokenizers', 'models', 'sharding', 'checkpoint', 'batch_job'},
  'pods': {'core', 'task', 'sharding', 'train'},
  'studies': ANYTHING,
  'cli': ANYTHING,
  'cli_curate': ANYTHING,
  'cli_evaluate': ANYTHING,
  'cli_plan': ANYTHING,
  'cli_sample': ANYTHING,
  '__init__': ANYTHING,  # what it imports must be lazy: see the last test
  '__main__': ANYTHING,
}
NOBODY_IMPORTS = {'cli', 'experiments', 'tests'}
MAY_IMPORT_CLI = {'__main__'}
HEAVY = ('jax', 'flax', 'optax', 'orbax', 'numpy', 'scipy', 'PIL', 'grain', 'tensorflow', 'torch',
         'ml_collections', 'tensorboardX', 'tokenizers', 'apache_beam')  # fmt: skip


def imported_rooms(source: str) -> dict[str, int]:
  """Rooms of ours that a file imports -> the first line where it does."""
  found: dict[str, int] = {}
  for node in ast.walk(ast.parse(source)):
    names = []
    if isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      if node.level:
        names = ['jaxmm.(relative import)']
      elif node.module == 'jaxmm':
        names = [f'jaxmm.{alias.name}' for alias in node.names]
      else:
        names = [node.module]
    elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith('import_module'):
      names = [a.value for a in node.args if isinstance(a, ast.Constant)]
    for name in names:
      top, _, rest = str(name).partition('.')
      room = rest.partition('.')[0] if top == 'jaxmm' else top
      if (top == 'jaxmm' and room and room != '__version__') or top in ('experiments', 'tests'):
        found.setdefault(room, node.lineno)
  return found


def room_of(path: pathlib.Path) -> str:
  return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def violations(room: str, source: str, where: str) -> list[str]:
  """One line for each import that the table does not allow."""
  if room not in MAY_IMPORT:
    return [f'{where}: room {room!r} is not in the table of imports']
  out = []
  for other, line in imported_rooms(source).items():
    allowed = MAY_IMPORT[room]
    if other in (room, 'config') or (other == 'cli' and room in MAY_IMPORT_CLI):
      continue
    if other in NOBODY_IMPORTS or (allowed is not ANYTHING and other not in allowed):
      out.append(f'{where}:{line}: {room} must not import {other}')
  return out


def modules() -> list[pathlib.Path]:
  return sorted(PACKAGE.rglob('*.py'))


def rooms() -> list[pathlib.Path]:
  return sorted(p for p in PACKAGE.iterdir() if p.is_dir() and list(p.rglob('*.py')))


def test_imports_follow_the_table():
  found = [
    line
    for path in modules()
    for line in violations(room_of(path), path.read_text(), str(path.relative_to(ROOT)))
  ]
  assert not found, '\n'.join(found)


@pytest.mark.parametrize(
  'room, source',
  [
    ('core', 'import jaxmm.data'),
    ('core', 'def f():\n  from jaxmm.models import lm'),
    ('models', 'from jaxmm import train'),
    ('train', 'import importlib\nimportlib.import_module("jaxmm.models.lm")'),
    ('report', 'from jaxmm.core import axes'),
    ('data', 'from ..core import axes'),
    ('studies', 'from jaxmm import cli'),
    ('studies', 'from jaxmm.experiments.crt import claim'),
    ('cli', 'import tests.references'),
    ('new_room', ''),
  ],
)
def test_what_the_table_forbids_is_found(room, source):
  assert len(violations(room, source, 'file.py')) == 1


@pytest.mark.parametrize(
  'room, source',
  [
    ('core', 'from jaxmm.core import axes\nfrom jaxmm import config\nimport jax, tests_of_others'),
    ('models', 'from jaxmm.tokenizers import vqgan\nimport tokenizers'),
    ('studies', 'from jaxmm import report, train\nfrom jaxmm.evaluate import images'),
    ('cli', 'from jaxmm import __version__\nfrom jaxmm.studies import run'),
  ],
)
def test_what_the_table_allows_is_not_found(room, source):
  assert violations(room, source, 'file.py') == []


def test_every_room_says_what_it_is_for_and_holds_something():
  for room in rooms():
    files = [p for p in room.rglob('*.py') if p.name != '__init__.py']
    assert files, f'{room.name} is an empty room'
    init = room / '__init__.py'
    assert init.is_file(), f'{room.name} has no __init__.py'
    tree = ast.parse(init.read_text())
    text = ast.get_docstring(tree) or ''
    first = text.partition('\n\n')[0]
    assert '?' in first, f'{init} begins with the question that the room answers'
    assert len(text.split()) >= 20, f'{init} says what does not belong, and where that goes instead'
    assert len(tree.body) == 1, f'{init} is a docstring alone; callers import from the files'


def test_every_module_has_a_docstring():
  bare = [
    str(p.relative_to(ROOT)) for p in modules() if not ast.get_docstring(ast.parse(p.read_text()))
  ]
  assert not bare, bare


def test_no_file_is_longer_than_500_lines():
  files = [p for d in ('jaxmm', 'experiments', 'tests') for p in (ROOT / d).rglob('*.py')]
  long = {
    str(p.relative_to(ROOT)): n for p in files if (n := len(p.read_text().splitlines())) > 500
  }
  assert not long, long


def test_there_is_no_drawer_for_leftovers():
  names = ('utils', 'util', 'helpers', 'common', 'misc')
  found = [str(p.relative_to(ROOT)) for p in modules() if p.stem in names or p.parent.name in names]
  assert not found, f'a helper lives beside its only caller, or in core: {found}'


def test_importing_jaxmm_is_instant():
  code = (
    'import sys, time; before = set(sys.modules); start = time.process_time(); import jaxmm; '
    'print(time.process_time() - start, *sorted({m.partition(".")[0] for m in '
    'set(sys.modules) - before}))'
  )
  done = subprocess.run(
    [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
  )
  seconds, *loaded = done.stdout.split()
  assert not set(loaded) & set(HEAVY), loaded
  assert float(seconds) < 0.2
