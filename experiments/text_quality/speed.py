"""Documents a second of the whole job: files in, keep-list written.

    python experiments/text_quality/speed.py TEXTS.jsonl.gz --documents 40000 --processes 1 2

The texts are repeated, with new ids, in files of 2,500 documents (uncompressed JSON lines).
"""

from __future__ import annotations

import argparse
import itertools
import json
import pathlib
import resource
import tempfile
import time

from jaxmm.curation import keep_list, runners, text_quality_job
from jaxmm.curation.text_quality import QualityConfig, Weights
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig

IN_A_FILE = 2500


def main() -> None:
  p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  p.add_argument('data')
  p.add_argument('--documents', type=int, default=40_000)
  p.add_argument('--processes', type=int, nargs='+', default=[1, 2])
  options = p.parse_args()
  given = CorpusConfig((options.data,))
  texts = [e.text for s in corpus.shards(given) for e in corpus.examples(s, given) if e.text]
  with tempfile.TemporaryDirectory() as folder:
    root = pathlib.Path(folder)
    (root / 'in').mkdir()
    number = itertools.count()
    rows = itertools.islice(itertools.cycle(texts), options.documents)
    lines = (json.dumps({'id': f'{next(number):09}', 'text': text}) + '\n' for text in rows)
    for file in itertools.count():
      chunk = list(itertools.islice(lines, IN_A_FILE))
      if not chunk:
        break
      (root / 'in' / f'{file:05}.jsonl').write_text(''.join(chunk))
    size = sum(f.stat().st_size for f in (root / 'in').iterdir())
    print(f'{options.documents} documents, {size / 1e6:.1f} MB\n')
    print('| processes | seconds | documents/s | CPU seconds |\n|---|---|---|---|')
    for processes in options.processes:
      began, before = time.perf_counter(), cpu_seconds()
      keep = text_quality_job.run(
        CorpusConfig((str(root / 'in'),), id_field='id'), QualityConfig(), Weights.uniform(),
        root / f'work{processes}', keep=0.6, runner=runners.Local(processes), echo=None,
      )  # fmt: skip
      keep_list.write(keep, root / 'keep.parquet')
      seconds, cpu = time.perf_counter() - began, cpu_seconds() - before
      assert len(keep) == options.documents
      print(f'| {processes} | {seconds:.1f} | {len(keep) / seconds:,.0f} | {cpu:.1f} |')


def cpu_seconds() -> float:
  """Of this process and those that have ended."""
  uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
  return sum(use.ru_utime + use.ru_stime for use in uses)


if __name__ == '__main__':
  main()
