"""The Task's evaluations on held-out data, summed exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np
from jax.sharding import Mesh

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.task import Task, TrainState
from jaxmm.train import step as steps
from jaxmm.train.run_config import EvaluateConfig
from jaxmm.train.window import added, shown


class BatchSource(Protocol):
  """What the trainer needs of the data (`jaxmm.data.pipeline.Batches`).

  A run is resumed only with as many records and the same keep-list: both decide what comes next.
  """

  num_records: int
  kept_fingerprint: str

  def at(self, step: int) -> Mapping[str, np.ndarray]: ...

  def record_ids(self, step: int) -> np.ndarray: ...

  def from_step(self, step: int) -> Iterator[Mapping[str, np.ndarray]]: ...

  def once(self) -> Iterator[Mapping[str, np.ndarray]]: ...

  def describe(self, record: int) -> str: ...


class HeldOut:
  """Evaluates states; without batches, or for a Task without evaluations, does nothing."""

  def __init__(
    self,
    task: Task,
    batches: BatchSource | None,
    config: EvaluateConfig,
    mesh: Mesh,
    rules: sharding.Rules,
  ):
    self._task, self._batches, self._config = task, batches, config
    self._mesh, self._rules = mesh, rules
    self._functions = dict(task.evaluations()) if batches is not None else {}
    self._compiled = {
      name: steps.make_evaluation(function, mesh, rules)
      for name, function in self._functions.items()
    }

  @property
  def has_any(self) -> bool:
    """Whether there is anything to evaluate."""
    return bool(self._functions)

  def check(self, abstract: TrainState) -> None:
    """Reads the first rows and traces the evaluations on them, before a step is spent.

    Args:
      abstract: shapes and dtypes of the state.

    Raises:
      ConfigError: the data cannot be read, is empty, or does not fit the Task.
    """
    if not self.has_any:
      return
    with contextlib.closing(self._rows()) as found:
      rows = next(found, None)
    if rows is None:
      raise ConfigError('the evaluation data gives no batch; check eval_data')
    shares = sharding.share_of_rows(self._mesh)[1]
    batch = {
      name: jax.ShapeDtypeStruct((len(x) * shares, *x.shape[1:]), x.dtype)
      for name, x in rows.items()
    }
    variables = {**abstract.extra, 'params': abstract.params}
    if self._task.constants:
      variables['constants'] = dict(self._task.constants)
    key = jax.eval_shape(lambda: jax.random.key(0))
    with sharding.in_mesh(self._mesh, self._rules), _named():
      for function in self._functions.values():
        jax.eval_shape(function, variables, batch, key)

  def fields(
    self, state: TrainState, constants: Mapping[str, Any], is_stopped: Callable[[], bool]
  ) -> dict[str, Any] | None:
    """One pass over the held-out data (or `config.batches` of it), summed exactly.

    Args:
      state: its average of the parameters counts where there is one and the config wants it.
      constants: of the Task, on the devices.
      is_stopped: asked before every batch.

    Returns:
      `{'weights': 'ema' or 'params', 'evaluation/metric': value}`; None if it was stopped.

    Raises:
      ConfigError: a record that the data refuses, named.
    """
    uses_ema = state.ema is not None and self._config.weights != 'params'
    variables = {**state.extra, 'params': state.ema if uses_ema else state.params}
    if constants:
      variables['constants'] = constants
    # The same key at every evaluation, so that two of them differ by the weights alone.
    key = jax.random.wrap_key_data(state.key)
    totals = {name: {} for name in self._functions}
    with contextlib.closing(self._rows()) as found:
      for number, rows in enumerate(found):
        if self._config.batches is not None and number >= self._config.batches:
          break
        if is_stopped():
          return None
        batch = sharding.global_batch(self._mesh, rows)
        for name, function in self._compiled.items():
          totals[name] = added(totals[name], function(variables, batch, key))
    summaries, fields = self._task.summaries(), {'weights': 'ema' if uses_ema else 'params'}
    for name, sums in totals.items():
      fields |= {f'{name}/{metric}': x for metric, x in shown(sums, summaries).items()}
    return fields

  def _rows(self) -> Iterator[Mapping[str, np.ndarray]]:
    with _named():
      yield from self._batches.once()


@contextlib.contextmanager
def _named():
  """Errors say that it is the held-out data they are about."""
  try:
    yield
  except ConfigError as error:
    raise ConfigError(f'in eval_data: {error}') from error
