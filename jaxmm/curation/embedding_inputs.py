"""What an encoder reads of an example, how rows of different lengths become batches, and which
examples have nothing to read.

Axes: B batch, L tokens, Y X rows and columns, C channels.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import pyarrow as pa

from jaxmm.config import ConfigError
from jaxmm.curation import runners, unique_ids
from jaxmm.curation.keep_list import EMPTY, UNREADABLE
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig, Example, Shard
from jaxmm.data.sources import UnreadableRecord
from jaxmm.data.transforms import cropped, decode_image


class Inputs(Protocol):
  """How an encoder sees examples."""

  def rows(self, examples: Sequence[Example]) -> list[Any]:
    """Of every example what the encoder reads, or None if that cannot be made."""
    ...

  def error(self, example: Example) -> str:
    """Why `rows` has None for an example that cannot be read; '' if it can."""
    ...

  def length(self, row: Any) -> int:
    """By what rows are sorted, so that a batch holds rows of about one length."""
    ...

  def batch(self, rows: Sequence[Any], length: int) -> dict[str, np.ndarray]:
    """Arrays of fixed shape for a batch whose longest row has `length`; None gives padding."""
    ...


def reason(example: Example, kind: str) -> tuple[str, str]:
  """Why an example has nothing of this kind ('text', 'image' or 'any') to embed: ('', '') or
  (reason, error)."""
  if example.error:
    return UNREADABLE, example.error
  content = example.image if kind == 'image' else example.text
  if kind == 'any' and content is None:
    content = example.image
  if content is None:
    return UNREADABLE, f'it has no {"text or image" if kind == "any" else kind}'
  return (EMPTY, '') if not content.strip() else ('', '')


def listed(
  inputs: CorpusConfig,
  kind: str,
  workdir: str | os.PathLike,
  runner: runners.Runner = runners.LOCAL,
  echo: runners.Echo | None = print,
) -> list[pa.Table]:
  """The examples of every file of a corpus: columns id, digest, reason and error.

  Args:
    inputs: the corpus.
    kind: 'text', 'image' or 'any': of which an example must have something.
    workdir, runner, echo: see `runners.map_shards`.

  Raises:
    ConfigError: there is no example, or none that can be read.
  """
  files = corpus.shards(inputs)
  settings = {'corpus': dataclasses.asdict(inputs), 'kind': kind}
  tables = runners.map_shards(
    listed_file, files, workdir, name='listed', settings=settings,
    each=unique_ids.AcrossFiles(files, inputs), runner=runner, echo=echo,
  )  # fmt: skip
  runners.check_some(tables, files, inputs)
  return tables


def listed_file(shard: Shard, settings: Mapping[str, Any], _) -> pa.Table:
  """`listed` of one file."""
  columns = {'id': [], 'digest': [], 'reason': [], 'error': []}
  for example in unique_ids.checked(shard, corpus.of_json(settings['corpus'])):
    why, error = reason(example, settings['kind'])
    values = (example.id, kept.digest(example.id, example.content), why, error)
    for name, value in zip(columns, values):
      columns[name].append(value)
  types = {'digest': pa.uint64()}
  return pa.table({n: pa.array(v, types.get(n, pa.string())) for n, v in columns.items()})


@dataclasses.dataclass(frozen=True)
class TextInputs:
  """`ids_BL` int32 and `valid_BL` bool, of the lengths `lengths` alone.

  Attributes:
    tokenize: texts -> ids of each, cut off already, at least one each.
    lengths: ascending; a batch has the least that its longest text fits. Each is compiled once.
    pad_id: of what follows a text; nobody sees it.
  """

  tokenize: Callable[[Sequence[str]], Sequence[np.ndarray]]
  lengths: tuple[int, ...]
  pad_id: int = 0

  kind = 'text'

  def __post_init__(self):
    if not self.lengths or list(self.lengths) != sorted(set(self.lengths)) or self.lengths[0] < 1:
      raise ConfigError(
        f'lengths is {self.lengths}, expected different ones, ascending, at least 1'
      )

  def rows(self, examples: Sequence[Example]) -> list[np.ndarray | None]:
    """Ids of every text; None where there is none."""
    has_text = [not reason(example, 'text')[0] for example in examples]
    ids = iter(self.tokenize([e.text for e, has in zip(examples, has_text) if has]))
    return [next(ids) if has else None for has in has_text]

  def error(self, example: Example) -> str:
    return reason(example, 'text')[1]

  def length(self, row: np.ndarray | None) -> int:
    return 0 if row is None else len(row)

  def batch(self, rows: Sequence[np.ndarray | None], length: int) -> dict[str, np.ndarray]:
    fitting = [n for n in self.lengths if n >= length]
    if not fitting:
      raise ConfigError(f'a text has {length} tokens, but lengths end with {self.lengths[-1]}')
    ids_BL = np.full((len(rows), fitting[0]), self.pad_id, np.int32)
    valid_BL = np.zeros(ids_BL.shape, bool)
    for i, row in enumerate(rows):
      if row is not None:
        ids_BL[i, : len(row)], valid_BL[i, : len(row)] = row, True
    return {'ids_BL': ids_BL, 'valid_BL': valid_BL}


def text_lengths(longest: int) -> tuple[int, ...]:
  """Lengths to pad to, up to `longest`: by 16 up to 256, then by about a quarter."""
  out, n = [], 16
  while n < longest:
    out.append(n)
    n += 16 if n < 256 else n // 4 // 32 * 32
  return (*out, longest)


@dataclasses.dataclass(frozen=True)
class ImageInputs:
  """`image_BYXC` uint8: shorter side to `size` (bicubic), the centre of it; `channels` 1 or 3."""

  size: int
  channels: int = 3

  kind = 'image'

  def rows(self, examples: Sequence[Example]) -> list[np.ndarray | None]:
    """Pixels of every picture; None where it is damaged or there is none."""
    return [self._pixels(example) for example in examples]

  def _pixels(self, example: Example) -> np.ndarray | None:
    if reason(example, 'image')[0]:
      return None
    try:
      image_YXC = self._decoded(example)
    except UnreadableRecord:
      return None  # `error` says why
    return cropped(image_YXC, self.size, 'resize', None)

  def error(self, example: Example) -> str:
    why, error = reason(example, 'image')
    if why:
      return error
    try:
      self._decoded(example)
    except UnreadableRecord as damage:
      return str(damage)
    return ''

  def _decoded(self, example: Example) -> np.ndarray:
    return decode_image(example.image, self.channels, True, example.id)

  def length(self, row: np.ndarray | None) -> int:
    return 0

  def batch(self, rows: Sequence[np.ndarray | None], length: int) -> dict[str, np.ndarray]:
    image_BYXC = np.zeros((len(rows), self.size, self.size, self.channels), np.uint8)
    for i, row in enumerate(rows):
      if row is not None:
        image_BYXC[i] = row
    return {'image_BYXC': image_BYXC}
