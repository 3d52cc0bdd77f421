"""Tables in a directory or below a URL: there whole or not at all, whoever else writes them."""

import concurrent.futures

import pyarrow as pa
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import work_tables


@pytest.fixture(params=['path', 'file', 'memory'])
def directory(request, tmp_path):
  return {
    'path': tmp_path / 'w',
    'file': f'file://{tmp_path}/w',
    'memory': f'memory:/{tmp_path}/w',
  }[request.param]


def test_what_is_written_is_read_and_listed(directory):
  root = work_tables.root(directory)
  assert work_tables.names(root) == set()
  table = pa.table({'id': [f'{i}' for i in range(1000)], 'n': range(1000)})
  work_tables.write(table, f'{root}/a.arrow')
  assert work_tables.is_there(f'{root}/a.arrow') and not work_tables.is_there(f'{root}/b.arrow')
  assert work_tables.names(work_tables.root(directory)) == {'a.arrow'}
  assert work_tables.read(f'{root}/a.arrow').equals(table)
  work_tables.write(table.slice(3), f'{root}/a.arrow')
  assert work_tables.read(f'{root}/a.arrow').equals(table.slice(3))
  work_tables.write_bytes(b'0123456789', f'{root}/plan')
  assert work_tables.read_bytes(f'{root}/plan', 2, 5) == b'234'
  assert work_tables.read_bytes(f'{root}/plan') == b'0123456789'
  work_tables.remove(f'{root}/plan')
  work_tables.remove(f'{root}/plan')
  assert work_tables.names(root) == {'a.arrow'}
  with pytest.raises(FileNotFoundError):
    work_tables.read_bytes(f'{root}/plan', 2, 5)


def test_a_path_is_a_path_and_file_is_no_far_place(tmp_path):
  assert work_tables.root(f'file://{tmp_path}/x') == work_tables.root(tmp_path / 'x')
  assert not work_tables.is_url(f'file://{tmp_path}') and work_tables.is_url('gs://bucket/x')


def test_of_several_that_write_one_table_none_leaves_half_of_it(directory):
  root = work_tables.root(directory)
  tables = [pa.table({'n': [k] * 50_000}) for k in range(8)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    list(pool.map(lambda table: work_tables.write(table, f'{root}/a.arrow'), tables))
  found = work_tables.read(f'{root}/a.arrow')
  assert any(found.equals(table) for table in tables)
  assert work_tables.names(root) == {'a.arrow'}


def test_what_cannot_be_written_leaves_nothing(directory, monkeypatch):
  root = work_tables.root(directory)

  def broken(*_):
    raise OSError('disk full')

  monkeypatch.setattr(pa.ipc, 'new_file', broken)
  with pytest.raises(OSError, match='disk full'):
    work_tables.write(pa.table({'n': [1]}), f'{root}/a.arrow')
  assert work_tables.names(root) == set()


def test_an_unknown_protocol_is_named():
  with pytest.raises(
    ConfigError, match="nosuch://x/y: fsspec knows no protocol 'nosuch'; known are"
  ):
    work_tables.root('nosuch://x/y')
