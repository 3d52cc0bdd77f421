"""Rank correlations and bins agree with scipy and with loops."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from jaxmm.config import ConfigError
from jaxmm.curation import length_confounding as confounding

PAIRS = st.lists(st.tuples(st.integers(0, 6), st.integers(1, 8)), min_size=1, max_size=40)


@settings(max_examples=60, deadline=None)
@given(pairs=PAIRS, bins=st.integers(1, 6), seed=st.integers(0, 9))
def test_places_within_bins_are_those_of_loops_in_any_order(pairs, bins, seed):
  score_N, length_N = np.array(pairs, float).T
  place_N = confounding.stratified(score_N, length_N, bins)
  shorter = [sum(m < n for m in length_N) for n in length_N]
  bin_N = [s * bins // len(pairs) for s in shorter]
  for score, b, place in zip(score_N, bin_N, place_N):
    here = [s for s, c in zip(score_N, bin_N) if c == b]
    rank = sum(s < score for s in here) + (here.count(score) + 1) / 2
    assert place == pytest.approx((rank - 0.5) / len(here))
  order = np.random.default_rng(seed).permutation(len(pairs))
  again = confounding.stratified(score_N[order], length_N[order], bins)
  np.testing.assert_array_equal(again, place_N[order])


@settings(max_examples=40, deadline=None)
@given(pairs=PAIRS)
def test_the_correlation_is_that_of_scipy(pairs):
  score_N, length_N = np.array(pairs, float).T
  found = confounding.report(score_N, length_N, 3).correlation
  if len(set(score_N)) == 1 or len(set(length_N)) == 1:
    assert np.isnan(found)
  else:
    assert found == pytest.approx(stats.spearmanr(score_N, np.log(length_N)).statistic)


def test_a_score_that_is_length_is_found_out_and_bins_take_it_away():
  rng = np.random.default_rng(0)
  length_N = np.exp(rng.normal(6, 1, 2000)).astype(int) + 1
  score_N = np.log(length_N) + rng.normal(0, 0.5, 2000)
  found = confounding.report(score_N, length_N)
  assert found.low < found.correlation < found.high and found.low > 0.8
  assert abs(found.stratified) < 0.15 and found.examples == 2000
  assert list(found.score_B) == sorted(found.score_B) and sum(found.examples_B) == 2000
  none = confounding.report(rng.normal(size=2000), length_N)
  assert none.low < 0 < none.high
  assert none.lines()[0].startswith('rank correlation of score and length: ')
  assert len(none.lines()) == 11


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
  rng, hits = np.random.default_rng(1), 0
  for _ in range(300):
    a, b = rng.normal(size=(2, 60))
    found = confounding.report(0.6 * a + 0.8 * b, stats.rankdata(a), 2)
    truth = 6 / np.pi * np.arcsin(0.6 / 2)  # Spearman's of a bivariate normal
    hits += found.low <= truth <= found.high
  assert 0.9 < hits / 300 < 0.99


def test_scores_that_are_not_there_are_left_out():
  found = confounding.report(np.array([1, np.nan, 2, 3.0]), np.array([1, 2, 3, 0]), 1)
  assert found.examples == 2 and found.correlation == 1
  place_N = confounding.stratified(np.array([np.nan, 5.0]), np.array([1, 1]), 4)
  assert np.isnan(place_N[0]) and place_N[1] == 0.5
  empty = confounding.report(np.array([]), np.array([]))
  assert empty.examples == 0 and np.isnan(empty.correlation) and empty.length_B == ()


def test_what_cannot_be_used_is_named():
  with pytest.raises(ConfigError, match=r'shapes \(2,\) and \(3,\)'):
    confounding.report(np.zeros(2), np.zeros(3))
  with pytest.raises(ConfigError, match='bins is 0, expected a whole number of 1 or more'):
    confounding.stratified(np.zeros(2), np.ones(2), 0)
  with pytest.raises(ConfigError, match='confidence is 1'):
    confounding.report(np.arange(5), np.arange(5), confidence=1)
