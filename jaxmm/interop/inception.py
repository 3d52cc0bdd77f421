"""The public weights of the FID Inception into `models.inception`: BatchNorm folded in.

The layout is that of `pt_inception-2015-12-05-6726825d.pth`, which the package `pytorch-fid`
downloads: torchvision's names (`Mixed_5b.branch1x1.conv.weight`, `....bn.running_var`, ...) and a
last layer of 1008 classes. The file is the user's; it is not part of this package.
"""

from __future__ import annotations

import pathlib
from collections.abc import Mapping

import flax.linen as nn
import jax
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.interop.weight_file import read_weight_file
from jaxmm.models.inception import CLASSES, IMAGE_SIZE, Inception

_BATCH_NORM_EPSILON = 1e-3


def read_inception(path: str | pathlib.Path) -> dict:
  """Parameters of `Inception`, a nested dict of float32 arrays, from a file of public weights.

  Args:
    path: .pth or .pt (read without PyTorch, nothing in it is run), .safetensors or .npz.

  Raises:
    ConfigError: no such file, a weight missing, left over or of another shape.
  """
  return inception_params(read_weight_file(path), where=str(path))


def inception_params(state: Mapping[str, np.ndarray], *, where: str = 'the weights') -> dict:
  """`read_inception` for arrays that are in memory already; `where` names them in errors."""
  left = {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}
  # Of training alone; torchvision's file has them, that of FID has not.
  left = {k: v for k, v in left.items() if not k.startswith('AuxLogits.')}

  def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in left:
      raise ConfigError(
        f'{where}: lacks {name}; expected the layout of pytorch-fid '
        '(pt_inception-2015-12-05-6726825d.pth)'
      )
    value = left.pop(name)
    if value.shape != shape:
      hint = (
        f"; torchvision's own Inception-v3 has 1000 classes and is another network than FID's, "
        f'which has {CLASSES}'
        if name.startswith('fc.')
        else ''
      )
      raise ConfigError(f'{where}: {name} has shape {value.shape}, expected {shape}{hint}')
    return value.astype(np.float64)

  def folded(name: str, shape: tuple[int, ...]) -> dict:
    """A convolution with the affine map of its BatchNorm, in float64."""
    rows, columns, inputs, outputs = shape
    kernel = take(f'{name}.conv.weight', (outputs, inputs, rows, columns)).transpose(2, 3, 1, 0)
    scale = take(f'{name}.bn.weight', (outputs,))
    scale = scale / np.sqrt(take(f'{name}.bn.running_var', (outputs,)) + _BATCH_NORM_EPSILON)
    bias = take(f'{name}.bn.bias', (outputs,)) - take(f'{name}.bn.running_mean', (outputs,)) * scale
    return {'kernel': (kernel * scale).astype(np.float32), 'bias': bias.astype(np.float32)}

  def filled(tree: Mapping, path: tuple[str, ...]) -> dict:
    if 'kernel' in tree and len(path) and path[0] != 'fc':
      return folded('.'.join(path), tree['kernel'].shape)
    if path == ('fc',):
      kernel = take('fc.weight', tree['kernel'].shape[::-1]).T.astype(np.float32)
      return {'kernel': kernel, 'bias': take('fc.bias', (CLASSES,)).astype(np.float32)}
    return {name: filled(inner, (*path, name)) for name, inner in tree.items()}

  params = filled(_shapes(), ())
  if left:
    raise ConfigError(
      f'{where}: holds {", ".join(sorted(left)[:5])}, which the FID Inception has no place for'
    )
  return params


def _shapes() -> Mapping:
  """The network's own tree of shapes."""
  image = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), np.float32)
  init = lambda image: Inception().init(jax.random.key(0), image, method='logits')
  return nn.unbox(jax.eval_shape(init, image))['params']
