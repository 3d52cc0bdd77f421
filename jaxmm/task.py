"""Seam between a model and the trainer: a Task is pure functions.

The trainer imports no model, a model no trainer.

The scalar that is differentiated divides every sum by a count of the *whole* batch, which the Task
works out first (`counts`). So the gradients of microbatches add up to the gradient of the full
batch exactly, also when their masks are ragged; averaging the means of microbatches would not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.config import ConfigError

Variables = Mapping[str, Any]
Batch = Mapping[str, jax.Array]
Sums = dict[str, tuple[jax.Array, jax.Array]]
Summary = Callable[[np.ndarray, np.ndarray], dict[str, float | None]]


@flax.struct.dataclass
class TrainState:
  """All that a run carries from step to step.

  Attributes:
    step: int32 scalar, the number of steps taken.
    params: differentiated parameters, plain nested dicts.
    extra: the other variable collections, `{collection: tree}` (codebook statistics, BatchNorm
      averages). opt_state: the optimizer's state. ema: exponential moving average of params, or
      None. key: uint32 key data of the run's key; the key of step s is `fold_in(key, s)`.
  """

  step: jax.Array
  params: Any
  extra: Any
  opt_state: Any
  ema: Any
  key: jax.Array


class Task:
  """What the trainer needs to know of a model. Subclasses are frozen dataclasses.

  `constants` are arrays the loss reads but nobody trains or saves (the weights of a perceptual
  network); they reach `loss` as `variables['constants']`. A Task that reads them from a file
  does so when they are first asked for, so that the rest of it works without the file.
  """

  constants: Mapping[str, Any] = {}

  def init(self, key: jax.Array, batch: Batch) -> Variables:
    """`{'params': tree, other collections...}`, with Flax's logical-axis boxes on; traced."""
    raise NotImplementedError

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    """How many items each term of the loss has in the whole batch (scalars), from masks alone."""
    raise NotImplementedError

  def loss(
    self,
    variables: Variables,
    batch: Batch,
    key: jax.Array,
    step: jax.Array,
    counts: dict[str, jax.Array],
  ) -> tuple[jax.Array, Sums, Any]:
    """One microbatch.

    Returns:
      scalar: sum over terms of weight * sum / counts[term]; what is differentiated.
      sums: `{name: (sum, count)}` for the log; added over microbatches before dividing.
      stats: a tree of arrays to be *added* over microbatches, for `after_update`; {} if none.
    """
    raise NotImplementedError

  def after_update(
    self, state: TrainState, stats: Any, key: jax.Array, step: jax.Array
  ) -> TrainState:
    """What follows the update (codebook averages, dead codes revived); default: nothing.

    `state.ema` is the average before this step; it moves to what this returns, but for parameters
    labelled 'frozen', of which it is a copy.
    """
    del stats, key, step
    return state

  def after_init_from(self, state: TrainState, new: frozenset[str]) -> TrainState:
    """What a new state needs that took weights of another run (`--init-from`); traced; default:
    nothing.

    Args:
      state: of step 0, with what the other run had.
      new: the groups of parameters and the collections of `extra` that it did not have.
    """
    del new
    return state

  def label(self, path: tuple[str, ...]) -> str:
    """Which optimizer of the config trains the parameter at `path`, or 'frozen' for none."""
    del path
    return 'model'

  def evaluations(self) -> Mapping[str, Callable[[Variables, Batch, jax.Array], Sums]]:
    """Named pure functions `(variables, batch, key) -> {metric: (sum, count)}`."""
    return {}

  def summaries(self) -> Mapping[str, Summary]:
    """How the log shows a metric whose quotient sum / count says nothing (counts of codes).

    `{metric: function(sum, count) -> {name: scalar, or None for no value}}`, for metrics of `loss`
    and of `evaluations`; the function sees float64 sums over all that a line of the log is about,
    on the host. Every other metric is shown as its quotient.
    """
    return {}

  def batch_shapes(self, batch_size: int) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes and dtypes of a global training batch, for those who plan a run without its data.

    Raises:
      ConfigError: this Task cannot say.
    """
    del batch_size
    raise ConfigError(
      f'{type(self).__name__} does not say what its batches look like (Task.batch_shapes)'
    )

  def step_flops(self, batch_size: int) -> float:
    """Model FLOPs of a training step, forward and backward (multiply-add = 2); 0 if unknown."""
    del batch_size
    return 0.0


def example_keys(key: jax.Array, index_B: jax.Array) -> jax.Array:
  """Typed keys [B], one an example, from its global index: the same on any mesh and microbatch."""
  return jax.vmap(lambda i: jax.random.fold_in(key, i))(index_B.astype(jnp.uint32))


def row_shapes(batch_size: int, **rows: tuple[tuple[int, ...], str]) -> dict[str, Any]:
  """`{name: ShapeDtypeStruct}` of a batch with these rows, `index_B`, `record_B` and `valid_B`.

  Args:
    batch_size: B.
    **rows: (shape of one row, dtype).
  """
  rows = {**rows, 'index_B': ((), 'uint32'), 'record_B': ((), 'int32'), 'valid_B': ((), 'float32')}
  return {
    name: jax.ShapeDtypeStruct((batch_size, *shape), jnp.dtype(dtype))
    for name, (shape, dtype) in rows.items()
  }


def packed_shapes(batch_size: int, length: int, **more: tuple[tuple[int, ...], str]):
  """`row_shapes` of packed text or bytes, [B, L], and what else a row has."""
  fields = {'ids_BL': 'int32', 'weight_BL': 'float32', 'segment_BL': 'int32'}
  return row_shapes(batch_size, **{n: ((length,), d) for n, d in fields.items()}, **more)
