"""A trained LM of the library as the judge of single lines of text."""

from __future__ import annotations

import os

from jaxmm.config import ConfigError
from jaxmm.curation.text_quality_weights import LineScorer
from jaxmm.models import lm
from jaxmm.studies import loading
from jaxmm.tokenizers import text


def line_scorer(directory: str | os.PathLike, batch: int = 64) -> LineScorer:
  """The LM of a run directory, with the tokenizer that its data was read with.

  Args:
    directory: of a run of `jaxmm.models.lm` on data of the name 'text'.
    batch: rows at once.

  Raises:
    ConfigError: another model or other data, or its documents began with no token of their own,
      which the first token of a line is predicted from.
  """
  run = loading.load(directory)
  data = run.config.get('data', {})
  if not isinstance(run.task, lm.LmTask) or data.get('name') != 'text':
    raise ConfigError(
      f'{directory} is a run of {run.config.get("task")!r} on data {data.get("name")!r}, expected '
      "jaxmm.models.lm on 'text'"
    )
  of = data['text']
  if of.get('bos_id') is None:
    raise ConfigError(
      f'{directory} was trained with data.text.bos_id None, so nothing predicts the first token of '
      'a line; train one with a token that begins documents (experiments/lm/mini.py)'
    )
  return LineScorer(
    lm.scorer(run.variables['params'], run.task.config),
    text.load(of['tokenizer']).encode,
    bos_id=of['bos_id'],
    pad_id=of['pad_id'],
    length=run.task.config.length,
    batch=batch,
  )
