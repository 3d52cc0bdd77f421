"""Signatures, banding and clusters beside the slow way."""

import itertools
import math

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import minhash, shingles
from jaxmm.curation.minhash import MinHashConfig
from jaxmm.curation.shingles import ShingleConfig
from tests.references import near_duplicates

WORDS = [f'w{i}' for i in range(400)]


def edited(words, changes, rng):
  words = list(words)
  for at in rng.choice(len(words), changes, replace=False):
    words[at] = rng.choice(WORDS)
  return words


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(0)
  out = []
  for _ in range(40):
    base = rng.choice(WORDS, rng.integers(60, 200))
    out.append(base)
    out += [edited(base, changes, rng) for changes in rng.integers(0, 12, rng.integers(0, 4))]
  out = [' '.join(words) for words in out]
  return [*out, '', 'two words', 'Two  words!', out[0]]


def test_a_signature_is_the_least_of_each_permutation(texts):
  config = MinHashConfig(permutations=16, seed=3)
  signature_NP, has_N = minhash.signatures(texts, config)
  factors, shifts = (p.tolist() for p in minhash._permutations(16, 3))
  assert all(f % 2 for f in factors)
  hash_S, start = shingles.shingle_sets(texts, config.shingles)
  for n in range(len(texts)):
    hashes = hash_S[start[n] : start[n + 1]].tolist()
    assert has_N[n] == bool(hashes)
    expected = near_duplicates.signature(hashes, factors, shifts) if hashes else [2**32 - 1] * 16
    assert signature_NP[n].tolist() == expected


def test_signatures_do_not_hang_on_blocks_or_neighbours(texts, monkeypatch):
  config = MinHashConfig()
  whole, has_N = minhash.signatures(texts, config)
  for block in (1, 100):
    monkeypatch.setattr(minhash, '_BLOCK', block)
    np.testing.assert_array_equal(minhash.signatures(texts, config)[0], whole)
  for n in (0, 5, len(texts) - 4):
    np.testing.assert_array_equal(minhash.signatures([texts[n]], config)[0], whole[n : n + 1])


def test_agreement_estimates_the_similarity(texts):
  config = MinHashConfig(permutations=1024)
  signature_NP, _ = minhash.signatures(texts, config)
  expected = near_duplicates.pairs(texts, 0.3, 5)
  pair_E2 = np.array(list(expected))
  found = minhash.agreement(signature_NP, pair_E2)
  # The standard error of 1,024 draws is at most 0.016.
  np.testing.assert_allclose(found, list(expected.values()), atol=0.065)
  assert abs(np.mean(found - list(expected.values()))) < 0.01


def test_the_exact_similarity_is_that_of_the_strings(texts):
  pair_E2 = np.array(list(itertools.combinations(range(0, len(texts), 3), 2)))
  sets = [near_duplicates.shingle_set(t, 5) for t in texts]
  expected = [near_duplicates.jaccard(sets[i], sets[j]) for i, j in pair_E2]
  np.testing.assert_array_equal(minhash.jaccard(texts, pair_E2, ShingleConfig()), expected)


@pytest.mark.parametrize('bands, rows', [(16, 8), (25, 5), (128, 1)])
def test_candidates_agree_on_a_band(texts, bands, rows):
  signature_NP, has_N = minhash.signatures(texts, MinHashConfig())
  pairs = {tuple(p) for p in minhash.candidate_pairs(signature_NP, has_N, bands, rows).tolist()}
  cut = signature_NP[:, : bands * rows].reshape(len(texts), bands, rows)
  first = {}  # of documents with the same signature, one stands for all
  kind = [first.setdefault(c.tobytes(), n) for n, c in enumerate(cut)]
  expected = {(kind[n], n) for n in range(len(texts)) if kind[n] != n and has_N[n]}
  for i, j in itertools.combinations(
    [n for n in range(len(texts)) if kind[n] == n and has_N[n]], 2
  ):
    if np.any(np.all(cut[i] == cut[j], axis=1)):
      expected.add((i, j))
  assert pairs == expected and expected


def test_duplicates_are_those_of_all_pairs(texts):
  config = MinHashConfig(threshold=0.5, permutations=256, recall=0.999)
  found = minhash.duplicates(texts, *minhash.signatures(texts, config), config)
  expected = near_duplicates.pairs(texts, 0.5, 5)
  clusters = near_duplicates.clusters(list(expected), len(texts))
  assert found.cluster_N.tolist() == clusters
  for (i, j), similarity in zip(found.pair_E2.tolist(), found.similarity_E):
    assert similarity == expected[i, j]
  assert len(found.pair_E2) > 50
  # Nothing without words is anybody's duplicate.
  assert clusters[texts.index('')] == texts.index('')


def test_a_thousand_copies_are_a_thousand_pairs():
  texts = ['one and the same text again'] * 1000 + ['another text than the thousand there']
  config = MinHashConfig()
  found = minhash.duplicates(texts, *minhash.signatures(texts, config), config)
  assert len(found.pair_E2) == 999 and set(found.cluster_N.tolist()) == {0, 1000}


def test_of_many_different_ones_in_a_bucket_each_meets_the_next(monkeypatch):
  monkeypatch.setattr(minhash, '_NEAR', 3)
  key_M = np.array([5] * 10 + [7] * 2, np.uint64)
  pairs = minhash._pairs_of_groups(np.arange(12), key_M, 100)
  expected = {i * 100 + j for i in range(10) for j in range(i + 1, min(i + 4, 10))} | {
    10 * 100 + 11
  }
  assert set(pairs.tolist()) == expected and len(pairs) == len(expected)


def test_the_layout_finds_pairs_at_the_threshold():
  for threshold in (0.5, 0.7, 0.9):
    bands, rows = MinHashConfig(threshold=threshold).layout
    assert bands * rows <= 128
    assert minhash.candidate_probability(threshold, bands, rows) >= 0.95
    fewer = 128 // (rows + 1)
    assert minhash.candidate_probability(threshold, fewer, rows + 1) < 0.95
  assert math.isclose(minhash.candidate_probability(0.7, 16, 8), 1 - (1 - 0.7**8) ** 16)
  assert minhash.candidate_probability(1.0, 1, 128) == 1
  assert MinHashConfig(bands=16).layout == (16, 8)


@pytest.mark.parametrize(
  'settings, said',
  [
    ({'threshold': 0}, 'threshold is 0'),
    ({'permutations': 0}, 'permutations is 0'),
    ({'bands': 200}, 'bands is 200'),
    ({'recall': 1.0}, 'recall is 1.0'),
    ({'check': 'maybe'}, "check is 'maybe'"),
  ],
)
def test_settings_that_cannot_be_are_refused(settings, said):
  with pytest.raises(ConfigError, match=said):
    MinHashConfig(**settings)
  with pytest.raises(ConfigError, match='no banding of 4 permutations'):
    _ = MinHashConfig(threshold=0.1, permutations=4).layout
