"""The store of equally long records: whole shards or none, resumable, verified."""

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStore, ArrayStoreWriter

FIELDS = {'codes': ((2, 3), np.uint16), 'label': ((), np.int32)}


def _rows(rows):
  n = np.array(rows)
  return {'codes': n[:, None, None] * 10 + np.arange(6).reshape(2, 3), 'label': n % 4}


def _written(directory, num_rows=11, meta=None):
  writer = ArrayStoreWriter(directory, FIELDS, num_rows, 4, meta)
  for k in reversed(range(writer.num_shards)):
    writer.write_shard(k, _rows(writer.rows(k)))
  return writer


def test_rows_come_back(tmp_path):
  _written(tmp_path, meta={'of': 'vq', 'grid': (4, 4)})
  store = ArrayStore(tmp_path)
  assert len(store) == 11 and store.meta == {'of': 'vq', 'grid': [4, 4]}
  expected = _rows(range(11))
  np.testing.assert_array_equal(store[9]['codes'], expected['codes'][9])
  assert store[9]['label'] == expected['label'][9] and store[9]['codes'].dtype == np.uint16
  ids = np.array([10, 0, 5, 5, 3])
  np.testing.assert_array_equal(store.read('codes', ids), expected['codes'][ids])
  np.testing.assert_array_equal(store.read('label'), expected['label'])
  with pytest.raises(IndexError, match='11 rows'):
    store[11]
  with pytest.raises(KeyError, match='codes'):
    store.read('ids', [0])


def test_unfinished_shards_are_known_and_refused(tmp_path):
  writer = ArrayStoreWriter(tmp_path, FIELDS, 11, 4)
  writer.write_shard(1, _rows(writer.rows(1)))
  assert ArrayStoreWriter(tmp_path, FIELDS, 11, 4).finished() == {1}
  with pytest.raises(ConfigError, match='2 of 3 shards.*shard 0: not written'):
    ArrayStore(tmp_path)


def test_truncated_and_flipped_shards_are_found(tmp_path):
  writer = _written(tmp_path)
  path = tmp_path / 'shard-00001.codes.npy'
  good = path.read_bytes()
  path.write_bytes(good[:-1])
  assert writer.finished() == {0, 2}
  path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
  assert writer.finished() == {0, 1, 2} and writer.finished(verify=True) == {0, 2}
  with pytest.raises(ConfigError, match='shard-00001.codes.npy has another sha256'):
    ArrayStore(tmp_path).verify()


def test_another_layout_or_meta_is_refused(tmp_path):
  _written(tmp_path, meta={'config': 1})
  with pytest.raises(ConfigError, match='meta.config: 1 -> 2'):
    ArrayStoreWriter(tmp_path, FIELDS, 11, 4, {'config': 2})
  with pytest.raises(ConfigError, match='no array store'):
    ArrayStore(tmp_path / 'absent')
  with pytest.raises(ConfigError, match='dtype object'):
    ArrayStoreWriter(tmp_path / 'o', {'x': ((), object)}, 1, 1)


def test_wrong_arrays_are_refused(tmp_path):
  writer = ArrayStoreWriter(tmp_path, FIELDS, 4, 4)
  good = _rows(range(4))
  with pytest.raises(ValueError, match="'codes'.*expected <u2"):
    writer.write_shard(0, {**good, 'codes': good['codes'][:3]})
  with pytest.raises(ValueError, match='do not fit uint16'):
    writer.write_shard(0, {**good, 'codes': good['codes'] + 2**16})
  with pytest.raises(ValueError, match='has fields'):
    writer.write_shard(0, {'codes': good['codes']})
  assert writer.finished() == set() and not list(tmp_path.glob('.*part'))
