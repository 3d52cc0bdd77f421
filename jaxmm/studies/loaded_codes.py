"""A trained language model over text and the codes of images: it draws and describes.

Its rows are those of `data.mixed.codes`: one vocabulary, the codes of an image between two brackets
(as Chameleon and CM3Leon have it).

Axes: B prompts or images, P codes of an image, Y X rows and columns, C channels.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.data.array_store import ArrayStore
from jaxmm.data.mixed import MixedConfig
from jaxmm.models import lm
from jaxmm.studies.loaded import LoadedRun
from jaxmm.studies.loaded_text import Codec, LoadedLm, lm_generate, prompt_bytes
from jaxmm.task import example_keys


class LoadedCodesLm(LoadedLm):
  """A trained LM of text and codes, with the tokenizer whose codes it was trained on."""

  @property
  def mixed(self) -> MixedConfig:
    """How its rows are laid out."""
    return configs.from_mapping(MixedConfig, self.config['data']['mixed'], 'data.mixed')

  def tokenizer(self, directory: str | os.PathLike | None = None) -> LoadedRun:
    """The tokenizer in `directory`; None is that of the run's codes, at their step."""
    return maker_of(self, 'codes', directory)

  def draw(
    self,
    prompts: Sequence[str],
    *,
    seed: int = 0,
    tokenizer: str | os.PathLike | None = None,
    batch: int = 64,
    **sampling: Any,
  ) -> np.ndarray:
    """An image for each text, uint8 [B, Y, X, C].

    What a text gets hangs on it, its place among the prompts and the seed, on no other prompt.

    Args:
      prompts: captions.
      seed: of what is drawn.
      tokenizer: a run directory; None is that of the codes the model was trained on.
      batch: prompts at a time.
      **sampling: of `SamplingConfig`, without guidance and `allowed`.

    Raises:
      ConfigError: texts too long for an image behind them, or settings that cannot be.
    """
    mixed, codec, decoder = self.mixed, Codec.of(self.config), self.tokenizer(tokenizer)
    rows = [[*codec.before, *codec.encode(p), mixed.boi_id] for p in prompt_bytes(prompts)]
    allowed = (mixed.first_code, mixed.first_code + decoder.num_codes)
    ids_BP = self._new_ids(rows, mixed.patches, seed, batch, sampling | {'allowed': allowed})
    return decoder.decode(ids_BP - mixed.first_code)

  def describe(
    self,
    image_BYXC: np.ndarray,
    length: int = 64,
    *,
    seed: int = 0,
    tokenizer: str | os.PathLike | None = None,
    batch: int = 64,
    **sampling: Any,
  ) -> list[str]:
    """A text for each uint8 image of the tokenizer's size, of at most `length` tokens; arguments as
    of `draw`.
    """
    mixed, codec = self.mixed, Codec.of(self.config)
    codes_BP = self.tokenizer(tokenizer).encode(image_BYXC) + mixed.first_code
    rows = [[*codec.before, mixed.boi_id, *codes, mixed.eoi_id] for codes in codes_BP.tolist()]
    only_text = {'allowed': (0, mixed.first_code)}
    ids_BN = self._new_ids(rows, length, seed, batch, sampling | only_text, codec.eos_id)
    return [codec.decode(row).decode(errors='replace') for row in ids_BN]

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


def maker_of(
  loaded: LoadedRun, field: str, directory: str | os.PathLike | None = None
) -> LoadedRun:
  """The run in `directory`; None is that which made the `latents` or `codes` of a run's pictures.

  Args:
    loaded: the run that was trained on them.
    field: of `data.mixed`.
    directory: of the maker's run.

  Raises:
    ConfigError: the run read pixels or another's, or their maker is gone.
  """
  from jaxmm.studies import loading  # which imports this file

  wanted = {'latents': loading.LoadedAutoencoder, 'codes': loading.LoadedTokenizer}[field]
  if directory:
    found = loading.load(directory)
    if not isinstance(found, wanted):
      raise ConfigError(
        f'{directory} is a run of {found.config["task"]}, which makes no {field}; name the run '
        f'that made those that {loaded.directory} was trained on'
      )
    return found
  store = loaded.config['data'].get('mixed', {}).get(field)
  if not store:
    raise ConfigError(
      f'the run in {loaded.directory} names no {field}, so what made them is unknown; name it '
      '(autoencoder=DIR or tokenizer=DIR, --tokenizer DIR)'
    )
  meta = ArrayStore(store).meta
  if 'tokenizer' not in meta:
    raise ConfigError(
      f'{store} does not say what made its {field}; name the run (autoencoder=DIR or '
      'tokenizer=DIR, --tokenizer DIR)'
    )
  near = pathlib.Path(store, meta['tokenizer_relative'])
  found = near if (near / 'config.json').is_file() else pathlib.Path(meta['tokenizer'])
  return loading.load(found, step=meta['tokenizer_step'])
