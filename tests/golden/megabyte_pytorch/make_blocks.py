"""Writes blocks.npz: what the transformer of MEGABYTE-pytorch 0.3.6 (on PyTorch 2.13) computes.

    python make_blocks.py     # with MEGABYTE-pytorch installed, in the root of the repository

Weights follow from their names (`tests/references/golden_weights.py`). `shifted` is its transformer
as it is, `plain` and `rotary` without its token shift (half of the channels from the position
before), which is no part of the paper.
"""

import json
import pathlib
from unittest import mock

import numpy as np
import torch
from MEGABYTE_pytorch import megabyte

from tests.references.golden_weights import golden_weights

SIZES = dict(dim=24, layers=2, dim_head=6, heads=4)


def main():
  out = {'x': np.random.default_rng(0).standard_normal((2, 9, 24)).astype(np.float32)}
  out['sizes'] = json.dumps(SIZES)
  for name in ('plain', 'rotary', 'shifted'):
    model = megabyte.Transformer(**SIZES, rel_pos=name == 'rotary').eval()
    shapes = {k: list(v.shape) for k, v in model.named_parameters()}
    # The gains of norms are 1 and a little, as the recipe has them for names that it knows.
    state = {k: 1 + 2 * v if k.endswith('.g') else v for k, v in golden_weights(shapes).items()}
    state = {k: torch.from_numpy(v) for k, v in state.items()}
    model.load_state_dict(state, strict=False)  # the frequencies of rotary positions are a buffer
    out['shapes'] = json.dumps(shapes)
    shift = megabyte.token_shift if name == 'shifted' else lambda x: x
    with torch.no_grad(), mock.patch.object(megabyte, 'token_shift', shift):
      out[name] = model(torch.from_numpy(out['x'])).numpy()
  np.savez_compressed(pathlib.Path(__file__).parent / 'blocks.npz', **out)


if __name__ == '__main__':
  main()
