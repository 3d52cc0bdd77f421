"""What a run is about to do, said before it does it."""

from __future__ import annotations

import math
from typing import Any

import jax

from jaxmm.train import state as states
from jaxmm.train.run_config import RunConfig
from jaxmm.train.state import Blueprint

_SHOWN = 8  # arrays that stay whole, named one by one


def described_plan(
  config: RunConfig, blueprint: Blueprint, constants: Any, workdir: Any, origin: str
) -> list[str]:
  """Lines for a person: the work, the machine, the memory, the places.

  Args:
    constants: of the Task, whole on every device.
    origin: where the parameters come from ('new, from seed 0', 'resumes from step 200').
  """
  mesh, abstract = blueprint.mesh, blueprint.abstract
  axes = (
    ', '.join(f'{name} {size}' for name, size in mesh.shape.items() if size > 1) or 'of one device'
  )
  device = mesh.devices.flat[0]
  counts: dict[str, int] = {}
  labels, leaves = jax.tree.leaves(blueprint.labels), jax.tree.leaves(abstract.params)
  for label, leaf in zip(labels, leaves, strict=True):
    counts[label] = counts.get(label, 0) + states.size_of(leaf)
  parts = {
    'parameters': abstract.params,
    'optimizer': abstract.opt_state,
    'average': abstract.ema,
    'statistics': abstract.extra,
  }
  sizes = {name: states.bytes_of(tree) for name, tree in parts.items()}
  total, on_device = (sum(size[i] for size in sizes.values()) for i in (0, 1))
  split = f' in {config.microbatches} microbatches' if config.microbatches > 1 else ''
  lines = [
    f'task {config.task}: {config.steps:,} steps of {config.batch} rows{split}, {origin}',
    'parameters: ' + ', '.join(f'{label} {number:,}' for label, number in sorted(counts.items())),
    f'devices: {mesh.size} x {device.device_kind} in {jax.process_count()} process(es), mesh '
    f'{axes}, rules {config.rules}',
    f'state: {_bytes(total)} in all, {_bytes(on_device)} a device ('
    + ', '.join(f'{name} {_bytes(size[0])}' for name, size in sizes.items() if size[0])
    + ')',
    f'writes: {workdir} (checkpoint every {config.checkpoint.every or config.steps:,} steps, '
    f'{config.checkpoint.keep} kept; log every {config.log.every:,})',
  ]
  if constants:
    size = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(constants))
    lines.append(f'constants of the task: {_bytes(size)}, whole on every device')
  if blueprint.whole:
    lines.append(f'{len(blueprint.whole)} array(s) stay whole on every device:')
    lines += [f'  {path} {list(shape)}: {why}' for path, shape, why in blueprint.whole[:_SHOWN]]
    if len(blueprint.whole) > _SHOWN:
      rest = sum(
        states.size_of(jax.ShapeDtypeStruct(s, 'float32')) for _, s, _ in blueprint.whole[_SHOWN:]
      )
      lines.append(f'  and {len(blueprint.whole) - _SHOWN} smaller, {rest:,} numbers in all')
  return lines


def _bytes(number: int) -> str:
  for unit, size in (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10)):
    if number >= size:
      return f'{number / size:.1f} {unit}'
  return f'{number} B'
