"""Encoders for the embedding job: an LM's last states, pictures' features, and the verb."""

import dataclasses
import functools
import io
import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxmm import cli
from jaxmm.config import ConfigError
from jaxmm.curation import embeddings
from jaxmm.data.corpus import Example
from jaxmm.models import lm
from jaxmm.models.classifier import BlockGroup, ClassifierConfig, image_features
from jaxmm.studies import encoders, loading
from jaxmm.tokenizers import vqgan_task
from tests.bert_folder import write_bert
from tests.references import efficientnet as reference

CONFIG = lm.config_of({'size': 'micro', 'width': 16, 'num_heads': 2, 'length': 12})


@pytest.fixture
def run_dir(monkeypatch):
  """A run of an LM as `loading.load` gives it."""
  init = jax.jit(lm.Lm(CONFIG).init)(jax.random.key(0), jnp.zeros((1, 3), jnp.int32))
  text = {'tokenizer': 'bytes', 'bos_id': 257, 'eos_id': 258, 'pad_id': 256}
  config = {'task': 'jaxmm.models.lm', 'data': {'text': text}}
  run = loading.LoadedRun('run', config, lm.LmTask(CONFIG), 3, nn.unbox(init))
  monkeypatch.setattr(encoders.loading, 'load', lambda path: run)
  return run


def test_an_lm_gives_the_state_of_a_texts_last_token(run_dir):
  what = encoders.lm('run')
  texts = ['ab', 'cab and more than fits', 'c']
  rows = what.inputs.rows([Example(str(i), text) for i, text in enumerate(texts)])
  assert rows[0].tolist() == [257, ord('a'), ord('b')] and len(rows[1]) == CONFIG.length
  batch = what.inputs.batch([*rows, None], 12)
  found = np.asarray(jax.jit(what.encode)(what.variables, batch))
  assert found.shape == (4, what.width) and not found[3].any()
  for row, x_D in zip(rows, found):
    hidden = lm.Lm(CONFIG).apply(run_dir.variables, row[None], method='hidden')
    np.testing.assert_allclose(x_D, hidden[0, -1], atol=1e-5)
  assert encoders.lm('run', 5).identity != what.identity
  with pytest.raises(ConfigError, match='max_tokens is 13, expected 2 to'):
    encoders.lm('run', 13)


def test_a_run_of_something_else_is_refused(run_dir, monkeypatch):
  other = dataclasses.replace(run_dir, task=None, config={'task': 'jaxmm.models.image_lm'})
  monkeypatch.setattr(encoders.loading, 'load', lambda path: other)
  with pytest.raises(ConfigError, match='a run of jaxmm.models.image_lm, expected'):
    encoders.lm('run')


def test_pictures_give_the_classifiers_features(tmp_path, monkeypatch):
  groups = [(1, 3, 1, 1, 4), (1, 3, 2, 2, 4)]
  config = ClassifierConfig(
    stem=4, groups=tuple(BlockGroup(*g) for g in groups), features=6, classes=3, image_size=32
  )
  monkeypatch.setattr(encoders.classifier, 'LITE0', config)
  state = reference.random_state(np.random.default_rng(0), 4, groups, 6, 3)
  np.savez(tmp_path / 'w.npz', **state)
  what = encoders.image(tmp_path / 'w.npz')
  pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
  encoded = io.BytesIO()
  Image.fromarray(pixels).save(encoded, 'png')
  rows = what.inputs.rows([Example('a', image=encoded.getvalue()), Example('b', image=b'no')])
  assert rows[1] is None
  found = jax.jit(what.encode)(what.variables, what.inputs.batch(rows, 0))
  expected = image_features(what.variables, pixels[None], config=config)
  np.testing.assert_allclose(found[0], expected[0], atol=1e-5)
  assert what.width == 6
  with pytest.raises(ConfigError, match='the image size is 16, expected 32 or more'):
    encoders.image(tmp_path / 'w.npz', 16)


@pytest.mark.slow
def test_pictures_give_a_tokenizers_mean_latents(run_dir, tmp_path, monkeypatch):
  with pytest.raises(ConfigError, match='a run of jaxmm.models.lm, expected'):
    encoders.tokenizer('run')
  network = dict(
    image_channels=1, channels=4, multipliers=(1, 1), res_blocks=1, attention=False, z_channels=6,
    norm_groups=2, quantizer=dict(codes=8, width=4),
  )  # fmt: skip
  task = vqgan_task.make_task({'image_size': 8, 'perceptual': {'name': 'none'}, 'vqgan': network})
  init = jax.jit(task.init)(jax.random.key(0), {'image_BYXC': jnp.zeros((1, 8, 8, 1), jnp.uint8)})
  config = {'task': 'jaxmm.tokenizers.vqgan_task'}
  run = loading.LoadedTokenizer(tmp_path, config, task, 3, nn.unbox(init))
  monkeypatch.setattr(encoders.loading, 'load', lambda path: run)
  rng = np.random.default_rng(0)
  for name in 'abc':
    pixels_YX = rng.integers(0, 256, (8, 8), dtype=np.uint8)
    (tmp_path / 'in').mkdir(exist_ok=True)
    Image.fromarray(pixels_YX).save(tmp_path / 'in' / f'{name}.png')
  (tmp_path / 'in' / 'd.png').write_bytes(b'no')
  words = ['--input', tmp_path / 'in', '--encoder', 'tokenizer', '--weights', tmp_path]
  words += ['--batch', 8, '--rows-per-shard', 8, '--processes', 1, '--output', tmp_path / 'v']
  assert embedded(*words) == 0
  found = embeddings.read(tmp_path / 'v')
  assert found.identity == json.loads(json.dumps(encoders.tokenizer(tmp_path).identity))
  assert found.reason_N.tolist() == ['', '', '', 'unreadable'] and found.x_ND.shape == (4, 6)
  pixels = jnp.asarray(pixels_YX, jnp.float32)[None, ..., None] / 127.5 - 1
  network = functools.partial(run.model.apply, method='features')
  expected = np.asarray(jax.jit(network)(run.network(), pixels)).mean((0, 1, 2))
  np.testing.assert_allclose(found.x_ND[2], expected / np.linalg.norm(expected), atol=1e-5)


def test_the_digest_of_weights_sees_every_value_name_and_shape():
  tree = {'a': np.zeros((2, 3), np.float32), 'b': np.ones(2, np.float32)}
  changes = [
    {'a': np.zeros((3, 2), np.float32)},
    {'b': np.float32([1, 2])},
    {'c': np.zeros(0, np.float32)},
    {'b': np.ones(2)},
  ]
  digests = [encoders.weights_digest({**tree, **change}) for change in [{}, *changes]]
  assert len(set(digests)) == 5 and digests[0] == encoders.weights_digest(dict(tree))


def embedded(*words):
  return cli.main(['curate', 'embed', *map(str, words)])


@pytest.fixture
def corpus_file(tmp_path):
  records = [{'id': f'd{i}', 'text': 'a b c'[: i + 1]} for i in range(5)] + [
    {'id': 'd5', 'text': ''}
  ]
  path = tmp_path / 'in.jsonl'
  path.write_text(''.join(json.dumps(record) + '\n' for record in records))
  return path


def test_the_verb_embeds_a_corpus(tmp_path, corpus_file, capsys):
  folder = write_bert(tmp_path / 'model')
  words = ['--input', corpus_file, '--id-field', 'id', '--encoder', 'minilm', '--weights', folder]
  words += ['--output', tmp_path / 'v', '--batch', 8, '--rows-per-shard', 16, '--processes', 1]
  assert embedded(*words) == 0
  assert '6 examples, width 12, 1 empty' in capsys.readouterr().out
  found = embeddings.read(tmp_path / 'v')
  assert found.ids.to_pylist() == [f'd{i}' for i in range(6)]
  np.testing.assert_allclose(np.linalg.norm(found.x_ND[:5], axis=1), 1.0, atol=1e-6)
  assert found.identity['encoder'] == 'minilm' and found.identity['max_tokens'] == 10


def test_the_verb_takes_vectors_that_are_brought(tmp_path, corpus_file, capsys):
  x_ND = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)
  np.save(tmp_path / 'x.npy', x_ND)
  (tmp_path / 'ids.txt').write_text('d4\nd3\nd2\nd1\nd5\n')
  words = ['--input', corpus_file, '--id-field', 'id', '--encoder', 'brought', '--processes', 1]
  words += ['--vectors', tmp_path / 'x.npy', '--ids', tmp_path / 'ids.txt']
  assert embedded(*words, '--output', tmp_path / 'v') == 0
  assert '6 examples, width 3, 1 empty, 1 no_embedding' in capsys.readouterr().out
  found = embeddings.read(tmp_path / 'v')
  assert found.reason_N.tolist() == ['no_embedding', '', '', '', '', 'empty']
  np.testing.assert_allclose(found.x_ND[1], x_ND[3] / np.linalg.norm(x_ND[3]), atol=1e-6)
  table = pq.read_table(tmp_path / 'v' / 'examples.parquet')
  assert np.isnan(table['norm'][0].as_py()) and table.column_names[:2] == ['id', 'digest']


@pytest.mark.parametrize(
  'words, message',
  [
    (['--encoder', 'image', '--max-tokens', 5], '--max-tokens is for --encoder minilm or lm, not'),
    (['--encoder', 'minilm', '--vectors', 'x.npy'], '--vectors is for --encoder brought, not'),
    (['--encoder', 'brought'], '--encoder brought needs --vectors FILE'),
    (['--encoder', 'lm'], '--encoder lm needs --weights RUN'),
    (['--encoder', 'tokenizer'], '--encoder tokenizer needs --weights RUN'),
  ],
)
def test_options_that_do_not_fit_are_named(tmp_path, corpus_file, words, message, capsys):
  assert embedded('--input', corpus_file, '--output', tmp_path / 'v', *words) == 2
  assert message in capsys.readouterr().err
