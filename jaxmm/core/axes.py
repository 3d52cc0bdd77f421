"""Logical axis names of parameters and activations; `jaxmm.sharding` maps them to the machine.

Weights and activations have names of their own where a rule must treat them apart: a weight's EMBED
may be sharded over the same devices as an activation's BATCH, and one array can use a mesh axis
only once.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import flax.linen as nn
import jax
from jax.ad_checkpoint import checkpoint_name
from jax.sharding import PartitionSpec

# Parameters.
LAYERS = 'layers'  # the leading axis of a scanned Stack
EMBED = 'embed'  # model width D
HEADS = 'heads'  # query heads N (or N*H fused)
KV_HEADS = 'kv_heads'
HEAD_DIM = 'head_dim'
MLP = 'mlp'  # hidden width F
VOCAB = 'vocab'
CONV_IN = 'conv_in'
CONV_OUT = 'conv_out'
CODES = 'codes'  # codebook entries K
CODE_DIM = 'code_dim'

# Activations.
BATCH = 'batch'
LENGTH = 'length'
ACT_EMBED = 'activation_embed'
ACT_HEADS = 'activation_heads'
ACT_MLP = 'activation_mlp'
ACT_VOCAB = 'activation_vocab'
ACT_CHANNELS = 'activation_channels'


def weight(init: Callable, *names: str | None) -> Callable:
  """An initializer that records the logical axes of the parameter it makes."""
  return nn.with_logical_partitioning(init, names)


def spec(shape: Sequence[int], names: Sequence[str | None]) -> PartitionSpec | None:
  """How the rules in force split an array of these logical axes; None where no rules or no mesh
  are.

  An axis whose size its mesh axes do not divide stays whole (few rows when sampling, fewer K/V
  heads than devices).
  """
  rules, mesh = nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty:
    return None
  out = []
  for size, entry in zip(shape, nn.logical_to_mesh_axes(tuple(names), rules)):
    over = (entry,) if isinstance(entry, str) else tuple(entry or ())
    out.append(entry if size % math.prod(mesh.shape[a] for a in over) == 0 else None)
  return PartitionSpec(*out)


def constrain(x: jax.Array, *names: str | None) -> jax.Array:
  """States the logical axes of an activation; the identity where no rules or no mesh are in force.

  What the mesh does not divide stays whole (`spec`).
  """
  found = spec(x.shape, names)
  return x if found is None else jax.lax.with_sharding_constraint(x, found)


# A weight's axes where it is used: what is split over the devices that share rows is put together.
_IN_USE = {HEADS: ACT_HEADS, KV_HEADS: ACT_HEADS, MLP: ACT_MLP, VOCAB: ACT_VOCAB}
# The name of gathered weights, for rematerialisation policies: they are not to be kept.
GATHERED = 'gathered_weight'


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def _gathered(weight: jax.Array, names: tuple[str | None, ...]) -> jax.Array:
  # The barrier keeps the gather behind the change of dtype.
  return _whole(jax.lax.optimization_barrier(constrain(weight, *names)), names)


def _whole(weight, names):
  return constrain(weight, *(_IN_USE.get(name) for name in names))


def _gathered_forward(weight, names):
  return _gathered(weight, names), None


def _gathered_backward(names, _, grad):
  # Summed first and then split, or the product that makes it is done in pieces.
  return (constrain(_whole(grad, names), *names),)


_gathered.defvjp(_gathered_forward, _gathered_backward)


def gathered(weight: jax.Array, names: Sequence[str | None]) -> jax.Array:
  """A weight, in the dtype in which it is used, as its user wants it: whole but for a tensor split.

  Said aloud because a compiler that is left to itself may pass a small model's weights round in
  pieces, with a partial sum of the activations for each. The gradient goes back split as it was.
  """
  if spec(weight.shape, tuple(names)) is None:
    return weight
  return checkpoint_name(_gathered(weight, tuple(names)), GATHERED)


def is_split(name: str) -> bool:
  """Whether the rules in force split a logical axis over several devices."""
  rules, mesh = nn.get_logical_axis_rules(), jax.sharding.get_abstract_mesh()
  if not rules or mesh.empty:
    return False
  (entry,) = nn.logical_to_mesh_axes((name,), rules)
  over = (entry,) if isinstance(entry, str) else tuple(entry or ())
  return math.prod(mesh.shape[a] for a in over) > 1


def on_each_device(function: Callable, in_specs: Any, out_specs: Any) -> Callable:
  """`function` of each device's own part of its arguments, split as `spec` says; itself where no
  mesh is in force.
  """
  if out_specs is None:
    return function
  return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)
