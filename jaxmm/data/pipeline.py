"""The one chain from records to batches: global and random-access up to the batch.

    kept records -> range(num_records) -> shuffle -> repeat -> this process's rows of step s
                 -> read -> batch

The example with global index i (row i % batch of step i // batch) is the same record with the same
randomness whatever the number of processes, because shuffling and repeating know of neither; each
process then takes a contiguous block of every global batch. So the data position is one integer,
the global step, and a run resumes on any number of processes.

Axes: B batch (this process's rows), Y X rows and columns, C channels, V views, L tokens.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data import byte_files, image_files, kept, sources, text_files
from jaxmm.data.bad_records import BadRecords, TooManyBadRecords
from jaxmm.data.image_files import FileSource
from jaxmm.data.mixed import MixedConfig, MixedSource, mixed_source
from jaxmm.data.mixed_reader import MixedReader
from jaxmm.data.packing import PackedSource
from jaxmm.data.readers import ByteImageReader, ImageReader, PackedReader, Reader, TokenReader
from jaxmm.data.sources import Source, Subset, UnreadableRecord
from jaxmm.data.transforms import CROPS

__all__ = ['BadRecords', 'Batches', 'DataConfig', 'TooManyBadRecords', 'make_batches']

Batch = dict[str, np.ndarray]
# The stream has no end; a slice of a chain wants one.
_NUM_STEPS = 2**40


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """What is read and how; the keys of `data` and `eval_data` in a run's config.

  Attributes:
    name: 'mnist5k' (comes with the extra `demo`), 'images' (a folder or zip of pictures),
      'array_record', 'tokens' (codes that `jaxmm tokenize` wrote), 'text', 'bytes' (files of any
      kind), 'mixed' (captioned pictures and text), 'arrays' (handed in as `source`), or a TFDS
      name such as 'cifar10'.
    path: where it is; for TFDS the data directory ('' for its default).
    split: 'train', 'test' or 'all'.
    test_fraction: share of 'test' where the data has no split of its own.
    keep_list: train on the records that this keep-list keeps (Parquet, of `jaxmm curate`); '' for
      all. It belongs to `data` alone: held-out data is never pruned.
    id_field: of an ArrayRecord, text or caption record that holds the id that the list knows it by;
      '' for file and row. Asked for only with a keep-list.
    check_digests: refuse a keep-list of records that have changed since, where it has a column
      `digest`: texts before training, pictures (files, zips, ArrayRecord, TFDS) as each is read.
      Arrays in memory, files as bytes and caption records are known by their ids alone.
    max_records: use only so many records (of the kept ones), evenly spaced; None for all.
    labels: csv with the classes of pictures; '' takes them from the folders, 'none' has none.
    num_classes: class ids must lie below; None does not check.
    image_size: pixels a side.
    channels: 1 or 3.
    convert_channels: convert pictures with another number of channels, rather than stop.
    crop: 'none', 'pad', 'resize', 'center', 'random' or 'ten' (see `transforms`).
    ten_crop_ratios: for 'ten'; a row has 10 views for each (`image_BVYXC`).
    flip: mirror half of the training examples.
    cache: keep decoded pictures in memory, for data that fits.
    cache_gib: what the cache may hold before it is an error.
    max_bad_fraction: share of records that may be unreadable before it is an error.
    threads: that read batches ahead; 0 reads when asked.
    prefetch: batches read ahead.
    eval_view: which of several token views is used without training (0 is the centre crop).
    text: how text becomes rows of ids.
    bytes: how files become rows of bytes; its `image_order` makes rows of bytes of pictures, too.
    mixed: how captioned pictures and text become rows of both.
  """

  name: str = 'mnist5k'
  path: str = ''
  split: str = 'train'
  test_fraction: float = 0.1
  keep_list: str = ''
  id_field: str = ''
  check_digests: bool = True
  max_records: int | None = None
  labels: str = ''
  num_classes: int | None = None
  image_size: int = 28
  channels: int = 3
  convert_channels: bool = False
  crop: str = 'center'
  ten_crop_ratios: tuple[float, ...] = (1.1, 1.05)
  flip: bool = False
  cache: bool = False
  cache_gib: float = 4.0
  max_bad_fraction: float = 0.01
  threads: int = 2
  prefetch: int = 4
  eval_view: int = 0
  text: text_files.TextConfig = text_files.TextConfig()
  bytes: byte_files.BytesConfig = byte_files.BytesConfig()
  mixed: MixedConfig = MixedConfig()

  def __post_init__(self):
    def require(ok: bool, field: str, expected: str) -> None:
      if not ok:
        raise ConfigError(f'data.{field} is {getattr(self, field)!r}, expected {expected}')

    require(self.image_size >= 1, 'image_size', 'at least 1 pixel')
    require(self.channels in (1, 3), 'channels', '1 or 3')
    require(self.crop in CROPS, 'crop', f'one of {", ".join(CROPS)}')
    require(0 <= self.test_fraction <= 1, 'test_fraction', 'a share in [0, 1]')
    require(0 <= self.max_bad_fraction <= 1, 'max_bad_fraction', 'a share in [0, 1]')
    require(self.max_records is None or self.max_records >= 1, 'max_records', 'at least 1, or None')
    require(self.num_classes is None or self.num_classes >= 1, 'num_classes', 'at least 1, or None')
    require(self.threads >= 0, 'threads', '0 or more')
    require(self.prefetch >= 0, 'prefetch', '0 or more')
    require(all(r >= 1 for r in self.ten_crop_ratios), 'ten_crop_ratios', 'ratios of at least 1')
    require(len(self.ten_crop_ratios) > 0, 'ten_crop_ratios', 'at least one ratio')


def open_source(config: DataConfig, encode: Callable[[str], Sequence[int]] | None = None) -> Source:
  """The source that `config` names; `encode` (text -> ids) is of a trained tokenizer.

  Raises:
    ConfigError: an unknown name (with its nearest neighbours), a path with nothing to read, a
      keep-list of other data.
  """
  if config.name == 'text' and config.path:
    files = text_files.TextFiles(
      config.path,
      config.split,
      config.test_fraction,
      config.text.field,
      config.id_field if config.keep_list else '',
      config.text.suffixes,
      config.text.exclude,
    )
    # Documents are chosen before they are packed.
    verdicts = kept.Verdicts(config.keep_list) if config.keep_list else None
    return text_files.text_source(
      files, config.text, encode, config.max_bad_fraction, verdicts, config.check_digests
    )
  if config.name == 'bytes' and config.path:
    return _packed_bytes(config)
  if config.name == 'mixed' and config.path:
    return mixed_source(config, encode)
  return _kept(config, _whole_source(config))


def _packed_bytes(config: DataConfig) -> PackedSource:
  _refuse_id_field(config)
  files = byte_files.ByteFiles(config.path, config.split, config.test_fraction, config.bytes)
  verdicts = kept.Verdicts(config.keep_list) if config.keep_list else None
  return byte_files.byte_source(files, config.bytes, config.max_bad_fraction, verdicts)


def _kept(config: DataConfig, source: Source) -> Source:
  if not config.keep_list:
    return source
  if config.name != 'array_record':
    _refuse_id_field(config)
  of = f'data {config.name!r} ({config.path or "no path"}), split {config.split!r}'
  return kept.kept_source(source, config.keep_list, of, config.check_digests)


def _refuse_id_field(config: DataConfig) -> None:
  if config.keep_list and config.id_field:
    raise ConfigError(
      f'data.id_field is {config.id_field!r}, but the records of data.name {config.name!r} have no '
      "fields ('text', 'mixed' and 'array_record' have); leave it ''"
    )


def _whole_source(config: DataConfig) -> Source:
  if config.name == 'arrays':
    raise ConfigError(
      "data.name 'arrays' is data in memory: pass it as make_batches(..., source=ArraySource(...))"
    )
  if (
    config.name in ('images', 'array_record', 'tokens', 'text', 'bytes', 'mixed')
    and not config.path
  ):
    raise ConfigError(f'data.name {config.name!r} needs data.path')
  if config.name == 'mnist5k':
    return sources.mnist5k(config.split)
  if config.name == 'images':
    return image_files.image_source(config.path, config.split, config.test_fraction, config.labels)
  if config.name == 'array_record':
    return sources.array_record_source(
      config.path, config.split, config.test_fraction, config.id_field, config.text.field
    )
  if config.name == 'tokens':
    return sources.TokenSource(config.path, config.split)
  if sources.is_tfds_name(config.name):
    from jaxmm.data.tfds_source import TfdsSource  # seconds to import, for those who use it

    return TfdsSource(config.name, config.split, config.path)
  raise sources.unknown_name(config.name)


def make_batches(
  config: DataConfig,
  *,
  batch_size: int,
  seed: int,
  process_index: int = 0,
  process_count: int = 1,
  train: bool = True,
  source: Source | None = None,
  encode: Callable[[str], Sequence[int]] | None = None,
) -> Batches:
  """The batches of a data set.

  Args:
    config: what is read.
    batch_size: rows of the global batch, over all processes.
    seed: of the order and of each example's randomness, in [0, 2^32).
    process_index: this process, which gets rows [process_index * b, (process_index + 1) * b).
    process_count: must divide `batch_size`; b is their quotient.
    train: shuffled and augmented; else in the source's order, without randomness.
    source: read this instead of what `config.name` says; `config.keep_list` needs its `id(i)`.
    encode: text -> ids of a trained tokenizer, for 'text' and 'mixed'.

  Raises:
    ConfigError: a setting that cannot be used, or nothing to read.
  """
  if batch_size < 1 or process_count < 1 or batch_size % process_count:
    raise ConfigError(
      f'batch is {batch_size}, but it must be a multiple of the {process_count} processes; '
      'each takes an equal block of every batch'
    )
  if not 0 <= process_index < process_count:
    raise ConfigError(f'process_index is {process_index} of {process_count} processes')
  if not 0 <= seed < 2**32:
    raise ConfigError(f'the data seed is {seed}, expected 0 to 2^32 - 1')
  source = open_source(config, encode) if source is None else _kept(config, source)
  if len(source) == 0:
    raise ConfigError(
      f'data {config.name!r} ({config.path or "no path"}), split {config.split!r}, has no records'
    )
  if config.max_records is not None and config.max_records < len(source):
    source = Subset(source, np.arange(config.max_records) * len(source) // config.max_records)
  _check_classes(config, source)
  reader = _reader_type(config, source)(config, source, seed, train)
  order = Order(len(source), seed, shuffle=train)
  return Batches(config, reader, order, batch_size, process_index, process_count)


def _check_classes(config: DataConfig, source: Source) -> None:
  """Folders and tables of classes say at once what else the last record would."""
  found = sources.innermost(source)
  if isinstance(found, FileSource) and config.num_classes and found.num_classes:
    last = found.num_classes - 1
    if last >= config.num_classes:
      raise ConfigError(
        f'data.path {config.path!r} has class id {last}, but data.num_classes is '
        f'{config.num_classes} (class ids 0 to {config.num_classes - 1}; the last class there is '
        f'{found.classes[last]!r}); set data.num_classes or mend the labels'
      )


def _reader_type(config: DataConfig, source: Source) -> type:
  source, order = sources.innermost(source), config.bytes.image_order
  if not isinstance(source, PackedSource | MixedSource | sources.TokenSource):
    return ByteImageReader if order else ImageReader
  if order:
    raise ConfigError(
      f'data.bytes.image_order is {order!r}, but the records of data.name {config.name!r} are no '
      "pictures; leave it '' (files of pictures are read as they are, compressed, by 'bytes'; name "
      "their source, such as 'images', to read their pixels)"
    )
  if isinstance(source, MixedSource):
    return MixedReader
  return PackedReader if isinstance(source, PackedSource) else TokenReader


class Order:
  """Which record is at each global index: each once an epoch, epochs in other orders."""

  def __init__(self, num_records: int, seed: int, shuffle: bool):
    self.num_records = num_records
    chain = grain.MapDataset.range(num_records)
    self._chain = (chain.shuffle(seed=seed) if shuffle else chain).repeat()
    self._epochs: dict[int, np.ndarray] = {}

  def __call__(self, index: int) -> int:
    # grain's shuffle walks a permutation of at least 2^16 places until it falls inside, which takes
    # milliseconds a record for a handful of records; those epochs are kept.
    if self.num_records > 4096:
      return self._chain[index]
    epoch, place = divmod(index, self.num_records)
    order = self._epochs.get(epoch)
    if order is None:
      start = epoch * self.num_records
      order = np.array([self._chain[start + i] for i in range(self.num_records)])
      # A new dict, not a changed one: other threads may be reading the old.
      self._epochs = {**{k: v for k, v in self._epochs.items() if k >= epoch - 2}, epoch: order}
    return int(order[place])


class Batches:
  """Random access to the batches of one process; made by `make_batches`.

  Every batch has `index_B` uint32, `record_B` int32 (-1 pads a tail), `valid_B` float32 (0 for a
  row that could not be read or that pads), and what the data is: `image_BYXC` uint8 (or
  `image_BVYXC`) and `label_B` int32; or `ids_BL` int32 and `label_B`; or, of packed
  text and bytes, `ids_BL`, `weight_BL` float32 and `segment_BL` int32 (of pictures as bytes
  `label_B`, too); or what `mixed_reader.MixedReader` says.

  Attributes:
    num_records: records of the source, an epoch.
    kept_fingerprint: of the records that a keep-list chose; '' without one.
    num_classes: of the config or else of the source; None where neither says.
    bad: the accounting of unreadable records.
  """

  def __init__(
    self,
    config: DataConfig,
    reader: Reader,
    order: Order,
    batch_size: int,
    process_index: int,
    process_count: int,
  ):
    self.config, self.batch_size = config, batch_size
    self._reader, self._order = reader, order
    share = batch_size // process_count
    self._first, self._share = process_index * share, share
    self.num_records = order.num_records
    self.kept_fingerprint = sources.kept_fingerprint(reader.source)
    self.num_classes = config.num_classes or reader.source.num_classes
    self.bad = BadRecords(self.num_records, config.max_bad_fraction, reader.source.name)
    self._steps = grain.MapDataset.range(_NUM_STEPS).map(self._rows).map(self._read)
    passes = grain.MapDataset.range(-(-self.num_records // batch_size))
    self._pass = passes.map(self._rows_of_pass).map(self._read)

  @property
  def source(self) -> Source:
    """What is read, without the choice of records."""
    return sources.innermost(self._reader.source)

  @property
  def fields(self) -> tuple[str, ...]:
    """What a batch has beside `index_B`, `record_B` and `valid_B`."""
    return tuple(self._reader.fields)

  def at(self, step: int) -> Batch:
    """This process's rows of global batch `step`, read now."""
    return self._steps[self._checked(step)]

  def record_ids(self, step: int) -> np.ndarray:
    """Records of the global batch `step`, int64 [batch_size]; reads nothing."""
    start = self._checked(step) * self.batch_size
    return np.array([self._order(start + i) for i in range(self.batch_size)], np.int64)

  def from_step(self, step: int) -> Iterator[Batch]:
    """Batches `step`, `step + 1`, ... without end, read ahead in threads."""
    return self._prefetched(self._steps[self._checked(step) :])

  def once(self) -> Iterator[Batch]:
    """Every record once, in the source's order; the last batch is padded with rows of weight 0."""
    return self._prefetched(self._pass)

  def describe(self, record: int) -> str:
    """The name of a record, and why it cannot be read if that was seen."""
    if not 0 <= record < self.num_records:
      return 'padding' if record == -1 else f'no record {record}; there are {self.num_records}'
    why = self.bad.reasons.get(int(record))
    name = self._reader.source.name(int(record))
    return f'{name} (unreadable: {why})' if why else name

  def _checked(self, step: int) -> int:
    if step < 0:
      raise IndexError(f'step {step} is negative; the first batch is 0')
    return int(step)

  def _prefetched(self, chain: grain.MapDataset) -> Iterator[Batch]:
    threads = self.config.threads if self.config.prefetch else 0
    options = grain.ReadOptions(threads, max(self.config.prefetch, threads) if threads else 0)
    iterator = iter(chain.to_iter_dataset(options))
    try:
      yield from iterator
    finally:
      iterator.close()

  def _rows(self, step: int) -> tuple[Sequence[int], Sequence[int]]:
    """Global indices and records of this process's rows."""
    start = step * self.batch_size + self._first
    index = range(start, start + self._share)
    return index, [self._order(i) for i in index]

  def _rows_of_pass(self, step: int) -> tuple[Sequence[int], Sequence[int]]:
    start = step * self.batch_size + self._first
    index = range(start, start + self._share)
    return index, [i if i < self.num_records else -1 for i in index]

  def _read(self, rows: tuple[Sequence[int], Sequence[int]]) -> Batch:
    index, records = rows
    size = len(index)
    out = {
      name: np.zeros((size, *shape), dtype) for name, (shape, dtype) in self._reader.fields.items()
    }
    out['index_B'] = (np.arange(index[0], index[0] + size) % 2**32).astype(np.uint32)
    out['record_B'] = np.array(records, np.int32)
    out['valid_B'] = np.zeros(size, np.float32)
    for row, (i, record) in enumerate(zip(index, records, strict=True)):
      if record < 0:
        continue
      try:
        values = self._reader.read(record, i)
      except UnreadableRecord as e:
        self.bad.add(record, str(e))
        continue
      self.bad.read(record)
      out['valid_B'][row] = 1
      for name, value in values.items():
        out[name][row] = value
    return out
