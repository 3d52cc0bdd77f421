"""Bytes that the instructions of a compiled program move from and to HBM.

A fusion reads of an operand what it slices out of it, and writes of an array that it updates in
place what is new. What the compiler keeps in on-chip memory (`S(1)`) moves nothing.
"""

from __future__ import annotations

from jaxmm.pods.hlo import Computation, Instruction, Module

_FREE = (
  'parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast', 'while', 'conditional', 'call',
  'after-all', 'copy-done', 'slice-done', 'async-done', 'async-update', 'partition-id', 'iota',
  'opt-barrier', 'optimization-barrier', 'all-gather-done', 'all-reduce-done', 'send-done',
  'collective-permute-done', 'recv-done', 'replica-id', 'add-dependency',
)  # fmt: skip
_SLICES = ('dynamic-slice', 'slice', 'gather', 'slice-start')
_PASSES = ('bitcast', 'copy', 'reshape', 'transpose', 'convert')


def moved_bytes(one: Instruction, home: Computation, module: Module) -> float:
  """From and to HBM, by one execution of one instruction outside fusions."""
  if one.opcode in _FREE:
    return 0.0
  if one.opcode == 'fusion':
    inner = module.computations[one.called['calls'][0]]
    return _fusion(one, home, inner, module)
  operands = [s for n in one.operands[:1] if n in home.instructions
              for s in home.instructions[n].shapes]  # fmt: skip
  if one.opcode in _SLICES:
    return 2.0 * sum(s.bytes for s in one.shapes[-1:])
  if one.opcode == 'dynamic-update-slice':
    update = home.instructions[one.operands[1]].shapes
    return 2.0 * sum(s.bytes for s in update)
  if one.opcode in ('copy-start', 'async-start'):
    moved = [s for s in (*operands, *one.shapes[:1]) if s.is_in_hbm]
    return float(sum(s.bytes for s in moved))
  read = sum(s.bytes for s in home.operand_shapes(one) if s.is_in_hbm)
  return float(read + sum(s.bytes for s in one.shapes if s.is_in_hbm))


def read_bytes(
  reader: Instruction, source: Instruction, home: Computation, module: Module
) -> float:
  """Of a result, by one of its readers."""
  whole = sum(s.bytes for s in source.shapes)
  if reader.opcode in _SLICES:
    return sum(s.bytes for s in reader.shapes[-1:])
  if reader.opcode in ('bitcast', 'copy'):
    users = home.users.get(reader.name, [])
    return max((read_bytes(u, reader, home, module) for u in users), default=0.0)
  if reader.opcode != 'fusion':
    return whole
  inner = module.computations[reader.called['calls'][0]]
  places = [i for i, name in enumerate(reader.operands) if name == source.name]
  return max(_read(_parameters(inner)[i], inner, module)[0] for i in places)


def _fusion(one: Instruction, home: Computation, inner: Computation, module: Module) -> float:
  parameters = _parameters(inner)
  total = 0.0
  updated = set()
  for number, name in enumerate(one.operands):
    operand = home.instructions.get(name)
    if operand is None or number not in parameters:
      continue
    read, in_place = _read(parameters[number], inner, module)
    updated |= in_place
    if operand.shapes and operand.shapes[0].is_in_hbm:
      total += min(read, sum(s.bytes for s in operand.shapes))
  written = list(one.shapes)
  for update in updated:
    # The whole array is a result, but only the update is written.
    target = update.shapes[0]
    match = next((s for s in written if s.dims == target.dims and s.dtype == target.dtype), None)
    if match is None:
      continue
    written.remove(match)
    if match.is_in_hbm:
      total += inner.instructions[update.operands[1]].shapes[0].bytes
  return total + sum(s.bytes for s in written if s.is_in_hbm)


def _read(
  parameter: Instruction, inner: Computation, module: Module
) -> tuple[float, set[Instruction]]:
  """Bytes read of a fusion's operand, and the in-place updates of it."""
  whole = sum(s.bytes for s in parameter.shapes)
  total, updates = 0.0, set()
  waiting = [parameter]
  while waiting:
    value = waiting.pop()
    for user in inner.users.get(value.name, ()):
      if user.opcode in _SLICES:
        total += sum(s.bytes for s in user.shapes)
      elif user.opcode == 'dynamic-update-slice' and user.operands[0] == value.name:
        updates.add(user)
      elif user.opcode == 'fusion':  # a fusion within the fusion
        deeper = module.computations[user.called['calls'][0]]
        for place, name in enumerate(user.operands):
          if name == value.name:
            total += _read(_parameters(deeper)[place], deeper, module)[0]
      elif user.opcode in _PASSES and value.shapes and user.shapes[0].size == value.shapes[0].size:
        if user.is_root:
          return whole, updates
        waiting.append(user)
      else:
        return whole, updates
  return min(total, whole) if not updates else total, updates


def _parameters(inner: Computation) -> dict[int, Instruction]:
  return {int(p.literal): p for p in inner.instructions.values() if p.opcode == 'parameter'}
