"""One training step, compiled once: gradient, update, averages, and what the log is told.

Everything that a step says to the host comes back as one small float32 vector, so that a step costs
the host one transfer, which it may read a step late. Whether the step was finite is decided on the
device: from the first non-finite step on the state stays exactly as it was before it, however many
steps were already dispatched.

Axes: B rows of the batch, M microbatches.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.task import Batch, Sums, Task, TrainState
from jaxmm.train import optimizer as optimizers
from jaxmm.train.state import Blueprint


@dataclasses.dataclass(frozen=True)
class StepConfig:
  """What of a step can be set.

  Attributes:
    microbatches: the batch is worked through in this many parts, one after the other.
    ema: decay of the moving average of the weights; 0 for none.
    ema_warmup: lowers the decay of early steps to (1 + step) / (10 + step).
  """

  microbatches: int = 1
  ema: float = 0.0
  ema_warmup: bool = False

  def __post_init__(self):
    if self.microbatches < 1:
      raise ConfigError(f'microbatches is {self.microbatches}, expected a number >= 1')
    if not 0 <= self.ema < 1:
      raise ConfigError(f'ema is {self.ema}, expected a decay in [0, 1); 0 keeps no average')


@dataclasses.dataclass(frozen=True)
class Report:
  """What one step tells, on the host.

  Attributes:
    sums: `{name: (sum, count)}`; sums may be arrays (a loss for every position).
    gauges: `{name: value}`, what is not averaged (learning rates).
    is_finite: whether this step and all before it (in this process) were finite.
    stop: whether any process asked to stop when this step was dispatched.
    valid_B: 1 for the rows of the global batch that could be read.
  """

  sums: dict[str, tuple[np.ndarray, np.ndarray]]
  gauges: dict[str, float]
  is_finite: bool
  stop: bool
  valid_B: np.ndarray


def num_row_shards(mesh: Mesh) -> int:
  """Into how many parts the rows of a batch are split."""
  return math.prod(mesh.shape[a] for a in sharding.batch_sharding(mesh).spec[0])


def check_rows(batch: int, microbatches: int, mesh: Mesh, where: str = 'batch') -> None:
  """Raises ConfigError unless every microbatch spreads evenly over all devices."""
  parts = num_row_shards(mesh) * microbatches
  if batch % parts:
    below, above = batch // parts * parts, (batch // parts + 1) * parts
    near = f'{below} or {above}' if below else str(above)
    raise ConfigError(
      f'{where} is {batch}, but {num_row_shards(mesh)} device groups that each hold other rows, '
      f'times {microbatches} microbatches, need a multiple of {parts}; use {near}'
    )


def split_rows(batch: Batch, microbatches: int, mesh: Mesh) -> Batch:
  """`{name: [M, B/M, ...]}`: microbatch m has the rows m, M + m, 2M + m, ...

  A device keeps the rows that it has: with contiguous blocks instead, the first microbatch would
  lie on the first devices alone.
  """
  spread = NamedSharding(mesh, P(None, *sharding.batch_sharding(mesh).spec))

  def one(x):
    x = x.reshape(x.shape[0] // microbatches, microbatches, *x.shape[1:]).swapaxes(0, 1)
    return jax.lax.with_sharding_constraint(x, spread)

  return {name: one(x) for name, x in batch.items()}


def gradients(
  task: Task,
  state: TrainState,
  batch: Batch,
  key: jax.Array,
  microbatches: int,
  mesh: Mesh,
  constants: Any = None,
) -> tuple[jax.Array, Sums, Any, Any]:
  """The objective of the whole batch, its sums and statistics, and its gradient, in `microbatches`
  parts.

  The counts of the whole batch come first, so the parts are simply added: the result is the full
  batch's also where the masks of the parts differ.

  Returns:
    objective (scalar), sums, stats, gradient (a tree like `state.params`).
  """
  counts = task.counts(batch)

  def objective(params, rows):
    variables = {**state.extra, 'params': params}
    if constants:
      variables['constants'] = constants
    scalar, sums, stats = task.loss(variables, rows, key, state.step, counts)
    return scalar.astype(jnp.float32), (sums, stats)

  # As its own jit the microbatch is traced once, although its shapes are asked for first.
  part = jax.jit(jax.value_and_grad(objective, has_aux=True))
  if microbatches == 1:
    (scalar, (sums, stats)), gradient = part(state.params, batch)
    return scalar, sums, stats, gradient
  rows_M = split_rows(batch, microbatches, mesh)
  first = {name: jax.eval_shape(lambda x: x[0], x) for name, x in rows_M.items()}
  zeros = jax.tree.map(
    lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(part, state.params, first)
  )

  def add(total, rows):
    return jax.tree.map(jnp.add, total, part(state.params, rows)), None

  ((scalar, (sums, stats)), gradient), _ = jax.lax.scan(add, zeros, rows_M)
  return scalar, sums, stats, gradient


def moving_average(ema: Any, params: Any, labels: Any, step: jax.Array, config: StepConfig) -> Any:
  """`decay * ema + (1 - decay) * params`, after step `step`.

  Of what no optimizer trains (`labels`) the average is a copy: what stands still is its own
  average, and a codebook that `after_update` moves is an average already.
  """
  decay = jnp.float32(config.ema)
  if config.ema_warmup:
    t = step.astype(jnp.float32)
    decay = jnp.minimum(decay, (1 + t) / (10 + t))
  one = lambda label, e, p: p if label == optimizers.FROZEN else e + (1 - decay) * (p - e)
  return jax.tree.map(one, labels, ema, params)


def train_step(
  task: Task,
  blueprint: Blueprint,
  config: StepConfig,
  state: TrainState,
  batch: Batch,
  constants: Any = None,
) -> tuple[TrainState, Sums, dict[str, jax.Array], jax.Array]:
  """One step as a pure function (traced inside `sharding.in_mesh`).

  Returns:
    The next state (step + 1), the sums with 'objective' and the norms a label, the gauges, and
    whether everything was finite; the caller decides what a non-finite step means.
  """
  step = state.step
  key = jax.random.fold_in(jax.random.wrap_key_data(state.key), step)
  objective, sums, stats, gradient = gradients(
    task, state, batch, key, config.microbatches, blueprint.mesh, constants
  )
  gradient = jax.lax.with_sharding_constraint(gradient, blueprint.shardings.params)
  updates, opt_state = blueprint.optimizer.update(gradient, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  new = state.replace(params=params, opt_state=opt_state)
  new = task.after_update(new, stats, key, step).replace(step=step + 1, key=state.key)
  if new.ema is not None:  # last: it is to follow what `after_update` moved, too
    average = moving_average(new.ema, new.params, blueprint.labels, step, config)
    new = new.replace(ema=average)

  gradient_norms = optimizers.norms_by_label(gradient, blueprint.labels)
  update_norms = optimizers.norms_by_label(updates, blueprint.labels)
  one = jnp.ones((), jnp.float32)
  told = {'objective': (objective, one)}
  told |= {f'gradient_norm/{label}': (norm, one) for label, norm in gradient_norms.items()}
  told |= {f'update_norm/{label}': (norm, one) for label, norm in update_norms.items()}
  clash = sorted(set(told) & set(sums))
  if clash:
    raise ValueError(f'the sums of the Task use names of the trainer: {", ".join(clash)}')
  gauges = {
    f'learning_rate/{label}': optimizers.learning_rate(c, blueprint.steps)(step)
    for label, c in blueprint.configs.items()
  }
  checked = [objective, *gradient_norms.values(), *update_norms.values()]
  is_finite = jnp.all(jnp.isfinite(jnp.stack(checked)))
  return new, {**told, **sums}, gauges, is_finite


class Step:
  """The compiled step of a run.

  `step(state, healthy, batch, stop_B)` gives the next state, whether the run is still healthy (a
  bool on the device, to be handed to the next call) and the vector that `read` turns into a Report.
  The state is donated: use the returned one.
  """

  def __init__(
    self, task: Task, blueprint: Blueprint, config: StepConfig = StepConfig(), constants: Any = None
  ):
    self.mesh, self.rules = blueprint.mesh, blueprint.rules
    self._constants = constants or {}
    self._layout: dict[tuple, Any] = {}
    whole = sharding.replicated(self.mesh)

    def told(state, healthy, batch, stop_B, constants):
      new, sums, gauges, is_finite = train_step(task, blueprint, config, state, batch, constants)
      healthy = healthy & is_finite
      state = jax.tree.map(lambda n, o: jnp.where(healthy, n, o), new, state)
      valid_B = batch.get('valid_B', jnp.ones_like(stop_B, jnp.float32))
      tree = (sums, gauges, healthy, jnp.max(stop_B), valid_B)
      self._layout[shapes_of(batch)] = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree
      )
      return state, healthy, _packed(tree)

    self.jitted = jax.jit(
      told, donate_argnums=(0,), out_shardings=(blueprint.shardings, whole, whole)
    )

  def __call__(self, state: TrainState, healthy: jax.Array, batch: Batch, stop_B: jax.Array):
    with sharding.in_mesh(self.mesh, self.rules):
      return self.jitted(state, healthy, batch, stop_B, self._constants)

  def is_compiled_for(self, batch_shapes: tuple) -> bool:
    """Whether batches of these shapes (`shapes_of`) were seen before."""
    return batch_shapes in self._layout

  def read(self, vector: jax.Array, batch_shapes: tuple) -> Report:
    """Waits for a step's vector. `batch_shapes` is `shapes_of` the step's batch."""
    sums, gauges, healthy, stop, valid_B = _unpacked(np.asarray(vector), self._layout[batch_shapes])
    return Report(
      sums={name: (total, count) for name, (total, count) in sums.items()},
      gauges={name: float(value) for name, value in gauges.items()},
      is_finite=bool(healthy),
      stop=bool(stop),
      valid_B=valid_B,
    )


def shapes_of(batch: Batch) -> tuple:
  """What tells one compilation of the step from another."""
  return tuple((name, batch[name].shape, batch[name].dtype) for name in sorted(batch))


def make_evaluation(
  function: Callable[[Mapping[str, Any], Batch, jax.Array], Sums], mesh: Mesh, rules: sharding.Rules
) -> Callable[[Mapping[str, Any], Batch, jax.Array], dict[str, tuple[np.ndarray, np.ndarray]]]:
  """An evaluation of a Task, compiled: `(variables, batch, key) -> {metric: (sum, count)}` on the
  host.
  """
  jitted = evaluation_program(function, mesh)

  def run(variables, batch, key):
    with sharding.in_mesh(mesh, rules):
      return jax.tree.map(np.asarray, jitted(variables, batch, key))

  return run


def evaluation_program(function: Callable[..., Sums], mesh: Mesh) -> Callable[..., Sums]:
  """What `make_evaluation` runs, jitted; to be called, or lowered, in `sharding.in_mesh`."""
  return jax.jit(function, out_shardings=sharding.replicated(mesh))


def _packed(tree: Any) -> jax.Array:
  return jnp.concatenate([jnp.ravel(x).astype(jnp.float32) for x in jax.tree.leaves(tree)])


def _unpacked(vector: np.ndarray, layout: Any) -> Any:
  leaves, structure = jax.tree.flatten(layout)
  ends = np.cumsum([math.prod(x.shape) for x in leaves])
  parts = np.split(vector, ends[:-1])
  return jax.tree.unflatten(structure, [p.reshape(x.shape) for p, x in zip(parts, leaves)])
