"""Parsers by name, and spaCy's behind the protocol (spaCy itself is not needed)."""

import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import text_parser
from jaxmm.curation.text_parser import Token


def test_parsers_by_name():
  assert text_parser.named('') is None
  name = f'{__name__}:one_determiner'
  made = text_parser.named(name)
  assert made(['a']) == [[Token('a', 'DET', 'det', 0)]] and text_parser.named(name) is made
  for name, message in (
    ('spacy', "expected 'spacy:MODEL'"),
    ('no.such:parser', 'which cannot be made: No module'),
    ('json:no_such', 'which cannot be made'),
    ('spacy:no_such_model', 'which cannot be loaded'),
  ):
    with pytest.raises(ConfigError, match=message):
      text_parser.named(name)


def one_determiner():
  return lambda lines: [[Token(line, 'DET', 'det', 0)] for line in lines]


def test_spacy_is_asked_for_what_the_rules_need():
  class Word:
    def __init__(self, text, pos, dep):
      self.text, self.pos_, self.dep_ = text, pos, dep

  class Pipeline:
    def pipe(self, lines, batch_size):
      assert batch_size == 256
      for line in lines:
        words = [Word(text, 'NOUN', 'dobj') for text in line.split()]
        for i, word in enumerate(words):
          word.i, word.head = i, words[0]
        yield words

  parses = text_parser.SpacyParser(Pipeline())(['a b', 'c'])
  assert parses[0] == [Token('a', 'NOUN', 'dobj', 0), Token('b', 'NOUN', 'dobj', 0)]
  assert parses[1] == [Token('c', 'NOUN', 'dobj', 0)]
