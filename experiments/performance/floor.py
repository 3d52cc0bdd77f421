"""What this machine can do at all: float32 matmul GFLOP/s and streamed GB/s, with XLA."""

import json
import statistics
import time

import harness

harness.limit_threads()

import jax  # noqa: E402


def _median_seconds(fn, repeat=7):
  fn()
  times = []
  for _ in range(repeat):
    start = time.perf_counter()
    fn()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def main():
  """Prints one JSON line."""
  n, rows = 2048, 1 << 14
  x = jax.random.normal(jax.random.key(0), (n, n))
  w = jax.random.normal(jax.random.key(1), (rows, n))
  h = jax.random.normal(jax.random.key(2), (n, 1))
  product = jax.jit(lambda a, b: a @ b)
  matmul = _median_seconds(lambda: product(x, x).block_until_ready())
  stream = _median_seconds(lambda: product(w, h).block_until_ready())
  print(json.dumps({
    'matmul_gflops': round(2 * n**3 / matmul / 1e9, 1),
    'stream_gb_per_s': round(4 * rows * n / stream / 1e9, 1),
  }))  # fmt: skip


if __name__ == '__main__':
  main()
