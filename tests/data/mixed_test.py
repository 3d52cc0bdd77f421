"""Rows of text and pictures: the layout undone, packing, draws, bad input, pixels and latents."""

import io
import json
import zipfile

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from jaxmm.config import ConfigError, from_mapping
from jaxmm.data.array_store import ArrayStoreWriter
from jaxmm.data.bad_records import TooManyBadRecords
from jaxmm.data.mixed import MixedConfig, packed_rows
from jaxmm.data.pipeline import DataConfig, make_batches

BOI, EOI, BOS, EOS, PAD = 256, 257, 258, 259, 260
SIZE, PATCHES = 4, 4
CAPTIONS = [f'picture {i}, ' + 'très ' * (i % 4) for i in range(30)]


def _picture(i: int) -> np.ndarray:
  return np.full((SIZE, SIZE, 3), i, np.uint8)


def _png(i: int) -> bytes:
  out = io.BytesIO()
  Image.fromarray(_picture(i)).save(out, 'PNG')
  return out.getvalue()


@pytest.fixture
def data(tmp_path):
  """Thirty captioned pictures of one colour each, in a zip; some pairs have two of them."""
  with zipfile.ZipFile(tmp_path / 'p.zip', 'w') as archive:
    for i in range(30):
      archive.writestr(f'{i:02d}.png', _png(i))
  _write(tmp_path, [_record(i) for i in range(30)])
  return tmp_path


def _record(i: int) -> dict:
  images = f'{i:02d}.png' if i % 5 else [f'{i:02d}.png', f'{(i + 1) % 30:02d}.png']
  return {'image': images, 'caption': CAPTIONS[i], 'n': f'id{i}'}


def _write(folder, records):
  lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
  (folder / 'c.jsonl').write_text('\n'.join(lines))


def _config(data, *, mixed=None, text=None, **rest):
  of_mixed = {'captions': str(data / 'c.jsonl'), 'length': 80, 'patches': PATCHES}
  of_text = {'bos_id': BOS, 'eos_id': EOS, 'pad_id': PAD}
  values = {'name': 'mixed', 'path': str(data / 'p.zip'), 'split': 'all', 'image_size': SIZE}
  values |= {'mixed': of_mixed | (mixed or {}), 'text': of_text | (text or {})} | rest
  return from_mapping(DataConfig, values, 'data')


def _batches(data, batch_size=4, train=True, process=(0, 1), encode=None, seed=2, **rest):
  return make_batches(
    _config(data, **rest),
    batch_size=batch_size,
    seed=seed,
    train=train,
    process_index=process[0],
    process_count=process[1],
    encode=encode,
  )


def _joined(parts):
  return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _assert_same(a, b):
  assert set(a) == set(b)
  for name, value in a.items():
    np.testing.assert_array_equal(value, b[name], err_msg=name)


def _segments(batch, b):
  """(text ids, images of the row, whether the picture comes first) of each segment of a row."""
  out = []
  for s in range(1, batch['segment_BL'][b].max() + 1):
    here = batch['segment_BL'][b] == s
    ids, image = batch['ids_BL'][b][here], batch['image_BL'][b][here]
    text = [int(i) for i in ids[image == 0] if i not in (BOI, EOI, BOS, EOS)]
    images = list(dict.fromkeys(image[image > 0].tolist()))
    out.append((text, images, bool(images) and ids[1] == BOI))
  return out


@settings(max_examples=40, deadline=None)
@given(
  st.lists(st.tuples(st.integers(1, 20), st.integers(0, 3)), max_size=60),
  st.sampled_from([None, 3]),
)
def test_rows_hold_every_unit_once_within_their_room(described, max_images):
  lengths, images = (np.array([d[i] for d in described], np.int64) for i in (0, 1))
  rows = packed_rows(lengths, images, 20, max_images)
  assert sorted(u for row in rows for u in row) == list(range(len(described)))
  for row in rows:
    assert row and lengths[row].sum() <= 20
    assert max_images is None or images[row].sum() <= max_images


def test_packing_fills_rows():
  lengths = np.random.default_rng(0).integers(80, 200, 5000)
  rows = packed_rows(lengths, np.ones(5000, np.int64), 512, None)
  assert lengths.sum() / (512 * len(rows)) > 0.93


def test_every_pair_once_with_its_own_pictures(data):
  batches = _batches(data, train=False)
  seen = []
  for batch in batches.once():
    assert batch['pixels_BIYXC'].dtype == np.uint8
    for b in np.flatnonzero(batch['valid_B']):
      segments, numbers = _segments(batch, b), []
      for text, images, first in segments:
        shown = [int(batch['pixels_BIYXC'][b, i - 1, 0, 0, 0]) for i in images]
        seen.append((bytes(text).decode(), tuple(shown)))
        numbers += images
        for i in images:
          at = batch['image_BL'][b] == i
          assert batch['patch_BL'][b][at].tolist() == list(range(PATCHES))
          assert np.ptp(np.flatnonzero(at)) == PATCHES - 1  # in one piece
          assert batch['is_image_first_BI'][b, i - 1] == first
      num = batch['image_valid_BI'].shape[1]
      assert numbers == list(range(1, len(numbers) + 1))
      assert batch['image_valid_BI'][b].tolist() == [1] * len(numbers) + [0] * (num - len(numbers))
      assert not batch['pixels_BIYXC'][b, len(numbers) :].any()
  expected = [(CAPTIONS[i], (i,) if i % 5 else (i, (i + 1) % 30)) for i in range(30)]
  assert sorted(seen) == sorted(expected)


def test_parts_come_in_the_order_that_their_record_says(data):
  _write(
    data,
    [
      {'parts': [{'image': '03.png'}, {'text': 'be blue'}, {'image': '07.png'}]},
      {'parts': [{'text': 'a'}, {'image': '04.png'}, {'text': 'b' * 99}, {'image': '05.png'}]},
      {'image': '06.png', 'caption': 'pair'},
    ],
  )
  for p in (0.0, 1.0):
    batches = _batches(data, batch_size=1, train=False, mixed={'caption_first': p, 'length': 30})
    rows = {}
    for batch in batches.once():
      row, said = batch['ids_BL'][0], []
      for at in np.flatnonzero(batch['segment_BL'][0]):
        if batch['image_BL'][0, at] == 0:
          said.append(int(row[at]))
        elif batch['patch_BL'][0, at] == 0:
          said.append(f'{batch["pixels_BIYXC"][0, batch["image_BL"][0, at] - 1, 0, 0, 0]}')
      first = batch['is_image_first_BI'][0][batch['image_valid_BI'][0] > 0].tolist()
      rows[tuple(said)] = first
    pair = [BOS, *b'pair', BOI, '6', EOI, EOS] if p else [BOS, BOI, '6', EOI, *b'pair', EOS]
    assert rows == {
      # The source of an edit is there to be seen, so it has the noise limit.
      (BOS, BOI, '3', EOI, *b'be blue', BOI, '7', EOI, EOS): [True, False],
      (BOS, *b'a', BOI, '4', EOI, *b'b' * 15, BOI, '5', EOI, EOS): [False, False],
      tuple(pair): [not p],
    }
  assert batches.source.num_cut_captions == 1


def test_what_counts_as_a_target_of_text(data):
  batch = _joined(list(_batches(data, train=False).once()))
  ids, image, weight = batch['ids_BL'], batch['image_BL'], batch['weight_BL']
  first = np.diff(batch['segment_BL'], prepend=0, axis=1) != 0
  real = batch['segment_BL'] > 0
  is_target = real & ~first & (image == 0) & (ids != EOI)
  np.testing.assert_array_equal(weight, is_target.astype(np.float32))
  assert weight[(ids == BOI)].all() and (ids[first & real] == BOS).all()
  assert not weight[:, 1:][(ids == BOI)[:, :-1]].any()
  assert not ids[image > 0].any() and (ids[~real & (batch['valid_B'][:, None] > 0)] == PAD).all()


def test_the_picture_comes_first_in_a_fifth_of_the_pairs_by_the_examples_draw(data):
  batches = _batches(data)
  first, of_pair = [], {}
  for step in range(40):
    batch = batches.at(step)
    for b in range(4):
      for text, _, is_first in _segments(batch, b):
        first.append(is_first)
        of_pair.setdefault(tuple(text), set()).add(is_first)
  assert 0.12 < np.mean(first) < 0.28  # 4 standard deviations at 400 draws
  assert sum(len(both) == 2 for both in of_pair.values()) > 10
  for p, expected in ((1.0, False), (0.0, True)):
    fixed = _batches(data, mixed={'caption_first': p}).at(0)
    assert all(f == expected for b in range(4) for _, _, f in _segments(fixed, b))
  # Evaluation draws by the record: the same whenever, and whatever the seed.
  held_out = _batches(data, train=False)
  steps = -(-held_out.num_records // 4)
  again = _batches(data, train=False, seed=9)
  epochs = _joined([held_out.at(s) for s in range(3 * steps)])
  for record in range(held_out.num_records):
    rows = epochs['ids_BL'][epochs['record_B'] == record]
    assert len(rows) >= 2 and (rows == rows[0]).all()
  np.testing.assert_array_equal(held_out.at(1)['ids_BL'], again.at(1)['ids_BL'])


@pytest.mark.parametrize('processes', [2, 4])
def test_the_same_rows_on_any_number_of_processes_and_from_any_step(data, processes):
  alone = _batches(data, crop='random', flip=True)
  parts = [
    _batches(data, crop='random', flip=True, process=(p, processes)) for p in range(processes)
  ]
  for step in (0, 6):
    _assert_same(alone.at(step), _joined([part.at(step) for part in parts]))
  streams = [part.from_step(5) for part in parts]
  for step in (5, 6, 7):
    _assert_same(alone.at(step), _joined([next(stream) for stream in streams]))
  for stream in streams:
    stream.close()


def test_pictures_are_flipped_each_by_its_own_draw(data):
  half = np.zeros((SIZE, SIZE, 3), np.uint8)
  half[:, :2] = 255
  out = io.BytesIO()
  Image.fromarray(half).save(out, 'PNG')
  with zipfile.ZipFile(data / 'p.zip', 'w') as archive:
    for i in range(30):
      archive.writestr(f'{i:02d}.png', out.getvalue())
  batch = _joined([_batches(data, flip=True, cache=True).at(s) for s in range(6)])
  left = batch['pixels_BIYXC'][..., 0, 0, 0] == 255
  real = batch['image_valid_BI'] > 0
  assert 0.3 < left[real].mean() < 0.7
  assert any(len(set(row[ok])) == 2 for row, ok in zip(left, real))


def test_documents_of_text_are_packed_with_the_pairs(data):
  (data / 'texts').mkdir()
  long = 'a long text that no row can hold ' * 9
  (data / 'texts' / 'a.txt').write_text(long)
  (data / 'texts' / 'b.txt').write_text('short')
  batches = _batches(data, train=False, mixed={'text_path': str(data / 'texts')})
  texts = [
    (len(images), bytes(text).decode('utf-8', 'replace'))
    for batch in batches.once()
    for b in np.flatnonzero(batch['valid_B'])
    for text, images, _ in _segments(batch, b)
  ]
  pieces = [text for num, text in texts if not num]
  assert len(texts) - len(pieces) == 30
  assert sorted(''.join(pieces)) == sorted(long + 'short') and 'short' in pieces
  assert max(map(len, pieces)) == 80
  names = {batches.describe(r) for r in range(batches.num_records)}
  assert any('text a.txt' in name for name in names)


@pytest.mark.parametrize(('share', 'excess'), [(0.5, 'text'), (0.9, 'pairs'), (0.1, 'text')])
def test_texts_take_their_share_of_positions(data, share, excess):
  (data / 'x.txt').write_text('word ' * 400)
  mixed = {'text_path': str(data / 'x.txt'), 'text_share': share, 'length': 80}
  batch = _joined(list(_batches(data, train=False, mixed=mixed).once()))
  num_text = num_pairs = 0
  for b in np.flatnonzero(batch['valid_B']):
    for s, (_, images, _) in enumerate(_segments(batch, b), 1):
      num = int((batch['segment_BL'][b] == s).sum())
      num_pairs += num if images else 0
      num_text += 0 if images else num
  # Of what there is too much of, whole units are left out.
  assert abs(num_text / (num_text + num_pairs) - share) < 0.1
  assert num_text == 2002 if excess == 'pairs' else num_text < 2002


def test_zero_pictures_or_zero_text_in_a_row(data):
  _write(data, [{'image': [], 'caption': 'words'}, {'image': '01.png', 'caption': ''}])
  batch = _joined(
    list(_batches(data, train=False, mixed={'length': 8, 'caption_first': 0.0}).once())
  )
  of_text, of_image = (int(np.argmax(batch['image_valid_BI'][:2].sum(1) == n)) for n in (0, 1))
  assert batch['ids_BL'][of_text].tolist() == [BOS, *b'words', EOS, PAD]
  assert not batch['image_BL'][of_text].any()
  assert batch['ids_BL'][of_image].tolist() == [BOS, BOI, 0, 0, 0, 0, EOI, EOS]
  assert not batch['is_image_first_BI'].any()  # no caption follows it
  _write(data, [{'image': [], 'caption': 'words'}])
  alone = _batches(data, batch_size=1).at(0)
  assert alone['image_valid_BI'].tolist() == [[0]] and alone['pixels_BIYXC'].shape[1] == 1


def test_a_caption_that_is_too_long_is_cut_and_said(data, caplog):
  _write(data, [{'image': '01.png', 'caption': 'x' * 100}, {'image': '02.png', 'caption': 'y'}])
  batches = _batches(data, batch_size=2, mixed={'length': 20, 'caption_first': 1.0})
  assert batches.source.num_cut_captions == 1
  assert '1 captions are too long for their rows and cut, first c.jsonl:1' in caplog.text
  rows = batches.at(0)['ids_BL'].tolist()
  assert [BOS, *b'x' * 12, BOI, 0, 0, 0, 0, EOI, EOS] in rows


def test_the_number_of_pictures_of_a_row_can_be_bounded(data):
  batches = _batches(data, train=False, mixed={'length': 200, 'max_images': 2})
  batch = _joined(list(batches.once()))
  assert batch['pixels_BIYXC'].shape[1:] == (2, SIZE, SIZE, 3)
  assert batch['image_BL'].max() == 2 and batch['image_valid_BI'].sum() == 36
  with pytest.raises(
    TooManyBadRecords, match='its 2 pictures are more than data.mixed.max_images=1'
  ):
    _batches(data, mixed={'max_images': 1})


def test_a_trained_tokenizer_takes_the_place_of_bytes(data):
  ids = {'boi_id': 5, 'eoi_id': 6}
  text = {'tokenizer': 'trained.json', 'bos_id': 7, 'eos_id': None, 'pad_id': 0}
  with pytest.raises(ConfigError, match="'trained.json': load it"):
    _batches(data, mixed=ids, text=text)
  batch = _batches(data, mixed=ids, text=text, encode=lambda t: [1, 2]).at(0)
  assert set(np.unique(batch['ids_BL'])) == {0, 1, 2, 5, 6, 7}
  with pytest.raises(ConfigError, match='a text encodes to id 6'):
    _batches(data, mixed=ids, text=text, encode=lambda t: [1, 6])


def _store(path, num=30, views=None, valid=True):
  shape = (2, 2, 8) if views is None else (views, 2, 2, 8)
  fields = {'latents': (shape, np.float32), 'label': ((), np.int32), 'valid': ((), np.bool_)}
  writer = ArrayStoreWriter(path, fields, num, 16)
  latent = np.arange(num)[:, None] + np.zeros((num, int(np.prod(shape))), np.float32)
  latent = latent.reshape(num, *shape)
  if views:
    latent = latent + 100 * np.arange(views, dtype=np.float32).reshape(views, 1, 1, 1)
  is_valid = np.arange(num) != (-1 if valid else 3)
  for k in range(writer.num_shards):
    rows = np.array(writer.rows(k))
    writer.write_shard(k, {'latents': latent[rows], 'label': rows * 0, 'valid': is_valid[rows]})
  return str(path)


def test_latents_take_the_place_of_pixels(data):
  latents = {'latents': _store(data / 'store')}
  batch, pixels = _batches(data, mixed=latents).at(2), _batches(data).at(2)
  assert batch['latent_BIYXC'].dtype == np.float32 and 'pixels_BIYXC' not in batch
  assert batch['latent_BIYXC'].shape[2:] == (2, 2, 8)
  np.testing.assert_array_equal(
    batch['latent_BIYXC'][..., 0, 0, 0], pixels['pixels_BIYXC'][..., 0, 0, 0]
  )
  np.testing.assert_array_equal(batch['ids_BL'], pixels['ids_BL'])
  views = {'latents': _store(data / 'views', views=2)}
  several = _batches(data, mixed=views)
  seen = np.unique([several.at(s)['latent_BIYXC'] // 100 for s in range(4)])
  assert seen.tolist() == [0, 1]
  held_out = _batches(data, mixed=views, train=False, eval_view=1).at(0)
  real = held_out['image_valid_BI'] > 0
  assert (held_out['latent_BIYXC'][real] >= 100).all()


def test_codes_of_pictures_are_ids_of_the_row(data):
  first = 300
  codes = {'codes': _codes(data / 'codes'), 'first_code': first}
  batch, pixels = _batches(data, mixed=codes).at(2), _batches(data).at(2)
  assert set(pixels) - set(batch) == {'pixels_BIYXC'}
  for b, row in enumerate(batch['ids_BL']):
    for place in np.flatnonzero(batch['image_BL'][b]):
      number = pixels['pixels_BIYXC'][b, batch['image_BL'][b, place] - 1, 0, 0, 0]
      assert row[place] == first + int(number) + 30 * batch['patch_BL'][b, place]
  is_code = batch['image_BL'] > 0
  np.testing.assert_array_equal(batch['weight_BL'], pixels['weight_BL'] + is_code)
  np.testing.assert_array_equal(batch['ids_BL'][~is_code], pixels['ids_BL'][~is_code])


def test_codes_that_do_not_go(data):
  ok = _codes(data / 'codes')
  for mixed, message in (
    ({'codes': ok, 'first_code': BOI}, 'first_code is 256, expected an id above 257'),
    ({'codes': ok, 'latents': ok}, "codes is .*expected ''"),
    ({'codes': ok}, 'first_code is 258, so codes are the ids to 377, but bos, eos'),
    ({'codes': ok, 'first_code': 300, 'patches': 5}, 'has 4 codes a picture, .* set it to 4'),
    ({'codes': _store(data / 'store'), 'first_code': 300}, 'expected `codes`'),
  ):
    with pytest.raises(ConfigError, match=message):
      _batches(data, mixed=mixed)
  with pytest.raises(ConfigError, match='encodes to id 400, but from data.mixed.first_code 300'):
    _batches(data, mixed={'codes': ok, 'first_code': 300}, text={'tokenizer': 'x'},
             encode=lambda text: [400])  # fmt: skip


def _codes(path):
  """Of picture i the codes i, i + 30, i + 60, i + 90."""
  fields = {'codes': ((PATCHES,), np.uint16)}
  writer = ArrayStoreWriter(path, fields, 30, 16, meta={'num_codes': 120})
  for k in range(writer.num_shards):
    rows = np.array(writer.rows(k))
    writer.write_shard(k, {'codes': rows[:, None] + 30 * np.arange(PATCHES)})
  return str(path)


def test_latents_that_do_not_go(data):
  ok = _store(data / 'store')
  for settings_, message in (
    ({'mixed': {'latents': _store(data / 'few', num=29)}}, 'has 29 rows, but .* 30 pictures'),
    ({'mixed': {'latents': ok}, 'flip': True}, 'data.flip is True'),
    ({'mixed': {'latents': ok}, 'eval_view': 1}, 'eval_view is 1, but there are 1 views'),
    ({'mixed': {'latents': str(data / 'absent')}}, 'is no store of latents'),
  ):
    with pytest.raises(ConfigError, match=message):
      _batches(data, **settings_)
  bad = _batches(data, mixed={'latents': _store(data / 'bad', valid=False)}, max_bad_fraction=1.0)
  rows = _joined([bad.at(s) for s in range(bad.num_records)])
  assert not rows['valid_B'].all() and 'when the latents were made' in str(bad.bad.reasons)


def test_records_that_cannot_be_used_are_counted_and_named(data, caplog):
  bad = [
    {'image': 'absent.png', 'caption': 'x'},
    {'image': '01.png'},
    {'image': [f'{i:02d}.png' for i in range(14)], 'caption': 'x'},
    '{"image": ',
  ]
  _write(data, [*(_record(i) for i in range(30)), *bad])
  with pytest.raises(
    TooManyBadRecords, match=r"c.jsonl:31: picture 'absent.png' is not in data.path"
  ):
    _batches(data)
  batches = _batches(data, max_bad_fraction=0.2, train=False)
  batch = _joined(list(batches.once()))
  assert batch['image_valid_BI'].sum() == 36
  for why in ('no caption in field', '14 pictures do not fit in a row of 80', 'JSONDecodeError'):
    assert why in caplog.text


def test_a_damaged_picture_makes_its_row_unreadable(data):
  with zipfile.ZipFile(data / 'p.zip', 'w') as archive:
    for i in range(30):
      archive.writestr(f'{i:02d}.png', b'no picture' if i == 7 else _png(i))
  batches = _batches(data, train=False, max_bad_fraction=0.5)
  batch = _joined(list(batches.once()))
  (bad,) = np.flatnonzero((batch['valid_B'] == 0) & (batch['record_B'] >= 0))
  assert '07.png: no picture of a known format' in batches.describe(int(batch['record_B'][bad]))
  assert not batch['segment_BL'][bad].any() and not batch['image_valid_BI'][bad].any()
  with pytest.raises(ConfigError, match=r'\d\d.png is 4x4, but data.image_size is 5'):
    list(_batches(data, train=False, image_size=5, crop='none').once())


def test_a_keep_list_names_caption_records(data):
  path = str(data / 'keep.parquet')
  ids = [f'c.jsonl:{i + 1}' for i in range(30)]
  pq.write_table(pa.table({'id': ids, 'keep': [True, False] * 15}), path)
  batches = _batches(data, train=False, keep_list=path)
  texts = [bytes(t).decode() for batch in batches.once() for b in range(4)
           for t, _, _ in _segments(batch, b)]  # fmt: skip
  assert sorted(texts) == sorted(CAPTIONS[::2]) and batches.kept_fingerprint.startswith('15-')
  halves = [_batches(data, keep_list=path, split=s, test_fraction=0.4) for s in ('train', 'test')]
  assert len({h.kept_fingerprint for h in halves}) == 2
  pq.write_table(pa.table({'id': [f'id{i}' for i in range(30)], 'keep': [True] * 30}), path)
  assert _batches(data, keep_list=path, id_field='n').kept_fingerprint.startswith('30-')
  with pytest.raises(ConfigError, match='belongs to other data'):
    _batches(data, keep_list=path)
  with pytest.raises(ConfigError, match='whose texts have no list'):
    _batches(data, keep_list=path, mixed={'text_path': 'x'})


def test_settings_that_cannot_be_used(data):
  for values, message in (
    ({'mixed': {'length': 5}}, 'mixed.length is 5, expected at least 6'),
    ({'mixed': {'length': 7}}, 'bos and eos take 8 positions'),
    ({'mixed': {'boi_id': 257}}, 'eoi_id is 257, expected an id other than boi_id'),
    ({'mixed': {'boi_id': 65}}, r'ids of BOI, EOI, bos and eos are \[65, 257, 258, 259\]'),
    ({'mixed': {'boi_id': 258}}, 'they must differ'),
    ({'mixed': {'caption_first': 1.5}}, 'caption_first is 1.5'),
    ({'mixed': {'max_images': 0}}, 'max_images is 0'),
    ({'mixed': {'text_share': 0.5}}, 'None without data.mixed.text_path'),
    ({'mixed': {'captions': ''}}, 'there is no such file'),
    ({'path': ''}, 'needs data.path'),
    ({'path': str(data / 'c.jsonl')}, 'neither a folder nor a zip'),
    ({'crop': 'ten'}, "crop is 'ten'"),
    ({'bytes': {'image_order': 'raster'}}, "'mixed' are no pictures"),
  ):
    with pytest.raises(ConfigError, match=message):
      _batches(data, **values)
  with pytest.raises(ConfigError, match='patches is 0'):
    MixedConfig(patches=0)
