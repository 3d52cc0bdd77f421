"""Ids that come twice are found as they come, and no more is remembered than is said."""

import pyarrow as pa
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import unique_ids
from jaxmm.data.corpus import Example


def test_a_file_is_read_no_further():
  read = []

  def examples():
    for name in 'abcbd':
      read.append(name)
      yield Example(name)

  with pytest.raises(ConfigError, match="the id 'b' comes more than once"):
    list(unique_ids.checked(examples()))
  assert read == list('abcb')


def test_files_that_number_anew_are_found_at_the_second():
  each = unique_ids.AcrossFiles()
  each(pa.table({'id': ['1', '2']}))
  each(pa.table({'id': ['3', '4']}))
  with pytest.raises(ConfigError, match="'2' comes more than once"):
    each(pa.table({'id': ['5', '2']}))


def test_memory_is_bounded(monkeypatch):
  monkeypatch.setattr(unique_ids, '_REMEMBERED', 3)
  assert len(list(unique_ids.checked(Example(name) for name in 'abcdd'))) == 5
  each = unique_ids.AcrossFiles()
  for ids in ('ab', 'cd', 'd'):
    each(pa.table({'id': list(ids)}))
