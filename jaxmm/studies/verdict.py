"""A claim as data, and what the measurements say about it.

A criterion compares one metric of two arms, seed by seed. The paired differences (or ratios) give
an interval; the interval against the threshold gives the criterion's outcome:

- *holds*: the interval lies wholly on the claimed side of the threshold;
- *fails*: it lies wholly on the other side;
- *open*: it touches or holds the threshold, a measurement is not finite, or seeds are too few.

A criterion that is a condition (a control that must be one) never fails: it holds or is open. One
that is reported has its numbers and its interval shown, but is not judged.

The claim is **reproduced** if every judged criterion holds, **not reproduced** if any fails, and
otherwise **inconclusive**. That all criteria must hold needs no correction for their number (the
chance that all hold by accident is at most that of one); that one failure is enough does not
correct for it.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.report import figures, page
from jaxmm.report.markup import Html, number_text
from jaxmm.studies.stages import text_table, write_json

REPRODUCED, NOT_REPRODUCED, INCONCLUSIVE = 'reproduced', 'not reproduced', 'inconclusive'
TONES = {REPRODUCED: 'holds', NOT_REPRODUCED: 'fails', INCONCLUSIVE: 'open'}
Echo = Callable[[str], None]
# arm -> seed -> metric -> value
Measurements = Mapping[str, Mapping[int, Mapping[str, float]]]


@dataclasses.dataclass(frozen=True)
class Criterion:
  """One thing that the claim asserts; written down before the first full run.

  Attributes:
    name: the criterion in words.
    metric: which number of each run.
    arm, against: the two arms; observations are `arm - against` or `arm / against` a seed.
    claimed: 'below' or 'above': where the claim sees the observation, relative to `threshold`.
    threshold: in units of the metric, or of the ratio.
    compare: 'difference', or 'ratio' for positive metrics (the interval is taken of its logarithm).
    test: 't', Student's interval of the mean; 'bootstrap', percentiles of the resampled mean. With
      few seeds the second is too narrow; it is a cross-check for ten seeds or more. 'mean' looks at
      the mean alone, for conditions.
    confidence: two-sided level of the interval.
    unit: shown beside the numbers.
    is_condition: not asserted by the claim, but what makes the comparison mean anything (a control
      that is one); where it does not hold it is open, so that nothing is decided.
    is_reported: shown beside the others, but not judged; does not move the verdict.
  """

  name: str
  metric: str
  arm: str
  against: str
  claimed: Literal['below', 'above']
  threshold: float = 0.0
  compare: Literal['difference', 'ratio'] = 'difference'
  test: Literal['t', 'bootstrap', 'mean'] = 't'
  confidence: float = 0.95
  unit: str = ''
  is_condition: bool = False
  is_reported: bool = False

  def __post_init__(self):
    for field, allowed in (
      ('claimed', ('below', 'above')),
      ('compare', ('difference', 'ratio')),
      ('test', ('t', 'bootstrap', 'mean')),
    ):
      if getattr(self, field) not in allowed:
        raise ConfigError(
          f'criterion {self.name!r}: {field} is {getattr(self, field)!r}, expected '
          + ' or '.join(map(repr, allowed))
        )
    if not 0 < self.confidence < 1:
      raise ConfigError(
        f'criterion {self.name!r}: confidence is {self.confidence}, expected in (0, 1)'
      )
    if self.compare == 'ratio' and self.threshold <= 0:
      raise ConfigError(
        f'criterion {self.name!r}: threshold of a ratio is {self.threshold}, expected above 0'
      )


@dataclasses.dataclass(frozen=True)
class Claim:
  """A paper's claim in testable form.

  Attributes:
    paper: its id.
    sentence: the claim in words.
    criteria: all that are not only reported must hold.
    min_seeds: with fewer paired seeds nothing is decided; at least 3.
  """

  paper: str
  sentence: str
  criteria: tuple[Criterion, ...]
  min_seeds: int = 3

  def __post_init__(self):
    if all(c.is_reported for c in self.criteria):
      raise ConfigError(f'claim of {self.paper!r} has no criteria that are judged')
    if self.min_seeds < 3:
      raise ConfigError(f'claim of {self.paper!r}: min_seeds is {self.min_seeds}, expected >= 3')

  def check(self, arms: Sequence[str], scale: float) -> None:
    """That there can be a verdict, before anything is trained.

    Raises:
      ConfigError: a criterion names an arm that there will not be, or `scale`, what all numbers of
        steps are multiplied by, is no positive number.
    """
    if not (scale > 0 and math.isfinite(scale)):
      raise ConfigError(f'scale is {scale}, expected a positive number')
    for criterion in self.criteria:
      for arm in (criterion.arm, criterion.against):
        if arm not in arms:
          where = f'the claim, for criterion {criterion.name!r},'
          raise configs.unknown_key(arm, list(arms), where)

  def judged_arms(self) -> set[str]:
    """The arms on which the verdict rests."""
    judged = [c for c in self.criteria if not c.is_reported]
    return {arm for c in judged for arm in (c.arm, c.against)}


@dataclasses.dataclass(frozen=True)
class Finding:
  """What the measurements say about one criterion.

  Attributes:
    criterion: which.
    outcome: 'holds', 'fails' or 'open'; 'reported' where it is not judged.
    estimate, low, high: mean observation (of ratios: the geometric mean) and its interval; NaN
      where there is none.
    seeds, arm_values, against_values, observations: a number a seed, in the same order.
    reason: why nothing could be decided, if not for the interval.
  """

  criterion: Criterion
  outcome: str
  estimate: float
  low: float
  high: float
  seeds: tuple[int, ...]
  arm_values: tuple[float, ...]
  against_values: tuple[float, ...]
  observations: tuple[float, ...]
  reason: str = ''


@dataclasses.dataclass(frozen=True)
class Verdict:
  """The outcome of a claim and all that it rests on."""

  claim: Claim
  outcome: str
  findings: tuple[Finding, ...]

  def sentence(self) -> str:
    """One sentence: how many criteria hold, fail, are open."""
    count = {o: sum(f.outcome == o for f in self.findings) for o in ('holds', 'fails', 'open')}
    seeds = ', '.join(str(s) for s in self.findings[0].seeds)
    reported = len(self.findings) - sum(count.values())
    more = f'; {reported} more {"is" if reported == 1 else "are"} reported, not judged'
    return (
      f'{count["holds"]} of {sum(count.values())} criteria hold, {count["fails"]} fail, '
      f'{count["open"]} stay open (seeds {seeds}){more if reported else ""}.'
    )

  def to_json(self) -> dict[str, Any]:
    """All numbers, for `json.dump`; what is not finite becomes null."""
    return _finite_json(dataclasses.asdict(self)) | {'sentence': self.sentence()}

  @classmethod
  def from_json(cls, value: Mapping[str, Any]) -> Verdict:
    """What `to_json` gave."""
    claim = dict(value['claim'])
    claim['criteria'] = tuple(Criterion(**c) for c in claim['criteria'])
    return cls(Claim(**claim), value['outcome'], tuple(map(_finding_of, value['findings'])))

  def rows(self) -> tuple[list[str], list[list[Any]]]:
    """Column names and rows of the table: a row a criterion."""
    return _rows(self.findings)

  def text(self) -> str:
    """The verdict for a terminal."""
    head, rows = self.rows()
    return f'{self.claim.sentence}\n\n{text_table(head, rows)}\n\n{self.outcome}: {self.sentence()}'

  def blocks(self) -> list[Html]:
    """For a page: the verdict in a box, the table, the intervals drawn."""
    head, rows = self.rows()
    shown = [
      row if f.criterion.is_reported else [*row[:-1], page.mark(row[-1], f.outcome)]
      for row, f in zip(rows, self.findings, strict=True)
    ]
    box = page.verdict_box(
      self.outcome.capitalize(), TONES[self.outcome], self.claim.sentence, self.sentence()
    )
    chart = figures.interval_chart([_interval(f) for f in self.findings])
    caption = (
      'Dots are single seeds, the line is the interval of their mean; the shaded side is the '
      'claimed one, the dashed line its threshold.'
    )
    look_for = 'every line lies wholly on the shaded side'
    if any(f.criterion.is_reported for f in self.findings):
      look_for = 'every coloured line lies wholly on the shaded side; grey ones are not judged'
    return [box, page.table(head, shown), page.figure(chart, caption, look_for=look_for)]


def judge(claim: Claim, measurements: Measurements) -> Verdict:
  """Applies the rule above.

  Raises:
    ConfigError: an arm, seed or metric is missing, the arms have different seeds, or a ratio is
      asked of a number that is not positive.
  """
  findings = tuple(_finding(c, measurements, claim.min_seeds) for c in claim.criteria)
  outcomes = {f.outcome for f in findings if not f.criterion.is_reported}
  if outcomes == {'holds'}:
    return Verdict(claim, REPRODUCED, findings)
  return Verdict(claim, NOT_REPRODUCED if 'fails' in outcomes else INCONCLUSIVE, findings)


def concluded(
  claim: Claim, measured: Measurements, scale: float, directory: pathlib.Path, echo: Echo
) -> list[Html]:
  """Says the verdict and writes `verdict.json`; its blocks for a page.

  Too few seeds, or runs that were scaled down, decide nothing: then that is said, and nothing else.
  """
  num_seeds = len(next(iter(measured.values())))
  if num_seeds < claim.min_seeds or scale < 1:
    echo(
      f'\nno verdict: {num_seeds} seeds at scale {scale}; the claim needs {claim.min_seeds} at '
      'scale 1'
    )
    return []
  verdict = judge(claim, measured)
  echo('\n' + verdict.text())
  write_json(directory / 'verdict.json', verdict.to_json())
  return verdict.blocks()


def _finding(criterion: Criterion, measurements: Measurements, min_seeds: int) -> Finding:
  seeds, first, second = _pairs(criterion, measurements)
  values = (seeds, tuple(first.tolist()), tuple(second.tolist()))
  if not (np.isfinite(first).all() and np.isfinite(second).all()):
    bad = [s for s, a, b in zip(seeds, first, second, strict=True) if not math.isfinite(a + b)]
    none = (math.nan,) * 3
    observed, outcome = tuple((first - second).tolist()), _outcome(criterion, *none[:2])
    return Finding(criterion, outcome, *none, *values, observed, f'not finite for seeds {bad}')
  if criterion.compare == 'ratio':
    if min(first.min(), second.min()) <= 0:
      raise ConfigError(f'criterion {criterion.name!r}: a ratio needs positive {criterion.metric}')
    observed = np.log(first) - np.log(second)
  else:
    observed = first - second
  numbers = np.array([observed.mean(), *interval(observed, criterion.test, criterion.confidence)])
  if criterion.compare == 'ratio':
    numbers, observed = np.exp(numbers), first / second
  estimate, low, high = map(float, numbers)
  outcome, reason = _outcome(criterion, low, high), ''
  if len(seeds) < min_seeds:
    outcome = _outcome(criterion, math.nan, math.nan)
    reason = f'{len(seeds)} of at least {min_seeds} seeds'
  observations = tuple(observed.tolist())
  return Finding(criterion, outcome, estimate, low, high, *values, observations, reason)


def _pairs(criterion: Criterion, measurements: Measurements):
  """Seeds in order, and the metric of both arms for each."""
  columns = []
  for arm in (criterion.arm, criterion.against):
    if arm not in measurements:
      raise ConfigError(
        f'criterion {criterion.name!r}: no measurements of arm {arm!r}; there are '
        + ', '.join(sorted(measurements))
      )
    columns.append(measurements[arm])
  if set(columns[0]) != set(columns[1]) or not columns[0]:
    raise ConfigError(
      f'criterion {criterion.name!r}: arms {criterion.arm} and {criterion.against} have the seeds '
      f'{sorted(columns[0])} and {sorted(columns[1])}, expected the same ones'
    )
  seeds = tuple(sorted(columns[0]))
  for arm, column in zip((criterion.arm, criterion.against), columns, strict=True):
    for seed in seeds:
      if criterion.metric not in column[seed]:
        raise ConfigError(
          f'criterion {criterion.name!r}: arm {arm!r}, seed {seed} has no {criterion.metric!r}'
        )
  first, second = (np.array([c[s][criterion.metric] for s in seeds], np.float64) for c in columns)
  return seeds, first, second


def _outcome(criterion: Criterion, low: float, high: float) -> str:
  """Where the interval lies; touching the threshold decides nothing, nor does what is NaN."""
  if criterion.is_reported:
    return 'reported'
  below, above = high < criterion.threshold, low > criterion.threshold
  if not (below or above):
    return 'open'
  if below == (criterion.claimed == 'below'):
    return 'holds'
  return 'open' if criterion.is_condition else 'fails'


def interval(
  values: Sequence[float], test: str = 't', confidence: float = 0.95
) -> tuple[float, float]:
  """Two-sided interval of the mean of paired observations; NaN for a single one.

  Args:
    values: one observation a seed.
    test: 't' (Student, n - 1 degrees of freedom), 'bootstrap' (percentile) or 'mean' (no width).
    confidence: for example 0.95.
  """
  observed = np.asarray(values, np.float64)
  if len(observed) < 2:
    return math.nan, math.nan
  if test == 'mean':
    return float(observed.mean()), float(observed.mean())
  if test == 'bootstrap':
    tail = (1 - confidence) / 2
    low, high = np.quantile(_resampled_means(observed), [tail, 1 - tail])
    return float(low), float(high)
  from scipy.special import stdtrit  # scipy takes a moment to import

  quantile = float(stdtrit(len(observed) - 1, (1 + confidence) / 2))
  half = quantile * observed.std(ddof=1) / math.sqrt(len(observed))
  return float(observed.mean() - half), float(observed.mean() + half)


def _resampled_means(observed: np.ndarray) -> np.ndarray:
  """Means of all resamples with replacement up to 6 seeds, of 20,000 drawn ones beyond."""
  n = len(observed)
  if n <= 6:
    picks = np.array(list(itertools.product(range(n), repeat=n)))
  else:
    picks = np.random.default_rng(0).integers(0, n, (20_000, n))
  return observed[picks].mean(axis=1)


def _rows(findings: Sequence[Finding]) -> tuple[list[str], list[list[Any]]]:
  head = ['criterion', 'arm', 'against', 'observed', 'interval', 'claimed', 'outcome']
  rows = []
  for f in findings:
    c = f.criterion
    sides = [f'{_spread(v)} ({n})' for v, n in
             ((f.arm_values, c.arm), (f.against_values, c.against))]  # fmt: skip
    rows.append(
      [
        c.name,
        *sides,
        f'{number_text(f.estimate)} {c.unit if c.compare == "difference" else "x"}'.strip(),
        f'{number_text(f.low)} to {number_text(f.high)} ({c.confidence:.0%}, {c.test})',
        f'{c.claimed} {number_text(c.threshold)}',
        ('reported, not judged' if c.is_reported else f.outcome)
        + (f': {f.reason}' if f.reason else ''),
      ]
    )
  return head, rows


def _spread(values: Sequence[float]) -> str:
  """Mean and, for several seeds, standard deviation."""
  mean = number_text(float(np.mean(values)))
  return mean if len(values) < 2 else f'{mean} ± {number_text(float(np.std(values, ddof=1)), 2)}'


def _interval(finding: Finding) -> figures.Interval:
  c = finding.criterion
  sign = '/' if c.compare == 'ratio' else '−'
  detail = f'{c.metric}: {c.arm} {sign} {c.against}' + f', {c.unit}' * (
    c.unit not in ('', c.metric)
  )
  return figures.Interval(
    c.name, finding.estimate, finding.low, finding.high, c.threshold, c.claimed,
    finding.observations, finding.outcome, detail,
  )  # fmt: skip


def _finding_of(value: Mapping[str, Any]) -> Finding:
  """From JSON: lists become tuples, null what is not finite."""
  number = lambda x: math.nan if x is None else x
  fields = {k: tuple(map(number, v)) if isinstance(v, list) else v for k, v in value.items()}
  fields |= {k: number(fields[k]) for k in ('estimate', 'low', 'high')}
  return Finding(**fields | {'criterion': Criterion(**value['criterion'])})


def _finite_json(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {str(k): _finite_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_finite_json(v) for v in value]
  return None if isinstance(value, float) and not math.isfinite(value) else value
