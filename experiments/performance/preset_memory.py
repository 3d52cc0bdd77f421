"""Memory of the papers' sizes as the compiler plans it, without running them.

    python experiments/performance/preset_memory.py
    python experiments/performance/preset_memory.py megabyte/paper.py:text-758M-262M

Compiles the gradient of one row's loss ahead of time for one CPU device, from shapes alone, and
prints a JSON line a config: parameters; GFLOP of a row's forward pass; GiB of parameters with
AdamW's two moments in float32 (`state_gib`), of the gradient, and of what the compiler needs
beside them for the row (`row_gib`: activations kept, buffers, copies in bfloat16). On one device
weights are not sharded and nothing is gathered.
"""

import argparse
import json
import pathlib
import time

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxmm import config as configs
from jaxmm.models.megabyte import PRESETS
from jaxmm.studies import run

ROOT = pathlib.Path(__file__).parent.parent
SIZES = ('0.16B', '0.37B', '0.76B', '1.4B', '7B', 'large')
CONFIGS = (
  *(f'megabyte/paper.py:{name}' for name in PRESETS if name not in ('micro', 'mini')),
  'megabyte/paper.py:plain-320M', 'megabyte/paper.py:plain-350M',
  *(f'transfusion/paper.py:{size}' for size in SIZES),
)  # fmt: skip


def row_of(task) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a batch of one row, as the data path gives it."""
  shape = lambda dtype, *sizes: jax.ShapeDtypeStruct((1, *sizes), dtype)
  length, names = task.config.length, ['ids', 'segment']
  row = {'index_B': shape(jnp.uint32), 'valid_B': shape(jnp.float32)}
  if hasattr(task, 'row_images'):
    images, names = task.row_images, [*names, 'image', 'patch']
    row['latent_BIYXC'] = shape(jnp.float32, images, *task.config.latent_shape)
    row |= {f'{n}_BI': shape(jnp.float32, images) for n in ('image_valid', 'is_image_first')}
  row['weight_BL'] = shape(jnp.float32, length)
  return row | {f'{n}_BL': shape(jnp.int32, length) for n in names}


def planned(spec: str) -> dict:
  """The line of one config."""
  task = run.make_task(configs.load_config(f'{ROOT}/{spec}'))
  row, key = row_of(task), jax.random.key(0)
  variables = nn.unbox(jax.eval_shape(task.init, key, row))

  assert set(variables) == {'params'}, 'these models have nothing beside their parameters'

  def loss(params, row):
    return task.loss({'params': params}, row, key, jnp.int32(0), task.counts(row))[0]

  begin = time.perf_counter()
  compiled = jax.jit(jax.grad(loss)).lower(variables['params'], row).compile()
  memory, params = compiled.memory_analysis(), jax.tree.leaves(variables['params'])
  gib = lambda num_bytes: round(num_bytes / 2**30, 2)
  size = sum(p.size for p in params)
  return {
    'config': spec,
    'parameters': size,
    'forward_gflop': round(task.step_flops(1) / 3e9),
    'state_gib': gib(12 * size),
    'gradient_gib': gib(memory.output_size_in_bytes),
    'row_gib': gib(memory.temp_size_in_bytes),
    'compile_seconds': round(time.perf_counter() - begin, 1),
  }


def main():
  """Prints the lines."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('configs', nargs='*', default=CONFIGS)
  for spec in parser.parse_args().configs:
    print(json.dumps(planned(spec)), flush=True)


if __name__ == '__main__':
  main()
