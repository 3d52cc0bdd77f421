"""Other people's tokenizers, from the `tokenizer.json` that comes with their weights.

Axes: L tokens.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Sequence

import numpy as np

from jaxmm.config import ConfigError


class PretrainedTokenizer:
  """Text to ids as the model's authors made them, with the special tokens of their template.

  Args:
    path: a `tokenizer.json` of the library `tokenizers`.
    length: a text keeps as many tokens, special ones included; the rest is cut off.

  Raises:
    ConfigError: no such file, not a tokenizer's, or a length that leaves no room for text.
  """

  def __init__(self, path: str | os.PathLike, length: int):
    import tokenizers

    path = pathlib.Path(path)
    if not path.is_file():
      raise ConfigError(f'{path}: there is no such tokenizer file')
    try:
      self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises Exception itself
      raise ConfigError(f'{path}: not a tokenizer file ({error})') from error
    special = self._tokenizer.num_special_tokens_to_add(False)
    if length <= special:
      raise ConfigError(
        f'length is {length}, expected more than the {special} special tokens of every text'
      )
    # The file may ask for padding and another truncation; both are the caller's to say.
    self._tokenizer.no_padding()
    self._tokenizer.enable_truncation(length)
    self.length, self.vocab_size = length, self._tokenizer.get_vocab_size()

  def encode_many(self, texts: Sequence[str]) -> list[np.ndarray]:
    """Ids of every text, int32 [L] each, in parallel threads; lone surrogates become '?'."""
    clean = [text.encode('utf-8', 'replace').decode('utf-8') for text in texts]
    return [np.array(e.ids, np.int32) for e in self._tokenizer.encode_batch_fast(clean)]
