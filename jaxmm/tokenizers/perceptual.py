"""Perceptual distances between images: LPIPS with the user's weights, or a stand-in that says so.

LPIPS (Zhang et al. 2018, arXiv:1801.03924), release v0.1, VGG16: the features after relu1_2, 2_2,
3_3, 4_3 and 5_3 are normalised over channels, subtracted, squared, weighted per channel, averaged
over positions and summed over layers. There is no dropout. (LlamaGen's training code leaves the 0.5
dropout in front of the channel weights switched on, by putting the loss module back into training
mode.)

The weights are not trained and not saved: a Task holds them in `constants`.

Axes: B batch, Y rows, X columns, C channels.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.core import convolution

# Index of each convolution in torchvision's `vgg16().features`, and its channels in and out.
_CONVS = {
  0: (3, 64),
  2: (64, 64),
  5: (64, 128),
  7: (128, 128),
  10: (128, 256),
  12: (256, 256),
  14: (256, 256),
  17: (256, 512),
  19: (512, 512),
  21: (512, 512),
  24: (512, 512),
  26: (512, 512),
  28: (512, 512),
}
# Convolutions whose activations are compared; pooling follows them.
_TAPS = (2, 7, 14, 21, 28)
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_SMALLEST = 16  # four poolings
_CONTRAST_FLOOR = 0.1  # of 'edges': differences well below this (of a range of 2) count as flat


@dataclasses.dataclass(frozen=True)
class PerceptualConfig:
  """Which perceptual distance; there is no default, because leaving it out changes what is trained.

  Attributes:
    name: 'lpips' needs `weights`. 'edges' is a stand-in that needs none: the difference of fixed
      edge features at several scales. It is *not* LPIPS, and its numbers must not be compared with
      any. 'none' trains without.
    weights: of 'lpips': a file, or several to be read together, that hold the names of the public
      release (`net.slice1.0.weight`, ..., `lin0.model.1.weight`) or torchvision's
      (`features.0.weight`) for the VGG16 part. `.safetensors` and `.npz` are read as they are;
      `.pth` and `.pt` need the `torch` extra.
    dtype: in which the convolutions of LPIPS compute.
  """

  name: Literal['lpips', 'edges', 'none']
  weights: str | tuple[str, ...] = ()
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    if self.name not in ('lpips', 'edges', 'none'):
      raise ConfigError(f"perceptual.name is {self.name!r}, expected 'lpips', 'edges' or 'none'")
    if self.name == 'lpips' and not self.weights:
      raise ConfigError(
        "perceptual.name is 'lpips' but perceptual.weights names no file; name the weights (VGG16 "
        "and the heads of LPIPS v0.1), or choose name='edges' (a stand-in that needs none) or "
        "'none'"
      )
    if self.name != 'lpips' and self.weights:
      raise ConfigError(
        f'perceptual.weights is set, but perceptual.name={self.name!r} reads none; remove one'
      )

  @property
  def files(self) -> tuple[str, ...]:
    """The weights' files."""
    return (self.weights,) if isinstance(self.weights, str) else tuple(self.weights)


def load_weights(config: PerceptualConfig) -> dict[str, Any]:
  """The arrays that `distance` reads (for Task.constants), {} where none are needed.

  Raises:
    ConfigError: a file that cannot be read, or weights that are missing or misshapen, by name.
  """
  if config.name != 'lpips':
    return {}
  named = {}
  for file in config.files:
    named |= _read_arrays(pathlib.Path(file))
  return lpips_weights(named, ', '.join(config.files))


def lpips_weights(named: Mapping[str, np.ndarray], where: str = 'the weights') -> dict[str, Any]:
  """Arrays under their public names (kernels OIHW) as `distance` reads them (kernels HWIO).

  Raises:
    ConfigError: a weight that is missing or has another shape.
  """
  convs, heads = {}, {}
  for name, value in named.items():
    if match := re.fullmatch(r'(?:.*\.)?(?:features|slice\d)\.(\d+)\.(weight|bias)', name):
      convs[int(match[1]), match[2]] = value
    elif match := re.fullmatch(r'(?:.*\.)?lins?\.?(\d)\.model\.\d+\.weight', name):
      heads[int(match[1])] = value
  numbers = sorted({i for i, _ in convs})
  if len(numbers) != len(_CONVS):
    raise ConfigError(
      f'perceptual.weights: {where} holds {len(numbers)} convolutions (`features.*` or '
      f'`net.slice*.*`), expected the {len(_CONVS)} of VGG16; name its file as well as the heads'
    )
  if any(name.endswith('.filt') for name in named):
    warnings.warn(
      f'{where} is of the shift-tolerant LPIPS: its blur filters are not used, so distances are '
      'neither its own nor those of the v0.1 release',
      stacklevel=2,
    )
  out = {}
  # By order: the shift-tolerant variant inserts layers, which moves the numbers.
  for number, (i, (channels, features)) in zip(numbers, _CONVS.items()):
    name, shape = f'features.{number}', (features, channels, 3, 3)
    kernel = _expect(convs.get((number, 'weight')), shape, f'{name}.weight', where)
    bias = _expect(convs.get((number, 'bias')), (features,), f'{name}.bias', where)
    kernel_HWIO = jnp.asarray(kernel.transpose(2, 3, 1, 0))
    out[f'conv_{i}'] = {'kernel': kernel_HWIO, 'bias': jnp.asarray(bias)}
  for j, i in enumerate(_TAPS):
    channels = _CONVS[i][1]
    head = _expect(heads.get(j), (1, channels, 1, 1), f'lin{j}.model.1.weight', where)
    out[f'head_{j}'] = jnp.asarray(head.reshape(channels))
  return out


def _expect(value, shape, name, where) -> np.ndarray:
  if value is None:
    raise ConfigError(
      f'perceptual.weights: {where} holds no {name} (shape {shape}); LPIPS needs the VGG16 '
      'backbone and the heads lin0 to lin4, in one file or in several'
    )
  if tuple(value.shape) != shape:
    raise ConfigError(
      f'perceptual.weights: {name} of {where} has shape {tuple(value.shape)}, expected {shape}'
    )
  return np.asarray(value, np.float32)


def _read_arrays(path: pathlib.Path) -> dict[str, np.ndarray]:
  if not path.is_file():
    raise ConfigError(f'perceptual.weights names {str(path)!r}, but there is no such file')
  try:
    if path.suffix == '.npz':
      with np.load(path, allow_pickle=False) as archive:
        return dict(archive)
    if path.suffix == '.safetensors':
      from safetensors.numpy import load_file

      return load_file(path)
    if path.suffix in ('.pth', '.pt'):
      return _read_torch(path)
  except ConfigError:
    raise
  except Exception as error:  # every reader has its own kinds of error for a damaged file
    raise ConfigError(f'perceptual.weights: {path} cannot be read ({error!r})') from error
  raise ConfigError(
    f'perceptual.weights names {str(path)!r}, expected a .safetensors, .npz, .pth or .pt file'
  )


def _read_torch(path: pathlib.Path) -> dict[str, np.ndarray]:
  try:
    import torch
  except ImportError as error:
    raise ConfigError(
      f'perceptual.weights names {str(path)!r}, and .pth files need the torch extra (`pip install '
      'jaxmm[torch]`); or '
      'convert it once to .safetensors or .npz with the same names'
    ) from error
  state = torch.load(path, map_location='cpu', weights_only=True)
  return {name: value.float().numpy() for name, value in state.items()}


def distance(
  config: PerceptualConfig, weights: Mapping[str, Any], a_BYXC: jax.Array, b_BYXC: jax.Array
) -> jax.Array:
  """How different two batches of images in [-1, 1] look; float32 [B], zeros for 'none'.

  Raises:
    ConfigError: 'lpips' on images that are smaller than 16 pixels or have neither 1 nor 3 channels.
  """
  a_BYXC, b_BYXC = a_BYXC.astype(jnp.float32), b_BYXC.astype(jnp.float32)
  if config.name == 'lpips':
    return lpips(weights, a_BYXC, b_BYXC, config.dtype)
  if config.name == 'edges':
    return edge_distance(a_BYXC, b_BYXC)
  return jnp.zeros(a_BYXC.shape[0])


def lpips(
  weights: Mapping[str, Any], a_BYXC: jax.Array, b_BYXC: jax.Array, dtype: str = 'float32'
) -> jax.Array:
  """LPIPS v0.1 (VGG16) of images in [-1, 1], float32 [B]; grey ones become three channels."""
  B, Y, X, C = a_BYXC.shape
  if C not in (1, 3) or min(Y, X) < _SMALLEST:
    raise ConfigError(
      f'LPIPS of images of {Y}x{X} with {C} channels: expected 1 or 3 channels and at least '
      f'{_SMALLEST} pixels a '
      "side; choose perceptual.name='edges' or 'none'"
    )
  weights = jax.lax.stop_gradient(weights)
  both = jnp.broadcast_to(jnp.concatenate([a_BYXC, b_BYXC]), (2 * B, Y, X, 3))
  x = ((both - jnp.array(_SHIFT)) / jnp.array(_SCALE)).astype(dtype)
  total_B = jnp.zeros(B)
  for i in _CONVS:
    conv = weights[f'conv_{i}']
    # The weights get no gradient, so XLA's own convolution has nothing slow to do.
    x = convolution.native(x, conv['kernel'].astype(dtype), 1, ((1, 1), (1, 1)))
    x = jax.nn.relu(x + conv['bias'].astype(dtype))
    if i in _TAPS:
      j = _TAPS.index(i)
      unit = unit_channels(x.astype(jnp.float32))
      square = jnp.square(unit[:B] - unit[B:])
      total_B += jnp.mean(square @ weights[f'head_{j}'], axis=(1, 2))
      x = _pooled(x)
  return total_B


def unit_channels(x: jax.Array) -> jax.Array:
  """`x` over its norm along the last axis + 1e-10; zero vectors stay zero, with a zero gradient."""
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  # All channels may be off at a position: the root's gradient there would be infinite.
  norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1.0)), 0.0)
  return x / (norm + 1e-10)


def _pooled(x_BYXC: jax.Array) -> jax.Array:
  """Maximum of 2x2 squares; an odd last row or column is dropped."""
  B, Y, X, C = x_BYXC.shape
  return x_BYXC[:, : Y // 2 * 2, : X // 2 * 2].reshape(B, Y // 2, 2, X // 2, 2, C).max((2, 4))


def edge_distance(a_BYXC: jax.Array, b_BYXC: jax.Array, scales: int = 4) -> jax.Array:
  """A stand-in for a learned perceptual distance, without weights; not comparable with LPIPS.
  Float32 [B].

  At each scale (halved until a side would fall below 4) the features of a position are the
  rectified positive and negative parts of the horizontal and vertical differences and of the
  difference to the local mean. They are divided by their norm plus a floor, so that weak edges
  count as much as strong ones and flat noise does not; then squared differences are summed over
  features, averaged over positions and over scales.
  """
  both, count = jnp.concatenate([a_BYXC, b_BYXC]), 0
  total_B = jnp.zeros(a_BYXC.shape[0])
  while count < scales and (count == 0 or min(both.shape[1:3]) >= 4):
    features = _edge_features(both)
    first, second = jnp.split(features, 2)
    total_B += jnp.mean(jnp.sum(jnp.square(first - second), axis=-1), axis=(1, 2))
    B, Y, X, C = both.shape
    both = both[:, : Y // 2 * 2, : X // 2 * 2].reshape(B, Y // 2, 2, X // 2, 2, C).mean((2, 4))
    count += 1
  return total_B / count


def _edge_features(x_BYXC: jax.Array) -> jax.Array:
  padded = jnp.pad(x_BYXC, ((0, 0), (1, 1), (1, 1), (0, 0)), mode='edge')
  Y, X = x_BYXC.shape[1:3]
  around = [padded[:, y : y + Y, x : x + X] for y in range(3) for x in range(3)]
  down = around[7] - x_BYXC
  right = around[5] - x_BYXC
  peak = x_BYXC - sum(around) / 9
  signed = jnp.concatenate([down, right, peak], axis=-1)
  features = jnp.concatenate([jax.nn.relu(signed), jax.nn.relu(-signed)], axis=-1)
  square = jnp.sum(features * features, axis=-1, keepdims=True)
  return features * jax.lax.rsqrt(square + _CONTRAST_FLOOR**2)


def lpips_macs(height: int, width: int) -> int:
  """Multiply-adds of VGG16's convolutions on one image."""
  macs = 0
  for i, (channels, features) in _CONVS.items():
    macs += height * width * 9 * channels * features
    if i in _TAPS:
      height, width = height // 2, width // 2
  return macs
