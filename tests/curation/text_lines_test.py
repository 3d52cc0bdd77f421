"""Texts are cut into lines, and lines into batches, as by the slow way."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.curation import text_lines
from tests.references import text_quality as reference


@pytest.mark.parametrize(
  'text, unit, lines',
  [
    ('', 'lines', []),
    (' \n\t\n', 'lines', []),
    ('a\r\nb\rc\n\n d \n', 'lines', ['a', 'b', 'c', 'd']),
    ('A b. C d! "E?" f\ng.', 'lines', ['A b. C d! "E?" f', 'g.']),
    ('A b. C d! "E?" f\ng.', 'sentences', ['A b.', 'C d!', '"E?"', 'f', 'g.']),
    ('Really?! (Yes.) 3.5 e.g. this', 'sentences', ['Really?!', '(Yes.)', '3.5 e.g.', 'this']),
    ('a\u2028b\x0cc', 'lines', ['a\u2028b\x0cc']),  # these end no line
  ],
)
def test_lines_worked_by_hand(text, unit, lines):
  assert text_lines.lines_of(text, unit) == lines == reference.lines(text, unit)


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet='ab.!?"\')]” \n\r\t\x1c\u3000\ud800', max_size=30))
def test_any_text_is_cut_as_by_the_slow_way(text):
  for unit in text_lines.UNITS:
    assert text_lines.lines_of(text, unit) == reference.lines(text, unit)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 12), max_size=20), st.integers(1, 30), st.integers(1, 4))
def test_batches_hold_all_lines_in_their_order(lengths, points, most):
  lines = [f'{i % 10}' * length for i, length in enumerate(lengths)]
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(text_lines, '_POINTS', points)
    patch.setattr(text_lines, '_LINES', most)
    batches = [list(batch.lines) for batch in text_lines.batches(lines)]
  assert sum(batches, []) == lines
  for batch in batches:
    assert len(batch) <= most
    assert len(batch) == 1 or sum(len(line) + 1 for line in batch) <= points


def test_counts_worked_by_hand():
  lines = text_lines.Lines(["Don't STOP, don't_stop 24/7!", '...', 'Élan élan 1984 é'])
  assert lines.words_L.tolist() == [6, 0, 4] and lines.marks_L.tolist() == [4, 3, 0]
  assert lines.numbers_L.tolist() == [2, 0, 1] and lines.digits_L.tolist() == [3, 0, 4]
  assert lines.pieces_L.tolist() == [4, 1, 4] and lines.bytes_L.tolist() == [28, 3, 19]
  assert lines.distinct_words_L.tolist() == [4, 0, 3]
  assert lines.most_frequent_L.tolist() == [2, 0, 2]
  assert lines.words_of(["don't", '7'], is_distinct=True).tolist() == [2, 0, 0]
  assert lines.words_of(["don't", '7'], is_distinct=False).tolist() == [3, 0, 0]


def test_no_lines_have_no_counts():
  lines = text_lines.Lines([])
  for name in ('words_L', 'marks_L', 'distinct_words_L', 'most_frequent_L', 'all_caps_L'):
    assert getattr(lines, name).shape == (0,)
  assert list(text_lines.batches([])) == []


def test_too_many_lines_at_once_are_refused():
  with pytest.raises(ValueError, match='65537 lines at once, expected at most 65536; use batches'):
    text_lines.Lines(['a'] * 65_537)
  many = list(text_lines.batches(['a b a'] * 65_537))
  assert [len(batch) for batch in many][-1] and sum(len(batch) for batch in many) == 65_537
  assert all(np.all(batch.distinct_words_L == 2) for batch in many)
