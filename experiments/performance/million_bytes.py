"""One row of a million bytes forward and backward through a MEGABYTE of at most 10M parameters.

    python experiments/performance/million_bytes.py [--length 1048576] [--path FILE]

The bytes are FILE's, or those of Python's own library. Blocks are computed again for the gradient,
attention goes chunk by chunk, and so does the local model, patch by patch. Prints one JSON line:
parameters, what the compiler plans beside them, seconds of compiling and of the step, bits a byte,
the norm of the gradient, and the peak resident memory of the process.
"""

import argparse
import json
import math
import pathlib
import resource
import sysconfig
import time

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from jaxmm.models import megabyte

# A position table of 4 numbers a byte, 256 a patch: more would be all that the parameters are.
MODEL = dict(
  patch=64, global_depth=4, global_width=256, global_heads=4, local_depth=2, local_width=128,
  local_heads=4, dropout=0.0, init_std=0.06, remat='block', attention_backend='chunked',
  attention_chunk=512, local_chunk=1024,
)  # fmt: skip


def library_bytes(length: int) -> bytes:
  """The beginning of Python's standard library, file after file."""
  out, folder = b'', pathlib.Path(sysconfig.get_path('stdlib'))
  for file in sorted(folder.glob('*.py')):
    out += file.read_bytes()
    if len(out) >= length:
      return out[:length]
  raise SystemExit(f'{folder} has {len(out)} bytes in *.py, fewer than {length}; give a --path')


def main():
  """Runs one step and prints its line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('--length', type=int, default=1 << 20)
  parser.add_argument('--path', help='a file of at least so many bytes')
  args = parser.parse_args()
  read = pathlib.Path(args.path).read_bytes()[: args.length] if args.path else None
  ids = np.frombuffer(library_bytes(args.length) if read is None else read, np.uint8)[None]
  task = megabyte.make_task({**MODEL, 'length': args.length})
  batch = {
    'ids_BL': jnp.asarray(ids, jnp.int32),
    'segment_BL': jnp.ones(ids.shape, jnp.int32),
    'index_B': jnp.zeros(1, jnp.uint32),
    'valid_B': jnp.ones(1),
  }
  variables = nn.unbox(jax.jit(task.init)(jax.random.key(0), batch))

  @jax.jit
  def step(params, batch):
    def loss(params):
      counts = task.counts(batch)
      rest = jax.random.key(0), jnp.int32(0), counts
      return task.loss({**variables, 'params': params}, batch, *rest)[0]

    nats, gradient = jax.value_and_grad(loss)(params)
    return nats, jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))

  begin = time.perf_counter()
  compiled = step.lower(variables['params'], batch).compile()
  compiling, begin = time.perf_counter() - begin, time.perf_counter()
  nats, norm = jax.block_until_ready(compiled(variables['params'], batch))
  line = {
    'bytes': args.length,
    'parameters': sum(p.size for p in jax.tree.leaves(variables['params'])),
    'planned_gib': round(compiled.memory_analysis().temp_size_in_bytes / 2**30, 2),
    'compile_seconds': round(compiling, 1),
    'step_seconds': round(time.perf_counter() - begin, 1),
    'bits_per_byte': round(float(nats) / math.log(2), 4),
    'gradient_norm': round(float(norm), 4),
    'peak_gib': round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2),
  }
  print(json.dumps(line))


if __name__ == '__main__':
  main()
