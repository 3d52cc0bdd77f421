"""A corpus to be judged: files of any supported format, as examples with ids, in a fixed order.

    *.jsonl, *.json.gz, *.jsonl.zst  a line each           NAME:line (from 1)
    *.parquet                        a row each            NAME:row
    *.tar                            WebDataset: files of one stem each   NAME:stem
    *.array_record*                  a record each         NAME:record
    pictures                         a file each           NAME
    *.zip                            a picture each        its path in the archive
    any other file                   a text each (source code, *.txt)     NAME

NAME is the path below the input that was named. With `id_field` the id is what stands there, and
NAME:line that of records that cannot be read (files of one name: by the path that differs). The
sources that training reads give their records the same ids (`record_id`), so that a keep-list of
the one applies to the other.
Paths may be URLs that `fsspec` knows (`gs://...`, `s3://...`) where it is installed.

What cannot be read is an example, too: it has an id, an `error`, and no content. Nothing is left
out, and nothing is numbered anew.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import glob
import gzip
import io
import itertools
import json
import os
import pathlib
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from jaxmm.config import ConfigError
from jaxmm.data import file_names

IMAGES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.gif', '.ppm', '.tif', '.tiff')
_JSON_LINES = ('.jsonl', '.json', '.ndjson')
_PACKED = ('.gz', '.zst')
# Of these a record may hold its id.
_OF_RECORDS = ('jsonl', 'parquet', 'webdataset', 'array_record')
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
    ConfigError: an input that is not there or holds nothing, or two files of the same name.
  """
  found = []
  for given in config.inputs:
    files = [
      (path, name)
      for path, name, below in _files(given, config.suffixes)
      if not is_excluded(below, config.exclude)
    ]
    if not files:
      but = f' but what exclude {config.exclude} passes over' if config.exclude else ''
      raise ConfigError(f'input {given!r}: no such file, or nothing there to read{but}')
    found += [Shard(path, name, config.format or format_of(name)) for path, name in files]
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


def _files(given: str, suffixes: Sequence[str]) -> Iterator[tuple[str, str, str]]:
  """(path, name, path below the input) of the files that an input stands for."""
  given = given.removeprefix('file://')
  if '://' in given:
    fs, path = _file_system(given)
    root = path.rstrip('/')
    is_folder = fs.isdir(root)
    above = root if is_folder else _fixed_part(root)
    for p in sorted(fs.find(root)) if is_folder else sorted(fs.glob(root)):
      below = p[len(above) :].lstrip('/')
      is_wanted = p.endswith(tuple(suffixes)) or not suffixes
      if is_wanted and not (is_folder and is_hidden(below)):
        yield fs.unstrip_protocol(p), below if is_folder else p.rsplit('/', 1)[-1], below
    return
  if os.path.isdir(given):
    root = pathlib.Path(given)
    for path in sorted(p for p in root.rglob('*') if p.is_file()):
      name = path.relative_to(root).as_posix()
      if not is_hidden(name) and (not suffixes or name.endswith(tuple(suffixes))):
        yield str(path), name, name
    return
  if os.path.isfile(given):
    yield given, os.path.basename(given), os.path.basename(given)
    return
  above = _fixed_part(given)
  for path in sorted(glob.glob(given, recursive=True)):
    if os.path.isfile(path):
      yield path, os.path.basename(path), path[len(above) :].lstrip('/')


def _fixed_part(pattern: str) -> str:
  """The folders in front of the first wildcard."""
  parts = pattern.split('/')
  fixed = itertools.takewhile(lambda part: not glob.has_magic(part), parts[:-1])
  return '/'.join(fixed)


def is_excluded(name: str, patterns: Sequence[str]) -> bool:
  """Whether a path below an input, or a folder of it, is one that `exclude` passes over."""
  parts = name.split('/')
  folders = list(itertools.accumulate(parts, '{}/{}'.format))
  for pattern in patterns:
    wanted = pattern.strip('/')
    of = folders if '/' in wanted else parts
    if any(fnmatch.fnmatchcase(one, wanted) for one in of):
      return True
  return False


def is_hidden(name: str) -> bool:
  """Whether a file is passed over: it or a folder above it begins with a dot or __MACOSX."""
  return any(part.startswith(('.', '__MACOSX')) for part in name.split('/'))


def _file_system(url: str):
  try:
    import fsspec
  except ImportError as error:
    raise ConfigError(
      f"{url} is read through fsspec, which is not installed: pip install 'jaxmm[curation]' and "
      'what its protocol needs (gcsfs, s3fs, ...)'
    ) from error
  return fsspec.core.url_to_fs(url)


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
  """The file, decompressed as it is read."""
  if '://' in shard.path:
    fs, path = _file_system(shard.path)
    raw = fs.open(path, 'rb')
  else:
    raw = open(shard.path, 'rb')
  if shard.path.endswith('.gz'):
    return gzip.GzipFile(fileobj=raw)
  if shard.path.endswith('.zst'):
    parquet_module()  # says so if pyarrow is missing
    import pyarrow as pa

    return io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(raw), 'zstd'))
  return raw


def examples(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  """The records of one file, in its order.

  A file that breaks off (a truncated archive) ends in one example with an error that names it.
  """
  read = {
    'jsonl': _json_lines,
    'parquet': _parquet,
    'webdataset': _webdataset,
    'array_record': _array_record,
    'image': _one_image,
    'zip': _zip,
    'text': _one_text,
  }[shard.format]
  number = 0
  records = read(shard, config)
  while True:
    try:
      yield next(records)
    except StopIteration:
      return
    except (OSError, EOFError, tarfile.TarError, zipfile.BadZipFile, ValueError) as error:
      yield Example(broken_id(shard.name), error=f'{shard.name} breaks off after {number}: {error}')
      return
    number += 1


def ids(shard: Shard, id_field: str = '') -> Iterator[str]:
  """The ids of the records of one file, in its order."""
  if shard.format == 'array_record' and not id_field:  # their number is known without reading them
    yield from (record_id(shard.name, i) for i in range(len(_array_records(shard))))
    return
  config = CorpusConfig((shard.path,), text_field='', id_field=id_field)
  yield from (example.id for example in examples(shard, config))


def _json_lines(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  with opened(shard) as f:
    for number, line in enumerate(f, 1):
      if line.strip():
        yield _json_example(line, record_id(shard.name, number), config)


def _json_example(line: bytes, place: str, config: CorpusConfig) -> Example:
  try:
    record = json.loads(line)
  except ValueError as error:  # UnicodeDecodeError is one
    return Example(place, error=f'{type(error).__name__}: {error}')
  if not isinstance(record, dict):
    return Example(place, error=f'a JSON {type(record).__name__}, expected an object')
  return of_record(record, place, config)


def of_record(record: Mapping[str, Any], place: str, config: CorpusConfig) -> Example:
  """An example from named fields; `place` is its id if the config names no field for it."""
  name = place
  if config.id_field:
    given = record.get(config.id_field)
    if isinstance(given, bool) or not isinstance(given, str | int) or given == '':
      return Example(
        place, error=f'no id in field {config.id_field!r}; it has {sorted(record)}', record=record
      )
    name = str(given)
    if _half_character(name):
      error = f'the id in field {config.id_field!r} has half a surrogate pair: {name!a}'
      return Example(place, error=error, record=record)
  text = image = None
  if config.text_field:
    text = record.get(config.text_field)
    if not isinstance(text, str):
      error = _no_text(record, config.text_field)
      return Example(name, error=error, record=record)
    if error := _half_character(text):
      return Example(name, error=f'{error} of field {config.text_field!r}', record=record)
  if config.image_field:
    image = record.get(config.image_field)
    image = image.get('bytes') if isinstance(image, dict) else image
    if not isinstance(image, bytes):
      error = f'no picture in field {config.image_field!r}; it has {sorted(record)}'
      return Example(name, error=error, record=record)
  return Example(name, text, image, record=record)


def _no_text(record: Mapping[str, Any], field: str) -> str:
  if field not in record:
    return f'no text in field {field!r}; it has {sorted(record)}'
  return f'no text in field {field!r}: its value is of type {type(record[field]).__name__}'


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
  with opened(shard) as f, tarfile.open(fileobj=f, mode='r|*') as tar:
    files = ((*_stem_and_suffix(m.name), tar.extractfile(m).read()) for m in tar if m.isfile())
    for stem, group in itertools.groupby(files, key=lambda file: file[0]):
      fields = {suffix: data for _, suffix, data in group}
      yield _of_files(fields, record_id(shard.name, stem), config)


def _stem_and_suffix(name: str) -> tuple[str, str]:
  folder, _, base = name.rpartition('/')
  stem, _, suffix = base.partition('.')
  return (f'{folder}/{stem}' if folder else stem), suffix.lower()


def _of_files(fields: dict[str, bytes], place: str, config: CorpusConfig) -> Example:
  try:
    record: dict[str, Any] = json.loads(fields['json']) if 'json' in fields else {}
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
    header, newline, image = bytes(records[i]).partition(b'\n')
    place = record_id(shard.name, i)
    example = _json_example(header, place, dataclasses.replace(config, image_field=''))
    if newline and config.image_field and not example.error:
      example = dataclasses.replace(example, image=image)
    yield example


def _array_records(shard: Shard):
  from array_record.python import array_record_data_source

  if '://' in shard.path:
    raise ConfigError(f'{shard.path}: ArrayRecord is read from local files only; copy it first')
  return array_record_data_source.ArrayRecordDataSource([shard.path])


def _one_image(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  with opened(shard) as f:
    yield Example(shard.name, image=f.read())


def _zip(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  """The pictures, by name; their ids are those of the same files in a folder."""
  suffixes = tuple(config.suffixes) or IMAGES
  with opened(shard) as f, zipfile.ZipFile(f) as archive:
    for name in sorted(archive.namelist()):
      is_passed_over = is_hidden(name) or is_excluded(name, config.exclude)
      if name.lower().endswith(suffixes) and not is_passed_over:
        try:
          yield Example(name, image=archive.read(name))
        except (zipfile.BadZipFile, zlib.error, OSError, RuntimeError) as error:
          yield Example(name, error=f'{type(error).__name__}: {error}')


def _one_text(shard: Shard, config: CorpusConfig) -> Iterator[Example]:
  with opened(shard) as f:
    data = f.read()
  try:
    yield Example(shard.name, text=data.decode('utf-8'))
  except UnicodeDecodeError as error:
    yield Example(shard.name, error=f'not UTF-8: {error}')
