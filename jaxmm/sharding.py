"""Seam between a program and the machine: the mesh, the rule tables, sharded initialisation.

The only file that names mesh axes. A mesh always has the three axes `data`, `fsdp`, `tensor`; a
strategy is a table from logical axis names (`core.axes`) to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm.core import axes

MESH_AXES = ('data', 'fsdp', 'tensor')
Rules = tuple[tuple[str, Any], ...]

_ROWS = ((axes.BATCH, ('data', 'fsdp')),)
_NEVER = tuple(
  (name, None)
  for name in (
    axes.LAYERS,
    axes.HEAD_DIM,
    axes.CODE_DIM,
    axes.CONV_IN,
    axes.LENGTH,
    axes.ACT_EMBED,
    axes.ACT_CHANNELS,
  )
)
_TENSOR = (
  (axes.HEADS, 'tensor'),
  (axes.KV_HEADS, 'tensor'),
  (axes.MLP, 'tensor'),
  (axes.VOCAB, 'tensor'),
  (axes.ACT_HEADS, 'tensor'),
  (axes.ACT_MLP, 'tensor'),
  (axes.ACT_VOCAB, 'tensor'),
)
_NO_TENSOR = tuple((name, None) for name, _ in _TENSOR)

# dp: every device has all weights. fsdp: weights split over `fsdp` and gathered where used. tensor:
# heads, hidden units and vocabulary split over `tensor` as well (Megatron's split), the rest as in
# fsdp.
RULES: dict[str, Rules] = {
  'dp': _ROWS
  + _NO_TENSOR
  + _NEVER
  + ((axes.EMBED, None), (axes.CONV_OUT, None), (axes.CODES, None)),
  'fsdp': _ROWS
  + _NO_TENSOR
  + _NEVER
  + ((axes.EMBED, 'fsdp'), (axes.CONV_OUT, 'fsdp'), (axes.CODES, 'fsdp')),
  'tensor': _ROWS
  + _TENSOR
  + _NEVER
  + ((axes.EMBED, 'fsdp'), (axes.CONV_OUT, 'fsdp'), (axes.CODES, 'tensor')),
}


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Sizes of the mesh axes; one of them may be -1 (all devices that are left)."""

  data: int = -1
  fsdp: int = 1
  tensor: int = 1


def make_mesh(
  config: MeshConfig = MeshConfig(), devices: Sequence[jax.Device] | None = None
) -> Mesh:
  """The mesh over all devices (of all processes), axis types Auto.

  Where the devices are of several TPU slices, the data axis alone goes from slice to slice, over
  the slow network, and each slice holds a contiguous part of it.

  Raises:
    ValueError: the sizes do not multiply to the number of devices, or the slices do not divide
      the data axis.
  """
  devices = list(devices) if devices is not None else jax.devices()
  sizes = [config.data, config.fsdp, config.tensor]
  if sizes.count(-1) > 1 or any(s < 1 and s != -1 for s in sizes):
    raise ValueError(
      f'mesh {dataclasses.asdict(config)}: sizes must be positive, at most one of them -1'
    )
  known = int(np.prod([s for s in sizes if s != -1]))
  if -1 in sizes:
    sizes[sizes.index(-1)] = len(devices) // known
  if int(np.prod(sizes)) != len(devices):
    raise ValueError(
      f'mesh {dataclasses.asdict(config)} uses a multiple of {known} devices, and all of them, '
      f'but there are {len(devices)}; change mesh.data, mesh.fsdp or mesh.tensor'
    )
  slices = len({getattr(d, 'slice_index', 0) for d in devices})
  if sizes[0] % slices:
    raise ValueError(
      f'mesh {dataclasses.asdict(config)} has {sizes[0]} parts along data, but the devices are of '
      f'{slices} slices, and only data goes across slices; make mesh.data a multiple of {slices}'
    )
  # Auto on purpose: newer jax defaults to Explicit, under which embedding and codebook gathers do
  # not trace.
  auto = (AxisType.Auto,) * 3
  if slices == 1:
    return jax.make_mesh(tuple(sizes), MESH_AXES, axis_types=auto, devices=devices)
  within, across = (sizes[0] // slices, *sizes[1:]), (slices, 1, 1)
  order = mesh_utils.create_hybrid_device_mesh(
    within, across, devices, allow_split_physical_axes=True
  )
  return Mesh(order, MESH_AXES, axis_types=auto)


def rules_named(name: str) -> Rules:
  """The rule table `dp`, `fsdp` or `tensor`."""
  if name not in RULES:
    raise ValueError(f'rules is {name!r}, expected one of {", ".join(RULES)}')
  return RULES[name]


@contextlib.contextmanager
def in_mesh(mesh: Mesh, rules: Rules) -> Iterator[None]:
  """Context in which logical axis names mean something: mesh set, rules in force."""
  with jax.set_mesh(mesh), nn.logical_axis_rules(rules):
    yield


def spec_for(shape: Sequence[int], names: Sequence[str | None], rules: Rules, mesh: Mesh) -> P:
  """The partition of one array; an axis whose size the mesh does not divide stays whole."""
  spec, out = nn.logical_to_mesh_axes(tuple(names), rules), []
  for size, entry in zip(shape, tuple(spec) + (None,) * (len(shape) - len(spec))):
    axes_of = (entry,) if isinstance(entry, str) else tuple(entry or ())
    parts = int(np.prod([mesh.shape[a] for a in axes_of])) if axes_of else 1
    out.append(entry if parts > 1 and size % parts == 0 else None)
  return P(*out)


def tree_shardings(boxed: Any, rules: Rules, mesh: Mesh) -> Any:
  """Shardings of a tree of (boxed) shapes, without boxes; arrays without names are replicated."""

  def one(leaf):
    if isinstance(leaf, nn.LogicallyPartitioned):
      return NamedSharding(mesh, spec_for(leaf.value.shape, leaf.names, rules, mesh))
    return NamedSharding(mesh, P())

  return jax.tree.map(one, boxed, is_leaf=lambda x: isinstance(x, nn.LogicallyPartitioned))


def init_sharded(init: Callable[..., Any], *args: Any, mesh: Mesh, rules: Rules) -> Any:
  """Runs `init(*args)` so that every array is born sharded; none is ever whole on one device.

  Args:
    init: returns a tree whose parameters carry Flax's logical-axis boxes.

  Returns:
    The same tree without boxes.
  """
  with in_mesh(mesh, rules):
    shardings = tree_shardings(jax.eval_shape(init, *args), rules, mesh)
    return jax.jit(lambda *a: nn.unbox(init(*a)), out_shardings=shardings)(*args)


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over every device that holds different data."""
  return NamedSharding(mesh, P(('data', 'fsdp')))


@functools.lru_cache
def _readers(mesh: Mesh) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
  """`(processes, parts)`: which processes hold the same parts of a batch, and which those are.

  The devices of a pod lie in a mesh as its network wants it: the parts of one process need not be
  neighbours, and where `tensor` is longer than a process has devices, several hold the same ones.
  """
  parts: dict[int, list[int]] = {}
  devices = mesh.devices.reshape(-1, mesh.shape['tensor'])
  for part, holders in enumerate(devices):
    for process in {d.process_index for d in holders}:
      parts.setdefault(process, []).append(part)
  groups: dict[tuple[int, ...], list[int]] = {}
  for process, held in sorted(parts.items()):
    groups.setdefault(tuple(held), []).append(process)
  if len({len(held) for held in groups}) > 1 or sum(map(len, groups)) != len(devices):
    raise ValueError(
      f'mesh {dict(mesh.shape)}: some processes hold a part of the same rows of a batch, and each '
      'other rows besides; make mesh.tensor a divisor, or a multiple, of the devices of a process'
    )
  return tuple((tuple(processes), held) for held, processes in sorted(groups.items()))


def share_of_rows(mesh: Mesh) -> tuple[int, int]:
  """Which share of every batch this process reads, and how many shares there are.

  Processes that hold the same rows read the same share.

  Raises:
    ValueError: the mesh cuts rows across processes.
  """
  groups = _readers(mesh)
  here = jax.process_index()
  return next(i for i, (processes, _) in enumerate(groups) if here in processes), len(groups)


def row_order(mesh: Mesh, rows: int) -> np.ndarray:
  """Which row of the data each row of a global array of so many rows is, int [rows].

  Shares are contiguous in the data; in the array they lie where the devices of their processes do.
  """
  parts = len(mesh.devices.reshape(-1, mesh.shape['tensor']))
  held = [part for _, parts_of in _readers(mesh) for part in parts_of]
  order = np.empty((parts, rows // parts), np.int64)
  order[held] = np.arange(rows).reshape(parts, -1)
  return order.reshape(-1)


def replicated(mesh: Mesh) -> NamedSharding:
  """The same array on every device."""
  return NamedSharding(mesh, P())


def global_batch(mesh: Mesh, rows: dict[str, np.ndarray]) -> dict[str, jax.Array]:
  """The rows that this process reads (`share_of_rows`: a contiguous block of the global batch) as
  global arrays.
  """
  sharding = batch_sharding(mesh)
  if jax.process_count() == 1:
    return jax.device_put(dict(rows), sharding)  # one call for all of them costs a third
  return {
    name: jax.make_array_from_process_local_data(sharding, value) for name, value in rows.items()
  }
