"""Clustering and semantic deduplication of 200,000 x 384 vectors: jaxmm beside other libraries.

    python experiments/performance/vectors.py kmeans --directory /tmp/vectors
    python experiments/performance/vectors.py semdedup --directory /tmp/vectors

kmeans: spherical, k 500, 20 iterations, random start; peers faiss-cpu and scikit-learn (which has
no spherical mode: plain k-means of unit vectors). One JSON line a side: seconds, mean cosine to the
nearest centroid; all sides fit on all rows (faiss would take 256 a centroid). Of ours also the
first run, which compiles, and when the mean cosine was that at which faiss ends. semdedup: the
largest similarity to an earlier row in the cluster, from vectors and a clustering; peers are loops
over clusters in torch and NumPy (the full matrix, its strict upper triangle, the column maxima).
One JSON line a side: seconds, rows more similar than 0.99 and 0.9. Every side runs in a process of
its own, repetition by repetition, with the same threads. The peers are not dependencies of jaxmm:
`pip install faiss-cpu scikit-learn torch`.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

THREADS = int(os.environ.get('BENCH_THREADS', str(len(os.sched_getaffinity(0)))))
for variable in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS', 'OPENBLAS_NUM_THREADS'):
  os.environ.setdefault(variable, str(THREADS))

import numpy as np  # noqa: E402

N, D, K, CENTRES, ITERATIONS = 200_000, 384, 500, 1000, 20
PEERS = {'kmeans': ('jaxmm', 'faiss', 'sklearn'), 'semdedup': ('jaxmm', 'torch', 'numpy')}


def unit(x: np.ndarray) -> np.ndarray:
  return x / np.linalg.norm(x, axis=1, keepdims=True)


def rows(directory: pathlib.Path) -> np.ndarray:
  """A mixture of 1,000 centres of unequal size; a fifth of the rows are near-copies of others."""
  path = directory / f'rows-{N}x{D}.npy'
  if not path.exists():
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    centre = unit(rng.standard_normal((CENTRES, D), np.float32))
    share = rng.lognormal(0, 0.8, CENTRES)
    label = np.sort(rng.choice(CENTRES, N, p=share / share.sum()))
    noise = rng.standard_normal((N, D), np.float32) * np.float32(1.17 / D**0.5)
    x = unit(centre[label] + noise)
    cosine = rng.uniform(0.9, 0.995, (N // 5 - 1, 1)).astype(np.float32)
    source, copy = x[4:-1:5][: len(cosine)], rng.standard_normal((len(cosine), D), np.float32)
    away = unit(copy - np.sum(copy * source, 1, keepdims=True) * source)
    x[5::5][: len(cosine)] = cosine * source + np.sqrt(1 - cosine**2) * away
    np.save(path, unit(x)[rng.permutation(N)].astype(np.float32))
  return np.load(path)


def clustering(directory: pathlib.Path, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(cluster_N, distance_N) that all sides of semdedup get."""
  path = directory / f'clustering-{N}x{D}-{K}.npz'
  if not path.exists():
    from jaxmm.curation import kmeans

    found = kmeans.fit(x, kmeans.KMeansConfig(K, 10))
    np.savez(path, cluster=found.cluster_N, distance=found.distance_N)
  with np.load(path) as saved:
    return saved['cluster'], saved['distance']


def kmeans_of(side: str, x: np.ndarray, path: list[tuple[float, float]]) -> np.ndarray:
  """Centroids; `path` takes (seconds since the start, mean cosine) of iterations, of ours only."""
  if side == 'jaxmm':
    from jaxmm.curation import kmeans

    begin = time.perf_counter()
    said = lambda line: path.append((time.perf_counter() - begin, 1 - float(line.split()[-1])))
    return kmeans.fit(x, kmeans.KMeansConfig(K, ITERATIONS, seed=1), echo=said).centroid_KD
  if side == 'faiss':
    import faiss

    faiss.omp_set_num_threads(THREADS)
    of = faiss.Kmeans(D, K, niter=ITERATIONS, spherical=True, seed=1, max_points_per_centroid=N)
    of.train(x)
    return of.centroids
  from sklearn.cluster import KMeans

  of = KMeans(K, init='random', n_init=1, max_iter=ITERATIONS, tol=0, random_state=1)
  return of.fit(x).cluster_centers_


def earlier_of(side: str, x: np.ndarray, cluster: np.ndarray, distance: np.ndarray) -> np.ndarray:
  """The largest similarity of each row to one before it."""
  if side == 'jaxmm':
    from jaxmm.curation import semdedup

    return semdedup.earlier(x, cluster, distance, prefer='hard').similarity_N
  out = np.zeros(len(x), np.float32)
  order = np.lexsort((-distance, cluster))
  ends = np.cumsum(np.bincount(cluster, minlength=K))
  for begin, end in zip(ends - np.bincount(cluster, minlength=K), ends):
    ids = order[begin:end]
    if side == 'torch':
      import torch

      torch.set_num_threads(THREADS)
      of = torch.from_numpy(x[ids])
      product = of @ of.T
      out[ids] = torch.triu(product, diagonal=1).max(0)[0].numpy()
    else:
      of = x[ids]
      out[ids] = np.triu(of @ of.T, 1).max(0)
  return out


def side_main(work: str, side: str, directory: pathlib.Path) -> None:
  """A line on standard input is a repetition; its result is a line of JSON."""
  x, path = rows(directory), []
  begin = time.perf_counter()
  if work == 'kmeans':
    once = lambda x: kmeans_of(side, x, path)
    once(x if side == 'jaxmm' else x[:5000])  # compiled for this shape, or libraries loaded
  else:
    given = clustering(directory, x)
    once = lambda x: earlier_of(side, x, *given)
    once(x)
  print('READY', time.perf_counter() - begin, flush=True)
  for _ in sys.stdin:
    path.clear()
    begin = time.perf_counter()
    found = once(x)
    seconds = time.perf_counter() - begin
    if work == 'kmeans':
      parts = (x[low : low + 20_000] @ unit(found).T for low in range(0, N, 20_000))
      said = {'mean_cosine': round(float(np.mean([part.max(1).mean() for part in parts])), 5)}
      said |= {'path': path} if path else {}
    else:
      said = {f'above_{t}': int((found > t).sum()) for t in (0.99, 0.9)}
    print(json.dumps({'seconds': round(seconds, 4), **said}), flush=True)


def main() -> None:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('work', choices=sorted(PEERS))
  parser.add_argument('--directory', required=True, type=pathlib.Path, help='for the vectors')
  parser.add_argument('--repeat', type=int, default=3)
  parser.add_argument('--side', help=argparse.SUPPRESS)
  options = parser.parse_args()
  if options.side:
    return side_main(options.work, options.side, options.directory)
  clustering(options.directory, rows(options.directory))
  pipe = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
  sides = {
    side: subprocess.Popen([sys.executable, *sys.argv, '--side', side], **pipe)
    for side in PEERS[options.work]
  }
  first: dict[str, float] = {}
  for side, process in sides.items():
    while side not in first:
      line = process.stdout.readline().split()
      if line[:1] == ['READY']:
        first[side] = round(float(line[1]), 2)
      elif process.poll() is not None:
        raise SystemExit('a side failed; its message is above')
  found: dict[str, list[dict]] = {side: [] for side in sides}
  for _ in range(options.repeat):
    for side, process in sides.items():
      process.stdin.write('\n')
      found[side].append(json.loads(process.stdout.readline()))
  for process in sides.values():
    process.stdin.close()
  # The first run of ours compiles; those of the others only load libraries.
  found['jaxmm'][-1]['first_seconds'] = first['jaxmm']
  if 'path' in found['jaxmm'][-1]:
    wanted = found['faiss'][-1]['mean_cosine']
    times = [
      next((t for t, cosine in one.pop('path') if cosine >= wanted - 5e-6), None)
      for one in found['jaxmm']
    ]
    found['jaxmm'][-1]['seconds_to_faiss_cosine'] = times
  for side, said in found.items():
    seconds = [one['seconds'] for one in said]
    ratios = [a / b['seconds'] for a, b in zip(seconds, found['jaxmm'])]
    print(json.dumps({
      'side': side, **said[-1], 'seconds': round(statistics.median(seconds), 3), 'all': seconds,
      'times_ours': round(statistics.median(ratios), 2),
    }))  # fmt: skip


if __name__ == '__main__':
  main()
