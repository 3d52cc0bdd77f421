"""How much memory a method on vectors takes, from shapes alone, before any vector is loaded.

Per process, where devices are CPUs; an accelerator holds the parts named 'dealt' and 'batches' in
its own memory, too. Measured peaks stand beside the plan in `experiments/performance/README.md`.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from jaxmm.config import ConfigError
from jaxmm.curation import kmeans, lloyd, semdedup
from jaxmm.curation.kmeans import KMeansConfig

# Python, the libraries and compiled programs.
_PROGRAM = 600 << 20
# Ids, digests, what is found about a row, and the keep-list with its copies.
_PER_ROW = 1000
_GIB = 2**30


@dataclasses.dataclass(frozen=True)
class MemoryPlan:
  """Bytes of one process.

  Attributes:
    always: held all the while, by name.
    stages: held by one stage at a time, by name of the stage and of the part.
  """

  always: Mapping[str, int]
  stages: Mapping[str, Mapping[str, int]]

  @property
  def peak(self) -> int:
    """Bytes at most."""
    return sum(self.always.values()) + max(sum(part.values()) for part in self.stages.values())

  def __str__(self) -> str:
    said = [f'{name} {size / _GIB:.2f}' for name, size in self.always.items()]
    for stage, parts in self.stages.items():
      said.append(f'{stage} ' + ' + '.join(f'{n} {size / _GIB:.2f}' for n, size in parts.items()))
    return f'{self.peak / _GIB:.2f} GiB at most ({"; ".join(said)})'


def of_vectors(
  num_rows: int,
  width: int,
  config: KMeansConfig,
  *,
  on_disk: bool = False,
  compared: bool = True,
  usable: int | None = None,
  devices: int = 1,
  processes: int = 1,
) -> MemoryPlan:
  """Of k-means and what follows it.

  Args:
    num_rows: N.
    width: D.
    config: of k-means.
    on_disk: rows are read from a file, not held (`vectors.of_embeddings`).
    compared: rows are compared within clusters (SemDeDup, D4).
    usable: how many rows are clustered; default: all.
    devices: that rows are split over, of all processes.
    processes: of the job.
  """
  usable = num_rows if usable is None else usable
  row, K = 4 * width, config.clusters_of(usable)
  always = {'program': _PROGRAM, 'ids and results': num_rows * _PER_ROW}
  always['rows'] = 0 if on_disk else num_rows * row
  fitted = min(config.fit_rows or usable, usable)
  # Sums of every stripe, before and after they are gathered, and centroids in float64.
  fit = {
    'dealt': _dealt(fitted, width, config.stripes) // processes,
    'sums': (2 * config.stripes + 8) * K * row,
  }
  stages = {'k-means': fit}
  if fitted < usable:
    fit['sample'] = fitted * row
    at_once = min(usable, kmeans.ROWS_AT_ONCE)
    stages['assigning'] = {'dealt': 2 * _dealt(at_once, width, config.stripes) // processes}
    stages['assigning']['sums'] = fit['sums']
  if compared:
    batch = min(semdedup.BATCH, usable) * row
    held = semdedup.buffers_of(semdedup.streams_of(devices))
    stages['comparing'] = {'batches': held * batch * max(1, devices // processes)}
  return MemoryPlan(always, stages)


def _dealt(rows: int, width: int, stripes: int) -> int:
  S, M, B, D = lloyd.shape_of(rows, width, stripes)
  return 4 * S * M * B * D


def check(
  limit: float,
  num_rows: int,
  width: int,
  config: KMeansConfig,
  *,
  on_disk: bool = False,
  processes: int = 1,
  **more,
) -> MemoryPlan:
  """The plan `of_vectors` of these arguments.

  Raises:
    ConfigError: it is more than `limit` bytes; with what would make it less.
  """
  given = dict(on_disk=on_disk, processes=processes, **more)
  plan = of_vectors(num_rows, width, config, **given)
  if plan.peak <= limit:
    return plan
  usable = more.get('usable') or num_rows
  K = config.clusters_of(usable)
  sample = dataclasses.replace(config, fit_rows=max(K, min(usable // 10, 256 * K)))
  fewer = dataclasses.replace(config, clusters=max(K // 4, 1))
  ways = {
    '--on-disk (vectors stay in a file of the work folder)': (config, {'on_disk': True}),
    f'--fit-rows {sample.fit_rows} (k-means fits a sample and assigns the rest part by part)': (
      sample, {},
    ),
    '--on-disk with --fit-rows': (sample, {'on_disk': True}),
    f'--clusters {fewer.clusters}': (fewer, {}),
    f'{4 * processes} processes': (
      config, {'processes': 4 * processes, 'devices': 4 * more.get('devices', 1)},
    ),
  }  # fmt: skip
  peaks = {
    way: of_vectors(num_rows, width, other, **given | changed).peak
    for way, (other, changed) in ways.items()
  }
  raise ConfigError(
    f'{num_rows:,} vectors of {width} numbers take {plan}, more than memory is '
    f'{limit / _GIB:.2f} GiB; {_advice(plan, peaks, limit)}'
  )


def _advice(plan: MemoryPlan, peaks: Mapping[str, int], limit: float) -> str:
  """What would be enough, else what would be less, of several ways."""
  enough = [way for way, peak in peaks.items() if peak <= limit]
  enough = [way for way in enough if ' with ' not in way] or enough
  less = [f'{way}: {peak / _GIB:.2f} GiB' for way, peak in peaks.items() if peak < 0.9 * plan.peak]
  mend = 'set --memory where more is there'
  if enough:
    return f'use {" or ".join(enough)}, or {mend}'
  least = sum(plan.always.values()) - plan.always['rows']
  if least > limit:
    return f'program, ids and results alone are more, whatever is set; {mend}'
  said = (
    f'nothing alone is enough, but less is {"; ".join(less)}' if less else 'nothing makes it less'
  )
  return f'{said}; {mend}'


def available(root: str | os.PathLike = '/') -> int | None:
  """Bytes that this process may still take: of the machine and of its control group; None where
  the system does not say."""
  root = pathlib.Path(root)
  meminfo = root / 'proc/meminfo'
  if not meminfo.is_file():
    return None
  lines = dict(line.split(':', 1) for line in meminfo.read_text().splitlines() if ':' in line)
  found = [int(lines['MemAvailable'].split()[0]) << 10]
  for folder, limit, used, cached in (
    ('', 'memory.max', 'memory.current', 'inactive_file'),
    ('memory', 'memory.limit_in_bytes', 'memory.usage_in_bytes', 'total_inactive_file'),
  ):
    group = root / 'sys/fs/cgroup' / folder
    if (group / limit).is_file() and (said := (group / limit).read_text().strip()) != 'max':
      stat = dict(line.split() for line in (group / 'memory.stat').read_text().splitlines())
      # What is only cached of files is given back when it is needed.
      found.append(int(said) - int((group / used).read_text()) + int(stat.get(cached, 0)))
  return max(min(found), 0)
