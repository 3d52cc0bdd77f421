"""Bits a byte and perplexity of a run over tokens, from the ids and the text itself."""

import math

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxmm import sharding
from jaxmm.models import lm
from jaxmm.studies import evaluation, image_sets, run
from jaxmm.studies.loaded_text import LoadedLm
from jaxmm.tokenizers.text import BpeTokenizer, ByteTokenizer


@pytest.fixture(scope='module')
def loaded(tmp_path_factory):
  """An untrained language model over the tokens of a trained tokenizer."""
  at = tmp_path_factory.mktemp('lm')
  text = ' '.join(np.random.default_rng(0).choice(['ein', 'zwölf', 'drei', 'naïve'], 900))
  (at / 'text.txt').write_text(text)
  tokenizer = BpeTokenizer.train([text], 300)
  tokenizer.save(at / 'tokenizer.json')
  of = dict(length=32, tokenizer=str(at / 'tokenizer.json'), bos_id=tokenizer.vocab_size - 1)
  data = dict(name='text', path=str(at / 'text.txt'), split='all', text=of, threads=0)
  config = dict(task='jaxmm.models.lm', seed=0, batch=8, data=data, eval_data=data)
  model = dict(vocab_size=tokenizer.vocab_size, length=32, width=16, depth=1, num_heads=2)
  task = lm.LmTask(lm.config_of(model))
  rows = next(iter(run.make_batches(config, train=False, batch=8).once()))
  variables = jax.jit(task.init)(jax.random.key(0), rows)
  return LoadedLm(at, config, task, 0, nn.unbox(variables)), tokenizer


@pytest.mark.parametrize('devices, batch', [(1, 8), (8, 8), (1, 5)])
def test_bits_a_byte_are_of_the_text_itself(loaded, monkeypatch, devices, batch):
  model, tokenizer = loaded
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  monkeypatch.setattr(image_sets, 'mesh_of_all', lambda: mesh)
  found = evaluation.run_evaluations(model, batch=batch)
  num_bytes = tokens = 0
  for rows in run.make_batches(model.config, train=False, batch=8).once():
    weight = rows['weight_BL'][:, 1:] * rows['valid_B'][:, None]
    for ids, counts in zip(rows['ids_BL'][:, 1:], weight > 0):
      num_bytes += len(tokenizer.decode(ids[counts].tolist(), keep_special=False).encode())
      tokens += int(counts.sum())
  nats = found['likelihood/cross_entropy']
  assert 1.5 < num_bytes / tokens < 8
  expected = nats * tokens / num_bytes / math.log(2)
  assert found['likelihood/bits_per_byte'] == pytest.approx(expected, rel=1e-6)
  assert found['likelihood/perplexity'] == pytest.approx(math.exp(nats), rel=1e-9)
  assert 'bytes/bytes' not in found


@pytest.mark.parametrize('text', ['naïve zwölf', 'drei\n😀', ''])
def test_lengths_of_ids_are_those_of_the_text(loaded, text):
  for tokenizer in (loaded[1], ByteTokenizer()):
    lengths = tokenizer.byte_lengths()
    assert len(lengths) == tokenizer.vocab_size
    assert lengths[np.array(tokenizer.encode(text), int)].sum() == len(text.encode())
    assert not lengths[tokenizer.num_ordinary :].any()
