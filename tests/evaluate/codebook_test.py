"""Codebook statistics are those of the whole data, whatever the split, also beyond 2^24."""

import jax
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.evaluate.codebook import CodeCounts
from jaxmm.tokenizers.quantizer import code_counts


def test_counts_equal_a_loop_on_any_mesh():
  ids = np.random.default_rng(0).integers(0, 6, (16, 5)).astype(np.int32)
  valid = np.array([1] * 13 + [0] * 3, np.float32)
  expected = np.zeros(8, int)
  for row in ids[:13]:
    for i in row:
      expected[i] += 1
  count = jax.jit(code_counts, static_argnums=1)
  for devices in (1, 8):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    batch = sharding.global_batch(mesh, {'ids': ids, 'valid': valid})
    found = count(batch['ids'], 8, batch['valid'])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
  np.testing.assert_array_equal(CodeCounts.of(ids[:13], 8).count_K, expected)


def test_ids_that_are_no_codes_are_seen():
  ids = np.array([[0, -1, 3, 4]], np.int32)
  np.testing.assert_array_equal(code_counts(ids, 4), [1, 0, 0, 1])
  with pytest.raises(ValueError, match=r'ids -1..4, expected 0..3'):
    CodeCounts.of(ids, 4)


def test_counts_merge_beyond_what_float32_and_int32_hold():
  large = CodeCounts(np.array([2**33, 2**24, 0, 0], np.int64))
  merged = large.merge(np.array([1, 1, 0, 0], np.int32))
  assert merged.count_K.tolist() == [2**33 + 1, 2**24 + 1, 0, 0]
  assert merged.total == 2**33 + 2**24 + 2 and merged.used == 2
  assert merged.merge(CodeCounts.empty(4)).count_K.tolist() == merged.count_K.tolist()
  for wrong in (np.ones(4, np.float32), np.ones(3, np.int32)):
    with pytest.raises(ValueError, match='expected integers of shape'):
      large.merge(wrong)


def test_usage_and_perplexity():
  counts = CodeCounts(np.array([3, 3, 3, 0], np.int64))
  assert counts.usage == 0.75
  np.testing.assert_allclose(counts.perplexity, 3.0)
  np.testing.assert_allclose(counts.entropy_bits, np.log2(3))
  # Not the mean over batches: each of these alone has perplexity 1.
  parts = CodeCounts.of([0, 0], 4).merge(CodeCounts.of([1, 1], 4))
  np.testing.assert_allclose(parts.perplexity, 2.0)
  assert CodeCounts.empty(4).perplexity == 0 and CodeCounts.empty(4).entropy_bits == 0
