"""Weights and pictures of the golden arrays in `tests/golden/inception`: made, so not stored."""

import json
import pathlib
import zlib

import numpy as np

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'inception'


def random_state() -> dict[str, np.ndarray]:
  """A state dict of the public layout, each weight from its name alone."""
  shapes = json.loads((GOLDEN / 'shapes.json').read_text())
  return {name: weight(name, tuple(shape)) for name, shape in shapes.items()}


def weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  """Of such a size that features neither vanish nor grow with depth."""
  noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
  if name.endswith('running_var'):
    return np.float32(1) + np.float32(0.3) * np.abs(noise)
  if name.endswith('bn.weight'):
    return np.float32(1) + np.float32(0.1) * noise
  if len(shape) == 1:
    return np.float32(0.1) * noise
  return noise * np.float32(np.sqrt(2.0 / np.prod(shape[1:])))


def pictures(num: int, side: int, start: int = 0) -> np.ndarray:
  """uint8 [num, side, side, 3] by whole-number arithmetic, each another pattern."""
  k, y, x, c = np.meshgrid(
    np.arange(start, start + num), np.arange(side), np.arange(side), np.arange(3), indexing='ij'
  )
  waves = (y * (k % 5 + 1) * 3 + x * (k % 7 + 1) * 2 + c * 40 * (k % 3)) % 256
  rings = ((x - side // 2) ** 2 + (y - side // 3) ** 2) * (k + c + 1) // 20 % 256
  return np.where(k % 2 == 0, waves, rings).astype(np.uint8)
