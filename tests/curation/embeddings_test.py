"""Vectors and their ids: bad rows are counted, never used; file formats give the same rows."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from jaxmm.config import ConfigError
from jaxmm.curation import embeddings, keep_list
from jaxmm.curation.brought import MISSING, brought, matched
from jaxmm.data import kept

N, D = 11, 5
IDS = [f'doc{i:02}' for i in range(N)]
BAD_ROWS = {2: np.nan, 5: np.inf, 7: 0.0, 8: 1e30}  # 1e30 squared is no float32, but a length is


def vectors(dtype=np.float32):
  x_ND = np.random.default_rng(0).standard_normal((N, D)).astype(dtype)
  x_ND[2, 1], x_ND[5, 0], x_ND[7] = np.nan, -np.inf, 0.0
  return x_ND


def expected(x_ND):
  """Rows one by one, in float64."""
  out = np.zeros(x_ND.shape)
  for i, row in enumerate(x_ND.astype(np.float64)):
    if np.isfinite(row).all() and row.any():
      out[i] = row / np.sqrt((row**2).sum())
  return out


def check(found, x_ND, atol=1e-6):
  assert found.ids.to_pylist() == IDS
  assert [i for i in range(N) if found.reason_N[i]] == [2, 5, 7]
  assert found.reasons() == {'bad_embedding': 3}
  assert (found.usable_N == (found.reason_N == '')).all()
  rows = np.asarray(found.x_ND)
  assert rows.dtype == np.float32
  np.testing.assert_allclose(rows, expected(x_ND), atol=atol)


@pytest.mark.parametrize('dtype', [np.float16, np.float32, np.float64])
def test_rows_have_length_one_and_bad_ones_are_counted(dtype):
  x_ND = vectors(dtype)
  found = embeddings.of_arrays(IDS, x_ND)
  check(found, x_ND)
  all_rows = found.x_ND[:]
  mask, index = np.arange(N) % 2 == 0, np.array([7, 0, 0, 3])
  for key in (slice(2, 6), slice(None, None, -3), index, mask, 4):
    np.testing.assert_array_equal(found.x_ND[key], all_rows[key])
  np.testing.assert_array_equal(found.x_ND.raw(slice(0, 4)), x_ND[:4])
  assert found.x_ND.shape == (N, D) and len(found) == len(found.x_ND) == N


@settings(max_examples=40, deadline=None)
@given(arrays.arrays(np.float32, (3, 4), elements=st.floats(width=32)))
def test_no_number_makes_a_row_that_is_neither_of_length_one_nor_bad(x_ND):
  found = embeddings.of_arrays(['a', 'b', 'c'], x_ND)
  lengths = np.linalg.norm(np.asarray(found.x_ND).astype(np.float64), axis=1)
  np.testing.assert_allclose(lengths, found.usable_N.astype(float), atol=1e-5)
  is_plain = np.isfinite(x_ND).all(1) & (np.abs(x_ND).max(1) > 1e-30) & (np.abs(x_ND).max(1) < 1e30)
  assert found.usable_N[is_plain].all()


def test_a_reason_that_is_given_stands_and_its_vector_is_not_used():
  reason_N = np.array([''] * N, object)
  reason_N[[0, 2]] = 'empty', 'unreadable'
  found = embeddings.of_arrays(IDS, vectors(), reason_N=reason_N)
  assert found.reasons() == {'bad_embedding': 2, 'empty': 1, 'unreadable': 1}
  assert not np.asarray(found.x_ND)[[0, 2]].any() and reason_N[7] == ''


@pytest.mark.parametrize('shards', [1, 4, 100])
def test_written_and_read_it_is_the_same(tmp_path, shards):
  given_ = embeddings.of_arrays(IDS, vectors(), identity={'encoder': 'x'})
  embeddings.write(given_, tmp_path / 'v', rows_per_shard=shards)
  found = embeddings.read(tmp_path / 'v')
  check(found, vectors())
  np.testing.assert_array_equal(found.x_ND[:], given_.x_ND[:])
  assert found.fingerprint == given_.fingerprint and found.identity == {'encoder': 'x'}
  for key in (3, slice(1, 9, 2), np.array([5, 5, 0]), np.arange(N) > 6):
    np.testing.assert_array_equal(found.x_ND[key], given_.x_ND[key])
  with pytest.raises(ConfigError, match='holds vectors of another corpus'):
    other = embeddings.of_arrays(IDS, vectors() + 1, identity={'encoder': 'x'})
    embeddings.write(other, tmp_path / 'v', rows_per_shard=shards)


def test_what_is_not_there_or_not_finished_is_named(tmp_path):
  with pytest.raises(ConfigError, match='holds no embeddings; `jaxmm curate embed'):
    embeddings.read(tmp_path)
  embeddings.write(embeddings.of_arrays(IDS, vectors()), tmp_path)
  (tmp_path / 'examples.parquet').unlink()
  with pytest.raises(ConfigError, match='it is begun: run the same command again'):
    embeddings.read(tmp_path)


@pytest.mark.parametrize(
  'ids, x_ND, message',
  [
    (IDS[:-1], vectors(), 'there are 10 ids and 11 vectors'),
    ([*IDS[:-1], 'doc00'], vectors(), "1 ids come more than once, the first 'doc00'"),
    ([*IDS[:-1], None], vectors(), '1 ids are null'),
    (IDS, vectors()[:, 0], r'vectors are float32\[11\], expected numbers'),
    (IDS, vectors()[:, :0], r'float32\[11, 0\], expected numbers \[N, D\], D at least 1'),
    (IDS, np.full((N, D), 'a'), r'vectors are <U1\[11, 5\]'),
  ],
)
def test_arrays_that_do_not_fit_are_named(ids, x_ND, message):
  with pytest.raises(ConfigError, match=message):
    embeddings.of_arrays(ids, x_ND)


def save(folder, kind, x_ND):
  """The vectors in a file; (path, file of ids)."""
  ids = folder / 'ids.txt'
  ids.write_text('\n'.join(IDS) + '\n')
  if kind == 'npy':
    np.save(folder / 'x.npy', x_ND)
    return folder / 'x.npy', ids
  if kind == 'npy and npy':
    np.save(folder / 'x.npy', x_ND)
    np.save(folder / 'ids.npy', np.array(IDS))
    return folder / 'x.npy', folder / 'ids.npy'
  if kind == 'npz':
    np.savez(folder / 'x.npz', x=x_ND, id=np.array(IDS))
    return folder / 'x.npz', None
  if kind.startswith('zarr'):
    import tensorstore

    spec = {'driver': kind, 'kvstore': {'driver': 'file', 'path': str(folder / 'x.zarr')}}
    store = tensorstore.open(spec, create=True, dtype='float32', shape=x_ND.shape).result()
    store.write(x_ND).result()
    return folder / 'x.zarr', ids
  typed = pa.list_(pa.float32(), D) if kind == 'fixed' else pa.list_(pa.float32())
  rows = x_ND.tolist()
  rows[7] = None  # no vector at all
  table = pa.table({'id': IDS, 'x': pa.array(rows, typed)})
  if kind == 'parquet folder':
    (folder / 'parts').mkdir()
    for part, low in enumerate(range(0, N, 4)):
      pq.write_table(table.slice(low, 4), folder / 'parts' / f'{part}.parquet')
    return folder / 'parts', None
  pq.write_table(table, folder / 'x.parquet', row_group_size=3)
  return folder / 'x.parquet', None


KINDS = ['npy', 'npy and npy', 'npz', 'list', 'fixed', 'parquet folder', 'zarr', 'zarr3']


@pytest.mark.parametrize('kind', KINDS)
def test_every_format_gives_the_same_rows(tmp_path, kind):
  path, ids = save(tmp_path, kind, vectors())
  check(brought(path, ids), vectors())


def test_vectors_are_found_by_id_and_take_the_digests_of_the_corpus(tmp_path):
  path, ids = save(tmp_path, 'npy', vectors())
  corpus_ids = [*IDS[::-1], 'new']
  digest = [kept.digest(name, b'text') for name in corpus_ids]
  reason = [''] * (N + 1)
  reason[0] = 'empty'  # doc10
  examples = pa.table({'id': corpus_ids, 'digest': pa.array(digest, pa.uint64()), 'reason': reason})
  error = ['', 'why', *[''] * (N - 1)]
  examples = examples.append_column('error', pa.array(error))
  examples = pa.concat_tables([examples.slice(0, 4), examples.slice(4)])
  found = matched(brought(path, ids), examples)
  assert found.ids.to_pylist() == corpus_ids
  assert found.fingerprint == keep_list.fingerprint(np.array(digest, np.uint64))
  assert found.reasons() == {'bad_embedding': 3, 'empty': 1, MISSING: 1}
  expected_rows = np.concatenate([expected(vectors())[::-1], np.zeros((1, D))])
  expected_rows[0] = 0
  np.testing.assert_allclose(found.x_ND[:], expected_rows, atol=1e-6)
  again = embeddings.write(found, tmp_path / 'v')
  np.testing.assert_array_equal(again.x_ND[:], found.x_ND[:])
  assert again.reasons() == found.reasons() and again.error_N.tolist() == error
  with pytest.raises(
    ConfigError, match="1 vectors have ids that the corpus does not have.*'doc10'"
  ):
    matched(brought(path, ids), examples.slice(1))


def test_files_that_do_not_fit_are_named(tmp_path):
  path, ids = save(tmp_path, 'npy', vectors())
  with pytest.raises(ConfigError, match='x.npy needs a file of ids'):
    brought(path)
  with pytest.raises(ConfigError, match='no such file of ids'):
    brought(path, tmp_path / 'absent.txt')
  with pytest.raises(ConfigError, match='no such file of vectors'):
    brought(tmp_path / 'absent.npy', ids)
  ids.write_text('a\nb\n')
  with pytest.raises(ConfigError, match='x.npy: there are 2 ids and 11 vectors'):
    brought(path, ids)
  ids.write_bytes(b'\xff\n')
  with pytest.raises(ConfigError, match='not UTF-8'):
    brought(path, ids)
  np.save(tmp_path / 'objects.npy', np.array([{}, {}]), allow_pickle=True)
  (tmp_path / 'rubbish.npy').write_bytes(b'rubbish')
  for name in ('objects.npy', 'rubbish.npy'):
    with pytest.raises(ConfigError, match=f'{name}: not an array that can be read'):
      brought(tmp_path / name, ids)
  (tmp_path / 'x.h5').write_bytes(b'rubbish')
  with pytest.raises(ConfigError, match='expected .npy, .npz, .parquet, a folder'):
    brought(tmp_path / 'x.h5', ids)
  path, _ = save(tmp_path, 'npz', vectors())
  with pytest.raises(ConfigError, match="no array 'y'; it has x, id"):
    brought(path, vector_field='y')
  with pytest.raises(ConfigError, match='holds its ids itself'):
    brought(path, ids)


@pytest.mark.parametrize(
  'column, message',
  [
    (pa.array([[1.0], [1.0, 2.0]]), "the vector of 'b' has another width than 1"),
    (pa.array([1.0, 2.0]), 'of type double, expected lists'),
    (pa.array([['a'], ['b']]), 'lists of string, expected numbers'),
    (pa.array([None, None], pa.list_(pa.float32())), 'widths .., expected the same'),
  ],
)
def test_columns_that_are_no_vectors_are_named(tmp_path, column, message):
  pq.write_table(pa.table({'id': ['a', 'b'], 'x': column}), tmp_path / 'x.parquet')
  with pytest.raises(ConfigError, match=message):
    brought(tmp_path / 'x.parquet')
  with pytest.raises(ConfigError, match="no column 'y'; it has id, x"):
    brought(tmp_path / 'x.parquet', vector_field='y')


def test_what_made_them_is_json(tmp_path):
  found = embeddings.write(embeddings.of_arrays(IDS, vectors()), tmp_path)
  assert json.loads(json.dumps(found.identity)) == found.identity
