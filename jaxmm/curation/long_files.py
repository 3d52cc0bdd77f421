"""Pruning the longest files ('Brevity is the soul of wit', Singh et al. 2024, arXiv:2407.00434).

A few files hold much of a code corpus' tokens: literal data, generated or repetitive code. They are
dropped from the longest downwards until a share of the tokens, or of the files, is gone, or all
that are longer than a threshold. What is kept is packed and weighted as before.

Report the loss on long held-out files beside any benchmark of short functions: the paper finds that
it rises.

Axes: N examples.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list, runners, token_counts
from jaxmm.curation.keep_list import KeepList
from jaxmm.data.corpus import CorpusConfig

LONG = 'long'
_MODES = ('drop_token_share', 'drop_file_share', 'max_tokens')


@dataclasses.dataclass(frozen=True)
class LongFilesConfig:
  """What is too long; exactly one of the three is given.

  Attributes:
    drop_token_share: in [0, 1): the fewest longest files that hold at least this share of all
      tokens are dropped.
    drop_file_share: in [0, 1): the fewest longest files that are at least this share of the files
      are dropped.
    max_tokens: files with more tokens are dropped; the one mode that can stream, see
      `WithinLength`.
  """

  drop_token_share: float | None = None
  drop_file_share: float | None = None
  max_tokens: int | None = None

  def __post_init__(self):
    given = {name: getattr(self, name) for name in _MODES if getattr(self, name) is not None}
    if len(given) != 1:
      raise ConfigError(
        f'exactly one of {", ".join(_MODES)} says what is too long, got {given or "none"}'
      )
    (name, value), *_ = given.items()
    if name == 'max_tokens':
      if not isinstance(value, int) or value < 1:
        raise ConfigError(f'max_tokens is {value!r}, expected a whole number of 1 or more')
    elif not 0 <= value < 1:
      raise ConfigError(f'{name} is {value}, expected in [0, 1), for example 0.2')


def is_long(ids: Sequence[str] | pa.Array, tokens_N: np.ndarray, config: LongFilesConfig):
  """Which files are dropped; bool [N].

  Files of equal length are told apart by their ids: those with the least ids are kept.

  Args:
    ids: N different strings.
    tokens_N: 0 or more, integers. Files without tokens count as files but are never dropped here
      while others are left.
    config: how many.
  """
  tokens_N = np.asarray(tokens_N, np.int64)
  if config.max_tokens is not None:
    return tokens_N > config.max_tokens
  table = pa.table({'tokens': tokens_N, 'id': pa.array(ids, pa.string())})
  order = pc.sort_indices(table, [('tokens', 'ascending'), ('id', 'ascending')]).to_numpy()
  longest_first = order[::-1].astype(np.int64)
  if config.drop_file_share is not None:
    number = at_least(config.drop_file_share, len(tokens_N))
  else:
    gone_N = np.cumsum(tokens_N[longest_first])
    need = at_least(config.drop_token_share, int(tokens_N.sum()))
    number = int(np.searchsorted(gone_N, need)) + 1 if need else 0
  is_long_N = np.zeros(len(tokens_N), bool)
  is_long_N[longest_first[:number]] = True
  return is_long_N


def at_least(share: float, total: int) -> int:
  """The least whole number that is `share` of `total`, the share as it is written in decimals.

  In binary 0.07 * 100 is more than 7.
  """
  return math.ceil(Fraction(str(share)) * total)


def judged(
  counts: pa.Table, config: LongFilesConfig, parameters: Mapping[str, Any] | None = None
) -> KeepList:
  """The keep-list of counted examples.

  Shares are of the examples that can be read and hold a token. The score is the number of tokens,
  and so is the column `tokens`.

  Args:
    counts: as `token_counts.counts` gives it, or brought by the user: `id`, `digest`, `error` (''
      if the example can be read) and `tokens` (null if not), in any order.
    config: what is too long.
    parameters: more of what the counts were made with, for the header.
  """
  tokens_N = pc.fill_null(counts['tokens'], 0).to_numpy()
  is_bad_N = pc.greater(pc.binary_length(counts['error']), 0).to_numpy()
  has_N = ~is_bad_N & (tokens_N > 0)
  is_long_N = np.zeros(len(counts), bool)
  is_long_N[has_N] = is_long(counts['id'].filter(pa.array(has_N)), tokens_N[has_N], config)
  reason_N = np.where(is_long_N, LONG, '').astype(object)
  reason_N[~has_N] = keep_list.EMPTY
  reason_N[is_bad_N] = keep_list.UNREADABLE
  return keep_list.make(
    counts['id'],
    counts['digest'].to_numpy(),
    reason_N == '',
    score_N=np.where(is_bad_N, np.nan, tokens_N),
    reason_N=reason_N,
    columns={
      'tokens': pa.array(tokens_N, mask=is_bad_N),
      'error': pc.if_else(pa.array(is_bad_N), counts['error'], None),
    },
    method='long_files',
    parameters={**dataclasses.asdict(config), **(parameters or {})},
  )


def run(
  inputs: CorpusConfig,
  config: LongFilesConfig,
  workdir: str | os.PathLike,
  *,
  counter: str = 'bytes',
  runner: runners.Runner = runners.LOCAL,
  echo: runners.Echo | None = print,
) -> KeepList:
  """Counts a corpus and drops its longest files.

  Args:
    inputs: the corpus.
    config: what is too long.
    workdir: for the counts; another config of the same corpus and counter counts nothing again.
    counter: how tokens are counted, a name of `token_counts`.
    runner: who reads and counts files.
    echo: takes progress lines.
  """
  counts = token_counts.counts(inputs, counter, workdir, runner=runner, echo=echo)
  identity = token_counts.identity(counter)
  return judged(counts, config, {'counter': counter, 'counter_identity': identity})


@dataclasses.dataclass(frozen=True)
class TokenMass:
  """How tokens are spread over files.

  Attributes:
    files, tokens: how many; files without tokens are not counted.
    mean, median: tokens a file; nan where there are no files.
    share_of_longest: share of all tokens that the longest files hold, by their share of the files
      (rounded up to whole files).
  """

  files: int
  tokens: int
  mean: float
  median: float
  share_of_longest: Mapping[float, float]

  def lines(self) -> list[str]:
    """For a terminal."""
    if not self.files:
      return ['no file with any token']
    longest = ', '.join(f'{f:.0%}: {t:.1%}' for f, t in self.share_of_longest.items())
    return [
      f'{self.files:,} files, {self.tokens:,} tokens; mean {self.mean:,.1f}, '
      f'median {self.median:,.1f}',
      f'tokens held by the longest files: {longest}',
    ]


def token_mass(
  tokens_N: np.ndarray, shares: Sequence[float] = (0.01, 0.02, 0.05, 0.1)
) -> TokenMass:
  """Of files with `tokens_N` tokens each; those without any are left out."""
  tokens_N = np.asarray(tokens_N, np.int64)
  tokens_N = np.sort(tokens_N[tokens_N > 0])[::-1]
  total = int(tokens_N.sum())
  if not total:
    return TokenMass(0, 0, math.nan, math.nan, dict.fromkeys(shares, math.nan))
  held = {s: int(tokens_N[: at_least(s, len(tokens_N))].sum()) / total for s in shares}
  return TokenMass(len(tokens_N), total, total / len(tokens_N), float(np.median(tokens_N)), held)


@dataclasses.dataclass(frozen=True)
class WithinLength:
  """The threshold as a predicate of single records, for `filter` of a grain pipeline.

      grain.MapDataset.source(records).filter(WithinLength(2048, 'bpe.json'))

  It can be pickled as long as `count` can, so it goes to grain's worker processes. An empty text is
  let through; what is no text is left to the counter, so that `len` counts the ids of records that
  are tokenized already.

  Attributes:
    max_tokens: records with more are dropped.
    count: a name of `token_counts`, or a function of what stands in the field.
    field: of the record; '' where the record is the text itself.
  """

  max_tokens: int
  count: str | Callable[[Any], int] = 'bytes'
  field: str = 'text'

  def __post_init__(self):
    LongFilesConfig(max_tokens=self.max_tokens)
    if isinstance(self.count, str):
      token_counts.counter(self.count)

  def __call__(self, record: Any) -> bool:
    if self.field and self.field not in record:
      raise ConfigError(f'no field {self.field!r} in a record; it has {sorted(record)}')
    count = _loaded_once(self.count) if isinstance(self.count, str) else self.count
    return count(record[self.field] if self.field else record) <= self.max_tokens


@functools.lru_cache(maxsize=8)
def _loaded_once(name: str) -> token_counts.Count:
  """Kept in each process, not in the predicate, which has to be pickled."""
  return token_counts.counter(name)
