"""Caption records: pairs, splits, and records that lack something."""

import json

import pytest

from jaxmm.config import ConfigError
from jaxmm.data.captions import CaptionFile, Entry


def _file(tmp_path, *records, name='c.jsonl'):
  path = tmp_path / name
  lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
  path.write_text('\n'.join(lines) + '\n')
  return str(path)


def _entries(path, split='all', test_fraction=0.1, **rest):
  records = [r for r in CaptionFile(path, split, test_fraction, **rest).records() if r.is_chosen]
  assert not any(r.error for r in records), records
  return [entry for r in records for entry in r.entries]


def test_a_record_is_a_pair_for_each_caption(tmp_path):
  path = _file(
    tmp_path,
    {'image': 'a.jpg', 'caption': 'a dog'},
    {'image': ['a.jpg', 'b/c.jpg'], 'caption': ['one', 'two', '']},
    {'image': [], 'caption': 'no picture'},
  )
  both = ('a.jpg', 'b/c.jpg')
  assert _entries(path) == [
    Entry('c.jsonl:1', ('a.jpg',), ('a dog',)),
    Entry('c.jsonl:2#0', both, ('one',)),
    Entry('c.jsonl:2#1', both, ('two',)),
    Entry('c.jsonl:2#2', both, ('',)),
    Entry('c.jsonl:3', (), ('no picture',)),
  ]
  first = _entries(path, max_captions=1)
  assert [entry.texts[0] for entry in first] == ['a dog', 'one', 'no picture']


def test_a_record_may_say_the_order_of_its_parts(tmp_path):
  path = _file(
    tmp_path,
    {'parts': [{'image': 'a.png'}, {'text': 'make it blue'}, {'image': 'b.png'}]},
    {'image': 'c.png', 'caption': 'a pair', 'parts': None},
    {'image': 'c.png', 'parts': [{'text': 'one, '}, {'text': 'two'}, {'image': 'a.png'}]},
    {'parts': [{'image': 'a.png'}, {'image': 'b.png', 'text': None}]},
    {'parts': [{'text': 'words'}]},
  )
  assert _entries(path) == [
    Entry('c.jsonl:1', ('a.png', 'b.png'), ('', 'make it blue', '')),
    Entry('c.jsonl:2', ('c.png',), ('a pair',)),
    Entry('c.jsonl:3', ('a.png',), ('one, two', '')),
    Entry('c.jsonl:4', ('a.png', 'b.png'), ('', '', '')),
    Entry('c.jsonl:5', (), ('words',)),
  ]
  assert [entry.is_ordered for entry in _entries(path)] == [True, False, True, True, False]
  train, test = (_entries(path, split, 0.5) for split in ('train', 'test'))
  with_a = [e for part in (train, test) for e in part if e.pictures[:1] == ('a.png',)]
  assert len(with_a) == 3 and (set(with_a) <= set(train) or set(with_a) <= set(test))
  other = _file(tmp_path, {'say': [{'image': 'a'}], 'parts': 3}, name='d.jsonl')
  assert _entries(other, parts_field='say') == [Entry('d.jsonl:1', ('a',), ('', ''))]


def test_parts_that_are_none_say_what(tmp_path):
  wrong = (
    'a.png', [], [[]], [{}], [{'text': ''}], [{'image': ''}], [{'image': 'a', 'text': 'b'}],
    [{'text': 'b'}, {'picture': 'a'}], [{'image': ['a']}],
  )  # fmt: skip
  path = _file(tmp_path, *({'parts': parts} for parts in wrong), '{"parts": [{"text": "\\ud83d"}]}')
  errors = [r.error for r in CaptionFile(path, 'all', 0.1).records()]
  said = 'in field \'parts\' is {}, expected {{"image": NAME}} or {{"text": TEXT}}'
  expected = [
    'part 0 ' + said.format("'a.png'"), 'no part in field', 'part 0 ' + said.format('[]'),
    'part 0 ' + said.format('{}'), 'no part in field', "part 0 in field 'parts' names no picture",
    'part 0 ' + said.format("{'image': 'a', 'text': 'b'}"),
    'part 1 ' + said.format("{'picture': 'a'}"), 'part 0 ' + said.format("{'image': ['a']}"),
    'the caption is not UTF-8',
  ]  # fmt: skip
  assert len(errors) == len(expected)
  for error, start in zip(errors, expected):
    assert error.startswith(start)


def test_fields_and_ids_have_names(tmp_path):
  path = _file(tmp_path, {'file': 'a.jpg', 'captions': ['x', 'y'], 'key': 7})
  file = CaptionFile(path, 'all', 0.1, image_field='file', caption_field='captions', id_field='key')
  (record,) = file.records()
  assert record.example.id == '7' and [p.name for p in record.entries] == [
    'c.jsonl:1#0',
    'c.jsonl:1#1',
  ]


def test_all_captions_of_a_picture_are_of_one_split(tmp_path):
  records = [{'image': f'{i % 20}.jpg', 'caption': f'{i}'} for i in range(60)]
  path = _file(tmp_path, *records)
  train, test = ({p.pictures for p in _entries(path, split, 0.4)} for split in ('train', 'test'))
  assert train and test and not train & test and len(train | test) == 20


def test_a_field_may_say_the_split(tmp_path):
  splits = ('train', 'val', 'test', 'Training')
  records = [{'image': f'{i}', 'caption': s, 'split': s} for i, s in enumerate(splits)]
  path = _file(tmp_path, *records)
  by_field = {'split_field': 'split'}
  assert [p.texts[0] for p in _entries(path, 'train', **by_field)] == ['train', 'Training']
  assert [p.texts[0] for p in _entries(path, 'test', **by_field)] == ['val', 'test']
  assert len(_entries(path, 'all', **by_field)) == 4
  path = _file(tmp_path, {'image': 'a', 'caption': 'x', 'split': 'restval'})
  with pytest.raises(ConfigError, match=r"c.jsonl:1 has 'restval' in field 'split'"):
    _entries(path, 'train', **by_field)


def test_records_that_lack_something_say_what(tmp_path):
  path = _file(
    tmp_path,
    {'caption': 'x'},
    {'image': 3, 'caption': 'x'},
    {'image': ['a', ''], 'caption': 'x'},
    {'image': 'a'},
    {'image': 'a', 'caption': []},
    {'image': 'a', 'caption': ['x', None]},
    '{"image": "a", "caption": "half \\ud83d"}',
    '{"image": ',
    '[]',
  )
  errors = [r.error for r in CaptionFile(path, 'all', 0.1).records()]
  expected = [
    "no name of a picture in field 'image' (data.mixed.image_field); the record has ['caption']; "
    'set data.mixed.image_field to the field',
    "no name of a picture in field 'image'",
    "no name of a picture in field 'image'",
    "no caption in field 'caption' (data.mixed.caption_field); the record has ['image']; set "
    'data.mixed.caption_field to the field',
    "no caption in field 'caption'",
    "no caption in field 'caption'",
    'the caption is not UTF-8',
    'JSONDecodeError',
    'a JSON list',
  ]
  assert len(errors) == len(expected)
  for error, start in zip(errors, expected):
    assert error.startswith(start)
  assert all(not r.entries for r in CaptionFile(path, 'all', 0.1).records())


def test_files_that_are_none(tmp_path):
  with pytest.raises(ConfigError, match='there is no such file'):
    CaptionFile(str(tmp_path / 'absent.jsonl'), 'all', 0.1)
  (tmp_path / 'x.txt').write_text('a dog')
  with pytest.raises(ConfigError, match='expected records'):
    CaptionFile(str(tmp_path / 'x.txt'), 'all', 0.1)
  (tmp_path / 'cut.jsonl.gz').write_bytes(b'\x1f\x8b\x08')
  with pytest.raises(ConfigError, match='breaks off after 0'):
    list(CaptionFile(str(tmp_path / 'cut.jsonl.gz'), 'all', 0.1).records())
