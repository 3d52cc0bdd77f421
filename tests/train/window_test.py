"""Sums of many steps, what a log line shows of them, and that a checkpoint carries them exactly."""

import json

import numpy as np
import pytest

from jaxmm.tokenizers import quantizer
from jaxmm.train import window
from jaxmm.train.window import Window


def test_sums_are_added_in_float64_and_shown_as_quotients():
  tenth = np.float32(0.1)
  totals = {}
  for _ in range(1000):
    totals = window.added(totals, {'loss': (tenth, 1), 'curve': (np.array([1.0, 0]), [2, 0])})
  shown = window.shown(totals | {'nothing': (np.zeros(()), np.zeros(()))}, {})
  assert shown == {'curve': [0.5, None], 'loss': pytest.approx(float(tenth)), 'nothing': None}


def test_a_summary_sees_the_sum_over_all_steps():
  totals = {}
  for counts in ([1.0, 0, 0, 0], [0, 1.0, 0, 0]):
    totals = window.added(totals, {'code_counts': (np.array(counts, np.float32), np.sum(counts))})
  shown = window.shown(totals, {'code_counts': quantizer.code_use})
  # The mean of the perplexities of two steps would be 1.
  assert shown == {'code_perplexity': pytest.approx(2.0), 'code_usage': 0.5}
  nothing = window.shown({'x': (np.zeros(4), np.zeros(()))}, {'x': quantizer.code_use})
  assert nothing == {'code_perplexity': None, 'code_usage': None}
  with pytest.raises(ValueError, match="summary of 'code_counts' uses names .*: loss"):
    totals |= {'alpha': (np.ones(()), np.ones(()))}
    window.shown(totals, {n: lambda *_: {'loss': 1.0} for n in ('alpha', 'code_counts')})


def test_a_window_survives_the_checkpoint_bit_for_bit():
  whole, saved = Window(), Window()
  rng = np.random.default_rng(0)
  for step in range(4):
    sums = {'loss': (rng.normal(), 3.0), 'counts': (rng.integers(0, 9, 5), 7)}
    for w in (whole, saved):
      w.add(sums, ['record 3'] if step % 2 else ['record 1', 'record 3'])
    saved = Window(json.loads(json.dumps(saved.saved())))
  assert whole.unreadable == saved.unreadable == ['record 1', 'record 3']
  for name, pair in whole.totals.items():
    for a, b in zip(pair, saved.totals[name], strict=True):
      np.testing.assert_array_equal(a, b)
