"""Peak resident memory of curation at 1x and 10x data, each job a command in a process of its own.

    python experiments/performance/memory.py --directory /tmp/memory

Vectors are those of `vectors.py` (20,000 and 200,000 x 384), documents those of `planted.py` (2,000
and 20,000; for `embed`, by MiniLM, whose weights are a package of their own, 200 and 2,000). One
JSON line a job: the resident peak, that without pages of files, which the system takes back when it
needs them, and for vectors what the command planned before it loaded them. k is the square root of
the rows; three iterations, as more take no more memory.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
import planted
import vectors

JOBS = {
  'k-means': ['cluster'],
  'semdedup': ['semdedup', '--prefer', 'hard', '--keep', '0.75'],
  'd4': ['d4', '--prefer', 'hard', '--keep', '0.6'],
  'd4, on disk': ['d4', '--prefer', 'hard', '--keep', '0.6', '--on-disk', '--fit-rows', '20000'],
  'one cluster, on disk': (
    'semdedup --prefer hard --keep 0.75 --clusters 1 --on-disk --fit-rows 2000'
  ).split(),
}


OF_DOCUMENTS = {
  'minhash': ['minhash', '--processes', '1'],
  'embed': ['embed', '--encoder', 'minilm', '--processes', '1', '--rows-per-shard', '64'],
}


def embedded(rows: int, directory: pathlib.Path) -> pathlib.Path:
  """A directory of vectors, as `jaxmm curate embed` leaves it."""
  from jaxmm.curation import embeddings

  out = directory / f'embedded-{rows}'
  if not (out / embeddings.EXAMPLES).exists():
    x = vectors.rows(directory)[:rows]
    embeddings.write(embeddings.of_arrays([f'{n:07}' for n in range(rows)], x), out)
  return out


def documents(number: int, directory: pathlib.Path) -> pathlib.Path:
  out = directory / f'planted-{number}.jsonl'
  if not out.exists():
    texts, _ = planted.corpus(number, directory)
    out.write_text(''.join(json.dumps({'text': text}) + '\n' for text in texts))
  return out


def status_of(pid: int) -> tuple[int, int]:
  """KiB of a process: (resident peak, what the system cannot take back now); 0 once it ended.

  The peak that `wait4` reports is no use: a child inherits that of its parent.
  """
  try:
    status = pathlib.Path(f'/proc/{pid}/status').read_text()
  except FileNotFoundError:
    return 0, 0
  found = [re.search(rf'{name}:\s+(\d+) kB', status) for name in ('VmHWM', 'RssAnon')]
  return tuple(int(of[1]) if of else 0 for of in found)


def measured(words: list[str], log: pathlib.Path) -> dict:
  """Peaks of a command (of its first process, if it starts others) and seconds."""
  begin, peak, kept = time.perf_counter(), 0, 0
  command = [sys.executable, '-m', 'jaxmm', 'curate', *words]
  with open(log, 'w') as out, subprocess.Popen(command, stdout=out) as process:
    while process.poll() is None:
      now = status_of(process.pid)
      peak, kept = max(peak, now[0]), max(kept, now[1])
      time.sleep(0.01)
  if process.returncode:
    raise SystemExit(f'jaxmm curate {" ".join(words)} failed; see {log}')
  planned = re.search(r'memory: ([\d.]+) GiB at most', log.read_text())
  return {
    'peak_mib': round(peak / 1024),
    'anonymous_mib': round(kept / 1024),
    'planned_mib': round(float(planned[1]) * 1024) if planned else None,
    'seconds': round(time.perf_counter() - begin, 1),
  }


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--directory', required=True, type=pathlib.Path, help='for data and results')
  parser.add_argument('--rows', nargs='+', type=int, default=[20_000, 200_000])
  parser.add_argument('--documents', nargs='+', type=int, default=[2_000, 20_000])
  parser.add_argument('--texts', nargs='+', type=int, default=[200, 2_000], help='for embed')
  parser.add_argument('--jobs', nargs='+', default=[*JOBS, *OF_DOCUMENTS])
  options = parser.parse_args()
  options.directory.mkdir(parents=True, exist_ok=True)
  for job in options.jobs:
    sizes = {'minhash': options.documents, 'embed': options.texts}.get(job, options.rows)
    for size in sizes:
      if job == 'one cluster, on disk' and size > 60_000:
        size = 60_000  # its work grows with the square
      if job in OF_DOCUMENTS:
        words = [*OF_DOCUMENTS[job], '--input', str(documents(size, options.directory))]
      else:
        words = [*JOBS[job], '--vectors', str(embedded(size, options.directory))]
        words += ['--iterations', '3']
      name = f'{re.sub("[^a-z0-9]+", "-", job)}-{size}-{np.random.randint(1 << 30)}'
      out = options.directory / f'{name}.parquet'
      found = measured([*words, '--output', str(out)], options.directory / f'{name}.log')
      print(json.dumps({'job': job, 'size': size, **found}), flush=True)


if __name__ == '__main__':
  main()
