"""A keep-list shows training the kept records only, as if there had never been others."""

import dataclasses
import io
import sys
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmm.config import ConfigError, from_mapping
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.data.sources import ArraySource, write_array_records
from tests.references.kept_records import kept_only, write_list, write_texts

TEXTS = [{'text': f'text {i} ' * (i % 4 + 1), 'key': f'k{i}'} for i in range(40)]
FORMATS = ('jsonl', 'jsonl.gz', 'jsonl.zst', 'parquet', 'array_record-00000-of-00001')
SIZE = 4


def _data(path, **rest):
  text = {'length': 16, 'bos_id': 257, 'eos_id': 256, 'packing': 'first_fit'}
  values = {'name': 'text', 'path': str(path), 'split': 'all', 'text': text} | rest
  return from_mapping(DataConfig, values, 'data')


def _pictures(path, **rest):
  return DataConfig(**{'name': 'images', 'path': str(path), 'image_size': SIZE} | rest)


def _batches(config, **rest):
  return make_batches(config, **{'batch_size': 4, 'seed': 3} | rest)


def _ids(path, **fields):
  """What the corpus calls the records."""
  config = CorpusConfig((str(path),), **fields)
  return [e.id for shard in corpus.shards(config) for e in corpus.examples(shard, config)]


def _some(ids):
  return {name: i % 3 != 1 and i != 6 for i, name in enumerate(ids)}


def _assert_same_rows(a, b, steps=12):
  for step in range(steps):
    one, other = a.at(step), b.at(step)
    assert set(one) == set(other)
    for name in one:
      np.testing.assert_array_equal(one[name], other[name], err_msg=f'{step} {name}')


def _picture(i):
  out = io.BytesIO()
  array = np.random.default_rng(i).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
  Image.fromarray(array).save(out, 'PNG')
  return out.getvalue()


@pytest.fixture
def folder(tmp_path):
  """Pictures in split folders and classes, and a file that is none."""
  for i in range(30):
    file = tmp_path / 'pictures' / ('train' if i < 24 else 'val') / 'ab'[i % 2] / f'{i:02d}.png'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(_picture(i))
  (tmp_path / 'pictures' / 'notes.csv').write_text('')
  return tmp_path / 'pictures'


@pytest.mark.parametrize('fmt', FORMATS)
@pytest.mark.parametrize('id_field', ['', 'key'])
def test_text_of_every_format_is_packed_as_if_the_dropped_had_never_been(tmp_path, fmt, id_field):
  write_texts(tmp_path / 'in' / f'x.{fmt}', TEXTS)
  verdicts = _some(ids := _ids(tmp_path / 'in', id_field=id_field))
  assert ids[7] == ('k7' if id_field else f'x.{fmt}:{7 + ("json" in fmt)}')
  write_texts(tmp_path / 'only' / f'x.{fmt}', kept_only(TEXTS, ids, verdicts))
  where = write_list(tmp_path / 'keep.parquet', verdicts)
  batches = _batches(_data(tmp_path / 'in', keep_list=str(where), id_field=id_field))
  expected = _batches(_data(tmp_path / 'only'))
  assert batches.num_records == expected.num_records and batches.kept_fingerprint
  assert not expected.kept_fingerprint
  _assert_same_rows(batches, expected)


def test_folders_of_text_files_have_the_ids_of_their_corpus(tmp_path):
  for i, record in enumerate(TEXTS[:9]):
    file = tmp_path / 'in' / 'ab'[i % 2] / f'{i}.txt'
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(record['text'])
  (tmp_path / 'in' / 'a' / 'x.py').write_text('no text for training')
  where = write_list(tmp_path / 'k.parquet', _some(_ids(tmp_path / 'in', suffixes=('.txt',))))
  batches = _batches(_data(tmp_path / 'in', keep_list=str(where)), batch_size=1, train=False)
  assert 'a/0.txt' in batches.describe(0)
  where = write_list(tmp_path / 'k.parquet', _some(_ids(tmp_path / 'in')))
  with pytest.raises(ConfigError, match="first: 'a/x.py'.*left out with --suffix"):
    _batches(_data(tmp_path / 'in', keep_list=str(where)))
  text = {'length': 16, 'suffixes': ['.py', '.txt']}
  batches = _batches(_data(tmp_path / 'in', text=text, keep_list=str(where)))
  assert len(batches.source.documents) == 6
  verdicts = _some(_ids(tmp_path / 'in', exclude=('x.py', 'b')))
  where = write_list(tmp_path / 'k.parquet', verdicts)
  text |= {'exclude': ['x.py', 'b']}
  batches = _batches(_data(tmp_path / 'in', text=text, keep_list=str(where)))
  assert len(verdicts) == 5 and len(batches.source.documents) == sum(verdicts.values())


def test_one_list_of_the_whole_serves_its_training_part(tmp_path, folder):
  # By hash and by folders; what the list says of the held-out part changes nothing.
  write_texts(tmp_path / 'x.jsonl', TEXTS)
  verdicts = _some(ids := _ids(tmp_path / 'x.jsonl'))
  where = str(write_list(tmp_path / 'k.parquet', verdicts))
  batches = _batches(_data(tmp_path / 'x.jsonl', split='train', test_fraction=0.4, keep_list=where))
  held_out = _batches(_data(tmp_path / 'x.jsonl', split='test', test_fraction=0.4), train=False)
  of_test = {n for i in range(held_out.num_records) for n in ids if f'{n} ' in held_out.describe(i)}
  flipped = {n: not keep if n in of_test else keep for n, keep in verdicts.items()}
  again = str(write_list(tmp_path / 'flipped.parquet', flipped))
  other = _batches(_data(tmp_path / 'x.jsonl', split='train', test_fraction=0.4, keep_list=again))
  assert of_test and other.kept_fingerprint == batches.kept_fingerprint
  _assert_same_rows(batches, other, 3)
  where = write_list(tmp_path / 'p.parquet', _some(_ids(folder, suffixes=('.png',))))
  batches = _batches(_pictures(folder, keep_list=str(where)))
  assert batches.num_records == 15
  only_train = {n: keep for n, keep in _some(_ids(folder, suffixes=('.png',))).items() if 'tr' in n}
  one = _batches(_pictures(folder, keep_list=str(write_list(tmp_path / 't.parquet', only_train))))
  assert one.kept_fingerprint == batches.kept_fingerprint
  _assert_same_rows(one, batches, 3)


@pytest.mark.parametrize('zipped', [False, True])
def test_pictures_by_their_files(tmp_path, folder, zipped):
  verdicts = _some(_ids(folder, suffixes=('.png',)))
  where = str(write_list(tmp_path / 'k.parquet', verdicts))
  path = folder
  if zipped:
    path = tmp_path / 'pictures.zip'
    with zipfile.ZipFile(path, 'w') as archive:
      for name in (*verdicts, 'notes.csv'):
        archive.write(folder / name, name)
    assert _ids(path) == list(verdicts)
  batches = _batches(_pictures(path, split='all', keep_list=where))
  for name, keep in verdicts.items():
    if not keep:
      (folder / name).unlink()
  _assert_same_rows(batches, _batches(_pictures(folder, split='all')))


@pytest.mark.parametrize('layout', ['one', 'folder', 'splits', 'pattern'])
@pytest.mark.parametrize('id_field', ['', 'key'])
def test_array_records_by_file_and_record_or_by_a_field(tmp_path, layout, id_field):
  records = [{'image': _picture(i), 'label': i % 3, 'key': f'k{i}'} for i in range(18)]
  root = tmp_path / 'in'
  (root / 'test').mkdir(parents=True)
  parts = {'one': ['x'], 'folder': 'xy', 'splits': ['train/x', 'test/y'], 'pattern': 'xy'}[layout]
  for n, part in enumerate(parts):
    (root / part).parent.mkdir(exist_ok=True)
    write_array_records(root / f'{part}.array_record', records[n :: len(parts)])
  path = {'one': root / 'x.array_record', 'pattern': root / '*.array_record'}.get(layout, root)
  verdicts = _some(_ids(path, text_field='', id_field=id_field))
  assert len(verdicts) == 18
  where = write_list(tmp_path / 'k.parquet', verdicts)
  split = 'train' if layout == 'splits' else 'all'
  config = dict(name='array_record', path=str(path), split=split, image_size=SIZE)
  batches = _batches(DataConfig(**config, keep_list=str(where), id_field=id_field))
  everything = _batches(DataConfig(**config, id_field=id_field), train=False)
  ids = [everything.source.id(i) for i in range(everything.num_records)]
  found = [row for b in batches.once() for row in b['image_BYXC'][b['valid_B'] > 0]]
  whole = [row for b in everything.once() for row in b['image_BYXC'][b['valid_B'] > 0]]
  np.testing.assert_array_equal(found, kept_only(whole, ids, verdicts))
  assert 0 < len(found) < len(whole)


def test_digits_and_arrays_by_their_number(tmp_path):
  name = lambda i: f'arrays[{i}]'
  source = ArraySource(np.random.default_rng(0).integers(0, 9, (20, SIZE, SIZE, 3), np.uint8))
  verdicts = _some([name(i) for i in range(20)])
  where = str(write_list(tmp_path / 'k.parquet', verdicts))
  rows = kept_only(list(range(20)), list(verdicts), verdicts)
  config = dict(name='arrays', image_size=SIZE, crop='random', flip=True)
  batches = _batches(DataConfig(**config, keep_list=where), source=source)
  _assert_same_rows(
    batches, _batches(DataConfig(**config), source=ArraySource(source.image_NYXC[rows]))
  )
  some = _batches(DataConfig(**config, keep_list=where, max_records=4), source=source, train=False)
  assert [some.describe(i) for i in range(4)] == [name(rows[i * len(rows) // 4]) for i in range(4)]
  assert some.kept_fingerprint == batches.kept_fingerprint
  write_list(tmp_path / 'k.parquet', {f'mnist5k/train[{i}]': i < 7 for i in range(4000)})
  assert _batches(DataConfig(keep_list=where, channels=1)).num_records == 7


def _kept_texts(tmp_path):
  write_texts(tmp_path / 'x.jsonl', TEXTS)
  where = write_list(tmp_path / 'k.parquet', _some(_ids(tmp_path / 'x.jsonl')))
  return _data(tmp_path / 'x.jsonl', keep_list=str(where))


@pytest.mark.parametrize('processes', [2, 4])
def test_a_run_goes_on_in_the_middle_on_any_number_of_processes(tmp_path, folder, processes):
  where = write_list(tmp_path / 'p.parquet', _some(_ids(folder, suffixes=('.png',))))
  for config in (_kept_texts(tmp_path), _pictures(folder, keep_list=str(where), flip=True)):
    stream = _batches(config).from_step(0)
    first = [next(stream) for _ in range(9)]
    stream.close()
    parts = [
      _batches(config, process_index=p, process_count=processes).from_step(5)
      for p in range(processes)
    ]
    for step in range(5, 9):
      rows = [next(part) for part in parts]
      for name, value in first[step].items():
        np.testing.assert_array_equal(value, np.concatenate([r[name] for r in rows]))
    for part in parts:
      part.close()


def test_every_kept_record_comes_once_an_epoch(tmp_path, folder):
  verdicts = _some(_ids(folder, suffixes=('.png',)))
  where = write_list(tmp_path / 'p.parquet', verdicts)
  batches = _batches(_pictures(folder, split='all', keep_list=str(where)), batch_size=19)
  assert batches.num_records == 19 == sum(verdicts.values())
  for epoch in range(2):
    seen = [batches.describe(r).removeprefix(f'{folder}/') for r in batches.record_ids(epoch)]
    assert sorted(seen) == sorted(name for name, keep in verdicts.items() if keep)


@given(
  st.sets(st.text(st.characters(codec='utf-8'), max_size=8), min_size=1, max_size=20),
  st.randoms(use_true_random=False),
)
@settings(max_examples=40, deadline=None)
def test_order_of_the_list_does_not_show(tmp_path_factory, ids, rng):
  tmp_path, ids = tmp_path_factory.mktemp('lists'), sorted(ids)
  verdicts = {name: rng.random() < 0.6 for name in ids} | {ids[0]: True}
  fingerprints = set()
  for n in range(2):
    order = rng.sample(ids, len(ids))
    path = write_list(tmp_path / f'{n}.parquet', {name: verdicts[name] for name in order})
    asked = kept.Verdicts(path)
    assert [asked.keeps(name) for name in ids] == [verdicts[name] for name in ids]
    fingerprints.add(asked.settled('the data'))
  assert len(fingerprints) == 1
  other = verdicts | {ids[-1]: not verdicts[ids[-1]]}
  if any(other.values()):
    asked = kept.Verdicts(write_list(tmp_path / 'other.parquet', other))
    assert [asked.keeps(name) for name in ids] and asked.settled('it') not in fingerprints


def test_a_list_in_parts_is_one_list(tmp_path):
  config = _kept_texts(tmp_path)
  verdicts = _some(_ids(tmp_path / 'x.jsonl'))
  for n in range(3):
    part = dict(list(verdicts.items())[n::3])
    write_list(tmp_path / 'parts' / f'part-{n:05}.parquet', part)
  in_parts = _data(tmp_path / 'x.jsonl', keep_list=str(tmp_path / 'parts'))
  assert _batches(in_parts).kept_fingerprint == _batches(config).kept_fingerprint


def test_a_list_of_other_data_is_refused_with_what_differs(tmp_path):
  config = _kept_texts(tmp_path)
  verdicts = _some(_ids(tmp_path / 'x.jsonl'))
  less = dict(list(verdicts.items())[2:])
  for found, messages in (
    (less, ["2 of the 40 ids of these data are not in the list (the first: 'x.jsonl:1')"]),
    (verdicts | {'y:1': True}, ["1 of the 41 ids of the list are not in the data (the first: 'y"]),
    (less | {'y:1': True}, ['2 of the 40 ids', ', and 1 of the 39 ids of the list']),
    ({'k1': True}, ['40 of the 40 ids', '--id-field, which data.id_field has to name']),
  ):
    write_list(tmp_path / 'k.parquet', found)
    with pytest.raises(ConfigError, match='belongs to other data') as refused:
      _batches(config)
    for message in messages:
      assert message in str(refused.value)


def test_a_list_that_keeps_nothing_is_refused(tmp_path, folder):
  config = _kept_texts(tmp_path)
  write_list(tmp_path / 'k.parquet', dict.fromkeys(_ids(tmp_path / 'x.jsonl'), False))
  with pytest.raises(ConfigError, match='keeps none of the 40 records'):
    _batches(config)
  none = dict.fromkeys(_ids(folder, suffixes=('.png',)), False)
  where = write_list(tmp_path / 'p.parquet', none | {'val/a/24.png': True})
  with pytest.raises(ConfigError, match="keeps none of the 24 records of data 'images'"):
    _batches(_pictures(folder, keep_list=str(where)))


def test_text_that_has_changed_since_is_refused(tmp_path):
  write_texts(tmp_path / 'x.jsonl', TEXTS)
  config = CorpusConfig((str(tmp_path / 'x.jsonl'),))
  (shard,) = corpus.shards(config)
  found = list(corpus.examples(shard, config))
  digest_N = np.array([kept.digest(e.id, e.content) for e in found], np.uint64)
  where = write_list(tmp_path / 'k.parquet', _some([e.id for e in found]), digest=digest_N)
  data = _data(tmp_path / 'x.jsonl', keep_list=str(where))
  before = _batches(data).kept_fingerprint
  write_texts(tmp_path / 'x.jsonl', [*TEXTS[:5], {'text': 'another'}, *TEXTS[6:]])
  with pytest.raises(ConfigError, match=r"1 records .* \(the first: 'x.jsonl:6'\); make it anew"):
    _batches(data)
  unchecked = _data(tmp_path / 'x.jsonl', keep_list=str(where), check_digests=False)
  assert _batches(unchecked).kept_fingerprint == before


def test_without_a_list_nobody_asks_for_ids(tmp_path):
  write_texts(tmp_path / 'x.jsonl', TEXTS)
  expected = _batches(_data(tmp_path / 'x.jsonl'))
  _assert_same_rows(_batches(_data(tmp_path / 'x.jsonl', id_field='absent')), expected)
  held_out = dict(split='test', test_fraction=0.3)
  by_place = _batches(_data(tmp_path / 'x.jsonl', **held_out), train=False)
  by_id = _batches(_data(tmp_path / 'x.jsonl', id_field='key', **held_out), train=False)
  assert [by_id.describe(i) for i in range(3)] == [by_place.describe(i) for i in range(3)]


def test_unreadable_records_that_a_list_drops_are_no_trouble(tmp_path):
  records = [*TEXTS[:5], b'{"text": ', {'text': ''}, {'n': 1}]
  write_texts(tmp_path / 'x.jsonl', records)
  ids = _ids(tmp_path / 'x.jsonl')
  where = write_list(tmp_path / 'k.parquet', {name: i < 5 for i, name in enumerate(ids)})
  batches = _batches(_data(tmp_path / 'x.jsonl', keep_list=str(where), max_bad_fraction=0.0))
  write_texts(tmp_path / 'y.jsonl', records[:5])
  _assert_same_rows(batches, _batches(_data(tmp_path / 'y.jsonl')))


_TEXT = st.text(st.characters(exclude_characters='\x00', codec='utf-8'), max_size=9)
_LINES = st.lists(
  st.one_of(
    st.builds(lambda text: {'text': text}, _TEXT),
    st.builds(lambda text, key: {'text': text, 'key': key}, _TEXT, st.integers(0, 999)),
    st.sampled_from([{'n': 1}, b'{"text": ', b'[1]', b'{"text": "\xff"}', b'{"text": "\\ud83d"}']),
  ),
  min_size=1,
  max_size=12,
  unique_by=lambda line: line.get('key', id(line)) if isinstance(line, dict) else id(line),
)


@given(_LINES, st.randoms(use_true_random=False), st.sampled_from(['', 'key']))
@settings(max_examples=60, deadline=None)
def test_whatever_stands_in_the_lines(tmp_path_factory, lines, rng, id_field):
  path = tmp_path_factory.mktemp('lines') / 'x.jsonl'
  lines = [{'text': 'at least one', 'key': 1000}, *lines]
  write_texts(path, lines)
  # The oracle of ids and of what can be trained on.
  has_id = lambda line: isinstance(line, dict) and 'key' in line and id_field
  ids = [str(x['key']) if has_id(x) else f'x.jsonl:{n}' for n, x in enumerate(lines, 1)]
  can = [isinstance(x, dict) and 'text' in x and (has_id(x) or not id_field) for x in lines]
  assert ids == _ids(path, id_field=id_field)
  verdicts = {name: ok and rng.random() < 0.7 for name, ok in zip(ids, can)} | {ids[0]: True}
  where = write_list(path.with_name('k.parquet'), verdicts)
  batches = _batches(_data(path, keep_list=str(where), id_field=id_field, max_bad_fraction=0.0))
  expected = [
    t for line in kept_only(lines, ids, verdicts) if line['text']
    for t in (257, *line['text'].encode(), 256)
  ]  # fmt: skip
  assert batches.source.documents.ids_T.tolist() == expected


def test_files_that_break_off_go_on_with_what_a_list_keeps(tmp_path):
  path = tmp_path / 'x.jsonl.gz'
  write_texts(path, [{'text': str(np.random.default_rng(i).random(20))} for i in range(900)])
  path.write_bytes(path.read_bytes()[:-3000])
  verdicts = {name: not name.endswith('broken') for name in _ids(path)}
  assert 100 < len(verdicts) < 900
  where = write_list(tmp_path / 'k.parquet', verdicts)
  assert len(_batches(_data(path, keep_list=str(where))).source.documents) == len(verdicts) - 1


def test_lists_that_cannot_be_used_say_so(tmp_path, folder):
  config = _kept_texts(tmp_path)
  path = tmp_path / 'k.parquet'
  good = pq.read_table(path)
  nulls = pa.array([None, *good['id'].to_pylist()[1:]], pa.string())
  for table, message in (
    (good.drop_columns(['keep']), "has columns .* a keep-list has 'keep'"),
    (good.set_column(1, 'keep', good['id']), "column 'keep' is string, expected bool"),
    (good.set_column(0, 'id', nulls), "column 'id' has 1 nulls"),
    (pa.concat_tables([good, good.slice(3, 1)]), "has the id 'x.jsonl:4' more than once"),
  ):
    pq.write_table(table, path)
    with pytest.raises(ConfigError, match=message):
      _batches(config)
  path.write_text('no Parquet')
  with pytest.raises(ConfigError, match='cannot be read as Parquet'):
    _batches(config)
  path.unlink()
  with pytest.raises(ConfigError, match='no keep-list there; `jaxmm curate'):
    _batches(config)
  with pytest.raises(ConfigError, match="'images' have no fields"):
    _batches(_pictures(folder, keep_list=str(path), id_field='key'))


def test_data_without_ids_or_with_one_twice_is_refused(tmp_path):
  write_texts(tmp_path / 'x.jsonl', [*TEXTS, TEXTS[3]])
  where = str(write_list(tmp_path / 'k.parquet', {r['key']: True for r in TEXTS}))
  with pytest.raises(ConfigError, match="the id 'k3' more than once"):
    _batches(_data(tmp_path / 'x.jsonl', keep_list=where, id_field='key'))

  class Nameless:
    num_classes = 1

    def __len__(self):
      return 3

  with pytest.raises(ConfigError, match=r'have no ids.*jaxmm tokenize.*method id\(i\)'):
    _batches(DataConfig(name='arrays', keep_list=where), source=Nameless())


def test_without_pyarrow_it_says_what_to_install(tmp_path, monkeypatch):
  config = _kept_texts(tmp_path)
  monkeypatch.setitem(sys.modules, 'pyarrow.parquet', None)
  with pytest.raises(ConfigError, match=r"pip install 'jaxmm\[curation\]'"):
    _batches(config)
  assert _batches(_data(tmp_path / 'x.jsonl')).num_records


def _digests(path, **fields):
  config = CorpusConfig((str(path),), **fields)
  found = [e for shard in corpus.shards(config) for e in corpus.examples(shard, config)]
  return np.array([kept.digest(e.id, e.content) for e in found], np.uint64)


@pytest.mark.parametrize('kind', ['folder', 'zip'])
def test_other_pictures_of_the_same_names_are_refused(tmp_path, folder, kind):
  path = folder
  names = _ids(folder, suffixes=('.png',))
  if kind == 'zip':
    path = tmp_path / 'p.zip'

  def write(shift):
    for i, name in enumerate(names):
      (folder / name).write_bytes(_picture(i + shift))
    if kind == 'zip':
      with zipfile.ZipFile(path, 'w') as archive:
        for name in names:
          archive.write(folder / name, name)

  write(0)
  digest_N = _digests(path, suffixes=('.png',))
  where = str(write_list(tmp_path / 'k.parquet', _some(names), digest=digest_N))
  config = _pictures(path, keep_list=where)
  before = [_batches(config).at(step)['image_BYXC'] for step in range(8)]
  write(1)
  with pytest.raises(ConfigError, match=r"k.parquet': the record '.*png' is another than when"):
    _batches(config).at(0)
  with pytest.raises(ConfigError, match='make it anew.*data.check_digests=False'):
    list(_batches(dataclasses.replace(config, threads=2)).once())
  with pytest.raises(ConfigError, match='is another than when'):
    _batches(dataclasses.replace(config, max_records=3)).at(0)
  unchecked = _batches(dataclasses.replace(config, check_digests=False))
  assert unchecked.kept_fingerprint and np.any(unchecked.at(0)['image_BYXC'] != before[0])


@pytest.mark.parametrize('fields', [('', 'image'), ('cap', ''), ('cap', 'image')])
def test_array_records_are_compared_with_what_the_list_was_made_of(tmp_path, fields):
  path = tmp_path / 'x.array_record'

  def write(word, shift):
    records = [{'image': _picture(i + shift), 'label': 0, 'cap': f'{word} {i}'} for i in range(9)]
    write_array_records(path, records)

  write('cap', 0)
  made_of = dict(zip(('text_field', 'image_field'), fields))
  digest_N = _digests(path, **made_of)
  where = str(write_list(tmp_path / 'k.parquet', _some(_ids(path)), digest=digest_N))
  values = {'name': 'array_record', 'path': str(path), 'split': 'all', 'image_size': SIZE}
  config = from_mapping(DataConfig, values | {'keep_list': where, 'text': {'field': 'cap'}}, 'data')
  batches = _batches(config)
  assert batches.at(0)['valid_B'].all() and batches.num_records == 5
  for word, shift in (('other', 0), ('cap', 1)):
    write(word, shift)
    if fields == (('', 'image') if word == 'other' else ('cap', '')):
      assert _batches(config).at(0)['valid_B'].all()  # the list did not look at that field
    else:
      with pytest.raises(ConfigError, match='is another than when the list was made'):
        _batches(config).at(0)


def test_records_without_bytes_are_known_by_their_ids_and_that_is_said(tmp_path, caplog):
  source = ArraySource(np.zeros((4, SIZE, SIZE, 3), np.uint8))
  verdicts = {f'arrays[{i}]': i > 1 for i in range(4)}
  where = str(write_list(tmp_path / 'k.parquet', verdicts, digest=np.arange(4, dtype=np.uint64)))
  config = DataConfig(name='arrays', image_size=SIZE, keep_list=where)
  assert _batches(config, source=source, batch_size=2).at(0)['valid_B'].all()
  assert 'by ids alone' in caplog.text
