"""What every trained run has once it is loaded."""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any, ClassVar

from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStore
from jaxmm.task import Task


@dataclasses.dataclass(frozen=True)
class LoadedRun:
  """A run's config, Task and parameters.

  Attributes:
    directory: the run directory.
    config: its settings, plain dicts.
    task: the Task they describe.
    step: of the checkpoint that was read.
    variables: `{'params': ..., other collections}`, on all devices.
    weights: which parameters these are: 'params', or 'ema', their average.
  """

  directory: pathlib.Path
  config: Mapping[str, Any]
  task: Task
  step: int
  variables: Mapping[str, Any]
  weights: str = 'params'


class LoadedMixed(LoadedRun):
  """A trained model of text and images: it has `draw`, `edit` and `describe`.

  Attributes:
    stored: what it reads of images, a field of `data.mixed`.
  """

  stored: ClassVar[str]

  def autoencoder(self, directory: str | os.PathLike | None = None) -> LoadedRun:
    """The run in `directory`; None is that which made what the model was trained on, at its step.

    Raises:
      ConfigError: the run read pixels, its autoencoder is gone, or another kind of run is named.
    """
    from jaxmm.studies import loading  # which imports this file

    wanted = {'latents': loading.LoadedAutoencoder, 'codes': loading.LoadedTokenizer}[self.stored]
    if directory:
      named = loading.load(directory)
      if not isinstance(named, wanted):
        raise ConfigError(
          f'{directory} is a run of {named.config["task"]}, which makes no {self.stored}; name the '
          f'run that made those that {self.directory} was trained on'
        )
      return named
    store = self.config['data'].get('mixed', {}).get(self.stored)
    if not store:
      raise ConfigError(
        f'the run in {self.directory} names no {self.stored}, so its autoencoder is unknown; name '
        'it (autoencoder=DIR, --tokenizer DIR)'
      )
    meta = ArrayStore(store).meta
    if 'tokenizer' not in meta:
      raise ConfigError(
        f'{store} does not say what made its {self.stored}; name the run (autoencoder=DIR, '
        '--tokenizer DIR)'
      )
    near = pathlib.Path(store, meta['tokenizer_relative'])
    found = near if (near / 'config.json').is_file() else pathlib.Path(meta['tokenizer'])
    return loading.load(found, step=meta['tokenizer_step'])
