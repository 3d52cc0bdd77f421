"""Reads a file of named arrays, whatever its format: safetensors, npz, or a PyTorch checkpoint."""

from __future__ import annotations

import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from jaxmm.config import ConfigError
from jaxmm.interop.torch_file import read_torch_file

_TORCH_ENDINGS = ('.pt', '.pth', '.bin', '.ckpt')


def read_weight_file(
  path: str | pathlib.Path, *, under: str | None = None
) -> dict[str, np.ndarray]:
  """All arrays of the file, by name; the format is told by the ending.

  Args:
    path: .safetensors, .npz (no object arrays), or .pt, .pth, .bin, .ckpt (see
      `interop.torch_file`).
    under: for a PyTorch checkpoint, the entry of the outermost dict to read.

  Raises:
    ConfigError: no such file, an unknown ending, or a file that cannot be read.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConfigError(f'{path}: there is no such file of weights')
  if path.suffix in _TORCH_ENDINGS:
    return read_torch_file(path, under=under)
  try:
    if path.suffix == '.safetensors':
      return safetensors.numpy.load_file(path)
    if path.suffix == '.npz':
      with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
  except Exception as error:  # zip, header and shape errors, each of another type
    raise ConfigError(f'{path}: not a readable {path.suffix} file ({error!r})') from error
  raise ConfigError(
    f'{path}: the ending {path.suffix!r} is none of .safetensors, .npz, {", ".join(_TORCH_ENDINGS)}'
  )
