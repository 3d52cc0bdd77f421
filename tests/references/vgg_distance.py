"""LPIPS (VGG16) in NumPy, float64, channels first and weights under their public names: slow and
obvious.
"""

import numpy as np

CONVS = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
WIDTHS = (64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512)
COMPARED = {2: 0, 7: 1, 14: 2, 21: 3, 28: 4}  # convolution: head


def random_weights(seed: int) -> dict[str, np.ndarray]:
  """Weights of VGG16 and the heads; activations keep their size from layer to layer."""
  rng, channels, out = np.random.default_rng(seed), 3, {}
  for i, width in zip(CONVS, WIDTHS):
    kernel = rng.standard_normal((width, channels, 3, 3), dtype=np.float32)
    out[f'features.{i}.weight'] = kernel * np.float32((2 / (9 * channels)) ** 0.5)
    out[f'features.{i}.bias'] = 0.1 * rng.standard_normal(width, dtype=np.float32)
    if i in COMPARED:
      head = rng.random((1, width, 1, 1), dtype=np.float32)
      out[f'lin{COMPARED[i]}.model.1.weight'] = head
    channels = width
  return out


def features(weights: dict[str, np.ndarray], image_CYX: np.ndarray) -> list[np.ndarray]:
  """Activations after relu1_2, relu2_2, relu3_3, relu4_3 and relu5_3."""
  shift = np.array([-0.030, -0.088, -0.188])[:, None, None]
  scale = np.array([0.458, 0.448, 0.450])[:, None, None]
  x, out = (image_CYX.astype(np.float64) - shift) / scale, []
  for i in CONVS:
    Y, X = x.shape[1:]
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    kernel = weights[f'features.{i}.weight'].astype(np.float64)
    x = weights[f'features.{i}.bias'].astype(np.float64)[:, None, None] + sum(
      np.tensordot(kernel[:, :, a, b], padded[:, a : a + Y, b : b + X], 1)
      for a in range(3)
      for b in range(3)
    )
    x = np.maximum(x, 0)
    if i in COMPARED:
      out.append(x)
      corners = [x[:, a : Y // 2 * 2 : 2, b : X // 2 * 2 : 2] for a in (0, 1) for b in (0, 1)]
      x = np.maximum.reduce(corners)
  return out


def distance(weights: dict[str, np.ndarray], a_CYX: np.ndarray, b_CYX: np.ndarray) -> float:
  """LPIPS of two images in [-1, 1]."""
  total = 0.0
  for j, pair in enumerate(zip(features(weights, a_CYX), features(weights, b_CYX))):
    a, b = (f / (np.sqrt((f**2).sum(0)) + 1e-10) for f in pair)
    head = weights[f'lin{j}.model.1.weight'].reshape(-1, 1, 1)
    total += (head * (a - b) ** 2).sum(0).mean()
  return total
