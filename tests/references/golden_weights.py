"""Weights that follow from their names alone, so that golden arrays need not store them.

The recipe belongs to the archives in `tests/golden/llamagen`: what LlamaGen computed there, it
computed with these weights.
"""

import zlib

import numpy as np


def golden_weights(shapes: dict[str, list[int]]) -> dict[str, np.ndarray]:
  """A state dict, float32, from names and shapes."""
  return {name: _weight(name, tuple(shape)) for name, shape in shapes.items()}


def _weight(name: str, shape: tuple[int, ...]) -> np.ndarray:
  noise = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape, dtype=np.float32)
  if name == 'quantize.embedding.weight':
    return noise / np.linalg.norm(noise, axis=-1, keepdims=True)
  if 'embedding' in name:
    return noise
  if len(shape) == 1:
    return np.float32(1) + np.float32(0.2) * noise if name.endswith('weight') else 0.1 * noise
  return noise / np.float32(np.sqrt(np.prod(shape[1:])))
