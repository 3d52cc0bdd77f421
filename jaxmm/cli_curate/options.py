"""What the verbs of `jaxmm curate` have in common: their options, and what they say at the end."""

from __future__ import annotations

import argparse
import collections
import contextlib
import os
import shutil


def corpus(p: argparse.ArgumentParser, without: str = '') -> None:
  """Which files, and where in a record to look; `without` says what happens if none are named."""
  of = p.add_argument_group('corpus')
  of.add_argument(
    '--input',
    nargs='+',
    required=not without,
    metavar='FILE',
    help='files, folders, patterns or URLs: JSON lines (.gz, .zst), Parquet, WebDataset tar, '
    'ArrayRecord (of JSON, local), pictures, zips of pictures, text and source files; or '
    'tfds:NAME/SPLIT, with --text-field and --image-field'
    + (f'; default: {without}' if without else ''),
  )
  of.add_argument(
    '--format',
    default='',
    choices=['jsonl', 'parquet', 'webdataset', 'array_record', 'image', 'zip', 'text'],
    help='of all files; default: by the name of each',
  )
  of.add_argument(
    '--text-field', metavar='NAME', help='default: text, or none where --image-field is given alone'
  )
  of.add_argument('--image-field', default='', metavar='NAME', help='default: none')
  of.add_argument('--id-field', default='', metavar='NAME', help='default: file and row')
  of.add_argument(
    '--suffix',
    nargs='+',
    default=(),
    metavar='.py',
    help='of the files taken from a folder; default: all',
  )
  of.add_argument(
    '--exclude',
    nargs='+',
    default=(),
    metavar='PATTERN',
    help='files and folders to pass over, by name (site-packages, *.min.js) or by the path below '
    'the input (tests/data, vendor/*/old); default: what begins with a dot',
  )


def corpus_of(options):
  """The CorpusConfig of these options."""
  from jaxmm.data.corpus import CorpusConfig

  text_field = options.text_field
  if text_field is None:
    text_field = '' if options.image_field else 'text'
  return CorpusConfig(
    tuple(options.input),
    format=options.format,
    text_field=text_field,
    image_field=options.image_field,
    id_field=options.id_field,
    suffixes=tuple(options.suffix),
    exclude=tuple(options.exclude),
  )


def texts_of(options):
  """The CorpusConfig of these options, for a verb that reads texts.

  Raises:
    ConfigError: no field of texts is named, but one of pictures.
  """
  from jaxmm.config import ConfigError

  inputs = corpus_of(options)
  if inputs.image_field and not inputs.text_field:
    raise ConfigError(
      f'--image-field is {inputs.image_field!r}, but {options.method} reads texts; name their '
      'field, too (--text-field text)'
    )
  return inputs


def at_least(least: int):
  """The type of a whole number that is not below another."""

  def number(text: str) -> int:
    value = int(text)
    if value < least:
      raise argparse.ArgumentTypeError(f'{value}, expected {least} or more')
    return value

  number.__name__ = 'whole number'  # as argparse calls it where it is none
  return number


def processes(p: argparse.ArgumentParser, what: str = '') -> None:
  """How many processes read."""
  p.add_argument(
    '--processes',
    type=at_least(1),
    metavar='N',
    help=f'{what}default: as many as cores',
  )


def output(p: argparse.ArgumentParser, what: str = 'the keep-list') -> None:
  """Where the result goes, and what stays beside it."""
  p.add_argument('--output', required=True, metavar='FILE.parquet', help=what)
  p.add_argument(
    '--workdir',
    metavar='DIR',
    help='or URL: for what another run, with other settings or after a stop, need not do again; '
    'can be deleted when there is none; default: FILE.parquet.work',
  )


def workdir_of(options) -> str:
  """Where stages are kept."""
  return options.workdir or f'{options.output}.work'


def running(p: argparse.ArgumentParser) -> None:
  """Where the list goes, and who reads."""
  output(p)
  workers(p)


def workers(p: argparse.ArgumentParser) -> None:
  """Who reads the files."""
  processes(p)
  p.add_argument(
    '--beam',
    nargs='?',
    const='',
    metavar='OPTIONS',
    help='read files in an Apache Beam pipeline with these pipeline options, in one word: '
    "--beam='--runner=FlinkRunner --flink_master=host:8081'; alone, on Beam's local runner; "
    'default: in processes of this machine',
  )


def runner_of(options):
  """The `runners.Runner` of these options."""
  from jaxmm.curation import runners

  return runners.chosen(options.processes, options.beam)


# Options that name a file which is read.
_READ = ('keep', 'first', 'second', 'after', 'clusters', 'weights', 'vectors', 'ids', 'config')


def check_output(options) -> None:
  """Refuses to write over what is read or is the user's, or where nothing can be written.

  Raises:
    ConfigError: --output is an input, a keep-list or another file that the verb reads, or a folder
      where a file is to be, or it lies in what is no folder.
  """
  from jaxmm.config import ConfigError
  from jaxmm.data import corpus as of_corpus

  path = getattr(options, 'output', None)
  if not path:
    return
  _check_place(path, options)
  if not os.path.exists(path):
    return
  read = [getattr(options, name, None) for name in _READ]
  if getattr(options, 'input', None):
    read += [shard.path for shard in of_corpus.shards(corpus_of(options))]
  same = os.path.realpath(path)
  for other in read:
    if isinstance(other, str) and os.path.realpath(other) == same:
      raise ConfigError(f'--output {path!r} is read by this command; name another file')


def begin(options) -> None:
  """Says what is replaced and what is passed over; called once the settings are checked."""
  from jaxmm.data import corpus as of_corpus

  path = getattr(options, 'output', None)
  if path and os.path.exists(path) and not _is_of_folders(options):
    print(f'{path} is there already; it is replaced once this is done')
  if getattr(options, 'input', None):
    over = of_corpus.passed_over(corpus_of(options))
    if over:
      print('passed over: ' + ', '.join(f'{number:,} {why}' for why, number in over.items()))


def _is_of_folders(options) -> bool:
  return getattr(options, 'method', '') == 'embed'


def _check_place(path: str, options) -> None:
  from jaxmm.config import ConfigError

  if _is_of_folders(options):
    if os.path.isfile(path):
      raise ConfigError(f'--output {path!r} is a file; name a folder')
    other = _not_of_embeddings(path)
    if other:
      raise ConfigError(
        f'--output {path!r} holds other files than embeddings, such as {other!r}; name a folder '
        'that is empty, not there yet, or of embeddings'
      )
  elif os.path.isdir(path):
    in_parts = os.path.exists(os.path.join(path, 'part-00000.parquet'))
    if not in_parts or not path.endswith('.parquet'):
      raise ConfigError(f'--output {path!r} is a folder; name a file')
  above = os.path.abspath(path)
  while not os.path.exists(above):
    above = os.path.dirname(above)
    if os.path.isfile(above):
      raise ConfigError(f'--output {path!r} cannot be made: {above} is a file')
  if above != os.path.abspath(path) and not os.access(above, os.W_OK):
    raise ConfigError(f'--output {path!r} cannot be made: nothing may be written to {above}')


def _not_of_embeddings(folder: str) -> str:
  """A file in a folder that `embed` would not have written there; '' for none."""
  if not os.path.isdir(folder):
    return ''
  work = os.path.join(folder, 'work')
  listed = os.listdir(work) if os.path.isdir(work) else []
  strange = [f'work/{name}' for name in listed if not name.startswith('listed-')]
  if not os.path.exists(os.path.join(folder, 'vectors', 'manifest.json')):
    strange += [name for name in os.listdir(folder) if name != 'work']
  return min(strange, default='')


@contextlib.contextmanager
def tidied(options):
  """Where a command is refused, an empty folder for its stages goes; what else is left is said."""
  from jaxmm.config import ConfigError

  workdir = None
  if getattr(options, 'output', None) and hasattr(options, 'workdir'):
    workdir = workdir_of(options)
  elif _is_of_folders(options):
    workdir = options.output
  was_there = workdir is None or os.path.exists(workdir)
  try:
    yield
  except ConfigError as error:
    if not was_there and os.path.isdir(workdir):
      if any(files for _, _, files in os.walk(workdir)):
        error.add_note(f'what was done before that is in {workdir}; delete it if you do not go on')
      else:
        shutil.rmtree(workdir, ignore_errors=True)  # of several processes one is first
    raise


def written(keep, options) -> int:
  """Writes a list and says what it holds; the status of the command.

  Raises:
    RunError: it keeps nothing.
  """
  from jaxmm.config import RunError
  from jaxmm.curation import keep_list, rejects

  keep_list.write(keep, options.output)
  say(keep, options.output)
  named = rejects.write(keep, options.output)
  if named is not None:
    print(f'  {named} names each that is unreadable, and why')
  if not keep.num_kept:
    raise RunError(
      f'nothing is kept: of {len(keep):,} examples all are dropped, for the reasons above'
      f'{_too_small(options, len(keep))}; {options.output} has each of them'
    )
  return 0


def _too_small(options, number: int) -> str:
  share = getattr(options, 'keep', None)
  if isinstance(share, float) and share * number < 1:
    return f' (--keep {share:g} of {number:,} is less than one)'
  return ''


def say(keep, path) -> None:
  """Says what a list holds."""
  print(f'{path}: {keep.num_kept:,} of {len(keep):,} examples kept ({keep.method})')
  for reason, number in keep.reasons().items():
    error = _most_frequent_error(keep) if reason == 'unreadable' else ''
    print(f'  {number:,} dropped: {reason}{error}')
  print(f'  fingerprint {keep.fingerprint}')


def _most_frequent_error(keep) -> str:
  """Most often of one cause: a field that is named otherwise."""
  counts = collections.Counter(keep.errors().values())
  if not counts:
    return ''
  ((error, number),) = counts.most_common(1)
  return f' (such as, {number:,} times: {error})'
