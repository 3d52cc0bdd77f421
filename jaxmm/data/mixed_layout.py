"""A row of text and pictures, position by position.

Axes: L positions of a row.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data import text_files

if TYPE_CHECKING:
  from jaxmm.data.mixed import MixedConfig


@dataclasses.dataclass(frozen=True)
class Unit:
  """What stays together in a row.

  Attributes:
    ids: of its texts, one after the other; or of a piece of text, its bos and eos included.
    pictures: numbers of pictures; () makes it text.
    places: how many of the ids stand before each picture; None where an example draws whether it is
      all of them or none.
  """

  ids: np.ndarray
  pictures: tuple[int, ...]
  places: tuple[int, ...] | None = None

  def placed(self, is_image_first: bool) -> Unit:
    """With `places`: its own, or those of a pair with its pictures before or after the text."""
    if self.places is not None:
      return self
    place = 0 if is_image_first else len(self.ids)
    return dataclasses.replace(self, places=(place,) * len(self.pictures))

  def cut(self, num_ids: int) -> Unit:
    """With its first ids alone; pictures stand where they stood, or at the end of the text."""
    places = self.places and tuple(min(place, num_ids) for place in self.places)
    return dataclasses.replace(self, ids=self.ids[:num_ids], places=places)

  def is_image_first(self) -> list[bool]:
    """Of each picture, whether the text of its unit comes after it and none before it."""
    return [place == 0 and len(self.ids) > 0 for place in self.places]


@dataclasses.dataclass(frozen=True)
class Layout:
  """The numbers that say how a unit is laid out.

  Attributes:
    length: positions of a row.
    patches: of a picture.
    boi_id, eoi_id: around a picture.
    before, after: the bos and the eos of a pair, each an id or nothing.
    pad_id: fills rows.
  """

  length: int
  patches: int
  boi_id: int
  eoi_id: int
  before: tuple[int, ...]
  after: tuple[int, ...]
  pad_id: int

  @classmethod
  def of(cls, mixed: MixedConfig, text: text_files.TextConfig) -> Layout:
    before, after = (() if i is None else (i,) for i in (text.bos_id, text.eos_id))
    special = [mixed.boi_id, mixed.eoi_id, *before, *after]
    lowest = 256 if text.tokenizer == 'bytes' else 0
    if len(set(special)) < len(special) or min(special) < lowest:
      raise ConfigError(
        f'the ids of BOI, EOI, bos and eos are {special} (data.mixed.boi_id, eoi_id, '
        f'data.text.bos_id, eos_id); they must differ and be no ids of text (from {lowest} on)'
      )
    return cls(mixed.length, mixed.patches, mixed.boi_id, mixed.eoi_id, before, after, text.pad_id)

  def room_for_text(self, num_pictures: int) -> int:
    """Positions that are left for a caption; negative if the pictures alone are too many."""
    fixed = num_pictures * (self.patches + 2) + len(self.before) + len(self.after)
    return self.length - fixed

  def unit_length(self, num_ids: int, num_pictures: int) -> int:
    """Positions of a unit, in either order."""
    return num_ids + (self.length - self.room_for_text(num_pictures) if num_pictures else 0)

  def row(self, units: Sequence[Unit]) -> dict[str, np.ndarray]:
    """`ids_L`, `image_L`, `patch_L`, `segment_L` and `weight_L` of a row of units with places."""
    row = {name: np.zeros(self.length, np.int32) for name in ('image_L', 'patch_L', 'segment_L')}
    row['ids_L'] = np.full(self.length, self.pad_id, np.int32)
    row['weight_L'] = np.zeros(self.length, np.float32)
    at = image = 0
    for segment, unit in enumerate(units, 1):
      start, cuts = at, (0, *unit.places, len(unit.ids))
      texts = [unit.ids[a:b] for a, b in zip(cuts, cuts[1:])]
      if unit.pictures:
        texts = [self.before, *texts, self.after]
      for part, text in enumerate(texts):
        # Before the second text of the unit stands its first picture, and so on.
        if 1 < part < len(texts) - 1:
          image += 1
          at = self._put_image(row, at, image)
        row['ids_L'][at : at + len(text)] = text
        row['weight_L'][at : at + len(text)] = 1
        at += len(text)
      row['segment_L'][start:at] = segment
      row['weight_L'][start] = 0  # nothing in its segment predicts it
    return row

  def _put_image(self, row: dict[str, np.ndarray], at: int, image: int) -> int:
    end = at + 1 + self.patches
    row['ids_L'][at], row['ids_L'][at + 1 : end], row['ids_L'][end] = self.boi_id, 0, self.eoi_id
    row['image_L'][at + 1 : end] = image
    row['patch_L'][at + 1 : end] = np.arange(self.patches)
    row['weight_L'][at] = 1
    return end + 1
