"""Pictures that runs rebuild and draw, measured; checkpoints evaluated as they come."""

import json
import os
import shutil
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from jaxmm import cli, sharding
from jaxmm.checkpoint import CheckpointError, Checkpoints
from jaxmm.config import ConfigError
from jaxmm.evaluate import statistics_file
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance
from jaxmm.studies import drawn_sets, evaluation, image_sets, loading
from jaxmm.studies.evaluation import PictureOptions
from tests import tiny_features, tiny_runs
from tests.multiprocess import run_processes
from tests.programs import run_verbs

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setattr(image_sets, 'inception_network', tiny_features.network)


def on_devices(monkeypatch, num: int) -> None:
  mesh = sharding.make_mesh(devices=jax.devices()[:num])
  monkeypatch.setattr(image_sets, 'mesh_of_all', lambda: mesh)


def pool(images: np.ndarray) -> FeatureStatistics:
  network = tiny_features.network()
  return FeatureStatistics.of(network.fn(network.params, images)['pool'])


def test_a_tokenizers_pictures_are_measured(path, monkeypatch, tmp_path):
  loaded = loading.load(path.tokenizer)
  originals = np.stack(
    [x for b in evaluation.run.make_batches(loaded.config, train=False, batch=5).once()
     for x, valid in zip(b['image_BYXC'], b['valid_B']) if valid]
  )  # fmt: skip
  rebuilt = loaded.reconstruct(originals)
  error = np.mean((rebuilt.astype(np.float64) - originals) ** 2, (1, 2, 3))
  expected = {
    'images': len(originals),
    'mse': error.mean(),
    'psnr': (10 * np.log10(255**2 / error)).mean(),
    'rfid': frechet_distance(pool(rebuilt), pool(originals)),
    'code_usage': len(np.unique(loaded.encode(originals))) / tiny_runs.CODES,
  }
  for devices, batch in [(1, 4), (8, 8), (1, 7)]:
    on_devices(monkeypatch, devices)
    # Anew each time: what is there would not be computed again.
    at = evaluation.reconstructions.measure(
      loaded, tmp_path / f'{devices}-{batch}', network=tiny_features.network(), batch=batch,
      echo=lambda line: None,
    )  # fmt: skip
    found = evaluation.reconstructions.results(
      at, num_codes=loaded.num_codes, echo=lambda line: None
    )
    for name, value in expected.items():
      assert found[name] == pytest.approx(value, rel=1e-6), name
  assert 'ssim' not in found and 'lpips' not in found  # 8 pixels are too few; no weights


def test_the_verb_adds_them_to_the_runs_own(path, capsys):
  statistics_file.write_images(
    path.tokenizer / 'reference.npz',
    np.random.default_rng(0).integers(0, 256, (9, 8, 8, 3), dtype=np.uint8),
  )
  words = ['--inception', 'w', '--reference', str(path.tokenizer / 'reference.npz'), '--batch', '3']
  assert cli.main(['evaluate', '--run', str(path.tokenizer), *words]) == 0
  record = json.loads((path.tokenizer / 'evaluation.json').read_text())
  results = record['results']
  assert results['rebuilt/rfid'] > 0 and results['rebuilt/fid'] > 0
  assert results['rebuilt/psnr'] == pytest.approx(results['reconstruction/psnr'], rel=2e-2)
  assert record['pictures']['reference'].endswith('reference.npz')
  assert 'rebuilt/rfid' in capsys.readouterr().out


def test_images_that_are_drawn_do_not_depend_on_batch_and_mesh(path, monkeypatch, tmp_path):
  loaded, stores = loading.load(path.lm), []
  for devices, batch in [(1, 4), (8, 8), (1, 11)]:
    on_devices(monkeypatch, devices)
    stores.append(
      drawn_sets.draw(
        loaded, 11, tiny_features.network(), tmp_path / f'{devices}-{batch}', batch=batch, seed=3,
        echo=lambda line: None,
      )
    )  # fmt: skip
  labels = np.arange(11) % loaded.task.config.num_classes
  expected = loaded.sample(labels, seed=3, batch=11)
  expected_distance = frechet_distance(pool(expected), pool(255 - expected))
  sets = [image_sets.set_of_store(store) for store in stores]
  for store, found in zip(stores, sets):
    np.testing.assert_array_equal(store.read('image'), expected)
    distance = frechet_distance(found.statistics['pool'], pool(255 - expected))
    assert distance == pytest.approx(expected_distance, rel=1e-6)


def test_an_image_model_is_compared_with_a_reference(path):
  reference = path.lm / 'reference.npz'
  images = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 3), dtype=np.uint8)
  statistics_file.write_images(reference, images)
  words = ['--samples', '10', '--inception', 'w', '--reference', str(reference), '--batch', '4']
  assert cli.main(['evaluate', '--run', str(path.lm), *words]) == 0
  results = json.loads((path.lm / 'evaluation.json').read_text())['results']
  labels = np.arange(10) % loading.load(path.lm).task.config.num_classes
  drawn = loading.load(path.lm).sample(labels, batch=10)
  expected = frechet_distance(pool(drawn), pool(images))
  assert results['drawn/fid'] == pytest.approx(expected, rel=1e-5)
  assert 1 <= results['drawn/inception_score'] <= tiny_features.CLASSES


@pytest.mark.parametrize(
  'run, words, said',
  [
    ('lm', '--samples 4', 'seen by the FID Inception'),
    ('lm', '--inception w', 'are drawn'),
    ('lm', '--samples 4 --inception w --pairs', 'an image model draws none'),
    ('lm', '--samples 1 --inception w', 'expected 2 or more'),
    ('tokenizer', '--samples 4', 'does not draw pictures'),
    ('tokenizer', '--reference r.npz', 'name the FID Inception'),
    ('tokenizer', '--inception w --reference r.npz', 'there is no such file'),
  ],
)
def test_options_of_another_kind_of_run_are_refused(path, capsys, run, words, said):
  given = ['evaluate', '--run', str(getattr(path, run)), '--batch', '4', *words.split()]
  assert cli.main(given) == 2
  assert said in capsys.readouterr().err


def test_too_few_pictures_for_a_distance_are_refused(path):
  options = PictureOptions(weights='w')
  words = ['--config.eval_data.max_records=4']
  with pytest.raises(ConfigError, match='more than 6 samples'):
    evaluation.write(
      path.tokenizer, batch=4, overrides=[w.removeprefix('--config.') for w in words],
      pictures=options, echo=lambda line: None,
    )  # fmt: skip


def test_a_training_run_is_followed_from_another_process(path, tmp_path):
  run = tmp_path / 'run'
  where = [f'--config.{d}.path={path.pictures}' for d in ('data', 'eval_data')]
  words = ['train', '--config', f'{tiny_runs.__file__}:baseline', '--workdir', str(run)]
  settings = ['--config.steps=6', '--config.checkpoint.keep=9']
  root = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
  training = subprocess.Popen(
    [sys.executable, '-m', 'jaxmm', *words, *where, *settings],
    cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip
  try:
    while not (run / 'config.json').is_file():
      assert training.poll() is None, training.stderr.read()[-2000:]
      time.sleep(0.1)
    lines = []
    file = evaluation.follow(run, every_s=0.1, batch=5, echo=lines.append)
    assert training.wait(timeout=60) == 0
  finally:
    training.kill()
  records = evaluation.read_followed(file)
  assert [r['step'] for r in records] == [2, 4, 6]
  assert len({r['results']['reconstruction/mse'] for r in records}) == 3
  # The last is what the verb says of the finished run.
  evaluation.write(run, batch=8, echo=lambda line: None)
  last = json.loads((run / 'evaluation.json').read_text())
  for name, value in last['results'].items():
    assert records[-1]['results'][name] == pytest.approx(value, rel=1e-5), name
  assert any('waiting for a checkpoint after step 0 of 6' in line for line in lines)
  assert lines[-1].endswith('all 6 steps are done')


def test_following_goes_on_and_passes_over_what_is_gone(path, tmp_path, monkeypatch):
  run = tmp_path / 'run'
  both = ' '.join(f'--config.{d}.path={path.pictures}' for d in ('data', 'eval_data'))
  run_verbs(f'train --config {tiny_runs.__file__}:baseline --workdir {run} {both}')
  assert Checkpoints(run / 'checkpoints').steps() == [2, 4]
  load, lines = loading.load, []

  def gone(directory, *, step=None, **options):
    if step == 2:
      raise CheckpointError('there is no such directory')
    return load(directory, step=step, **options)

  monkeypatch.setattr(loading, 'load', gone)
  file = evaluation.follow(run, batch=4, echo=lines.append)
  assert [r['step'] for r in evaluation.read_followed(file)] == [4]
  assert any('step 2 is passed over' in line for line in lines)
  with file.open('a') as stream:
    stream.write('{"step": 9, "resu')  # cut off by a kill
  monkeypatch.setattr(loading, 'load', load)
  evaluation.follow(run, batch=4, echo=lines.append)
  assert [r['step'] for r in evaluation.read_followed(file)] == [4, 2]


PROCESSES = """
import sys
from jaxmm.studies import evaluation, image_sets
from tests import tiny_features
image_sets.inception_network = tiny_features.network
options = evaluation.PictureOptions(weights='w')
evaluation.write(sys.argv[1], batch=5, pictures=options, echo=lambda line: None)
"""


def test_two_processes_evaluate_a_run(path, tmp_path):
  shutil.copytree(path.tokenizer, tmp_path / 'run', ignore=shutil.ignore_patterns('evaluation*'))
  run_processes(2, PROCESSES, 2, [tmp_path / 'run'])
  found = json.loads((tmp_path / 'run' / 'evaluation.json').read_text())['results']
  evaluation.write(
    path.tokenizer, batch=10, pictures=PictureOptions(weights='w'), echo=lambda line: None
  )
  expected = json.loads((path.tokenizer / 'evaluation.json').read_text())['results']
  assert found.keys() == expected.keys() and found['rebuilt/rfid'] > 0
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-6), name
