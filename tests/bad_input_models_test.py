"""Wrong data and settings for models of bytes, and of text and pictures: one line each, before
anything is compiled. What stands behind these lines would else be a traceback or a loss of NaN, or
patches, brackets and documents taken for something else without a word.
"""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmm import cli
from jaxmm.config import ConfigError, from_mapping
from jaxmm.data.array_store import ArrayStoreWriter
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.models import megabyte
from jaxmm.studies.data_checks import check_data
from tests.models.megabyte_cases import BASE, config_of, random_params

NUM, SIDE = 24, 4  # pictures, and the side of their latents
MEGABYTE = {
  'config': 'megabyte/mini.py', 'steps': 1, 'batch': 8, 'model.size': 'micro', 'model.length': 64,
  'data.text.length': 64,
}  # fmt: skip
TRANSFUSION = {
  'config': 'transfusion/mini.py', 'steps': 1, 'batch': 8, 'model.width': 32, 'model.depth': 1,
  'model.num_heads': 2, 'model.latent_size': SIDE, 'data.mixed.patches': SIDE**2,
  'data.path': 'pictures', 'data.mixed.captions': 'captions.jsonl', 'data.mixed.latents': 'latents',
}  # fmt: skip
SCANNED = {'data.bytes.image_order': 'patch', 'data.bytes.patch': 12}
AS_PICTURES = {'data.name': 'images', 'data.path': 'pictures', 'data.image_size': 8}


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """A folder of texts, pictures, captions and latents, good ones and bad ones."""
  at = tmp_path_factory.mktemp('files')
  (at / 'text.txt').write_text('the dog lay on the log.\n' * 200)
  (at / 'empty.txt').write_text('')
  (at / 'any.bin').write_bytes(bytes(range(256)) * 4)
  (at / 'nothing').mkdir()
  (at / 'pictures').mkdir()
  for i in range(NUM):
    Image.new('RGB', (8, 8)).save(at / 'pictures' / f'{i:02}.png')
  records = [{'image': f'{i:02}.png', 'caption': f'number {i}'} for i in range(NUM)]
  lines = {
    'captions': records,
    'lost': [*records, *({'image': 'zz.png', 'caption': 'lost'} for _ in range(5))],
    'nameless': [{'picture': r['image'], 'caption': 'x'} for r in records],
    'silent': [{'image': r['image']} for r in records],
    'none': [],
  }
  for name, rows in lines.items():
    (at / f'{name}.jsonl').write_text('\n'.join(map(json.dumps, rows)))
  write_latents(at / 'latents')
  write_latents(at / 'few', num=NUM - 1)
  write_latents(at / 'others', tokenizer_step=9)
  return at


def write_latents(path, num=NUM, **meta):
  fields = {'latents': ((SIDE, SIDE, 4), 'float32'), 'valid': ((), 'bool')}
  writer = ArrayStoreWriter(path, fields, num, num, {'tokenizer_step': 4} | meta)
  latents = np.zeros((num, SIDE, SIDE, 4), np.float32)
  writer.write_shard(0, {'latents': latents, 'valid': np.ones(num, bool)})


def said_of(files, monkeypatch, tmp_path, capsys, settings, status=2):
  """What `jaxmm train` says on stderr when it refuses."""
  monkeypatch.chdir(files)
  settings = dict(settings)
  argv = ['train', '--config', settings.pop('config'), '--workdir', str(tmp_path / 'run')]
  argv += [f'--config.{key}={value}' for key, value in settings.items()]
  assert cli.main(argv) == status
  said = capsys.readouterr()
  assert 'compiling' not in said.out and not (tmp_path / 'run' / 'log.jsonl').exists()
  lines = [line for line in said.err.splitlines() if line.startswith('jaxmm train: ')]
  assert len(lines) == 1 and 'Traceback' not in said.err
  return lines[0]


@pytest.mark.parametrize(
  'settings, parts',
  [
    ({'data.path': 'gone.txt'}, ("data.path 'gone.txt' does not exist",)),
    ({'data.path': 'empty.txt'}, ("'empty.txt', split 'train' holds no text",)),
    ({'data.path': 'nothing'}, ("data.path 'nothing' holds no text (.jsonl",)),
    ({'data.name': 'bytes', 'data.path': 'empty.txt'}, ('holds no bytes',)),
    ({'data.name': 'bytes', 'data.path': 'nothing'}, ("data.path 'nothing' holds no files",)),
    ({'model.patch': 5}, ('model.length is 64', 'a multiple of model.patch 5, such as 65')),
    (
      {'data.text.length': 30, 'data.text.align': 1},
      ('rows of 30 bytes (data.text.length', 'multiple of model.patch 4'),
    ),
    ({'data.text.length': 32}, ('rows of 32 bytes', 'is told 64', 'set model.row_length=32')),
    (AS_PICTURES, ("data.name is 'images'", 'image_BYXC', "data.bytes.image_order='patch'")),
    (
      AS_PICTURES | SCANNED | {'model.patch': 12, 'model.global_width': 96, 'model.length': 96},
      ('rows of 192 bytes', 'a whole picture', 'set model.length=192'),
    ),
    (
      AS_PICTURES | SCANNED | {'model.length': 192},
      ('data.bytes.patch is 12, but model.patch is 4', 'no squares', 'set both'),
    ),
    (
      {'data.name': 'bytes', 'data.path': 'any.bin'},
      ('rows of 8192 bytes', 'set model.length=8192, or data.bytes.length=64'),
    ),
    (
      AS_PICTURES | {'data.bytes.image_order': 'patch', 'data.bytes.patch': 7},
      ('data.bytes.patch is 7', 'no square patch of 3 channels', '3, 12, 27'),
    ),
    (
      {'data.name': 'mixed', 'data.path': 'pictures', 'data.mixed.captions': 'captions.jsonl'},
      ("data.name is 'mixed'", 'pixels_BIYXC', 'rows of ids'),
    ),
    ({'model.vocab_size': 200}, ('a byte of data has id 255', 'model.vocab_size is 200', '256')),
    ({'data.text.bos_id': 256}, ('data.text.bos_id has id 256', 'set model.vocab_size to 257')),
    ({'data.text.pad_id': 257}, ('data.text.pad_id has id 257', 'model.vocab_size is 256')),
    (
      {'model.separate_documents': True, 'data.text.align': 2},
      ('patches of 4 bytes, but data.text.align is 2', 'set data.text.align=4'),
    ),
  ],
)
def test_bytes(settings, parts, files, monkeypatch, tmp_path, capsys):
  settings = MEGABYTE | {'data.path': 'text.txt'} | settings
  said = said_of(files, monkeypatch, tmp_path, capsys, settings)
  for part in parts:
    assert part in said, said


@pytest.mark.parametrize(
  'settings, parts',
  [
    ({'data.mixed.captions': ''}, ("data.mixed.captions is ''", 'no such file; name the one')),
    ({'data.mixed.captions': 'none.jsonl'}, ("'none.jsonl' holds no captioned pictures",)),
    ({'data.mixed.latents': ''}, ('pixels_BIYXC', 'data.mixed.latents, a store that `jaxmm')),
    ({'data.mixed.latents': 'pictures'}, ("data.mixed.latents 'pictures' is no store of latents",)),
    ({'data.mixed.latents': 'few'}, ('has 23 rows', "'pictures' has 24 pictures")),
    ({'eval_data.mixed.latents': 'others'}, ('data.mixed.latents and eval_data.mixed.latents',)),
    ({'data.mixed.text_path': 'gone.txt'}, ("data.mixed.text_path 'gone.txt' does not exist",)),
    ({'data.mixed.text_path': 'empty.txt'}, ("data.mixed.text_path 'empty.txt', split",)),
    ({'data.name': 'text', 'data.path': 'text.txt'}, ("data.name is 'text'", "name='mixed' with")),
    ({'data.name': 'images', 'data.image_size': 8}, ("data.name is 'images'", "name='mixed' with")),
    ({'model.patch': 2}, ('data.mixed.patches is 16, but an image has 4', 'patches=4')),
    ({'model.boi_id': 5}, ('data.mixed.boi_id is 259, but model.boi_id is 5',)),
    ({'model.eoi_id': 5}, ('data.mixed.eoi_id is 260, but model.eoi_id is 5',)),
    ({'data.mixed.boi_id': 300}, ('data.mixed.boi_id has id 300', 'model.vocab_size is 261')),
    ({'data.text.bos_id': 300}, ('data.text.bos_id has id 300', 'model.vocab_size is 261')),
    ({'model.null_id': 257}, ('model.null_id is 257', 'data.text.bos_id, too')),
    ({'model.null_id': 255}, ('model.null_id is 255', "tokenizer 'bytes' gives", 'behind the 256')),
    ({'model.latent_channels': 8}, ('latents are [4, 4, 4]', 'expects [4, 4, 8]')),
    ({'model.length': 100}, ('rows have 160 positions', 'model.length is 100')),
    ({'model.caption_dropout': 1.5}, ('model.caption_dropout is 1.5',)),
    ({'model.noise_limit': 5000}, ('model.noise_limit is 5000', 'num_timesteps 1000')),
  ],
)
def test_pictures_with_captions(settings, parts, files, monkeypatch, tmp_path, capsys):
  said = said_of(files, monkeypatch, tmp_path, capsys, TRANSFUSION | settings)
  for part in parts:
    assert part in said, said


@pytest.mark.parametrize(
  'captions, part',
  [
    ('lost', "lost.jsonl:25: picture 'zz.png' is not in data.path 'pictures'"),
    (
      'nameless',
      "nameless.jsonl:1: no name of a picture in field 'image' (data.mixed.image_field)",
    ),
    ('silent', "silent.jsonl:1: no caption in field 'caption' (data.mixed.caption_field)"),
  ],
)
def test_records_that_lack_something(captions, part, files, monkeypatch, tmp_path, capsys):
  settings = TRANSFUSION | {'data.mixed.captions': f'{captions}.jsonl'}
  said = said_of(files, monkeypatch, tmp_path, capsys, settings, status=1)
  assert part in said and 'data.max_bad_fraction=0.01 allows' in said


def test_texts_for_a_tokenizer_of_pictures(files, monkeypatch, tmp_path, capsys):
  settings = {'config': 'transfusion/vae_mini.py', 'data.name': 'text', 'data.path': 'text.txt'}
  said = said_of(files, monkeypatch, tmp_path, capsys, settings)
  assert "data.name is 'text', whose batches hold ids_BL" in said and 'reads pictures' in said


@pytest.fixture(scope='module')
def scored():
  """Bits and bytes of a batch by a small model."""
  task = megabyte.make_task(BASE | {'vocab_size': 256})
  params = random_params(config_of({'vocab_size': 256}))
  score = jax.jit(lambda batch: task.likelihood({'params': params}, batch, None)['bits_per_byte'])
  return task, score


@pytest.mark.parametrize('num', [1, 3, 4, 31, 32, 33, 301])
def test_a_file_of_any_size_is_scored_to_its_last_byte(num, scored, tmp_path):
  """Shorter than a patch of 4 and than a row of 32, and no multiple of either."""
  task, score = scored
  (tmp_path / 'file').write_bytes(np.random.default_rng(num).bytes(num))
  settings = {
    'name': 'bytes',
    'path': str(tmp_path / 'file'),
    'split': 'all',
    'bytes': {'length': 32},
  }
  batches = make_batches(
    from_mapping(DataConfig, settings, 'data'), batch_size=4, seed=0, train=False
  )
  check_data(task, {'data': batches})
  sums = [score(batch) for batch in batches.once()]
  assert sum(float(count) for _, count in sums) == num
  assert np.isfinite(sum(float(total) for total, _ in sums))


def test_rows_in_memory_are_checked_by_their_fields():
  """Data that no config names: what its batches hold still has to go with the model."""
  from tests import real_cases

  images = real_cases.image_batches(20, seed=0, train=True)(0, 1)
  with pytest.raises(ConfigError, match="data.name is 'arrays', whose batches hold"):
    check_data(megabyte.make_task(BASE), {'data': images, 'eval_data': None})
