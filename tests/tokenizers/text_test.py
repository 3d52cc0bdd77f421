"""Bytes and BPE: text comes back, special tokens only where allowed, stable files."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError
from jaxmm.tokenizers.text import SPECIAL, BpeTokenizer, ByteTokenizer, load, sentinels

TEXTS = [
  'the causal tokenizer makes tokens that are easy to model',
  'the model of the tokens, the tokens of the model',
  'naïve façade 東京 🙂',
] * 5


@pytest.fixture(scope='module')
def bpe() -> BpeTokenizer:
  return BpeTokenizer.train(TEXTS, 256 + 40, SPECIAL + sentinels(2))


@pytest.fixture(params=['bytes', 'bpe'])
def tokenizer(request, bpe):
  return ByteTokenizer(SPECIAL + sentinels(2)) if request.param == 'bytes' else bpe


@settings(max_examples=60, deadline=None)
@given(text=st.text())
def test_any_text_comes_back(bpe, text):
  expected = text.encode('utf-8', 'replace').decode()
  for tokenizer in (ByteTokenizer(), bpe):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == expected
    assert all(0 <= i < tokenizer.num_ordinary for i in ids)


def test_bytes_are_their_own_ids():
  tokenizer = ByteTokenizer()
  assert tokenizer.encode('aé') == [97, 0xC3, 0xA9]
  assert tokenizer.vocab_size == 259 and tokenizer.special_id('<eos>') == 258
  assert tokenizer.decode([0xC3, 97]) == '\ufffda'
  assert tokenizer.decode([0xC3, 258, 0xA9], keep_special=False) == '\ufffd\ufffd'


def test_bpe_learns_merges_and_uses_its_whole_vocabulary(bpe):
  assert bpe.vocab_size == 296 and bpe.num_ordinary == 291
  text = 'the tokens of the model'
  ids = bpe.encode(text)
  assert len(ids) < len(text) / 2 and max(ids) >= 256
  again = BpeTokenizer.train(TEXTS, 296, SPECIAL + sentinels(2))
  assert again.encode(text) == ids
  for one, many in zip([bpe.encode(t) for t in TEXTS], bpe.encode_many(TEXTS), strict=True):
    np.testing.assert_array_equal(one, many)


def test_special_tokens_are_read_only_when_allowed(tokenizer):
  text = 'a<sentinel_1>b<eos>'
  plain = tokenizer.encode(text)
  assert max(plain) < tokenizer.num_ordinary and tokenizer.decode(plain) == text
  ids = tokenizer.encode(text, allow_special=True)
  base = tokenizer.num_ordinary
  assert ids == [*tokenizer.encode('a'), base + 4, *tokenizer.encode('b'), base + 2]
  assert tokenizer.decode(ids) == text
  assert tokenizer.decode(ids, keep_special=False) == 'ab'
  with pytest.raises(ConfigError, match='no special token .<mask>.; there are <pad>'):
    tokenizer.special_id('<mask>')
  with pytest.raises(ValueError, match=f'id {tokenizer.vocab_size} is out of range'):
    tokenizer.decode([tokenizer.vocab_size])


def test_a_special_token_inside_another_is_read_as_the_longer():
  tokenizer = ByteTokenizer(('<a>', '<a><b>'))
  assert tokenizer.encode('<a><b><a>', allow_special=True) == [257, 256]


def test_more_special_tokens_move_no_id(bpe):
  more = BpeTokenizer(json.dumps(bpe._state()['tokenizer']), bpe.special + ('<mask>',))
  for token in bpe.special:
    assert more.special_id(token) == bpe.special_id(token)
  assert more.special_id('<mask>') == bpe.vocab_size


def test_files_are_json_and_give_the_same_ids(tokenizer, tmp_path):
  path = tmp_path / 'tokenizer.json'
  tokenizer.save(path)
  assert json.loads(path.read_text('utf-8'))['kind'] == tokenizer.kind
  back = load(path)
  assert type(back) is type(tokenizer) and back.special == tokenizer.special
  text = 'naïve 東京 <bos> tokens'
  for allow in (False, True):
    assert back.encode(text, allow) == tokenizer.encode(text, allow)


def test_files_and_settings_that_cannot_be_used(tmp_path):
  assert load('bytes').vocab_size == 259
  (tmp_path / 'x.json').write_text('{}')
  (tmp_path / 'y.json').write_text('no')
  for name, message in (
    ('absent', 'no such file'),
    ('x.json', 'not a file that'),
    ('y.json', 'JSON'),
  ):
    with pytest.raises(ConfigError, match=message):
      load(tmp_path / name)
  with pytest.raises(ConfigError, match='vocab_size is 200'):
    BpeTokenizer.train(TEXTS, 200)
  with pytest.raises(ConfigError, match='distinct'):
    ByteTokenizer(('<a>', '<a>'))
