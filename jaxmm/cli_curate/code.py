"""`jaxmm curate long_files`, `scip` and `corrupt`: the methods that were made for code."""

from __future__ import annotations

import argparse

from jaxmm.cli_curate.options import (
  begin,
  corpus,
  output,
  runner_of,
  running,
  texts_of,
  workdir_of,
  workers,
  written,
)

# Those of `curation.corruptions`, which is not imported before the verb runs.
KINDS = ('delete_brackets', 'bad_names', 'flip_conditions', 'shift_indices')


def add(methods, verb) -> None:
  """Adds the verbs to those of `curate`; `verb` is the command's own helper."""
  add_long_files(methods, verb)
  add_scip(methods, verb)
  add_corrupt(methods, verb)


def _counter(p: argparse.ArgumentParser) -> None:
  p.add_argument(
    '--tokens',
    default='bytes',
    metavar='COUNTER',
    help="what length is counted in: 'bytes', 'characters', 'words', the path of a tokenizer.json, "
    'or package.module:function; default: %(default)s',
  )


def add_long_files(methods, verb) -> None:
  """The verb `long_files`."""
  p = verb(
    methods, 'long_files', _long_files,
    'The longest files go, by their share of the tokens, of the files, or above a length.',
    'jaxmm curate long_files --input src --suffix .py --drop-token-share 0.2 \\\n'
    '    --tokens tokenizer.json --output keep.parquet',
  )  # fmt: skip
  corpus(p)
  how = p.add_mutually_exclusive_group(required=True)
  how.add_argument(
    '--drop-token-share',
    type=float,
    metavar='SHARE',
    help='the fewest longest files that hold this share of all tokens',
  )
  how.add_argument(
    '--drop-file-share',
    type=float,
    metavar='SHARE',
    help='the fewest longest files that are this share of the files',
  )
  how.add_argument('--max-tokens', type=int, metavar='N', help='all files with more tokens')
  _counter(p)
  p.add_argument(
    '--show', type=int, default=5, metavar='N', help='name the N longest files; default: 5'
  )
  running(p)


def _long_files(options) -> int:
  from jaxmm.curation import long_files, token_counts

  config = long_files.LongFilesConfig(
    options.drop_token_share, options.drop_file_share, options.max_tokens
  )
  token_counts.counter(options.tokens)  # refuses what is none
  begin(options)
  keep = long_files.run(
    texts_of(options),
    config,
    workdir_of(options),
    counter=options.tokens,
    runner=runner_of(options),
  )
  table = keep.table
  print(f'tokens are {options.tokens}')
  for name, part in (('all', table), ('kept', table.filter(table['keep']))):
    tokens = part['tokens'].drop_null().to_numpy()
    print('\n  '.join([f'{name}:', *long_files.token_mass(tokens).lines()]))
  order = [('tokens', 'descending'), ('id', 'ascending')]
  for row in table.sort_by(order).slice(0, options.show).to_pylist():
    print(f'  {row["tokens"] or 0:,} tokens: {row["id"]}{" (kept)" * row["keep"]}')
  return written(keep, options)


def add_scip(methods, verb) -> None:
  """The verb `scip`, on clusters that the user brings."""
  p = verb(
    methods, 'scip', _scip,
    'Files in small clusters, and those far from the centroid of theirs, go.',
    'jaxmm curate scip --input src --suffix .py --clusters clusters.parquet --direction easy \\\n'
    '    --keep 0.8 --alpha 0.8 --output keep.parquet',
  )  # fmt: skip
  corpus(p)
  p.add_argument(
    '--clusters',
    required=True,
    metavar='FILE.parquet',
    help='what `jaxmm curate cluster` wrote: id, cluster, distance (1 - cosine to the centroid) of '
    'every example that can be read, and digest, which shows clusters of other data; in a file of '
    'your own that may be absent',
  )
  p.add_argument(
    '--direction',
    required=True,
    choices=['easy', 'hard'],
    help="easy is the paper's: prunes small clusters and far files, so that easy ones stay as with "
    '--prefer easy of other methods; hard prunes the opposite',
  )
  share = p.add_mutually_exclusive_group(required=True)
  share.add_argument('--keep', type=float, metavar='SHARE', help='share of the files to keep')
  share.add_argument('--prune', type=float, metavar='SHARE', help='or to prune; the paper: 0.2')
  p.add_argument(
    '--alpha',
    type=float,
    default=0.8,
    help='share of the pruned that go for their cluster; default: %(default)s',
  )
  p.add_argument(
    '--length-bins',
    type=int,
    default=0,
    metavar='B',
    help='rank distances within B quantiles of length; default: 0, as they are',
  )
  _counter(p)
  running(p)


def _scip(options) -> int:
  from jaxmm.curation import length_confounding, scip, scip_job, token_counts

  config = scip.ScipConfig(
    options.direction,
    keep_fraction=options.keep,
    prune_fraction=options.prune,
    alpha=options.alpha,
    length_bins=options.length_bins,
  )
  clusters = scip_job.read_clusters(options.clusters)
  token_counts.counter(options.tokens)  # refuses what is none
  begin(options)
  keep = scip_job.run(
    texts_of(options),
    clusters,
    config,
    workdir_of(options),
    counter=options.tokens,
    runner=runner_of(options),
  )
  table = keep.table.filter(keep.table['distance'].is_valid())
  found = length_confounding.report(table['distance'].to_numpy(), table['tokens'].to_numpy())
  print('\n'.join(['distance and length:', *found.lines()]))
  return written(keep, options)


def add_corrupt(methods, verb) -> None:
  """The verb `corrupt`: damaged versions of a corpus, to see where an encoder puts them."""
  p = verb(
    methods, 'corrupt', _corrupt,
    'Writes versions of Python files that are damaged on purpose (SCIP\'s corruptions).',
    'jaxmm curate corrupt --input src --suffix .py --rate 0.1 --output damaged.parquet',
  )  # fmt: skip
  corpus(p)
  p.add_argument(
    '--kinds',
    nargs='+',
    default=(),
    metavar='KIND',
    help=f'some of {", ".join(KINDS)}; default: all four',
  )
  p.add_argument(
    '--rate',
    type=float,
    default=0.1,
    help='share of the places that are changed; default: %(default)s',
  )
  p.add_argument('--seed', type=int, default=0, help='of the choice; default: %(default)s')
  output(p, 'id, of (the original), kind, text, places, changed, reason')
  workers(p)


def _corrupt(options) -> int:
  from jaxmm.curation import corruptions_job

  kinds = {'kinds': tuple(options.kinds)} if options.kinds else {}
  config = corruptions_job.CorruptionsConfig(**kinds, rate=options.rate, seed=options.seed)
  begin(options)
  table = corruptions_job.run(
    texts_of(options),
    config,
    workdir_of(options),
    runner=runner_of(options),
  )
  corruptions_job.write(table, options.output)
  print(f'{options.output}: {len(table):,} rows')
  for kind, numbers in corruptions_job.outcomes(table).items():
    others = ', '.join(f'{number:,} {reason}' for reason, number in numbers.items() if reason)
    print(f'  {kind}: {numbers.get("", 0):,} damaged' + (f'; not: {others}' if others else ''))
  return 0
