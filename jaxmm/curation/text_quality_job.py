"""Text quality over a corpus: files in, keep-list out.

1. Every file by itself: of each document the tokens in lines that pass each rule (16 bytes and 8 a
   rule). Weights and the share that is kept have no part in it, so other ones cost no second read.
2. Over all documents: the scores, and the exact quantile.

Axes: N documents, in the order of their ids; R rules.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list, runners, text_parser, text_quality, unique_ids
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.text_quality import QualityConfig, Weights
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig, Shard

LOW = 'low_quality'
# Texts whose lines are judged together: bounds memory, changes nothing.
_TEXTS = 256


def run(
  inputs: CorpusConfig,
  config: QualityConfig,
  weights: Weights,
  workdir: str | os.PathLike,
  *,
  keep: float,
  parser: str = '',
  runner: runners.Runner = runners.LOCAL,
  echo: runners.Echo | None = print,
) -> KeepList:
  """Scores every document and keeps the best share.

  Columns of the list: `lines`, `tokens`, and of every rule, by its name, the token-weighted pass
  rate; the score is their mean, weighted by `weights`. Reasons: low_quality, empty (no line but of
  space), unreadable.

  Args:
    inputs: the corpus.
    config: the rules.
    weights: of exactly these rules.
    workdir: for what is kept between the stages; a path or a URL.
    keep: the share of the documents that have a score; see `text_quality.best`.
    parser: name of the parser (`text_parser.named`), where a rule needs one.
    runner: who reads and judges files.
    echo: takes progress lines.

  Raises:
    ConfigError: a rule without its parser or its weight, weights that were fitted with the rules
      read otherwise, files or fields that are not there, an id that comes more than once.
  """
  check(config, weights, keep, parser)
  settings = {
    'corpus': dataclasses.asdict(inputs),
    'quality': dataclasses.asdict(config),
    'parser': parser,
  }
  files = corpus.shards(inputs)
  tables = runners.map_shards(
    counted, files, workdir, name='quality', settings=settings,
    each=unique_ids.AcrossFiles(files, inputs), runner=runner, echo=echo,
  )  # fmt: skip
  runners.check_some(tables, files, inputs)
  parameters = {
    **settings['quality'], 'weights': dict(weights.of), 'keep': keep, 'parser': parser,
  }  # fmt: skip
  return _judged(pa.concat_tables(tables), config, weights, keep, parameters, echo)


def check(config: QualityConfig, weights: Weights, keep: float, parser: str = '') -> None:
  """ConfigError for settings of `run` that cannot be; before anything is read."""
  if not 0 < keep <= 1:
    raise ConfigError(f'keep is {keep}, expected a share in (0, 1]')
  weights.check(config)
  config.check(text_parser.named(parser))


def counted(shard: Shard, settings: Mapping[str, Any], _) -> pa.Table:
  """Of every example: id, digest, error, lines, tokens, tokens that pass each rule."""
  inputs, config = _configs(settings)
  parser = text_parser.named(settings['parser'])
  examples = unique_ids.checked(shard, inputs)
  parts = [_counted([], config, parser)]
  while batch := list(itertools.islice(examples, _TEXTS)):
    parts.append(_counted(batch, config, parser))
  return pa.concat_tables(parts).combine_chunks()


def _counted(examples: Sequence[corpus.Example], config: QualityConfig, parser) -> pa.Table:
  texts = ['' if e.error else e.text or '' for e in examples]
  counts = text_quality.documents(texts, config, parser)
  columns = {
    'id': pa.array([e.id for e in examples], pa.string()),
    'digest': np.array([kept.digest(e.id, e.content) for e in examples], np.uint64),
    'error': pa.array([e.error for e in examples], pa.string()),
    'lines': counts.lines_D,
    'tokens': counts.tokens_D,
  }
  for r, rule in enumerate(config.rules):
    columns[rule] = np.ascontiguousarray(counts.passed_DR[:, r])
  return pa.table(columns)


def _configs(settings: Mapping[str, Any]) -> tuple[CorpusConfig, QualityConfig]:
  of_quality = dict(settings['quality'], rules=tuple(settings['quality']['rules']))
  return corpus.of_json(settings['corpus']), QualityConfig(**of_quality)


def _judged(table: pa.Table, config: QualityConfig, weights, keep, parameters, echo) -> KeepList:
  table = table.take(pc.sort_indices(table, [('id', 'ascending')]))
  counts = text_quality.Documents(
    np.stack([table[rule].to_numpy() for rule in config.rules], axis=1),
    table['tokens'].to_numpy(),
    table['lines'].to_numpy(),
  )
  rates_NR = counts.rates_DR
  score_N = text_quality.scores(rates_NR, config.rules, weights)
  is_best_N = text_quality.best(score_N, keep)
  is_bad_N = pc.greater(pc.binary_length(table['error']), 0).to_numpy()
  reason_N = np.where(is_best_N, '', LOW).astype(object)
  reason_N[np.isnan(score_N)] = keep_list.EMPTY
  reason_N[is_bad_N] = keep_list.UNREADABLE
  if echo and is_best_N.any():
    echo(f'{len(table)} documents, kept are scores from {score_N[is_best_N].min():.6g}')
  return keep_list.make(
    table['id'].combine_chunks(),
    table['digest'].to_numpy(),
    is_best_N,
    score_N=score_N,
    reason_N=reason_N,
    columns={
      'lines': counts.lines_D,
      'tokens': counts.tokens_D,
      **{rule: rates_NR[:, r] for r, rule in enumerate(config.rules)},
      'error': pc.if_else(pa.array(is_bad_N), table['error'].combine_chunks(), None),
    },
    method='text_quality',
    parameters=parameters,
  )
