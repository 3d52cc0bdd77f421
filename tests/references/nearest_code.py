"""The closest code by two plain loops: slow, obvious, in float64."""

import numpy as np


def nearest_code(z_ND: np.ndarray, codes_KD: np.ndarray) -> np.ndarray:
  """Index of the code with the smallest squared distance, the first of equals; int [N]."""
  ids = []
  for z in np.asarray(z_ND, np.float64):
    best, best_id = np.inf, -1
    for k, code in enumerate(np.asarray(codes_KD, np.float64)):
      dist = np.sum((z - code) ** 2)
      if dist < best:
        best, best_id = dist, k
    ids.append(best_id)
  return np.array(ids)
