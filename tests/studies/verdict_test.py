import dataclasses
import json
import math

import numpy as np
import pytest
import scipy.stats

from jaxmm.config import ConfigError
from jaxmm.studies import verdict
from jaxmm.studies.verdict import Claim, Criterion, judge

LOSS = Criterion('fewer bits', 'bits', 'crt', 'base', 'below', unit='bits')


def runs(**arms):
  """`{arm: {seed: {metric: value}}}` of one metric, seeds 0, 1, ..."""
  return {a: {s: {'bits': v} for s, v in enumerate(values)} for a, values in arms.items()}


def outcome(criterion, **arms):
  return judge(Claim('crt', 'It is better.', (criterion,)), runs(**arms))


@pytest.mark.parametrize('confidence', [0.8, 0.95, 0.99])
def test_the_t_interval_is_scipys_paired_one(confidence):
  rng = np.random.default_rng(1)
  a, b = rng.normal(size=7), rng.normal(1, 2, size=7)
  expected = scipy.stats.ttest_rel(a, b).confidence_interval(confidence)
  np.testing.assert_allclose(verdict.interval(a - b, 't', confidence), expected, rtol=1e-12)


@pytest.mark.parametrize('seeds', [5, 12])
def test_the_bootstrap_interval_is_scipys_percentile_one(seeds):
  values = np.random.default_rng(2).normal(size=seeds)
  expected = scipy.stats.bootstrap(
    (values,), np.mean, n_resamples=40_000, method='percentile', rng=np.random.default_rng(3)
  ).confidence_interval
  np.testing.assert_allclose(
    verdict.interval(values, 'bootstrap', 0.95), expected, atol=0.03 * values.std()
  )


def test_clear_wins_on_every_criterion_reproduce_and_one_clear_loss_does_not():
  better = {'crt': [9.0, 9.1, 8.9], 'base': [10.0, 10.2, 9.8]}
  assert outcome(LOSS, **better).outcome == verdict.REPRODUCED
  worse = {'crt': better['base'], 'base': better['crt']}
  assert outcome(LOSS, **worse).outcome == verdict.NOT_REPRODUCED
  opposite = Criterion('more bits', 'bits', 'crt', 'base', 'above')
  both = Claim('crt', 'Both.', (LOSS, opposite))
  result = judge(both, runs(**better))
  assert [f.outcome for f in result.findings] == ['holds', 'fails']
  assert result.outcome == verdict.NOT_REPRODUCED


def test_an_interval_that_holds_the_threshold_is_inconclusive():
  # Differences -1, -1, +0.5: the mean is on the claimed side, the interval is not.
  result = outcome(LOSS, crt=[9, 9, 10.5], base=[10, 10, 10])
  assert result.outcome == verdict.INCONCLUSIVE
  low, high = result.findings[0].low, result.findings[0].high
  assert low < 0 < high and result.findings[0].estimate < 0
  assert outcome(LOSS, crt=[10, 10, 10], base=[10, 10, 10]).outcome == verdict.INCONCLUSIVE


def test_pairing_matters():
  # Seeds differ by far more than the arms; only the pairs show the gain.
  base = [10.0, 20.0, 30.0]
  assert outcome(LOSS, crt=[9.0, 18.9, 29.1], base=base).outcome == verdict.REPRODUCED


def test_a_ratio_is_judged_against_its_threshold_by_the_geometric_mean():
  ratio = Criterion('perplexity', 'bits', 'crt', 'base', 'above', 0.9, 'ratio')
  result = outcome(ratio, crt=[95.0, 192.0, 285.0], base=[100.0, 200.0, 300.0])
  finding = result.findings[0]
  assert result.outcome == verdict.REPRODUCED
  np.testing.assert_allclose(finding.estimate, (0.95 * 0.96 * 0.95) ** (1 / 3))
  np.testing.assert_allclose(finding.observations, [0.95, 0.96, 0.95])
  logs = np.log(finding.observations)
  expected = scipy.stats.t.interval(0.95, 2, logs.mean(), scipy.stats.sem(logs))
  np.testing.assert_allclose([finding.low, finding.high], np.exp(expected), rtol=1e-12)
  assert outcome(ratio, crt=[50, 51, 50], base=[100, 100, 100]).outcome == verdict.NOT_REPRODUCED
  with pytest.raises(ConfigError, match='positive'):
    outcome(ratio, crt=[0, 1, 1], base=[1, 1, 1])


def test_two_seeds_decide_nothing_however_clear():
  result = outcome(LOSS, crt=[1.0, 1.0], base=[10.0, 10.0])
  assert result.outcome == verdict.INCONCLUSIVE
  assert result.findings[0].reason == '2 of at least 3 seeds'
  one = outcome(LOSS, crt=[1.0], base=[10.0])
  assert math.isnan(one.findings[0].low) and one.findings[0].estimate == -9
  assert 'nan' in one.text() and one.blocks()


def test_a_diverged_run_leaves_the_criterion_open_and_is_named():
  result = outcome(LOSS, crt=[1.0, math.nan, 1.0], base=[10.0, 10.0, 10.0])
  assert result.outcome == verdict.INCONCLUSIVE
  assert 'seeds [1]' in result.findings[0].reason
  assert json.loads(json.dumps(result.to_json(), allow_nan=False))['findings'][0]['low'] is None
  assert 'seeds [1]' in ''.join(result.blocks())


@pytest.mark.parametrize(
  'measurements, said',
  [
    (runs(base=[1, 2, 3]), "no measurements of arm 'crt'; there are base"),
    (runs(crt=[1, 2], base=[1, 2, 3]), 'same ones'),
    ({'crt': {0: {'bits': 1}}, 'base': {0: {'loss': 1}}}, "arm 'base', seed 0 has no 'bits'"),
  ],
)
def test_missing_measurements_are_named(measurements, said):
  with pytest.raises(ConfigError, match=said.replace('[', r'\[')):
    judge(Claim('crt', 'It is better.', (LOSS,)), measurements)


@pytest.mark.parametrize(
  'change, said',
  [
    ({'claimed': 'lower'}, "'below' or 'above'"),
    ({'confidence': 95}, r'\(0, 1\)'),
    ({'compare': 'ratio'}, 'above 0'),
    ({'test': 'z'}, "'t' or 'bootstrap'"),
  ],
)
def test_a_criterion_refuses_what_it_cannot_judge(change, said):
  fields = {'name': 'n', 'metric': 'm', 'arm': 'a', 'against': 'b', 'claimed': 'below'} | change
  with pytest.raises(ConfigError, match=said):
    Criterion(**fields)


def test_a_claim_needs_criteria_and_three_seeds():
  for none in ((), (dataclasses.replace(LOSS, is_reported=True),)):
    with pytest.raises(ConfigError, match='no criteria that are judged'):
      Claim('crt', 's', none)
  with pytest.raises(ConfigError, match='>= 3'):
    Claim('crt', 's', (LOSS,), min_seeds=2)


def test_text_json_and_page_hold_every_number():
  result = outcome(LOSS, crt=[9.25, 9.1, 8.9], base=[10.0, 10.2, 9.8])
  text = result.text()
  assert text.startswith('It is better.') and 'reproduced: 1 of 1 criteria hold' in text
  stored = result.to_json()
  assert stored['findings'][0]['arm_values'] == [9.25, 9.1, 8.9]
  assert stored['claim']['criteria'][0]['threshold'] == 0 and stored['outcome'] == 'reproduced'
  html = ''.join(result.blocks())
  assert 'Reproduced' in html and html.count('class="seed"') == 3


def test_a_condition_that_does_not_hold_leaves_the_claim_open():
  condition = Criterion(
    'the control is one',
    metric='mse',
    arm='control',
    against='crt',
    claimed='above',
    threshold=0.99,
    compare='ratio',
    test='mean',
    is_condition=True,
  )
  claim = Claim('crt', 'a claim', (condition,))
  crt = {seed: {'mse': 1.0} for seed in range(3)}
  degraded = {seed: {'mse': value} for seed, value in enumerate((0.97, 1.01, 1.02))}
  good = {seed: {'mse': 0.9} for seed in range(3)}
  assert judge(claim, {'crt': crt, 'control': degraded}).outcome == verdict.REPRODUCED
  assert judge(claim, {'crt': crt, 'control': good}).outcome == verdict.INCONCLUSIVE


def test_what_is_reported_is_shown_with_its_interval_and_decides_nothing():
  values = runs(crt=[9.0, 9.1, 8.9], base=[10.0, 10.2, 9.8], few=[5.0, 5.1, 4.9])
  reported = Criterion('than few', 'bits', 'crt', 'few', 'below', is_reported=True)
  condition = Criterion(
    'few is one', 'bits', 'few', 'crt', 'above', 0.99, 'ratio', 'mean', is_condition=True
  )
  shown = dataclasses.replace(condition, is_reported=True)
  # As judged criteria the first would fail, the second stay open.
  for judged, outcome_ in (
    (dataclasses.replace(reported, is_reported=False), verdict.NOT_REPRODUCED),
    (condition, verdict.INCONCLUSIVE),
  ):
    assert judge(Claim('crt', 's', (LOSS, judged)), values).outcome == outcome_
  claim = Claim('crt', 's', (LOSS, reported, shown))
  assert claim.judged_arms() == {'crt', 'base'}
  result = judge(claim, values)
  assert result.outcome == verdict.REPRODUCED
  assert [f.outcome for f in result.findings] == ['holds', 'reported', 'reported']
  assert result.findings[1].low <= 4 <= result.findings[1].high
  assert '1 of 1 criteria hold, 0 fail, 0 stay open (seeds 0, 1, 2); 2 more are reported, not' in (
    result.text()
  )
  assert result.text().count('reported, not judged\n') == 2
  html = ''.join(result.blocks())
  assert html.count('reported, not judged') == 3 and 'grey ones are not judged' in html
  assert html.count('var(--reported') == 4 and 'mark reported' not in html
  stored = json.loads(json.dumps(result.to_json(), allow_nan=False))
  assert stored['findings'][1]['outcome'] == 'reported'
  assert verdict.Verdict.from_json(stored).to_json() == stored
  # A diverged run of a reported arm decides nothing either, and is named.
  values['few'][1]['bits'] = math.nan
  result = judge(claim, values)
  assert result.outcome == verdict.REPRODUCED
  assert 'reported, not judged: not finite for seeds [1]' in result.text()
