"""TFDS data sets without TensorFlow: one made here, and CIFAR-10's own builder on small files."""

import dataclasses
import functools
import http.server
import io
import tarfile
import threading

import numpy as np
import pyarrow as pa
import pytest
import tensorflow_datasets as tfds
from PIL import Image
from tensorflow_datasets.image_classification import cifar

from jaxmm import cli
from jaxmm.config import ConfigError
from jaxmm.curation import keep_list
from jaxmm.data import corpus, kept
from jaxmm.data.corpus import CorpusConfig
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.data.tfds_source import TfdsSource
from tests.references.kept_records import write_list


class JaxmmTinyPictures(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version('1.0.0')

  def _info(self):
    features = {
      'image': tfds.features.Image(shape=(6, 6, 3)),
      'label': tfds.features.ClassLabel(names=['a', 'b']),
      'caption': tfds.features.Text(),
    }
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

  def _split_generators(self, dl_manager):
    return {'train': self._generate_examples(5), 'test': self._generate_examples(2)}

  def _generate_examples(self, num):
    for i in range(num):
      picture = np.full((6, 6, 3), 10 * i, np.uint8)
      out = io.BytesIO()
      Image.fromarray(picture).save(out, 'PNG')
      out.seek(0)
      # Data sets give arrays (as CIFAR-10 does) or files.
      yield i, {'image': picture if i % 2 else out, 'label': i % 2, 'caption': f'Nummer fünf: {i}'}


def test_tfds_is_read_without_tensorflow(tmp_path):
  assert JaxmmTinyPictures.name == 'jaxmm_tiny_pictures'
  config = DataConfig(name='tfds:jaxmm_tiny_pictures', path=str(tmp_path), image_size=6)
  batches = make_batches(config, batch_size=5, seed=0)
  batch = batches.at(0)
  assert batches.num_records == 5 and batches.num_classes == 2
  np.testing.assert_array_equal(np.sort(batch['image_BYXC'][:, 0, 0, 0]), [0, 10, 20, 30, 40])
  np.testing.assert_array_equal(batch['label_B'], batch['image_BYXC'][:, 0, 0, 0] // 10 % 2)
  ids = [batches.source.id(i) for i in range(5)]
  assert ids[3] == 'tfds:jaxmm_tiny_pictures/train[3]'
  verdicts = {name: i in (1, 3) for i, name in enumerate(ids)}
  where = str(write_list(tmp_path / 'keep.parquet', verdicts))
  batches = make_batches(dataclasses.replace(config, keep_list=where), batch_size=2, seed=0)
  pictures = batches.at(7)['image_BYXC'][:, 0, 0, 0]
  assert {batches.describe(0), batches.describe(1)} == {ids[1], ids[3]} and len(set(pictures)) == 2
  digest_N = [kept.digest(n, b'\0' + batches.source[i]['image']) for i, n in enumerate(ids)]
  for of_3, is_other in ((digest_N[3], False), (digest_N[2], True)):
    digests = pa.array([*digest_N[:3], of_3, digest_N[4]], pa.uint64())
    write_list(tmp_path / 'keep.parquet', verdicts, digest=digests)
    batches = make_batches(dataclasses.replace(config, keep_list=where), batch_size=2, seed=0)
    if is_other:
      with pytest.raises(ConfigError, match=r'train\[3\].* is another than when the list was made'):
        batches.at(0)
    else:
      assert batches.at(0)['valid_B'].all()


def test_a_list_of_a_tfds_data_set_is_of_what_training_reads(tmp_path, monkeypatch, capsys):
  # TFDS reads the variable once, when it is imported.
  monkeypatch.setattr(tfds.core.constants, 'DATA_DIR', str(tmp_path))
  given, out = 'tfds:jaxmm_tiny_pictures/train', tmp_path / 'keep.parquet'
  inputs = CorpusConfig((given,), text_field='caption', image_field='image')
  [shard] = corpus.shards(inputs)
  found = list(corpus.examples(shard, inputs))
  assert {e.text for e in found} == {f'Nummer fünf: {i}' for i in range(5)}
  assert all(e.image.startswith(b'\x89PNG') and e.record['label'] in (0, 1) for e in found)
  words = ['--input', given, '--text-field', 'caption', '--shingle-size', '1']
  words += ['--threshold', '0.6', '--survivor', 'first_id', '--processes', '1']
  assert cli.main(['curate', 'minhash', *words, '--output', str(out)]) == 0
  keep = keep_list.read(out)
  config = DataConfig(name='tfds:jaxmm_tiny_pictures', path=str(tmp_path), image_size=6)
  source = make_batches(config, batch_size=1, seed=0).source
  assert keep.table['id'].to_pylist() == [source.id(i) for i in range(5)]
  assert [e.id for e in found] == keep.table['id'].to_pylist()
  for example, i in zip(found, range(5)):
    assert example.image == source[i]['image']
  kept = make_batches(dataclasses.replace(config, keep_list=str(out)), batch_size=1, seed=0)
  assert kept.num_records == keep.num_kept
  assert cli.main(['curate', 'minhash', *words, '--output', str(out)]) == 0
  assert '1 of 1 files done before' in capsys.readouterr().out


def test_tfds_inputs_are_name_and_split(tmp_path):
  for given in ('tfds:mnist', 'tfds:mnist/', 'tfds:train', 'tfds:mnist/half'):
    inputs = CorpusConfig((given,))
    with pytest.raises(ConfigError, match="expected tfds:NAME/SPLIT, where SPLIT is 'train'"):
      [list(corpus.examples(shard, inputs)) for shard in corpus.shards(inputs)]


def test_tfds_says_what_went_wrong(tmp_path):
  with pytest.raises(ConfigError, match="TFDS cannot give 'no_such_data'"):
    TfdsSource('tfds:no_such_data', 'train', str(tmp_path))


@pytest.fixture
def server(tmp_path):
  """A web server on this machine with an archive laid out like CIFAR-10's."""
  rng = np.random.default_rng(0)
  pictures = rng.integers(0, 256, (6, 3, 32, 32), np.uint8)
  files = {f'data_batch_{i}.bin': bytes([i]) + pictures[i - 1].tobytes() for i in range(1, 6)}
  files |= {'test_batch.bin': bytes([9]) + pictures[5].tobytes()}
  files |= {'batches.meta.txt': '\n'.join(f'class{i}' for i in range(10)).encode()}
  (tmp_path / 'served').mkdir()
  with tarfile.open(tmp_path / 'served' / 'cifar.tar.gz', 'w:gz') as archive:
    for name, data in files.items():
      info = tarfile.TarInfo(f'cifar-10-batches-bin/{name}')
      info.size = len(data)
      archive.addfile(info, io.BytesIO(data))
  handler = functools.partial(_Quiet, directory=str(tmp_path / 'served'))
  with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as running:
    threading.Thread(target=running.serve_forever, daemon=True).start()
    yield f'http://127.0.0.1:{running.server_port}/cifar.tar.gz', pictures
    running.shutdown()


class _Quiet(http.server.SimpleHTTPRequestHandler):
  def log_message(self, *args):
    pass


def test_cifar10_is_downloaded_and_prepared(server, tmp_path, monkeypatch):
  url, pictures = server
  for name in ('http_proxy', 'HTTP_PROXY', 'all_proxy', 'ALL_PROXY'):
    monkeypatch.delenv(name, raising=False)
  info = tfds.builder('cifar10', data_dir=str(tmp_path))._cifar_info._replace(url=url)
  monkeypatch.setattr(cifar.Cifar10, '_cifar_info', property(lambda self: info))
  config = DataConfig(name='cifar10', path=str(tmp_path / 'data'), image_size=32, crop='none')
  batches = make_batches(config, batch_size=5, seed=0)
  batch = batches.at(0)
  assert batches.num_records == 5 and batches.num_classes == 10
  for image, label in zip(batch['image_BYXC'], batch['label_B'], strict=True):
    np.testing.assert_array_equal(image, pictures[label - 1].transpose(1, 2, 0))
  test = TfdsSource('cifar10', 'test', str(tmp_path / 'data'))
  assert len(test) == 1 and test[0]['label'] == 9
