"""`jaxmm curate combine|report|export|show`: what can be done with keep-lists."""

from __future__ import annotations

import pathlib

from jaxmm.cli_curate.options import begin, corpus, corpus_of, say, written
from jaxmm.config import ConfigError

_OTHER = (
  'the keep-list belongs to another corpus: {}; give the inputs and fields that it was made with'
)


def add(methods, verb) -> None:
  """Adds the verbs to `jaxmm curate`; `verb` is the command's own helper."""
  for add_one in (_add_combine, _add_report, _add_export, _add_show):
    add_one(methods, verb)


def _add_combine(methods, verb) -> None:
  p = verb(
    methods, 'combine', _combine,
    'Joins two keep-lists. and, or: both were made of the same corpus; kept is what both keep, or\n'
    'what one of them keeps. then: the second was made of what the first keeps (of a file that\n'
    '`export` wrote); it decides about that. The methods on vectors need no `then`: with\n'
    '--after FIRST.parquet they look at what it keeps, and join both themselves.',
    'jaxmm curate combine quality.parquet and length.parquet --output keep.parquet',
  )  # fmt: skip
  p.add_argument('first', metavar='FIRST.parquet', help='a keep-list')
  p.add_argument('how', choices=['and', 'or', 'then'], help='see above')
  p.add_argument('second', metavar='SECOND.parquet', help='another')
  p.add_argument('--output', required=True, metavar='FILE.parquet', help='the keep-list')


def _combine(options) -> int:
  from jaxmm.curation import keep_list

  join = {'and': keep_list.both, 'or': keep_list.either, 'then': keep_list.then}[options.how]
  keep = join(keep_list.read(options.first), keep_list.read(options.second))
  begin(options)
  return written(keep, options)


def _add_report(methods, verb) -> None:
  p = verb(
    methods, 'report', _report,
    'Writes one HTML page: reasons, scores, clusters, duplicates side by side. With --input '
    'examples are shown, without it their ids.',
    'jaxmm curate report keep.parquet --input corpus/*.jsonl.gz --id-field id',
  )  # fmt: skip
  p.add_argument('keep', metavar='KEEP.parquet', help='the keep-list')
  corpus(p, without='none, the page shows ids')
  p.add_argument('--output', metavar='FILE.html', help='default: KEEP.html')


def _report(options) -> int:
  import pyarrow as pa
  import pyarrow.compute as pc

  from jaxmm.curation import keep_list
  from jaxmm.data import corpus as of_corpus
  from jaxmm.data import kept
  from jaxmm.report.keep_list_page import KeepListFile, keep_list_page

  keep = keep_list.read(options.keep)  # refuses what is damaged
  of = KeepListFile(options.keep)
  begin(options)
  wanted, contents = of.shown(), {}
  rows = keep.table.filter(pc.is_in(keep.table['id'], pa.array(sorted(wanted), pa.string())))
  digests = dict(zip(rows['id'].to_pylist(), rows['digest'].to_pylist()))
  inputs = corpus_of(options) if options.input else None
  for shard in of_corpus.shards(inputs) if inputs else ():
    for example in of_corpus.examples(shard, inputs):
      if example.id in wanted and not example.error:
        if kept.digest(example.id, example.content) != digests[example.id]:
          raise ConfigError(_OTHER.format(f'example {example.id!r} is another now'))
        contents[example.id] = example.text if example.image is None else example.image
  if inputs and wanted and not contents:
    raise ConfigError(_OTHER.format(f'none of the {len(wanted)} examples to be shown is in it'))
  path = keep_list_page(of, contents).write(
    options.output or pathlib.Path(options.keep).with_suffix('.html')
  )
  what = 'with their contents' if inputs else 'by id alone; --input FILE... shows their contents'
  print(f'{path}: {len(keep):,} examples, {len(wanted)} shown {what}')
  return 0


def _add_export(methods, verb) -> None:
  p = verb(
    methods, 'export', _export,
    'Writes the examples that a keep-list keeps, or those that it drops, with the reason. What\n'
    'cannot be read has the reason `unreadable`; KEEP.parquet.rejects.jsonl, which every method\n'
    'writes where there is such, names these alone.',
    'jaxmm curate export keep.parquet --input corpus/*.jsonl.gz --id-field id \\\n'
    '    --output kept.jsonl.gz',
  )  # fmt: skip
  p.add_argument('keep', metavar='KEEP.parquet', help='the keep-list')
  corpus(p)
  p.add_argument(
    '--dropped',
    action='store_true',
    help='those that are dropped, with fields id (a string, as in the list), reason and error; a '
    "record's own of these names becomes record.id, ...; default: the kept ones",
  )
  p.add_argument(
    '--output', required=True, metavar='FILE', help='.jsonl, .jsonl.gz, .parquet or .array_record'
  )


def _export(options) -> int:
  from jaxmm.curation import export, keep_list

  keep = keep_list.read(options.keep)
  begin(options)
  export.export(corpus_of(options), keep, pathlib.Path(options.output), dropped=options.dropped)
  return 0


def _add_show(methods, verb) -> None:
  p = verb(
    methods, 'show', _show,
    'Says what a keep-list holds: method, parameters, how many are kept, and why others are not.',
    'jaxmm curate show keep.parquet',
  )  # fmt: skip
  p.add_argument('keep', metavar='KEEP.parquet', help='the keep-list')


def _show(options) -> int:
  from jaxmm.curation import keep_list

  keep = keep_list.read(options.keep)
  say(keep, options.keep)
  _say_parameters(keep.parameters, '  ')
  return 0


def _say_parameters(parameters, indent: str) -> None:
  for name, value in parameters.items():
    if name in ('and', 'or', 'then') and isinstance(value, list):
      print(f'{indent}joined by {name}:')
      for part in value:
        print(f'{indent}  {part["name"]}')
        _say_parameters(part['parameters'], f'{indent}    ')
    else:
      print(f'{indent}{name}: {value}')
