"""Files as bytes: every byte once, whatever the packing; sound; splits; what cannot be read."""

import os
import struct
import wave

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError, from_mapping
from jaxmm.data import byte_files
from jaxmm.data.bad_records import TooManyBadRecords
from jaxmm.data.packing import METHODS
from jaxmm.data.pipeline import DataConfig, make_batches

SIZES = (0, 1, 700, 64, 3, 65, 0, 128, 17, 5)


@pytest.fixture
def folder(tmp_path):
  """Files of many zeros, so that a byte 0 that is lost shows."""
  rng = np.random.default_rng(0)
  for i, size in enumerate(SIZES):
    file = tmp_path / 'files' / 'ab'[i % 2] / f'{i}.bin'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes((rng.integers(0, 256, size) * rng.integers(0, 2, size)).astype('u1').tobytes())
  return tmp_path / 'files'


def _config(path, **rest):
  of_bytes = {'length': 64, **rest.pop('bytes', {})}
  values = {'name': 'bytes', 'path': str(path), 'split': 'all', 'bytes': of_bytes, **rest}
  return from_mapping(DataConfig, values, 'data')


def _batches(path, batch_size=4, train=False, process=(0, 1), **rest):
  return make_batches(
    _config(path, **rest),
    batch_size=batch_size,
    seed=1,
    train=train,
    process_index=process[0],
    process_count=process[1],
  )


def _contents(path) -> bytes:
  files = sorted(p.relative_to(path).as_posix() for p in path.rglob('*') if p.is_file())
  return b''.join((path / f).read_bytes() for f in files)


def _bytes_of(batches) -> bytes:
  """What stands in the rows of one pass, in order."""
  rows = list(batches.once())
  ids = np.concatenate([b['ids_BL'] for b in rows])
  segment = np.concatenate([b['segment_BL'] for b in rows])
  return ids[segment > 0].astype(np.uint8).tobytes()


@pytest.mark.parametrize('align', [1, 8])
def test_concatenated_rows_are_the_files_one_after_the_other(folder, align):
  batches = _batches(folder, bytes={'align': align})
  assert _bytes_of(batches) == _contents(folder)
  batch = batches.at(0)
  assert batch['ids_BL'].shape == (4, 64)
  assert [batch[k].dtype for k in ('ids_BL', 'segment_BL', 'weight_BL')] == ['i4', 'i4', 'f4']
  assert batches.describe(0).startswith('packed row 0 (a/2.bin')


@pytest.mark.parametrize('packing', METHODS)
@pytest.mark.parametrize('align', [1, 4, 64])
@pytest.mark.parametrize('processes', [1, 2])
def test_every_byte_counts_once(folder, packing, align, processes):
  # What bits per byte needs: the sum over all rows, on any number of processes, is over the bytes
  # of the files, each once, those that begin a segment known apart.
  read, seen = [], np.zeros(256, np.int64)
  for p in range(processes):
    of = _batches(folder, bytes={'packing': packing, 'align': align}, process=(p, processes))
    read += of.once()
  num_bytes = num_predicted = num_first = 0
  for batch in read:
    ids, segment, weight = batch['ids_BL'], batch['segment_BL'], batch['weight_BL']
    real = segment > 0
    np.testing.assert_array_equal(real, ids != byte_files.PAD * batch['valid_B'][:, None])
    seen += np.bincount(ids[real], minlength=256)
    first = real & (np.diff(segment, prepend=0, axis=1) != 0)
    np.testing.assert_array_equal(weight, (real & ~first).astype(np.float32))
    assert not (np.flatnonzero(first) % 64 % align).any()
    num_bytes += int(real.sum())
    num_first += int(first.sum())
    num_predicted += int(weight.sum())
  assert num_bytes == sum(SIZES) == num_predicted + num_first
  assert num_bytes == sum(p.stat().st_size for p in folder.rglob('*.bin'))
  np.testing.assert_array_equal(
    seen, np.bincount(np.frombuffer(_contents(folder), np.uint8), minlength=256)
  )
  assert seen[0] > 300


@settings(max_examples=25, deadline=None)
@given(
  st.lists(st.binary(max_size=40), min_size=1, max_size=8),
  st.sampled_from([(2, 1), (6, 3), (16, 4), (16, 1)]),
  st.sampled_from(METHODS),
)
def test_files_come_back_from_their_rows(tmp_path_factory, contents, shape, packing):
  path = tmp_path_factory.mktemp('files')
  for i, content in enumerate(contents):
    (path / f'{i}').write_bytes(content)
  settings = {'length': shape[0], 'align': shape[1], 'packing': packing}
  if not any(contents):
    with pytest.raises(ConfigError, match='holds no bytes'):
      _batches(path, bytes=settings)
    return
  batches = _batches(path, bytes=settings)
  source = batches.source
  assert [source.documents.slice(int(start), int(end - start)).tobytes()
          for start, end in zip(source.documents.offsets_D, source.documents.offsets_D[1:])
          if end > start] == [c for c in contents if c]  # fmt: skip
  found = [bytearray(len(c)) for c in contents]
  for r in range(len(source)):
    row = source[r]
    for s in range(1, row['segment_L'].max() + 1):
      piece = int(source.plan.rows_R[r]) + s - 1
      start = int(source.plan.starts_P[piece])
      d = int(np.searchsorted(source.documents.offsets_D, start, side='right')) - 1
      at = start - int(source.documents.offsets_D[d])
      data = row['ids_L'][row['segment_L'] == s].astype(np.uint8).tobytes()
      assert not any(found[d][at : at + len(data)])
      found[d][at : at + len(data)] = data
  assert [bytes(f) for f in found] == contents


def test_rows_are_the_same_on_any_number_of_processes_and_from_any_step(folder):
  alone = _batches(folder, train=True)
  for processes in (2, 4):
    parts = [_batches(folder, train=True, process=(p, processes)) for p in range(processes)]
    for step in (0, 5):
      at = [part.at(step) for part in parts]
      for name, value in alone.at(step).items():
        np.testing.assert_array_equal(value, np.concatenate([a[name] for a in at]))
  stream = alone.from_step(3)
  for step in (3, 4, 5):
    for name, value in next(stream).items():
      np.testing.assert_array_equal(value, alone.at(step)[name])
  stream.close()


def test_nothing_is_read_but_the_rows_asked_for(tmp_path):
  with open(tmp_path / 'sparse.bin', 'wb') as f:
    f.truncate(50 * 2**30)  # 50 GiB of zeros that take no room
    f.seek(30 * 2**30)
    f.write(b'here')
  batches = _batches(tmp_path / 'sparse.bin', bytes={'length': 2**20})
  assert batches.num_records == 50 * 2**10
  row = batches.source[30 * 2**10]
  assert row['ids_L'][:5].tolist() == [*b'here', 0] and row['segment_L'].all()


def test_splits_by_folder_by_hash_and_within_one_file(folder, tmp_path):
  parts = {s: byte_files.ByteFiles(str(folder), s, 0.4, byte_files.BytesConfig()).names
           for s in ('train', 'test', 'all')}  # fmt: skip
  assert parts['train'] and parts['test'] and len(parts['all']) == len(SIZES)
  assert sorted(parts['train'] + parts['test']) == parts['all']
  (folder / 'a').rename(folder / 'train')
  (folder / 'b').rename(folder / 'val')
  names = byte_files.ByteFiles(str(folder), 'test', 0.4, byte_files.BytesConfig()).names
  assert names == ['val/1.bin', 'val/3.bin', 'val/5.bin', 'val/7.bin', 'val/9.bin']
  one = tmp_path / 'one'
  one.write_bytes(bytes(range(100)))
  read = {s: _bytes_of(_batches(one, split=s, test_fraction=0.2)) for s in ('train', 'test')}
  assert (read['train'], read['test']) == (bytes(range(80)), bytes(range(80, 100)))


def test_names_need_not_be_utf8(folder):
  name = os.fsdecode(b'b/caf\xe9.bin')
  (folder / name).write_bytes(b'x' * 100)
  parts = [_batches(folder, split=s, test_fraction=0.4) for s in ('train', 'test')]
  assert sum(len(_bytes_of(part)) for part in parts) == sum(SIZES) + 100
  assert any(name in part.describe(r) for part in parts for r in range(part.num_records))


def test_suffixes_and_exclusions(folder):
  (folder / '.hidden').write_bytes(b'hidden')
  (folder / 'x.txt').write_text('naïve')
  assert _bytes_of(_batches(folder, bytes={'suffixes': ['.txt']})) == 'naïve'.encode()
  only_a = _batches(folder, bytes={'exclude': ['b', '*.txt']})
  assert _bytes_of(only_a) == b''.join((folder / 'a' / f'{i}.bin').read_bytes()
                                       for i in range(0, 10, 2))  # fmt: skip
  with pytest.raises(ConfigError, match='holds no files of the kinds .wav'):
    _batches(folder, bytes={'suffixes': ['.wav']})


def _write_wav(path, samples, channels=1, width=2):
  with wave.open(str(path), 'wb') as f:
    f.setnchannels(channels)
    f.setsampwidth(width)
    f.setframerate(16000)
    f.writeframes(samples)


def test_sound_is_its_samples_without_a_header(tmp_path):
  samples = np.arange(-150, 150, dtype='<i2').tobytes()
  _write_wav(tmp_path / 'x.wav', samples, channels=2)
  # A chunk of another kind before the samples, as editors write them.
  whole = (tmp_path / 'x.wav').read_bytes()
  riff = whole[:4] + struct.pack('<I', len(whole) + 4) + whole[8:12]
  listed = b'LIST' + struct.pack('<I', 4) + b'INFO'
  (tmp_path / 'x.wav').write_bytes(riff + listed + whole[12:])
  batches = _batches(tmp_path, bytes={'length': 7})  # rows begin within frames, too
  assert _bytes_of(batches) == samples
  as_file = _batches(tmp_path, bytes={'wav': 'file'})
  assert _bytes_of(as_file) == (tmp_path / 'x.wav').read_bytes()
  of = {s: _bytes_of(_batches(tmp_path / 'x.wav', split=s, test_fraction=0.3))
        for s in ('train', 'test')}  # fmt: skip
  assert of['train'] + of['test'] == samples and len(of['test']) % 4 == 0


def test_sound_of_other_kinds_is_counted_and_named(tmp_path, caplog):
  _write_wav(tmp_path / 'good.wav', bytes(600))
  whole = (tmp_path / 'good.wav').read_bytes()
  compressed = bytearray(whole)
  compressed[20:22] = struct.pack('<H', 17)  # ADPCM
  bad = {
    'adpcm.wav': bytes(compressed),
    'cut.wav': whole[:-100],
    'empty.wav': b'',
    'no_data.wav': whole[:36],
    'text.wav': b'no sound at all',
  }
  for name, data in bad.items():
    (tmp_path / name).write_bytes(data)
  _write_wav(tmp_path / 'eight.wav', bytes(100), width=1)
  with pytest.raises(TooManyBadRecords, match=r'adpcm.wav.*no 16-bit PCM sound \(unknown format'):
    _batches(tmp_path)
  batches = _batches(tmp_path, max_bad_fraction=1.0)
  assert _bytes_of(batches) == bytes(600)
  for why in ('8 bits, expected 16', 'breaks off before the last', 'does not start with RIFF'):
    assert why in caplog.text
  for name in (*bad, 'eight.wav'):
    assert name in caplog.text


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 47), st.integers(0, 255), st.integers(0, 60))
def test_damaged_sound_is_read_or_counted(tmp_path_factory, place, value, cut):
  path = tmp_path_factory.mktemp('wav') / 'x.wav'
  _write_wav(path, bytes(range(40)))
  data = bytearray(path.read_bytes())
  data[place] = value
  path.write_bytes(data[: len(data) - cut])
  (path.parent / 'other.bin').write_bytes(b'x')
  batches = _batches(path.parent, max_bad_fraction=1.0)
  assert batches.num_records == 1 and batches.at(0)['valid_B'][0] == 1


def test_a_file_that_has_changed_is_an_unreadable_record(folder):
  batches = _batches(folder, bytes={'packing': 'first_fit'}, max_bad_fraction=0.9)
  whole = batches.at(0)['valid_B'].sum()
  file = folder / 'a' / '2.bin'
  data = file.read_bytes()
  for change in (lambda: file.write_bytes(data + b'x'), file.unlink):
    change()
    batch = batches.at(0)
    assert batch['valid_B'].sum() < whole and not batch['segment_BL'][batch['valid_B'] == 0].any()
  bad = int(batch['record_B'][np.argmin(batch['valid_B'])])
  assert '2.bin has 701 bytes, it had 700 at the start' in batches.describe(bad)
  file.write_bytes(data)
  assert batches.at(0)['valid_B'].sum() == whole


def test_a_keep_list_names_files(folder, tmp_path):
  ids = sorted(p.relative_to(folder).as_posix() for p in folder.rglob('*.bin'))
  keep = [name.startswith('a/') for name in ids]
  pq.write_table(pa.table({'id': ids, 'keep': keep}), tmp_path / 'keep.parquet')
  batches = _batches(folder, keep_list=str(tmp_path / 'keep.parquet'))
  assert _bytes_of(batches) == _contents(folder / 'a')
  assert batches.kept_fingerprint.startswith('5-')
  train = byte_files.ByteFiles(str(folder), 'train', 0.4, byte_files.BytesConfig()).names
  kept = _batches(
    folder, split='train', test_fraction=0.4, keep_list=str(tmp_path / 'keep.parquet')
  )
  assert len(_bytes_of(kept)) == sum((folder / n).stat().st_size for n in train if n[0] == 'a')
  (folder / 'a' / 'new').write_bytes(b'x')
  with pytest.raises(ConfigError, match='belongs to other data'):
    _batches(folder, keep_list=str(tmp_path / 'keep.parquet'))
  with pytest.raises(ConfigError, match="id_field is 'id'"):
    _batches(folder, keep_list=str(tmp_path / 'keep.parquet'), id_field='id')


def test_settings_that_cannot_be_used(folder, tmp_path):
  for of_bytes, message in (
    ({'length': 1}, 'bytes.length is 1'),
    ({'packing': 'best'}, "bytes.packing is 'best'"),
    ({'align': 5}, r'bytes.align is 5, but rows have 64 tokens \(data.bytes.length\)'),
    ({'align': 0}, 'bytes.align is 0'),
    ({'wav': 'mp3'}, "bytes.wav is 'mp3'"),
    ({'patch': 0}, 'bytes.patch is 0'),
    ({'image_order': 'raster'}, "'bytes' are no pictures"),
  ):
    with pytest.raises(ConfigError, match=message):
      _batches(folder, bytes=of_bytes)
  with pytest.raises(ConfigError, match='does not exist'):
    _batches(tmp_path / 'absent')
  with pytest.raises(ConfigError, match='needs data.path'):
    make_batches(DataConfig(name='bytes'), batch_size=4, seed=0)
  (tmp_path / 'nothing').mkdir()
  with pytest.raises(ConfigError, match='holds no files'):
    _batches(tmp_path / 'nothing')
  (tmp_path / 'empty').write_bytes(b'')
  with pytest.raises(ConfigError, match=r"split 'all' holds no bytes \(1 files\)"):
    _batches(tmp_path / 'empty')
