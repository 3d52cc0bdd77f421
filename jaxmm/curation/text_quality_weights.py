"""Weights of the rules of `text_quality` from the perplexity of a language model.

With PPL_all of all lines of a sample and PPL_i of those that pass rule i, both under the same LM:

    w_i = max(0, (PPL_all - PPL_i) / PPL_all)

PPL is exp of the nats a token: the tokens' sum of the lines that count, divided by their number.
Each line is scored by itself (the paper does not say whether a rule drops lines or documents; the
rules are about lines), so one pass of the LM over the sample serves all rules.

The perplexity is that of the LM's tokens. A byte model's lies closer to 1, and its weights are
smaller; scores only depend on how they relate to one another.

Axes: L lines, R rules, B rows of a batch of the LM.
"""

from __future__ import annotations

import dataclasses
import heapq
import json
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.core.protocols import Scorer
from jaxmm.curation import text_lines, text_quality
from jaxmm.curation.text_parser import Parser
from jaxmm.curation.text_quality import QualityConfig, Weights
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig

FORMAT = 'jaxmm-text-quality-weights-1'
_SHORTEST_ROW = 16
_SHARES = tuple(tenths / 10 for tenths in range(10, 0, -1))


@dataclasses.dataclass(frozen=True)
class FittedWeights:
  """What a fit found.

  Attributes:
    rules: R names.
    perplexity_all: of all lines.
    perplexity_R: of the lines that pass each rule; nan where none does.
    weight_R: of each rule; 0 where it does not lower the perplexity, and where no line passes.
    line_rate_R, token_rate_R: the share of the lines that passes, and of the LM's tokens.
    num_lines: of the sample, those without tokens left out.
    num_tokens: of the sample.
    readings: of the rules (`QualityConfig.readings`), where they are known.
    kept_perplexity: {share: perplexity of that share of the documents, the best by the score};
      where it rises as less is kept, useful text is being cut. Empty without documents.
  """

  rules: tuple[str, ...]
  perplexity_all: float
  perplexity_R: np.ndarray
  weight_R: np.ndarray
  line_rate_R: np.ndarray
  token_rate_R: np.ndarray
  num_lines: int
  num_tokens: float
  readings: Mapping[str, Any] | None = None
  kept_perplexity: Mapping[float, float] = dataclasses.field(default_factory=dict)

  @property
  def weights(self) -> Weights:
    """What scores are made with."""
    return Weights(dict(zip(self.rules, self.weight_R.tolist())), self.readings)

  def save(self, path: str | os.PathLike) -> None:
    """Writes JSON that `text_quality.read_weights` reads; an undefined perplexity is null."""
    column = lambda values: dict(zip(self.rules, [_or_none(v) for v in values.tolist()]))
    state = {
      'format': FORMAT,
      'weights': column(self.weight_R),
      'perplexity_all': self.perplexity_all,
      'perplexity': column(self.perplexity_R),
      'line_rate': column(self.line_rate_R),
      'token_rate': column(self.token_rate_R),
      'num_lines': self.num_lines,
      'num_tokens': self.num_tokens,
      'readings': self.readings,
      'kept_perplexity': {f'{share:g}': _or_none(p) for share, p in self.kept_perplexity.items()},
    }
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(state, indent=1) + '\n', 'utf-8')

  def table(self) -> str:
    """One line a rule, as Markdown."""
    rows = [
      '| rule | perplexity | weight | lines that pass |', '|---|---|---|---|',
      f'| all lines | {self.perplexity_all:.4g} | | {self.num_lines:,} |',
    ]  # fmt: skip
    columns = (self.rules, self.perplexity_R, self.weight_R, self.line_rate_R)
    rows += [f'| {rule} | {p:.4g} | {w:.4f} | {r:.1%} |' for rule, p, w, r in zip(*columns)]
    if self.kept_perplexity:
      rows += ['', '| documents kept | perplexity of their lines |', '|---|---|']
      rows += [f'| {share:.0%} | {p:.4g} |' for share, p in self.kept_perplexity.items()]
    return '\n'.join(rows)


def _or_none(value: float) -> float | None:
  return None if np.isnan(value) else value


def fit_weights(
  passes_LR: np.ndarray, nll_L: np.ndarray, count_L: np.ndarray, rules: Sequence[str]
) -> FittedWeights:
  """The weights from what an LM said of each line.

  Args:
    passes_LR: which rules a line passes (`text_quality.line_passes`).
    nll_L: negative log-likelihood of each line in nats, summed over its tokens.
    count_L: how many tokens that is; lines with 0 are left out.
    rules: R names.

  Raises:
    ConfigError: shapes that do not agree, a likelihood that is no number (the first line is named),
      no tokens, or no rule that lowers the perplexity (all weights 0).
  """
  passes_LR = np.asarray(passes_LR, bool)
  nll_L, count_L = np.asarray(nll_L, np.float64), np.asarray(count_L, np.float64)
  if passes_LR.shape != (len(nll_L), len(rules)) or count_L.shape != nll_L.shape:
    raise ConfigError(
      f'passes {list(passes_LR.shape)}, nll {list(nll_L.shape)} and count {list(count_L.shape)} '
      f'of {len(rules)} rules, expected [L, R], [L] and [L]'
    )
  is_bad = ~np.isfinite(nll_L) | ~(count_L >= 0) | ~np.isfinite(count_L)
  if is_bad.any():
    at = int(np.argmax(is_bad))
    raise ConfigError(f'line {at} has nll {nll_L[at]} over {count_L[at]} tokens; the LM is broken')
  has_L = count_L > 0
  passes_LR, nll_L, count_L = passes_LR[has_L], nll_L[has_L], count_L[has_L]
  if not len(nll_L):
    raise ConfigError('the sample has no tokens; is it empty?')
  tokens_R = count_L @ passes_LR
  nats_R = np.divide(
    nll_L @ passes_LR, tokens_R, out=np.full(len(rules), np.nan), where=tokens_R > 0
  )
  perplexity_all, perplexity_R = float(np.exp(nll_L.sum() / count_L.sum())), np.exp(nats_R)
  gain_R = np.nan_to_num((perplexity_all - perplexity_R) / perplexity_all)
  found = FittedWeights(
    rules=tuple(rules),
    perplexity_all=perplexity_all,
    perplexity_R=perplexity_R,
    weight_R=np.maximum(gain_R, 0.0),
    line_rate_R=passes_LR.mean(axis=0),
    token_rate_R=tokens_R / count_L.sum(),
    num_lines=len(nll_L),
    num_tokens=float(count_L.sum()),
  )
  _ = found.weights  # refuses such that are all 0
  return found


@dataclasses.dataclass(frozen=True)
class LineScorer:
  """A `Scorer` with what turns lines into its batches.

  Attributes:
    scorer: of batches with `ids_BL`, `weight_BL` and `valid_B` (as `models.lm.scorer` gives it).
    encode: the ids of a text (`TextTokenizer.encode`).
    bos_id: begins every row, given and not counted.
    pad_id: fills rows up.
    length: longest row; a longer line is cut into rows, each beginning anew.
    batch: rows at once.
  """

  scorer: Scorer
  encode: Callable[[str], Sequence[int]]
  bos_id: int
  pad_id: int
  length: int
  batch: int = 64

  def __post_init__(self):
    if self.length < 2 or self.batch < 1:
      raise ConfigError(
        f'length is {self.length} and batch {self.batch}, expected at least 2 (a token and what '
        'begins the row) and 1'
      )

  def likelihoods(
    self, lines: Sequence[str], echo: Callable[[str], None] | None = None
  ) -> tuple[np.ndarray, np.ndarray]:
    """(nll_L in nats, count_L), float64, of each line by itself."""
    size = self.length - 1
    rows, line_of_row = [], []
    for number, line in enumerate(lines):
      ids = list(self.encode(line))
      cuts = [ids[low : low + size] for low in range(0, len(ids), size)]
      rows += cuts
      line_of_row += [number] * len(cuts)
    nll_L, count_L = np.zeros(len(lines)), np.zeros(len(lines))
    done = 0
    for chosen, batch in self._batches(rows):
      nll_B, count_B = (np.asarray(x, np.float64) for x in self.scorer(batch))
      at = np.array(line_of_row)[chosen]
      np.add.at(nll_L, at, nll_B[: len(chosen)])
      np.add.at(count_L, at, count_B[: len(chosen)])
      done += len(chosen)
      if echo and done // 4096 > (done - len(chosen)) // 4096:
        echo(f'{done:,} of {len(rows):,} rows scored')
    return nll_L, count_L

  def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[tuple[np.ndarray, dict]]:
    """Rows of like lengths together, so that little is computed for nothing."""
    order = np.argsort([len(row) for row in rows], kind='stable')
    for low in range(0, len(order), self.batch):
      chosen = order[low : low + self.batch]
      longest = len(rows[chosen[-1]]) + 1
      # Powers of two: the scorer is compiled for a few widths only.
      width = min(max(_SHORTEST_ROW, 1 << (longest - 1).bit_length()), self.length)
      ids_BL = np.full((self.batch, width), self.pad_id, np.int32)
      weight_BL = np.zeros((self.batch, width), np.float32)
      ids_BL[: len(chosen), 0] = self.bos_id
      for b, i in enumerate(chosen):
        ids_BL[b, 1 : len(rows[i]) + 1] = rows[i]
        weight_BL[b, 1 : len(rows[i]) + 1] = 1
      valid_B = (np.arange(self.batch) < len(chosen)).astype(np.float32)
      yield chosen, {'ids_BL': ids_BL, 'weight_BL': weight_BL, 'valid_B': valid_B}


def fitted(
  texts: Sequence[str],
  config: QualityConfig,
  judge: LineScorer,
  *,
  parser: Parser | None = None,
  echo: Callable[[str], None] | None = None,
) -> FittedWeights:
  """The weights of the rules in `config`, with an LM as the judge of a sample of texts.

      judge = LineScorer(lm.scorer(params, lm_config), tokenizer.encode, bos_id, pad_id, 256)
      fitted(sample(inputs, 1000), QualityConfig(), judge).save('weights.json')

  Raises:
    ConfigError: see `fit_weights` and `text_quality.line_passes`.
  """
  lines_by_D = [text_lines.lines_of(text, config.unit) for text in texts]
  lines = [line for of in lines_by_D for line in of]
  passes_LR, tokens_L = text_quality.line_passes(lines, config, parser)
  nll_L, count_L = judge.likelihoods(lines, echo)
  found = fit_weights(passes_LR, nll_L, count_L, config.rules)
  lines_D = np.array([len(of) for of in lines_by_D], np.int64)
  rates_DR = text_quality.of_lines(passes_LR, tokens_L, lines_D).rates_DR
  curve = kept_perplexity(
    text_quality.scores(rates_DR, config.rules, found.weights), nll_L, count_L, lines_D
  )
  return dataclasses.replace(found, readings=config.readings(), kept_perplexity=curve)


def kept_perplexity(
  score_D: np.ndarray, nll_L: np.ndarray, count_L: np.ndarray, lines_D: np.ndarray
) -> dict[float, float]:
  """{share: perplexity of the lines of that share of the documents, the best by score}.

  The paper's second check of a pruning level.

  Args:
    score_D: of documents; nan for none.
    nll_L, count_L: of their lines, one document after the other.
    lines_D: how many lines each has.
  """
  document_L = np.repeat(np.arange(len(lines_D)), lines_D)
  nats_D, tokens_D = (
    np.bincount(document_L, weights=of_L, minlength=len(lines_D)) for of_L in (nll_L, count_L)
  )
  out = {}
  for share in _SHARES:
    is_kept_D = text_quality.best(score_D, share)
    tokens = tokens_D[is_kept_D].sum()
    out[share] = float(np.exp(nats_D[is_kept_D].sum() / tokens)) if tokens else float('nan')
  return out


def sample(inputs: CorpusConfig, number: int) -> list[str]:
  """Texts of a corpus drawn by the hash of id and content: the same whatever its files and order.

  Args:
    inputs: the corpus, which is read once.
    number: of documents; all, if there are fewer. Unreadable and empty ones are not drawn.
  """
  if number < 1:
    raise ConfigError(f'number is {number}, expected at least 1 document')

  def drawn():
    for shard in corpus.shards(inputs):
      for e in corpus.examples(shard, inputs):
        if not e.error and e.text:
          yield kept.digest(e.id, e.content), e.id, e.text

  return [text for *_, text in heapq.nsmallest(number, drawn())]
