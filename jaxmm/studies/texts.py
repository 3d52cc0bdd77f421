"""Texts of a trained model for a person: to the terminal as they come, and into a file."""

from __future__ import annotations

import codecs
import json
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

from jaxmm.config import ConfigError
from jaxmm.studies import loading
from jaxmm.studies.loaded_text import LoadedText


def sample(
  directory: str | os.PathLike,
  prompts: Sequence[str],
  *,
  length: int,
  output: str | os.PathLike | None = None,
  seed: int = 0,
  show: Callable[[str], Any],
  **sampling: Any,
) -> str:
  """Writes on from each prompt; a single one is shown as it comes. Returns what was done.

  Args:
    directory: the run.
    prompts: what is given.
    length: of what is new, in bytes or tokens.
    output: JSON lines with `prompt` and `text`; None for none. Bytes that are no UTF-8 become the
      replacement character there and on the terminal.
    seed: of what is drawn.
    show: takes pieces of text.
    **sampling: of `SamplingConfig`.

  Raises:
    ConfigError: a run that writes no text, or what `LoadedText.stream` refuses.
  """
  model = loading.load(directory)
  if not isinstance(model, LoadedText):
    raise ConfigError(
      f'{directory} is a run of {model.config["task"]}, which writes no text; leave --prompt out'
    )
  whole = [''] * len(prompts)
  decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in prompts]
  if len(prompts) == 1:
    show(prompts[0])
  for pieces in model.stream(prompts, length, seed=seed, **sampling):
    for i, (piece, decoder) in enumerate(zip(pieces, decoders)):
      text = decoder.decode(piece)
      whole[i] += text
      if len(prompts) == 1:
        show(text)
  for i, decoder in enumerate(decoders):
    whole[i] += decoder.decode(b'', final=True)
  if len(prompts) > 1:
    for i, (prompt, text) in enumerate(zip(prompts, whole)):
      show(f'[{i}] {prompt}{text}\n')
  else:
    show('\n')
  if output is None:
    return f'{len(prompts)} texts of step {model.step}'
  rows = (json.dumps({'prompt': p, 'text': t}) + '\n' for p, t in zip(prompts, whole))
  pathlib.Path(output).write_text(''.join(rows), encoding='utf-8')
  return f'{len(prompts)} texts of step {model.step} written to {output}'
