"""From a corpus with duplicates to a model that never saw them, on the command line; killed it goes
on as if it had not been."""

import json
import re

import jax
import numpy as np
import pytest

from jaxmm import cli
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.curation import keep_list
from jaxmm.data import pipeline
from jaxmm.studies import run
from jaxmm.train import log
from tests.references.kept_records import write_list

CONFIG = 'experiments/lm/mini.py'
TINY = ('model.size=micro', 'model.depth=1', 'model.width=32', 'data.text.length=32', 'steps=7',
        'batch=8', 'checkpoint.every=2', 'log.every=1', 'data.split=all',
        'eval_data.split=all', 'data.id_field=id')  # fmt: skip


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(0)
  words = [f'word{i}' for i in range(90)]
  originals = [' '.join(rng.choice(words, 25)) for _ in range(20)]
  return [text for i, text in enumerate(originals) for _ in range(1 + i % 3)]


@pytest.fixture(scope='module')
def corpus(texts, tmp_path_factory):
  path = tmp_path_factory.mktemp('corpus') / 'x.jsonl'
  lines = [json.dumps({'id': f'd{i:02}', 'text': text}) for i, text in enumerate(texts)]
  path.write_text('\n'.join(lines) + '\n')
  return path


@pytest.fixture(scope='module')
def keep(corpus):
  path = corpus.with_name('keep.parquet')
  words = ['curate', 'minhash', '--input', str(corpus), '--id-field', 'id', '--output', str(path)]
  assert cli.main([*words, '--processes', '1']) == 0
  assert keep_list.read(path).num_kept == 20
  return path


def _settings(corpus, *rest):
  return [f'--config.{setting}' for setting in (*TINY, f'data.path={corpus}', *rest)]


def _train(corpus, keep, workdir):
  words = ['train', '--config', CONFIG, '--workdir', str(workdir)]
  return cli.main([*words, *_settings(corpus, f'data.keep_list={keep}')])


def _apply(corpus, keep, workdir, *words):
  words = ['apply', str(keep), '--config', CONFIG, '--workdir', str(workdir), *words]
  return cli.main(['curate', *words, *_settings(corpus)])


def _state(corpus, keep, workdir):
  """Of a finished run."""
  settings = [*TINY, f'data.path={corpus}', f'data.keep_list={keep}']
  config = run.with_settings(configs.load_config(CONFIG), settings)
  return run.train_from_config(config, workdir)


def _assert_same_state(a, b):
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
    np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


@pytest.fixture(scope='module')
def whole(corpus, keep):
  """A run that nothing interrupted."""
  workdir = corpus.with_name('whole')
  assert _train(corpus, keep, workdir) == 0
  return workdir


def _log(workdir):
  return [
    {k: v for k, v in line.items() if k not in ('time', 'eta_seconds') and 'per_second' not in k}
    for line in log.read(workdir / 'log.jsonl')
  ]


def test_killed_in_the_middle_it_becomes_what_it_would_have_been(
  corpus, keep, whole, tmp_path, monkeypatch
):
  from_step = pipeline.Batches.from_step

  def dying(self, step):
    for number, rows in enumerate(from_step(self, step), step):
      if number == 5:
        raise SystemError('killed')
      yield rows

  with monkeypatch.context() as patch:
    patch.setattr(pipeline.Batches, 'from_step', dying)
    with pytest.raises(SystemError, match='killed'):
      _train(corpus, keep, tmp_path / 'run')
  assert _train(corpus, keep, tmp_path / 'run') == 0
  _assert_same_state(_state(corpus, keep, tmp_path / 'run'), _state(corpus, keep, whole))
  assert _log(tmp_path / 'run') == _log(whole)


def test_training_reads_the_kept_alone_and_the_held_out_part_whole(corpus, keep, texts):
  settings = [*TINY, f'data.path={corpus}', f'data.keep_list={keep}']
  config = run.with_settings(configs.load_config(CONFIG), settings)
  assert config.eval_data.path == str(corpus) and not config.eval_data.get('keep_list')
  assert config.eval_data.id_field == 'id'
  (train, held_out) = (run.make_batches(config, train=is_train) for is_train in (True, False))
  assert (
    len(train.source.documents) == 20 == len(set(texts)) and len(held_out.source.documents) == 39
  )
  with config.unlocked():
    config.eval_data.keep_list = str(keep)
  with pytest.raises(ConfigError, match='held-out data is never pruned'):
    run.make_batches(config, train=False)


def test_apply_is_train_with_the_list(corpus, keep, whole, tmp_path, capsys):
  assert _apply(corpus, keep, tmp_path / 'run', '--stop-after', '3') == 0
  assert _apply(corpus, keep, tmp_path / 'run') == 0
  _assert_same_state(_state(corpus, keep, tmp_path / 'run'), _state(corpus, keep, whole))
  assert _apply(corpus, keep, tmp_path / 'run', '--config.data.keep_list=other') == 2
  assert re.search('the keep-list is .*keep.parquet. already', capsys.readouterr().err)


def test_a_run_does_not_go_on_with_another_list(corpus, keep, tmp_path, capsys):
  # The path is the same, so only what was saved tells.
  of = keep_list.read(keep).table
  verdicts = dict(zip(of['id'].to_pylist(), of['keep'].to_pylist()))
  path = write_list(tmp_path / 'k.parquet', verdicts)
  _apply(corpus, path, tmp_path / 'run', '--stop-after', '2')
  kept = [name for name, is_kept in verdicts.items() if is_kept]
  dropped = next(name for name, is_kept in verdicts.items() if not is_kept)
  write_list(path, verdicts | {kept[0]: False, dropped: True})
  capsys.readouterr()
  assert _train(corpus, path, tmp_path / 'run') == 2
  assert 'keeps other records (20-' in capsys.readouterr().err
  assert _train(corpus, keep, tmp_path / 'run') == 2
  assert 'data.keep_list: ' in capsys.readouterr().err
  _apply(corpus, path, tmp_path / 'run', '--accept-config-change')
