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


def prompt_bytes(prompts: Sequence[bytes | str]) -> list[bytes]:
  """The bytes of each prompt; what a terminal could not read as UTF-8 is what was typed.

  Raises:
    ConfigError: no prompts, one that is not in a list, or half a character.
  """
  if isinstance(prompts, str | bytes):
    raise ConfigError(f'prompts is {prompts!r}, expected a list of texts: [{prompts!r}]')
  encoded = lambda text: text.encode('utf-8', 'surrogateescape')
  try:
    given = [encoded(p) if isinstance(p, str) else bytes(p) for p in prompts]
  except UnicodeEncodeError as error:
    raise ConfigError(f'a prompt has half a character, which is no UTF-8: {error}') from error
  if not given:
    raise ConfigError('there is no prompt; an empty one, "", is one')
  return given


class LoadedText(LoadedRun):
  """A trained model that goes on writing; `unit` is what it writes."""

  unit = 'byte'

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
    rows = self._rows(prompt_bytes(prompts))
    if settings.is_guided:
      raise ConfigError(
        f'guidance_scale is {settings.guidance_scale}, but a text has no condition; use 1'
      )
    self._check_room(max(map(len, rows)), length)
    key_B = example_keys(jax.random.key(seed), np.arange(len(rows), dtype=np.uint32))
    return self._stream(rows, length, key_B, settings)

  def _check_room(self, longest: int, length: int) -> None:
    context = self.task.config.length
    if not 1 <= length <= context - longest:
      room = f'expected 1 to {context - longest}' if longest < context else 'there is room for none'
      raise ConfigError(
        f'length is {length}, and the longest prompt takes {longest} of the {context} '
        f'{self.unit}s of model.length: {room}; write less, or give a shorter prompt'
      )

  def write(
    self, prompts: Sequence[bytes | str], length: int, *, seed: int = 0, **sampling: Any
  ) -> list[bytes]:
    """What follows each prompt, whole; see `stream`."""
    pieces = list(self.stream(prompts, length, seed=seed, **sampling))
    return [b''.join(piece[i] for piece in pieces) for i in range(len(prompts))]

  def _rows(self, given: Sequence[bytes]) -> list[Sequence[int]]:
    """The ids of each prompt; bytes are ids."""
    return given

  def _stream(self, rows, length, key_B, sampling) -> Iterator[list[bytes]]:
    raise NotImplementedError


class LoadedMegabyte(LoadedText):
  """A trained MEGABYTE; it writes a patch at a time."""

  @functools.cached_property
  def _layout(self):
    return _megabyte_layout(self.variables['params'], self.task.config)

  def _rows(self, given):
    num = self.task.config.vocab_size
    if num > 256:
      raise ConfigError(f'model.vocab_size is {num}; only bytes can be written')
    megabyte_generation.check_ids(given, self.task.config)
    return given

  def _stream(self, rows, length, key_B, sampling):
    pieces = megabyte_generation.stream(
      self._layout, self.variables['params'], self.task.config, rows, key_B, sampling, length
    )
    for piece in pieces:
      yield [row.tobytes() for row in piece]


class LoadedLm(LoadedText):
  """A trained language model over bytes or the tokens of its run's tokenizer."""

  unit = 'token'

  @functools.cached_property
  def _layout(self):
    return _lm_layout(self.variables['params'], self.task.config)

  def _rows(self, given):
    codec = Codec.of(self.config)
    rows = [[*codec.before, *codec.encode(prompt)] for prompt in given]
    if not all(rows):
      raise ConfigError(
        'a prompt is empty, and this model was trained without data.text.bos_id, so it needs a '
        'first token; give a prompt'
      )
    return rows

  def _stream(self, rows, length, key_B, sampling):
    config, codec = self.task.config, Codec.of(self.config)
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
    """Ids of a text; ConfigError where the tokenizer needs UTF-8, and it is none."""
    if self.tokenizer is None:
      return list(given)
    try:
      return self.tokenizer.encode(given.decode())
    except UnicodeDecodeError as error:
      raise ConfigError(
        f"{given!r} is no UTF-8, which this run's tokenizer needs: {error}"
      ) from error

  def decode(self, ids: np.ndarray) -> bytes:
    """The text of ids up to the end of the document; ids that are no text have none."""
    ids = np.asarray(ids)
    if self.eos_id is not None:
      ids = ids[np.cumsum(ids == self.eos_id) == 0]
    if self.tokenizer is None:
      return ids[ids < 256].astype(np.uint8).tobytes()
    return self.tokenizer.decode(ids.tolist(), keep_special=False).encode()
