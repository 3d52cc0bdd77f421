"""The chain from records to batches: the same rows on any number of processes, from any step."""

import collections
import io
import threading
import zipfile

import numpy as np
import pytest
from PIL import Image

from jaxmm.config import ConfigError, from_mapping
from jaxmm.data.array_store import ArrayStoreWriter
from jaxmm.data.pipeline import DataConfig, TooManyBadRecords, make_batches
from jaxmm.data.sources import ArraySource, array_record_source, write_array_records

SIZE = 6


def _picture(i: int, size: int = SIZE) -> np.ndarray:
  return np.random.default_rng(i).integers(0, 256, (size, size, 3), np.uint8)


def _encoded(array: np.ndarray, kind: str = 'PNG') -> bytes:
  out = io.BytesIO()
  Image.fromarray(array).save(out, kind)
  return out.getvalue()


def _arrays(n: int = 21) -> ArraySource:
  return ArraySource(np.stack([_picture(i) for i in range(n)]), np.arange(n) % 3)


def _batches(config=None, *, batch_size=8, seed=5, source=None, **rest):
  config = config or DataConfig(name='arrays', image_size=SIZE, flip=True, crop='random')
  source = _arrays() if source is None and config.name == 'arrays' else source
  return make_batches(config, batch_size=batch_size, seed=seed, source=source, **rest)


@pytest.fixture
def folder(tmp_path):
  """Twelve pictures in two classes."""
  for i in range(12):
    file = tmp_path / 'pictures' / 'ab'[i % 2] / f'{i:02d}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_encoded(_picture(i)))
  return tmp_path / 'pictures'


def _folder_config(folder, **rest):
  return DataConfig(
    **{'name': 'images', 'path': str(folder), 'split': 'all', 'image_size': SIZE} | rest
  )


def _assert_same(a, b):
  assert set(a) == set(b)
  for name in a:
    np.testing.assert_array_equal(a[name], b[name], err_msg=name)
    assert a[name].dtype == b[name].dtype


@pytest.mark.parametrize('processes', [2, 4])
def test_the_same_rows_on_any_number_of_processes(processes):
  alone = _batches()
  for step in (0, 3, 11):
    parts = [_batches(process_index=p, process_count=processes).at(step) for p in range(processes)]
    assert all(len(part['index_B']) == 8 // processes for part in parts)
    _assert_same(alone.at(step), {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})


def test_a_run_goes_on_from_any_step_with_other_processes():
  stream = _batches().from_step(0)
  first = [next(stream) for _ in range(7)]
  stream.close()
  for start in (1, 4):
    halves = [_batches(process_index=p, process_count=2).from_step(start) for p in range(2)]
    for step in range(start, 7):
      parts = [next(h) for h in halves]
      _assert_same(first[step], {k: np.concatenate([p[k] for p in parts]) for k in parts[0]})
    for half in halves:
      half.close()


def test_every_record_once_an_epoch_and_epochs_differ():
  batches = _batches(batch_size=7)
  ids = np.concatenate([batches.record_ids(s) for s in range(9)]).reshape(3, 21)
  for epoch in ids:
    assert sorted(epoch) == list(range(21))
  assert not np.array_equal(ids[0], ids[1]) and not np.array_equal(ids[1], ids[2])
  read = np.concatenate([batches.at(s)['record_B'] for s in range(9)])
  np.testing.assert_array_equal(read, ids.ravel())
  index = np.concatenate([batches.at(s)['index_B'] for s in range(9)])
  np.testing.assert_array_equal(index, np.arange(63))
  other = _batches(batch_size=7, seed=6)
  assert not np.array_equal(other.record_ids(0), batches.record_ids(0))


def test_large_sets_are_in_the_same_order_as_their_chain():
  # The order of a small set is kept, that of a large one computed record by record.
  source = ArraySource(np.zeros((5000, 1, 1, 3), np.uint8))
  batches = _batches(DataConfig(name='arrays', image_size=1), source=source, batch_size=5000)
  assert sorted(batches.record_ids(1)) == list(range(5000))


def test_batch_contents_shapes_and_types():
  source = _arrays()
  config = DataConfig(name='arrays', image_size=SIZE, crop='none')
  batch = _batches(config, source=source).at(2)
  assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
    'image_BYXC': ((8, SIZE, SIZE, 3), np.uint8),
    'label_B': ((8,), np.int32),
    'index_B': ((8,), np.uint32),
    'record_B': ((8,), np.int32),
    'valid_B': ((8,), np.float32),
  }
  np.testing.assert_array_equal(batch['image_BYXC'], source.image_NYXC[batch['record_B']])
  np.testing.assert_array_equal(batch['label_B'], batch['record_B'] % 3)
  assert batch['valid_B'].all()


def test_examples_are_flipped_by_their_index_and_never_in_evaluation():
  source = _arrays()
  config = DataConfig(name='arrays', image_size=SIZE, crop='none', flip=True)
  train = _batches(config, source=source)
  flipped, of_record = [], collections.defaultdict(set)
  for step in range(8):
    batch = train.at(step)
    for image, record in zip(batch['image_BYXC'], batch['record_B'], strict=True):
      plain = source.image_NYXC[record]
      flipped.append(np.array_equal(image, plain[:, ::-1]))
      assert flipped[-1] or np.array_equal(image, plain)
      of_record[int(record)].add(flipped[-1])
  assert 10 < sum(flipped) < 54
  # Another epoch is another draw.
  assert sum(len(both) == 2 for both in of_record.values()) > 5
  evaluation = _batches(config, source=source, train=False).at(1)
  np.testing.assert_array_equal(evaluation['record_B'], np.arange(8, 16))
  np.testing.assert_array_equal(evaluation['image_BYXC'], source.image_NYXC[8:16])


def test_one_pass_is_padded_with_rows_without_weight():
  for processes in (1, 2):
    parts = [
      list(_batches(process_index=p, process_count=processes, train=False).once())
      for p in range(processes)
    ]
    assert [len(p) for p in parts] == [3] * processes
    record = np.concatenate([np.concatenate([p[s]['record_B'] for p in parts]) for s in range(3)])
    valid = np.concatenate([np.concatenate([p[s]['valid_B'] for p in parts]) for s in range(3)])
    np.testing.assert_array_equal(record, [*range(21), -1, -1, -1])
    np.testing.assert_array_equal(valid, record >= 0)


@pytest.mark.parametrize('crop', ['center', 'random'])
def test_the_cache_changes_nothing(folder, crop):
  plain = _batches(_folder_config(folder, crop=crop, flip=True))
  cached = _batches(_folder_config(folder, crop=crop, flip=True, cache=True))
  for step in (0, 1, 0, 4):
    _assert_same(plain.at(step), cached.at(step))
  tight = _batches(_folder_config(folder, cache=True, cache_gib=1e-7))
  with pytest.raises(ConfigError, match='data.cache_gib=1e-07'):
    tight.at(0)


def test_reading_ahead_gives_the_same_and_leaves_no_threads(folder):
  before = {t.name for t in threading.enumerate()}
  ahead = _batches(_folder_config(folder, threads=3, prefetch=5))
  now = _batches(_folder_config(folder, threads=0))
  stream = ahead.from_step(2)
  for step in range(2, 8):
    _assert_same(next(stream), now.at(step))
  stream.close()
  for thread in threading.enumerate():
    if thread.name.startswith('grain-prefetch') and thread.name not in before:
      thread.join(5)
      assert not thread.is_alive()


def test_unreadable_pictures_are_rows_without_weight_and_named(folder):
  whole = (folder / 'a' / '02.png').read_bytes()
  (folder / 'a' / '02.png').write_bytes(whole[: len(whole) // 2])
  (folder / 'b' / '05.png').write_bytes(b'no picture')
  truncated = _encoded(_picture(3, 40), 'JPEG')
  (folder / 'b' / '07.jpg').write_bytes(truncated[: len(truncated) // 2])
  batches = _batches(_folder_config(folder, max_bad_fraction=0.5), batch_size=13, train=False)
  batch = batches.at(0)
  bad = np.flatnonzero(batch['valid_B'] == 0)
  assert [batches.describe(r).split('/')[-1].split()[0] for r in batch['record_B'][bad]] == [
    '02.png',
    '05.png',
    '07.jpg',
  ]
  assert 'no picture of a known format' in batches.describe(batch['record_B'][bad[1]])
  assert not batch['image_BYXC'][bad].any() and len(batches.bad) == 3
  assert batches.at(0)['valid_B'].sum() == 10 and len(batches.bad) == 3
  good = batch['valid_B'] == 1
  assert all('(unreadable' not in batches.describe(r) for r in batch['record_B'][good])


def test_too_many_unreadable_pictures_stop_and_name_the_first(folder):
  for i in (1, 3):
    (folder / 'b' / f'{i:02d}.png').write_bytes(b'')
  with pytest.raises(TooManyBadRecords, match=r'b/01.png.*max_bad_fraction') as error:
    list(_batches(_folder_config(folder, max_bad_fraction=0.1), train=False).once())
  assert '2 unreadable records of the first ' in str(error.value) and '03.png' in str(error.value)


def test_settings_that_cannot_be_used_say_so(folder, tmp_path):
  (tmp_path / 'empty').mkdir()
  cases = [
    ({'name': 'cifar'}, r"'cifar'.*did you mean.*cifar10"),
    ({'name': 'mnist5'}, r"'mnist5'.*mnist5k"),
    ({'name': 'qqq'}, r'known are mnist5k'),
    ({'name': 'images'}, 'needs data.path'),
    ({'name': 'arrays'}, 'source=ArraySource'),
    ({'name': 'images', 'path': str(tmp_path / 'empty')}, 'holds no pictures'),
    ({'name': 'images', 'path': str(tmp_path / 'absent')}, 'does not exist'),
    ({'name': 'images', 'path': str(folder), 'split': 'valid'}, "split is 'valid'"),
    ({'name': 'tokens', 'path': str(tmp_path / 'absent')}, 'no such directory'),
    ({'name': 'array_record', 'path': str(tmp_path / 'absent')}, 'nothing there matches'),
  ]
  for kwargs, message in cases:
    with pytest.raises(ConfigError, match=message):
      make_batches(DataConfig(**kwargs), batch_size=4, seed=0)
  for kwargs, message in [
    ({'crop': 'middle'}, 'crop'),
    ({'channels': 4}, 'channels is 4'),
    ({'image_size': 0}, 'pixel'),
  ]:
    with pytest.raises(ConfigError, match=message):
      DataConfig(**kwargs)
  with pytest.raises(ConfigError, match='did you mean image_size'):
    from_mapping(DataConfig, {'imagesize': 3}, 'data')
  with pytest.raises(ConfigError, match='multiple of the 3 processes'):
    _batches(process_count=3)
  with pytest.raises(IndexError, match='negative'):
    _batches().at(-1)


def test_wrong_pictures_are_errors_that_name_them(folder):
  with pytest.raises(ConfigError, match=r'a/00.png is 6x6, but data.image_size is 8'):
    _batches(_folder_config(folder, image_size=8, crop='none'), train=False).at(0)
  with pytest.raises(ConfigError, match=r'a/00.png has 3 channels.*data.channels is 1'):
    _batches(_folder_config(folder, channels=1), train=False).at(0)
  grey = _batches(_folder_config(folder, channels=1, convert_channels=True), train=False).at(0)
  assert grey['image_BYXC'].shape == (8, SIZE, SIZE, 1)
  # Folders say at once how many classes there are, other sources record by record.
  with pytest.raises(ConfigError, match=r"has class id 1, but data.num_classes is 1 .* is 'b'"):
    _batches(_folder_config(folder, num_classes=1), train=False)
  digits = make_batches(DataConfig(channels=1, num_classes=5), batch_size=500, seed=0, train=False)
  with pytest.raises(ConfigError, match=r'train\[\d+\] has class id 5, but data.num_classes is 5'):
    list(digits.once())


def test_mnist5k_comes_with_a_package_and_a_fixed_split():
  train = make_batches(DataConfig(channels=1), batch_size=50, seed=0, train=False)
  test = make_batches(DataConfig(channels=1, split='test'), batch_size=50, seed=0, train=False)
  assert (train.num_records, test.num_records, train.num_classes) == (4000, 1000, 10)
  labels = collections.Counter(int(label) for b in test.once() for label in b['label_B'])
  assert labels == dict.fromkeys(range(10), 100)
  batch = make_batches(
    DataConfig(image_size=32, crop='pad', convert_channels=True), batch_size=4, seed=0
  ).at(0)
  assert batch['image_BYXC'].shape == (4, 32, 32, 3)
  assert not batch['image_BYXC'][:, :2].any() and batch['image_BYXC'].any()


def test_array_records_are_read_at_random(tmp_path):
  records = [{'image': _encoded(_picture(i)), 'label': i % 3} for i in range(9)]
  records[4]['image'] = b'broken'
  write_array_records(tmp_path / 'x.array_record', records)
  config = DataConfig(
    name='array_record', path=str(tmp_path), split='all', image_size=SIZE, max_bad_fraction=0.2
  )
  batch = _batches(config, batch_size=9).at(0)
  for image, record, valid in zip(batch['image_BYXC'], batch['record_B'], batch['valid_B']):
    assert valid == (record != 4)
    np.testing.assert_array_equal(image, _picture(record) if valid else 0)
  np.testing.assert_array_equal(batch['label_B'], batch['record_B'] % 3 * batch['valid_B'])
  parts = [array_record_source(str(tmp_path), split, 0.5) for split in ('train', 'test')]
  assert sum(map(len, parts)) == 9 and all(map(len, parts))
  (tmp_path / 'test').mkdir()
  write_array_records(tmp_path / 'test' / 'y.array_record', records[:2])
  assert len(array_record_source(str(tmp_path), 'test', 0.5)) == 2


def test_max_records_are_evenly_spaced(folder):
  batches = _batches(_folder_config(folder, max_records=3), batch_size=3, train=False)
  assert batches.num_records == 3
  assert [batches.describe(i)[-6:] for i in range(3)] == ['00.png', '08.png', '05.png']


def _store(path, num=10, views=4, length=5, split='train', invalid=()):
  shape = (length,) if views is None else (views, length)
  fields = {'codes': (shape, np.uint16), 'label': ((), np.int32), 'valid': ((), np.bool_)}
  writer = ArrayStoreWriter(path, fields, num, 4, {'split': split, 'num_classes': 3})
  codes = np.arange(num * int(np.prod(shape))).reshape(num, *shape)
  for k in range(writer.num_shards):
    rows = np.array(writer.rows(k))
    writer.write_shard(
      k, {'codes': codes[rows], 'label': rows % 3, 'valid': ~np.isin(rows, invalid)}
    )
  return codes


def test_tokens_pick_one_view_an_example(tmp_path):
  codes = _store(tmp_path / 'store')
  config = DataConfig(name='tokens', path=str(tmp_path / 'store'))
  batches = _batches(config, batch_size=10)
  seen = set()
  for step in range(24):
    batch = batches.at(step)
    assert batch['ids_BL'].shape == (10, 5) and batch['ids_BL'].dtype == np.int32
    for ids, record in zip(batch['ids_BL'], batch['record_B'], strict=True):
      view = int(np.flatnonzero((codes[record] == ids).all(axis=-1))[0])
      seen.add((int(record), view))
  assert len(seen) == 40  # every view of every record within 24 epochs (seed fixed)
  halves = [_batches(config, batch_size=10, process_index=p, process_count=2) for p in range(2)]
  np.testing.assert_array_equal(
    batches.at(3)['ids_BL'], np.concatenate([h.at(3)['ids_BL'] for h in halves])
  )
  evaluation = _batches(config, batch_size=10, train=False).at(0)
  np.testing.assert_array_equal(evaluation['ids_BL'], codes[:, 0])
  assert batches.num_classes == 3
  with pytest.raises(ConfigError, match='eval_view is 4, but there are 4 views'):
    _batches(DataConfig(name='tokens', path=str(tmp_path / 'store'), eval_view=4))


def test_tokens_know_their_split_and_their_unreadable_rows(tmp_path):
  codes = _store(tmp_path / 'store', views=None, invalid=[2])
  config = DataConfig(name='tokens', path=str(tmp_path / 'store'), max_bad_fraction=0.2)
  batch = _batches(config, batch_size=10, train=False).at(0)
  np.testing.assert_array_equal(batch['valid_B'], np.arange(10) != 2)
  np.testing.assert_array_equal(batch['ids_BL'][3:], codes[3:])
  with pytest.raises(ConfigError, match="split is 'test'.*store of split 'train'"):
    _batches(DataConfig(name='tokens', path=str(tmp_path / 'store'), split='test'))
  _store(tmp_path / 'both' / 'train', num=6)
  _store(tmp_path / 'both' / 'test', num=4, split='test')
  test = _batches(DataConfig(name='tokens', path=str(tmp_path / 'both'), split='test'))
  assert test.num_records == 4


def test_ten_crops_are_views_of_a_row(tmp_path):
  with zipfile.ZipFile(tmp_path / 'x.zip', 'w', zipfile.ZIP_DEFLATED) as archive:
    for i in range(3):
      archive.writestr(f'c/{i}.png', _encoded(_picture(i, 40)))
  config = DataConfig(
    name='images', path=str(tmp_path / 'x.zip'), split='all', image_size=20, crop='ten', flip=True
  )
  batch = _batches(config, batch_size=3, train=False).at(0)
  assert batch['image_BVYXC'].shape == (3, 20, 20, 20, 3) and 'image_BYXC' not in batch
  np.testing.assert_array_equal(batch['image_BVYXC'][:, 5], batch['image_BVYXC'][:, 0, :, ::-1])
