"""A trained language model over text and the codes of images: it draws and describes.

Its rows are those of `data.mixed.codes`: one vocabulary, the codes of an image between two brackets
(as Chameleon and CM3Leon have it).

Axes: B prompts or images, P codes of an image, Y X rows and columns, C channels.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.data.mixed import MixedConfig
from jaxmm.models import lm
from jaxmm.studies.loaded import LoadedMixed
from jaxmm.studies.loaded_text import Codec, LoadedLm, lm_generate, prompt_bytes
from jaxmm.task import example_keys


class LoadedCodesLm(LoadedMixed, LoadedLm):
  """A trained LM of text and codes, with the tokenizer whose codes it was trained on."""

  stored = 'codes'

  @property
  def mixed(self) -> MixedConfig:
    """How its rows are laid out."""
    return configs.from_mapping(MixedConfig, self.config['data']['mixed'], 'data.mixed')

  def draw(
    self,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    autoencoder: str | os.PathLike | None = None,
    batch: int = 64,
    **sampling: Any,
  ) -> np.ndarray:
    """An image for each text, uint8 [B, Y, X, C].

    What a text gets hangs on it, its place among the prompts and the seed, on no other prompt.

    Args:
      prompts: captions.
      seed: of what is drawn.
      autoencoder: a tokenizer's run; None is that of the codes the model was trained on.
      batch: prompts at a time.
      **sampling: of `SamplingConfig`, without guidance and `allowed`.

    Raises:
      ConfigError: texts too long for an image behind them, or settings that cannot be.
    """
    encode = Codec.of(self.config).encode
    return self._drawn(
      [encode(p) for p in prompt_bytes(prompts)], autoencoder, seed, batch, sampling
    )

  def edit(
    self,
    image_BYXC: np.ndarray,
    instructions: Sequence[str],
    *,
    seed: int = 0,
    autoencoder: str | os.PathLike | None = None,
    batch: int = 64,
    **sampling: Any,
  ) -> np.ndarray:
    """Each image as its instruction wants it, uint8 [B, Y, X, C]; arguments as of `draw`.

    The model must have been trained on such sequences (`parts` of `data.captions`).
    """
    given = prompt_bytes(instructions)
    if len(image_BYXC) != len(instructions):
      raise ConfigError(
        f'there are {len(image_BYXC)} images and {len(instructions)} instructions, expected one '
        'for each'
      )
    encode, images = Codec.of(self.config).encode, self._image_ids(image_BYXC, autoencoder)
    rows = [[*ids, *encode(text)] for ids, text in zip(images, given)]
    return self._drawn(rows, autoencoder, seed, batch, sampling)

  def describe(
    self,
    image_BYXC: np.ndarray,
    length: int = 64,
    *,
    seed: int = 0,
    autoencoder: str | os.PathLike | None = None,
    batch: int = 64,
    **sampling: Any,
  ) -> list[str]:
    """A text for each uint8 image of the tokenizer's size, of at most `length` tokens; arguments as
    of `draw`.
    """
    codec = Codec.of(self.config)
    rows = [[*codec.before, *ids] for ids in self._image_ids(image_BYXC, autoencoder)]
    only_text = {'allowed': (0, self.mixed.first_code)}
    ids_BN = self._new_ids(rows, length, seed, batch, sampling | only_text, codec.eos_id)
    return [codec.decode(row).decode(errors='replace') for row in ids_BN]

  def _image_ids(self, image_BYXC: np.ndarray, autoencoder) -> list[list[int]]:
    """Each image as it stands in a row, brackets included."""
    mixed = self.mixed
    codes_BP = self.autoencoder(autoencoder).encode(image_BYXC)
    if codes_BP.shape[1] != mixed.patches:
      raise ConfigError(
        f'images of shape {list(np.shape(image_BYXC)[1:])} have {codes_BP.shape[1]} codes, but the '
        f'model was trained on {mixed.patches} an image; give images of the size that it was '
        'trained on'
      )
    return [
      [mixed.boi_id, *codes, mixed.eoi_id] for codes in (codes_BP + mixed.first_code).tolist()
    ]

  def _drawn(self, rows, autoencoder, seed: int, batch: int, sampling) -> np.ndarray:
    """The image behind each row of ids."""
    if not rows:
      raise ConfigError('there is no prompt; an empty one, "", is one')
    mixed, decoder = self.mixed, self.autoencoder(autoencoder)
    rows = [[*Codec.of(self.config).before, *row, mixed.boi_id] for row in rows]
    allowed = (mixed.first_code, mixed.first_code + decoder.num_codes)
    if allowed[1] > self.task.config.vocab_size:
      raise ConfigError(
        f'the tokenizer in {decoder.directory} has {decoder.num_codes} codes, but the vocabulary '
        f'of {self.directory} ends after {self.task.config.vocab_size - mixed.first_code}; name '
        'the one whose codes it was trained on'
      )
    ids_BP = self._new_ids(rows, mixed.patches, seed, batch, sampling | {'allowed': allowed})
    return decoder.decode(ids_BP - mixed.first_code)

  def _new_ids(
    self,
    rows: Sequence[Sequence[int]],
    num: int,
    seed: int,
    batch: int,
    sampling: Mapping[str, Any],
    stop_id: int | None = None,
  ) -> np.ndarray:
    """What follows each row, int32 [B, num], `batch` rows at a time."""
    settings = configs.from_mapping(SamplingConfig, dict(sampling), 'sampling')
    prompt_BN, length_B = lm.prompts(rows)
    index_B = np.arange(len(rows), dtype=np.uint32)
    out = []
    for start in range(0, len(rows), batch):
      # The last batch is filled up, so that one size is compiled.
      at_B = np.minimum(np.arange(start, start + min(batch, len(rows))), len(rows) - 1)
      key_B = example_keys(jax.random.key(seed), index_B[at_B])
      ids_BN = lm_generate(
        self._layout, self.variables['params'], prompt_BP=prompt_BN[at_B], length_B=length_B[at_B],
        key_B=key_B, config=self.task.config, sampling=settings, num_tokens=num, stop_id=stop_id,
      )  # fmt: skip
      out.append(np.asarray(ids_BN)[: len(rows) - start])
    return np.concatenate(out)
