"""Plans grow with what they are of, and are refused where they are too much."""

import dataclasses

import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import memory_plan
from jaxmm.curation.kmeans import KMeansConfig

GIB = 2**30


def plan(rows=10**6, width=384, config=None, **more):
  return memory_plan.of_vectors(rows, width, config or KMeansConfig(1000), **more)


def test_rows_in_memory_and_dealt_are_most_of_it():
  rows = 10**6 * 384 * 4
  found = plan()
  assert found.always['rows'] == rows and rows <= found.stages['k-means']['dealt'] < 1.01 * rows
  assert 2 * rows < found.peak < 2 * rows + 2 * GIB
  assert f'{found.peak / GIB:.2f} GiB at most' in str(found)


def test_on_disk_and_with_a_sample_width_and_batches_are_what_counts():
  config = KMeansConfig(1000, fit_rows=50_000)
  sizes = [plan(rows, config=config, on_disk=True) for rows in (10**6, 10**7)]
  small, large = (p.peak - p.always['ids and results'] for p in sizes)
  assert small == large < 2 * GIB


def test_processes_share_what_is_dealt_and_batches_are_of_own_devices():
  one, four = plan(devices=8), plan(devices=8, processes=4)
  assert four.stages['k-means']['dealt'] == one.stages['k-means']['dealt'] // 4
  assert four.stages['comparing']['batches'] == one.stages['comparing']['batches'] // 4
  assert 'comparing' not in plan(compared=False).stages


def test_what_is_too_much_is_refused_with_what_would_help():
  config = KMeansConfig(1000)
  assert memory_plan.check(plan().peak, 10**6, 384, config) == plan()

  def said(gib, rows=10**6, of=config, **more):
    with pytest.raises(ConfigError) as refused:
      memory_plan.check(gib * GIB, rows, 384, of, **more)
    return str(refused.value)

  assert said(3.6).startswith('1,000,000 vectors of 384 numbers take ')
  assert 'more than memory is 3.60 GiB; use --on-disk (' in said(3.6)
  assert 'use --on-disk with --fit-rows, or set --memory' in said(2.2)
  # What is set already is not advised, nor what is not large enough to matter.
  sampled = dataclasses.replace(config, fit_rows=50_000)
  for words in (said(1.7, of=sampled, on_disk=True), said(0.5, of=sampled, on_disk=True)):
    assert '--on-disk' not in words.partition('GiB; ')[2] and '--fit-rows' not in words
  alone = 'program, ids and results alone are more, whatever is set; set --memory where more is'
  assert alone in said(0.1, rows=100, of=KMeansConfig(3))
  assert alone in said(0.1, rows=100, of=KMeansConfig(3, fit_rows=10), on_disk=True)


def test_more_clusters_than_rows_are_refused_by_the_plan():
  with pytest.raises(ConfigError, match='clusters is 6, expected at most the 5 rows'):
    plan(5, config=dataclasses.replace(KMeansConfig(), clusters=6))


@pytest.mark.parametrize(
  ('files', 'expected'),
  [
    ({}, 700 << 10),
    ({'memory.max': 'max\n', 'memory.current': '5', 'memory.stat': ''}, 700 << 10),
    (
      {'memory.max': '1000', 'memory.current': '600', 'memory.stat': 'anon 1\ninactive_file 50\n'},
      450,
    ),
    (
      {
        'memory/memory.limit_in_bytes': '1000',
        'memory/memory.usage_in_bytes': '600',
        'memory/memory.stat': 'cache 7\ntotal_inactive_file 50\n',
      },
      450,
    ),
  ],
)
def test_what_is_left_is_of_the_machine_and_of_the_group(tmp_path, files, expected):
  for name, text in {'proc/meminfo': 'MemTotal: 900 kB\nMemAvailable:  700 kB\n'}.items():
    (tmp_path / name).parent.mkdir(parents=True)
    (tmp_path / name).write_text(text)
  for name, text in files.items():
    path = tmp_path / 'sys/fs/cgroup' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
  assert memory_plan.available(tmp_path) == expected


def test_a_system_that_does_not_say_is_no_limit(tmp_path):
  assert memory_plan.available(tmp_path) is None
