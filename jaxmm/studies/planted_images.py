"""Pictures with planted near-copies: what a method that finds duplicates must find.

A zip of PNG files `train/CLASS/NUMBER.png`, NUMBER being the record's number in the data it is
taken from; a copy of it is called `NUMBER-copy-N-KIND.png` and lies beside it.

Axes: Y X rows and columns, C channels, V classes.
"""

from __future__ import annotations

import dataclasses
import io
import itertools
import os
import pathlib
import re
import zipfile
from typing import Any

import numpy as np
from PIL import Image

from jaxmm.config import ConfigError
from jaxmm.data.sources import Source
from jaxmm.data.transforms import decode_image

KINDS = ('jpeg', 'brightness', 'noise', 'shift', 'crop', 'flip')
_ID = re.compile(r'train/(?P<label>\d+)/(?P<number>\d+)(-copy-\d+-(?P<kind>[a-z]+))?\.png')


@dataclasses.dataclass(frozen=True)
class PlantedConfig:
  """Which pictures are taken and how many are copied.

  Attributes:
    largest_class: pictures of the first class.
    imbalance: first class over last; those between fall geometrically. 1 takes as many of each.
    copied: pictures that have copies, drawn from all.
    copies: of each of them.
    kinds: of copies, in turn (see `near_copy`).
    seed: of all that is drawn.
  """

  largest_class: int
  imbalance: float = 1.0
  copied: int = 0
  copies: int = 1
  kinds: tuple[str, ...] = KINDS
  seed: int = 0

  def __post_init__(self):
    for name, low in {'largest_class': 1, 'imbalance': 1, 'copied': 0, 'copies': 1}.items():
      if getattr(self, name) < low:
        raise ConfigError(f'{name} is {getattr(self, name)}, expected at least {low}')
    if not self.kinds or set(self.kinds) - set(KINDS):
      raise ConfigError(f'kinds is {self.kinds}, expected some of {", ".join(KINDS)}')

  def class_sizes(self, num_classes: int) -> list[int]:
    """Pictures of each class, at least 1."""
    falls = self.imbalance ** (-np.arange(num_classes) / max(num_classes - 1, 1))
    return [max(1, int(n)) for n in np.round(self.largest_class * falls)]


@dataclasses.dataclass(frozen=True)
class Origin:
  """What an id of such a zip says: class, record of the original, and '' or the kind of copy."""

  label: int
  number: int
  kind: str


def origin(example_id: str) -> Origin:
  """What an id says.

  Raises:
    ConfigError: it is not of such a zip.
  """
  found = _ID.fullmatch(example_id)
  if found is None:
    raise ConfigError(f'{example_id!r} is no picture that `planted_images.write` wrote')
  return Origin(int(found['label']), int(found['number']), found['kind'] or '')


def write(source: Source, config: PlantedConfig, path: str | os.PathLike) -> dict[str, Any]:
  """Writes the zip; it appears whole or not at all.

  Args:
    source: pictures with labels 0, 1, ...; all three channels.
    config: what is taken.
    path: of the zip.

  Returns:
    `{'originals': number, 'copies': number, 'class_sizes': of the originals}`.

  Raises:
    ConfigError: a class has fewer pictures than are to be taken, or more are to be copied than
      there are.
  """
  rng = np.random.default_rng(config.seed)
  taken = _taken(source, config, rng)
  number_of_each = [len(numbers) for numbers in taken]
  if config.copied > sum(number_of_each):
    raise ConfigError(
      f'copied is {config.copied}, but only {sum(number_of_each)} pictures are taken'
    )
  flat = [(label, number) for label, numbers in enumerate(taken) for number in numbers]
  chosen = set(rng.choice(len(flat), config.copied, replace=False).tolist())
  path = pathlib.Path(path)
  partial = path.with_name(f'{path.name}.partial')
  path.parent.mkdir(parents=True, exist_ok=True)
  kinds = itertools.cycle(config.kinds)
  with zipfile.ZipFile(partial, 'w') as archive:
    for place, (label, number) in enumerate(flat):
      image_YXC = decode_image(source[number]['image'], 3, True, source.name(number))
      at = f'train/{label:03}/{number:06}'
      _add(archive, f'{at}.png', image_YXC)
      for n in range(config.copies if place in chosen else 0):
        kind = next(kinds)
        _add(archive, f'{at}-copy-{n:02}-{kind}.png', near_copy(image_YXC, kind, rng))
  os.replace(partial, path)
  copies = config.copied * config.copies
  return {'originals': len(flat), 'copies': copies, 'class_sizes': number_of_each}


def _taken(source: Source, config: PlantedConfig, rng: np.random.Generator) -> list[list[int]]:
  """Numbers of the records that are taken, of each class."""
  if source.num_classes is None:
    raise ConfigError(f'{source.name(0)}: the number of classes of these data is not known')
  label_N = np.array([source[i]['label'] for i in range(len(source))])
  out = []
  for label, size in enumerate(config.class_sizes(source.num_classes)):
    there = np.flatnonzero(label_N == label)
    if len(there) < size:
      raise ConfigError(
        f'{size} pictures of class {label} are to be taken, but there are {len(there)}; lower '
        'largest_class'
      )
    out.append(sorted(rng.permutation(there)[:size].tolist()))
  return out


def _add(archive: zipfile.ZipFile, name: str, image_YXC: np.ndarray) -> None:
  # Stored with a fixed date: the same pictures are the same zip.
  archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), _encoded(image_YXC, 'png'))


def _encoded(image_YXC: np.ndarray, form: str, **options: Any) -> bytes:
  out = io.BytesIO()
  Image.fromarray(image_YXC).save(out, form, **options)
  return out.getvalue()


def near_copy(image_YXC: np.ndarray, kind: str, rng: np.random.Generator) -> np.ndarray:
  """A picture as it comes back from elsewhere, uint8 [Y, X, C].

  Args:
    image_YXC: uint8, three channels.
    kind: 'jpeg' (encoded again, quality 40 to 80), 'brightness' (times 0.7 to 1.3), 'noise'
      (Gaussian, 4 to 10 of 255), 'shift' (by 1 to 3 pixels of 32 in both directions, edges
      repeated), 'crop' (the middle, 80 to 92 % a side, enlarged again) or 'flip' (mirrored).
    rng: of the strength.
  """
  side = image_YXC.shape[0]
  if kind == 'jpeg':
    return decode_image(_encoded(image_YXC, 'jpeg', quality=int(rng.integers(40, 81))), 3, True, '')
  if kind == 'brightness':
    return _pixels(image_YXC * rng.uniform(0.7, 1.3))
  if kind == 'noise':
    return _pixels(image_YXC + rng.normal(0, rng.uniform(4, 10), image_YXC.shape))
  if kind == 'shift':
    most = max(1, round(side * 3 / 32))
    down, right = rng.integers(1, most + 1, 2) * rng.choice([-1, 1], 2)
    padded = np.pad(image_YXC, ((most, most), (most, most), (0, 0)), 'edge')
    rows, columns = image_YXC.shape[:2]
    return padded[most + down : most + down + rows, most + right : most + right + columns]
  if kind == 'crop':
    margin = max(1, round(side * rng.uniform(0.04, 0.1)))
    inner = Image.fromarray(image_YXC[margin:-margin, margin:-margin])
    return np.asarray(inner.resize(image_YXC.shape[1::-1], Image.Resampling.BICUBIC))
  if kind == 'flip':
    return np.ascontiguousarray(image_YXC[:, ::-1])
  raise ConfigError(f'kind is {kind!r}, expected one of {", ".join(KINDS)}')


def _pixels(values_YXC: np.ndarray) -> np.ndarray:
  return np.clip(np.round(values_YXC), 0, 255).astype(np.uint8)
