"""The text of a compiled program as computations and instructions.

Only what the readers of this room need is kept: shapes with their memory space, operands, called
computations, and the rest of a line as text.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re

BITS = {
  'pred': 8, 's4': 4, 'u4': 4, 's8': 8, 'u8': 8, 's16': 16, 'u16': 16, 's32': 32, 'u32': 32,
  's64': 64, 'u64': 64, 'bf16': 16, 'f16': 16, 'f32': 32, 'f64': 64, 'c64': 64, 'c128': 128,
  'f8e4m3fn': 8, 'f8e5m2': 8, 'token': 0, 'opaque': 0,
}  # fmt: skip
_SHAPE = re.compile(r'(\w+)\[([\d,<=]*)\](?:\{([^}]*)\})?')
_HEAD = re.compile(r'^\s*(ROOT )?%?([\w.\-]+) = ')
_COMPUTATION = re.compile(r'^(ENTRY )?%?([\w.\-]+) .*\{\s*$')
_CALLED = re.compile(
  r'(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)='
  r'(\{[^}]*\}|%?[\w.\-]+)'
)


@dataclasses.dataclass(frozen=True)
class Shape:
  """One array. `is_in_hbm` is False for arrays that the compiler keeps in on-chip memory."""

  dtype: str
  dims: tuple[int, ...]
  is_in_hbm: bool = True

  @property
  def size(self) -> int:
    """Elements."""
    return math.prod(self.dims)

  @property
  def bytes(self) -> float:
    """Without padding."""
    return self.size * BITS.get(self.dtype, 32) / 8

  def __str__(self) -> str:
    return f'{self.dtype}[{",".join(map(str, self.dims))}]'


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line.

  Attributes:
    shapes: of the result; several for a tuple.
    operands: names, of the same computation.
    literal: what stands in the parentheses (a constant's value, a parameter's number).
    rest: what follows them.
  """

  name: str
  opcode: str
  shapes: tuple[Shape, ...]
  operands: tuple[str, ...]
  literal: str
  rest: str
  is_root: bool

  @functools.cached_property
  def called(self) -> dict[str, tuple[str, ...]]:
    """`{attribute: computations}`."""
    found = {}
    for key, value in _CALLED.findall(self.rest):
      found[key] = tuple(n.lstrip('%') for n in re.findall(r'%?[\w.\-]+', value))
    return found

  @property
  def op_name(self) -> str:
    """Where in the program it comes from."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else ''

  def attribute(self, name: str) -> str | None:
    """The text of `name=...` up to the next comma outside brackets."""
    place = re.search(rf'(?<![\w]){re.escape(name)}=', self.rest)
    if not place:
      return None
    depth, start = 0, place.end()
    for i, c in enumerate(self.rest[start:], start):
      depth += (c in '{[(') - (c in '}])')
      if (c == ',' and depth == 0) or depth < 0:
        return self.rest[start:i].strip()
    return self.rest[start:].strip()


@dataclasses.dataclass
class Computation:
  """Instructions by name, in the order of the text."""

  name: str
  instructions: dict[str, Instruction]

  @property
  def root(self) -> Instruction:
    """What it returns."""
    for one in reversed(self.instructions.values()):
      if one.is_root:
        return one
    return next(reversed(self.instructions.values()))

  def operand_shapes(self, one: Instruction) -> list[Shape]:
    """Of all operands, tuples laid out."""
    found = (self.instructions.get(name) for name in one.operands)
    return [shape for operand in found if operand for shape in operand.shapes]

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """Who reads each result."""
    out: dict[str, list[Instruction]] = {}
    for one in self.instructions.values():
      for name in one.operands:
        out.setdefault(name, []).append(one)
    return out


@dataclasses.dataclass
class Module:
  """A compiled program."""

  computations: dict[str, Computation]
  entry: str

  def times(self) -> dict[str, float]:
    """How often each computation runs in one call of the program: trip counts of loops multiplied.

    Of the branches of a conditional each counts as run. Computations that are applied to single
    elements (of a reduction) do not count.
    """
    out: dict[str, float] = {}

    def visit(name: str, count: float) -> None:
      out[name] = out.get(name, 0.0) + count
      for one in self.computations[name].instructions.values():
        for key, names in one.called.items():
          if key == 'condition' or (key == 'to_apply' and one.opcode != 'call'):
            continue
          trips = self.trips(name, one) if one.opcode == 'while' else 1
          for other in names:
            if other in self.computations:
              visit(other, count * trips)

    visit(self.entry, 1.0)
    return out

  def trips(self, computation: str, loop: Instruction) -> int:
    """How often a loop runs: as the compiler noted it, else from its condition `i < N`, i from 0.

    Raises:
      ValueError: neither says.
    """
    noted = re.search(r'known_trip_count[^\d]*(\d+)', loop.rest)
    if noted:
      return int(noted[1])
    condition = self.computations[loop.called['condition'][0]]
    found = self._bound(condition, condition.root)
    if found is None:
      raise ValueError(f'the trip count of the loop {loop.name} in {computation} cannot be read')
    return found

  def _bound(self, computation: Computation, compare: Instruction) -> int | None:
    """N of `i < N` (or `N > i`, or the last `i <= N`)."""
    at = lambda name: computation.instructions[name]
    if compare.opcode in ('copy', 'bitcast', 'convert'):
      return self._bound(computation, at(compare.operands[0]))
    if compare.opcode in ('fusion', 'call'):
      key = 'calls' if compare.opcode == 'fusion' else 'to_apply'
      constants = [int(at(n).literal) for n in compare.operands if at(n).opcode == 'constant']
      inner = self.computations[compare.called[key][0]]
      return self._bound(inner, inner.root) or (constants[0] if constants else None)
    if compare.opcode != 'compare':
      return None
    values = [at(n).literal for n in compare.operands if at(n).opcode == 'constant']
    if len(values) != 1:
      return None
    direction = compare.attribute('direction')
    return int(values[0]) + (1 if direction in ('LE', 'GE') else 0)


def parsed(text: str) -> Module:
  """The module of a program's text (`compiled.as_text()`)."""
  computations: dict[str, Computation] = {}
  current, entry = None, ''
  for line in text.splitlines():
    if current is None:
      head = _COMPUTATION.match(line)
      if head and not line.startswith('HloModule'):
        current = Computation(head[2], {})
        computations[head[2]] = current
        entry = head[2] if head[1] else entry
    elif line.rstrip() == '}':
      current = None
    else:
      one = _instruction(line)
      if one is not None:
        current.instructions[one.name] = one
  return Module(computations, entry)


def shapes_of(text: str) -> tuple[Shape, ...]:
  """The arrays in a shape's text, tuples laid out; S(1) and above is not HBM."""
  out = []
  for dtype, dims, layout in _SHAPE.findall(text):
    if dtype in BITS:
      numbers = tuple(int(d.replace('<=', '')) for d in dims.split(',') if d)
      out.append(Shape(dtype, numbers, not re.search(r'S\([1-9]\d*\)', layout)))
  return tuple(out)


def _instruction(line: str) -> Instruction | None:
  head = _HEAD.match(line)
  if not head:
    return None
  place = head.end()
  end = _closing(line, place) + 1 if line[place] == '(' else line.index(' ', place)
  shape, after = line[place:end], line[end:].lstrip()
  opcode, _, _ = after.partition('(')
  begin = len(opcode)
  close = _closing(after, begin)
  inside = after[begin + 1 : close]
  return Instruction(
    head[2], opcode, shapes_of(shape), tuple(re.findall(r'%([\w.\-]+)', inside)), inside,
    after[close + 1 :], bool(head[1]),
  )  # fmt: skip


def _closing(text: str, start: int) -> int:
  """Where the bracket that opens at `start` closes."""
  depth = 0
  for i in range(start, len(text)):
    depth += (text[i] == '(') - (text[i] == ')')
    if depth == 0:
      return i
  return len(text) - 1
