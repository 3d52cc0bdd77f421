"""Writes megabyte.npz: what the MEGABYTE of kjslag/spacebyte (on PyTorch 2.13) computes.

    python make_megabyte.py SPACEBYTE_CHECKOUT     # in the root of jaxmm's repository

Weights follow from their names (`tests/references/golden_weights.py`). Two things are made as in
ours: the head has the local embedding's weights, and a norm stands behind the global blocks. What
that checkout imports beside PyTorch has nothing to do with the model and is left out.
"""

import json
import pathlib
import sys
from unittest import mock

import numpy as np
import torch

from tests.references.golden_weights import golden_weights

SIZES = dict(
  vocab_size=64, BOS=0, d_model=32, d_key=8, n_layers=2, d_local=16, n_local_layers=2,
  patch_size=4, context_size=16, tie_embedding=False, qk_layer_norm=False, init='standard',
)  # fmt: skip


class GlobalNorm(torch.nn.Module):
  """A last norm, called like a block."""

  def __init__(self, norm):
    super().__init__()
    self.norm = norm

  def forward(self, x, *, cache=None, cache_seqlen=None, log=None):
    return self.norm(x, log=log)


def main(checkout: str):
  sys.path.insert(0, checkout)
  strangers = ('psutil', 'tiktoken', 'sentencepiece')
  with mock.patch.dict(sys.modules, {name: mock.MagicMock() for name in strangers}):
    import megabyte
    import transformer
  config = megabyte.MegaByteConfig(**SIZES)
  model = megabyte.MegaByte(config).eval()
  model.global_blocks.append(GlobalNorm(transformer.LayerNorm(config.d_model, config)))
  for name, module in model.named_modules():
    module.module_name = name
  shapes = {k: list(v.shape) for k, v in model.named_parameters()}
  # The gains of norms are 1 and a little, as the recipe has them for names that it knows.
  state = golden_weights(shapes)
  state = {k: 1 + 2 * v if k.endswith('.scale') else v for k, v in state.items()}
  state = {k: torch.from_numpy(v) for k, v in state.items()}
  model.load_state_dict(state)
  model.logits.logits_linear.weight = model.local_token_embedding.weight
  ids = np.random.default_rng(0).integers(1, SIZES['vocab_size'], (2, SIZES['context_size']))
  tokens = torch.from_numpy(np.pad(ids[:, :-1], ((0, 0), (1, 0)), constant_values=SIZES['BOS']))
  with torch.no_grad():
    logits, _ = model(tokens)
  out = dict(ids=ids.astype(np.int32), logits=logits.numpy())
  out |= dict(sizes=json.dumps(SIZES), shapes=json.dumps(shapes))
  np.savez_compressed(pathlib.Path(__file__).parent / 'megabyte.npz', **out)


if __name__ == '__main__':
  main(sys.argv[1])
