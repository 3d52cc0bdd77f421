"""`jaxmm curate d4|semdedup|prototypes|dbp|cluster`: the methods on vectors."""

from __future__ import annotations

import argparse
import os

from jaxmm.cli_curate import embed, several
from jaxmm.cli_curate import options as common
from jaxmm.cli_curate.options import corpus, workdir_of, written

_ORDER = "which stay: 'hard', far from their centroid, or 'easy', near it"


def add(methods, verb) -> None:
  """Adds the verbs to `jaxmm curate`; `verb` is the command's own helper."""
  _add_d4(methods, verb)
  _add_semdedup(methods, verb)
  _add_prototypes(methods, verb)
  _add_dbp(methods, verb)
  _add_cluster(methods, verb)


def _vectors(p: argparse.ArgumentParser, what: str = 'the keep-list') -> None:
  common.output(p, what)
  of = p.add_argument_group('vectors', 'those of a directory, or of a corpus, embedded first')
  of.add_argument(
    '--vectors', metavar='DIR', help='what `jaxmm curate embed` wrote; default: those of --input'
  )
  corpus(p, without='none, --vectors is read')
  p.add_argument(
    '--encoder',
    default='minilm',
    choices=embed.OURS,
    help='of --input; default: %(default)s',
  )
  embed.of_encoder(p)
  of.add_argument(
    '--after',
    metavar='KEEP.parquet',
    help='look only at what this keep-list keeps; the result is of the whole corpus, as '
    '`combine KEEP.parquet then ...` would join them; default: all',
  )
  km = p.add_argument_group('k-means')
  km.add_argument(
    '--clusters',
    type=common.at_least(0),
    default=0,
    metavar='K',
    help='default: the square root of the rows that are fitted',
  )
  km.add_argument(
    '--iterations', type=int, default=20, metavar='N', help='at most; default: %(default)s'
  )
  km.add_argument(
    '--init',
    default='sampled',
    choices=['sampled', 'k-means++'],
    help='where centroids begin; default: %(default)s',
  )
  km.add_argument(
    '--fit-rows',
    type=int,
    default=0,
    metavar='N',
    help='fit on so many random rows, then assign all; default: on all',
  )
  km.add_argument(
    '--tolerance',
    type=float,
    default=0.0,
    help='end when an iteration lowers the mean distance by a smaller share; default: %(default)s',
  )
  km.add_argument('--seed', type=int, default=0, help='of the sample; default: %(default)s')
  memory = p.add_argument_group('memory')
  memory.add_argument(
    '--memory',
    type=float,
    metavar='GIB',
    help='refuse to start where more would be taken; default: what the machine has left',
  )
  memory.add_argument(
    '--on-disk', action='store_true', help='read vectors from a file in --workdir as needed'
  )
  several.add_options(p, 'the vectors, the corpus and --workdir')


def _share(
  p: argparse.ArgumentParser,
  what: str = 'share of the examples with a vector that is kept; with --after: of those it keeps',
) -> None:
  p.add_argument('--keep', type=float, required=True, help=what)


def _balance(p: argparse.ArgumentParser) -> None:
  p.add_argument(
    '--balance',
    type=float,
    default=0.0,
    metavar='SHARE',
    help='least share of an equal part that a cluster keeps; default: %(default)s',
  )


def _add_d4(methods, verb) -> None:
  p = verb(
    methods, 'd4', _d4,
    'D4: semantic duplicates go, what is left is clustered again, and its most prototypical '
    'examples go.',
    'jaxmm curate d4 --input corpus/*.jsonl.gz --text-field text --id-field id \\\n'
    '    --prefer hard --keep 0.6 --output keep.parquet',
  )  # fmt: skip
  _share(p, 'R, share that is kept of the examples with a vector; at most --dedup-keep')
  p.add_argument(
    '--dedup-keep',
    type=float,
    default=0.75,
    help='share that SemDeDup leaves; default: %(default)s',
  )
  p.add_argument('--no-recluster', action='store_true', help='rank by the first clustering')
  p.add_argument(
    '--prefer', required=True, choices=['hard', 'easy'], help=f"{_ORDER}; the paper's: hard"
  )
  _balance(p)
  _vectors(p)


def _add_semdedup(methods, verb) -> None:
  p = verb(
    methods, 'semdedup', _semdedup,
    'SemDeDup: within clusters, what is more similar than 1 - eps to an earlier example goes.',
    'jaxmm curate semdedup --vectors vectors --prefer hard --eps 0.05 --output keep.parquet',
  )  # fmt: skip
  cut = p.add_mutually_exclusive_group(required=True)
  cut.add_argument('--eps', type=float, help='1 - the largest similarity that stays')
  cut.add_argument('--keep', type=float, help='share of the examples that is kept, instead')
  p.add_argument('--prefer', required=True, choices=['hard', 'easy'], help=_ORDER)
  _vectors(p)


def _add_prototypes(methods, verb) -> None:
  p = verb(
    methods, 'prototypes', _prototypes,
    'SSL Prototypes: one ranking by distance to the nearest centroid.',
    'jaxmm curate prototypes --vectors vectors --prefer hard --keep 0.5 --output keep.parquet',
  )  # fmt: skip
  _share(p)
  p.add_argument('--prefer', required=True, choices=['hard', 'easy'], help=_ORDER)
  _balance(p)
  _vectors(p)


def _add_dbp(methods, verb) -> None:
  p = verb(
    methods, 'dbp', _dbp,
    'DBP: complex clusters keep more. Give it what SemDeDup keeps (--after).',
    'jaxmm curate dbp --vectors vectors --after semdedup.parquet --prefer hard --keep 0.5 \\\n'
    '    --output keep.parquet',
  )  # fmt: skip
  _share(p)
  p.add_argument('--prefer', required=True, choices=['hard', 'easy'], help=_ORDER)
  p.add_argument(
    '--temperature',
    type=float,
    default=0.1,
    help='tau: the lower, the more complex clusters keep; default: %(default)s',
  )
  p.add_argument(
    '--neighbours',
    type=int,
    default=20,
    metavar='N',
    help='centroids whose distance makes a cluster complex; default: %(default)s',
  )
  _balance(p)
  _vectors(p)


def _kmeans_of(options):
  from jaxmm.curation.kmeans import KMeansConfig

  return KMeansConfig(
    clusters=options.clusters,
    iterations=options.iterations,
    tolerance=options.tolerance,
    init=options.init,
    fit_rows=options.fit_rows,
    seed=options.seed,
  )


def _d4(options) -> int:
  from jaxmm.curation import d4

  config = d4.D4Config(
    options.prefer,
    options.keep,
    options.dedup_keep,
    recluster=not options.no_recluster,
    balance=options.balance,
    kmeans=_kmeans_of(options),
  )
  return _judge(options, lambda of, stages: d4.run(of, config, stages))


def _semdedup(options) -> int:
  from jaxmm.curation import semdedup

  config = semdedup.SemDedupConfig(options.prefer, options.eps, options.keep)
  kmeans = _kmeans_of(options)
  return _judge(options, lambda of, stages: semdedup.run(of, config, kmeans, stages))


def _prototypes(options) -> int:
  from jaxmm.curation import prototypes

  config = prototypes.PrototypesConfig(options.prefer, options.keep, options.balance)
  kmeans = _kmeans_of(options)
  return _judge(options, lambda of, stages: prototypes.run(of, config, kmeans, stages))


def _dbp(options) -> int:
  from jaxmm.curation import dbp
  from jaxmm.report.markup import number_text

  config = dbp.DbpConfig(
    options.prefer,
    options.keep,
    temperature=options.temperature,
    neighbours=options.neighbours,
    balance=options.balance,
  )
  kmeans = _kmeans_of(options)

  def judge(of, stages):
    keep, shares = dbp.run(of, config, kmeans, stages)
    print('cluster  rows  complexity  wanted  kept')
    for k in shares.complexity_K.argsort()[::-1][:10]:
      numbers = (shares.size_K, shares.complexity_K, shares.wanted_K, shares.count_K)
      print(f'{k:7}', *(f'{number_text(values[k].item()):>9}' for values in numbers))
    return keep

  return _judge(options, judge)


def _add_cluster(methods, verb) -> None:
  p = verb(
    methods, 'cluster', _cluster,
    'k-means alone: of every example with a vector its cluster, and the distance to the centroid.',
    'jaxmm curate cluster --vectors vectors --clusters 100 --output clusters.parquet',
  )  # fmt: skip
  _vectors(p, 'id, digest, cluster and distance, as `scip --clusters` reads them')


def _cluster(options) -> int:
  import jax
  import pyarrow as pa
  import pyarrow.parquet as pq

  of, stages, _ = _given(options)
  found = stages.clustering('kmeans', of, _kmeans_of(options))
  if jax.process_index():
    return 0
  table = pa.table(
    {
      'id': of.ids.take(pa.array(of.usable_U)),
      'digest': of.digest_N[of.usable_U],
      'cluster': found.cluster_N,
      'distance': found.distance_N,
    }
  )
  partial = f'{options.output}.partial'
  os.makedirs(os.path.dirname(os.path.abspath(partial)), exist_ok=True)
  pq.write_table(table, partial, compression='zstd')
  os.replace(partial, options.output)
  print(f'{options.output}: {len(table):,} examples in {len(found.centroid_KD):,} clusters')
  return 0


def _judge(options, run) -> int:
  """Vectors in, the list written and described."""
  import jax

  from jaxmm.curation import keep_list

  of, stages, first = _given(options)
  keep = run(of, stages)
  if first is not None:
    keep = keep_list.then(first, keep)
  return written(keep, options) if jax.process_index() == 0 else 0


def _given(options):
  """(vectors, stages, the keep-list before or None)."""
  import jax

  from jaxmm.config import ConfigError
  from jaxmm.curation import embeddings, keep_list, vectors
  from jaxmm.curation.stages import Stages

  if (options.vectors is None) == (options.input is None):
    raise ConfigError('give either --vectors DIR or --input FILE..., which is embedded first')
  first = keep_list.read(options.after) if options.after else None
  common.begin(options)
  workdir = workdir_of(options)
  directory = options.vectors
  if directory is None:
    directory = f'{workdir}/vectors'
    embed.embed(options, directory, anew=True)
  embedded = embeddings.read(directory)
  usable = int(embedded.usable_N.sum())
  if usable:  # otherwise there is more to say
    _plan(options, embedded.x_ND.shape, usable)
  file = f'{workdir}/rows-{jax.process_index()}.npy' if options.on_disk else None
  of = vectors.of_embeddings(embedded, file)
  print(f'{len(of):,} examples, {len(of.usable_U):,} with vectors')
  if first is not None:
    of = of.only_kept(first)
    print(f'{len(of):,} of them are kept by {options.after}')
  return of, Stages(workdir, echo=print), first


def _plan(options, shape, usable: int) -> None:
  """Says what memory will be taken, and refuses what is too much, before vectors are loaded."""
  import jax

  from jaxmm.config import ConfigError
  from jaxmm.curation import memory_plan

  given = dict(
    on_disk=options.on_disk,
    compared=options.method in ('d4', 'semdedup'),
    usable=usable,
    devices=jax.device_count(),
    processes=jax.process_count(),
  )
  print(f'memory: {memory_plan.of_vectors(*shape, _kmeans_of(options), **given)}')
  limit = memory_plan.available()
  if options.memory is not None:
    if options.memory <= 0:
      raise ConfigError(f'--memory is {options.memory}, expected GiB above 0')
    limit = options.memory * 2**30
  if limit is None:
    print('memory: this system does not say how much is left; --memory GIB has it checked')
  else:
    memory_plan.check(limit, *shape, _kmeans_of(options), **given)
