"""Texts of a trained model, and images among them, for a person: to the terminal and into files."""

from __future__ import annotations

import codecs
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from PIL import Image

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.studies import pictures
from jaxmm.studies.loaded import LoadedMixed, LoadedRun
from jaxmm.studies.loaded_mixed import LoadedTransfusion
from jaxmm.studies.loaded_text import LoadedText, prompt_bytes


def sample(
  model: LoadedRun,
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
    model: a trained run.
    prompts: what is given.
    length: of what is new, in bytes or tokens.
    output: JSON lines with `prompt` and `text`; None for none. Bytes that are no UTF-8 become the
      replacement character there and on the terminal. A name that ends with .bin gets the bytes of
      the only prompt and those behind it, as they are.
    seed: of what is drawn.
    show: takes pieces of text.
    **sampling: of `SamplingConfig`.

  Raises:
    ConfigError: a run that writes no text, or what `LoadedText.stream` refuses.
  """
  if not isinstance(model, LoadedText):
    raise ConfigError(
      f'{model.directory} is a run of {model.config["task"]}, which takes no prompt; leave '
      '--prompt out'
    )
  is_raw = output is not None and str(output).endswith('.bin')
  if is_raw and len(prompts) > 1:
    raise ConfigError(f'--output {output}: raw bytes are those of one --prompt, got {len(prompts)}')
  _check_output(output)
  stream = model.stream(prompts, length, seed=seed, **sampling)
  raw = prompt_bytes(prompts)[:1]
  prompts = [prompt.decode(errors='replace') for prompt in prompt_bytes(prompts)]
  whole = [''] * len(prompts)
  decoders = [codecs.getincrementaldecoder('utf-8')('replace') for _ in prompts]
  if len(prompts) == 1:
    show(prompts[0])
  for pieces in stream:
    raw.append(pieces[0])
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
  done = f'{len(prompts)} texts of step {model.step}'
  if is_raw:
    size = pathlib.Path(output).write_bytes(b''.join(raw))
    return f'{done}, {size} bytes written to {output}'
  return done + _written(output, ({'prompt': p, 'text': t} for p, t in zip(prompts, whole)))


def describe(
  model: LoadedRun,
  files: Sequence[str],
  *,
  length: int,
  output: str | os.PathLike | None = None,
  seed: int = 0,
  autoencoder: str | os.PathLike | None = None,
  show: Callable[[str], Any],
  **sampling: Any,
) -> str:
  """Says what pictures show; returns what was done.

  Args:
    model: a run of a model of text and images.
    files: pictures, which are cropped and resized to the autoencoder's size.
    length: tokens of a text at most.
    output: JSON lines with `image` and `text`; None for none.
    seed: of what is drawn.
    autoencoder: its run; None is that of the latents the model was trained on.
    show: takes a line for each picture.
    **sampling: of `SamplingConfig`.

  Raises:
    ConfigError: another kind of model, or a file that is no picture.
  """
  if not isinstance(model, LoadedMixed):
    raise ConfigError(
      f'{model.directory} is a run of {model.config["task"]}, which describes no pictures; leave '
      '--image out'
    )
  _check_output(output)
  images = pictures.image_files(model.autoencoder(autoencoder), files)
  found = model.describe(images, length, seed=seed, autoencoder=autoencoder, **sampling)
  for file, text in zip(files, found):
    show(f'{file}: {text}')
  return f'{len(files)} pictures described by step {model.step}' + _written(
    output, ({'image': f, 'text': t} for f, t in zip(files, found))
  )


def compose(
  model: LoadedRun,
  prompts: Sequence[str],
  folder: str | os.PathLike,
  *,
  files: Sequence[str] | None = None,
  length: int,
  show: Callable[[str], Any],
  **settings: Any,
) -> str:
  """Goes on with text and images behind each prompt; returns what was done.

  Args:
    model: a run of a Transfusion.
    prompts: texts.
    folder: its images go there, as PROMPT-NUMBER.png.
    files: pictures that stand before the text of every prompt.
    length: new positions at most.
    show: takes a line for each prompt; where an image stands it has the name of its file.
    **settings: of `LoadedTransfusion.compose`.

  Raises:
    ConfigError: another kind of model, or a file that is no picture.
  """
  if not isinstance(model, LoadedTransfusion):
    raise ConfigError(
      f'{model.directory} is a run of {model.config["task"]}, which does not go on with text and '
      'images; leave --interleave out'
    )
  coder = model.autoencoder(settings.get('autoencoder'))
  before = list(pictures.image_files(coder, files)) if files else []
  found = model.compose([[*before, text] for text in prompts], length, **settings)
  to, num = pathlib.Path(folder), 0
  to.mkdir(parents=True, exist_ok=True)
  for i, (prompt, parts) in enumerate(zip(prompts, found)):
    line = prompt
    for j, part in enumerate(parts):
      if not isinstance(part, str):
        num, file = num + 1, to / f'{i}-{j}.png'
        Image.fromarray(part[..., 0] if part.shape[-1] == 1 else part).save(file)
        part = f'[{file}]'
      line += part
    show(line)
  return f'{len(prompts)} prompts, {num} images in {folder}, of step {model.step}'


def _check_output(output: str | os.PathLike | None) -> None:
  if output is not None and str(output).lower().endswith(corpus.IMAGES):
    raise ConfigError(f'--output is {str(output)!r}, but texts are written as JSON lines (.jsonl)')


def _written(output: str | os.PathLike | None, rows: Iterable[dict[str, str]]) -> str:
  if output is None:
    return ''
  lines = (json.dumps(row) + '\n' for row in rows)
  pathlib.Path(output).write_text(''.join(lines), encoding='utf-8')
  return f', written to {output}'
