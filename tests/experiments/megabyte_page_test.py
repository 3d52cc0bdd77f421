"""The training commands of MEGABYTE's page: their settings go together on data of their kind."""

import re
import shlex
import wave

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmm import config as configs
from jaxmm.studies import run
from tests.experiments.configs_test import ROOT

PAGE = (ROOT / 'megabyte/README.md').read_text().replace('\\\n', ' ')
COMMANDS = re.findall(r'^jaxmm train --config experiments/(megabyte/mini.py .*)', PAGE, re.M)
NUM = 40  # files of each kind


@pytest.fixture(scope='module')
def files(tmp_path_factory):
  """What the page calls TEXT, WAVS and PICTURES."""
  at, rng = tmp_path_factory.mktemp('files'), np.random.default_rng(0)
  for name in ('TEXT', 'WAVS', 'PICTURES'):
    (at / name).mkdir()
  (at / 'WAVS' / 'about.txt').write_text('no sound')
  for i in range(NUM):
    (at / 'TEXT' / f'{i}.txt').write_text('the dog lay on the log.\n' * 50)
    with wave.open(str(at / 'WAVS' / f'{i}.wav'), 'wb') as sound:
      sound.setparams((1, 2, 8000, 0, 'NONE', ''))
      sound.writeframes(rng.integers(-50, 51, 900).astype('<i2').tobytes())
    picture = rng.integers(256, size=(20, 24, 3), dtype=np.uint8)
    Image.fromarray(picture).save(at / 'PICTURES' / f'{i}.png')
  return at


def test_the_page_has_its_commands():
  assert len(COMMANDS) == 4


@pytest.mark.parametrize('command', COMMANDS)
def test_the_settings_of_a_command_go_together(command, files, monkeypatch):
  monkeypatch.chdir(files)
  file, *words = shlex.split(command)
  settings = [word.removeprefix('--config.') for word in words if word.startswith('--config.')]
  config = run.with_settings(configs.load_config(f'{ROOT}/{file}'), settings)
  task = run.make_task(config)
  both = {
    section: run.make_batches(config, train=section == 'data') for section in ('data', 'eval_data')
  }
  run.check_data(task, both)
  for batches in both.values():
    batch = next(batches.once())
    assert jax.eval_shape(task.init, jax.random.key(0), batch)['params']
  if 'WAVS' in command:  # about.txt is not among them
    num = sum(len(batches.source.documents) for batches in both.values())
    assert num == NUM
