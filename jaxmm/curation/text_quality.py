"""Text Quality-Based Pruning (Sharma et al. 2024, arXiv:2405.01582): rules, weights, scores.

Fourteen rules say yes (good) or no of every line; each has a weight w_i, from the perplexity of a
language model (`text_quality_weights`) or given. With tc the tokens of a line:

    score_line = sum_i w_i I_i(line) / sum_i w_i
    score_doc  = sum_line tc score_line / sum_line tc = sum_i w_i p_i / sum_i w_i

where p_i, the rule's pass rate in the document, is the share of its tokens that stand in lines that
pass. The pass rates of a document therefore hold its score under any weights.

No code of the authors is known. Where the paper leaves a rule open, the reading taken is said at
the rule, and where another is as likely, `QualityConfig` has it as a choice.

Axes: L lines, R rules, D documents.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.curation import text_lines
from jaxmm.curation.text_lines import Lines
from jaxmm.curation.text_parser import Parse, Parser

# Gopher's eight (Rae et al. 2021, arXiv:2112.11446), and what is no text.
STOP_WORDS = ('the', 'be', 'to', 'of', 'and', 'that', 'have', 'with')
NO_TEXT = ('javascript', 'lorem ipsum')
CHOICES = {
  'unit': text_lines.UNITS,
  'tokens': ('words_and_marks', 'spaces', 'bytes', 'parser'),
  'capital': ('character', 'letter'),
  'repetition_of': ('all_words', 'most_frequent'),
  'digit_punctuation_of': ('tokens', 'characters'),
  'stop_words_of': ('distinct', 'occurrences'),
}


@dataclasses.dataclass(frozen=True)
class QualityConfig:
  """Which rules, and how they are read.

  Attributes:
    rules: names from RULES, in any order; those that need a parser only where there is one.
    unit: 'lines', or 'sentences', which cuts lines further: for texts without line breaks.
    tokens: what a line weighs and rule 9 counts: 'words_and_marks' (see `text_lines`), 'spaces'
      (pieces between spaces), 'bytes' of UTF-8, or the tokens of the 'parser' (the paper's words
      allow those of spaCy or of the LM).
    capital: rule 1 looks at the first 'character' or the first 'letter'.
    repetition: most that rule 3 lets pass.
    repetition_of: what it takes for repeated, 'all_words' that came before in the line, or those of
      the 'most_frequent' word: long paragraphs of good English fail by the first.
    digit_punctuation: most that rule 4 lets pass.
    digit_punctuation_of: what it sets in relation to words, 'tokens' or 'characters'.
    terminal: characters of rule 6; the typographic double quote is taken for one.
    stop_words: least that rule 7 lets pass.
    stop_words_of: 'distinct' ones or all 'occurrences' are counted.
    least_tokens: of rule 9; its name says 3, its description in the paper "above 3" (4).
    least_words, most_words: of rule 10: "above 3 and below 256".
    objects: dependency labels that rules 11 and 14 take for an object.
  """

  rules: tuple[str, ...] = ()
  unit: str = 'lines'
  tokens: str = 'words_and_marks'
  capital: str = 'character'
  repetition: float = 0.2
  repetition_of: str = 'all_words'
  digit_punctuation: float = 0.25
  digit_punctuation_of: str = 'tokens'
  terminal: str = '.!?"”'
  stop_words: int = 2
  stop_words_of: str = 'distinct'
  least_tokens: int = 3
  least_words: int = 4
  most_words: int = 255
  objects: tuple[str, ...] = ('dobj', 'obj', 'iobj', 'pobj', 'attr')

  def __post_init__(self):
    rules = self.rules or default_rules()
    object.__setattr__(self, 'rules', tuple(rules))
    for name, choices in CHOICES.items():
      if getattr(self, name) not in choices:
        raise ConfigError(
          f'{name} is {getattr(self, name)!r}, expected one of {", ".join(choices)}'
        )
    for rule in self.rules:
      if rule not in RULES:
        raise ConfigError(f'rules names {rule!r}, expected some of {", ".join(RULES)}')
    if len(set(self.rules)) < len(self.rules):
      raise ConfigError(f'rules names one twice: {", ".join(self.rules)}')
    if self.least_words > self.most_words:
      raise ConfigError(
        f'least_words is {self.least_words}, above most_words {self.most_words}; nothing would pass'
      )

  def readings(self) -> dict[str, Any]:
    """How the rules are read, as JSON values: all but which they are."""
    values = {k: v for k, v in dataclasses.asdict(self).items() if k != 'rules'}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

  def check(self, parser: Parser | None) -> None:
    """Refuses, by name, what needs a parser where there is none.

    Raises:
      ConfigError: names the rules.
    """
    needing = [rule for rule in self.rules if RULES[rule].cost == PARSER]
    if self.tokens == 'parser':
      needing.append("tokens='parser'")
    if parser is None and needing:
      raise ConfigError(
        f'{", ".join(needing)} cannot be judged without a parser; name one (spacy:en_core_web_sm), '
        'or name the rules to use without these: the weights of the others then count more'
      )


@dataclasses.dataclass(frozen=True)
class Batch:
  """Lines, and how they parse where there is a parser."""

  lines: Lines
  parses: Sequence[Parse] | None


def has_first_letter_caps(batch: Batch, config: QualityConfig) -> np.ndarray:
  """1. The first character (or the first letter: `capital`) is a capital."""
  lines = batch.lines
  return lines.starts_upper_L if config.capital == 'character' else lines.first_letter_upper_L


def no_all_caps(batch: Batch, config: QualityConfig) -> np.ndarray:
  """2. Not all letters are capitals; a line without any passes."""
  return ~batch.lines.all_caps_L


def word_repetition_ratio(batch: Batch, config: QualityConfig) -> np.ndarray:
  """3. At most 0.2 of the words are repeated, upper and lower case the same.

  Repeated are all but the first of each: 1 - distinct / all words. With `repetition_of`
  'most_frequent', all but the first of the word that comes most often.
  """
  lines = batch.lines
  if config.repetition_of == 'all_words':
    again_L = lines.words_L - lines.distinct_words_L
  else:
    again_L = np.maximum(lines.most_frequent_L - 1, 0)
  return _ratio(again_L, lines.words_L) <= config.repetition


def digit_punctuation_ratio(batch: Batch, config: QualityConfig) -> np.ndarray:
  """4. Numbers and marks are at most 0.25 of the number of words (numbers are words, too).

  With `digit_punctuation_of` 'characters', digits and marks are counted; an ordinary sentence with
  a year in it then fails. A line without words counts as one of one word.
  """
  lines = batch.lines
  digits_L = lines.numbers_L if config.digit_punctuation_of == 'tokens' else lines.digits_L
  return _ratio(digits_L + lines.marks_L, lines.words_L) <= config.digit_punctuation


def _ratio(part_L: np.ndarray, words_L: np.ndarray) -> np.ndarray:
  return part_L / np.maximum(words_L, 1)


def no_special_characters(batch: Batch, config: QualityConfig) -> np.ndarray:
  """5. No curly bracket."""
  return ~batch.lines.has_curly_L


def terminal_punctuation(batch: Batch, config: QualityConfig) -> np.ndarray:
  """6. The last character is one of . ! ? or a double quote."""
  return batch.lines.ends_in(config.terminal)


def stop_word_match_2(batch: Batch, config: QualityConfig) -> np.ndarray:
  """7. At least two of the, be, to, of, and, that, have, with; the same twice is one, unless told.

  'Distinct' is what Gopher says ("at least two of the following").
  """
  found_L = batch.lines.words_of(STOP_WORDS, config.stop_words_of == 'distinct')
  return found_L >= config.stop_words


def javascript_flag(batch: Batch, config: QualityConfig) -> np.ndarray:
  """8. Holds neither 'javascript' nor 'lorem ipsum', in upper or lower case."""
  return ~batch.lines.contains(NO_TEXT)


def token_count_ge_3(batch: Batch, config: QualityConfig) -> np.ndarray:
  """9. At least three tokens."""
  return tokens(batch, config) >= config.least_tokens


def word_count_3_256(batch: Batch, config: QualityConfig) -> np.ndarray:
  """10. More than 3 and fewer than 256 words."""
  words_L = batch.lines.words_L
  return (words_L >= config.least_words) & (words_L <= config.most_words)


def has_object(batch: Batch, config: QualityConfig) -> np.ndarray:
  """11. A token's label is one of `objects`."""
  return _of_parses(batch, lambda parse: any(t.dep in config.objects for t in parse))


def has_noun(batch: Batch, config: QualityConfig) -> np.ndarray:
  """12. A token is a noun or a proper noun (NOUN, PROPN)."""
  return _of_parses(batch, lambda parse: any(t.pos in ('NOUN', 'PROPN') for t in parse))


def has_determiner(batch: Batch, config: QualityConfig) -> np.ndarray:
  """13. A token is a determiner (DET), or its label is det."""
  return _of_parses(batch, lambda parse: any(t.pos == 'DET' or t.dep == 'det' for t in parse))


def text_complexity_c1(batch: Batch, config: QualityConfig) -> np.ndarray:
  """14. At least one edge goes out of an object: a token other than itself has it as its head.

  After the CAT filter (Radenovic et al. 2023, arXiv:2301.02280), complexity C1.
  """

  def is_complex(parse: Parse) -> bool:
    heads = {t.head for i, t in enumerate(parse) if t.head != i}
    return any(i in heads for i, t in enumerate(parse) if t.dep in config.objects)

  return _of_parses(batch, is_complex)


def _of_parses(batch: Batch, holds: Callable[[Parse], bool]) -> np.ndarray:
  return np.fromiter(map(holds, batch.parses), bool, len(batch.parses))


STRING, PARSER = 'string', 'parser'


@dataclasses.dataclass(frozen=True)
class Rule:
  """One rule; 1 is always the good case, whatever its name.

  Attributes:
    number: in the paper's table.
    cost: STRING (characters only) or PARSER (a dependency parse, a thousand times slower).
    passes: bool [L] of a batch.
  """

  number: int
  cost: str
  passes: Callable[[Batch, QualityConfig], np.ndarray]


_BY_STRING = (
  has_first_letter_caps, no_all_caps, word_repetition_ratio, digit_punctuation_ratio,
  no_special_characters, terminal_punctuation, stop_word_match_2, javascript_flag,
  token_count_ge_3, word_count_3_256,
)  # fmt: skip
_BY_PARSER = (has_object, has_noun, has_determiner, text_complexity_c1)
RULES: dict[str, Rule] = {
  rule.__name__: Rule(number, STRING if rule in _BY_STRING else PARSER, rule)
  for number, rule in enumerate(_BY_STRING + _BY_PARSER, 1)
}


def default_rules() -> tuple[str, ...]:
  """Those that need no parser."""
  return tuple(name for name, rule in RULES.items() if rule.cost == STRING)


def tokens(batch: Batch, config: QualityConfig) -> np.ndarray:
  """How many tokens each line has, int64 [L]."""
  lines = batch.lines
  if config.tokens == 'parser':
    return np.fromiter(map(len, batch.parses), np.int64, len(batch.parses))
  if config.tokens == 'words_and_marks':
    return lines.words_L + lines.marks_L
  return lines.pieces_L if config.tokens == 'spaces' else lines.bytes_L


def line_passes(
  lines: Sequence[str], config: QualityConfig, parser: Parser | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Which rules each line passes, and what it weighs.

  Args:
    lines: as `text_lines.lines_of` gives them.
    config: the rules.
    parser: for those that need one; it sees every different line of a batch once.

  Returns:
    bool [L, R] in the order of `config.rules`, and the number of tokens, int64 [L].

  Raises:
    ConfigError: a rule needs a parser and there is none.
  """
  config.check(parser)
  is_parsed = config.tokens == 'parser' or any(RULES[r].cost == PARSER for r in config.rules)
  passes = [np.zeros((0, len(config.rules)), bool)]
  counts = [np.zeros(0, np.int64)]
  for part in text_lines.batches(lines):
    batch = Batch(part, _parses(part.lines, parser) if is_parsed else None)
    passes.append(np.stack([RULES[r].passes(batch, config) for r in config.rules], axis=1))
    counts.append(tokens(batch, config))
  return np.concatenate(passes), np.concatenate(counts)


def _parses(lines: Sequence[str], parser: Parser) -> list[Parse]:
  distinct = list(dict.fromkeys(lines))
  parses = dict(zip(distinct, parser(distinct), strict=True))
  return [parses[line] for line in lines]


@dataclasses.dataclass(frozen=True)
class Documents:
  """What the score of each document is made of, whatever the weights.

  Attributes:
    passed_DR: tokens in lines that pass each rule, int64.
    tokens_D: all tokens; 0 for a text without any.
    lines_D: lines that are not empty.
  """

  passed_DR: np.ndarray
  tokens_D: np.ndarray
  lines_D: np.ndarray

  @property
  def rates_DR(self) -> np.ndarray:
    """The token-weighted pass rates, float64; nan for a text without tokens."""
    empty = np.full(self.passed_DR.shape, np.nan)
    tokens_D1 = self.tokens_D[:, None]
    return np.divide(self.passed_DR, tokens_D1, out=empty, where=tokens_D1 > 0)


def documents(
  texts: Sequence[str], config: QualityConfig, parser: Parser | None = None
) -> Documents:
  """Counts of every text; see `line_passes` for errors."""
  lines_by_D = [text_lines.lines_of(text, config.unit) for text in texts]
  passes_LR, tokens_L = line_passes([l for lines in lines_by_D for l in lines], config, parser)
  return of_lines(passes_LR, tokens_L, np.array([len(lines) for lines in lines_by_D], np.int64))


def of_lines(passes_LR: np.ndarray, tokens_L: np.ndarray, lines_D: np.ndarray) -> Documents:
  """Counts of documents from those of their lines, one document after the other."""
  bound = np.concatenate([[0], np.cumsum(lines_D)])
  return Documents(_sums(passes_LR * tokens_L[:, None], bound), _sums(tokens_L, bound), lines_D)


def _sums(of_L: np.ndarray, bound: np.ndarray) -> np.ndarray:
  """Of the lines between two bounds each; int64 [D, ...]."""
  upto = np.zeros((len(of_L) + 1, *of_L.shape[1:]), np.int64)
  np.cumsum(of_L, axis=0, out=upto[1:])
  return np.diff(upto[bound], axis=0)


@dataclasses.dataclass(frozen=True)
class Weights:
  """What each rule counts.

  Attributes:
    of: {name: at least 0}, not all 0.
    readings: `QualityConfig.readings` of the fit; None where weights are just given.
  """

  of: Mapping[str, float]
  readings: Mapping[str, Any] | None = None

  def __post_init__(self):
    for name, weight in self.of.items():
      if name not in RULES:
        raise ConfigError(f'weights name {name!r}, which is no rule; there are {", ".join(RULES)}')
      is_number = isinstance(weight, int | float) and not isinstance(weight, bool)
      if not is_number or not math.isfinite(weight) or weight < 0:
        raise ConfigError(f'the weight of {name} is {weight!r}, expected a number of at least 0')
    if not any(self.of.values()):
      raise ConfigError(
        f'all weights are 0 ({", ".join(self.of) or "no rule"}), so there is no score; '
        'the perplexity of no rule is below that of the whole'
      )

  @classmethod
  def uniform(cls, rules: Sequence[str] = ()) -> Weights:
    """1 for each of these rules; for those that need no parser if none is named."""
    return cls(dict.fromkeys(rules or default_rules(), 1.0))

  def of_rules(self, rules: Sequence[str]) -> Weights:
    """Of these rules alone, which the caller has named.

    Raises:
      ConfigError: one has no weight here, or only such that are 0 are left.
    """
    missing = [rule for rule in rules if rule not in self.of]
    if missing:
      raise ConfigError(
        f'{", ".join(missing)} have no weight; there are weights for {", ".join(self.of)}'
      )
    return Weights({rule: self.of[rule] for rule in rules}, self.readings)

  def check(self, config: QualityConfig) -> None:
    """Refuses a config that reads the rules otherwise than the fit did, or has others.

    Raises:
      ConfigError: names what differs.
    """
    scores(np.zeros((0, len(config.rules))), config.rules, self)
    now = config.readings()
    for name, value in (self.readings or {}).items():
      if now.get(name) != value:
        raise ConfigError(
          f'the weights were fitted with {name}={value!r}, but {name} is {now.get(name)!r}; set it '
          'to that, fit again, or give the weights alone: {"rule": weight, ...}'
        )


def read_weights(path: str | os.PathLike) -> Weights:
  """From JSON: {rule: weight}, or what `FittedWeights.save` wrote.

  Raises:
    ConfigError: no such file, no JSON, or no weights.
  """
  file = pathlib.Path(path)
  if not file.is_file():
    raise ConfigError(f'weights {path}: no such file; {{"rule": weight, ...}} in JSON is one')
  try:
    values: Any = json.loads(file.read_text('utf-8'))
  except ValueError as error:
    raise ConfigError(f'weights {path}: not JSON ({error})') from error
  readings = None
  if isinstance(values, dict) and 'weights' in values:
    values, readings = values['weights'], values.get('readings')
  if not isinstance(values, dict):
    raise ConfigError(f'weights {path}: a JSON {type(values).__name__}, expected an object')
  return Weights(values, readings)


def scores(rates_DR: np.ndarray, rules: Sequence[str], weights: Weights) -> np.ndarray:
  """The score of every document (or line), float64 [D] in [0, 1]; nan where the rates are.

  One rule after the other, so that equal rates give equal scores on any machine; all 1 give 1.

  Args:
    rates_DR: pass rates, or the passes of lines as 0 and 1.
    rules: R names.
    weights: of exactly these rules.
  """
  if set(rules) != set(weights.of):
    raise ConfigError(
      f'the weights are of {", ".join(weights.of)}, the pass rates of {", ".join(rules)}; '
      'Weights.of_rules names a part'
    )
  total_D, whole = np.zeros(len(rates_DR)), 0.0
  for r, rule in enumerate(rules):
    total_D += weights.of[rule] * np.asarray(rates_DR[:, r], np.float64)
    whole += weights.of[rule]
  return total_D / whole


def record_score(
  record: Mapping[str, Any],
  weights: Weights,
  config: QualityConfig,
  *,
  parser: Parser | None = None,
  field: str = 'text',
) -> float:
  """The score of one record as a pipeline reads it; nan for a text without tokens.

  For a `grain` pipeline that prunes as it reads, with a threshold that `curate text_quality` said:

      score = functools.partial(record_score, weights=weights, config=config)
      rows = rows.filter(lambda record: score(record) >= 0.73)
  """
  counts = documents([record[field]], config, parser)
  return float(scores(counts.rates_DR, config.rules, weights)[0])


def best(score_D: np.ndarray, keep: float) -> np.ndarray:
  """The best share of the documents, bool [D]: an exact quantile.

  Args:
    score_D: of documents in the order of their ids: of those with equal scores the least ids are
      kept. nan is never kept, and not counted.
    keep: the share, of those with a score; their number is rounded to the nearest, 0.5 up.
  """
  if not 0 <= keep <= 1:
    raise ConfigError(f'keep is {keep}, expected a share from 0 to 1')
  has_D = ~np.isnan(score_D)
  number = math.floor(keep * int(has_D.sum()) + 0.5)
  order = np.lexsort((np.arange(len(score_D)), -np.where(has_D, score_D, -np.inf)))
  is_best = np.zeros(len(score_D), bool)
  is_best[order[:number]] = True
  return is_best
