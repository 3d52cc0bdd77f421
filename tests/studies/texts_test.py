"""Text from trained runs: as it comes, whole, in any company; from Python and from the terminal."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

import jaxmm
from jaxmm import cli
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.data import byte_images
from jaxmm.models.megabyte_evaluation import strided_nll
from jaxmm.models.megabyte_network import byte_nll
from jaxmm.studies import run as runs
from jaxmm.studies import texts

SETTINGS = ('steps=2', 'batch=8', 'checkpoint.every=100')
LM = ('model.width=16', 'model.depth=1', 'model.num_heads=2', 'data.text.length=64')
MEGABYTE = ('model.size=micro', 'data.text.length=64', 'model.length=64')


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  """{name: directory} of tiny runs on a little text."""
  at = tmp_path_factory.mktemp('runs')
  rng = np.random.default_rng(0)
  (at / 'text.txt').write_text('\n'.join(rng.choice(['ein', 'zwei', 'drei'], 3000)))
  out = {}
  for name, file, settings in (
    ('lm', 'lm/mini.py', LM),
    ('megabyte', 'megabyte/mini.py', MEGABYTE),
  ):
    assignments = [*SETTINGS, *settings, f'data.path={at / "text.txt"}']
    config = configs.plain(runs.with_settings(configs.load_config(file), assignments))
    runs.train_from_config(config, at / name, evaluates=False, echo=lambda line: None)
    out[name] = at / name
  return out


@pytest.mark.parametrize('name', ['lm', 'megabyte'])
def test_pieces_make_the_whole_and_company_does_not_matter(trained, name):
  model = jaxmm.load(trained[name])
  prompts = ['eins', b'zwei drei \xff', 'a']
  whole = model.write(prompts, 21, seed=3)
  assert [len(text) <= 21 for text in whole] == [True] * 3
  if name == 'megabyte':
    assert [len(text) for text in whole] == [21] * 3
    pieces = list(model.stream(prompts, 21, seed=3))
    assert len(pieces) > 3 and [b''.join(p[i] for p in pieces) for i in range(3)] == whole
  assert model.write(prompts[:1], 21, seed=3) == whole[:1]
  assert model.write(prompts[:1], 21, seed=4) != whole[:1]
  assert model.write(prompts, 9, greedy=True) == model.write(prompts, 9, seed=5, greedy=True)


def test_on_the_terminal_and_in_a_file(trained, tmp_path, capsys):
  out = tmp_path / 'texts.jsonl'
  words = ['sample', '--run', str(trained['megabyte']), '--length', '17', '--output', str(out)]
  assert cli.main([*words, '--prompt', 'eins']) == 0
  shown = capsys.readouterr()
  row = json.loads(out.read_text())
  assert shown.out == f'eins{row["text"]}\n' and 'texts.jsonl' in shown.err
  assert cli.main([*words, '--prompt', 'eins', 'zwei']) == 0
  assert '[1] zwei' in capsys.readouterr().out
  assert json.loads(out.read_text().splitlines()[0]) == row


def test_raw_bytes_in_a_file(trained, tmp_path):
  words = ['sample', '--run', str(trained['megabyte']), '--length', '17', '--prompt', 'eins']
  out = tmp_path / 'heard.bin'
  assert cli.main([*words, '--output', str(out), '--seed', '2']) == 0
  written = jaxmm.load(trained['megabyte']).write(['eins'], 17, seed=2)[0]
  assert out.read_bytes() == b'eins' + written
  assert cli.main([*words, 'zwei', '--output', str(out)]) == 2


@pytest.mark.parametrize('order', [pytest.param('raster', marks=pytest.mark.slow), 'patch'])
def test_a_model_of_the_bytes_of_pictures_draws(order, tmp_path):
  folder = tmp_path / 'pictures'
  folder.mkdir()
  for i in range(16):
    Image.new('RGB', (4, 4), (15 * i, 0, 255)).save(folder / f'{i}.png')
  settings = (
    *SETTINGS, 'model.size=micro', 'model.length=48', 'model.patch=12',
    'model.global_width=48', 'data.name=images', f'data.path={folder}', 'data.labels=none',
    'data.image_size=4', 'data.test_fraction=0.3', f'data.bytes.image_order={order}',
    'data.bytes.patch=12',
  )  # fmt: skip
  config = configs.plain(runs.with_settings(configs.load_config('megabyte/mini.py'), settings))
  runs.train_from_config(config, tmp_path / 'run', evaluates=False, echo=lambda line: None)
  words = ['sample', '--run', str(tmp_path / 'run'), '--num', '3', '--greedy', '--seed', '1']
  out = {name: str(tmp_path / name) for name in ('grid.png', 'all.npz')}
  assert cli.main([*words, '--output', out['grid.png'], '--array', out['all.npz']]) == 0
  images = np.load(out['all.npz'])['arr_0']
  assert images.shape == (3, 4, 4, 3) and Image.open(out['grid.png']).size >= (8, 8)
  row = jaxmm.load(tmp_path / 'run').write([b''], 48, seed=1, greedy=True)[0]
  np.testing.assert_array_equal(byte_images.image_bytes(images[0], order, 12), [*row])
  assert cli.main([*words, '--output', out['grid.png'], '--labels', '3']) == 2


def test_a_split_without_documents_says_how_they_are_split(tmp_path):
  (tmp_path / 'a.txt').write_text('ein Text')
  message = 'holds no text: documents are split by a hash of their names, 0.1 of them for test'
  with pytest.raises(ConfigError, match=message):
    config = runs.with_settings(configs.load_config('megabyte/mini.py'), [f'data.path={tmp_path}'])
    for train in (True, False):
      runs.make_batches(configs.plain(config), train=train)


@pytest.mark.parametrize(
  'prompts, options, message',
  [
    (['a' * 60], {'length': 10}, 'model.length'),
    (['a'], {'length': 0}, 'length is 0, .* expected 1 to'),
    ([], {'length': 3}, 'no prompt'),
    (['a'], {'length': 3, 'guidance_scale': 2.0}, 'guidance_scale'),
    (['a'], {'length': 3, 'temprature': 2.0}, 'temperature'),
  ],
)
@pytest.mark.parametrize('name', ['lm', 'megabyte'])
def test_what_cannot_be_is_said(trained, name, prompts, options, message):
  with pytest.raises(ConfigError, match=message):
    texts.sample(jaxmm.load(trained[name]), prompts, show=lambda text: None, **options)


@pytest.mark.parametrize('name', ['lm', 'megabyte'])
def test_texts_are_the_same_on_one_device_as_on_all(trained, name):
  model = jaxmm.load(trained[name])
  assert len(jax.tree.leaves(model.variables)[0].sharding.device_set) == len(jax.devices()) == 8
  alone = dataclasses.replace(model, variables=jax.device_put(model.variables, jax.devices()[3]))
  prompts = ['eins', 'a', 'zwei drei']
  assert alone.write(prompts, 13, seed=2) == model.write(prompts, 13, seed=2)


def test_nothing_is_shown_of_a_prompt_that_is_refused(trained, capsys):
  words = ['sample', '--run', str(trained['megabyte']), '--prompt', 'x' * 60, '--length']
  assert cli.main([*words, '5']) == 2
  shown = capsys.readouterr()
  assert shown.out == '' and shown.err.startswith('jaxmm sample: length is 5')
  assert 'prompt takes 60 of the 64 bytes of model.length: expected 1 to 4' in shown.err
  assert '(--length)' in shown.err
  assert cli.main(['sample', '--run', str(trained['megabyte']), '--prompt', 'x' * 64]) == 2
  assert 'there is room for none; write less, or give a shorter' in capsys.readouterr().err
  assert cli.main([*words, '3', '--output', 'x.png']) == 2
  assert 'texts are written as JSON lines' in capsys.readouterr().err


def test_prompts_that_are_no_text(trained, capsys):
  model = jaxmm.load(trained['megabyte'])
  with pytest.raises(ConfigError, match=r"prompts is 'eins', expected a list of texts: \['eins'\]"):
    model.write('eins', 3)
  with pytest.raises(ConfigError, match='half a character'):
    model.write(['\ud83d'], 3)
  # What a terminal hands over of bytes that are no UTF-8 stands for these bytes.
  assert model.write(['ein\udcff'], 5) == model.write([b'ein\xff'], 5)
  words = ['sample', '--run', str(trained['megabyte']), '--length', '5', '--prompt']
  assert cli.main([*words, 'ein\udcff']) == 0
  assert capsys.readouterr().out.startswith('ein\ufffd')
  # A MEGABYTE begins from nothing, too.
  assert len(model.write([''], 6)[0]) == 6


def test_a_batch_of_nothing(trained, capsys):
  assert cli.main(['evaluate', '--run', str(trained['megabyte']), '--batch', '0']) == 2
  assert 'batch is 0' in capsys.readouterr().err


def test_options_of_images_and_of_text_do_not_mix(trained, capsys):
  words = ['sample', '--run', str(trained['lm'])]
  assert cli.main([*words, '--prompt', 'a', '--labels', '1']) == 2
  assert '--labels does nothing for text behind a --prompt' in capsys.readouterr().err
  assert cli.main(words) == 2
  assert '--output' in capsys.readouterr().err


@pytest.mark.slow
def test_megabyte_is_evaluated_in_windows_and_strides(trained):
  run = trained['megabyte']
  words = ['evaluate', '--run', str(run), '--batch', '8', '--config.eval_data.text.length=256']
  more = ['--config.model.strided=True', '--config.model.sliding=32']
  assert cli.main([*words, *more]) == 0
  record = json.loads((run / 'evaluation.json').read_text())
  assert record['settings'] == [w.removeprefix('--config.') for w in (words[-1], *more)]
  found = {
    name.partition('/')[0]: value
    for name, value in record['results'].items()
    if name.endswith('/bits_per_byte')
  }
  assert set(found) == {'likelihood', 'strided', 'sliding', 'sliding_strided'}
  model = jaxmm.load(run)
  text = (run.parent / 'text.txt').read_bytes()
  held_out = np.frombuffer(text[text.find(b'\n', int(len(text) * 0.9)) + 1 :], np.uint8)
  config, params = model.task.config, model.variables['params']
  assert config.length == 64 and len(held_out) > 1000
  for name, stride, score in (
    ('likelihood', 64, byte_nll), ('sliding', 32, byte_nll),
    ('strided', 64, strided_nll), ('sliding_strided', 32, strided_nll),
  ):  # fmt: skip
    nats, score = 0.0, jax.jit(score, static_argnums=1)
    for row in (held_out[at : at + 256] for at in range(0, len(held_out), 256)):
      for begin in range(0, max(len(row) - 64 + stride, 1), stride):
        ids = np.full((1, 64), config.pad_id)
        window = row[begin : begin + 64]
        ids[0, : len(window)] = window
        new = np.arange(64) >= (64 - stride if begin else 0)
        nats += np.asarray(score(params, config, ids))[0, : len(window)][new[: len(window)]].sum()
    assert found[name] == pytest.approx(nats / np.log(2) / len(held_out), rel=1e-5)


def test_windows_that_cannot_be_are_named(trained, capsys):
  words = ['evaluate', '--run', str(trained['megabyte']), '--batch', '8']
  for settings, message in (
    (['model.sliding=32'], 'rows of eval_data have 64 bytes and a window 64'),
    (['model.sliding=30'], 'model.sliding is 30, expected a multiple of model.patch 4'),
    (['model.sliding=128'], 'model.sliding is 128, expected a multiple'),
    (['model.global_width=32'], 'model.global_width=32 wants other parameters'),
    (['model.local_depth=3'], 'model.local_depth=3 wants other parameters'),
    (['model.conv_encoder=True'], 'model.conv_encoder=True wants other parameters'),
    (['steps=3'], 'steps belongs to training'),
  ):
    assert cli.main([*words, *(f'--config.{s}' for s in settings)]) == 2
    assert message in capsys.readouterr().err


def test_documents_kept_apart_begin_at_patches(tmp_path):
  for i in range(4):
    (tmp_path / f'{i}.txt').write_text('some words ' * (7 + i))
  settings = (*SETTINGS, *MEGABYTE, f'data.path={tmp_path}', 'model.separate_documents=True')
  made = lambda *more: configs.plain(
    runs.with_settings(configs.load_config('megabyte/mini.py'), [*settings, *more])
  )
  found = made('data.split=all')
  task, batches = runs.make_task(found), runs.make_batches(found)
  runs.check_data(task, {'data': batches})
  begins = 0
  for step in range(4):
    segment = batches.at(step)['segment_BL']
    first = (np.diff(segment, axis=1, prepend=0) != 0) & (segment > 0)
    assert not (np.flatnonzero(first) % task.config.patch).any()
    begins += first[:, 1:].sum()
  assert begins  # of documents inside rows
  for of, more in (('text', ()), ('bytes', ('data.name=bytes', 'data.bytes.length=64'))):
    config = made(*more, f'data.{of}.align=2', 'data.split=all')
    with pytest.raises(ConfigError, match=f'data.{of}.align is 2, .* set data.{of}.align=4'):
      runs.train_from_config(config, tmp_path / 'run', evaluates=False)
  config = made('data.text.align=2', 'data.split=all', 'model.separate_documents=False')
  runs.check_data(runs.make_task(config), {'data': runs.make_batches(config)})


@pytest.mark.parametrize('size', ['text-758M-262M', 'audio-350M-125M'])
def test_documents_of_the_papers_runs_begin_at_patches(size):
  config = configs.plain(configs.load_config(f'megabyte/paper.py:{size}'))
  task = runs.make_task(config)
  for section in ('data', 'eval_data'):
    of = config[section][config[section]['name']]
    assert of['align'] == task.config.patch
