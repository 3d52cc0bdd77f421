"""Clustering and selection in embedding space, one row after the other in float64."""

import itertools

import numpy as np
import scipy.optimize


def nearest(x, centroids, spherical):
  """(cluster, distance) of every row."""
  out = []
  for row in np.asarray(x, np.float64):
    if spherical:
      distances = [1 - float(row @ c) for c in np.asarray(centroids, np.float64)]
    else:
      distances = [float(np.linalg.norm(row - c)) for c in np.asarray(centroids, np.float64)]
    best = int(np.argmin(distances))
    out.append((best, distances[best]))
  return [c for c, _ in out], [d for _, d in out]


def lloyd(x, start, iterations, spherical):
  """Centroids after so many iterations; none of the clusters may run empty."""
  centroids = np.asarray(start, np.float64)
  for _ in range(iterations):
    cluster, _ = nearest(x, centroids, spherical)
    groups = [np.asarray(x, np.float64)[np.array(cluster) == k] for k in range(len(centroids))]
    assert all(len(g) for g in groups)
    centroids = np.stack([g.mean(0) for g in groups])
    if spherical:
      centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
  return centroids


def semdedup(ids, x, cluster, distance, keep):
  """{id: (largest similarity to an earlier row of the cluster, that row's id)}; section 2 of the
  SemDeDup paper: rows in the order of their distance ('hard': the farthest first)."""
  out = {}
  for k in set(cluster):
    members = [n for n in range(len(ids)) if cluster[n] == k]
    sign = -1 if keep == 'hard' else 1
    members.sort(key=lambda n: (sign * distance[n], ids[n]))
    for place, n in enumerate(members):
      best, of = -np.inf, None
      for m in members[:place]:
        similarity = float(np.asarray(x[n], np.float64) @ np.asarray(x[m], np.float64))
        if similarity > best:
          best, of = similarity, ids[m]
      out[ids[n]] = (best, of)
  return out


def allocation(target, most, least, total):
  """The point next to `target` in squares, within bounds, of the given sum: every choice of which
  numbers stand at a bound is tried."""
  best, error = None, np.inf
  for choice in itertools.product('low high free'.split(), repeat=len(target)):
    x = np.where(np.array(choice) == 'low', least, most).astype(np.float64)
    free = np.array(choice) == 'free'
    if free.any():
      x[free] = target[free] + (total - x[~free].sum() - target[free].sum()) / free.sum()
    if abs(x.sum() - total) > 1e-9 or np.any(x < least - 1e-9) or np.any(x > most + 1e-9):
      continue
    if np.sum((x - target) ** 2) < error:
      best, error = x, np.sum((x - target) ** 2)
  return best


def allocation_by_solver(target, most, least, total):
  """The same by scipy's solver of quadratic programs (SLSQP)."""
  result = scipy.optimize.minimize(
    lambda x: 0.5 * np.sum((x - target) ** 2),
    least + (most - least) * (total - least.sum()) / (most.sum() - least.sum()),
    jac=lambda x: x - target,
    bounds=list(zip(least, most)),
    constraints=[scipy.optimize.LinearConstraint(np.ones((1, len(target))), total, total)],
    method='SLSQP',
    options={'ftol': 1e-9, 'maxiter': 1000},
  )
  assert result.success, result.message
  return result.x
