"""`jaxmm curate embed`: vectors of a corpus, for the methods that read vectors."""

from __future__ import annotations

from jaxmm.cli_curate import several
from jaxmm.cli_curate.options import at_least, begin, corpus, corpus_of, processes

OURS = ('minilm', 'image', 'tokenizer', 'lm')
ENCODERS = (*OURS, 'brought')


def add(methods, verb) -> None:
  """Adds `embed` to the verbs of `jaxmm curate`; `verb` is the command's own helper."""
  p = verb(
    methods, 'embed', _embed,
    'Vectors of every example, in a directory that methods on vectors read. Run again it goes on.\n'
    'Encoders: minilm (all-MiniLM-L6-v2, or a folder of BERT weights), image (EfficientNet-\n'
    'Lite0), tokenizer (mean latents of an image tokenizer that `jaxmm train` trained), lm (last\n'
    'states of an LM of it), brought (your own vectors).',
    'jaxmm curate embed --input corpus/*.jsonl.gz --id-field id --encoder minilm --output vectors\n'
    '  jaxmm curate embed --input corpus/*.jsonl.gz --id-field id --encoder brought \\\n'
    '      --vectors x.npy --ids ids.txt --output vectors',
  )  # fmt: skip
  corpus(p)
  p.add_argument('--encoder', required=True, choices=ENCODERS, help='see above')
  p.add_argument('--output', required=True, metavar='DIR', help='made if it is not there')
  of_encoder(p)
  own = p.add_argument_group('brought', 'vectors for all examples of the corpus, found by id')
  own.add_argument(
    '--vectors', metavar='FILE', help='.npy, .npz, .parquet or zarr; default: none, needed here'
  )
  own.add_argument(
    '--ids',
    metavar='FILE',
    help='of .npy and zarr: an id a line, or .npy; default: those in --vectors',
  )
  own.add_argument(
    '--vector-name',
    default='x',
    metavar='NAME',
    help='of the vectors in .npz and Parquet; default: %(default)s',
  )
  own.add_argument(
    '--id-name',
    default='id',
    metavar='NAME',
    help='of the ids in .npz and Parquet; default: %(default)s',
  )
  several.add_options(p, 'the corpus and the output')


def of_encoder(p) -> None:
  """Options of the encoders that are ours."""
  p.add_argument(
    '--weights',
    metavar='PATH',
    help='folder of BERT weights, file of EfficientNet-Lite0, run of a tokenizer or an LM; '
    'default: those of the package, where there is one',
  )
  p.add_argument(
    '--max-tokens', type=int, metavar='N', help='cut texts off here; default: as published'
  )
  p.add_argument(
    '--image-size', type=int, metavar='N', help='pixels that the network sees; default: 224'
  )
  p.add_argument(
    '--batch',
    type=at_least(1),
    default=32,
    metavar='N',
    help='examples at once, over all devices; default: %(default)s',
  )
  p.add_argument(
    '--rows-per-shard',
    type=at_least(1),
    default=2048,
    metavar='N',
    help='what a stop loses at most; a multiple of the batch; default: %(default)s',
  )
  processes(p, 'that read and hash files at first; ')


def _embed(options) -> int:
  _check(options)
  begin(options)
  if options.encoder == 'brought':
    return _brought(options)
  embed(options, options.output)
  return 0


def embed(options, directory: str, anew: bool = False) -> None:
  """Embeds the corpus of these options with their encoder; `anew`: see `embedding_job.run`."""
  from jaxmm.config import ConfigError
  from jaxmm.curation import embedding_job, runners
  from jaxmm.studies import encoders

  if options.encoder == 'image':
    embedder = encoders.image(options.weights, options.image_size)
  elif options.encoder == 'tokenizer':
    if not options.weights:
      raise ConfigError('--encoder tokenizer needs --weights RUN, a run of `jaxmm train`')
    embedder = encoders.tokenizer(options.weights)
  elif options.encoder == 'lm':
    if not options.weights:
      raise ConfigError('--encoder lm needs --weights RUN, a run of `jaxmm train`')
    embedder = encoders.lm(options.weights, options.max_tokens)
  else:
    embedder = encoders.minilm(options.weights, options.max_tokens)
  embedding_job.run(
    corpus_of(options),
    embedder,
    directory,
    batch_size=options.batch,
    rows_per_shard=options.rows_per_shard,
    anew=anew,
    runner=runners.chosen(options.processes),
  )


def _brought(options) -> int:
  import jax
  import pyarrow as pa

  from jaxmm.curation import brought, embedding_inputs, embeddings, runners

  vectors = brought.brought(
    options.vectors, options.ids, vector_field=options.vector_name, id_field=options.id_name
  )
  tables = embedding_inputs.listed(
    corpus_of(options), 'any', f'{options.output}/work', runners.chosen(options.processes)
  )
  out = brought.matched(vectors, pa.concat_tables(tables))
  if jax.process_index() == 0:
    out = embeddings.write(out, options.output)
  bad = ''.join(f', {number:,} {name}' for name, number in out.reasons().items())
  print(f'{options.output}: {len(out):,} examples, width {out.x_ND.shape[1]}{bad}')
  return 0


# Options that only some encoders read: naming one for another is a mistake.
_READ_BY = {
  'weights': OURS,
  'max_tokens': ('minilm', 'lm'),
  'image_size': ('image',),
  'vectors': ('brought',),
  'ids': ('brought',),
}


def _check(options) -> None:
  from jaxmm.config import ConfigError

  for name, encoders in _READ_BY.items():
    if getattr(options, name) is not None and options.encoder not in encoders:
      flag = '--' + name.replace('_', '-')
      raise ConfigError(f'{flag} is for --encoder {" or ".join(encoders)}, not {options.encoder}')
  if options.encoder == 'brought' and options.vectors is None:
    raise ConfigError('--encoder brought needs --vectors FILE')
