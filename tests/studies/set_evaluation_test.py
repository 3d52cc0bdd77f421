"""Evaluations without a run: their definitions on whole arrays, on any mesh, batch and process."""

import json
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from jaxmm import cli, sharding
from jaxmm.config import ConfigError
from jaxmm.evaluate import images as image_metrics
from jaxmm.evaluate import manifold, statistics_file
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance, kernel_distance
from jaxmm.studies import image_sets, set_evaluation
from tests import tiny_features
from tests.multiprocess import run_processes

NUM, OTHERS, SIDE = 37, 29, 16


def pictures(num: int, seed: int) -> np.ndarray:
  rng = np.random.default_rng(seed)
  base = rng.integers(0, 256, (num, 4, 4, 3))
  return np.clip(base.repeat(4, 1).repeat(4, 2) + rng.normal(0, 9, (num, SIDE, SIDE, 3)), 0, 255)


def write_folder(folder: pathlib.Path, images: np.ndarray) -> pathlib.Path:
  folder.mkdir(parents=True)
  for i, image in enumerate(images):
    Image.fromarray(image).save(folder / f'{i:03}.png')
  return folder


@pytest.fixture(scope='module')
def sets(tmp_path_factory):
  """A sample batch and a folder, of which one picture is damaged; the pictures of both."""
  at = tmp_path_factory.mktemp('sets')
  samples, real = (pictures(n, seed).astype(np.uint8) for n, seed in ((NUM, 1), (OTHERS, 2)))
  statistics_file.write_images(at / 'samples.npz', samples)
  write_folder(at / 'real', real)
  (at / 'real' / '011.png').write_bytes(b'\x89PNG rubbish')
  return at, samples, np.delete(real, 11, 0)


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setattr(image_sets, 'inception_network', tiny_features.network)
  # One picture of 29 may be damaged here.
  config = image_sets.pipeline.DataConfig
  monkeypatch.setattr(
    image_sets.pipeline, 'DataConfig', lambda **k: config(**k, max_bad_fraction=0.1)
  )


def on_devices(monkeypatch, num: int) -> None:
  mesh = sharding.make_mesh(devices=jax.devices()[:num])
  monkeypatch.setattr(image_sets, 'mesh_of_all', lambda: mesh)


def expected_of(samples, real) -> dict:
  network = tiny_features.network()
  rows = [network.fn(network.params, x) for x in (samples, real)]
  pool = [np.asarray(r['pool'], np.float64) for r in rows]
  spatial = [np.asarray(r['spatial'], np.float64) for r in rows]
  distance = lambda pair: frechet_distance(*map(FeatureStatistics.of, pair))
  return {
    'fid': distance(pool),
    'sfid': distance(spatial),
    'kid': kernel_distance(*pool[::-1]),
    **manifold.precision_recall(*pool[::-1]),
  }


@pytest.mark.parametrize('devices, batch', [(1, 8), (8, 8), (1, 5), (8, 13), (1, 64)])
def test_two_sets_on_any_mesh_and_batch(sets, tmp_path, monkeypatch, devices, batch):
  at, samples, real = sets
  on_devices(monkeypatch, devices)
  lines = []
  found = set_evaluation.compare(
    str(at / 'samples.npz'), tmp_path, weights='w', reference=str(at / 'real'), batch=batch,
    echo=lines.append,
  )  # fmt: skip
  expected = expected_of(samples, real)
  assert expected['fid'] > 0.01 and 0 < expected['precision'] < 1
  for name, value in expected.items():
    assert found[name] == pytest.approx(value, rel=1e-6), name
  assert found['images'] == NUM and found['unreadable'] == 0
  written = json.loads((tmp_path / 'evaluation.json').read_text())
  assert written['results'] == found and written['settings']['convention'] == 'adm'
  assert any(line.startswith('fid ') for line in lines)


PROCESSES = """
import json, sys
import jax
from jaxmm.studies import image_sets, set_evaluation
from tests import tiny_features
image_sets.inception_network = tiny_features.network
config = image_sets.pipeline.DataConfig
image_sets.pipeline.DataConfig = lambda **k: config(**k, max_bad_fraction=0.1)
found = set_evaluation.compare(sys.argv[1] + '/samples.npz', sys.argv[2], weights='w', batch=7,
                               reference=sys.argv[1] + '/real', echo=lambda line: None)
print(json.dumps(found))
"""


def test_two_sets_in_two_processes(sets, tmp_path):
  at, samples, real = sets
  printed = run_processes(2, PROCESSES, 2, [at, tmp_path])
  found = [json.loads(text) for text in printed]
  assert found[0] == found[1]
  for name, value in expected_of(samples, real).items():
    assert found[0][name] == pytest.approx(value, rel=1e-6), name


def test_features_that_are_there_are_not_computed_again(sets, tmp_path, monkeypatch):
  at, _, _ = sets
  compare = lambda **k: set_evaluation.compare(
    str(at / 'samples.npz'), tmp_path, weights='w', echo=lambda line: None, **k
  )
  first = compare(reference=str(at / 'real'))
  network = tiny_features.network()
  broken = image_sets.Network(network.params, None, network.fields, network.identity)
  monkeypatch.setattr(image_sets, 'inception_network', lambda *_: broken)
  assert compare(reference=str(at / 'real')) == first
  # Another picture in the folder is another set, whatever it is called.
  folder = write_folder(tmp_path / 'real', pictures(5, 3).astype(np.uint8))
  with pytest.raises(TypeError, match='not callable'):
    compare(reference=str(folder))


def test_statistics_serve_as_reference(sets, tmp_path, monkeypatch):
  at, samples, real = sets
  widths = {'pool': ('mu', 'sigma', 6, 'x'), 'spatial': ('mu_s', 'sigma_s', 4, 'y')}
  monkeypatch.setattr(statistics_file, '_ENTRIES', widths)
  lines = []
  options = dict(weights='w', echo=lines.append)
  file = str(tmp_path / 'real.npz')
  set_evaluation.compare(str(at / 'real'), tmp_path / 'a', statistics=file, **options)
  found = set_evaluation.compare(str(at / 'samples.npz'), tmp_path / 'b', reference=file, **options)
  expected = expected_of(samples, real)
  assert found['fid'] == pytest.approx(expected['fid'], rel=1e-6)
  assert found['sfid'] == pytest.approx(expected['sfid'], rel=1e-6)
  assert 'precision' not in found
  assert any('the reference has statistics, but no pictures' in line for line in lines)
  # As ADM's reference batches: statistics of one set, pictures of another.
  with np.load(file) as arrays:
    np.savez(tmp_path / 'both.npz', arr_0=real[:20], **{k: arrays[k] for k in ('mu', 'sigma')})
  both = str(tmp_path / 'both.npz')
  found = set_evaluation.compare(str(at / 'samples.npz'), tmp_path / 'b', reference=both, **options)
  assert found['fid'] == pytest.approx(expected['fid'], rel=1e-6)
  assert found['precision'] == expected_of(samples, real[:20])['precision']


@pytest.mark.parametrize('devices, batch', [(1, 5), (8, 16)])
def test_pairs_are_means_over_pictures(sets, tmp_path, monkeypatch, devices, batch):
  on_devices(monkeypatch, devices)
  _, samples, _ = sets
  noisy = np.clip(samples + np.random.default_rng(0).normal(0, 12, samples.shape), 0, 255)
  noisy = noisy.astype(np.uint8)
  statistics_file.write_images(tmp_path / 'noisy.npz', noisy)
  write_folder(tmp_path / 'clean', samples)
  found = set_evaluation.compare(
    str(tmp_path / 'noisy.npz'), tmp_path / 'out', reference=str(tmp_path / 'clean'),
    is_paired=True, batch=batch, echo=lambda line: None,
  )  # fmt: skip
  error = np.mean((noisy.astype(np.float64) - samples) ** 2, (1, 2, 3))
  assert found['mse'] == pytest.approx(error.mean(), rel=1e-6)
  assert found['psnr'] == pytest.approx((10 * np.log10(255**2 / error)).mean(), rel=1e-6)
  total, count = image_metrics.ssim(noisy, samples, data_range=255)
  assert found['ssim'] == pytest.approx(float(total / count), rel=1e-6)
  assert 'ms_ssim' not in found  # its window does not fit


@pytest.mark.parametrize('is_cosine, expected', [(True, 1.0), (False, 0.5)])
def test_retrieval_of_files(tmp_path, is_cosine, expected):
  keys = np.eye(6, dtype=np.float32) * np.float32([1, 1, 1, 1, 1, 9])
  queries = keys[:4] / 2 + np.float32([0, 0, 0, 0, 0, 0.2])
  np.save(tmp_path / 'q.npy', queries)
  np.save(tmp_path / 'k.npy', keys)
  words = [] if is_cosine else ['--inner-product']
  out = ['--queries', tmp_path / 'q.npy', '--keys', tmp_path / 'k.npy', '--output', tmp_path / 'o']
  assert cli.main(['evaluate', *map(str, out), '--at', '1', '2', *words]) == 0
  found = json.loads((tmp_path / 'o' / 'evaluation.json').read_text())['results']
  # Unnormalised, the long key comes before the right one.
  assert found == {
    'queries': 4, 'keys': 6, 'recall_at_1': float(is_cosine), 'recall_at_2': 1.0, 'mrr': expected,
  }  # fmt: skip


@pytest.mark.parametrize(
  'words, said',
  [
    ('', 'none of --run, --images and --queries is given'),
    ('--run a --images b', '--run, --images of --run, --images and --queries'),
    ('--images a --steps 3', '--steps does nothing for --images'),
    ('--run a --keys b', '--keys does nothing for --run'),
    ('--images {at}/samples.npz', '--output DIR is needed'),
    ('--images {at}/samples.npz --output {out}', 'nothing to do with'),
    ('--images {at}/samples.npz --output {out} --pairs', 'name one'),
    ('--images {at}/samples.npz --output {out} --inception w --lpips f', '--lpips is of pairs'),
    ('--images {at}/absent.npz --output {out} --inception w', 'there is no such file'),
    ('--images {at}/samples.npz --output {out} --inception w --image-size 9', 'leave it out'),
    ('--images {at}/samples.npz --output {out} --pairs --reference {at}/real', '37 pictures, '),
    ('--images {at}/samples.npz --output {out} --labels l.csv', '--labels are for a --classifier'),
    ('--queries q --output {out}', '--queries look for --keys'),
    ('--queries q --keys k --output {out}', 'No such file'),
    ('--run a --follow --every-seconds 0', '--every-seconds is 0'),
  ],
)
def test_what_cannot_be_done_is_said(sets, tmp_path, capsys, words, said):
  words = words.format(at=sets[0], out=tmp_path / 'out').split()
  assert cli.main(['evaluate', *words]) == 2
  assert said in capsys.readouterr().err


def test_too_few_pictures_are_refused_before_features_are_computed(sets, tmp_path, monkeypatch):
  monkeypatch.setattr(image_sets, 'features_of', lambda *_, **__: pytest.fail('computed'))
  at, samples, _ = sets
  statistics_file.write_images(tmp_path / 'few.npz', samples[:6])
  with pytest.raises(ConfigError, match='more than 6 samples of each set, got 6'):
    set_evaluation.compare(
      str(tmp_path / 'few.npz'), tmp_path, weights='w', reference=str(at / 'samples.npz')
    )


def test_pictures_of_several_sizes_want_one(tmp_path):
  folder = write_folder(tmp_path / 'mixed', pictures(3, 0).astype(np.uint8))
  Image.new('L', (40, 24)).save(folder / '003.png')  # grey and wide
  options = dict(weights='w', few_samples='accept', echo=lambda line: None)
  with pytest.raises(ConfigError, match='data.image_size'):
    set_evaluation.compare(str(folder), tmp_path / 'a', **options)
  found = set_evaluation.compare(str(folder), tmp_path / 'b', image_size=16, **options)
  assert found['images'] == 4
