"""Trained models of text and of bytes, as objects that write on from a prompt.

Axes: B prompts, N positions of a prompt.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.models import lm, megabyte_generation
from jaxmm.studies.loaded import LoadedRun
from jaxmm.task import example_keys
from jaxmm.tokenizers import text

# Prompts of a language model are padded to its multiples, so that few lengths are compiled.
_PROMPT_BUCKET = 64
# Compiled once for all calls of one shape and settings.
_lm_layout = jax.jit(lm.decode_params, static_argnums=1)
_megabyte_layout = jax.jit(megabyte_generation.decode_params, static_argnums=1)
lm_generate = jax.jit(lm.generate, static_argnames=('config', 'sampling', 'num_tokens', 'stop_id'))


class LoadedText(LoadedRun):
  """A trained model that goes on writing."""

  def stream(
    self, prompts: Sequence[bytes | str], length: int, *, seed: int = 0, **sampling: Any
  ) -> Iterator[list[bytes]]:
    """What follows each prompt, piece by piece as it is drawn; a text that has ended has no more.

    What a prompt gets hangs on it, its place among the prompts and the seed, on no other prompt.

    Args:
      prompts: strings (their UTF-8 bytes) or bytes.
      length: of what is new, in bytes or, of a model of tokens, in tokens.
      seed: of what is drawn.
      **sampling: of `SamplingConfig`, without guidance.

    Raises:
      ConfigError: prompts or a length that the model's context does not hold, or such settings.
    """
    settings = configs.from_mapping(SamplingConfig, sampling, 'sampling')
    given = [p.encode() if isinstance(p, str) else bytes(p) for p in prompts]
    if not given:
      raise ConfigError('there is no prompt; an empty one, "", is one')
    if length < 1:
      raise ConfigError(f'length is {length}, expected at least 1')
    key_B = example_keys(jax.random.key(seed), np.arange(len(given), dtype=np.uint32))
    yield from self._stream(given, length, key_B, settings)

  def write(
    self, prompts: Sequence[bytes | str], length: int, *, seed: int = 0, **sampling: Any
  ) -> list[bytes]:
    """What follows each prompt, whole; see `stream`."""
    pieces = list(self.stream(prompts, length, seed=seed, **sampling))
    return [b''.join(piece[i] for piece in pieces) for i in range(len(prompts))]

  def _stream(self, given, length, key_B, sampling) -> Iterator[list[bytes]]:
    raise NotImplementedError


class LoadedMegabyte(LoadedText):
  """A trained MEGABYTE; it writes a patch at a time."""

  @functools.cached_property
  def _layout(self):
    return _megabyte_layout(self.variables['params'], self.task.config)

  def _stream(self, given, length, key_B, sampling):
    config = self.task.config
    if config.vocab_size > 256:
      raise ConfigError(f'model.vocab_size is {config.vocab_size}; only bytes can be written')
    pieces = megabyte_generation.stream(
      self._layout, self.variables['params'], config, given, key_B, sampling, length
    )
    for rows in pieces:
      yield [row.tobytes() for row in rows]


class LoadedLm(LoadedText):
  """A trained language model over bytes or the tokens of its run's tokenizer."""

  @functools.cached_property
  def _layout(self):
    return _lm_layout(self.variables['params'], self.task.config)

  def _stream(self, given, length, key_B, sampling):
    config, codec = self.task.config, Codec.of(self.config)
    rows = [[*codec.before, *codec.encode(prompt)] for prompt in given]
    if not all(rows):
      raise ConfigError(
        'a prompt is empty, and this model was trained without data.text.bos_id, so it needs a '
        'first token; give a prompt'
      )
    longest = max(map(len, rows))
    room = min(-(-longest // _PROMPT_BUCKET) * _PROMPT_BUCKET, config.length - length)
    prompt_BN, length_B = lm.prompts(rows, max(room, longest))
    ids = lm_generate(
      self._layout, self.variables['params'], prompt_BP=prompt_BN, length_B=length_B, key_B=key_B,
      config=config, sampling=sampling, num_tokens=length, stop_id=codec.eos_id,
    )  # fmt: skip
    yield [codec.decode(row) for row in np.asarray(ids)]


@dataclasses.dataclass(frozen=True)
class Codec:
  """Between texts and ids, as a run's `data.text` says.

  Attributes:
    tokenizer: a trained one; None for bytes.
    before: the id that begins a document, or nothing.
    eos_id: ends one; None without.
  """

  tokenizer: Any
  before: tuple[int, ...]
  eos_id: int | None

  @classmethod
  def of(cls, config: Mapping[str, Any]) -> Codec:
    """That of a run's config."""
    data = config['data'].get('text', {})
    name, bos = data.get('tokenizer', 'bytes'), data.get('bos_id')
    trained = None if name == 'bytes' else text.load(name)
    return cls(trained, () if bos is None else (bos,), data.get('eos_id'))

  def encode(self, given: bytes) -> list[int]:
    """Ids of a text."""
    return list(given) if self.tokenizer is None else self.tokenizer.encode(given.decode())

  def decode(self, ids: np.ndarray) -> bytes:
    """The text of ids up to the end of the document; ids that are no text have none."""
    ids = np.asarray(ids)
    if self.eos_id is not None:
      ids = ids[np.cumsum(ids == self.eos_id) == 0]
    if self.tokenizer is None:
      return ids[ids < 256].astype(np.uint8).tobytes()
    return self.tokenizer.decode(ids.tolist(), keep_special=False).encode()
