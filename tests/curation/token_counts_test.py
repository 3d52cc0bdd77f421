"""Counters by name: built in, from a tokenizer's file, or any function that can be imported."""

import json

import pytest
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from jaxmm.config import ConfigError
from jaxmm.curation import token_counts
from jaxmm.data.corpus import CorpusConfig
from jaxmm.tokenizers.text import BpeTokenizer, ByteTokenizer

TEXTS = [
  '',
  'one two  three\n',
  'for i in range(10):\n\tprint(i)',
  'é\u3042🙂',
  '\ud800x',
  '\x00\r\n',
]


@pytest.mark.parametrize('text', TEXTS)
def test_built_in_counters(text):
  assert token_counts.counter('characters')(text) == len(text)
  assert token_counts.counter('words')(text) == len(text.split())
  assert token_counts.counter('bytes')(text) == len(ByteTokenizer().encode(text))


@pytest.mark.parametrize('kind', ['bpe', 'bytes'])
def test_our_own_tokenizers_count_as_they_encode(tmp_path, kind):
  tokenizer = BpeTokenizer.train(TEXTS[1:3] * 3, 280) if kind == 'bpe' else ByteTokenizer()
  tokenizer.save(tmp_path / 'own.json')
  count = token_counts.counter(str(tmp_path / 'own.json'))
  assert [count(t) for t in TEXTS] == [len(tokenizer.encode(t)) for t in TEXTS]


def test_a_file_that_cuts_texts_and_adds_tokens_counts_the_whole_text(tmp_path):
  tokenizer = tokenizers.Tokenizer(models.WordLevel({'[UNK]': 0, '[CLS]': 1, 'a': 2}, '[UNK]'))
  tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
  tokenizer.post_processor = processors.TemplateProcessing(
    '[CLS] $A', special_tokens=[('[CLS]', 1)]
  )
  tokenizer.enable_truncation(4)
  tokenizer.enable_padding(length=4)
  tokenizer.save(str(tmp_path / 'tokenizer.json'))
  count = token_counts.counter(str(tmp_path / 'tokenizer.json'))
  assert [count('a ' * n) for n in (0, 1, 9)] == [0, 1, 9]


def test_any_function_that_can_be_imported():
  assert token_counts.counter('os.path:splitext')('a.b') == ('a', '.b')
  assert token_counts.identity('json:dumps') != token_counts.identity('pathlib:Path') != ''
  assert token_counts.identity('sys:getsizeof') == token_counts.identity('bytes') == ''


@pytest.mark.parametrize(
  'name, message',
  [
    ('bits', 'expected one of bytes, characters, words, the path of a tokenizer.json, or'),
    ('', "counter is ''"),
    ('nowhere.json', "'nowhere.json': no such file"),
    ('no_such_module:f', 'no_such_module cannot be imported'),
    ('json:nothing', "json has no function 'nothing'"),
  ],
)
def test_counters_that_are_not_there_are_named(name, message):
  with pytest.raises(ConfigError, match=message):
    token_counts.counter(name)


@pytest.mark.parametrize('content', ['{', '[]', '{}', '{"format": "jaxmm-text-tokenizer-1"}'])
def test_files_that_are_no_tokenizers_are_refused(tmp_path, content):
  path = tmp_path / 'x.json'
  path.write_text(content)
  with pytest.raises(ConfigError, match='x.json: not (a tokenizer.json|JSON)'):
    token_counts.counter(str(path))


def test_a_changed_tokenizer_counts_anew(tmp_path):
  path, corpus = tmp_path / 't.json', tmp_path / 'in.jsonl'
  corpus.write_text(json.dumps({'text': 'abab abab'}) + '\n')
  found = []
  for text in ('xyxy', 'abab abab'):
    BpeTokenizer.train([text] * 3, 270).save(path)
    table = token_counts.counts(CorpusConfig((str(corpus),)), str(path), tmp_path / 'w', echo=None)
    found += table['tokens'].to_pylist()
  assert found[0] == 9 and found[1] < 9
