import re
import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from jaxmm.report import figures
from jaxmm.report.figures import Bar, Interval, Series


def drawing(html):
  """The SVG of a chart, parsed, so that a chart that is no XML fails."""
  return ElementTree.fromstring(re.search(r'<svg.*</svg>', html, re.S).group(0))


def lines(html):
  """Pixel coordinates [points, 2] of each line."""
  return [
    np.array([[float(v) for v in p.split(',')] for p in e.get('points').split()])
    for e in drawing(html).iter('polyline')
  ]


def ticks(html):
  return [e.text for e in drawing(html).iter('text') if e.get('class') == 'tick']


def test_points_lie_where_their_values_say():
  (line,) = lines(figures.line_chart([Series('a', [0, 1, 4], [0.0, 5.0, 10.0])]))
  np.testing.assert_allclose(np.diff(line[:, 0])[1] / np.diff(line[:, 0])[0], 3, rtol=1e-2)
  np.testing.assert_allclose(line[0, 1] - line[1, 1], line[1, 1] - line[2, 1], atol=0.11)
  assert line[0, 1] > line[2, 1]  # larger is higher up


def test_log_axes_space_decades_evenly_and_name_them():
  html = figures.line_chart([Series('a', [1, 10, 100], [0.01, 0.1, 1])], log_x=True, log_y=True)
  (line,) = lines(html)
  np.testing.assert_allclose(np.diff(line[:, 0], 2), 0, atol=0.21)
  np.testing.assert_allclose(np.diff(line[:, 1], 2), 0, atol=0.21)
  assert {'0.01', '0.1', '1'} <= set(ticks(html))


@pytest.mark.parametrize('log', [False, True])
def test_what_cannot_be_drawn_is_a_gap_and_is_counted(log):
  values = [1, 2, np.nan, 4, 5, -1 if log else np.inf, 3, 3]
  html = figures.line_chart([Series('a', range(8), values)], log_y=log)
  assert [len(line) for line in lines(html)] == [2, 2, 2]
  assert '2 points are not drawn' in html
  assert 'nan' not in html and 'inf' not in html


@pytest.mark.parametrize(
  'values', [[3.0] * 4, [0.0] * 4, [np.nan] * 4, [1e-12, 2e-12, 3e-12, 4e-12], [1e20, 2e20, 0, 1]]
)
def test_degenerate_data_still_draws_a_frame_with_ticks(values):
  assert len(ticks(figures.line_chart([Series('a', range(4), values)]))) >= 5


def test_bands_hold_the_spread_over_seeds():
  series = figures.over_seeds('a', [0, 1], [[1, 2], [3, 6]])
  assert list(series.y) == [2, 4] and list(series.low) == [1, 2] and list(series.high) == [3, 6]
  assert len(list(drawing(figures.line_chart([series])).iter('polygon'))) == 1
  with pytest.raises(ValueError, match=r'expected \[seeds, 2\]'):
    figures.over_seeds('a', [0, 1], [[1, 2, 3]])


def test_thinning_keeps_the_extremes_and_the_gaps():
  y = np.ones(10_000)
  y[5_000], y[9_000] = 50.0, np.nan
  thin = figures.thinned(Series('a', np.arange(10_000), y), 100)
  assert len(thin.x) == 100 and max(v for v in thin.high if v == v) == 50
  assert sum(v != v for v in thin.y) == 1


def test_a_fixed_range_clips_and_a_wrong_one_is_refused():
  html = figures.line_chart([Series('a', [0, 1], [0, 99])], y_range=(0, 1))
  name = next(drawing(html).iter('clipPath')).get('id')
  assert f'clip-path="url(#{name})"' in html
  with pytest.raises(ValueError, match='not increasing'):
    figures.line_chart([Series('a', [0], [1])], y_range=(1, 0))


def test_series_of_unequal_lengths_and_half_bands_are_refused():
  with pytest.raises(ValueError, match='different lengths'):
    Series('a', [0, 1], [1])
  with pytest.raises(ValueError, match='both low and high'):
    Series('a', [0], [1], low=[0])
  with pytest.raises(ValueError, match='no series'):
    figures.line_chart([])


def test_names_are_escaped_everywhere():
  evil = '<script>"&'
  html = figures.line_chart([Series(evil, [0, 1], [0, 1])], title=evil, x_label=evil, y_label=evil)
  html += figures.bar_chart([Bar(evil, 1)], title=evil)
  html += figures.interval_chart([Interval(evil, 0, -1, 1, detail=evil)], title=evil)
  assert '<script>' not in html and html.count('&lt;script&gt;') >= 9


def test_bars_start_at_zero_and_have_lengths_in_proportion():
  html = figures.bar_chart([Bar('a', 10.0, 9, 11), Bar('b', 5.0), Bar('c', float('nan'))])
  a, b = (float(e.get('width')) for e in drawing(html).iter('rect'))
  np.testing.assert_allclose(a / b, 2, rtol=1e-2)
  assert '1 bars are not drawn' in html
  negative = drawing(figures.bar_chart([Bar('a', -4.0), Bar('b', 4.0)]))
  left, right = ((float(e.get('x')), float(e.get('width'))) for e in negative.iter('rect'))
  np.testing.assert_allclose(left[0] + left[1], right[0], atol=0.2)


@pytest.mark.parametrize('claimed', ['below', 'above'])
def test_the_shaded_side_is_the_claimed_one(claimed):
  row = Interval('a', -3.0, -4.0, -2.0, threshold=0.0, claimed=claimed, points=(-3, -2))
  svg = drawing(figures.interval_chart([row]))
  side = next(e for e in svg.iter('rect') if e.get('class') == 'claimed')
  low, high = float(side.get('x')), float(side.get('x')) + float(side.get('width'))
  point = next(float(e.get('cx')) for e in svg.iter('circle') if e.get('class') != 'seed')
  assert (low < point < high) == (claimed == 'below')
