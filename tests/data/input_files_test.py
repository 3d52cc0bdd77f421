"""What cannot be had of a file ends the command; only what is damaged in it is an example."""

import gzip
import io
import json
import os
import tarfile
import zipfile

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.registry import known_implementations

from jaxmm import cli
from jaxmm.config import ConfigError, RunError
from jaxmm.curation import keep_list
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig, Shard
from jaxmm.data.sources import write_array_records

NUM = 1500


class Breaking(MemoryFileSystem):
  """A store whose connection is reset after so many bytes of a file."""

  protocol = 'breaking'
  after = None
  error = ConnectionResetError('connection reset by peer')

  @classmethod
  def _strip_protocol(cls, path):
    return MemoryFileSystem._strip_protocol(path.replace('breaking://', 'memory://'))

  def unstrip_protocol(self, name):
    return f'breaking://{name.lstrip("/")}'

  def _open(self, path, mode='rb', **kwargs):
    data = io.BytesIO(self.cat_file(path))
    read, left = data.read, [self.after if self.after is not None else 1 << 60]

    def breaking(size=-1):
      out = read(size)
      left[0] -= len(out)
      if left[0] < 0:
        raise self.error
      return out

    data.read = breaking
    return data


class _BytesIO(io.BytesIO):
  pass


@pytest.fixture
def store(monkeypatch):
  monkeypatch.setattr(io, 'BytesIO', _BytesIO)  # one whose `read` can be replaced
  fsspec.register_implementation('breaking', Breaking, clobber=True)
  monkeypatch.setattr(Breaking, 'after', None)
  monkeypatch.setattr(Breaking, 'error', ConnectionResetError('connection reset by peer'))
  yield fsspec.filesystem('memory')
  monkeypatch.undo()


def content(fmt):
  """A file of NUM documents, or of one where a file is an example."""
  lines = b''.join(
    json.dumps({'text': os.urandom(30).hex(), 'n': n}).encode() + b'\n' for n in range(NUM)
  )
  out = io.BytesIO()
  if fmt == 'jsonl.gz':
    return gzip.compress(lines)
  if fmt == 'jsonl.zst':
    return pa.compress(lines, 'zstd', asbytes=True)
  if fmt == 'parquet':
    table = pa.Table.from_pylist([json.loads(line) for line in lines.splitlines()])
    pq.write_table(table, out, row_group_size=500, compression='snappy')
  elif fmt == 'tar':
    with tarfile.open(fileobj=out, mode='w') as tar:
      for n in range(NUM):
        info = tarfile.TarInfo(f'{n}.txt')
        info.size = 3
        tar.addfile(info, io.BytesIO(b'abc'))
  elif fmt == 'zip':
    with zipfile.ZipFile(out, 'w') as archive:
      for n in range(NUM):
        archive.writestr(f'{n}.png', os.urandom(99))
  else:
    return lines
  return out.getvalue()


def examples(path):
  [shard] = corpus.shards(CorpusConfig((path,)))
  return list(corpus.examples(shard, CorpusConfig((path,))))


FORMATS = ['jsonl', 'jsonl.gz', 'jsonl.zst', 'parquet', 'tar', 'zip', 'txt', 'png']


@pytest.mark.parametrize('fmt', FORMATS)
@pytest.mark.parametrize('share', [0, 0.5, 1])
@pytest.mark.parametrize('error', [ConnectionResetError('reset'), ValueError('payload')])
def test_a_broken_connection_is_no_content(store, fmt, share, error):
  data = content(fmt)
  store.pipe(f'/x/docs.{fmt}', data)
  Breaking.after, Breaking.error = max(int(share * len(data)) - 1, 0), error
  with pytest.raises(RunError, match=rf'breaking://x/docs.{fmt} cannot be read: {error!r:.9}'):
    examples(f'breaking://x/docs.{fmt}')
  Breaking.after = None
  found = examples(f'breaking://x/docs.{fmt}')
  assert len(found) == (1 if fmt in ('txt', 'png') else NUM) and not found[-1].error


def test_a_stop_leaves_nothing_of_the_file_and_the_next_run_reads_all_of_it(
  store, tmp_path, capsys
):
  store.pipe('/y/docs.jsonl', content('jsonl'))
  out = tmp_path / 'keep.parquet'
  words = ['--input', 'breaking://y/docs.jsonl', '--processes', '1', '--output', str(out)]
  Breaking.after = 100_000
  assert cli.main(['curate', 'minhash', *words]) == 1
  assert 'reset by peer; run the same command to go on' in capsys.readouterr().err
  assert not out.exists()
  Breaking.after = None
  assert cli.main(['curate', 'minhash', *words]) == 0
  assert 'done before' not in capsys.readouterr().out
  assert len(keep_list.read(out)) == NUM and 'unreadable' not in keep_list.read(out).reasons()


@pytest.mark.parametrize('fmt', FORMATS[1:-2])
@pytest.mark.parametrize('damage', ['cut', 'junk', 'tiny'])
def test_damage_is_an_example(tmp_path, fmt, damage):
  data, path = content(fmt), tmp_path / f'docs.{fmt}'
  half = len(data) // 2
  junk = bytes(range(256)) * 8
  path.write_bytes(
    {'cut': data[:half], 'junk': data[:half] + junk + data[half + 2048 :], 'tiny': b'x'}[damage]
  )
  found = examples(str(path))
  assert 1 <= len(found) < 2 * NUM and any(e.error for e in found)
  assert len({e.id for e in found}) == len(found)


def test_damaged_array_records_are_examples(tmp_path):
  path = tmp_path / 'x.array_record'
  write_array_records(path, [{'image': os.urandom(99), 'text': f't{n}'} for n in range(NUM)])
  data = path.read_bytes()
  assert [e.text for e in examples(str(path))] == [f't{n}' for n in range(NUM)]
  path.write_bytes(data[: len(data) // 2])
  [one] = examples(str(path))
  assert one.id == 'x.array_record:broken' and 'records file: ' in one.error
  half = len(data) // 2
  path.write_bytes(data[:half] + bytes(200) + data[half + 200 :])
  found = examples(str(path))
  bad = [e for e in found if e.error]
  assert len(found) == NUM and 0 < len(bad) < NUM // 2 and 'records file: ' in bad[0].error
  assert [e.id for e in found] == [f'x.array_record:{n}' for n in range(NUM)]


def test_array_records_elsewhere_are_refused(tmp_path, capsys):
  path = tmp_path / 'e.array_record'
  write_array_records(path, [{'image': b'', 'text': 'a'}])
  assert [e.text for e in examples(f'local://{path}')] == ['a']
  fsspec.filesystem('memory').pipe('/r/e.array_record', path.read_bytes())
  words = ['--input', 'memory://r/e.array_record', '--output', str(tmp_path / 'k.parquet')]
  assert cli.main(['curate', 'minhash', *words]) == 2
  assert 'ArrayRecord is read from local files only; copy it first' in capsys.readouterr().err
  assert not (tmp_path / 'k.parquet').exists()


def test_a_file_that_is_gone_or_closed_to_us_is_no_content(tmp_path, monkeypatch):
  for fmt in ('jsonl', 'array_record'):
    gone = Shard(str(tmp_path / f'x.{fmt}'), f'x.{fmt}', fmt)
    with pytest.raises(RunError, match='cannot be read: FileNotFoundError'):
      list(corpus.examples(gone, CorpusConfig(('x',))))

  def opened(shard):
    raise PermissionError(13, 'Permission denied')

  monkeypatch.setattr(corpus, 'opened', opened)
  with pytest.raises(RunError, match='cannot be read: PermissionError'):
    list(corpus.examples(Shard('x.jsonl', 'x.jsonl', 'jsonl'), CorpusConfig(('x',))))


@pytest.mark.parametrize(
  ('url', 'said'),
  [
    ('s3://b/x.jsonl', "the protocol 's3' needs a package that is not installed: Install s3fs"),
    ('simplecache::s3://b/*.jsonl', "'s3' needs a package that is not installed: Install s3fs"),
    ('https://h/x.jsonl', "the protocol 'https' needs a package that is not installed: .*aiohttp"),
    ('foo://b/x.jsonl', "fsspec knows no protocol 'foo'; known are .*memory"),
    ('zip://*.txt::foo://b/t.zip', "fsspec knows no protocol 'foo'"),
  ],
)
def test_protocols_that_are_not_there_are_named(url, said, monkeypatch):
  real = fsspec.get_filesystem_class

  def without(protocol):
    if protocol in ('s3', 'https'):
      raise ImportError(known_implementations[protocol]['err'])
    return real(protocol)

  monkeypatch.setattr(fsspec, 'get_filesystem_class', without)
  with pytest.raises(ConfigError, match=said):
    corpus.shards(CorpusConfig((url,)))


def test_chains_of_urls(tmp_path):
  path = tmp_path / 't.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    archive.writestr('a.txt', 'one')
    archive.writestr('in/b.txt', 'two')
    archive.writestr('in/c.jsonl.gz', gzip.compress(b'{"text": "three"}\n'))
  texts = lambda url: {e.id: e.text for e in every(url)}
  assert texts(f'zip://*.txt::file://{path}') == {'a.txt': 'one'}
  assert texts(f'zip://in/*::{path}') == {'b.txt': 'two', 'c.jsonl.gz:1': 'three'}
  assert texts(f'zip://a.txt::{path}') == {'a.txt': 'one'}
  whole = {'a.txt': 'one', 'in/b.txt': 'two', 'in/c.jsonl.gz:1': 'three'}
  assert texts(f'zip://::file://{path}') == whole
  fsspec.filesystem('memory').pipe('/z/d.jsonl', b'{"text": "four"}\n')
  assert texts('simplecache::memory://z/*.jsonl') == {'d.jsonl:1': 'four'}
  fsspec.filesystem('memory').pipe('/z/t.zip', path.read_bytes())
  assert texts('zip://in/*.gz::simplecache::memory://z/t.zip') == {'c.jsonl.gz:1': 'three'}


def every(url):
  inputs = CorpusConfig((url,))
  return [e for shard in corpus.shards(inputs) for e in corpus.examples(shard, inputs)]


def test_a_list_of_a_chain_follows_the_archive(tmp_path):
  path, out = tmp_path / 't.zip', tmp_path / 'keep.parquet'
  words = ['--input', f'zip://*.txt::file://{path}', '--output', str(out)]
  found = []
  for text in ('one', 'two'):
    with zipfile.ZipFile(path, 'w') as archive:
      archive.writestr('a.txt', f'{text} of some words in the text')
    os.utime(path, ns=(0, ord(text[0])))  # of the same size, and another time
    assert cli.main(['curate', 'minhash', *words, '--processes', '2']) == 0
    found.append(keep_list.read(out))
  assert [keep.num_kept for keep in found] == [1, 1]
  assert found[0].fingerprint != found[1].fingerprint
