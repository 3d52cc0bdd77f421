"""The whole training step on the devices at hand: seconds, examples/s, model FLOP utilisation.

    python experiments/performance/train_step.py gpt --size XL --batch 64 --dtype bfloat16 \
        --backend cudnn --remat dots
    python experiments/performance/train_step.py vq --batch 32 --image-size 256 --dtype bfloat16

The step is the trainer's own: forward, backward, AdamW, the log's sums; the data is random and
stays on the devices. Utilisation counts the model's own FLOPs (none twice for rematerialisation)
against the data sheet's bfloat16 peak; on a CPU against a measured matrix product.
"""

import argparse
import json
import time

import jax
import numpy as np

from jaxmm import sharding
from jaxmm.models import image_lm
from jaxmm.tokenizers import vqgan_task
from jaxmm.train import state, step
from jaxmm.train.log import peak_flops
from jaxmm.train.optimizer import OptimizerConfig


def main():
  """Prints one JSON line."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument('work', choices=('gpt', 'vq'))
  parser.add_argument('--size', default='XL', help='gpt: preset of image_lm (default: %(default)s)')
  parser.add_argument('--image-size', type=int, default=256, help='vq: pixels a side')
  parser.add_argument('--batch', type=int, default=16, help='global')
  parser.add_argument('--dtype', default='bfloat16')
  parser.add_argument('--backend', default='xla', help='gpt: attention backend')
  parser.add_argument('--remat', default='none', help='gpt: none, block or dots')
  parser.add_argument('--rules', default='dp', help='dp, fsdp or tensor')
  parser.add_argument('--repeat', type=int, default=10)
  args = parser.parse_args()
  task, batch = gpt(args) if args.work == 'gpt' else vq(args)
  seconds = measured(task, batch, args)
  peak = peak_flops(jax.devices()[0])
  flops = task.step_flops(args.batch)
  print(json.dumps({
    **vars(args),
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'jax': jax.__version__,
    'seconds': round(seconds, 4),
    'examples_per_second': round(args.batch / seconds, 2),
    'teraflops_per_device': round(flops / seconds / jax.device_count() / 1e12, 2),
    'mfu': round(flops / seconds / jax.device_count() / peak, 3) if peak else None,
  }))  # fmt: skip


def gpt(args):
  """An image LM on 256 random codes an image."""
  model = {'size': args.size, 'grid': 16, 'dtype': args.dtype}
  task = image_lm.make_task(model | {'attention_backend': args.backend, 'remat': args.remat})
  codes = np.random.default_rng(0).integers(0, task.config.num_codes, (args.batch, 256))
  return task, {'ids_BL': codes.astype(np.int32)}


def vq(args):
  """VQ-16 with squared error, codebook and commitment terms on random pictures."""
  task = vqgan_task.make_task({
    'image_size': args.image_size,
    'vqgan': {'dtype': args.dtype},  # all else is VQ-16's
    'perceptual': {'name': 'none'},
  })  # fmt: skip
  shape = (args.batch, args.image_size, args.image_size, 3)
  images = np.random.default_rng(0).integers(0, 256, shape)
  return task, {'image_BYXC': images.astype(np.uint8)}


def measured(task, batch, args) -> float:
  """Seconds of a step: the mean of `repeat` in a row, after two that are not counted."""
  count = args.batch
  batch = batch | {
    'label_B': np.arange(count, dtype=np.int32) % 1000,
    'index_B': np.arange(count, dtype=np.uint32),
    'record_B': np.arange(count, dtype=np.int32),
    'valid_B': np.ones(count, np.float32),
  }
  split = {'dp': {}, 'fsdp': {'data': 1, 'fsdp': -1}, 'tensor': {'data': 1, 'tensor': -1}}
  mesh = sharding.make_mesh(sharding.MeshConfig(**split[args.rules]))
  blueprint = state.plan_state(
    task,
    {'model' if args.work == 'gpt' else 'generator': OptimizerConfig(learning_rate=1e-4)},
    {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in batch.items()},
    steps=1000,
    seed=0,
    mesh=mesh,
    rules=sharding.rules_named(args.rules),
  )
  batch = sharding.global_batch(mesh, batch)
  now = state.create_state(blueprint, batch)
  run = step.Step(task, blueprint)
  healthy = jax.device_put(np.bool_(True), sharding.replicated(mesh))
  stop_B = sharding.global_batch(mesh, {'stop_B': np.zeros(count, np.int32)})['stop_B']
  for i in range(args.repeat + 2):
    if i == 2:
      jax.block_until_ready(now)
      start = time.perf_counter()
    now, healthy, _ = run(now, healthy, batch, stop_B)
  jax.block_until_ready(now)
  if not bool(healthy):
    raise SystemExit('a step was not finite')
  return (time.perf_counter() - start) / args.repeat


if __name__ == '__main__':
  main()
