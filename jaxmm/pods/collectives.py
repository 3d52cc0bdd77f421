"""Collectives of a compiled program: what, how many bytes, over which mesh axes, how often."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping

import numpy as np

from jaxmm.pods.hlo import Computation, Instruction, Module, Shape
from jaxmm.pods.traffic import read_bytes

KINDS = (
  'all-gather', 'all-reduce', 'reduce-scatter', 'all-to-all', 'collective-permute',
  'ragged-all-to-all', 'collective-broadcast',
)  # fmt: skip


_MEGASCALE = 'xla_megascale_runtime'
_ON_MESH = re.compile(r'replica_groups=(mesh\[[^\]]*\](?:, device_ids=\([^{]*\))? \{[^}]*\})')


@dataclasses.dataclass(frozen=True)
class Collective:
  """One instruction.

  Attributes:
    kind: one of KINDS.
    shapes: its result for one device; of a reduction its operand.
    bytes: of the whole array that a group gathers, reduces or exchanges, once: for an all-gather
      the result, for reductions and the rest a device's operand.
    group: the devices of the first group, as numbers in the mesh.
    axes: mesh axes that vary within a group, 'data+fsdp'.
    times: how often it runs in a step.
    op_name: where in the program it comes from.
  """

  kind: str
  shapes: tuple[Shape, ...]
  bytes: float
  group: tuple[int, ...]
  axes: str
  times: float
  op_name: str


def collectives(module: Module, mesh: Mapping[str, int]) -> list[Collective]:
  """All of a program's, but for those of groups of one device.

  A compiler for TPUs writes some gathers as all-reduces of arrays that are zero but for the
  device's own share, and, when it is told to be quick, scattered gradients as all-reduces of which
  every device reads its share. They count as what they are.

    module: the program.
    mesh: sizes of the mesh axes in order.
  """
  out = []
  for name, times in module.times().items():
    home = module.computations[name]
    for one in home.instructions.values():
      kind = one.opcode.removesuffix('-start')
      if kind == 'send' and _MEGASCALE in one.rest:
        out.append(_between_slices(one, home, mesh, times))
      if kind not in KINDS:
        continue
      group = _group(kind, one, mesh)
      if len(group) < 2:
        continue
      axes = axes_of(group, mesh)
      for true_kind, shapes in _by_kind(kind, one, home, module, len(group)).items():
        size = sum(s.bytes for s in shapes)
        out.append(Collective(true_kind, tuple(shapes), size, group, axes, times, one.op_name))
  return out


def _between_slices(one: Instruction, home: Computation, mesh: Mapping[str, int], times: float):
  """What a device sends to those of other slices that stand where it does in theirs.

  Compilers for TPUs hand these to the hosts, with what they are beside.
  """
  kind = re.search(r'_xla_megascale_transfer_type="(\w+)"', one.rest)
  slices = re.search(r'_xla_megascale_target="\{([\d,:]+)\}', one.rest)
  sizes = tuple(mesh.values())
  # Only the first axis, data, goes across slices.
  ids = np.arange(math.prod(sizes)).reshape(sizes[0], -1)[:, 0]
  if slices:
    first, is_range, last = slices[1].partition(':')
    num = int(last) - int(first) + 1 if is_range else len(slices[1].split(','))
    ids = ids[:: sizes[0] // num]
  else:  # one device to one other
    ids = ids[[0, -1]]
  name = kind[1].lower().replace('_', '-') if kind else 'send'
  name = {'one-to-one': 'collective-permute'}.get(name, name)
  if name not in KINDS:
    raise ValueError(f'{one.name} sends to other slices in a way that is not known: {one.rest}')
  group = tuple(int(i) for i in ids)
  shapes = home.operand_shapes(one)[:1]
  size = sum(shape.bytes for shape in shapes)
  return Collective(name, tuple(shapes), size, group, axes_of(group, mesh), times, one.op_name)


def _group(kind: str, one: Instruction, mesh: Mapping[str, int]) -> tuple[int, ...]:
  if kind == 'collective-permute':
    pair = re.search(r'\{(\d+),(\d+)\}', one.attribute('source_target_pairs') or '')
    return tuple(int(n) for n in pair.groups()) if pair else (0,)
  on_mesh = _ON_MESH.search(one.rest)  # it has a comma of its own
  text = on_mesh[1] if on_mesh else one.attribute('replica_groups') or ''
  return first_group(text, math.prod(mesh.values()))


def _by_kind(
  kind: str, one: Instruction, home: Computation, module: Module, num: int
) -> dict[str, list[Shape]]:
  """What each kind of collective that an instruction is stands for: shapes by true kind."""
  operands = home.operand_shapes(one)
  if kind == 'all-gather':
    is_start = one.opcode.endswith('-start')
    return {kind: list(one.shapes[len(operands) :] if is_start else one.shapes)}
  if kind != 'all-reduce':
    return {kind: operands}
  out: dict[str, list[Shape]] = {}
  for place, name in enumerate(one.operands):
    if name not in home.instructions:
      continue
    shape = home.instructions[name].shapes[0]
    if _is_padded(home.instructions[name], home, module, num):
      true = 'all-gather'
    else:
      readers = _readers(one, place, home)
      share = shape.bytes / num * 1.01
      is_share = bool(readers) and all(
        read_bytes(reader, source, home, module) <= share for reader, source in readers
      )
      true = 'reduce-scatter' if is_share else kind
    out.setdefault(true, []).append(shape)
  return out


def _is_padded(value: Instruction, home: Computation, module: Module, num: int) -> bool:
  """Whether an array is a device's share of it, written into one of its full size."""
  while value.opcode in ('bitcast', 'copy') and value.operands[0] in home.instructions:
    value = home.instructions[value.operands[0]]
  if value.opcode == 'fusion':
    home = module.computations[value.called['calls'][0]]
    value = home.root
    while value.opcode == 'bitcast':
      value = home.instructions[value.operands[0]]
  if value.opcode != 'dynamic-update-slice':
    return False
  update = home.instructions[value.operands[1]].shapes[0]
  return update.bytes <= value.shapes[0].bytes / num * 1.01


def _readers(one: Instruction, place: int, home: Computation):
  """(reader, what it reads) of one result of a collective."""
  users = home.users.get(one.name, [])
  if len(one.shapes) == 1:
    return [(user, one) for user in users]
  elements = [u for u in users if u.attribute('index') == str(place)]
  return [(user, element) for element in elements for user in home.users.get(element.name, [])]


def first_group(text: str, num: int) -> tuple[int, ...]:
  """The first group of `replica_groups`, in any of the compiler's three ways of writing them.

  `{{0,1},{2,3}}`; `[2,2]<=[4]` and `[2,2]<=[2,2]T(1,0)`; `mesh['a'=2,'b'=2] {'a'}`.

  Args:
    text: the attribute.
    num: devices of the program; no groups are one of all.
  """
  if text.startswith('mesh['):
    return _mesh_group(text)
  iota = re.match(r'\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?', text)
  if iota:
    shape, dims = (tuple(int(n) for n in iota[i].split(',')) for i in (1, 2))
    ids = np.arange(int(np.prod(dims))).reshape(dims)
    if iota[3]:
      ids = ids.transpose([int(n) for n in iota[3].split(',')])
    return tuple(int(i) for i in ids.reshape(shape).reshape(shape[0], -1)[0])
  listed = re.search(r'\{([\d,]+)\}', text)
  return tuple(int(n) for n in listed[1].split(',')) if listed else tuple(range(num))


def _mesh_group(text: str) -> tuple[int, ...]:
  inside, _, rest = text.partition(']')
  sizes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", inside)}
  order = re.search(r'device_ids=\(\[([\d,]+)\]T\(([\d,]+)\)\)', rest)
  ids = np.arange(int(np.prod(list(sizes.values()))))
  if order:
    dims, turned = (tuple(int(n) for n in order[i].split(',')) for i in (1, 2))
    ids = ids.reshape(dims).transpose(turned)
  ids = ids.reshape(tuple(sizes.values()))
  names = re.search(r'\{(.*?)\}', rest)
  # 'a':(2)4 is the part of axis a of size 4 that has 2 before it.
  varied = re.findall(r"'([^']+)'(?::\((\d+)\)(\d+))?", names[1] if names else '')
  place: list = []
  for name, size in sizes.items():
    part = next((v for v in varied if v[0] == name), None)
    if part is None:
      place.append(np.array([0]))
    elif part[1]:
      stride = size // (int(part[1]) * int(part[2]))
      place.append(np.arange(int(part[2])) * stride)
    else:
      place.append(np.arange(size))
  return tuple(int(i) for i in ids[np.ix_(*place)].ravel())


def axes_of(group: tuple[int, ...], mesh: Mapping[str, int]) -> str:
  """The mesh axes along which devices of a group differ, 'data+fsdp'; 'none' for a single one."""
  coordinates = np.stack(np.unravel_index(np.array(group), tuple(mesh.values())))
  names = [n for n, row in zip(mesh, coordinates) if len(set(row.tolist())) > 1]
  return '+'.join(names) or 'none'


def is_weight(shape: Shape, weights: set[tuple[int, ...]]) -> bool:
  """Whether an array has the dims of a parameter (axes of 1 and the order aside)."""
  return essential(shape.dims) in weights


def essential(dims: tuple[int, ...]) -> tuple[int, ...]:
  """Dims without those of 1, sorted: layouts turn and unroll arrays."""
  return tuple(sorted(d for d in dims if d != 1))
