"""A corpus to be judged: files of any supported format, as examples with ids, in a fixed order.

    *.jsonl, *.json.gz, *.jsonl.zst  a line each           NAME:line (from 1)
    *.parquet                        a row each            NAME:row
    *.tar                            WebDataset: files of one stem each   NAME:stem
    *.array_record*                  a record each         NAME:record
    pictures                         a file each           NAME
    *.zip                            a picture each, other members are passed over
                                                           its path in the archive
    tfds:DATA/SPLIT                  a record each         tfds:DATA/SPLIT[record]
    any other file                   a text each (source code, *.txt)     NAME

NAME is the path below the input that was named. With `id_field` the id is what stands there, and
NAME:line that of records that cannot be read (files of one name: by the path that differs). The
sources that training reads give their records the same ids (`record_id`), so that a keep-list of
the one applies to the other.
Paths may be URLs that `fsspec` knows (`gs://...`, `s3://...`) where it is installed, but for
ArrayRecord, whose records are local JSON (and TFDS).

What is damaged is an example, too: it has an id, an `error`, and no content. Nothing is left out,
and nothing is numbered anew. Where bytes cannot be had at all nothing is said about them: that ends
the command (see `input_files`).
"""

from __future__ import annotations

import collections
import dataclasses
import gzip
import itertools
import json
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from jaxmm.config import ConfigError, RunError
from jaxmm.data import archives, file_names, input_files
from jaxmm.data.input_files import NamedFile, is_excluded, is_hidden

IMAGES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.ppm', '.tif', '.tiff')
_JSON_LINES = ('.jsonl', '.json', '.ndjson')
_PACKED = ('.gz', '.zst')
# Of these a record may hold its id.
_OF_RECORDS = ('jsonl', 'parquet', 'webdataset', 'array_record')
# Of files that are no text either; in a folder they are what cannot be read of it.
_UNKNOWN = (
  '.csv', '.tsv', '.bz2', '.xz', '.lz4', '.7z', '.rar', '.tgz', '.avro', '.orc', '.arrow',
  '.feather', '.tfrecord', '.h5', '.hdf5', '.npy', '.npz', '.pkl', '.pt', '.xlsx', '.pdf',
)  # fmt: skip
_TFDS = 'tfds:'
_ERRORS = (OSError, EOFError, ValueError, tarfile.TarError, zipfile.BadZipFile, zlib.error)
_ONE_VALUE = '{} is one JSON value over several lines, expected a record a line (JSON lines)'
FORMATS = ('jsonl', 'parquet', 'webdataset', 'array_record', 'image', 'zip', 'text')


@dataclasses.dataclass(frozen=True)
class CorpusConfig:
  """Which files, and where in a record to look.

  Attributes:
    inputs: files, folders (all files below), glob patterns or URLs.
    format: one of FORMATS, or '' to go by each file's name.
    text_field: of a record that holds its text; '' where there is none.
    image_field: of a record that holds an encoded picture; '' where there is none.
    id_field: of a record that holds its id; '' numbers the records of a file.
    suffixes: of the files taken from a folder, such as ('.py',); () takes all.
    exclude: patterns (`*`, `?`, `[...]`) of files and folders that are passed over. One without a
      slash is compared with the name of each file and folder (site-packages, *.min.js), one with a
      slash with the path below the input (tests/data); what begins with a dot always is.
  """

  inputs: tuple[str, ...]
  format: str = ''
  text_field: str = 'text'
  image_field: str = ''
  id_field: str = ''
  suffixes: tuple[str, ...] = ()
  exclude: tuple[str, ...] = ()

  def __post_init__(self):
    if not self.inputs:
      raise ConfigError('inputs is empty; name a file, a folder or a pattern')
    if self.format and self.format not in FORMATS:
      raise ConfigError(f'format is {self.format!r}, expected one of {", ".join(FORMATS)}')


def of_json(settings: Mapping[str, Any]) -> CorpusConfig:
  """The config from `dataclasses.asdict` of it, also after a way through JSON."""
  return CorpusConfig(**{k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()})


@dataclasses.dataclass(frozen=True)
class Shard:
  """One file: what is read in one piece, by one worker."""

  path: str
  name: str
  format: str


@dataclasses.dataclass(frozen=True)
class Example:
  """One record, readable or not.

  Attributes:
    id: the user's, or file and row.
    text: None where there is none.
    image: encoded bytes, or None.
    error: why it cannot be read; '' if it can.
    record: all fields, as they stand in the file.
  """

  id: str
  text: str | None = None
  image: bytes | None = None
  error: str = ''
  record: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def content(self) -> bytes:
    """What a fingerprint is taken of."""
    text = (self.text or '').encode('utf-8', 'surrogatepass')
    return text + b'\0' + (self.image or b'')


def record_id(name: str, place: int | str) -> str:
  """The id of a record that has none of its own: its file's name, and its place there."""
  return f'{name}:{place}'


def broken_id(name: str) -> str:
  """The id of the example that a file ends in if it breaks off."""
  return record_id(name, 'broken')


def parquet_module():
  """`pyarrow.parquet`.

  Raises:
    ConfigError: pyarrow is not installed.
  """
  try:
    import pyarrow.parquet as pq
  except ImportError as error:
    raise ConfigError(
      'Parquet files, keep-lists and .zst are read with pyarrow, which is not installed: pip '
      "install 'jaxmm[curation]'"
    ) from error
  return pq


def shards(config: CorpusConfig) -> list[Shard]:
  """The corpus's files, ordered by name.

  Raises:
    ConfigError: an input that is not there, holds nothing or is of no known format, or two files of
      the same name.
  """
  found = []
  for given in config.inputs:
    if is_tfds(given):
      found.append(Shard(given, given, 'tfds'))
      continue
    files = [file for file in input_files.named_files(given) if not _why_passed_over(file, config)]
    if not files:
      but = f' but what exclude {config.exclude} passes over' if config.exclude else ''
      raise ConfigError(f'input {given!r}: no such file, or nothing there to read{but}')
    found += [_shard(file, config.format) for file in files]
  found.sort(key=lambda shard: (shard.name, shard.path))
  for one, other in itertools.pairwise(found):
    if one.name == other.name and not config.id_field:
      raise ConfigError(
        f'{one.path} and {other.path} are both called {one.name!r}, of which ids are made; name '
        'the folder above them as the one input, or an id field'
      )
  return _named_apart(found)


def _named_apart(found: list[Shard]) -> list[Shard]:
  """Files of records have different names: with an id field what cannot be read still has them."""
  of_records = [shard for shard in found if shard.format in _OF_RECORDS]
  names = iter(file_names.apart([s.name for s in of_records], [s.path for s in of_records]))
  return [
    dataclasses.replace(shard, name=next(names)) if shard.format in _OF_RECORDS else shard
    for shard in found
  ]


def _shard(file: NamedFile, given_format: str) -> Shard:
  if not given_format and not file.is_in_folder and file.name.lower().endswith(_UNKNOWN):
    raise ConfigError(
      f'input {file.path!r}: this format is not known; known are JSON lines (.jsonl, .gz, .zst), '
      '.parquet, .tar, .array_record, pictures, .zip of pictures, and text; name one of '
      f'{", ".join(FORMATS)} as format if it is that, or pass it over with exclude'
    )
  return Shard(file.path, file.name, given_format or format_of(file.name))


def _why_passed_over(file: NamedFile, config: CorpusConfig) -> str:
  """'' for a file that is read."""
  if is_excluded(file.below, config.exclude):
    return 'excluded'
  if file.is_in_folder and is_hidden(file.name):
    return 'hidden'
  is_wanted = not config.suffixes or file.name.endswith(tuple(config.suffixes))
  return '' if is_wanted or not file.is_in_folder else 'of another suffix'


def passed_over(config: CorpusConfig) -> dict[str, int]:
  """How many files below the inputs are not read, for each reason; none where all are."""
  counts = collections.Counter()
  for given in config.inputs:
    for file in () if is_tfds(given) else input_files.named_files(given):
      why = _why_passed_over(file, config)
      if why:
        counts[why] += 1
      elif (config.format or format_of(file.name)) == 'zip':
        counts['no pictures in zips'] += _num_other_members(_shard(file, 'zip'), config)
  return {why: number for why, number in counts.items() if number}


def is_tfds(path: str) -> bool:
  """Whether an input is a data set of TFDS."""
  return path.startswith(_TFDS)


def format_of(name: str) -> str:
  """The one of FORMATS that a file's name stands for."""
  lower = name.lower()
  for suffix in _PACKED:
    lower = lower.removesuffix(suffix)
  if lower.endswith(_JSON_LINES):
    return 'jsonl'
  if lower.endswith('.parquet'):
    return 'parquet'
  if lower.endswith('.tar'):
    return 'webdataset'
  if lower.endswith('.zip'):
    return 'zip'
  if '.array_record' in lower:
    return 'array_record'
  return 'image' if lower.endswith(IMAGES) else 'text'


def opened(shard: Shard) -> BinaryIO:
  """The file, decompressed as it is read; see `input_files.opened`."""
  if shard.name.lower().endswith('.zst'):
    parquet_module()  # says so if pyarrow is missing
  return input_files.opened(shard.path, shard.name)


def examples(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  """The records of one file, in its order.

  A file that is damaged (a truncated archive) ends in one example with an error that names it.

  Raises:
    ConfigError: it cannot be read where it is, or as what it is said to be.
    RunError: its bytes cannot be had.
  """
  read = {
    'jsonl': _json_lines,
    'parquet': _parquet,
    'webdataset': _webdataset,
    'array_record': _array_record,
    'image': _one_image,
    'zip': _zip,
    'tfds': _tfds,
    'text': _one_text,
  }[shard.format]
  number = 0
  records = read(shard, config)
  while True:
    try:
      yield next(records)
    except StopIteration:
      return
    except ConfigError:
      raise
    except _ERRORS as error:
      if not _is_damage(error):
        raise RunError(f'{shard.path} cannot be read: {type(error).__name__}: {error}') from error
      yield Example(broken_id(shard.name), error=f'{shard.name} breaks off after {number}: {error}')
      return
    number += 1


def _is_damage(error: Exception) -> bool:
  """Whether it is about a file's content. Errors of the system and of networks that are OSErrors
  have a number or a class of their own, those of gzip and pyarrow have not."""
  if not isinstance(error, OSError):
    return True
  return type(error) in (OSError, gzip.BadGzipFile) and error.errno is None


def ids(shard: Shard, id_field: str = '') -> Iterator[str]:
  """The ids of the records of one file, in its order."""
  if shard.format == 'array_record' and not id_field:  # their number is known without reading them
    yield from (record_id(shard.name, i) for i in range(len(_array_records(shard))))
    return
  config = CorpusConfig((shard.path,), text_field='', id_field=id_field)
  yield from (example.id for example in examples(shard, config))


def _json_lines(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  with opened(shard) as f:
    is_first = True
    for number, line in enumerate(f, 1):
      if not line.strip():
        continue
      if is_first and line.strip() in (b'[', b'{'):
        yield Example(broken_id(shard.name), error=_ONE_VALUE.format(shard.name))
        return
      is_first = False
      yield _json_example(line, record_id(shard.name, number), config)


def parsed_json(data: bytes | str) -> Any:
  """The value of a piece of JSON.

  Raises:
    ValueError: it is none, or nested too deeply.
  """
  try:
    return json.loads(data)
  except RecursionError as error:
    raise ValueError('JSON that is nested too deeply') from error


def _json_example(line: bytes, place: str, config: CorpusConfig) -> Example:
  try:
    record = parsed_json(line)
  except ValueError as error:  # UnicodeDecodeError is one
    return Example(place, error=f'{type(error).__name__}: {error}')
  if not isinstance(record, dict):
    return Example(place, error=f'a JSON {type(record).__name__}, expected an object a line')
  return of_record(record, place, config)


def of_record(record: Mapping[str, Any], place: str, config: CorpusConfig) -> Example:
  """An example from named fields; `place` is its id if the config names no field for it."""
  name = place
  if config.id_field:
    given = record.get(config.id_field)
    if isinstance(given, bool) or not isinstance(given, str | int) or given == '':
      return Example(place, error=_lacks('id', record, config.id_field), record=record)
    name = str(given)
    if _half_character(name):
      error = f'the id in field {config.id_field!r} has half a surrogate pair: {name!a}'
      return Example(place, error=error, record=record)
  text = image = None
  if config.text_field:
    text = record.get(config.text_field)
    if not isinstance(text, str):
      return Example(name, error=_lacks('text', record, config.text_field), record=record)
    if error := _half_character(text):
      return Example(name, error=f'{error} of field {config.text_field!r}', record=record)
  if config.image_field:
    image = record.get(config.image_field)
    image = image.get('bytes') if isinstance(image, dict) else image
    if not isinstance(image, bytes):
      return Example(name, error=_lacks('picture', record, config.image_field), record=record)
  return Example(name, text, image, record=record)


def _lacks(what: str, record: Mapping[str, Any], field: str) -> str:
  if field not in record:
    return f'no {what} in field {field!r}; it has {sorted(record)}'
  if record[field] == '':
    return f'no {what} in field {field!r}: it is empty'
  return f'no {what} in field {field!r}: its value is of type {type(record[field]).__name__}'


def _half_character(text: str) -> str:
  """What is wrong with a text that JSON can say and UTF-8 cannot; '' if nothing is."""
  try:
    text.encode('utf-8')
  except UnicodeEncodeError as error:
    at = error.start
    return f'half a character (a lone surrogate, {text[at]!a}) at place {at:,}'
  return ''


def _parquet(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  pq = parquet_module()
  with opened(shard) as f:
    row = 0
    for batch in pq.ParquetFile(f).iter_batches(batch_size=1024):
      for record in batch.to_pylist():
        yield of_record(record, record_id(shard.name, row), config)
        row += 1


def _webdataset(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  """Files that follow one another with one stem are one record, its fields their suffixes."""
  with opened(shard) as f:
    for stem, fields in archives.tar_groups(f):
      yield _of_files(fields, record_id(shard.name, stem), config)


def _of_files(fields: dict[str, bytes], place: str, config: CorpusConfig) -> Example:
  try:
    record: dict[str, Any] = parsed_json(fields['json']) if 'json' in fields else {}
    record['text'] = fields['txt'].decode('utf-8') if 'txt' in fields else record.get('text')
  except (ValueError, TypeError) as error:
    return Example(place, error=f'{type(error).__name__}: {error}')
  pictures = [suffix for suffix in fields if f'.{suffix}' in IMAGES]
  if pictures:
    record['image'] = fields[pictures[0]]
  record = {name: value for name, value in record.items() if value is not None}
  return of_record(record, place, config)


def _array_record(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  """A record is JSON, or a line of JSON and then an encoded picture."""
  records = _array_records(shard)
  for i in range(len(records)):
    place = record_id(shard.name, i)
    try:
      header, newline, image = records[i].partition(b'\n')
    except ValueError as error:
      yield Example(place, error=f'damaged: {error}')
      continue
    example = _json_example(header, place, dataclasses.replace(config, image_field=''))
    if newline and config.image_field and not example.error:
      example = dataclasses.replace(example, image=image)
    yield example


def _array_records(shard: Shard) -> archives.ArrayRecords:
  if input_files.is_url(shard.path):
    raise ConfigError(f'{shard.path}: ArrayRecord is read from local files only; copy it first')
  opened(shard).close()  # says whether it is the opening that fails
  return archives.ArrayRecords(shard.path)


def _tfds(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  from jaxmm.data import tfds_source  # seconds to import, for those who use it

  for name, record in tfds_source.named_records(shard.path):
    yield of_record(record, name, config)


def _one_image(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  with opened(shard) as f:
    yield Example(shard.name, image=f.read())


def _zip(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  """The pictures, by name; their ids are those of the same files in a folder."""
  with opened(shard) as f, zipfile.ZipFile(f) as archive:
    for name in _members(archive, config):
      try:
        yield Example(name, image=archive.read(name))
      except (zipfile.BadZipFile, zlib.error, EOFError, OSError, RuntimeError) as error:
        yield Example(name, error=f'{type(error).__name__}: {error}')


def _members(archive: zipfile.ZipFile, config: CorpusConfig) -> list[str]:
  suffixes = tuple(config.suffixes) or IMAGES
  names = [name for name in archive.namelist() if name.lower().endswith(suffixes)]
  return sorted(n for n in names if not (is_hidden(n) or is_excluded(n, config.exclude)))


def _num_other_members(shard: Shard, config: CorpusConfig) -> int:
  try:
    with opened(shard) as f, zipfile.ZipFile(f) as archive:
      files = [name for name in archive.namelist() if not name.endswith('/')]
      return len(files) - len(_members(archive, config))
  except (OSError, ValueError, zipfile.BadZipFile):
    return 0  # reading it says what is wrong


def _one_text(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  with opened(shard) as f:
    data = f.read()
  try:
    yield Example(shard.name, text=data.decode('utf-8'))
  except UnicodeDecodeError as error:
    yield Example(shard.name, error=f'not UTF-8: {error}')
