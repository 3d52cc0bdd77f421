"""Packing plans against naive ones, and their properties on random documents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError
from jaxmm.data.packing import Documents, PackedSource, packing_plan

lengths_lists = st.lists(st.integers(0, 23), min_size=1, max_size=30)


def _documents(lengths) -> Documents:
  # Ids count up from 1, so each token says where it comes from.
  return Documents.of(np.split(np.arange(1, sum(lengths) + 1), np.cumsum(lengths)[:-1]))


def _naive_first_fit(lengths, length) -> list[list[int]]:
  """Piece lengths of each row, by looking at every row for every piece."""
  rows = []
  for num in lengths:
    for at in range(0, num, length):
      piece = min(length, num - at)
      for row in rows:
        if sum(row) + piece <= length:
          row.append(piece)
          break
      else:
        rows.append([piece])
  return rows


@settings(max_examples=40, deadline=None)
@given(lengths_lists, st.integers(2, 9), st.sampled_from(['concat', 'first_fit']))
def test_every_token_stands_once_and_in_its_segment(lengths, length, method):
  source = PackedSource(_documents(lengths), length, method, pad_id=0)
  document_of = np.repeat(np.arange(len(lengths)), lengths)
  seen = []
  for r in range(len(source)):
    row = source[r]
    ids, segment, weight = row['ids_L'], row['segment_L'], row['weight_L']
    real = ids > 0
    assert ids.shape == (length,) and real.any()
    np.testing.assert_array_equal(real, segment > 0)
    # Padding only at the end; segments count up from 1.
    assert not real[np.argmin(real) :].any() or real.all()
    assert list(dict.fromkeys(segment[real])) == list(range(1, segment.max() + 1))
    for s in range(1, segment.max() + 1):
      tokens = ids[segment == s]
      assert len(set(document_of[tokens - 1])) == 1
      np.testing.assert_array_equal(np.diff(tokens), 1)
    starts = np.diff(segment, prepend=0) != 0
    np.testing.assert_array_equal(weight, (real & ~starts).astype(np.float32))
    seen.extend(ids[real])
  assert sorted(seen) == list(range(1, sum(lengths) + 1))


@settings(max_examples=40, deadline=None)
@given(lengths_lists, st.integers(2, 9))
def test_first_fit_is_the_naive_first_fit(lengths, length):
  plan = packing_plan(_documents(lengths).offsets_D, length, 'first_fit')
  rows = np.split(plan.lengths_P, plan.rows_R[1:-1])
  expected = _naive_first_fit(lengths, length)
  assert [list(r) for r in rows if len(r)] == expected


@settings(max_examples=20, deadline=None)
@given(lengths_lists, st.integers(2, 9))
def test_concat_is_the_concatenation(lengths, length):
  source = PackedSource(_documents(lengths), length, 'concat')
  total = sum(lengths)
  assert len(source) == -(-total // length)
  rows = [source[r]['ids_L'] for r in range(len(source))]
  padded = np.zeros(len(rows) * length, np.int32)
  padded[:total] = np.arange(1, total + 1)
  np.testing.assert_array_equal(np.concatenate(rows) if rows else [], padded)


@settings(max_examples=60, deadline=None)
@given(lengths_lists, st.sampled_from([(4, 2), (6, 3), (8, 4), (9, 9)]),
       st.sampled_from(['concat', 'first_fit']))  # fmt: skip
def test_aligned_documents_share_no_patch(lengths, shape, method):
  length, align = shape
  source = PackedSource(_documents(lengths), length, method, pad_id=-1, align=align)
  seen = []
  for r in range(len(source)):
    row = source[r]
    ids, segment, weight = row['ids_L'], row['segment_L'], row['weight_L']
    np.testing.assert_array_equal(ids > 0, segment > 0)
    for patch in segment.reshape(-1, align):
      assert len(set(patch) - {0}) <= 1  # one document, and what is padded ends it
      assert not (np.diff((patch > 0).astype(int)) > 0).any()
    assert list(dict.fromkeys(segment[segment > 0])) == list(range(1, segment.max() + 1))
    starts = np.flatnonzero((segment > 0) & (np.diff(segment, prepend=0) != 0))
    assert not (starts % align).any() and not weight[starts].any()
    assert weight.sum() == (segment > 0).sum() - len(starts)
    seen.extend(ids[ids > 0])
  assert sorted(seen) == list(range(1, sum(lengths) + 1))
  padded = [-(-num // align) * align for num in lengths]
  if method == 'concat':
    assert len(source) == -(-sum(padded) // length)
  else:
    expected = _naive_first_fit(padded, length)
    assert len(source) == len(expected)


def test_first_fit_keeps_short_documents_whole_and_scales():
  lengths = np.random.default_rng(0).integers(1, 200, 20_000)
  plan = packing_plan(np.concatenate([[0], np.cumsum(lengths)]), 256, 'first_fit')
  assert len(plan.lengths_P) == 20_000
  fill = lengths.sum() / (256 * (len(plan.rows_R) - 1))
  assert fill > 0.95


def test_bad_settings_and_names():
  documents = Documents.of([[1, 2, 3], [4, 5]], ['a.txt', 'b.txt'])
  assert PackedSource(documents, 5).name(0) == 'packed row 0 (a.txt to b.txt)'
  np.testing.assert_array_equal(documents[1], [4, 5])
  with pytest.raises(ConfigError, match='first_fit'):
    packing_plan(documents.offsets_D, 4, 'best')
  with pytest.raises(ConfigError, match='at least 2'):
    packing_plan(documents.offsets_D, 1, 'concat')
  for align in (0, 3):
    with pytest.raises(ConfigError, match=f'align is {align}, but rows have 4 tokens'):
      packing_plan(documents.offsets_D, 4, 'concat', align)
  with pytest.raises(IndexError, match='1 packed rows'):
    PackedSource(documents, 5)[1]
