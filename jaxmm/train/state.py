"""The training state, planned as shapes first and then born sharded: no array is ever whole on one
device.

The boxes (logical axis names) that Flax puts around parameters travel through the optimizer's
`init`, so moments and the moving average are sharded like the parameters that they belong to,
without a second table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxmm import sharding
from jaxmm.core import axes
from jaxmm.task import Task, TrainState
from jaxmm.train import optimizer as optimizers


@dataclasses.dataclass(frozen=True)
class Blueprint:
  """What a run's state will be, before any of it exists.

  Attributes:
    abstract: the TrainState of `jax.ShapeDtypeStruct` with shardings; what a restore wants.
    labels: a tree like the parameters with each one's optimizer label.
    optimizer: the transformation over all labels.
    logical: `{path: logical axis names}` of the parameters that have some.
    whole: `(path, shape, why)` of the arrays that every device keeps whole although the mesh could
      split arrays.
  """

  task: Task
  abstract: TrainState
  labels: Any
  optimizer: optax.GradientTransformation
  configs: Mapping[str, optimizers.OptimizerConfig]
  steps: int
  seed: int
  has_ema: bool
  mesh: Mesh
  rules: sharding.Rules
  logical: Mapping[str, tuple[str | None, ...]]
  whole: tuple[tuple[str, tuple[int, ...], str], ...]

  @property
  def shardings(self) -> TrainState:
    """The sharding of every array of the state."""
    return jax.tree.map(lambda x: x.sharding, self.abstract)


def plan_state(
  task: Task,
  configs: Mapping[str, optimizers.OptimizerConfig],
  batch_shapes: Mapping[str, jax.ShapeDtypeStruct],
  *,
  steps: int,
  seed: int,
  mesh: Mesh,
  rules: sharding.Rules,
  has_ema: bool = False,
) -> Blueprint:
  """Works out every shape and sharding of the state; computes and allocates nothing.

  Args:
    configs: an optimizer a label of the Task.
    batch_shapes: shapes of the *global* batch.
    steps: length of the run (schedules).
    seed: of the run's key.

  Raises:
    ConfigError: labels and optimizers do not match.
  """
  # The mesh is set but no rules are: inside `init` a constraint on an axis that the mesh does not
  # divide would be an error, where `spec_for` leaves such an axis whole.
  with jax.set_mesh(mesh):
    variables = jax.eval_shape(lambda b: task.init(jax.random.key(seed), b), dict(batch_shapes))
    params = variables['params']
    labels = optimizers.parameter_labels(task.label, params, configs)
    ndims = optimizers.parameter_ndims(params)
    transformation = optimizers.make_optimizer(configs, labels, steps, ndims)
    boxed = jax.eval_shape(lambda v: _initial_state(v, transformation, seed, has_ema), variables)
  shardings = sharding.tree_shardings(boxed, rules, mesh)
  abstract = jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), _unboxed(boxed), shardings
  )
  return Blueprint(
    task=task,
    abstract=abstract,
    labels=labels,
    optimizer=transformation,
    configs=dict(configs),
    steps=steps,
    seed=seed,
    has_ema=has_ema,
    mesh=mesh,
    rules=rules,
    logical=_logical_names(boxed.params),
    whole=_whole_arrays(boxed, rules, mesh),
  )


def initializer(blueprint: Blueprint) -> Callable[[Mapping[str, jax.Array]], TrainState]:
  """The jitted function from the first global batch to the state of step 0."""
  b = blueprint

  def make(rows):
    variables = b.task.init(jax.random.key(b.seed), rows)
    return _unboxed(_initial_state(variables, b.optimizer, b.seed, b.has_ema))

  return jax.jit(make, out_shardings=b.shardings)


def create_state(blueprint: Blueprint, batch: Mapping[str, jax.Array]) -> TrainState:
  """The state of step 0; each device computes only its own part of every array.

  Args:
    batch: the first global batch, for models whose initial values depend on data.
  """
  with jax.set_mesh(blueprint.mesh):
    return initializer(blueprint)(dict(batch))


def with_params(state: TrainState, params: Any, extra: Any = None) -> TrainState:
  """A state at step 0 that starts from other weights (`--init-from`); the average starts from them
  too.
  """
  ema = None if state.ema is None else jax.tree.map(jnp.copy, params)
  return state.replace(params=params, ema=ema, extra=state.extra if extra is None else extra)


def size_of(tree: Any) -> int:
  """Numbers in a tree of arrays or shapes."""
  return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def bytes_of(tree: Any) -> tuple[int, int]:
  """Bytes of a tree of arrays or shapes with shardings: in all, and on one device."""
  total = device = 0
  for x in jax.tree.leaves(tree):
    total += math.prod(x.shape) * x.dtype.itemsize
    device += math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
  return total, device


def _initial_state(variables, transformation, seed, has_ema) -> TrainState:
  # Values made of Python numbers alone have a weak type, which the step's results lack: with it the
  # second step would be compiled anew.
  extra = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), dict(variables))
  params = extra.pop('params')
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    extra=extra,
    opt_state=transformation.init(params),
    ema=jax.tree.map(jnp.copy, params) if has_ema else None,
    key=jax.random.key_data(jax.random.key(seed)),
  )


def _is_box(x: Any) -> bool:
  return isinstance(x, nn.LogicallyPartitioned)


def _unboxed(tree: Any) -> Any:
  return jax.tree.map(lambda x: x.value if _is_box(x) else x, tree, is_leaf=_is_box)


def _logical_names(boxed: Any) -> dict[str, tuple[str | None, ...]]:
  return {
    jax.tree_util.keystr(path, simple=True, separator='/'): tuple(leaf.names)
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed, is_leaf=_is_box)
    if _is_box(leaf)
  }


def _whole_arrays(boxed: TrainState, rules, mesh) -> tuple[tuple[str, tuple[int, ...], str], ...]:
  """Parameters and statistics that stay whole on a mesh whose rules split weights; the largest
  first.
  """
  if not any(_parts(entry, mesh) > 1 for name, entry in rules if name != axes.BATCH):
    return ()
  out = []
  tree = {'params': boxed.params, **boxed.extra}
  for key_path, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=_is_box):
    path = jax.tree_util.keystr(key_path, simple=True, separator='/')
    if not _is_box(leaf):
      out.append((path, leaf.shape, 'it has no logical axis names'))
      continue
    shape = leaf.value.shape
    if not any(sharding.spec_for(shape, leaf.names, rules, mesh)):
      out.append((path, shape, _why_whole(shape, leaf.names, rules, mesh)))
  return tuple(sorted(out, key=lambda row: -math.prod(row[1])))


def _why_whole(shape, names, rules, mesh) -> str:
  spec = nn.logical_to_mesh_axes(tuple(names), rules)
  for size, name, entry in zip(shape, names, tuple(spec)):
    if _parts(entry, mesh) > 1:
      return f'its axis {name!r} of {size} cannot be divided by {_parts(entry, mesh)}'
  return f'no rule splits the axes {tuple(names)}'


def _parts(entry: Any, mesh: Mesh) -> int:
  mesh_axes = (entry,) if isinstance(entry, str) else tuple(entry or ())
  return math.prod(mesh.shape[a] for a in mesh_axes)
