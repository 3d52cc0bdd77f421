"""What a compiled program does that its rules did not mean: each a line with what to look at."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import jax

from jaxmm.core import axes
from jaxmm.pods.collectives import Collective, essential
from jaxmm.pods.hlo import BITS, Shape
from jaxmm.pods.program import Program
from jaxmm.train.state import Blueprint

_SMALL = 2**20  # bytes of a gather, or elements of a weight, that nobody needs to look at
_SLACK = 1.05


def offenders(
  program: Program, blueprint: Blueprint, dtype: str, microbatches: int = 1
) -> list[str]:
  """Lines; none where all is as it should be.

  Args:
    program: of the compiled step.
    blueprint: of its state.
    dtype: of the computation; weights are to be gathered in it.
    microbatches: each gathers the weights anew.
  """
  weights = weight_shapes(blueprint)
  return [
    *over_vocabulary(program.collectives, vocabularies(blueprint), set(weights)),
    *whole_weights(blueprint),
    *gathered_often(program.collectives, weights, dtype, microbatches),
    *gathered_wide(program.collectives, weights, dtype),
  ]


def weight_shapes(blueprint: Blueprint) -> dict[tuple[int, ...], float]:
  """Elements, of all parameters of one shape, by their dims (`essential`); a layer of a scanned
  Stack is one of as many weights as there are layers.
  """
  out: dict[tuple[int, ...], float] = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(blueprint.abstract.params):
    name = jax.tree_util.keystr(path, simple=True, separator='/')
    shape, names = leaf.shape, blueprint.logical.get(name, ())
    forms = {essential(shape)}
    if axes.LAYERS in names:
      forms.add(essential([n for n, axis in zip(shape, names) if axis != axes.LAYERS]))
    for form in forms:
      if len(form) > 1:
        out[form] = out.get(form, 0) + math.prod(shape)
  return out


def vocabularies(blueprint: Blueprint) -> set[int]:
  """Sizes of the vocabularies."""
  params = {
    jax.tree_util.keystr(p, simple=True, separator='/'): x.shape
    for p, x in jax.tree_util.tree_leaves_with_path(blueprint.abstract.params)
  }
  return {
    size
    for path, names in blueprint.logical.items()
    for size, axis in zip(params[path], names)
    if axis == axes.VOCAB
  }


def over_vocabulary(
  found: Sequence[Collective], sizes: set[int], weights: set[tuple[int, ...]]
) -> list[str]:
  """Gathers of logits, or of anything else that has the vocabulary as an axis and is no weight."""
  out = []
  for one in found:
    for shape in one.shapes:
      is_logits = sizes & set(shape.dims) and essential(shape.dims) not in weights
      if one.kind in ('all-gather', 'all-to-all') and is_logits and shape.bytes > _SMALL:
        out.append(
          f'{one.kind} over {one.axes} of {shape}, which has the vocabulary as an axis and is no '
          f'weight: {_where(one)}'
        )
  return out


def whole_weights(blueprint: Blueprint) -> list[str]:
  """Large parameters that every device keeps whole although the rules mean to split them."""
  return [
    f'{path} {list(shape)} is whole on every device: {why}'
    for path, shape, why in blueprint.whole
    if math.prod(shape) > _SMALL
  ]


def gathered_often(
  found: Sequence[Collective], weights: Mapping[tuple[int, ...], float], dtype: str, microbatches
) -> list[str]:
  """Weights gathered more than once a forward and once a backward."""
  width = BITS[short(dtype)] / 8
  moved: dict[tuple[int, ...], list] = {}
  for one, shape in _gathered_weights(found, weights):
    entry = moved.setdefault(essential(shape.dims), [0.0, one])
    # In whatever type: one that is too wide has a line of its own.
    entry[0] += shape.size * one.times * width
  out = []
  for form, (total, one) in moved.items():
    often = total / (weights[form] * width)
    if often > 2 * microbatches * _SLACK:
      out.append(
        f'weights of {"x".join(map(str, form))} are gathered {often:.1f} times a step, expected '
        f'at most {2 * microbatches}: {_where(one)}'
      )
  return out


def gathered_wide(
  found: Sequence[Collective], weights: Mapping[tuple[int, ...], float], dtype: str
) -> list[str]:
  """Weights gathered in a wider type than they are used in."""
  out = []
  for one, shape in _gathered_weights(found, weights):
    if BITS[shape.dtype] > BITS[short(dtype)] and shape.bytes > _SMALL:
      out.append(f'{shape} is gathered over {one.axes}, though used in {dtype}: {_where(one)}')
  return out


def short(dtype: str) -> str:
  """'bfloat16' as compiled programs write it."""
  return {'bfloat16': 'bf16', 'float32': 'f32', 'float16': 'f16'}[dtype]


def _gathered_weights(found, weights) -> list[tuple[Collective, Shape]]:
  return [
    (one, shape)
    for one in found
    if one.kind == 'all-gather'
    for shape in one.shapes
    if essential(shape.dims) in weights
  ]


def _where(one: Collective) -> str:
  times = f'{one.times:g} times a step, ' if one.times != 1 else ''
  return f'{times}{one.op_name or "unnamed"}'
