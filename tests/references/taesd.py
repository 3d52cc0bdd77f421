"""Names, shapes and pictures of the golden arrays of TAESD, written down apart from our network."""

import numpy as np


def half_shapes(which: str, channels: int, latent_dim: int) -> dict[str, list[int]]:
  """Public names and PyTorch shapes of TAEF2's encoder or decoder at another width."""
  c, shapes = channels, {}

  def conv(name, inputs, outputs, has_bias=True):
    shapes[f'{name}.weight'] = [outputs, inputs, 3, 3]
    if has_bias:
      shapes[f'{name}.bias'] = [outputs]

  def block(number, has_branch):
    for i in (0, 2, 4):
      conv(f'{number}.conv.{i}', c, c)
    if has_branch:
      shapes[f'{number}.pool.0.weight'] = [4 * c, c, 1, 1]
      shapes[f'{number}.pool.1.weight'] = shapes[f'{number}.pool.1.bias'] = [4 * c]
      shapes[f'{number}.pool.3.weight'] = [c, 4 * c, 1, 1]

  if which == 'encoder':
    conv(0, 3, c)
    blocks, resampling = (1, 3, 4, 5, 7, 8, 9, 11, 12, 13), (2, 6, 10)
    middle = (11, 12, 13)
    conv(14, c, latent_dim)
  else:
    conv(1, latent_dim, c)
    blocks, resampling = (3, 4, 5, 8, 9, 10, 13, 14, 15, 18), (7, 12, 17)
    middle = (3, 4, 5)
    conv(19, c, 3)
  for number in blocks:
    block(number, number in middle)
  for number in resampling:
    conv(number, c, c, has_bias=False)
  return shapes


def pictures(side: int) -> np.ndarray:
  """Two pictures that whole-number arithmetic makes, uint8 [2, side, side, 3]."""
  y, x, c = np.meshgrid(np.arange(side), np.arange(side), np.arange(3), indexing='ij')
  rings = (x * x + y * y) * (c + 2) // 100
  return np.stack([(y * y * 3 + x * y * 5 + c * 400) // 40 % 256, rings % 256]).astype(np.uint8)
