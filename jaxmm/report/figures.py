"""Charts as inline SVG: line charts with bands, bar charts, intervals against a threshold.

Colours are CSS variables of the page (`--s0` ... `--s6`) with fallbacks, so one drawing suits
light and dark. Nothing is dropped silently: points that cannot be drawn (not finite, or not
positive on a log axis) are gaps and are counted below the chart.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from jaxmm.report.markup import Html, element, escaped, joined, number_text, tick_text

COLOURS = ('#3b6fb6', '#d1603d', '#2a9d8f', '#8f5fbf', '#b8892b', '#c0538a', '#6b7280')
WIDTH = 480.0  # units of a chart's view box; narrow, so that its text stays legible on a phone
_LEFT, _RIGHT, _BOTTOM = 54.0, 14.0, 42.0


@dataclasses.dataclass(frozen=True)
class Series:
  """One line of a chart.

  Attributes:
    name: what the legend says.
    x, y: the same number of values; a y that is not finite is a gap.
    low, high: the band around the line (spread over seeds, range in a bin), or None.
    color: index into the page's palette; None takes the position in the chart. Give an arm the
      same one everywhere.
    dashed: for what is a reference and not a measurement.
    markers: draws a dot a point.
  """

  name: str
  x: Sequence[float]
  y: Sequence[float]
  low: Sequence[float] | None = None
  high: Sequence[float] | None = None
  color: int | None = None
  dashed: bool = False
  markers: bool = False

  def __post_init__(self):
    lengths = {
      n: len(getattr(self, n)) for n in ('x', 'y', 'low', 'high') if getattr(self, n) is not None
    }
    if len(set(lengths.values())) > 1:
      raise ValueError(f'series {self.name!r} has fields of different lengths: {lengths}')
    if (self.low is None) != (self.high is None):
      raise ValueError(f'series {self.name!r} needs both low and high for a band, or neither')


@dataclasses.dataclass(frozen=True)
class Bar:
  """One bar: a name, a value and, optionally, the interval drawn over its end."""

  name: str
  value: float
  low: float | None = None
  high: float | None = None
  color: int | None = None


@dataclasses.dataclass(frozen=True)
class Interval:
  """An interval against a threshold, on a scale of its own.

  Attributes:
    name: the criterion, in at most about 65 letters (drawn text does not wrap).
    estimate, low, high: the point and the ends of the interval.
    threshold: where the claimed side begins.
    claimed: 'above' or 'below' the threshold.
    points: single observations (a seed each), drawn as dots.
    outcome: 'holds', 'fails' or 'open' colours the interval; with another word it is grey.
    detail: second line under the name.
  """

  name: str
  estimate: float
  low: float
  high: float
  threshold: float = 0.0
  claimed: str = 'below'
  points: Sequence[float] = ()
  outcome: str = 'open'
  detail: str = ''


def color_of(index: int) -> str:
  """The CSS colour of palette entry `index` (it repeats)."""
  index %= len(COLOURS)
  return f'var(--s{index}, {COLOURS[index]})'


def over_seeds(
  name: str, x: Sequence[float], y_SL: Sequence[Sequence[float]], color: int | None = None
) -> Series:
  """Mean over seeds as a line, smallest to largest as its band. Axes: S seeds, L points."""
  values_SL = np.asarray(y_SL, np.float64)
  if values_SL.ndim != 2 or values_SL.shape[1] != len(x):
    raise ValueError(f'series {name!r}: y has shape {values_SL.shape}, expected [seeds, {len(x)}]')
  return Series(name, x, values_SL.mean(0), values_SL.min(0), values_SL.max(0), color)


def thinned(series: Series, points: int = 240) -> Series:
  """At most `points` points: the mean of each bin as line, its smallest and largest value as band.

  A bin with any value that is not finite stays a gap, so that a divergence is seen.
  """
  count = len(series.x)
  if count <= points:
    return series
  bins = np.array_split(np.arange(count), points)
  x, y = np.asarray(series.x, np.float64), np.asarray(series.y, np.float64)
  low = y if series.low is None else np.asarray(series.low, np.float64)
  high = y if series.high is None else np.asarray(series.high, np.float64)
  return dataclasses.replace(
    series,
    x=[float(x[b].mean()) for b in bins],
    y=[float(y[b].mean()) for b in bins],
    low=[float(low[b].min()) for b in bins],
    high=[float(high[b].max()) for b in bins],
  )


@dataclasses.dataclass(frozen=True)
class _Axis:
  """Values low..high laid on pixels start..end."""

  low: float
  high: float
  start: float
  end: float
  is_log: bool = False

  def place(self, value: float) -> float:
    low, high = self.low, self.high
    if self.is_log:
      low, high, value = math.log10(low), math.log10(high), math.log10(value)
    return self.start + (value - low) / (high - low) * (self.end - self.start)

  def ticks(self) -> list[float]:
    return _log_ticks(self.low, self.high) if self.is_log else _linear_ticks(self.low, self.high)


def _linear_ticks(low: float, high: float, count: int = 5) -> list[float]:
  raw = (high - low) / count
  size = 10 ** math.floor(math.log10(raw))
  step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= raw * 0.999)
  first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
  return [i * step for i in range(first, last + 1)]


def _log_ticks(low: float, high: float) -> list[float]:
  decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
  stride = max(1, len(decades) // 6)
  for factors in ((1,), (1, 3), (1, 2, 5)):
    ticks = [f * 10.0**d for d in decades if d % stride == 0 for f in factors]
    ticks = [t for t in ticks if low * 0.999 <= t <= high * 1.001]
    if len(ticks) >= 4:
      return ticks
  return ticks if len(ticks) >= 2 else _linear_ticks(low, high)


def _axis(
  values: np.ndarray, start: float, end: float, is_log: bool, limits, margin: float
) -> _Axis:
  """An axis that holds all drawable values, or exactly `limits`."""
  if limits is not None:
    low, high = map(float, limits)
    if not low < high or (is_log and low <= 0):
      raise ValueError(f'axis limits {limits!r} are not increasing' + ' and positive' * is_log)
    return _Axis(low, high, start, end, is_log)
  usable = values[_drawable(values, is_log)]
  if not usable.size:
    low, high = (1.0, 10.0) if is_log else (0.0, 1.0)
  else:
    low, high = float(usable.min()), float(usable.max())
  if is_log:
    if high / low < 1.0 + 1e-9:
      low, high = low / 2, high * 2
    grow = (high / low) ** margin
    return _Axis(low / grow, high * grow, start, end, True)
  if high - low <= 1e-9 * max(abs(low), abs(high)):
    pad = max(abs(low) * 0.05, 1e-9) if low else 0.5
    low, high = low - pad, high + pad
  grow = (high - low) * margin
  return _Axis(low - grow, high + grow, start, end)


def _drawable(values: np.ndarray, is_log: bool) -> np.ndarray:
  finite = np.isfinite(values)
  return finite & (values > 0) if is_log else finite


def line_chart(
  series: Sequence[Series],
  *,
  title: str = '',
  x_label: str = 'step',
  y_label: str = '',
  log_x: bool = False,
  log_y: bool = False,
  x_range: tuple[float, float] | None = None,
  y_range: tuple[float, float] | None = None,
  height: float = 280.0,
) -> Html:
  """Lines with bands, a legend above them, and values on hover.

  Args:
    series: drawn in order, the last on top.
    x_range, y_range: fixed limits; what lies outside is cut off at the frame.
    height: in the units of a 480-wide view box.
  """
  if not series:
    raise ValueError(f'chart {title!r} has no series')
  xs = np.concatenate([np.asarray(s.x, np.float64) for s in series])
  bands = [np.asarray(b, np.float64) for s in series for b in (s.low, s.high) if b is not None]
  ys = np.concatenate([np.asarray(s.y, np.float64) for s in series] + bands)
  x_axis = _axis(xs, _LEFT, WIDTH - _RIGHT, log_x, x_range, 0.0)
  top = 26.0 if y_label else 8.0
  y_axis = _axis(ys, height - _BOTTOM, top, log_y, y_range, 0.05)
  parts, lost = [_frame(x_axis, y_axis, x_label, y_label)], 0
  drawn = []
  for position, one in enumerate(series):
    paint = color_of(position if one.color is None else one.color)
    runs, missing = _runs(one, log_x, log_y)
    lost += missing
    drawn += [_band(run, x_axis, y_axis, paint) for run in runs if run.shape[1] == 4]
    drawn += [_path(run, x_axis, y_axis, paint, one.dashed) for run in runs]
    drawn += [_dots(run, x_axis, y_axis, paint, one) for run in runs]
  if x_range is None and y_range is None:
    parts += drawn
  else:
    clip = f'frame-{height:g}-{top:g}'  # these two fix the frame, so equal names are equal frames
    parts += [_clip(clip, x_axis, y_axis), element('g', *drawn, clip_path=f'url(#{clip})')]
  keys = [(s.name, color_of(i if s.color is None else s.color), s.dashed) for i, s in
          enumerate(series)]  # fmt: skip
  note = f'{lost:,} points are not drawn: not finite' + ' or not positive' * (log_x or log_y)
  return _chart(title, _legend(keys), parts, height, note if lost else '')


def _runs(series: Series, log_x: bool, log_y: bool) -> tuple[list[np.ndarray], int]:
  """Stretches of drawable points as [points, 2 or 4] (x, y, low, high), and how many points are
  missing."""
  columns = [series.x, series.y] + ([series.low, series.high] if series.low is not None else [])
  points = np.stack([np.asarray(c, np.float64) for c in columns], axis=1)
  good = _drawable(points[:, 0], log_x) & _drawable(points[:, 1:], log_y).all(axis=1)
  edges = np.flatnonzero(np.diff(np.concatenate([[0], good.astype(int), [0]])))
  runs = [points[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
  return runs, int((~good).sum())


def _line(points, x_axis: _Axis, y_axis: _Axis) -> str:
  return ' '.join(f'{x_axis.place(x):.1f},{y_axis.place(y):.1f}' for x, y in points)


def _path(run, x_axis, y_axis, paint, dashed) -> Html:
  if len(run) == 1:
    x, y = x_axis.place(run[0, 0]), y_axis.place(run[0, 1])
    return element('circle', cx=f'{x:.1f}', cy=f'{y:.1f}', r=3, style=f'fill:{paint}')
  style = f'stroke:{paint}' + (';stroke-dasharray:5 4' if dashed else '')
  return element('polyline', points=_line(run[:, :2], x_axis, y_axis), class_='line', style=style)


def _band(run, x_axis, y_axis, paint) -> Html:
  outline = np.concatenate([run[:, [0, 3]], run[::-1][:, [0, 2]]])
  return element(
    'polygon', points=_line(outline, x_axis, y_axis), class_='band', style=f'fill:{paint}'
  )


def _dots(run, x_axis, y_axis, paint, series: Series) -> Html:
  """Dots, or invisible targets, that show their value on hover; not for long lines."""
  if len(run) > 130 or (len(run) < 2 and not series.markers):
    return Html('')
  look = {'r': 3, 'style': f'fill:{paint}'} if series.markers else {'r': 6, 'class_': 'touch'}
  out = []
  for x, y, *spread in run:
    text = f'{series.name}: {number_text(y)} at {number_text(x)}'
    if spread:
      text += f' ({number_text(spread[0])} to {number_text(spread[1])})'
    place = {'cx': f'{x_axis.place(x):.1f}', 'cy': f'{y_axis.place(y):.1f}'}
    out.append(element('circle', element('title', text), **place, **look))
  return joined(*out)


def _clip(name: str, x_axis: _Axis, y_axis: _Axis) -> Html:
  area = element(
    'rect', x=x_axis.start, y=y_axis.end, width=x_axis.end - x_axis.start,
    height=y_axis.start - y_axis.end,
  )  # fmt: skip
  return element('clipPath', area, id=name)


def _text(x: float, y: float, value: str, anchor: str = 'start', kind: str = 'tick') -> Html:
  return element('text', value, x=f'{x:.1f}', y=f'{y:.1f}', text_anchor=anchor, class_=kind)


def _frame(x_axis: _Axis, y_axis: _Axis, x_label: str, y_label: str) -> Html:
  """Grid lines, ticks and the names of both axes."""
  bottom, left, right = y_axis.start, x_axis.start, x_axis.end
  parts = []
  for value in y_axis.ticks():
    y = f'{y_axis.place(value):.1f}'
    parts.append(element('line', x1=left, x2=right, y1=y, y2=y, class_='grid'))
    parts.append(_text(left - 7, y_axis.place(value) + 4, tick_text(value), 'end'))
  for value in x_axis.ticks():
    x = x_axis.place(value)
    parts.append(element('line', x1=f'{x:.1f}', x2=f'{x:.1f}', y1=bottom, y2=bottom + 4,
                         class_='axis'))  # fmt: skip
    parts.append(_text(x, bottom + 17, tick_text(value), 'middle'))
  parts.append(element('line', x1=left, x2=right, y1=bottom, y2=bottom, class_='axis'))
  parts.append(_text((left + right) / 2, bottom + 35, x_label, 'middle', 'label'))
  parts.append(_text(4, 14, y_label, 'start', 'label'))
  return joined(*parts)


def _legend(keys: Sequence[tuple[str, str, bool]]) -> Html:
  """Names with their colours; nothing if there is only one without a name."""
  shown = [(name, paint, dashed) for name, paint, dashed in keys if name]
  items = [
    element(
      'span',
      element('i', style=f'border-top:3px {"dashed" if dashed else "solid"} {paint}'),
      name,
    )
    for name, paint, dashed in shown
  ]
  return element('div', *items, class_='legend') if items else Html('')


def _chart(title: str, legend: Html, parts: Sequence[Html], height: float, note: str) -> Html:
  drawing = element(
    'svg', *parts, viewBox=f'0 0 {WIDTH:g} {height:g}', role='img', aria_label=title or 'chart'
  )
  return element(
    'div',
    element('div', title, class_='chart-title') if title else Html(''),
    legend,
    drawing,
    element('div', note, class_='chart-note') if note else Html(''),
    class_='chart',
  )


def bar_chart(
  bars: Sequence[Bar], *, title: str = '', x_label: str = '', log: bool = False
) -> Html:
  """Horizontal bars from zero (from the axis' low end if `log`), the value written beside each."""
  if not bars:
    raise ValueError(f'chart {title!r} has no bars')
  ends = [v for b in bars for v in (b.value, b.low, b.high) if v is not None]
  values = np.asarray(ends + ([] if log else [0.0]), np.float64)
  x_axis = _axis(values, 8.0, WIDTH - 84, log, None, 0.03 if log else 0.0)
  row, top = 44.0, 6.0
  height = top + row * len(bars) + 36
  parts, lost = [], 0
  for value in x_axis.ticks():
    x = f'{x_axis.place(value):.1f}'
    parts.append(element('line', x1=x, x2=x, y1=top, y2=height - 34, class_='grid'))
    parts.append(_text(x_axis.place(value), height - 20, tick_text(value), 'middle'))
  for i, bar in enumerate(bars):
    y = top + i * row
    parts.append(_text(8, y + 14, bar.name, kind='bar-name'))
    if _drawable(np.asarray([bar.value]), log)[0]:
      parts.append(_bar(bar, x_axis, y + 20, color_of(i if bar.color is None else bar.color)))
    else:
      lost += 1
      parts.append(_text(8, y + 33, f'{bar.value} (not drawn)', kind='value'))
  parts.append(_text((x_axis.start + x_axis.end) / 2, height - 4, x_label, 'middle', 'label'))
  note = f'{lost:,} bars are not drawn: not finite' + ' or not positive' * log
  return _chart(title, Html(''), parts, height, note if lost else '')


def _bar(bar: Bar, x_axis: _Axis, y: float, paint: str) -> Html:
  zero = x_axis.start if x_axis.is_log else x_axis.place(0.0)
  end = x_axis.place(bar.value)
  rect = element(
    'rect', x=f'{min(zero, end):.1f}', y=y, width=f'{max(abs(end - zero), 1):.1f}', height=16,
    rx=2, style=f'fill:{paint}',
  )  # fmt: skip
  edge, text, parts = max(end, zero), number_text(bar.value), [rect]
  if bar.low is not None and bar.high is not None:
    low, high = x_axis.place(bar.low), x_axis.place(bar.high)
    parts += [_whisker(low, high, y + 8)]
    edge = max(edge, high)
  return joined(*parts, _text(edge + 7, y + 13, text, kind='value'))


def _whisker(low: float, high: float, y: float, style: str | None = None) -> Html:
  path = f'M{low:.1f} {y - 5}v10M{low:.1f} {y}H{high:.1f}M{high:.1f} {y - 5}v10'
  return element('path', d=path, class_='whisker', style=style)


def interval_chart(rows: Sequence[Interval], *, title: str = '') -> Html:
  """Each interval on a scale of its own, the claimed side of its threshold shaded, dots for single
  seeds."""
  if not rows:
    raise ValueError(f'chart {title!r} has no intervals')
  parts, top = [], 4.0
  for row in rows:
    parts.append(_interval(row, top))
    top += 88.0 if row.detail else 74.0
  return _chart(title, Html(''), parts, top, '')


def _interval(row: Interval, top: float) -> Html:
  numbers = np.asarray([row.low, row.high, row.estimate, row.threshold, *row.points], np.float64)
  axis = _axis(numbers, 8.0, WIDTH - 8, False, None, 0.12)
  middle, paint = top + (50 if row.detail else 36), f'var(--{row.outcome}, #6b7280)'
  at = axis.place(row.threshold)
  left, right = (at, axis.end) if row.claimed == 'above' else (axis.start, at)
  side = element('rect', x=f'{left:.1f}', y=middle - 14, width=f'{right - left:.1f}', height=28,
                 class_='claimed')  # fmt: skip
  line = element('line', x1=f'{at:.1f}', x2=f'{at:.1f}', y1=middle - 16, y2=middle + 16,
                 class_='threshold')  # fmt: skip
  parts = [_text(8, top + 14, row.name, kind='bar-name'), side, line]
  parts.append(_text(8, top + 28, row.detail, kind='tick'))
  if np.isfinite(numbers).all():
    style = f'stroke:{paint}'
    parts.append(_whisker(axis.place(row.low), axis.place(row.high), middle, style))
    place = f'{axis.place(row.estimate):.1f}'
    parts.append(element('circle', cx=place, cy=middle, r=4.5, style=f'fill:{paint}'))
    dots = [
      element('circle', cx=f'{axis.place(p):.1f}', cy=middle + 9, r=2.2, class_='seed')
      for p in row.points
    ]
    parts += dots
  for value in _linear_ticks(axis.low, axis.high, 6):
    parts.append(_text(axis.place(value), middle + 28, tick_text(value), 'middle'))
  return joined(*(escaped(p) for p in parts))
