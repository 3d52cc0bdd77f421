"""FLOPs of the instructions of a compiled program, multiply-add counted as two.

XLA's own count (`cost_analysis`) takes a loop's body once and a kernel as nothing.
"""

from __future__ import annotations

import dataclasses
import math
import re

from jaxmm.pods.hlo import Computation, Instruction

# Of an attention kernel, products of [L, H] x [H, S] or like size. Forward: logits, output. dq:
# logits again, the weights' gradient, dq. dkv: those two, dv, dk.
_KERNELS = (('dkv', 4), ('dq', 3), ('fwd', 2))


@dataclasses.dataclass(frozen=True)
class Product:
  """One instruction's multiplications.

  Attributes:
    flops: that the mathematics needs.
    padded: that a matrix unit of `tile` x `tile` does: contracted and output widths rounded up.
    kernel: its name, '' for what XLA does itself.
  """

  flops: float
  padded: float
  kernel: str = ''


def product(one: Instruction, home: Computation, tile: int = 128) -> Product | None:
  """Of one instruction; None for what multiplies no matrices.

  Attention kernels count every query with every key: what a causal mask lets a kernel pass over is
  not taken off, as in the models' own counts.
  """
  if one.opcode == 'dot':
    return _dot(one, home, tile)
  if one.opcode == 'convolution':
    return _convolution(one, home, tile)
  is_kernel = one.attribute('custom_call_target') == '"tpu_custom_call"'
  if one.opcode == 'custom-call' and is_kernel and 'splash_' in one.name + one.rest:
    return _splash(one, home, tile)
  return None


def _up(size: int, tile: int) -> int:
  # Small widths are not packed with others; below 8 rows nothing is gained by being smaller.
  return -(-size // tile) * tile


def _dot(one, home, tile) -> Product:
  lhs = home.instructions[one.operands[0]].shapes[0]
  rhs = home.instructions[one.operands[1]].shapes[0]
  numbers = lambda name: [int(n) for n in re.findall(r'\d+', one.attribute(name) or '')]
  contracted = math.prod(lhs.dims[i] for i in numbers('lhs_contracting_dims'))
  batch = math.prod(lhs.dims[i] for i in numbers('lhs_batch_dims'))
  rows = lhs.size // max(contracted * batch, 1)
  columns = rhs.size // max(contracted * batch, 1)
  padded = 2.0 * batch * rows * _up(columns, tile) * _up(contracted, tile)
  return Product(2.0 * batch * rows * columns * contracted, padded)


def _convolution(one, home, tile) -> Product:
  lhs, rhs = (home.instructions[name].shapes[0] for name in one.operands[:2])
  labels = one.attribute('dim_labels') or ''
  left, right, out = re.split(r'_|->', labels)
  result = one.shapes[0]
  at = lambda names, shape, letter: shape.dims[names.index(letter)]
  batch, columns = at(out, result, 'b'), at(out, result, 'f')
  contracted = at(right, rhs, 'i')
  window = _window(one.attribute('window') or '')
  positions = 1
  columns_of_all, contracted_of_all = columns, contracted
  for i, letter in enumerate(sorted(c for c in out if c.isdigit())):
    sizes = at(left, lhs, letter), at(right, rhs, letter), at(out, result, letter)
    positions *= _valid(*sizes, {k: values[i] for k, values in window.items() if i < len(values)})
    # A product over several axes is written as a window: axes that only the kernel has are columns,
    # those that it and the input share and the result lacks are contracted.
    if sizes[0] == 1 < sizes[2]:
      columns_of_all *= sizes[2]
    elif sizes[2] == 1 < sizes[1]:
      contracted_of_all *= sizes[1]
  groups = int(one.attribute('batch_group_count') or 1)
  flops = 2.0 * batch * columns * contracted * positions / groups
  widths = _up(columns_of_all, tile) * _up(contracted_of_all, tile)
  return Product(flops, flops * widths / (columns_of_all * contracted_of_all))


def _window(text: str) -> dict[str, list]:
  out = {}
  for key, value in re.findall(r'(\w+)=([^ }]+)', text):
    parts = value.split('x')
    pairs = key == 'pad'
    out[key] = [tuple(int(n) for n in p.split('_')) if pairs else int(p) for p in parts]
  return out


def _valid(num_in: int, num_kernel: int, num_out: int, window: dict) -> int:
  """How many pairs (place of the output, place of the kernel) meet an element that is there."""
  low = window.get('pad', (0, 0))[0]
  stride, spread = window.get('stride', 1), window.get('rhs_dilate', 1)
  base = window.get('lhs_dilate', 1)
  if stride == spread == base == 1 and low == 0 and num_out + num_kernel - 1 <= num_in:
    return num_out * num_kernel
  count = 0
  for k in range(num_kernel):
    for place in range(num_out):
      source = place * stride + k * spread - low
      count += 0 <= source <= (num_in - 1) * base and source % base == 0
  return count


def _splash(one, home, tile) -> Product:
  name = re.search(r'splash_\w+', one.name + ' ' + one.rest)[0]
  count = next((n for key, n in _KERNELS if key in name), 2)
  arrays = [s for s in home.operand_shapes(one) if s.dtype in ('bf16', 'f32', 'f16')]
  query, key = arrays[0], arrays[1]
  lead = math.prod(query.dims[:-2])
  rows, columns, width = query.dims[-2], key.dims[-2], query.dims[-1]
  flops = 2.0 * count * lead * rows * columns * width
  return Product(flops, flops * _up(width, tile) / width, name)
