"""The public weights of TAEF2 as parameters of `tokenizers.taesd`, and back to the same names.

Two files, `taef2_encoder` and `taef2_decoder`, hold a PyTorch `Sequential` each: `11.conv.2.weight`
is the second convolution of layer 11. Nothing is computed on the way; float16 becomes float32,
which holds every one of its values. A convolution, [out, in, rows, columns] there, is [rows,
columns, in, out] here; a norm's `weight` is our `scale`.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy

from jaxmm.config import ConfigError
from jaxmm.interop.weight_file import read_weight_file
from jaxmm.tokenizers.latent_scale import LatentScale
from jaxmm.tokenizers.taesd import Taesd, TaesdConfig

TAEF2 = TaesdConfig()
# Measured by `jaxmm latent-scale` on 1,000 photographs of 256 pixels, one a class of ImageNet-1k:
# mean 0.029, standard deviation 0.848. The large network's own normalisation is no part of TAEF2.
TAEF2_SCALE = LatentScale(
  (1.17916,), (0.0,), {'num_images': 1000, 'data': 'ImageNet-1k photographs, 256 pixels'}
)
HALVES = ('encoder', 'decoder')


def read_taef2(directory: str | pathlib.Path, config: TaesdConfig = TAEF2) -> dict[str, Any]:
  """Parameters of `Taesd(config)`, a nested dict of float32 arrays, from a folder of both files.

  Args:
    directory: holds `taef2_encoder` and `taef2_decoder`, each as .safetensors or .pth.
    config: the sizes that the files should have.

  Raises:
    ConfigError: a file that is missing or cannot be read, an array missing, left over or of another
      shape than `config` says.
  """
  directory = pathlib.Path(directory)
  params = {}
  for half in HALVES:
    endings = ('.safetensors', '.pth')
    found = [path for e in endings if (path := directory / f'taef2_{half}{e}').is_file()]
    if not found:
      raise ConfigError(
        f'{directory} holds no taef2_{half}.safetensors (nor .pth); TAEF2 is the two files '
        'taef2_encoder and taef2_decoder of github.com/madebyollin/taesd'
      )
    params[half] = half_params(half, read_weight_file(found[0]), config, where=str(found[0]))
  return params


def write_taef2(
  directory: str | pathlib.Path, params: Mapping[str, Any], config: TaesdConfig = TAEF2
) -> None:
  """Writes both files as .safetensors, float32; PyTorch loads them by the public names."""
  directory = pathlib.Path(directory)
  directory.mkdir(parents=True, exist_ok=True)
  for half in HALVES:
    arrays = {}
    for path, (name, _) in _table(config, half).items():
      node: Any = params[half]
      for part in path:
        node = node[part]
      array = np.asarray(node, np.float32)
      array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array
      arrays[name] = np.ascontiguousarray(array)
    safetensors.numpy.save_file(arrays, directory / f'taef2_{half}.safetensors')


def half_params(
  half: str,
  state: Mapping[str, np.ndarray],
  config: TaesdConfig = TAEF2,
  *,
  where: str = 'the weights',
) -> dict[str, Any]:
  """Parameters of one half ('encoder' or 'decoder') from arrays by their public names.

  Raises:
    ConfigError: an array missing, left over or of another shape than `config` says.
  """
  table = _table(config, half)
  unknown = sorted(state.keys() - {name for name, _ in table.values()})
  if unknown:
    raise ConfigError(f'{where}: holds {", ".join(unknown[:8])}, which the {half} does not have')
  params: dict[str, Any] = {}
  for path, (name, shape) in table.items():
    if name not in state:
      raise ConfigError(f'{where}: lacks {name}, expected the {half} of TAEF2 with shape {shape}')
    array = np.asarray(state[name], np.float32)
    if array.shape != shape:
      raise ConfigError(f'{where}: {name} has shape {array.shape}, expected {shape}')
    node = params
    for part in path[:-1]:
      node = node.setdefault(part, {})
    node[path[-1]] = np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array
  return params


def _table(config: TaesdConfig, half: str) -> dict[tuple[str, ...], tuple[str, tuple[int, ...]]]:
  """Our path -> their name and shape, of every parameter of a half."""
  image = jax.ShapeDtypeStruct((1, 8, 8, config.image_channels), jnp.float32)
  shapes = nn.unbox(jax.eval_shape(Taesd(config).init, jax.random.key(0), image))['params'][half]
  table = {}
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
    path, shape = tuple(key.key for key in key_path), leaf.shape
    shape = (shape[3], shape[2], shape[0], shape[1]) if len(shape) == 4 else shape
    table[path] = parameter_name(path), shape
  return table


def parameter_name(path: tuple[str, ...]) -> str:
  """Their name of our parameter: `('layer_11', 'pool_1', 'scale')` is `11.pool.1.weight`."""
  words = {'kernel': 'weight', 'scale': 'weight'}
  parts = [words.get(part, part).removeprefix('layer_').replace('_', '.') for part in path]
  return '.'.join(parts)
