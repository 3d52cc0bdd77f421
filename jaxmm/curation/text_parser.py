"""The parser behind the syntactic rules of `text_quality`: a protocol, and spaCy behind it.

Nothing here is needed for the other rules, and spaCy is not a dependency: it is imported when
its parser is made.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Sequence
from typing import Any, Protocol

from jaxmm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Token:
  """One token of a parsed line.

  Attributes:
    text: as it stands in the line.
    pos: universal part of speech ('NOUN', 'DET', ...).
    dep: label of the edge to its head ('nsubj', 'dobj', ...).
    head: place of its head in the line, its own for a root.
  """

  text: str
  pos: str
  dep: str
  head: int


Parse = Sequence[Token]


class Parser(Protocol):
  """A dependency parser of lines."""

  def __call__(self, lines: Sequence[str]) -> Sequence[Parse]:
    """The tokens of every line, in its order; a line's parse hangs on nothing but the line."""
    ...


class SpacyParser:
  """A spaCy pipeline as a `Parser`.

  Args:
    pipeline: what `spacy.load` gave.
    batch: lines that spaCy takes at once.
  """

  def __init__(self, pipeline: Any, batch: int = 256):
    self._pipeline, self._batch = pipeline, batch

  @classmethod
  def load(cls, model: str) -> SpacyParser:
    """With the packaged model of a name, such as 'en_core_web_sm'; what no rule asks for is off.

    Raises:
      ConfigError: spaCy or the model is not installed.
    """
    try:
      import spacy

      return cls(spacy.load(model, exclude=['ner', 'lemmatizer']))
    except (ImportError, OSError) as error:
      raise ConfigError(
        f'parser is spacy:{model}, which cannot be loaded ({error}); pip install spacy and the '
        'model, or leave out the rules that need a parser'
      ) from error

  def __call__(self, lines: Sequence[str]) -> list[Parse]:
    parsed = self._pipeline.pipe(lines, batch_size=self._batch)
    return [[Token(t.text, t.pos_, t.dep_, t.head.i) for t in line] for line in parsed]


@functools.cache
def named(name: str) -> Parser | None:
  """The parser of a name, made once a process; None for ''.

  Args:
    name: 'spacy:MODEL', or 'MODULE:FUNCTION', which is called without arguments and returns one.

  Raises:
    ConfigError: there is no such thing.
  """
  if not name:
    return None
  module, colon, rest = name.partition(':')
  if not colon or not rest:
    raise ConfigError(f"parser is {name!r}, expected 'spacy:MODEL' or 'MODULE:FUNCTION'")
  if module == 'spacy':
    return SpacyParser.load(rest)
  try:
    return getattr(importlib.import_module(module), rest)()
  except (ImportError, AttributeError) as error:
    raise ConfigError(f'parser is {name!r}, which cannot be made: {error}') from error
