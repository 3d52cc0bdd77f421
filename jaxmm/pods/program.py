"""A compiled program in numbers: products, bytes, collectives, kernels, with every loop's trips."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from jaxmm.pods import collectives as readers
from jaxmm.pods import hlo, traffic
from jaxmm.pods.collectives import Collective
from jaxmm.pods.products import Product, product


@dataclasses.dataclass(frozen=True)
class Work:
  """One instruction outside fusions (a fusion counts with all in it), for one execution.

  Attributes:
    flops, padded: see `products.Product`.
    bytes: from and to HBM.
    times: executions in a step.
    op_name: where in the program it comes from.
    is_kernel: whether it is an attention kernel.
  """

  name: str
  flops: float
  padded: float
  bytes: float
  times: float
  op_name: str
  is_kernel: bool = False


@dataclasses.dataclass(frozen=True)
class Program:
  """What one device does in a step.

  Attributes:
    work: every instruction that multiplies or moves.
    collectives: see there.
    kernels: `{name: executions}` of the attention kernels.
    unknown_calls: `{target: executions}` of custom calls that nothing here can count.
    kept_bytes: of what loops write for others to read later, an upper bound of the activations that
      are kept for the gradient.
  """

  work: tuple[Work, ...]
  collectives: tuple[Collective, ...]
  kernels: Mapping[str, float]
  unknown_calls: Mapping[str, float]
  kept_bytes: float

  @property
  def flops(self) -> float:
    """Of all products."""
    return sum(w.flops * w.times for w in self.work)

  @property
  def bytes(self) -> float:
    """From and to HBM."""
    return sum(w.bytes * w.times for w in self.work)


# Custom calls that compute nothing.
_EMPTY = (
  'AllocateBuffer', 'AssumeGatherIndicesInBound', 'ConcatBitcast', 'Sharding',
  'SPMDFullToShardShape', 'ZeroCrop', 'PrepareAsyncCallStart', 'PrepareAsyncCallDone',
  'SPMDShardToFullShape', 'BitcastBound', 'X64Combine', 'MoveToHost', 'MoveToDevice', 'TopK',
  'ConvolutionBitcast', 'SliceToDynamic', 'PadToStatic', 'annotate_device_placement',
)  # fmt: skip


def read(text: str, mesh: Mapping[str, int], tile: int = 128) -> Program:
  """The program of a compiled text.

  Args:
    text: of `compiled.as_text()`.
    mesh: sizes of the mesh axes in order.
    tile: width of the matrix unit.
  """
  module = hlo.parsed(text)
  times = module.times()
  fused = _fused(module)
  work, kernels, unknown = [], {}, {}
  for name, count in times.items():
    home = module.computations[name]
    if name in fused:
      continue
    for one in home.instructions.values():
      found = _products(one, home, module, tile)
      for part in found:
        if part.kernel:
          kernels[part.kernel] = kernels.get(part.kernel, 0) + count
      target = one.attribute('custom_call_target') if one.opcode == 'custom-call' else None
      if target and not found and target.strip('"') not in _EMPTY:
        unknown[target.strip('"')] = unknown.get(target.strip('"'), 0) + count
      is_collective = one.opcode.removesuffix('-start') in readers.KINDS
      moved = 0.0 if is_collective else traffic.moved_bytes(one, home, module)
      if found or moved:
        flops, padded = (sum(getattr(p, f) for p in found) for f in ('flops', 'padded'))
        is_kernel = any(p.kernel for p in found)
        work.append(Work(one.name, flops, padded, moved, count, one.op_name, is_kernel))
  return Program(
    tuple(work), tuple(readers.collectives(module, mesh)), kernels, unknown, _kept(module)
  )


def _fused(module: hlo.Module) -> set[str]:
  """Computations whose instructions are not executed one by one."""
  out = set()
  for home in module.computations.values():
    for one in home.instructions.values():
      if one.opcode == 'fusion':
        out.update(one.called.get('calls', ()))
  # Fusions within fusions.
  waiting = list(out)
  while waiting:
    for one in module.computations[waiting.pop()].instructions.values():
      new = set(one.called.get('calls', ())) - out
      out |= new
      waiting += new
  return out


def _products(one, home, module, tile) -> list[Product]:
  if one.opcode == 'fusion':
    inner = module.computations[one.called['calls'][0]]
    return [p for i in inner.instructions.values() for p in _products(i, inner, module, tile)]
  found = product(one, home, tile)
  return [] if found is None else [found]


def _kept(module: hlo.Module) -> float:
  """Bytes of what the entry's forward loops stack up, one slice an iteration."""
  total = 0.0
  entry = module.computations[module.entry]
  for loop in entry.instructions.values():
    if loop.opcode != 'while' or 'transpose(' in loop.op_name:
      continue
    body = module.computations[loop.called['body'][0]]
    trips = module.trips(entry.name, loop)
    results = body.root.operands if body.root.opcode == 'tuple' else ()
    for index, (name, shape) in enumerate(zip(results, loop.shapes)):
      value = body.instructions[name]
      passes = value.opcode == 'get-tuple-element' and value.attribute('index') == str(index)
      if not passes and shape.dims and shape.dims[0] == trips and shape.is_in_hbm:
        total += shape.bytes
  return total
