"""`jaxmm curate minhash`."""

from __future__ import annotations

from jaxmm.cli_curate.options import (
  begin,
  corpus,
  runner_of,
  running,
  texts_of,
  workdir_of,
  written,
)


def add(methods, verb) -> None:
  """Adds the verb to `jaxmm curate`; `verb` is the command's own helper."""
  p = verb(
    methods, 'minhash', _minhash,
    'Near-duplicates by MinHash and banding; one document of each cluster is kept.',
    'jaxmm curate minhash --input corpus/*.jsonl.gz --text-field text --id-field id \\\n'
    '    --threshold 0.8 --output keep.parquet',
  )  # fmt: skip
  corpus(p)
  p.add_argument(
    '--threshold',
    type=float,
    default=0.7,
    help='least Jaccard similarity of duplicates; default: %(default)s',
  )
  p.add_argument(
    '--shingle',
    default='words',
    choices=['words', 'characters'],
    help='runs of which are compared; default: %(default)s',
  )
  p.add_argument(
    '--shingle-size', type=int, default=5, metavar='N', help='of these; default: %(default)s'
  )
  p.add_argument(
    '--permutations', type=int, default=128, metavar='N', help='hashes a text; default: %(default)s'
  )
  p.add_argument(
    '--bands',
    type=int,
    default=0,
    metavar='N',
    help='default: the fewest that find 95%% at the threshold',
  )
  p.add_argument(
    '--check',
    default='exact',
    choices=['exact', 'signature', 'none'],
    help='how candidates are compared: their texts, their hashes, or not; default: %(default)s',
  )
  p.add_argument(
    '--survivor',
    default='longest',
    choices=['longest', 'shortest', 'first_id'],
    help='of a cluster of duplicates; default: %(default)s',
  )
  p.add_argument('--seed', type=int, default=0, help='of the hashes; default: %(default)s')
  running(p)


def _minhash(options) -> int:
  from jaxmm.curation import minhash_job
  from jaxmm.curation.minhash import MinHashConfig
  from jaxmm.curation.shingles import ShingleConfig

  config = MinHashConfig(
    threshold=options.threshold,
    permutations=options.permutations,
    bands=options.bands,
    check=options.check,
    seed=options.seed,
    shingles=ShingleConfig(options.shingle, options.shingle_size),
  )
  begin(options)
  keep = minhash_job.run(
    texts_of(options),
    config,
    workdir_of(options),
    survivor=options.survivor,
    runner=runner_of(options),
  )
  return written(keep, options)
