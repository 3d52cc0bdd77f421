"""LlamaGen checkpoint files: reads whatever wrapping its training scripts left, writes plain names.

What the names mean is in `llamagen_vq` (the tokenizer) and `llamagen_gpt` (the transformer).
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from jaxmm.config import ConfigError
from jaxmm.interop.weight_file import read_weight_file

# Where training scripts put the weights: DDP, DeepSpeed, Lightning; FSDP files are bare.
WRAPPERS = ('model', 'module', 'state_dict')
# The running average of the weights, where a training script kept one.
AVERAGE = 'ema'
# Beside the weights in tokenizer checkpoints.
OTHERS = (AVERAGE, 'optimizer', 'discriminator', 'optimizer_disc', 'steps', 'args')


def read_state_dict(path: str | pathlib.Path, weights: str = 'auto') -> dict[str, np.ndarray]:
  """The weights of a checkpoint by LlamaGen's names, without wrappers and without `freqs_cis`.

  Args:
    path: .safetensors, .npz, or .pt, .pth, .bin (read without running what a pickle may hold; see
      `interop.torch_file`).
    weights: 'params', 'ema', or 'auto': the average where the file has one (as LlamaGen's own
      scripts choose, and `jaxmm.load`).

  Raises:
    ConfigError: no such file or weights, or a file that cannot be read.
  """
  if weights not in ('auto', 'params', 'ema'):
    raise ConfigError(f'weights is {weights!r}, expected auto, params or ema')
  arrays = read_weight_file(path)
  tops = {name.partition('.')[0] for name in arrays}
  if weights == 'ema' and AVERAGE not in tops:
    held = ', '.join(sorted(tops)[:8])
    raise ConfigError(f'{path} has no averaged weights ({AVERAGE!r}); it holds {held}')
  # A bare dict has names like `layers.0...`; a wrapped one has nothing but wrappers and their
  # neighbours.
  wrapped = tops <= {*WRAPPERS, *OTHERS}
  order = {'auto': (AVERAGE, *WRAPPERS), 'ema': (AVERAGE,), 'params': WRAPPERS}[weights]
  chosen = next((w for w in order if (wrapped or weights == 'ema') and w in tops), None)
  if tops and wrapped and chosen is None:
    raise ConfigError(f'{path} holds {", ".join(sorted(tops))}, but no weights ({weights})')
  if chosen is not None:
    arrays = {n.partition('.')[2]: a for n, a in arrays.items() if n.startswith(chosen + '.')}
  # Distributed training puts `module.` in front of every name inside the wrapper.
  if arrays and all(name.startswith('module.') for name in arrays):
    arrays = {name.removeprefix('module.'): a for name, a in arrays.items()}
  return {name: a for name, a in arrays.items() if name != 'freqs_cis'}


def write_state_dict(path: str | pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
  """Writes the weights under these names; PyTorch loads them with `safetensors.torch.load_file`.

  Args:
    path: .safetensors, .npz, or .pt (`{'model': weights}`, which needs PyTorch).
    arrays: `{name: array}`.

  Raises:
    ConfigError: another ending, or .pt where PyTorch is not installed.
  """
  path = pathlib.Path(path)
  arrays = {name: np.ascontiguousarray(a) for name, a in arrays.items()}
  if path.suffix == '.safetensors':
    safetensors.numpy.save_file(arrays, path)
  elif path.suffix == '.npz':
    np.savez(path, **arrays)
  elif path.suffix in ('.pt', '.pth'):
    try:
      import torch
    except ImportError as error:
      raise ConfigError(
        f"{path}: writing {path.suffix} needs PyTorch (pip install 'jaxmm[torch]'); "
        'write .safetensors or .npz instead, which do not'
      ) from error
    torch.save({'model': {n: torch.from_numpy(a) for n, a in arrays.items()}}, path)
  else:
    raise ConfigError(f'{path}: the ending {path.suffix!r} is none of .safetensors, .npz, .pt')
