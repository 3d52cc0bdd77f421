"""Rows of text and pictures together, for a model that predicts the one and denoises the other.

    [bos] caption BOI patch .. patch EOI [eos]        a pair, caption first
    [bos] BOI patch .. patch EOI caption [eos]        a pair, picture first
    [bos] BOI .. EOI text BOI .. EOI [eos]            parts in the order that their record says
    [bos] text [eos]                                  a document, or a piece of one

Every picture has as many positions, with BOI and EOI around it (Transfusion, arXiv:2408.11039,
section on data). A pair may have several pictures and a row several units, each a segment of its
own. The plan, which units stand in which row, is made once over all data; which of the two orders a
pair has is the example's own draw, and both are equally long.

Axes: L positions of a row, U units (pairs, parts in order, pieces of text).
"""

from __future__ import annotations

import collections
import dataclasses
import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data import image_files, text_files
from jaxmm.data.bad_records import BadRecords
from jaxmm.data.captions import CaptionFile, Entry
from jaxmm.data.image_files import FileSource
from jaxmm.data.kept import Verdicts
from jaxmm.data.mixed_layout import Layout, Unit
from jaxmm.data.packing import Documents

if TYPE_CHECKING:
  from jaxmm.data.pipeline import DataConfig

Encode = Callable[[str], Sequence[int]]
# Rows that a unit may still be put into; more fill rows hardly better.
_OPEN_ROWS = 64


@dataclasses.dataclass(frozen=True)
class MixedConfig:
  """How captioned pictures and texts become rows; `data.path` holds the pictures.

  How text becomes ids, and the ids `bos_id`, `eos_id` and `pad_id`, are those of `data.text`.

  Attributes:
    captions: file of records that name pictures and their captions (see `data.captions`).
    image_field: of a record that names its pictures (a string or a list of them).
    caption_field: of a record that holds its caption; a list of captions is as many pairs.
    parts_field: of a record that says its texts and pictures in their order.
    split_field: of a record that says its split; '' splits by a hash of the picture's name.
    max_captions: of a record that are used, the first ones; None for all.
    text_path: a file or folder of plain text, too, read as `data.text` says; '' for none.
    text_share: of all positions with text documents in (0, 1); what there is too much of, pairs or
      texts, is left out of the plan. None takes everything. The paper mixes 1:1, which is 0.5.
    length: positions of a row.
    patches: positions of a picture, without BOI and EOI.
    latents: array store with a field `latents` ([Y, X, C], or several views [V, Y, X, C]) of every
      picture of `data.path`, in the order of their names; '' gives pixels.
    codes: instead of latents, array store with a field `codes` ([P] or [V, P]) of every picture, in
      that order: codes then stand in the row as ids and are targets like text.
    first_code: the id of code 0, behind all other ids.
    boi_id: begins a picture.
    eoi_id: ends a picture.
    caption_first: the probability that the caption of a pair comes first.
    max_images: of a row; None for as many as the rows of the plan need.
  """

  captions: str = ''
  image_field: str = 'image'
  caption_field: str = 'caption'
  parts_field: str = 'parts'
  split_field: str = ''
  max_captions: int | None = None
  text_path: str = ''
  text_share: float | None = None
  length: int = 512
  patches: int = 64
  latents: str = ''
  codes: str = ''
  first_code: int = 258
  boi_id: int = 256
  eoi_id: int = 257
  caption_first: float = 0.8
  max_images: int | None = None

  def __post_init__(self):
    def require(ok: bool, field: str, expected: str) -> None:
      if not ok:
        raise ConfigError(f'data.mixed.{field} is {getattr(self, field)!r}, expected {expected}')

    room = self.patches + 2
    require(self.patches >= 1, 'patches', 'at least 1 position')
    require(self.length >= room, 'length', f'at least {room}, the room of a picture (patches + 2)')
    require(0 <= self.caption_first <= 1, 'caption_first', 'a probability')
    require(self.boi_id >= 0, 'boi_id', 'an id')
    require(self.eoi_id >= 0 and self.eoi_id != self.boi_id, 'eoi_id', 'an id other than boi_id')
    for field in ('max_captions', 'max_images'):
      value = getattr(self, field)
      require(value is None or value >= 1, field, 'at least 1, or None')
    require(not (self.codes and self.latents), 'codes', "'' where there are data.mixed.latents")
    special = max(self.boi_id, self.eoi_id)
    require(
      not self.codes or self.first_code > special, 'first_code', f'an id above {special} (eoi_id)'
    )
    share = self.text_share
    require(share is None or 0 < share < 1, 'text_share', 'a share in (0, 1), or None')
    require(
      share is None or bool(self.text_path), 'text_share', 'None without data.mixed.text_path'
    )


class MixedSource:
  """Rows of units as a source; a record is `{'units': [Unit, ...]}`.

  Attributes:
    layout: of the rows.
    pictures: the source of the pictures that units number.
    max_images: pictures of a row at most.
    num_cut_captions: captions that were too long for a row with their pictures.
    kept_fingerprint: of the records that a keep-list chose; '' without one.
  """

  num_classes = None

  def __init__(
    self,
    units: Units,
    layout: Layout,
    pictures: FileSource,
    max_images: int | None,
    kept_fingerprint: str = '',
  ):
    self.layout, self.pictures, self.kept_fingerprint = layout, pictures, kept_fingerprint
    self.num_cut_captions = units.num_cut
    self._units = units
    lengths_U, images_U = units.lengths(layout)
    self._rows = packed_rows(lengths_U, images_U, layout.length, max_images)
    most = max((sum(int(images_U[u]) for u in row) for row in self._rows), default=0)
    self.max_images = max_images or max(most, 1)

  def __len__(self) -> int:
    return len(self._rows)

  def __getitem__(self, r: int) -> dict[str, list[Unit]]:
    return {'units': [self._units[u] for u in self._rows[r]]}

  def name(self, r: int) -> str:
    first, last = (self._units.names[self._rows[r][i]] for i in (0, -1))
    return f'mixed row {r} ({first if first == last else f"{first} to {last}"})'


def packed_rows(
  lengths_U: np.ndarray, images_U: np.ndarray, length: int, max_images: int | None
) -> list[list[int]]:
  """Units of each row: each in the first of the rows last begun that has room for it.

  Args:
    lengths_U: positions of the units, at most `length`.
    images_U: their pictures.
    length: positions of a row.
    max_images: of a row; None for any number.
  """
  rows: list[list[int]] = []
  most = max_images or length
  open_rows: collections.deque[list[int]] = collections.deque(maxlen=_OPEN_ROWS)
  for u, (num, images) in enumerate(zip(lengths_U.tolist(), images_U.tolist(), strict=True)):
    for free in open_rows:
      if free[1] >= num and free[2] >= images:
        break
    else:
      free = [len(rows), length, most]
      open_rows.append(free)
      rows.append([])
    rows[free[0]].append(u)
    free[1] -= num
    free[2] -= images
  return rows


class Units:
  """Units in the order in which they are packed, which is that of a hash of their names.

  Neighbours in a file (captions of one picture, pieces of one text) so come into different rows.
  """

  def __init__(self):
    self.names: list[str] = []
    self.num_cut = 0
    self._ids: list[np.ndarray] | Documents = []
    self._pictures: list[tuple[int, ...]] = []
    self._places: list[tuple[int, ...] | None] = []

  def __len__(self) -> int:
    return len(self.names)

  def __getitem__(self, u: int) -> Unit:
    return Unit(self._ids[u], self._pictures[u], self._places[u])

  def add(self, name: str, unit: Unit) -> None:
    self.names.append(name)
    self._ids.append(np.asarray(unit.ids, np.int32))
    self._pictures.append(unit.pictures)
    self._places.append(unit.places)

  def lengths(self, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Positions and pictures of the units."""
    images_U = np.array([len(p) for p in self._pictures], np.int64)
    sizes = [layout.unit_length(len(self._ids[u]), n) for u, n in enumerate(images_U.tolist())]
    return np.array(sizes, np.int64), images_U

  def ordered(self, layout: Layout, text_share: float | None) -> Units:
    """In the order of packing, and without what there is too much of."""
    order = sorted(range(len(self)), key=lambda u: (_digest(self.names[u]), u))
    if text_share is not None:
      order = self._shared(order, layout, text_share)
    out = Units()
    out.num_cut = self.num_cut
    out.names = [self.names[u] for u in order]
    out._pictures = [self._pictures[u] for u in order]
    out._places = [self._places[u] for u in order]
    out._ids = Documents.of([self._ids[u] for u in order])  # one array, not a million small ones
    return out

  def _shared(self, order: list[int], layout: Layout, text_share: float) -> list[int]:
    lengths_U, images_U = self.lengths(layout)
    is_text_U = images_U == 0
    text, pairs = (int(lengths_U[mask].sum()) for mask in (is_text_U, ~is_text_U))
    ratio = text_share / (1 - text_share)
    wanted = {True: pairs * ratio, False: text / ratio}
    taken, out = {True: 0, False: 0}, []
    for u in order:
      kind = bool(is_text_U[u])
      taken[kind] += int(lengths_U[u])
      if taken[kind] <= wanted[kind]:
        out.append(u)
    _log().info(
      'data.mixed.text_share=%g: %d of %d units are in the plan', text_share, len(out), len(order)
    )
    return out


def _digest(name: str) -> bytes:
  return hashlib.blake2b(name.encode('utf-8', 'surrogatepass'), digest_size=8).digest()


def mixed_source(config: DataConfig, encode: Encode | None = None) -> MixedSource:
  """The rows of `config.path` (pictures), `config.mixed` and `config.text`.

  Records without a caption, without their pictures, or with more pictures than a row can hold are
  left out of the plan, counted and named like any unreadable record. A caption that is too long is
  cut. A picture whose bytes are damaged shows when its row is read, which then is an unreadable
  record. A keep-list is of the caption records; their contents are not compared with its digests.

  Args:
    config: with `name` 'mixed'.
    encode: text -> ids; None for bytes.

  Raises:
    ConfigError: nothing there, ids that mean two things, or a keep-list of other data.
    TooManyBadRecords: more records are unreadable than `config.max_bad_fraction`.
  """
  mixed, text = config.mixed, config.text
  layout = Layout.of(mixed, text)
  if layout.room_for_text(1) < 0:
    raise ConfigError(
      f'data.mixed.length is {mixed.length}, but a picture of {mixed.patches} patches, BOI, EOI, '
      f'bos and eos take {mixed.length - layout.room_for_text(1)} positions'
    )
  if config.keep_list and mixed.text_path:
    raise ConfigError(
      'data.keep_list is of the records of data.mixed.captions, but data.mixed.text_path is '
      f'{mixed.text_path!r}, whose texts have no list; leave one of the two empty'
    )
  pictures = image_files.image_source(config.path, 'all', labels='none')
  units = Units()
  last = mixed.first_code if mixed.codes else None
  encode = _checked_ids(text_files.checked_encode(text, encode), layout, last)
  verdicts = Verdicts(config.keep_list) if config.keep_list else None
  fingerprint = _add_entries(units, config, layout, pictures, encode, verdicts)
  if mixed.text_path:
    _add_texts(units, config, layout, encode)
  if not len(units):
    raise ConfigError(f'data.mixed.captions {mixed.captions!r} holds no captioned pictures')
  units = units.ordered(layout, mixed.text_share)
  return MixedSource(units, layout, pictures, mixed.max_images, fingerprint)


def _checked_ids(encode: Encode, layout: Layout, first_code: int | None) -> Encode:
  """`encode`, with a ConfigError where a text would contain an id of the layout or of a code."""
  special = np.array([layout.boi_id, layout.eoi_id, *layout.before, *layout.after])

  def checked(text: str) -> np.ndarray:
    ids = np.asarray(encode(text), np.int32)
    if np.isin(ids, special).any():
      found = ids[np.isin(ids, special)][0]
      raise ConfigError(
        f'a text encodes to id {found}, which data.mixed or data.text gives another meaning (BOI, '
        f'EOI, bos, eos are {special.tolist()}); choose ids that the tokenizer does not give'
      )
    if first_code is not None and (ids >= first_code).any():
      raise ConfigError(
        f'a text encodes to id {ids.max()}, but from data.mixed.first_code {first_code} on ids are '
        'codes of pictures; set it behind all ids of the tokenizer'
      )
    return ids

  return checked


def _add_entries(
  units: Units,
  config: DataConfig,
  layout: Layout,
  pictures: FileSource,
  encode: Encode,
  verdicts: Verdicts | None,
) -> str:
  """Adds the entries of the split that are kept; the fingerprint of the keep-list."""
  mixed = config.mixed
  file = CaptionFile(
    mixed.captions,
    config.split,
    config.test_fraction,
    split_field=mixed.split_field,
    image_field=mixed.image_field,
    caption_field=mixed.caption_field,
    parts_field=mixed.parts_field,
    max_captions=mixed.max_captions,
    id_field=config.id_field if verdicts else '',
  )
  number_of = {pictures.id(i): i for i in range(len(pictures))}
  names: dict[int, str] = {}
  bad = BadRecords(None, config.max_bad_fraction, names.get)
  record, cut = -1, []
  for record, (name, entries, error) in enumerate(_kept_entries(file, verdicts)):
    error = error or _unusable(entries, number_of, layout, mixed.max_images, config.path)
    if error:
      names[record] = name
      bad.add(record, error)
      continue
    bad.read(record)
    for entry in entries:
      unit = _unit_of(entry, number_of, encode)
      room = layout.room_for_text(len(unit.pictures))
      if unit.pictures and len(unit.ids) > room:
        cut.append(entry.name)
        unit = unit.cut(room)
      _add_unit(units, layout, entry.name, unit)
  fingerprint = verdicts.settled(file.described) if verdicts else ''
  bad.finish(record + 1)
  units.num_cut = len(cut)
  if cut:
    _log().warning('%d captions are too long for their rows and cut, first %s', len(cut), cut[0])
  return fingerprint


def _kept_entries(
  file: CaptionFile, verdicts: Verdicts | None
) -> Iterator[tuple[str, Sequence[Entry], str]]:
  for record in file.records():
    if not record.is_chosen:
      if verdicts:
        verdicts.elsewhere([record.example.id])
    elif verdicts is None or verdicts.keeps(record.example.id):
      yield record.example.id, record.entries, record.error


def _unusable(entries, number_of, layout: Layout, max_images: int | None, path: str) -> str:
  """Why the entries of a record cannot stand in a row; '' if they can."""
  for entry in entries[:1]:
    missing = [name for name in entry.pictures if name not in number_of]
    if missing:
      return f'picture {missing[0]!r} is not in data.path {path!r}'
    num = len(entry.pictures)
    if layout.room_for_text(num) < 0:
      return f'its {num} pictures do not fit in a row of {layout.length} positions'
    if max_images is not None and num > max_images:
      return f'its {num} pictures are more than data.mixed.max_images={max_images}'
  return ''


def _unit_of(entry: Entry, number_of: Mapping[str, int], encode: Encode) -> Unit:
  texts = [np.asarray(encode(text), np.int32) for text in entry.texts]
  places = tuple(np.cumsum([len(ids) for ids in texts])[:-1].tolist()) if entry.is_ordered else None
  return Unit(np.concatenate(texts), tuple(number_of[name] for name in entry.pictures), places)


def _add_unit(units: Units, layout: Layout, name: str, unit: Unit) -> None:
  """Without pictures it is text, with an end and a beginning, and cut into rows."""
  if unit.pictures:
    units.add(name, unit)
  elif len(unit.ids):
    _add_pieces(units, layout, name, np.concatenate([layout.before, unit.ids, layout.after]))


def _add_pieces(units: Units, layout: Layout, name: str, ids: np.ndarray) -> None:
  for at in range(0, len(ids), layout.length):
    units.add(f'{name}+{at}' if at else name, Unit(ids[at : at + layout.length], ()))


def _add_texts(units: Units, config: DataConfig, layout: Layout, encode: Encode) -> None:
  text = config.text
  files = text_files.TextFiles(
    config.mixed.text_path,
    config.split,
    config.test_fraction,
    text.field,
    suffixes=text.suffixes,
    exclude=text.exclude,
    setting='data.mixed.text_path',
  )
  documents, _ = text_files.encoded_documents(files, text, encode, config.max_bad_fraction)
  for d in range(len(documents)):
    _add_pieces(units, layout, f'text {documents.names[d]}', documents[d])


def _log() -> logging.Logger:
  return logging.getLogger(__name__)
