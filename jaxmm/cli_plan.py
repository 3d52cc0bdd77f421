"""The verb `plan`: will a config fit a machine that is not here, and how fast would it be?"""

from __future__ import annotations

import os


def add_options(p) -> None:
  """The options of the verb."""
  p.add_argument(
    '--config', required=True, metavar='FILE.py[:ARG]', help='what to train; ARG picks a variant'
  )
  p.add_argument(
    '--topology', required=True, metavar='NAME', help='v5e:16x16, v5p:8x8x8, v6e:16x16, tpu7x:4x4x4'
  )
  p.add_argument('--slices', type=int, default=1, metavar='N', help='default: %(default)s')
  p.add_argument(
    '--rules', nargs='+', default=(), metavar='TABLE', help='compare these (dp, fsdp, tensor)'
  )
  p.add_argument(
    '--largest-batch', action='store_true', help='look for the largest batch that fits'
  )
  p.add_argument(
    '--search', action='store_true', help='try meshes and remat policies, and rank them'
  )
  p.add_argument(
    '--seconds',
    type=float,
    default=600.0,
    metavar='N',
    help='for --search and --largest-batch together (default: %(default)g)',
  )
  p.add_argument(
    '--effort',
    choices=['quick', 'full'],
    default='quick',
    help="of the compiler; 'full' is what a TPU runs with, and takes 10 to 30 times as long",
  )
  p.add_argument(
    '--evaluation',
    metavar='NAME',
    help="plan this evaluation of the task ('likelihood') instead of the training step",
  )
  p.add_argument('--output', metavar='DIR', help='write plan.json and plan.html there')


def run(options) -> int:
  """Plans what these options describe."""
  # Nothing of it runs on this machine's accelerators, and looking for a TPU takes long.
  os.environ.setdefault('JAX_PLATFORMS', 'cpu')
  from jaxmm import config as configs
  from jaxmm.studies import pod_plan
  from jaxmm.studies import run as runs

  request = pod_plan.Request(
    config=runs.with_settings(configs.load_config(options.config), options.overrides),
    topology=options.topology,
    slices=options.slices,
    rules=tuple(options.rules),
    largest=options.largest_batch,
    search=options.search,
    seconds=options.seconds,
    effort=options.effort,
    evaluation=options.evaluation,
    output=options.output,
  )
  pod_plan.make(request, lambda line: print(line, flush=True))
  return 0
