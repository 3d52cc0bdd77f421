"""Every format gives the same examples; what cannot be read is one, too, with its place and why."""

import dataclasses
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

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig
from jaxmm.data.sources import UnreadableRecord, array_record_image, write_array_records

TEXTS = ['one', 'zwei\n2', 'три', '']


def read(*inputs, **settings):
  config = CorpusConfig(tuple(map(str, inputs)), **settings)
  return [e for shard in corpus.shards(config) for e in corpus.examples(shard, config)]


def lines(texts=TEXTS):
  return b''.join(
    json.dumps({'text': t, 'key': f'k{i}'}).encode() + b'\n' for i, t in enumerate(texts)
  )


def write(path, fmt):
  records = [{'text': t, 'key': f'k{i}'} for i, t in enumerate(TEXTS)]
  if fmt == 'jsonl':
    path.write_bytes(lines())
  elif fmt == 'jsonl.gz':
    path.write_bytes(gzip.compress(lines()))
  elif fmt == 'jsonl.zst':
    with pa.output_stream(str(path), compression='zstd') as f:
      f.write(lines())
  elif fmt == 'parquet':
    pq.write_table(pa.Table.from_pylist(records), path)
  elif fmt == 'tar':
    with tarfile.open(path, 'w') as tar:
      for i, record in enumerate(records):
        for suffix, data in (('txt', record['text']), ('json', json.dumps({'key': record['key']}))):
          info = tarfile.TarInfo(f'{i:03}.{suffix}')
          info.size = len(data.encode())
          tar.addfile(info, io.BytesIO(data.encode()))
  else:
    from array_record.python import array_record_module

    writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
    for record in records:
      writer.write(json.dumps(record).encode())
    writer.close()


@pytest.mark.parametrize(
  'fmt', ['jsonl', 'jsonl.gz', 'jsonl.zst', 'parquet', 'tar', 'array_record-00000-of-00001']
)
def test_every_format_gives_the_same_examples(tmp_path, fmt):
  path = tmp_path / f'docs.{fmt}'
  write(path, fmt)
  found = read(path, id_field='key')
  assert [(e.id, e.text, e.error) for e in found] == [(f'k{i}', t, '') for i, t in enumerate(TEXTS)]
  numbered = [e.id for e in read(path)]
  assert len(set(numbered)) == 4 and all(n.startswith(f'docs.{fmt}:') for n in numbered)
  # In a folder, through a pattern, and by URL: the same.
  for given in (tmp_path, tmp_path / 'docs.*', f'file://{path}'):
    assert [dataclasses.replace(e, id='') for e in read(given)] == [
      dataclasses.replace(e, id='') for e in read(path)
    ]


def test_urls_are_read_through_fsspec(tmp_path):
  fs = fsspec.filesystem('memory')
  fs.pipe('/corpus/b/docs.jsonl.gz', gzip.compress(lines()))
  fs.pipe('/corpus/a.jsonl', lines())
  found = read('memory://corpus')
  assert [e.text for e in found] == TEXTS * 2
  assert [found[0].id, found[4].id] == ['a.jsonl:1', 'b/docs.jsonl.gz:1']
  assert [e.id for e in read('memory://corpus/*.jsonl')] == [f'a.jsonl:{i}' for i in (1, 2, 3, 4)]


def test_what_cannot_be_read_is_an_example_with_a_reason(tmp_path):
  path = tmp_path / 'bad.jsonl'
  path.write_bytes(
    b'{"text": "fine", "n": 7}\n\n{"text": "cut\n[1]\n{"n": 3}\n{"text": 5, "n": 4}\n'
    b'{"text": "\xff", "n": 5}\n{"text": "no id"}\n{"text": "true", "n": true}\n'
  )
  found = read(path, id_field='n')
  assert [e.id for e in found] == [
    '7', 'bad.jsonl:3', 'bad.jsonl:4', '3', '4', 'bad.jsonl:7', 'bad.jsonl:8', 'bad.jsonl:9',
  ]  # fmt: skip
  assert [bool(e.error) for e in found] == [False] + [True] * 7
  for example, said in zip(
    found[1:],
    ('JSONDecodeError', 'JSON list', "no text in field 'text'", "no text in field 'text'",
     'UnicodeDecodeError', "no id in field 'n'", "no id in field 'n'"),
  ):  # fmt: skip
    assert said in example.error


def test_a_file_that_breaks_off_says_so_after_what_it_holds(tmp_path):
  path = tmp_path / 'cut.jsonl.gz'
  path.write_bytes(gzip.compress(lines([str(i) * 999 for i in range(5000)]))[:-2000])
  found = read(path)
  assert len(found) > 100 and all(not e.error for e in found[:-1])
  assert found[-1].id == 'cut.jsonl.gz:broken' and str(len(found) - 1) in found[-1].error


def test_a_tree_of_sources_is_a_file_each(tmp_path):
  (tmp_path / 'a' / '.git').mkdir(parents=True)
  (tmp_path / 'a' / 'x.py').write_text('x = 1\n')
  (tmp_path / 'a' / 'y.md').write_text('y')
  (tmp_path / 'b.py').write_bytes(b'\xff\xfe')
  (tmp_path / 'a' / '.git' / 'z.py').write_text('hidden')
  found = read(tmp_path, suffixes=('.py',))
  assert [(e.id, e.text) for e in found] == [('a/x.py', 'x = 1\n'), ('b.py', None)]
  assert 'not UTF-8' in found[1].error


@pytest.mark.parametrize(
  ('patterns', 'left'),
  [
    ((), ['a/b/x.py', 'a/x.py', 'b/y.min.js', 'x.py']),
    (('b',), ['a/x.py', 'x.py']),
    (('a/b',), ['a/x.py', 'b/y.min.js', 'x.py']),
    (('a/b/',), ['a/x.py', 'b/y.min.js', 'x.py']),
    (('*.js', 'a/*'), ['x.py']),
    (('x.py',), ['b/y.min.js']),
    (('/b/',), ['a/x.py', 'x.py']),
  ],
)
def test_what_is_excluded(tmp_path, patterns, left):
  fs = fsspec.filesystem('memory')
  for name in ('x.py', 'a/x.py', 'a/b/x.py', 'b/y.min.js', '.git/x.py'):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(name)
    fs.pipe(f'/tree/{name}', name.encode())
  of = lambda *inputs: [
    s.name for s in corpus.shards(CorpusConfig(inputs, exclude=patterns, id_field='id'))
  ]
  assert of(str(tmp_path)) == left
  assert of('memory://tree') == left
  names = sorted(os.path.basename(name) for name in left)
  assert sorted(of(f'{tmp_path}/**/*')) == names
  if 'x.py' in left:
    assert of('memory://tree/*.py') == ['x.py']


def test_all_that_is_excluded_is_an_error(tmp_path):
  (tmp_path / 'x.jsonl').write_text('{}')
  for given in (tmp_path, tmp_path / 'x.jsonl', tmp_path / '*.jsonl'):
    with pytest.raises(ConfigError, match=r"nothing there to read but what exclude \('x.\*',\)"):
      corpus.shards(CorpusConfig((str(given),), exclude=('x.*',)))


def test_pictures_with_and_without_text(tmp_path):
  (tmp_path / 'p.png').write_bytes(b'png')
  assert [(e.id, e.image, e.text) for e in read(tmp_path)] == [('p.png', b'png', None)]
  path = tmp_path / 'd' / 'pairs.tar'
  path.parent.mkdir()
  with tarfile.open(path, 'w') as tar:
    for name, data in (('a/0.jpg', b'J'), ('a/0.txt', b'cat'), ('a/1.jpg', b'K')):
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data))
  one, two = read(path, image_field='image')
  assert (one.id, one.text, one.image) == ('pairs.tar:a/0', 'cat', b'J')
  assert two.error.startswith("no text in field 'text'")
  assert [e.image for e in read(path, image_field='image', text_field='')] == [b'J', b'K']


def test_pictures_of_an_archive_have_the_ids_of_their_folder(tmp_path):
  path = tmp_path / 'pictures.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    for name in ('b/1.png', 'a/0.JPG', 'labels.csv', '__MACOSX/a/0.JPG', 'c/2.gif'):
      archive.writestr(name, name.encode())
  data = path.read_bytes()
  path.write_bytes(data.replace(b'c/2.gif', b'c/2.git', 1))  # the member's own name: damage
  found = read(path)
  assert [(e.id, e.image) for e in found] == [
    ('a/0.JPG', b'a/0.JPG'), ('b/1.png', b'b/1.png'), ('c/2.gif', None),
  ]  # fmt: skip
  assert [bool(e.error) for e in found] == [False, False, True]
  path.write_bytes(data[:-30])
  (one,) = read(path)
  assert one.id == 'pictures.zip:broken' and 'breaks off after 0' in one.error


def test_inputs_that_give_nothing_or_the_same_name_twice_are_refused(tmp_path):
  with pytest.raises(ConfigError, match='no such file'):
    read(tmp_path / 'none*.jsonl')
  with pytest.raises(ConfigError, match='inputs is empty'):
    read()
  with pytest.raises(ConfigError, match="format is 'json', expected one of jsonl"):
    read(tmp_path, format='json')
  for folder in ('a', 'b'):
    (tmp_path / folder).mkdir()
    (tmp_path / folder / 'x.jsonl').write_bytes(lines())
  two = (tmp_path / 'a' / 'x.jsonl', tmp_path / 'b' / 'x.jsonl')
  with pytest.raises(ConfigError, match='are both called'):
    read(*two)
  assert len(read(*two, id_field='key')) == 8 and len({e.id for e in read(tmp_path)}) == 8


def test_unreadable_rows_of_files_of_one_name_have_different_ids(tmp_path):
  for folder in ('a/in', 'b/in', 'b/c/in'):
    (tmp_path / folder).mkdir(parents=True)
    (tmp_path / folder / 'p.jsonl').write_bytes(lines() + b'{broken')
    (tmp_path / folder / 'q.jsonl.gz').write_bytes(gzip.compress(lines(['x'] * 9))[:-9])
  (tmp_path / 'b' / 'in' / 'z.jsonl').write_text('{broken')
  folders = [tmp_path / 'a' / 'in', tmp_path / 'b' / 'in', tmp_path / 'b' / 'c' / 'in']
  by_folder = {e.id for e in read(*folders, id_field='key') if e.error}
  parts = ('a/in', 'b/in', 'b/c/in')
  assert by_folder == {
    'z.jsonl:1', *(f'{p}/p.jsonl:5' for p in parts), *(f'{p}/q.jsonl.gz:broken' for p in parts)
  }  # fmt: skip
  in_turn = [e.id for e in read(*folders[::-1], id_field='key') if e.error]
  assert sorted(in_turn) == sorted(by_folder)
  files = [folder / name for folder in folders for name in ('p.jsonl', 'q.jsonl.gz')]
  assert {e.id for e in read(*files, id_field='key') if e.error} == by_folder - {'z.jsonl:1'}
  # A file that is called so already.
  other = tmp_path / 'd'
  (other / 'a' / 'in').mkdir(parents=True)
  (other / 'a' / 'in' / 'p.jsonl').write_text('\n' * 4 + '{broken')
  found = [e.id for e in read(*folders, other, id_field='key') if e.error]
  assert len(found) == len(set(found)) == 8


def test_an_id_that_no_file_can_hold_is_an_error_of_its_record(tmp_path):
  path = tmp_path / 'a.jsonl'
  path.write_text('{"id": "\\ud800", "text": "x"}\n{"id": "b", "text": "y"}\n')
  inputs = CorpusConfig((str(path),), id_field='id')
  [shard] = corpus.shards(inputs)
  first, second = corpus.examples(shard, inputs)
  assert first.id == 'a.jsonl:1' and 'half a surrogate pair' in first.error
  assert second.id == 'b' and not second.error


DEEP = '[' * 100_000


def test_json_that_is_nested_too_deeply_is_one_example(tmp_path):
  lines = f'{{"text": "a"}}\n{DEEP}\n{{"text": {DEEP}}}\n{{"text": "b"}}\n'
  (tmp_path / 'deep.jsonl').write_text(lines)
  found = read(tmp_path / 'deep.jsonl')
  assert [e.text for e in found] == ['a', None, None, 'b']
  assert [e.error for e in found][1:3] == ['ValueError: JSON that is nested too deeply'] * 2
  with tarfile.open(tmp_path / 'deep.tar', 'w') as tar:
    for name, data in (('0.json', DEEP), ('1.json', '{"text": "b"}')):
      info = tarfile.TarInfo(name)
      info.size = len(data)
      tar.addfile(info, io.BytesIO(data.encode()))
  assert [bool(e.error) for e in read(tmp_path / 'deep.tar')] == [True, False]
  write_array_records(tmp_path / 'x.array_record', [{'image': b'', 'label': 0}])
  with pytest.raises(UnreadableRecord, match='nested too deeply'):
    array_record_image(DEEP.encode())


@pytest.mark.parametrize(
  ('value', 'said'),
  [
    (None, 'its value is of type NoneType'),
    (1.5, 'its value is of type float'),
    (b'7', 'its value is of type bytes'),
    (True, 'its value is of type bool'),
    ('', 'it is empty'),
  ],
)
def test_an_id_or_a_picture_of_another_type_is_called_so(value, said):
  config = CorpusConfig(('x',), id_field='id')
  found = corpus.of_record({'id': value, 'text': 'a'}, 'x:1', config)
  assert (found.id, found.error) == ('x:1', f"no id in field 'id': {said}")
  config = dataclasses.replace(config, id_field='', image_field='p')
  found = corpus.of_record({'p': 5, 'text': 'a'}, 'x:1', config)
  assert found.error == "no picture in field 'p': its value is of type int"


def test_formats_that_are_not_known_are_refused(tmp_path):
  for name in ('x.csv', 'x.jsonl.bz2', 'X.TSV'):
    (tmp_path / name).write_text('a,b\n1,2\n')
    for given in (
      tmp_path / name,
      tmp_path / f'{name[0]}*{name[-2:]}',
      f'local://{tmp_path}/{name}',
    ):
      with pytest.raises(ConfigError, match='this format is not known; known are JSON lines'):
        read(given)
    assert read(tmp_path / name, format='text')[0].text == 'a,b\n1,2\n'
  assert len(read(tmp_path)) == 3  # of a tree of sources a file is what it is


def test_json_over_several_lines_is_one_example_that_says_so(tmp_path):
  for name, value in (('a.json', [{'text': 'x'}]), ('b.json', {'text': 'x', 'n': [1]})):
    (tmp_path / name).write_text('\n' + json.dumps(value, indent=1))
    [one] = read(tmp_path / name)
    assert one.id == f'{name}:broken' and 'is one JSON value over several lines' in one.error
  (tmp_path / 'c.json').write_text(json.dumps([{'text': 'x'}]))
  assert 'a JSON list, expected an object a line' in read(tmp_path / 'c.json')[0].error


def test_what_is_passed_over_is_counted(tmp_path):
  for name in ('a.py', 'b.md', 'c/d.py', '.git/e.py'):
    (tmp_path / 'src' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'src' / name).write_text('x')
  path = tmp_path / 't.zip'
  with zipfile.ZipFile(path, 'w') as archive:
    for name in ('a.txt', 'b/c.txt', 'd.png'):
      archive.writestr(name, 'x')
  of = CorpusConfig((str(tmp_path / 'src'), str(path)), suffixes=('.py', '.png'), exclude=('c',))
  assert corpus.passed_over(of) == {
    'hidden': 1, 'of another suffix': 1, 'excluded': 1, 'no pictures in zips': 2,
  }  # fmt: skip
  assert corpus.passed_over(CorpusConfig((str(tmp_path / 'src/a.py'),))) == {}
