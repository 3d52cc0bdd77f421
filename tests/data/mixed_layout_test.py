"""Rows of text and pictures, position by position, against a list made part by part."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.data.mixed_layout import Layout, Unit

BOI, EOI, PICTURE = 96, 97, None
words = st.lists(st.integers(100, 120), max_size=4)
ends = st.sampled_from([((), ()), ((98,), ()), ((98,), (99,))])


@st.composite
def documents(draw):
  """A unit with places, and its parts: texts and pictures."""
  if draw(st.booleans()):
    parts = draw(st.lists(st.one_of(words, st.just(PICTURE)), max_size=6))
    ids, places = [], []
    for part in parts:
      if part is PICTURE:
        places.append(len(ids))
      else:
        ids += part
    unit = Unit(np.array(ids, np.int32), tuple(range(len(places))), tuple(places))
    return unit.placed(draw(st.booleans())), parts
  text, num, is_first = draw(words), draw(st.integers(0, 2)), draw(st.booleans())
  unit = Unit(np.array(text, np.int32), tuple(range(num))).placed(is_first)
  return unit, [*[PICTURE] * num, text] if is_first else [text, *[PICTURE] * num]


def positions_of(described, patches, before, after):
  """(id, image, patch, segment, weight) of every position."""
  out, image = [], 0
  for segment, (unit, parts) in enumerate(described, 1):
    texts = [before, *parts, after] if unit.pictures else parts
    row = []
    for part in texts:
      if part is PICTURE:
        image += 1
        patch = [(0, image, p, segment, 0) for p in range(patches)]
        row += [(BOI, 0, 0, segment, 1), *patch, (EOI, 0, 0, segment, 0)]
      else:
        row += [(i, 0, 0, segment, 1) for i in part]
    out += [(*row[0][:4], 0), *row[1:]]
  return out


@settings(max_examples=120, deadline=None)
@given(st.lists(documents(), max_size=5), st.integers(1, 5), ends)
def test_a_row_is_its_units_position_by_position(described, patches, around):
  described = [d for d in described if len(d[0].ids) or d[0].pictures]
  expected = positions_of(described, patches, *around)
  layout = Layout(len(expected) + 3, patches, BOI, EOI, *around, 77)
  units = [unit for unit, _ in described]
  row = layout.row(units)
  found = list(zip(*(row[f'{k}_L'].tolist() for k in ('ids', 'image', 'patch', 'segment'))))
  assert found == [e[:4] for e in expected] + [(77, 0, 0, 0)] * 3
  assert row['weight_L'].tolist() == [e[4] for e in expected] + [0] * 3
  assert sum(layout.unit_length(len(u.ids), len(u.pictures)) for u in units) == len(expected)


@settings(max_examples=80, deadline=None)
@given(documents())
def test_a_picture_is_first_where_all_text_of_its_unit_comes_after_it(document):
  unit, parts = document
  at = [i for i, part in enumerate(parts) if part is PICTURE]
  expected = [not any(parts[:i]) and any(p for p in parts[i:] if p is not PICTURE) for i in at]
  assert unit.is_image_first() == expected


def test_text_is_cut_at_its_end_and_pictures_stay():
  unit = Unit(np.arange(6), (3, 4, 5), (0, 2, 6)).cut(4)
  assert unit.ids.tolist() == [0, 1, 2, 3] and unit.pictures == (3, 4, 5)
  assert unit.places == (0, 2, 4)
  assert Unit(np.arange(6), (3,)).cut(4).placed(False).places == (4,)
  assert Unit(np.arange(6), (3,), (0,)).placed(False).places == (0,)  # its own order
