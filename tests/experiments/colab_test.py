"""The notebooks run from top to bottom in a real kernel, and show pictures."""

import pathlib

import nbclient
import nbformat
import pytest

NOTEBOOKS = sorted(
  (pathlib.Path(__file__).resolve().parents[2] / 'experiments' / 'colab').glob('*.ipynb')
)
SCALE = 0.1  # of their numbers of steps
# What a notebook must have shown: so many pictures, so many pages.
SHOWN = {'crt': (3, 1), 'curation': (0, 1), 'megabyte': (0, 1), 'transfusion': (4, 1)}


def read(path):
  return nbformat.read(path, as_version=4)


def names(paths):
  return [path.stem for path in paths]


def test_there_is_a_notebook_of_each():
  assert set(names(NOTEBOOKS)) >= set(SHOWN)


@pytest.mark.parametrize('path', NOTEBOOKS, ids=names(NOTEBOOKS))
def test_a_notebook_is_kept_valid_and_without_outputs(path):
  notebook = read(path)
  nbformat.validate(notebook)
  cells = [cell for cell in notebook.cells if cell.cell_type == 'code']
  assert all(not cell.outputs and cell.execution_count is None for cell in cells)
  assert '%pip install' in cells[0].source
  assert [cell.source for cell in cells if 'parameters' in cell.metadata.get('tags', [])]


def executed(path, folder):
  """The notebook after it has run in `folder`, with fewer steps."""
  notebook = read(path)
  (cell,) = [c for c in notebook.cells if 'parameters' in c.metadata.get('tags', [])]
  whole = cell.source
  cell.source = whole.replace('SCALE = 1.0', f'SCALE = {SCALE}')
  assert cell.source != whole
  resources = {'metadata': {'path': str(folder)}}
  nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()
  return notebook


@pytest.mark.parametrize(
  'path',
  # Two minutes and more each, but for this one.
  [p if p.stem == 'curation' else pytest.param(p, marks=pytest.mark.slow) for p in NOTEBOOKS],
  ids=names(NOTEBOOKS),
)
def test_a_notebook_runs_and_shows_what_it_made(path, tmp_path, monkeypatch):
  monkeypatch.delenv('XLA_FLAGS', raising=False)  # a runtime of one device, as Colab's
  notebook = executed(path, tmp_path)
  shown = [out.data for c in notebook.cells for out in c.get('outputs', []) if 'data' in out]
  pictures = sum('image/png' in data for data in shown)
  pages = sum('<iframe srcdoc=' in data.get('text/html', '') for data in shown)
  assert (pictures, pages) == SHOWN[path.stem]
