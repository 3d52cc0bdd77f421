"""What the verbs of `jaxmm curate` have in common: their options, and what they say at the end."""

from __future__ import annotations

import argparse
import os


def corpus(p: argparse.ArgumentParser, is_required: bool = True) -> None:
  """Which files, and where in a record to look."""
  of = p.add_argument_group('corpus')
  of.add_argument(
    '--input',
    nargs='+',
    required=is_required,
    metavar='FILE',
    help='files, folders, patterns or URLs: JSON lines (.gz, .zst), Parquet, WebDataset tar, '
    'ArrayRecord, pictures, text and source files',
  )
  of.add_argument('--format', default='', help='of all files; default: by the name of each')
  of.add_argument('--text-field', default='text', metavar='NAME', help='default: %(default)s')
  of.add_argument('--image-field', default='', metavar='NAME', help='default: none')
  of.add_argument('--id-field', default='', metavar='NAME', help='default: file and row')
  of.add_argument(
    '--suffix', nargs='+', default=(), metavar='.py', help='of the files taken from a folder'
  )


def corpus_of(options):
  """The CorpusConfig of these options."""
  from jaxmm.data.corpus import CorpusConfig

  return CorpusConfig(
    tuple(options.input),
    format=options.format,
    text_field=options.text_field,
    image_field=options.image_field,
    id_field=options.id_field,
    suffixes=tuple(options.suffix),
  )


def running(p: argparse.ArgumentParser) -> None:
  """Where the list goes, and who reads."""
  p.add_argument('--output', required=True, metavar='FILE.parquet', help='the keep-list')
  p.add_argument(
    '--workdir',
    metavar='DIR',
    help='or URL: what is kept between stages; default: FILE.parquet.work',
  )
  workers(p)


def workers(p: argparse.ArgumentParser) -> None:
  """Who reads the files."""
  p.add_argument('--processes', type=int, help='default: as many as cores')
  p.add_argument(
    '--beam',
    nargs='?',
    const='',
    metavar='OPTIONS',
    help='read files in an Apache Beam pipeline with these pipeline options, in one word: '
    "--beam='--runner=FlinkRunner --flink_master=host:8081'; alone, on Beam's local runner",
  )


def runner_of(options):
  """The `runners.Runner` of these options."""
  from jaxmm.curation import runners

  return runners.chosen(options.processes, options.beam)


# Options that name a file which is read.
_READ = ('keep', 'first', 'second', 'after', 'clusters', 'weights', 'vectors', 'ids', 'config')


def check_output(options) -> None:
  """Refuses to write over what is read.

  Raises:
    ConfigError: --output is an input, a keep-list or another file that the verb reads.
  """
  from jaxmm.config import ConfigError
  from jaxmm.data import corpus as of_corpus

  output = getattr(options, 'output', None)
  if not output or not os.path.exists(output):
    return
  read = [getattr(options, name, None) for name in _READ]
  if getattr(options, 'input', None):
    read += [shard.path for shard in of_corpus.shards(corpus_of(options))]
  same = os.path.realpath(output)
  for path in read:
    if isinstance(path, str) and os.path.realpath(path) == same:
      raise ConfigError(f'--output {output!r} is read by this command; name another file')


def say(keep, path) -> None:
  """Says what a list holds."""
  print(f'{path}: {keep.num_kept:,} of {len(keep):,} examples kept ({keep.method})')
  for reason, number in keep.reasons().items():
    error = _most_frequent_error(keep) if reason == 'unreadable' else ''
    print(f'  {number:,} dropped: {reason}{error}')
  print(f'  fingerprint {keep.fingerprint}')


def _most_frequent_error(keep) -> str:
  """Most often of one cause: a field that is named otherwise."""
  columns = [name for name in keep.table.column_names if name.split('.')[-1] == 'error']
  counts: dict[str, int] = {}
  for name in columns:
    for error in keep.table[name].drop_null().to_pylist():
      counts[error] = counts.get(error, 0) + 1
  if not counts:
    return ''
  error, number = max(counts.items(), key=lambda item: item[1])
  return f' (such as, {number:,} times: {error})'
