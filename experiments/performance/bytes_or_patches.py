"""Seconds of writing 8,192 bytes: a MEGABYTE beside a plain transformer over bytes, both ours.

    python experiments/performance/bytes_or_patches.py

The paper (arXiv:2305.07185) has 1.3B + 218M parameters write them in 93 s where a plain transformer
of 350M takes 132 s. Here all three are a quarter as wide and as deep (15 layers become 4), random
weights, patches of 8, float32, one row, all with caches, from nothing. The plain transformer writes
them as one row ("bytes") and, since the paper's has a context of 1,024, as eight pieces of that
length ("pieces"), which know nothing of one another. One process, one after the other by turns.
BENCH_THREADS and BENCH_CLOCK as in `harness.py`. Prints one JSON line.
"""

import argparse
import json
import statistics
import time

import harness

harness.limit_threads()

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
from flax import linen as nn  # noqa: E402

from jaxmm.core.decoding import SamplingConfig  # noqa: E402
from jaxmm.models import lm, megabyte, megabyte_generation  # noqa: E402
from jaxmm.task import example_keys  # noqa: E402
from jaxmm.train.memory import keep_freed_memory  # noqa: E402

keep_freed_memory()
SAMPLING = SamplingConfig(top_k=25)
BEGIN = 256  # the plain model's first token
CONTEXT = 1024  # of the paper's plain model


def of_patches(length: int):
  """A function of a key that writes `length` bytes with the MEGABYTE, and the model's Task."""
  task = megabyte.make_task(
    dict(
      global_depth=6, global_width=512, global_heads=8, local_depth=4, local_width=256,
      local_heads=4, patch=8, length=length, dropout=0.0,
    )
  )  # fmt: skip
  params = _params(task, length)
  layout = jax.jit(megabyte_generation.decode_params, static_argnums=1)(params, task.config)
  nothing, none = jnp.zeros((1, 0), jnp.int32), jnp.zeros(1, jnp.int32)

  @jax.jit
  def write(layout, key_B):
    return megabyte_generation.generate(
      layout, params, task.config, nothing, none, key_B, SAMPLING, length
    )

  return lambda key_B: write(layout, key_B), task, params


def of_bytes(length: int):
  """The same with the plain transformer."""
  task = lm.make_task(
    dict(
      depth=6, width=256, num_heads=4, hidden=1024, mlp='relu', norm='layer', bias=True,
      positions='learned', tied_head=True, vocab_size=257, length=length + 1,
    )
  )  # fmt: skip
  params = _params(task, length + 1)
  layout = jax.jit(lm.decode_params, static_argnums=1)(params, task.config)
  begin, one = jnp.full((1, 1), BEGIN, jnp.int32), jnp.ones(1, jnp.int32)

  @jax.jit
  def write(layout, key_B):
    return lm.generate(layout, params, task.config, begin, one, key_B, SAMPLING, length)

  return lambda key_B: write(layout, key_B), task, params


def of_pieces(length: int):
  """The same in pieces of the paper's context, one after the other."""
  write, task, params = of_bytes(CONTEXT)
  pieces = length // CONTEXT
  return (
    lambda key_B: np.concatenate([np.asarray(write(key_B)) for _ in range(pieces)], axis=1),
    task,
    params,
  )


def _params(task, length):
  batch = {'ids_BL': jnp.zeros((1, length), jnp.int32)}
  batch['segment_BL'] = jnp.ones((1, length), jnp.int32)
  return nn.unbox(jax.jit(task.init)(jax.random.key(0), batch))['params']


def main():
  """Times all three and prints the line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--bytes', type=int, default=8192, help=f'a multiple of {CONTEXT}')
  parser.add_argument('--repeat', type=int, default=5)
  options = parser.parse_args()
  if options.bytes % CONTEXT:
    parser.error(f'--bytes {options.bytes}: expected a multiple of {CONTEXT}')
  clock = {'wall': time.perf_counter, 'cpu': time.process_time}[harness.CLOCK]
  makers = {'patches': of_patches, 'bytes': of_bytes, 'pieces': of_pieces}
  sides = {name: make(options.bytes) for name, make in makers.items()}
  seconds, keys = {name: [] for name in sides}, iter(range(10**9))
  for i in range(options.repeat + 1):  # the first one compiles
    for name in sorted(sides, reverse=i % 2 == 1):
      key_B = example_keys(jax.random.key(next(keys)), jnp.arange(1, dtype=jnp.uint32))
      start = clock()
      drawn = np.asarray(sides[name][0](key_B))
      seconds[name].append(clock() - start)
      assert drawn.shape == (1, options.bytes)
  seconds = {name: values[1:] for name, values in seconds.items()}
  line = {
    'bytes': options.bytes,
    'bytes_to_patches': harness.ratio(seconds['bytes'], seconds['patches']),
    'pieces_to_patches': harness.ratio(seconds['pieces'], seconds['patches']),
    'seconds': {name: round(statistics.median(values), 3) for name, values in seconds.items()},
    'parameters': {
      name: sum(a.size for a in jax.tree.leaves(params)) for name, (_, _, params) in sides.items()
    },
    'forward_gflop': {
      name: round(task.step_flops(1) / 3e9, 1) for name, (_, task, _) in sides.items()
    },
    'repeat': options.repeat,
    'threads': harness.THREADS,
    'clock': harness.CLOCK,
  }
  print(json.dumps(line))


if __name__ == '__main__':
  main()
