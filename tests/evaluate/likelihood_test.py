"""Units of likelihood, and curves that add up to the total."""

import math

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core.losses import position_sums
from jaxmm.evaluate import likelihood
from jaxmm.evaluate.likelihood import PositionCurve


def test_a_uniform_guess_costs_what_it_must():
  # 16 tokens of a codebook of 256 are 16 bytes.
  nats = 10 * 16 * math.log(256)
  np.testing.assert_allclose(likelihood.bits_per_image(nats, 10), 128)
  np.testing.assert_allclose(likelihood.bits_per_dim(nats, 10 * 64), 2)
  np.testing.assert_allclose(likelihood.bits_per_byte(nats, 10 * 16), 8)
  with pytest.raises(ConfigError, match='over 0 images: nothing was counted'):
    likelihood.bits_per_image(0.0, 0)


def test_curves_equal_loops_and_do_not_depend_on_the_split():
  rng = np.random.default_rng(0)
  nll = rng.exponential(size=(7, 4)).astype(np.float32)
  weight = (rng.random((7, 4)) < 0.7).astype(np.float32)
  weight[:, 0] = 1
  valid = np.array([1, 1, 1, 1, 1, 0, 1], np.float32)
  nll[5] = np.inf  # of a row that does not count
  used = weight * valid[:, None] > 0
  expected = [np.mean([nll[b, l] for b in range(7) if used[b, l]]) for l in range(4)]
  whole = PositionCurve.of(*position_sums(nll, weight, valid))
  np.testing.assert_allclose(whole.nats(), expected, rtol=1e-6)
  np.testing.assert_allclose(whole.mean_nats(), nll[used].mean(), rtol=1e-6)
  parts = [
    PositionCurve.of(*position_sums(nll[i], weight[i], valid[i]))
    for i in (slice(0, 3), slice(3, 7))
  ]
  merged = parts[0].merge(parts[1])
  np.testing.assert_allclose(merged.nats(), whole.nats(), rtol=1e-6)
  np.testing.assert_array_equal(merged.count_L, used.sum(0))
  np.testing.assert_allclose(merged.bits_per_example(), sum(expected) / math.log(2), rtol=1e-6)
  np.testing.assert_allclose(merged.perplexity(), math.exp(nll[used].mean()), rtol=1e-6)


def test_sums_do_not_stop_growing():
  curve = PositionCurve.of([2.0**24], [2.0**24])
  for _ in range(3):
    curve = curve.merge(PositionCurve.of(np.ones(1, np.float32), np.ones(1, np.float32)))
  assert curve.count_L[0] == 2**24 + 3 and curve.mean_nats() == 1


def test_a_position_that_nobody_has_is_not_free():
  curve = PositionCurve.of([1.0, 0.0], [1.0, 0.0])
  assert np.isnan(curve.nats()[1])
  with pytest.raises(ValueError, match='position 1'):
    curve.bits_per_example()
  with pytest.raises(ValueError, match='expected one shape'):
    PositionCurve.of([1.0], [1.0, 2.0])
