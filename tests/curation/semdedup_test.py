"""SemDeDup beside the obvious loop over pairs; planted copies are found; devices do not show."""

import hypothesis
import hypothesis.strategies as st
import jax
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.curation import semdedup
from jaxmm.curation.semdedup import SemDedupConfig
from tests.references import clusters


def unit(x):
  return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def clustered(sizes, d=8, seed=0):
  """(x, cluster, distance to the cluster's mean direction), shuffled."""
  rng = np.random.default_rng(seed)
  x = unit(rng.standard_normal((sum(sizes), d)))
  cluster = rng.permutation(np.repeat(np.arange(len(sizes)), sizes)).astype(np.int32)
  distance = rng.uniform(0, 1, len(x)).astype(np.float32)
  return x, cluster, distance


def check(x, cluster, distance, prefer, **kwargs):
  found = semdedup.earlier(x, cluster, distance, prefer=prefer, **kwargs)
  expected = clusters.semdedup(np.arange(len(x)), x, cluster, distance, prefer)
  for n in range(len(x)):
    similarity, of = expected[n]
    if of is None:
      assert found.similarity_N[n] == -np.inf and found.nearest_N[n] == -1
      continue
    assert abs(found.similarity_N[n] - similarity) < 1e-6
    if found.nearest_N[n] != of:  # as similar, but for rounding
      assert abs(float(x[n] @ x[found.nearest_N[n]]) - similarity) < 1e-6
  return found


@pytest.mark.parametrize('prefer', semdedup.ORDERS)
def test_equal_to_the_loop_over_pairs(prefer):
  check(*clustered([1, 2, 3, 64, 65, 130, 7]), prefer)


def test_a_cluster_of_many_tiles():
  check(*clustered([700, 1]), 'hard')


@pytest.mark.parametrize('batch', [64, 128, 256])
def test_clusters_larger_than_a_batch(monkeypatch, batch):
  monkeypatch.setattr(semdedup, 'BATCH', batch)
  check(*clustered([300, 129, 20, 1, 128, 2]), 'hard')


def test_equal_rows_of_a_cluster_larger_than_a_batch_have_the_first_as_nearest(monkeypatch):
  monkeypatch.setattr(semdedup, 'BATCH', 64)
  x = np.tile(unit(np.ones((1, 4))), (200, 1))
  cluster, distance = np.zeros(200, np.int32), np.zeros(200, np.float32)
  found = semdedup.earlier(x, cluster, distance, prefer='hard')
  assert found.nearest_N.tolist() == [-1] + [0] * 199


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.lists(st.integers(1, 300), max_size=5), st.integers(0, 7), st.booleans())
def test_every_row_meets_those_before_it_once(sizes, extra, few):
  """Over all batches, each pair of a cluster is in one product or, at most, in two."""
  end = np.cumsum(sizes + [extra + 1])
  start = end - (sizes + [extra + 1])
  limit = semdedup.BATCH
  try:
    semdedup.BATCH = 128 if few else limit
    met = np.zeros((end[-1], end[-1]), int)
    for parts, is_between in semdedup._batches(start.tolist(), end.tolist()):
      place = np.concatenate([np.arange(*part) for part in parts])
      assert len(place) <= semdedup.BATCH
      F = -(-len(place) // 64) * 64
      items = semdedup._items(parts, is_between, F)
      assert len(items) <= F // 2
      for row, stop, column, length in items:
        rows = np.arange(row, min(row + 64, stop))
        columns = np.arange(column, min(column + semdedup._lengths(F)[length], len(place)))
        pairs = columns[:, None] < rows
        met[np.ix_(place[columns], place[rows])] += pairs
    cluster = np.repeat(np.arange(len(end)), end - start)
    wanted = np.triu(cluster[:, None] == cluster, 1)
    assert np.array_equal(met > 0, wanted) and met.max(initial=0) <= 2
  finally:
    semdedup.BATCH = limit


def test_devices_do_not_show():
  x, cluster, distance = clustered([5, 90, 200, 31, 64, 77, 3, 150, 10])
  meshes = [sharding.make_mesh(devices=jax.devices()[:n]) for n in (1, 2, 8)]
  one, *others = (
    semdedup.earlier(x, cluster, distance, prefer='hard', mesh=mesh) for mesh in meshes
  )
  for other in others:
    np.testing.assert_array_equal(one.similarity_N, other.similarity_N)
    np.testing.assert_array_equal(one.nearest_N, other.nearest_N)


@pytest.mark.parametrize('streams', [2, 3, 6])
def test_batches_compared_side_by_side_on_one_cpu_do_not_show(monkeypatch, streams):
  """With far more batches than buffers, so that every buffer is used again."""
  of = clustered([90, 64, 3, 150, 10] * 8)
  eight = semdedup.earlier(*of, prefer='hard')
  monkeypatch.setattr(semdedup, 'BATCH', 192)
  monkeypatch.setattr(semdedup.os, 'cpu_count', lambda: streams - 1)
  mesh = sharding.make_mesh(devices=jax.devices()[:1])
  assert semdedup.streams_of(mesh.size) == streams
  one = semdedup.earlier(*of, prefer='hard', mesh=mesh)
  np.testing.assert_array_equal(one.similarity_N, eight.similarity_N)
  np.testing.assert_array_equal(one.nearest_N, eight.nearest_N)


@hypothesis.settings(max_examples=15, deadline=None)
@hypothesis.given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 99))
def test_the_first_of_a_cluster_and_only_that_has_nobody_before_it(sizes, seed):
  x, cluster, distance = clustered(sizes, seed=seed)
  found = check(x, cluster, distance, 'easy')
  assert (found.nearest_N < 0).sum() == len(sizes)
  has = found.nearest_N >= 0
  assert np.array_equal(cluster[has], cluster[found.nearest_N[has]])
  assert np.all(distance[found.nearest_N[has]] <= distance[has])


def test_a_chain_drops_its_links_as_the_paper_does():
  # a ~ b ~ c but not a ~ c: c is dropped because of b, though b itself is dropped.
  angle = np.array([0.0, 0.3, 0.6])
  x = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
  found = semdedup.earlier(x, np.zeros(3, np.int32), np.array([3, 2, 1], np.float32), prefer='hard')
  eps = 1 - float(np.cos(0.4))
  assert semdedup.kept(found.similarity_N, SemDedupConfig('hard', eps=eps)).tolist() == [
    True,
    False,
    False,
  ]


def test_of_equal_distances_the_least_id_comes_first():
  x = np.tile(unit(np.ones((1, 4))), (5, 1))
  found = semdedup.earlier(x, np.zeros(5, np.int32), np.full(5, 0.25, np.float32), prefer='hard')
  assert found.nearest_N.tolist() == [-1, 0, 0, 0, 0]
  assert (
    semdedup.kept(found.similarity_N, SemDedupConfig('hard', eps=0.01)).tolist()
    == [True] + [False] * 4
  )


def test_planted_copies_go_and_a_share_is_met_exactly():
  rng = np.random.default_rng(1)
  x = unit(rng.standard_normal((300, 32)))
  copies = unit(x[:90] + 0.01 * rng.standard_normal((90, 32)))
  both = np.concatenate([x, copies])
  cluster = np.concatenate([np.arange(300), np.arange(90)]).astype(np.int32) % 11
  cluster[300:] = cluster[:90]
  distance = rng.uniform(size=390).astype(np.float32)
  found = semdedup.earlier(both, cluster, distance, prefer='hard')
  dropped = ~semdedup.kept(found.similarity_N, SemDedupConfig('hard', eps=0.02))
  assert dropped.sum() == 90
  assert {min(n, found.nearest_N[n]) for n in np.flatnonzero(dropped)} == set(range(90))
  share = semdedup.kept(found.similarity_N, SemDedupConfig('hard', keep=0.5))
  assert share.sum() == 195
  eps = semdedup.eps_of(found.similarity_N, 0.5)
  assert np.array_equal(found.similarity_N <= np.float32(1 - eps), share)


@pytest.mark.parametrize(
  'wrong',
  [
    {'prefer': 'hard'},
    {'prefer': 'hard', 'eps': 0.1, 'keep': 0.5},
    {'prefer': 'hard', 'eps': 3.0},
    {'prefer': 'easy', 'keep': 0.0},
    {'prefer': 'x', 'eps': 0.1},
  ],
)
def test_settings_are_checked(wrong):
  with pytest.raises(ConfigError, match=r'eps|keep|prefer'):
    SemDedupConfig(**wrong)
