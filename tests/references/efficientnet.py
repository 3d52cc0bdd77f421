"""EfficientNet-Lite in plain loops, from weights in the published layout, BatchNorm left
unfolded."""

import numpy as np


def padded(x_CYX: np.ndarray, size: int, stride: int) -> np.ndarray:
  """Zeros around, so that the output has ceil(n / stride) places; the odd one at the end."""
  pads = [(0, 0)]
  for n in x_CYX.shape[1:]:
    total = max((-(-n // stride) - 1) * stride + size - n, 0)
    pads.append((total // 2, total - total // 2))
  return np.pad(x_CYX, pads)


def convolution(x_CYX: np.ndarray, weight_OIYX: np.ndarray, stride: int, groups: int) -> np.ndarray:
  """One output number at a time."""
  size = weight_OIYX.shape[-1]
  outputs, per_group = len(weight_OIYX), weight_OIYX.shape[1]
  rows, columns = (-(-n // stride) for n in x_CYX.shape[1:])
  x_CYX = padded(x_CYX, size, stride)
  out = np.zeros((outputs, rows, columns))
  for o in range(outputs):
    first = o // (outputs // groups) * per_group
    for y in range(rows):
      for x in range(columns):
        top, left = y * stride, x * stride
        patch = x_CYX[first : first + per_group, top : top + size, left : left + size]
        out[o, y, x] = np.sum(patch * weight_OIYX[o])
  return out


def batch_norm(x_CYX: np.ndarray, state: dict, name: str) -> np.ndarray:
  mean, var = state[f'{name}.running_mean'], state[f'{name}.running_var']
  weight, bias = state[f'{name}.weight'], state[f'{name}.bias']
  column = lambda v: v[:, None, None].astype(np.float64)
  return (x_CYX - column(mean)) / np.sqrt(column(var) + 1e-3) * column(weight) + column(bias)


def relu6(x: np.ndarray) -> np.ndarray:
  return np.minimum(np.maximum(x, 0), 6)


def classifier(state: dict, image_YXC: np.ndarray, strides: list[int]) -> tuple:
  """(logits [V], features [D]) of one normalised image; `strides` has one number a block."""
  x = image_YXC.transpose(2, 0, 1).astype(np.float64)
  x = relu6(batch_norm(convolution(x, state['_conv_stem.weight'], 2, 1), state, '_bn0'))
  for i, stride in enumerate(strides):
    block, before = f'_blocks.{i}.', x
    if f'{block}_expand_conv.weight' in state:
      x = convolution(x, state[f'{block}_expand_conv.weight'], 1, 1)
      x = relu6(batch_norm(x, state, f'{block}_bn0'))
    x = convolution(x, state[f'{block}_depthwise_conv.weight'], stride, len(x))
    x = relu6(batch_norm(x, state, f'{block}_bn1'))
    x = convolution(x, state[f'{block}_project_conv.weight'], 1, 1)
    x = batch_norm(x, state, f'{block}_bn2')
    if x.shape == before.shape:
      x = x + before
  x = relu6(batch_norm(convolution(x, state['_conv_head.weight'], 1, 1), state, '_bn1'))
  features = x.mean((1, 2))
  return features @ state['_fc.weight'].T + state['_fc.bias'], features


def random_state(
  rng: np.random.Generator, stem: int, groups: list[tuple], features: int, classes: int
) -> dict[str, np.ndarray]:
  """Random weights in the published layout; groups are (repeats, kernel, stride, expansion,
  out)."""
  state = {}

  def conv(name, norm, shape):
    state[f'{name}.weight'] = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape).astype(np.float32)
    for key, low in (('weight', 0.5), ('bias', -0.5), ('running_mean', -0.5), ('running_var', 0.5)):
      state[f'{norm}.{key}'] = rng.uniform(low, low + 1, shape[0]).astype(np.float32)
    state[f'{norm}.num_batches_tracked'] = np.int64(0)

  conv('_conv_stem', '_bn0', (stem, 3, 3, 3))
  channels, block = stem, 0
  for repeats, kernel, _, expansion, out in groups:
    for _ in range(repeats):
      name, hidden = f'_blocks.{block}', channels * expansion
      if expansion != 1:
        conv(f'{name}._expand_conv', f'{name}._bn0', (hidden, channels, 1, 1))
      conv(f'{name}._depthwise_conv', f'{name}._bn1', (hidden, 1, kernel, kernel))
      conv(f'{name}._project_conv', f'{name}._bn2', (out, hidden, 1, 1))
      channels, block = out, block + 1
  conv('_conv_head', '_bn1', (features, channels, 1, 1))
  state['_fc.weight'] = rng.normal(size=(classes, features)).astype(np.float32)
  state['_fc.bias'] = rng.normal(size=classes).astype(np.float32)
  return state
