"""The methods on vectors, end to end: what is kept, why the rest is not, resumed or not."""

import dataclasses

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import d4, dbp, embeddings, keep_list, prototypes, semdedup, vectors
from jaxmm.curation.d4 import D4Config
from jaxmm.curation.dbp import DbpConfig
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.prototypes import PrototypesConfig
from jaxmm.curation.semdedup import SemDedupConfig
from jaxmm.curation.stages import Stages
from tests.multiprocess import run_processes
from tests.references import clusters

KMEANS = KMeansConfig(6, 8)


def unit(x):
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def cloud(n=240, copies=60, d=10, seed=0):
  """(ids in no order, rows of any length): a mixture, a part of it copied."""
  rng = np.random.default_rng(seed)
  centre = unit(rng.standard_normal((6, d)))
  x = centre[rng.integers(6, size=n)] + 0.3 * rng.standard_normal((n, d))
  x = np.concatenate([x, x[:copies] + 0.002 * rng.standard_normal((copies, d))])
  order = rng.permutation(len(x))
  return [f'{"copy" if n >= 240 else "row"}-{n:03}' for n in order], x[order]


def of_rows(ids, x, **more):
  return vectors.of_embeddings(embeddings.of_arrays(ids, x, **more))


def rows_of(keep):
  return {row['id']: row for row in keep.table.to_pylist()}


def test_rows_are_put_in_order_scaled_and_judged():
  x = np.array([[3.0, 4], [0, 0], [np.nan, 1], [0, 2], [1, np.inf]])
  of = of_rows(list('dcbae'), x, reason_N=['', '', 'unreadable', '', ''])
  assert of.ids.to_pylist() == list('abcde')
  assert of.reason_N.tolist() == ['', 'unreadable', embeddings.BAD, '', embeddings.BAD]
  np.testing.assert_allclose(of.x_UD, [[0, 1], [0.6, 0.8]], rtol=1e-6)
  assert np.isfinite(of.x_ND).all() and of.usable_U.tolist() == [0, 3]


@pytest.mark.parametrize(
  ('ids', 'x', 'message'),
  [
    (['a', 'a'], np.ones((2, 3)), "ids come more than once, the first 'a'"),
    (['a'], np.ones((2, 3)), '1 ids and 2 vectors'),
    (['a', 'b'], np.zeros((2, 3)), r'none of 2 examples has a vector \(2 bad_embedding\)'),
  ],
)
def test_rows_that_make_no_sense_are_refused(ids, x, message):
  with pytest.raises(ConfigError, match=message):
    of_rows(ids, x)


def test_rows_in_a_file_are_those_in_memory(tmp_path):
  ids, x = cloud()
  x[7] = 0
  given = embeddings.of_arrays(ids, x)
  held = vectors.of_embeddings(given)
  on_disk = vectors.of_embeddings(given, tmp_path / 'work' / 'rows.npy')
  assert isinstance(on_disk.x_ND, np.memmap) and on_disk.ids.equals(held.ids)
  np.testing.assert_array_equal(on_disk.x_ND, held.x_ND)
  rows = np.arange(0, 299, 7)
  selected = on_disk.at(on_disk.usable_U).at(rows)
  expected = held.x_ND[held.usable_U[rows]]
  np.testing.assert_array_equal(selected.x_UD[3:9], expected[3:9])
  np.testing.assert_array_equal(np.asarray(selected.x_UD), expected)
  config = D4Config('hard', 0.4, kmeans=dataclasses.replace(KMEANS, fit_rows=100))
  one, other = (d4.run(of, config, Stages()) for of in (held, on_disk))
  assert one.table.equals(other.table)


def test_semdedup_says_of_whom_a_dropped_row_is_a_copy():
  ids, x = cloud()
  of = of_rows(ids, x)
  keep = semdedup.run(of, SemDedupConfig('hard', eps=0.01), KMEANS, Stages())
  rows = rows_of(keep)
  pairs = {(f'row-{n:03}', f'copy-{n + 240:03}') for n in range(60)}
  dropped = [row for row in rows.values() if not row['keep']]
  assert {r['reason'] for r in dropped} == {'semantic_duplicate'} and len(dropped) >= 58
  for row in dropped:
    assert (row['id'], row['nearest']) in pairs or (row['nearest'], row['id']) in pairs
    assert row['similarity'] > 0.99 and row['similarity'] == row['score']
  first = [row for row in rows.values() if row['similarity'] is None]
  assert len(first) == 6 and all(row['keep'] and row['nearest'] is None for row in first)
  exact = semdedup.run(of, SemDedupConfig('hard', keep=0.5), KMEANS, Stages())
  assert exact.num_kept == 150 and 0 < exact.parameters['eps'] < 1


@pytest.mark.parametrize('prefer', ['hard', 'easy'])
@pytest.mark.parametrize('balance', [0.0, 0.8])
def test_prototypes_keep_one_end_of_the_ranking(prefer, balance):
  of = of_rows(*cloud())
  keep = prototypes.run(of, PrototypesConfig(prefer, 0.3, balance), KMEANS, Stages())
  rows = list(rows_of(keep).values())
  assert keep.num_kept == 90
  kept = [r['distance'] for r in rows if r['keep']]
  gone = [r['distance'] for r in rows if not r['keep']]
  if balance:
    counts = np.bincount([r['cluster'] for r in rows if r['keep']], minlength=6)
    sizes = np.bincount([r['cluster'] for r in rows], minlength=6)
    assert np.all(counts >= np.minimum(sizes, 12))
  elif prefer == 'hard':
    assert min(kept) >= max(gone)
  else:
    assert max(kept) <= min(gone)
  assert {r['reason'] for r in rows if not r['keep']} == {prototypes.PRUNED[prefer]}


def test_d4_is_its_steps():
  ids, x = cloud()
  of = of_rows(ids, x)
  keep = d4.run(of, D4Config('hard', 0.4, kmeans=KMEANS), Stages())
  rows = rows_of(keep)
  assert keep.num_kept == 120
  assert keep.reasons() == {'prototypical': 105, 'semantic_duplicate': 75}
  first = semdedup.run(of, SemDedupConfig('hard', keep=0.75), KMEANS, Stages())
  left = of.only_kept(first)
  second = prototypes.run(left, PrototypesConfig('hard', 120 / 225), KMEANS, Stages())
  chained = rows_of(keep_list.then(first, second))
  assert {i: (r['keep'], r['reason']) for i, r in rows.items()} == {
    i: (r['keep'], r['reason']) for i, r in chained.items()
  }
  for row in rows.values():
    gone_early = row['reason'] == 'semantic_duplicate'
    assert (row['cluster'] is None) == (row['distance'] is None) == gone_early
  other = d4.run(of, D4Config('hard', 0.4, recluster=False, kmeans=KMEANS), Stages())
  assert other.num_kept == 120 and not other.table['keep'].equals(keep.table['keep'])


def test_order_does_not_show_and_unusable_rows_are_in_the_list():
  ids, x = cloud()
  x[7], x[9, 2] = 0, np.nan
  reason = np.full(len(ids), '', object)
  reason[20] = 'unreadable'
  one = d4.run(of_rows(ids, x, reason_N=reason), D4Config('hard', 0.4, kmeans=KMEANS), Stages())
  back = slice(None, None, -1)
  turned = of_rows(ids[back], x[back], reason_N=reason[back])
  other = d4.run(turned, D4Config('hard', 0.4, kmeans=KMEANS), Stages())
  assert one.table.equals(other.table) and one.header() == other.header()
  assert len(one) == 300 and one.num_kept == round(0.4 * 297)
  assert one.reasons()['bad_embedding'] == 2 and one.reasons()['unreadable'] == 1


def test_stages_are_done_once(tmp_path, monkeypatch):
  of, said = of_rows(*cloud()), []
  stages = Stages(tmp_path, echo=said.append)
  keep = d4.run(of, D4Config('hard', 0.4, kmeans=KMEANS), stages)
  assert not any('done before' in line for line in said)
  monkeypatch.setattr(semdedup, 'earlier', None)
  again = d4.run(of, D4Config('hard', 0.4, kmeans=KMEANS), stages)
  assert again.table.equals(keep.table)
  assert sum('done before' in line for line in said) == 3
  # Another share needs no other clustering than the second.
  said.clear()
  d4.run(of, D4Config('hard', 0.3, 0.6, kmeans=KMEANS), stages)
  assert sum('done before' in line for line in said) == 2


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(st.data())
def test_shares_are_those_of_the_best_choice_of_bounds(data):
  K = data.draw(st.integers(1, 5))
  size = np.array(data.draw(st.lists(st.integers(1, 40), min_size=K, max_size=K)))
  weight = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=K, max_size=K)))
  least = np.minimum(data.draw(st.integers(0, 3)), size)
  total = data.draw(st.integers(int(least.sum()), int(size.sum())))
  wanted = total * weight / weight.sum()
  found = dbp.allocation(wanted, size, least, total)
  assert abs(found.sum() - total) < 1e-6
  np.testing.assert_allclose(found, clusters.allocation(wanted, size, least, total), atol=1e-6)
  count = dbp.rounded(found, size, least, total)
  assert count.sum() == total and np.all((least <= count) & (count <= size))
  assert np.all(np.abs(count - found) < 1 + 1e-6)


@pytest.mark.parametrize('seed', range(4))
def test_shares_are_those_of_a_solver(seed):
  rng = np.random.default_rng(seed)
  size = rng.integers(5, 60, 30)
  least = np.minimum(rng.integers(0, 4, 30), size)
  total = int(size.sum() * 0.4)
  wanted = total * rng.dirichlet(np.ones(30))
  found = dbp.allocation(wanted, size, least, total)
  expected = clusters.allocation_by_solver(wanted, size, least, total)
  np.testing.assert_allclose(found, expected, atol=1e-3)


def test_dbp_keeps_more_of_the_complex_clusters():
  rng = np.random.default_rng(0)
  centre = unit(rng.standard_normal((4, 20)))
  spread = np.array([0.02, 0.05, 0.1, 0.2])
  label = np.repeat(np.arange(4), 100)
  x = centre[label] + spread[label][:, None] * rng.standard_normal((400, 20))
  of = of_rows([f'{n:03}' for n in range(400)], x)
  config = DbpConfig('hard', 0.5, temperature=0.5, neighbours=2)
  keep, found = dbp.run(of, config, KMeansConfig(4, 20, init='k-means++'), Stages())
  assert keep.num_kept == 200 and np.array_equal(np.sort(found.size_K), [100] * 4)
  order = np.argsort(found.complexity_K)
  assert np.all(np.diff(found.count_K[order]) > 0)
  rows = list(rows_of(keep).values())
  for k in range(4):
    kept = [r['distance'] for r in rows if r['cluster'] == k and r['keep']]
    gone = [r['distance'] for r in rows if r['cluster'] == k and not r['keep']]
    assert len(kept) == found.count_K[k] and min(kept) >= max(gone)
  # By hand: mean distances within.
  for k in range(4):
    distances = np.array([r['distance'] for r in rows if r['cluster'] == k])
    assert abs(found.intra_K[k] - distances.mean()) < 1e-6
  np.testing.assert_allclose(found.complexity_K, found.intra_K * found.inter_K)
  np.testing.assert_allclose(found.wanted_K.sum(), 200)


def test_a_balance_that_cannot_be_is_refused():
  size = np.array([3, 3, 3])
  with pytest.raises(ConfigError, match='2 rows are to be kept, but clusters must keep 3'):
    dbp.allocation(np.ones(3), size, np.ones(3, int), 2)


@pytest.mark.parametrize(
  ('make', 'wrong'),
  [
    (D4Config, {'prefer': 'hard', 'keep': 0.8}),
    (D4Config, {'prefer': 'hard', 'keep': 0.4, 'kmeans': KMeansConfig(spherical=False)}),
    (D4Config, {'prefer': 'far', 'keep': 0.4}),
    (PrototypesConfig, {'prefer': 'far', 'keep': 0.5}),
    (PrototypesConfig, {'prefer': 'hard', 'keep': 0.5, 'balance': 2.0}),
    (DbpConfig, {'prefer': 'hard', 'keep': 0.5, 'temperature': 0.0}),
    (DbpConfig, {'prefer': 'hard', 'keep': 0.5, 'neighbours': 0}),
  ],
)
def test_settings_are_checked(make, wrong):
  with pytest.raises(ConfigError):
    make(**wrong)


def test_a_list_of_other_examples_is_refused():
  ids, x = cloud()
  of = of_rows(ids, x)
  keep = semdedup.run(of, SemDedupConfig('hard', keep=0.5), KMEANS, Stages())
  with pytest.raises(ConfigError, match='of 300 other examples'):
    dataclasses.replace(of, digest_N=of.digest_N + np.uint64(1)).only_kept(keep)
  with pytest.raises(ConfigError, match='embed the corpus that it was made of'):
    of.at(np.arange(9)).only_kept(keep)
  with pytest.raises(ConfigError, match='without --after.*combine FIRST then SECOND'):
    of.only_kept(keep).only_kept(keep)


_D4 = """
import numpy as np
from jaxmm.curation import d4, keep_list
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.stages import Stages
from tests.curation.vectors_test import of_rows
with np.load(sys.argv[1]) as saved:
  of = of_rows(saved['ids'], saved['x'])
keep = d4.run(of, d4.D4Config('hard', 0.4, kmeans=KMeansConfig(6, 8)), Stages(sys.argv[2]))
if jax.process_index() == 0:
  keep_list.write(keep, sys.argv[3])
print(len(jax.devices()), keep.num_kept)
"""


@pytest.mark.slow
def test_processes_do_not_show(tmp_path):
  ids, x = cloud()
  np.savez(tmp_path / 'x.npz', ids=np.array(ids), x=x)
  lists = []
  for processes, devices in ((1, 1), (2, 2)):
    name = tmp_path / f'{processes}'
    arguments = (tmp_path / 'x.npz', f'{name}.work', f'{name}.parquet')
    said = run_processes(processes, _D4, devices, arguments)
    assert {line.strip() for line in said} == {f'{processes * devices} 120'}
    lists.append(keep_list.read(f'{name}.parquet'))
  assert lists[0].table.equals(lists[1].table) and lists[0].header() == lists[1].header()
  # Stages that one process left are those of several.
  said = run_processes(1, _D4, 1, (tmp_path / 'x.npz', tmp_path / '2.work', tmp_path / '3.parquet'))
  assert keep_list.read(tmp_path / '3.parquet').table.equals(lists[0].table)
