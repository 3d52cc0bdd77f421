"""SCIP prunes as Algorithm 1 says, and the shift of damaged files is measured pair by pair."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list, length_confounding, scip
from jaxmm.curation.scip import ScipConfig
from tests.references import scip as reference

FILES = st.dictionaries(
  st.text('abc', min_size=1, max_size=4),
  st.tuples(st.integers(0, 4), st.sampled_from([0.0, 0.125, 0.25, 0.5, 0.75])),
  min_size=1,
  max_size=30,
)
SHARES = st.sampled_from(['0', '0.07', '0.2', '0.3', '0.5', '0.8', '1'])


def arrays(files):
  cluster_N, distance_N = zip(*files.values())
  return list(files), np.array(cluster_N), np.array(distance_N, np.float32)


@settings(max_examples=80, deadline=None)
@given(files=FILES, prune=SHARES, alpha=SHARES, hard=st.booleans(), seed=st.integers(0, 9))
def test_the_pruned_are_those_of_the_algorithm_in_any_order(files, prune, alpha, hard, seed):
  order = np.random.default_rng(seed).permutation(len(files))
  shuffled = {list(files)[i]: files[list(files)[i]] for i in order}
  config = ScipConfig('hard' if hard else 'easy', prune_fraction=float(prune), alpha=float(alpha))
  found = dict(zip(shuffled, scip.reasons(*arrays(shuffled), config)))
  by_cluster, by_distance = reference.pruned(files, prune, alpha, hard)
  names = (scip.LARGE, scip.NEAR) if hard else (scip.SMALL, scip.FAR)
  assert {n for n, r in found.items() if r == names[0]} == by_cluster
  assert {n for n, r in found.items() if r == names[1]} == by_distance
  assert set(found.values()) <= {'', *names}


def test_alpha_one_looks_at_clusters_alone_and_zero_at_distances_alone():
  files = {'a': (0, 0.1), 'b': (0, 0.9), 'c': (0, 0.2), 'd': (1, 0.05), 'e': (1, 0.06)}
  kept = lambda alpha, direction='easy': [
    n for n, r in zip(files, scip.reasons(*arrays(files), ScipConfig(
      direction, prune_fraction=0.4, alpha=alpha))) if not r
  ]  # fmt: skip
  assert kept(1) == ['a', 'b', 'c']
  assert kept(0) == ['a', 'd', 'e']
  assert kept(0.5) == ['a', 'c', 'd']  # e is the farther one of the small cluster, then b
  assert kept(1, 'hard') == ['b', 'd', 'e'] and kept(0, 'hard') == ['a', 'b', 'c']


def test_keeping_a_share_is_pruning_the_rest():
  files = {f'{i:03}': (i % 3, i / 100) for i in range(100)}
  for keep, prune in ((0.8, 0.2), (0.93, 0.07), (1, 0), (0, 1)):
    one = scip.reasons(*arrays(files), ScipConfig('easy', keep_fraction=keep))
    two = scip.reasons(*arrays(files), ScipConfig('easy', prune_fraction=prune))
    assert (one == two).all() and (one != '').sum() == round(prune * 100)


@pytest.mark.parametrize(
  'wrong, message',
  [
    (dict(direction='up', keep_fraction=1), "direction is 'up', expected 'easy'"),
    (dict(direction='easy'), 'exactly one of keep_fraction and prune_fraction .* got None'),
    (dict(direction='easy', keep_fraction=0.5, prune_fraction=0.5), 'exactly one of'),
    (dict(direction='easy', prune_fraction=1.2), r'prune_fraction is 1.2, expected in \[0, 1\]'),
    (dict(direction='easy', prune_fraction=0.2, alpha=-1), 'alpha is -1'),
    (dict(direction='easy', prune_fraction=0.2, alpha=float('nan')), 'alpha is nan'),
    (dict(direction='easy', prune_fraction=0.2, length_bins=-1), 'length_bins is -1'),
  ],
)
def test_settings_that_cannot_be_used_are_named(wrong, message):
  with pytest.raises(ConfigError, match=message):
    ScipConfig(**wrong)


CONFIG = ScipConfig('easy', prune_fraction=0.5)


@pytest.mark.parametrize(
  'cluster, distance, message',
  [
    ([0, -1], [0.1, 0.2], "1 examples have no cluster or no finite distance, the first 'b'"),
    ([0, 1], [np.nan, np.inf], "2 examples have .* the first 'a' .cluster 0, distance nan."),
    ([0.0, 1.0], [0.1, 0.2], 'clusters are float64, expected whole numbers'),
    ([0], [0.1, 0.2], '2 ids, 1 clusters and 2 distances'),
  ],
)
def test_vectors_that_cannot_be_used_are_named(cluster, distance, message):
  with pytest.raises(ConfigError, match=message):
    scip.reasons(['a', 'b'], np.array(cluster), np.array(distance), CONFIG)


def test_without_examples_nothing_is_pruned():
  assert scip.reasons([], np.array([]), np.array([]), CONFIG).tolist() == []


def test_the_list_has_every_example_and_its_columns():
  ids = ['e', 'd', 'c', 'b', 'a', 'x']
  cluster_N = np.array([0, 0, 0, 1, 1, -1], np.int32)
  distance_N = np.array([0.1, 0.3, 0.2, 0.5, 0.4, np.nan], np.float32)
  keep = scip.judged(
    ids, np.arange(6), cluster_N, distance_N, ScipConfig('easy', prune_fraction=0.4, alpha=0.5),
    other_reason_N=['', '', '', '', '', 'empty'], parameters={'clusters': 2},
  )  # fmt: skip
  rows = {r['id']: r for r in keep.table.to_pylist()}
  assert {i: r['reason'] for i, r in rows.items()} == {
    'a': scip.FAR, 'b': scip.SMALL, 'c': '', 'd': '', 'e': '', 'x': keep_list.EMPTY,
  }  # fmt: skip
  assert [rows[i]['cluster_size'] for i in 'abcdex'] == [2, 2, 3, 3, 3, None]
  assert [rows[i]['cluster'] for i in 'abcdex'] == [1, 1, 0, 0, 0, None]
  assert rows['a']['distance'] == rows['a']['score'] == np.float32(0.4)
  assert rows['x']['distance'] is rows['x']['score'] is None
  assert keep.parameters['clusters'] == 2 and keep.parameters['alpha'] == 0.5


def test_with_bins_of_length_the_long_are_not_all_pruned():
  rng = np.random.default_rng(0)
  length_N = rng.integers(1, 1000, 400)
  distance_N = length_N / 1000 + rng.uniform(0, 0.1, 400)
  ids, cluster_N = [f'{i:03}' for i in range(400)], np.zeros(400, int)
  common = dict(prune_fraction=0.2, alpha=0)
  plain = scip.reasons(ids, cluster_N, distance_N, ScipConfig('easy', **common))
  assert length_N[plain != ''].min() > 700
  config = ScipConfig('easy', **common, length_bins=10)
  binned = scip.reasons(ids, cluster_N, distance_N, config, length_N)
  bin_N = length_confounding.length_bins(length_N, 10)
  per_bin = [((binned != '') & (bin_N == b)).sum() for b in range(10)]
  assert sum(per_bin) == 80 and set(per_bin) <= {7, 8, 9}
  with pytest.raises(ConfigError, match='length_bins is 10, but no lengths are given'):
    scip.reasons(ids, cluster_N, distance_N, config)


def test_a_change_is_the_paired_interval():
  from scipy import stats

  rng = np.random.default_rng(1)
  before = rng.normal(5, 3, 30)
  after = before + rng.normal(0.5, 0.4, 30)
  found = scip.change(before, after, 0.9)
  expected = stats.ttest_rel(after, before).confidence_interval(0.9)
  np.testing.assert_allclose([found.low, found.high], [expected.low, expected.high], rtol=1e-12)
  assert found.mean == pytest.approx(found.after - found.before) and found.pairs == 30
  assert np.isnan(scip.change([1.0], [2.0]).low) and scip.change([1.0], [2.0]).mean == 1
  assert np.isnan(scip.change([], []).mean) and scip.change([], []).pairs == 0
  with pytest.raises(ConfigError, match='pairs have the shapes'):
    scip.change([1.0], [1.0, 2.0])


def test_the_shift_of_planted_damage_is_found():
  rng = np.random.default_rng(2)
  centroid_KD = np.eye(3)
  x_ND = centroid_KD[[0] * 60 + [1] * 30 + [2] * 10] + rng.normal(0, 0.05, (100, 3))
  same = scip.shift_of_embeddings(x_ND, x_ND, centroid_KD)
  assert same.moved == same.cluster_size.mean == same.distance.mean == 0
  damaged_ND = x_ND.copy()
  damaged_ND[:50] = centroid_KD[2] + rng.normal(0, 0.3, (50, 3))  # into the small cluster
  found = scip.shift_of_embeddings(x_ND, damaged_ND, centroid_KD)
  assert 0.4 < found.moved <= 0.5
  assert found.cluster_size.high < 0 < found.distance.low
  assert found.cluster_size.before == np.mean([60] * 60 + [30] * 30 + [10] * 10)
  given_sizes = scip.shift_of_embeddings(x_ND, damaged_ND, centroid_KD, size_K=np.full(3, 7))
  assert given_sizes.cluster_size.mean == 0 and given_sizes.distance == found.distance


def test_a_cluster_that_holds_no_original_has_size_zero():
  found = scip.shift(np.array([0, 0]), np.zeros(2), np.array([0, 5]), np.ones(2))
  assert found.cluster_size.after == 1.0 and found.moved == 0.5


def test_the_nearest_centroid_is_that_of_loops():
  rng = np.random.default_rng(3)
  x_ND, centroid_KD = rng.normal(size=(50, 4)), rng.normal(size=(5, 4))
  cluster_N, distance_N = scip.nearest_centroid(x_ND, centroid_KD)
  for x, cluster, distance in zip(x_ND, cluster_N, distance_N):
    of = [1 - x @ c / np.linalg.norm(x) / np.linalg.norm(c) for c in centroid_KD]
    assert cluster == int(np.argmin(of)) and distance == pytest.approx(min(of), abs=1e-6)
  x_ND[7] = 0
  with pytest.raises(ConfigError, match='embedding 7 is zero or not finite'):
    scip.nearest_centroid(x_ND, centroid_KD)
