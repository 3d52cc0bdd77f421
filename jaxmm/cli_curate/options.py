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
  """Where the list goes, and how many processes read."""
  p.add_argument('--output', required=True, metavar='FILE.parquet', help='the keep-list')
  p.add_argument(
    '--workdir', metavar='DIR', help='what is kept between stages; default: FILE.parquet.work'
  )
  p.add_argument(
    '--processes',
    type=int,
    default=os.cpu_count() or 1,
    help='default: %(default)s, as many as cores',
  )


def say(keep, path) -> None:
  """Says what a list holds."""
  print(f'{path}: {keep.num_kept:,} of {len(keep):,} examples kept ({keep.method})')
  for reason, number in keep.reasons().items():
    print(f'  {number:,} dropped: {reason}')
  print(f'  fingerprint {keep.fingerprint}')
