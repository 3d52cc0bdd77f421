"""TAESD's two halves in PyTorch, as plain calls by the names of a state dict.

`tests/golden/taesd` was made by it, with torch 2.13:

    python -m tests.references.taesd_torch TAEF2.npz tests/golden/taesd

TAEF2.npz holds the public arrays, named `encoder.0.weight` and so on. No test imports this file.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import torch.nn.functional as F

from tests.references.golden_weights import golden_weights
from tests.references.taesd import half_shapes, pictures


def block(x, state, name):
  if f'{name}.pool.0.weight' in state:
    h = F.conv2d(x, state[f'{name}.pool.0.weight'])
    h = F.group_norm(h, 4, state[f'{name}.pool.1.weight'], state[f'{name}.pool.1.bias'], eps=1e-5)
    x = x + F.conv2d(F.relu(h), state[f'{name}.pool.3.weight'])
  h = x
  for number in (0, 2, 4):
    weight, bias = (state[f'{name}.conv.{number}.{part}'] for part in ('weight', 'bias'))
    h = F.conv2d(F.relu(h) if number else h, weight, bias, padding=1)
  return F.relu(h + x)


def half(x, state, which):
  """`which` is 'encoder' (images in [0, 1] to latents) or 'decoder' (latents to images); NCHW."""
  state = {k.removeprefix(f'{which}.'): v for k, v in state.items() if k.startswith(which)}
  numbers = sorted({int(name.split('.')[0]) for name in state})
  if which == 'decoder':
    x = torch.tanh(x / 3) * 3
  for number in numbers:
    if f'{number}.conv.0.weight' in state:
      x = block(x, state, str(number))
      continue
    weight, bias = state[f'{number}.weight'], state.get(f'{number}.bias')
    is_resampling = bias is None
    if is_resampling and which == 'decoder':
      x = F.interpolate(x, scale_factor=2, mode='nearest')
    stride = 2 if is_resampling and which == 'encoder' else 1
    x = F.conv2d(x, weight, bias, stride=stride, padding=1)
    x = F.relu(x) if which == 'decoder' and number == 1 else x
  return x


def golden(state, side):
  image = torch.from_numpy(pictures(side).astype(np.float32) / 255).permute(0, 3, 1, 2)
  state = {name: torch.from_numpy(np.asarray(a, np.float32)) for name, a in state.items()}
  with torch.no_grad():
    latent = half(image, state, 'encoder')
    recon = half(latent, state, 'decoder')
  return {'latent_nchw': latent.numpy(), 'reconstruction_nchw': recon.numpy()}


if __name__ == '__main__':
  taef2, out = np.load(sys.argv[1]), pathlib.Path(sys.argv[2])
  np.savez_compressed(out / 'taef2.npz', **golden(dict(taef2), 64))
  shapes = {f'{w}.{n}': s for w in ('encoder', 'decoder') for n, s in half_shapes(w, 8, 4).items()}
  small = golden(golden_weights(shapes), 16)
  np.savez_compressed(out / 'small.npz', param_shapes=json.dumps(shapes), **small)
