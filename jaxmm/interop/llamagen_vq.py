"""LlamaGen's tokenizer checkpoints (`vq_ds16_c2i.pt`, `vq_ds8_c2i.pt`) as parameters of
`tokenizers.vqgan`, and back to the same names.

Only dicts of arrays are mapped here. Nothing is computed on the way, so a round trip gives the same
bits. What becomes of a tensor:

- a convolution, [out, in, rows, columns] there, is [rows, columns, in, out] here, 1x1 ones too;
- a norm's `weight` is our `scale`; biases and the codebook stay as they are;
- `quantize.codebook_used`, the training code's record of recently used ids, is no weight: it is
  ignored on the way in and not written on the way out (their loader wants `strict=False` then).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.tokenizers.vqgan import Vqgan, VqganConfig

IGNORED = ('quantize.codebook_used',)

_CODEBOOK = 'quantize.embedding.weight'
_SHOWN = 8  # names an error lists before it says how many more there are


def from_state_dict(config: VqganConfig, state_dict: Mapping[str, np.ndarray]) -> dict[str, Any]:
  """Parameters of `Vqgan(config)`, as nested dicts of float32 NumPy arrays.

  Args:
    config: of the checkpoint; `VQ_16` and `VQ_8` are the published ones.
    state_dict: the weights by LlamaGen's names (the `model` or `ema` entry of a training
      checkpoint).

  Raises:
    ConfigError: names that are missing, that the model does not have, or whose shape differs; all
      of them are named, with the shapes.
  """
  expected = {ours: (theirs, shape) for ours, theirs, shape in _table(config)}
  _check(state_dict, dict(expected.values()))
  params: dict[str, Any] = {}
  for path, (name, _) in expected.items():
    node = params
    for part in path[:-1]:
      node = node.setdefault(part, {})
    array = np.asarray(state_dict[name], np.float32)
    node[path[-1]] = np.ascontiguousarray(array.transpose(2, 3, 1, 0)) if array.ndim == 4 else array
  return params


def to_state_dict(config: VqganConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The weights under LlamaGen's names, layouts and float32; the inverse of `from_state_dict`."""
  out = {}
  for path, name, shape in _table(config):
    node: Any = params
    for part in path:
      if not isinstance(node, Mapping) or part not in node:
        raise ConfigError(
          f'the parameters have no {"/".join(path)}; are they those of Vqgan with this config?'
        )
      node = node[part]
    array = np.asarray(node, np.float32)
    array = np.ascontiguousarray(array.transpose(3, 2, 0, 1)) if array.ndim == 4 else array
    if array.shape != shape:
      raise ConfigError(
        f'{"/".join(path)} has the shape {array.shape} in LlamaGen layout, '
        f'but the config makes it {shape}'
      )
    out[name] = array
  return out


def parameter_name(path: tuple[str, ...]) -> str:
  """LlamaGen's name of our parameter: `('encoder', 'level_0_down', 'conv', 'kernel')` is
  `encoder.conv_blocks.0.downsample.conv.weight`."""
  if path == ('quantizer', 'codebook'):
    return _CODEBOOK
  words = {'kernel': 'weight', 'scale': 'weight', 'shortcut': 'nin_shortcut', 'proj': 'proj_out'}
  name = '.'.join(words.get(part, part) for part in path)
  name = re.sub(r'level_(\d+)_(res|attn)_(\d+)', r'conv_blocks.\1.\2.\3', name)
  name = re.sub(r'level_(\d+)_(down|up)\b', r'conv_blocks.\1.\2sample', name)
  return re.sub(r'mid_(\d)', r'mid.\1', name)


def _table(config: VqganConfig) -> list[tuple[tuple[str, ...], str, tuple[int, ...]]]:
  """Our path, their name, their shape, of every parameter the config has."""
  side = config.downsampling
  image = jax.ShapeDtypeStruct((1, side, side, config.image_channels), jnp.float32)
  shapes = nn.unbox(jax.eval_shape(Vqgan(config).init, jax.random.key(0), image))['params']
  rows = []
  for key_path, leaf in jax.tree_util.tree_flatten_with_path(shapes)[0]:
    path = tuple(key.key for key in key_path)
    shape = leaf.shape
    if len(shape) == 4:
      shape = (shape[3], shape[2], shape[0], shape[1])
    rows.append((path, parameter_name(path), shape))
  return rows


def _check(state_dict: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
  problems = []
  missing = sorted(expected.keys() - state_dict.keys())
  if missing:
    problems.append(f'{len(missing)} missing: {_listed(missing)}')
  unknown = sorted(state_dict.keys() - expected.keys() - set(IGNORED))
  if unknown:
    problems.append(f'{len(unknown)} that the model does not have: {_listed(unknown)}')
  wrong = [
    f'{name} is {tuple(state_dict[name].shape)}, expected {shape}'
    for name, shape in sorted(expected.items())
    if name in state_dict and tuple(state_dict[name].shape) != shape
  ]
  if wrong:
    problems.append(f'{len(wrong)} of another shape: {_listed(wrong)}')
  if problems:
    raise ConfigError(
      'this is no LlamaGen tokenizer of the given config. Weights '
      + '; weights '.join(problems)
      + '. Choose the config that the checkpoint was trained with (VQ_16, VQ_8), and pass its '
      '`model` or `ema` entry.'
    )


def _listed(names: list[str]) -> str:
  more = len(names) - _SHOWN
  return ', '.join(names[:_SHOWN]) + (f' and {more} more' if more > 0 else '')
