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
    """How often a loop runs: as the compiler noted it, else from its condition `i < N`, the step
    that its body adds to i, and the i that it begins with (1 and 0 where they cannot be read).

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
    bound, index = found
    body = self.computations[loop.called['body'][0]]
    step = self._constant(body, body.root, index, 'add') or 1
    home = self.computations[computation]
    given = home.instructions.get(loop.operands[0]) if loop.operands else None
    first = self._constant(home, given, index, 'constant') if given else None
    return max(-(-(bound - (first or 0)) // step), 0)

  def _bound(self, computation: Computation, compare: Instruction) -> tuple[int, int] | None:
    """N of `i < N` (or `N > i`, or the last `i <= N`), and the place of i in the loop's tuple."""
    at = lambda name: computation.instructions[name]
    if compare.opcode in ('copy', 'bitcast', 'convert'):
      return self._bound(computation, at(compare.operands[0]))
    inner = compare
    if compare.opcode in ('fusion', 'call'):
      key = 'calls' if compare.opcode == 'fusion' else 'to_apply'
      home = self.computations[compare.called[key][0]]
      inner = home.root
      compared = [home.instructions[n] for n in inner.operands]
    else:
      compared = [at(n) for n in compare.operands]
    if inner.opcode != 'compare':
      return None
    # Operands of a fused comparison are parameters; what they stand for is outside.
    compared = [
      at(compare.operands[int(c.literal)])
      if c.opcode == 'parameter' and inner is not compare
      else c
      for c in compared
    ]
    values = [c.literal for c in compared if c.opcode == 'constant']
    index = next((c.attribute('index') for c in compared if c.opcode == 'get-tuple-element'), '0')
    if len(values) != 1:
      return None
    more = 1 if inner.attribute('direction') in ('LE', 'GE') else 0
    return int(values[0]) + more, int(index)

  def _constant(self, home: Computation, tuple_: Instruction, index: int, kind: str) -> int | None:
    """The constant that an element of a tuple is, or (kind 'add') that is added to make it."""
    if tuple_.opcode != 'tuple' or index >= len(tuple_.operands):
      return None
    one = home.instructions[tuple_.operands[index]]
    while one.opcode in ('copy', 'bitcast') and one.operands[0] in home.instructions:
      one = home.instructions[one.operands[0]]
    if one.opcode == 'fusion':
      home = self.computations[one.called['calls'][0]]
      one = home.root
    if one.opcode != kind:
      return None
    if kind == 'constant':
      return int(one.literal)
    added = [home.instructions[n] for n in one.operands]
    values = [int(c.literal) for c in added if c.opcode == 'constant']
    return values[0] if len(values) == 1 else None


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
    # A kernel's metadata may begin a line with a bracket, too.
    elif line.rstrip() == '}' or line.startswith('}, execution_thread='):
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
