"""`jaxmm curate minhash`."""

from __future__ import annotations

from jaxmm.cli_curate.options import corpus, corpus_of, runner_of, running, say


def add(methods, verb) -> None:
  """Adds the verb to `jaxmm curate`; `verb` is the command's own helper."""
  p = verb(
    methods, 'minhash', _minhash,
    'Near-duplicates by MinHash and banding; one document of each cluster is kept.',
    'jaxmm curate minhash --input corpus/*.jsonl.gz --text-field text --id-field id \\\n'
    '    --threshold 0.8 --output keep.parquet',
  )  # fmt: skip
  corpus(p)
  p.add_argument('--threshold', type=float, default=0.7, help='Jaccard; default: %(default)s')
  p.add_argument('--shingle', default='words', choices=['words', 'characters'])
  p.add_argument('--shingle-size', type=int, default=5, help='default: %(default)s')
  p.add_argument('--permutations', type=int, default=128, help='default: %(default)s')
  p.add_argument(
    '--bands', type=int, default=0, help='default: the fewest that find 95%% at the threshold'
  )
  p.add_argument(
    '--check',
    default='exact',
    choices=['exact', 'signature', 'none'],
    help='of candidates; default: %(default)s',
  )
  p.add_argument(
    '--survivor',
    default='longest',
    choices=['longest', 'shortest', 'first_id'],
    help='of a cluster; default: %(default)s',
  )
  p.add_argument('--seed', type=int, default=0, help='default: %(default)s')
  running(p)


def _minhash(options) -> int:
  from jaxmm.curation import keep_list, minhash_job
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
  keep = minhash_job.run(
    corpus_of(options),
    config,
    options.workdir or f'{options.output}.work',
    survivor=options.survivor,
    runner=runner_of(options),
  )
  keep_list.write(keep, options.output)
  say(keep, options.output)
  return 0
