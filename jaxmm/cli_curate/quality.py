"""`jaxmm curate text_quality` and `text_quality_weights`; each one call into a room."""

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

# Those of `curation.text_quality.CHOICES`, which is not imported before a verb runs.
READINGS = {
  'unit': ('lines', 'sentences'),
  'tokens': ('words_and_marks', 'spaces', 'bytes', 'parser'),
  'capital': ('character', 'letter'),
  'repetition_of': ('all_words', 'most_frequent'),
  'digit_punctuation_of': ('tokens', 'characters'),
  'stop_words_of': ('distinct', 'occurrences'),
}
READING_OF = {
  'unit': 'what is judged',
  'tokens': 'what a line weighs and is long by',
  'capital': 'which has to be a capital: the first character, or the first letter',
  'repetition_of': 'what is taken for repeated',
  'digit_punctuation_of': 'what digits and punctuation are set in relation to',
  'stop_words_of': 'which are counted',
}


def add(methods, verb) -> None:
  """Adds the two verbs to those of `curate`; `verb` is the command's own helper."""
  _add_quality(methods, verb)
  _add_weights(methods, verb)


def _add_quality(methods, verb) -> None:
  p = verb(
    methods, 'text_quality', _quality,
    'Scores documents by rules about their lines, weighted by what each is worth to a language\n'
    'model, and keeps the best.',
    'jaxmm curate text_quality --input corpus/*.jsonl.gz --text-field text --id-field id \\\n'
    '    --weights w.json --keep 0.6 --output keep.parquet',
  )  # fmt: skip
  corpus(p)
  p.add_argument('--keep', type=float, required=True, help='share of the documents, such as 0.6')
  p.add_argument(
    '--weights',
    default='uniform',
    metavar='FILE.json',
    help='from text_quality_weights, or {"rule": weight, ...}; default: all the same',
  )
  _rules(p)
  running(p)


def _add_weights(methods, verb) -> None:
  p = verb(
    methods, 'text_quality_weights', _weights,
    'Fits the weights of the rules: by how much each lowers the perplexity of a trained LM.',
    'jaxmm curate text_quality_weights --input corpus/*.jsonl.gz --model runs/text-lm \\\n'
    '    --documents 1000 --output w.json',
  )  # fmt: skip
  corpus(p)
  p.add_argument('--model', required=True, metavar='DIR', help='a run of experiments/lm/mini.py')
  p.add_argument('--documents', type=int, default=1000, help='of the sample; default: %(default)s')
  p.add_argument('--batch', type=int, default=64, help='lines at once; default: %(default)s')
  p.add_argument('--output', required=True, metavar='FILE.json', help='the weights')
  _rules(p)


def _rules(p) -> None:
  of = p.add_argument_group('rules')
  of.add_argument(
    '--rules', nargs='+', default=(), metavar='RULE',
    help='those to use; default: all of the weights, or all that need no parser',
  )  # fmt: skip
  of.add_argument(
    '--parser',
    default='',
    metavar='NAME',
    help='spacy:MODEL or MODULE:FUNCTION, for the rules that need one; default: none',
  )
  for name, choices in READINGS.items():
    flag = '--' + name.replace('_', '-')
    what = f'{READING_OF[name]}; default: %(default)s'
    of.add_argument(flag, choices=choices, default=choices[0], help=what)


def _config_of(options, rules):
  from jaxmm.curation.text_quality import QualityConfig

  return QualityConfig(tuple(rules), **{name: getattr(options, name) for name in READINGS})


def _quality(options) -> int:
  from jaxmm.curation import text_quality, text_quality_job

  _config_of(options, options.rules)  # refuses what is no rule, before weights do
  if options.weights == 'uniform':
    weights = text_quality.Weights.uniform(options.rules)
  else:
    weights = text_quality.read_weights(options.weights)
    weights = weights.of_rules(options.rules) if options.rules else weights
  config = _config_of(options, weights.of)
  text_quality_job.check(config, weights, options.keep, options.parser)
  begin(options)
  keep = text_quality_job.run(
    texts_of(options),
    config,
    weights,
    workdir_of(options),
    keep=options.keep,
    parser=options.parser,
    runner=runner_of(options),
  )
  return written(keep, options)


def _weights(options) -> int:
  from jaxmm.curation import text_parser, text_quality_weights
  from jaxmm.studies import text_judge

  config, parser = _config_of(options, options.rules), text_parser.named(options.parser)
  config.check(parser)
  begin(options)
  judge = text_judge.line_scorer(options.model, options.batch)
  texts = text_quality_weights.sample(texts_of(options), options.documents)
  fitted = text_quality_weights.fitted(texts, config, judge, parser=parser, echo=print)
  fitted.save(options.output)
  print(f'{options.output}: weights of {len(fitted.rules)} rules from {len(texts):,} documents\n')
  print(fitted.table())
  return 0
