"""Files have different names, which neither order nor the folder above them changes."""

import itertools

import pytest

from jaxmm.data import file_names


@pytest.mark.parametrize(
  ('files', 'expected'),
  [
    ({'/r/a/x': 'x', '/r/y': 'y'}, ['x', 'y']),
    ({'/r/a/x': 'x', '/r/b/x': 'x', '/r/y': 'y'}, ['a/x', 'b/x', 'y']),
    ({'/r/a/x': 'x', '/r/a/c/x': 'x'}, ['x', 'c/x']),
    ({'gs://k/a/x': 'x', 'gs://k/b/x': 'x'}, ['a/x', 'b/x']),
    ({'/r/a/x': 'x', 'gs://k/b/x': 'x'}, ['/r/a/x', 'gs://k/b/x']),
    # The second is called what the first would be.
    ({'/r/a/x': 'x', '/s/a/x': 'a/x', '/r/b/x': 'x'}, ['/r/a/x', '/s/a/x', 'b/x']),
    ({'gs://k/x': 'x', 'gs://k/x/x': 'x'}, ['x', 'x/x']),
  ],
)
def test_names_are_different(files, expected):
  of = dict(zip(files, expected))
  for order in itertools.permutations(files):
    assert file_names.apart([files[path] for path in order], order) == [of[p] for p in order]


def test_where_the_folder_lies_does_not_show(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  given = ['a/x', f'{tmp_path}/b/x']
  assert file_names.apart(['x', 'x'], given) == ['a/x', 'b/x']
