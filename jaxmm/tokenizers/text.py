"""Text to ids and back: UTF-8 bytes, or a byte-level BPE trained by the `tokenizers` library.

Ids 0 .. num_ordinary - 1 are bytes or merges; special tokens follow, so adding one at the end moves
no other id. Text is encoded as text: a special token's own spelling in a document gives ordinary
ids, unless `allow_special` says that the text was written by us.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxmm.config import ConfigError

FORMAT = 'jaxmm-text-tokenizer-1'
SPECIAL = ('<pad>', '<bos>', '<eos>')


def sentinels(num: int) -> tuple[str, ...]:
  """`('<sentinel_0>', '<sentinel_1>', ...)`: marks of masked spans (infilling, span corruption)."""
  return tuple(f'<sentinel_{i}>' for i in range(num))


class TextTokenizer:
  """What both tokenizers share: special tokens after the ordinary ids, files, batches.

  Attributes:
    special: the special tokens; the i-th has id `num_ordinary + i`.
    num_ordinary: ids that are bytes or merges.
    vocab_size: all ids.
  """

  kind = ''

  def __init__(self, num_ordinary: int, special: Sequence[str]):
    self.num_ordinary, self.special = num_ordinary, tuple(special)
    if len(set(self.special)) != len(self.special) or '' in self.special:
      raise ConfigError(f'special tokens must be distinct and not empty, got {self.special}')
    self.vocab_size = num_ordinary + len(self.special)
    self._special_ids = {token: num_ordinary + i for i, token in enumerate(self.special)}
    # The longest first: '<a><b>' must not be read as '<a>' and a rest.
    longest_first = sorted(self.special, key=len, reverse=True)
    pattern = '|'.join(re.escape(token) for token in longest_first)
    self._split = re.compile(f'({pattern})') if self.special else None

  def special_id(self, token: str) -> int:
    """The id of a special token; ConfigError names those there are."""
    if token not in self._special_ids:
      raise ConfigError(f'there is no special token {token!r}; there are {", ".join(self.special)}')
    return self._special_ids[token]

  def encode(self, text: str, allow_special: bool = False) -> list[int]:
    """Ids of a text, nothing added before or after.

    Args:
      text: any text; lone surrogates, which UTF-8 cannot hold, become '?'.
      allow_special: read special tokens in the text as such.
    """
    if not allow_special or self._split is None:
      return self._ordinary_ids(text)
    ids: list[int] = []
    for part in self._split.split(text):
      if part in self._special_ids:
        ids.append(self._special_ids[part])
      elif part:
        ids += self._ordinary_ids(part)
    return ids

  def decode(self, ids: Iterable[int], keep_special: bool = True) -> str:
    """The text of ids; bytes that are no UTF-8 become U+FFFD. ValueError for ids out of range."""
    out, run = [], []
    for i in ids:
      i = int(i)
      if not 0 <= i < self.vocab_size:
        raise ValueError(f'id {i} is out of range; the vocabulary has {self.vocab_size} ids')
      if i < self.num_ordinary:
        run.append(i)
        continue
      # Bytes on both sides of a special token are no character together.
      out.append(self._ordinary_text(run))
      run = []
      if keep_special:
        out.append(self.special[i - self.num_ordinary])
    return ''.join([*out, self._ordinary_text(run)])

  def save(self, path: str | os.PathLike) -> None:
    """Writes one JSON file."""
    state = {'format': FORMAT, 'kind': self.kind, 'special': list(self.special), **self._state()}
    pathlib.Path(path).write_text(json.dumps(state, ensure_ascii=False), 'utf-8')

  def byte_lengths(self) -> np.ndarray:
    """UTF-8 bytes of each id, int32; 0 of special tokens."""
    return np.array([*self._ordinary_lengths(), *[0] * len(self.special)], np.int32)

  def _ordinary_lengths(self) -> list[int]:
    raise NotImplementedError

  def _ordinary_ids(self, text: str) -> list[int]:
    raise NotImplementedError

  def _ordinary_text(self, ids: list[int]) -> str:
    raise NotImplementedError

  def _state(self) -> dict[str, Any]:
    return {}


class ByteTokenizer(TextTokenizer):
  """Ids 0-255 are the bytes of the UTF-8 text."""

  kind = 'bytes'

  def __init__(self, special: Sequence[str] = SPECIAL):
    super().__init__(256, special)

  def _ordinary_lengths(self) -> list[int]:
    return [1] * 256

  def _ordinary_ids(self, text: str) -> list[int]:
    return list(text.encode('utf-8', 'replace'))

  def _ordinary_text(self, ids: list[int]) -> str:
    return bytes(ids).decode('utf-8', 'replace')


class BpeTokenizer(TextTokenizer):
  """Byte-level byte-pair encoding (Sennrich et al. 2016, arXiv:1508.07909; bytes as in GPT-2).

  Every text can be encoded and comes back exactly, whatever it was trained on.
  """

  kind = 'bpe'

  def __init__(self, library_json: str, special: Sequence[str] = SPECIAL):
    import tokenizers

    self._tokenizer = tokenizers.Tokenizer.from_str(library_json)
    super().__init__(self._tokenizer.get_vocab_size(), special)

  @classmethod
  def train(
    cls, texts: Iterable[str], vocab_size: int, special: Sequence[str] = SPECIAL
  ) -> BpeTokenizer:
    """Learns merges from texts, the same for the same texts in the same order.

    Args:
      texts: read once.
      vocab_size: all ids, special tokens included; fewer if the texts hold fewer merges.
      special: see the class.

    Raises:
      ConfigError: no room for the 256 bytes and the special tokens.
    """
    if vocab_size < 256 + len(special):
      raise ConfigError(
        f'vocab_size is {vocab_size}, expected at least 256 bytes + {len(special)} special tokens'
      )
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
      vocab_size=vocab_size - len(special),
      initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
      special_tokens=[],
      show_progress=False,
    )
    tokenizer.train_from_iterator((_encodable(t) for t in texts), trainer)
    return cls(tokenizer.to_str(), special)

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of many texts, in parallel threads; int32 each."""
    encoded = self._tokenizer.encode_batch_fast([_encodable(t) for t in texts])
    return [np.array(e.ids, np.int32) for e in encoded]

  def _ordinary_lengths(self) -> list[int]:
    # Byte-level tokens are spelt with one character a byte.
    return [len(self._tokenizer.id_to_token(i)) for i in range(self._tokenizer.get_vocab_size())]

  def _ordinary_ids(self, text: str) -> list[int]:
    return self._tokenizer.encode(_encodable(text)).ids

  def _ordinary_text(self, ids: list[int]) -> str:
    return self._tokenizer.decode(ids) if ids else ''

  def _state(self) -> dict[str, Any]:
    return {'tokenizer': json.loads(self._tokenizer.to_str())}


def load(path: str | os.PathLike) -> TextTokenizer:
  """The tokenizer of a file that `save` wrote, or of the name 'bytes'.

  Raises:
    ConfigError: no such file, or not a tokenizer's.
  """
  if str(path) == 'bytes':
    return ByteTokenizer()
  file = pathlib.Path(path)
  if not file.is_file():
    raise ConfigError(f"tokenizer {str(path)!r}: no such file, expected one or 'bytes'")
  try:
    state = json.loads(file.read_text('utf-8'))
  except ValueError as e:
    raise ConfigError(f'tokenizer {path}: not JSON ({e})') from e
  if not isinstance(state, dict) or state.get('format') != FORMAT:
    raise ConfigError(f'tokenizer {path}: not a file that `save` wrote (format {FORMAT})')
  if state['kind'] == 'bytes':
    return ByteTokenizer(state['special'])
  return BpeTokenizer(json.dumps(state['tokenizer']), state['special'])


def _encodable(text: str) -> str:
  return text.encode('utf-8', 'replace').decode('utf-8')
