"""Text from trained runs: as it comes, whole, in any company; from Python and from the terminal."""

import json

import numpy as np
import pytest

import jaxmm
from jaxmm import cli
from jaxmm import config as configs
from jaxmm.config import ConfigError
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
  (at / 'text.txt').write_text(' '.join(rng.choice(['ein', 'zwei', 'drei'], 3000)))
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


def test_options_of_images_and_of_text_do_not_mix(trained, capsys):
  words = ['sample', '--run', str(trained['lm'])]
  assert cli.main([*words, '--prompt', 'a', '--labels', '1']) == 2
  assert '--labels is of models of classes' in capsys.readouterr().err
  assert cli.main(words) == 2
  assert '--output' in capsys.readouterr().err
