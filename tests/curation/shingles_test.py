"""Hashed shingles are the shingles: equal where and only where the strings are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError
from jaxmm.curation import shingles
from jaxmm.curation.shingles import ShingleConfig
from tests.references import near_duplicates

ODD = [
  '',
  ' \n',
  'a',
  'Ünï çödé İstanbul ßtraße 数字 Ⅷ ٣',
  'a b c d e f a b c d e',
  'x_y z-1 2.5',
  '\ud800 a',
]
text = st.text(st.sampled_from('abAB1_ .\nßİ数٣\ud800'), max_size=30)


def sets_of(texts, config):
  hash_S, start = shingles.shingle_sets(texts, config)
  assert start[0] == 0 and start[-1] == len(hash_S) and len(start) == len(texts) + 1
  return [set(hash_S[a:b].tolist()) for a, b in zip(start[:-1], start[1:])]


def check_like_strings(texts, config):
  found = sets_of(texts, config)
  expected = [near_duplicates.shingle_set(t, config.size, config.kind, config.lower) for t in texts]
  assert [len(s) for s in found] == [len(s) for s in expected]
  for i in range(len(texts)):
    for j in range(i):
      assert len(found[i] & found[j]) == len(expected[i] & expected[j])


@pytest.mark.parametrize('kind', shingles.KINDS)
@pytest.mark.parametrize('size', [1, 2, 5])
@pytest.mark.parametrize('lower', [True, False])
def test_as_many_in_common_as_the_strings_have(kind, size, lower):
  check_like_strings([*ODD, 'A B c', 'a b C d'], ShingleConfig(kind, size, lower))


@settings(deadline=None)
@given(st.lists(text, min_size=1, max_size=6), st.sampled_from(shingles.KINDS), st.integers(1, 4))
def test_any_texts(texts, kind, size):
  check_like_strings(texts, ShingleConfig(kind, size))


@pytest.mark.parametrize('kind', shingles.KINDS)
def test_batches_and_neighbours_do_not_show(kind, monkeypatch):
  rng = np.random.default_rng(0)
  texts = [' '.join(rng.choice(['ab', 'c', 'Dé', 'f1'], rng.integers(0, 40))) for _ in range(60)]
  config = ShingleConfig(kind, 3)
  alone = [sets_of([t], config)[0] for t in texts]
  for batch in (1, 50, 10**6):
    monkeypatch.setattr(shingles, '_BATCH', batch)
    assert sets_of(texts, config) == alone
    every = np.concatenate([h for h, _ in shingles.batches_of_shingles(texts, config)])
    assert set(every.tolist()) == set().union(*alone)


def test_hashes_are_the_same_on_every_machine():
  # Keep-lists of different machines and versions must agree; change this and say so.
  hash_S, _ = shingles.shingle_sets(['The quick brown fox', 'ж'], ShingleConfig(size=2))
  assert [f'{h:016x}' for h in hash_S.tolist()] == PINNED


PINNED = ['07688fa367c086c0', 'e7cd4a5018e023d5', 'f28813013846261a', '470da42a07fdda64']


def test_bits_are_spread():
  words = [f'w{i}' for i in range(20_000)]
  hash_S, _ = shingles.shingle_sets(words, ShingleConfig(size=1))
  assert len(set((hash_S >> np.uint64(32)).tolist())) > 20_000 - 5  # about 0.05 collisions expected
  bits = (hash_S[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)
  np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.02)


@pytest.mark.parametrize('given_, said', [({'kind': 'lines'}, 'kind'), ({'size': 0}, 'size')])
def test_what_is_no_shingle_is_refused(given_, said):
  with pytest.raises(ConfigError, match=f'shingles.{said} is'):
    ShingleConfig(**given_)
