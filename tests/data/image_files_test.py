"""Pictures in folders and zips: order, classes, splits, and reading from threads and processes."""

import io
import multiprocessing
import os
import pickle
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from jaxmm.config import ConfigError
from jaxmm.data.image_files import ZipReader, image_source
from jaxmm.data.sources import UnreadableRecord


def _png(i: int) -> bytes:
  out = io.BytesIO()
  Image.fromarray(np.full((4, 4, 3), i, np.uint8)).save(out, 'PNG')
  return out.getvalue()


def _put(place, files: dict[str, bytes]):
  """The same files in a folder or, where `place` ends with .zip, in a zip."""
  if place.suffix == '.zip':
    with zipfile.ZipFile(place, 'w', zipfile.ZIP_DEFLATED) as archive:
      for name, data in files.items():
        # Stored and deflated members are both read.
        method = zipfile.ZIP_STORED if len(name) % 2 else zipfile.ZIP_DEFLATED
        archive.writestr(name, data, method)
  else:
    for name, data in files.items():
      (place / name).parent.mkdir(parents=True, exist_ok=True)
      (place / name).write_bytes(data)
  return str(place)


@pytest.fixture(params=['folder', 'pictures.zip'])
def place(request, tmp_path):
  return tmp_path / request.param


def test_classes_are_the_sorted_folders(place):
  files = {f'{c}/{i}.png': _png(i) for i in range(3) for c in ('dog', 'cat', 'ant')}
  path = _put(place, {**files, 'dog/readme.txt': b'', '__MACOSX/dog/0.png': b'', 'dog/.x.png': b''})
  source = image_source(path, 'all')
  assert [source.name(i) for i in range(len(source))] == [f'{path}/{f}' for f in sorted(files)]
  assert [source[i]['label'] for i in range(9)] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
  assert source.classes == ('ant', 'cat', 'dog') and source.num_classes == 3
  assert source[4]['image'] == _png(1)


def test_split_folders_are_splits_and_classes_have_one_number(place):
  files = {f'train/{c}/{i}.png': _png(i) for i in range(2) for c in ('a', 'b', 'c')}
  path = _put(place, {**files, 'val/c/9.png': _png(9)})
  assert len(image_source(path, 'train')) == 6 and len(image_source(path, 'all')) == 7
  test = image_source(path, 'test')
  assert len(test) == 1 and test[0]['label'] == 2
  only = _put(place.with_name('x' + place.name), files)
  with pytest.raises(ConfigError, match="split is 'test', but .* has only the folders train"):
    image_source(only, 'test')


def test_without_labels_all_pictures_count_wherever_they_lie(place):
  names = ['x.png', 'dog/2.png', 'dog/a/1.png', 'cat/9.png', '10.png']
  path = _put(place, {name: _png(i) for i, name in enumerate(names)})
  source = image_source(path, 'all', labels='none')
  assert [source.id(i) for i in range(5)] == sorted(names)
  assert [source[i]['label'] for i in range(5)] == [0] * 5 and source.num_classes is None
  with pytest.raises(ConfigError, match="set data.labels='none'"):
    image_source(path, 'all')
  splits = [image_source(path, split, 0.5, labels='none') for split in ('train', 'test')]
  assert sorted(s.id(i) for s in splits for i in range(len(s))) == sorted(names)
  other = _put(place.with_name('x' + place.name), {n: _png(9) for n in (*names[:4], '11.png')})
  digests = {image_source(p, 'all', labels='none').digest() for p in (path, other)}
  assert len(digests) == 2


def test_of_several_held_out_folders_the_labelled_one_counts(place):
  files = {
    f'{split}/{c}/{i}.png': _png(i) for split in ('train', 'Val') for i in (0, 1) for c in 'ab'
  }
  path = _put(place, {**files, 'test/7.png': _png(7), 'test/8.png': _png(8)})
  train, test = image_source(path, 'train'), image_source(path, 'test')
  assert train.classes == test.classes == ('a', 'b') and len(train) == len(test) == 4
  assert 'Val' in test.name(0) and [test[i]['label'] for i in range(4)] == [0, 0, 1, 1]
  assert len(image_source(path, 'all')) == 8
  # Where both have classes the first name counts, and only that.
  both = _put(place.with_name('y' + place.name), {**files, 'test/a/7.png': _png(7)})
  test = image_source(both, 'test')
  assert [test.name(i).rpartition('/')[2] for i in range(len(test))] == ['7.png']


def test_a_picture_beside_the_class_folders_has_no_class(place):
  path = _put(place, {'a/0.png': _png(0), 'b/1.png': _png(1), 'cover.png': _png(2)})
  with pytest.raises(ConfigError, match="'cover.png' lies beside the class folders a, b"):
    image_source(path, 'all')


def test_hashed_splits_part_the_files_and_never_move(place, tmp_path):
  files = {f'c/{i:03d}.png': _png(i % 250) for i in range(300)}
  path = _put(place, files)
  train, test = image_source(path, 'train', 0.2), image_source(path, 'test', 0.2)
  names = lambda s: {s.name(i).rpartition('/')[2] for i in range(len(s))}
  assert not names(train) & names(test) and len(train) + len(test) == 300
  assert 35 < len(test) < 85
  # More files, or another place, leave every file on its side.
  more = _put(tmp_path / 'more', {**files, 'c/new.png': _png(1)})
  assert names(test) - {'new.png'} == names(image_source(more, 'test', 0.2)) - {'new.png'}


def test_labels_come_from_a_csv(place, tmp_path):
  path = _put(place, {f'{i}.png': _png(i) for i in range(3)})
  table = tmp_path / 'labels.csv'
  table.write_text('file,class_index\n0.png,7\n2.png,1\n1.png,4\n')
  source = image_source(path, 'all', labels=str(table))
  assert [source[i]['label'] for i in range(3)] == [7, 4, 1] and source.num_classes == 8
  table.write_text('file,label\n0.png,dog\n1.png,cat\n2.png,dog\n')
  source = image_source(path, 'all', labels=str(table))
  assert [source[i]['label'] for i in range(3)] == [1, 0, 1] and source.classes == ('cat', 'dog')
  assert [image_source(path, 'all')[i]['label'] for i in range(3)] == [0, 0, 0]
  table.write_text('file,label\r\n0.png,2.0\r\n1.png, 10 \r\n2.png,0\r\n', encoding='utf-8-sig')
  source = image_source(path, 'all', labels=str(table))
  assert [source[i]['label'] for i in range(3)] == [2, 10, 0] and source.num_classes == 11
  for text, message in (
    ('file,label\n0.png,1\n1.png,-1\n2.png,0\n', "label of '1.png' is -1, expected a class id"),
    ('file,label\n0.png,1\n1.png,0.5\n2.png,0\n', "label of '1.png' is 0.5, expected a class id"),
    ('file,label\n0.png,1\n1.png,\n2.png,0\n', "label of '1.png' is empty"),
    ('file,label\n0.png,1\n', "no row for 2 pictures, first '1.png'"),
    ('name,label\n', 'expected `file`'),
  ):
    table.write_text(text)
    with pytest.raises(ConfigError, match=message):
      image_source(path, 'all', labels=str(table))
  with pytest.raises(ConfigError, match='does not exist'):
    image_source(path, 'all', labels=str(tmp_path / 'absent.csv'))


def _read_all(reader, expected, seed):
  order = np.random.default_rng(seed).permutation(list(expected))
  return all(reader(str(name)) == expected[name] for name in order for _ in range(3))


def _in_child(reader, expected, results):
  results.put(_read_all(reader, expected, 7))


def test_zips_are_read_by_threads_and_forked_processes_at_once(tmp_path):
  expected = {f'{i}.bin': os.urandom(3000 + i) for i in range(40)}
  _put(tmp_path / 'x.zip', expected)
  reader = ZipReader(tmp_path / 'x.zip')
  assert reader('3.bin') == expected['3.bin']  # the file is open before the fork
  results = multiprocessing.get_context('fork').Queue()
  children = [
    multiprocessing.get_context('fork').Process(target=_in_child, args=(reader, expected, results))
    for _ in range(2)
  ]
  for child in children:
    child.start()
  with ThreadPoolExecutor(4) as pool:
    assert all(pool.map(lambda seed: _read_all(reader, expected, seed), range(4)))
  assert [results.get(timeout=30) for _ in children] == [True, True]
  for child in children:
    child.join()
  assert pickle.loads(pickle.dumps(reader))('5.bin') == expected['5.bin']


def test_a_damaged_member_is_one_unreadable_record(tmp_path):
  path = _put(tmp_path / 'x.zip', {f'c/{i}.png': _png(i) for i in range(3)})
  data = bytearray((tmp_path / 'x.zip').read_bytes())
  at = data.index(b'c/1.png') + 30
  data[at] ^= 0xFF
  (tmp_path / 'x.zip').write_bytes(data)
  source = image_source(path, 'all')
  with pytest.raises(UnreadableRecord):
    source[1]
  assert source[0]['image'] == _png(0) and source[2]['image'] == _png(2)


def test_what_is_no_picture_set_is_refused(tmp_path):
  (tmp_path / 'x.zip').write_bytes(b'no zip')
  with pytest.raises(ConfigError, match='neither a folder nor a zip'):
    image_source(str(tmp_path / 'x.zip'), 'all')
  _put(tmp_path / 'y.zip', {'a.txt': b''})
  with pytest.raises(ConfigError, match='holds no pictures'):
    image_source(str(tmp_path / 'y.zip'), 'all')
  with zipfile.ZipFile(tmp_path / 'z.zip', 'w', zipfile.ZIP_BZIP2) as archive:
    archive.writestr('a.png', _png(0))
  with pytest.raises(ConfigError, match='a.png is encrypted or compressed by method 12'):
    image_source(str(tmp_path / 'z.zip'), 'all')
  path = _put(tmp_path / 'one', {'c/a.png': _png(0)})
  with pytest.raises(ConfigError, match='is empty'):
    image_source(path, 'test', 0.0)
