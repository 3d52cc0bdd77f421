"""What a step would take: every instruction by the slower of its products and its memory traffic,
collectives by the links they run over.

The assumptions were set on three published configurations of MaxText (`calibration`) before any
plan of this project was made, and have stood since.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from jaxmm.pods.chips import Chip
from jaxmm.pods.collectives import Collective
from jaxmm.pods.program import Program


@dataclasses.dataclass(frozen=True)
class Assumptions:
  """What the published figures of a chip become in a program.

  Attributes:
    matrix: share of the peak that large products reach.
    kernel: share of the peak that attention kernels reach, their masked halves counted as done.
    memory: share of the HBM bandwidth.
    links: share of the interconnect's bandwidth.
    exposed: share of the shorter of arithmetic and communication that the longer does not hide.
    hop: seconds that a collective takes for each link between its farthest devices.
  """

  matrix: float = 0.90
  kernel: float = 0.50
  memory: float = 0.85
  links: float = 0.90
  exposed: float = 0.15
  hop: float = 1e-6


ASSUMPTIONS = Assumptions()


@dataclasses.dataclass(frozen=True)
class Estimate:
  """Seconds of one step, and shares.

  Attributes:
    products: were only matrix units at work.
    traffic: were only HBM at work.
    core: products and traffic, instruction by instruction the slower of the two.
    links: collectives within slices.
    network: collectives between slices.
    step: all, overlapping as assumed.
    utilisation: model FLOPs over peak in that time.
    hardware: executed FLOPs over peak in that time.
    ceiling: utilisation were only the model's FLOPs done, as fast as products go, and the weights'
      own communication hidden behind them as far as it is shorter.
  """

  products: float
  traffic: float
  core: float
  links: float
  network: float
  step: float
  utilisation: float
  hardware: float
  ceiling: float

  @property
  def of_ceiling(self) -> float:
    """Utilisation as a share of the ceiling."""
    return self.utilisation / self.ceiling if self.ceiling else 0.0


def estimated(
  program: Program,
  chip: Chip,
  devices: Sequence[jax.Device],
  mesh: Mapping[str, int],
  *,
  model_flops: float,
  weight_bytes: float,
  assumptions: Assumptions = ASSUMPTIONS,
) -> Estimate:
  """The estimate of a compiled step.

  Args:
    program: what one device does.
    chip: what it can do.
    devices: of the mesh, in its order.
    mesh: sizes of its axes in order.
    model_flops: of a step, on all devices (`Task.step_flops`).
    weight_bytes: of all parameters in the dtype of the computation.
    assumptions: see there.
  """
  a = assumptions
  by_products, by_traffic, core = 0.0, 0.0, 0.0
  for work in program.work:
    share = a.kernel if work.is_kernel else a.matrix
    products = work.padded / (chip.peak * share)
    traffic = work.bytes / (chip.bandwidth * a.memory)
    by_products += products * work.times
    by_traffic += traffic * work.times
    core += max(products, traffic) * work.times
  links = network = 0.0
  for one in program.collectives:
    within, between = seconds_of(one, chip, devices, a)
    links, network = links + within * one.times, network + between * one.times
  talk = links + network
  step = max(core, talk) + a.exposed * min(core, talk)
  peak = chip.peak * len(devices)
  return Estimate(
    by_products, by_traffic, core, links, network, step,
    utilisation=model_flops / (peak * step),
    hardware=program.flops * len(devices) / (peak * step),
    ceiling=ceiling(chip, devices, mesh, model_flops, weight_bytes, a),
  )  # fmt: skip


def ceiling(
  chip: Chip,
  devices: Sequence[jax.Device],
  mesh: Mapping[str, int],
  model_flops: float,
  weight_bytes: float,
  assumptions: Assumptions = ASSUMPTIONS,
) -> float:
  """The utilisation that arithmetic against communication allows at this batch.

  Weights split over `fsdp` are gathered twice and their gradients scattered once; replicas over
  `data` add what is left up once.
  """
  fsdp, tensor = mesh.get('fsdp', 1), mesh.get('tensor', 1)
  whole = weight_bytes / tensor
  talk = 0.0
  for axis, kind, size in (
    ('fsdp', 'all-gather', whole), ('fsdp', 'all-gather', whole), ('fsdp', 'reduce-scatter', whole),
    ('data', 'all-reduce', whole / fsdp),
  ):  # fmt: skip
    group = axis_group(axis, mesh)
    if len(group) > 1:
      one = Collective(kind, (), size, group, axis, 1, '')
      talk += sum(seconds_of(one, chip, devices, assumptions))
  work = model_flops / (len(devices) * chip.peak * assumptions.matrix)
  return assumptions.matrix * work / max(work, talk)


def axis_group(axis: str, mesh: Mapping[str, int]) -> tuple[int, ...]:
  """The first devices, as numbers in the mesh, along one axis."""
  stride = math.prod(size for name, size in list(mesh.items())[list(mesh).index(axis) + 1 :])
  return tuple(i * stride for i in range(mesh[axis]))


def seconds_of(
  one: Collective, chip: Chip, devices: Sequence[jax.Device], assumptions: Assumptions = ASSUMPTIONS
) -> tuple[float, float]:
  """One execution of a collective: on the links of a slice, and on the network between slices."""
  members = [devices[i] for i in one.group]
  num = len(members)
  if num < 2:
    return 0.0, 0.0
  num_slices = len({getattr(d, 'slice_index', 0) for d in members})
  inside = num // num_slices
  rounds = 2.0 if one.kind == 'all-reduce' else 1.0
  between = 0.0
  if num_slices > 1:
    part = one.bytes / (inside if one.kind != 'collective-permute' else 1)
    between = rounds * part * (num_slices - 1) / num_slices / (chip.network * assumptions.links)
  if inside < 2:
    return 0.0, between
  bandwidth, hops = _links(members, chip)
  bandwidth *= assumptions.links
  if one.kind == 'collective-permute':
    return (0.0 if num_slices > 1 else one.bytes / (chip.link * assumptions.links)), between
  if one.kind == 'all-to-all':
    # Half of what a device sends goes to the other half of a ring, a quarter of its length away.
    return one.bytes * max(1.0, hops / 4) / bandwidth + hops * assumptions.hop, between
  moved = rounds * one.bytes * (inside - 1) / inside
  return moved / bandwidth + rounds * hops * assumptions.hop, between


def _links(members: Sequence[jax.Device], chip: Chip) -> tuple[float, float]:
  """Bytes/s into one device of a group over all torus axes that it spans, and the links between its
  farthest devices.
  """
  coordinates = [getattr(d, 'coords', None) for d in members]
  if None in coordinates:
    return chip.link, float(len(members))
  bandwidth, hops = 0.0, 0.0
  for values in zip(*coordinates):
    length = max(values) - min(values) + 1
    if length > 1:
      is_ring = length % chip.wraps_at == 0 and length > 2
      bandwidth += chip.link * (2 if is_ring else 1)
      hops += length / 2 if is_ring else length - 1
  # Two devices of one chip: as near as it gets.
  return (bandwidth or 2 * chip.link), max(hops, 1.0)
