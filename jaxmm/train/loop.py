"""The one trainer: a Task, batches and a directory in; a trained state, checkpoints and a log out.

The host never waits for the step that it has just dispatched: what a step tells is read one step
later, and the data of the next step is fetched while the devices work. A run is the same whether it
was interrupted or not: state, data position and the half-filled window of the log are in one
checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.checkpoint import CheckpointError, Checkpoints
from jaxmm.config import ConfigError, RunError
from jaxmm.core import leaf_names
from jaxmm.task import Task, TrainState
from jaxmm.train import state as states
from jaxmm.train import step as steps
from jaxmm.train.held_out import BatchSource, HeldOut
from jaxmm.train.log import RunLog, peak_flops
from jaxmm.train.plan import described_plan
from jaxmm.train.run_config import (
  CheckpointConfig,
  EvaluateConfig,
  LogConfig,
  RunConfig,
  check_records,
  open_workdir,
  settle_config,
  use_compilation_cache,
)
from jaxmm.train.stop import Stopped, StopRequest
from jaxmm.train.timing import Clock, Tracer
from jaxmm.train.window import Window, shown

__all__ = [
  'BatchSource',
  'CheckpointConfig',
  'EvaluateConfig',
  'LogConfig',
  'NonFiniteError',
  'RunConfig',
  'Stopped',
  'train',
]

# Steps that may be under way on the devices while the host prepares the next one.
_AHEAD = 1
_NORMS = ('gradient_norm/', 'update_norm/')


class NonFiniteError(RunError, FloatingPointError):
  """A loss or gradient was not finite; the message says at which step, on which records, how to go
  on.

  Attributes:
    step: the step (from 0) that was not finite.
    position: the data position of its batch.
    records: the record ids of the global batch.
    state: the state before that step, unharmed.
  """

  def __init__(self, message: str, step: int, position: int, records: list[int], state: TrainState):
    super().__init__(message)
    self.step, self.position, self.records, self.state = step, position, records, state


def train(
  config: RunConfig | Mapping[str, Any],
  task: Task,
  batches: BatchSource,
  workdir: str,
  *,
  eval_batches: BatchSource | None = None,
  init_from: str | None = None,
  accept_config_change: bool = False,
  profile: tuple[int, int] | None = None,
  stop_after: int | None = None,
  mesh: Mesh | None = None,
  echo: Callable[[str], None] | None = None,
) -> TrainState:
  """Trains until `config.steps`, resuming by itself from the newest good checkpoint of `workdir`.

  Args:
    config: a RunConfig, or the user's config, which becomes one.
    task: what is minimised.
    batches: training data; this process's rows of every global batch.
    workdir: gets `config.json`, `environment.json`, `checkpoints/`, `log.jsonl`, `tensorboard/`.
    eval_batches: held-out data for the Task's evaluations, one finite pass each time.
    init_from: a run directory (or its `checkpoints`) whose parameters a *new* run starts from. Of
      the top-level groups of parameters it may lack some; those start new.
    accept_config_change: go on although settings that decide the result differ from the run's.
    profile: first and last step to trace, written to `workdir/profile`.
    stop_after: save and return once this many steps (counted from 0) are done.
    mesh: devices; None for all of them, as `config.mesh` says.
    echo: takes the lines meant for a person, on process 0; None prints them.

  Returns:
    The state after the last step.

  Raises:
    ConfigError: something that cannot work, found before anything is compiled.
    NonFiniteError: see there; the last good checkpoint is untouched.
    Stopped: SIGTERM or SIGINT; saved, exit code 128 + signal.
    CheckpointError: no checkpoint of the directory can be used, or one cannot be written.
  """
  echo = (echo or _printed) if jax.process_index() == 0 else lambda line: None
  if not isinstance(config, RunConfig):
    config = configs.from_mapping(RunConfig, config, 'the config')
  if profile is not None and not 0 <= profile[0] <= profile[1]:
    raise ConfigError(f'profile is {profile}, expected (first, last) with 0 <= first <= last')
  mesh, rules = machine(config, mesh)
  steps.check_rows(config.batch, config.microbatches, mesh)
  _ = task.constants  # a file that cannot be read is told before anything is written
  directory = open_workdir(workdir)
  checkpoints = Checkpoints(
    directory / 'checkpoints', keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every
  )
  settle_config(directory, config, bool(checkpoints.steps()), accept_config_change, echo)
  use_compilation_cache(config.compilation_cache)
  with StopRequest(echo) as request, contextlib.ExitStack() as stack:
    run = _Run(config, task, batches, eval_batches, directory, mesh, rules, checkpoints, echo)
    run.begin(init_from, accept_config_change)
    run.log = stack.enter_context(RunLog(directory, run.step, echo=echo, steps=config.steps))
    run.echo = run.log.message
    return run.go(request, profile, stop_after)


class _Run:
  """A run under way; `begin`, then `go`."""

  def __init__(
    self, config, task, batches, eval_batches, directory, mesh, rules, checkpoints, echo
  ):
    self.config, self.task, self.batches = config, task, batches
    self.held_out = HeldOut(task, eval_batches, config.evaluate, mesh, rules)
    self.directory, self.mesh, self.rules = directory, mesh, rules
    self.shares = sharding.share_of_rows(mesh)[1]
    self.checkpoints, self.echo = checkpoints, echo
    self.log: RunLog | None = None
    self.position, self.step = 0, 0
    self.window = Window()
    self.pending: collections.deque[tuple] = collections.deque()
    self.last_saved: int | None = None
    self.stop_agreed = self.is_evaluation_cut = False
    self.named: set[str] = set()
    self.clock = Clock(0)
    self.request = StopRequest()

  # Before the first step.

  def begin(self, init_from: str | None, accepts_change: bool = False) -> None:
    """Plans, says the plan, and makes the state: restored, or new."""
    rows = self.batches.at(0)
    self._check_batch(rows)
    shapes = {
      name: jax.ShapeDtypeStruct((self.config.batch, *x.shape[1:]), x.dtype)
      for name, x in rows.items()
    }
    self.blueprint = states.plan_state(
      self.task,
      self.config.optimizers(),
      shapes,
      steps=self.config.steps,
      seed=self.config.seed,
      mesh=self.mesh,
      rules=self.rules,
      has_ema=self.config.ema > 0,
    )
    self.held_out.check(self.blueprint.abstract)
    restored = self.checkpoints.restore(self.blueprint.abstract)
    if restored is not None:
      self.state, meta, self.step = restored
      self.position, self.window = meta['position'], Window(meta['window'])
      self.last_saved = self.step
      if not accepts_change:
        check_records(meta, self.batches.num_records, self.batches.kept_fingerprint)
      origin = f'resumes from step {self.step:,}'
      if init_from:
        origin += f' (so --init-from {init_from} is not used)'
    else:
      origin = f'new, from {init_from}' if init_from else f'new, from seed {self.config.seed}'
    for line in described_plan(
      self.config, self.blueprint, self.task.constants, self.directory, origin
    ):
      self.echo(line)
    if restored is None:
      self.state = states.create_state(self.blueprint, sharding.global_batch(self.mesh, rows))
      if init_from:
        self.state = _initialised_from(init_from, self.state, self.blueprint, self.echo)
    self.constants = jax.device_put(dict(self.task.constants), sharding.replicated(self.mesh))
    self.train_step = steps.Step(
      self.task, self.blueprint, self.config.step_config(), self.constants
    )

  def _check_batch(self, rows: Mapping[str, np.ndarray]) -> None:
    for name, x in rows.items():
      if len(x) * self.shares != self.config.batch:
        raise ConfigError(
          f'batch is {self.config.batch}, but the data gives {len(x)} rows of {name} in each of '
          f'{self.shares} share(s); give make_batches the batch size of the config, and the share '
          "that is this process's on the mesh (sharding.share_of_rows)"
        )

  # The loop.

  def go(self, request: StopRequest, profile, stop_after: int | None) -> TrainState:
    """Steps until the end, `stop_after` or a signal."""
    self.request = request
    last = min(self.config.steps, stop_after if stop_after is not None else self.config.steps)
    self._catch_up()
    if self.stop_agreed:
      raise self._stopped()
    if self.step >= last:
      self.echo(f'nothing to do: step {self.step:,} of {last:,} is done')
      return self.state
    healthy = jax.device_put(np.bool_(True), sharding.replicated(self.mesh))
    quiet, asking = self._stop_rows()
    tracer = Tracer(self.directory / 'profile', profile, self.echo, self.settle_all)
    rows_ahead = self._rows()
    self.clock = Clock(self.step)
    try:
      while self.step < last and not self.stop_agreed:
        position, rows = next(rows_ahead)
        batch = sharding.global_batch(self.mesh, rows)
        shapes = steps.shapes_of(batch)
        tracer.before(self.step)
        asked = quiet if request.signum is None else asking
        if self.train_step.is_compiled_for(shapes):
          self.state, healthy, vector = self.train_step(self.state, healthy, batch, asked)
        else:
          with _compiling(batch, self.echo):
            self.state, healthy, vector = self.train_step(self.state, healthy, batch, asked)
            vector.block_until_ready()
          self.clock = Clock(self.step + 1)  # rates are those of steps without compilation
        vector.copy_to_host_async()
        self.pending.append((self.step, position, shapes, vector))
        self.step, self.position = self.step + 1, position + 1
        self.settle(_AHEAD)
        tracer.after(self.step - 1)
        self._at_boundary()
      self.settle_all()
      if self.last_saved != self.step:
        self.save(wait=True)
      self.checkpoints.wait()
    finally:
      tracer.close()
      rows_ahead.close()
      if jax.process_count() == 1:  # of several, the others may not come to this point
        self.checkpoints.wait()
    if self.step < last or self.is_evaluation_cut:
      raise self._stopped()
    return self.state

  def _stopped(self) -> Stopped:
    # The processes agreed; one that heard nothing itself leaves as the others do.
    stopped = Stopped(self.step, self.request.signum or signal.SIGTERM)
    self.echo(f'{stopped}; the same command again goes on from there')
    return stopped

  def _rows(self) -> Iterator[tuple[int, Mapping[str, np.ndarray]]]:
    """Data positions and rows from this run's position on, without the skipped ones."""
    skipped = frozenset(self.config.skip_batches)
    first = self.position
    source = self.batches.from_step(first)
    try:
      for position, rows in enumerate(source, first):
        if position not in skipped:
          yield position, rows
    finally:
      if hasattr(source, 'close'):
        source.close()

  def _stop_rows(self) -> tuple[jax.Array, jax.Array]:
    """What a step is told of stop requests: 'no' and 'yes' of this process, as rows of a batch.

    The maximum over all rows comes back with the step, so all processes learn of it at the same
    step.
    """
    share = self.config.batch // self.shares
    make = lambda value: sharding.global_batch(
      self.mesh, {'stop_B': np.full(share, value, np.int32)}
    )['stop_B']
    return make(0), make(1)

  def settle_all(self) -> None:
    """Waits for every step that was dispatched."""
    self.settle(0)

  def settle(self, ahead: int) -> None:
    """Reads what finished steps tell, until only `ahead` are under way."""
    while len(self.pending) > ahead:
      step, position, shapes, vector = self.pending.popleft()
      report = self.train_step.read(vector, shapes)
      if not report.is_finite:
        self.pending.clear()
        raise self._non_finite(step, position, report)
      self.stop_agreed |= report.stop
      self.window.add(report.sums, self._unreadable(position, report.valid_B))
      done = step + 1
      if done % self.config.log.every == 0 or done == self.config.steps:
        self._log_line(done, position, report)

  def _at_boundary(self) -> None:
    """Checkpoint and evaluation, where the step that was just dispatched is one for them.

    The checkpoint comes first, so that an evaluation that fails costs nothing that was trained.
    """
    every, evaluates = self.config.checkpoint.every, self._is_evaluated(self.step)
    is_last = self.step == self.config.steps
    saves = is_last or bool(every) and self.step % every == 0
    if saves or evaluates:
      self.settle_all()
      with self.clock.paused():
        if saves:
          self.save(wait=is_last)
        if evaluates:
          self.evaluate()

  def _is_evaluated(self, step: int) -> bool:
    """Whether an evaluation belongs to this number of steps."""
    every = self.config.evaluate.every
    is_due = step == self.config.steps or bool(every) and step % every == 0
    return is_due and self.held_out.has_any

  def _catch_up(self) -> None:
    """The evaluation that a run did not come to after its last checkpoint."""
    if self.step and self._is_evaluated(self.step):
      is_missing = np.bool_(not self.log.has('evaluate', self.step))
      if jax.process_count() > 1:  # the log is the first process's
        is_missing = multihost_utils.broadcast_one_to_all(is_missing)
      if is_missing:
        self.echo(f'evaluates step {self.step:,} first, which was saved but not evaluated')
        self.evaluate()

  # What is written.

  def _unreadable(self, position: int, valid_B: np.ndarray) -> list[str]:
    """The records without weight, described; each is told to the person once."""
    if valid_B.all():
      return []
    unread = np.sort(sharding.row_order(self.mesh, len(valid_B))[valid_B == 0])
    described = [self.batches.describe(r) for r in self.batches.record_ids(position)[unread]]
    for text in described:
      if text not in self.named:
        self.named.add(text)
        self.echo(f'zero weight: {text}')
    return described

  def _log_line(self, done: int, position: int, report: steps.Report) -> None:
    # The progress line shows the first ones: what is minimised, its terms, then the norms.
    rank = lambda item: (item[0].startswith(_NORMS), item[0] != 'objective', item[0])
    values = shown(self.window.totals, self.task.summaries())
    fields = dict(sorted(values.items(), key=rank)) | report.gauges
    fields |= {
      'position': position,
      'records': self.batches.record_ids(position).tolist(),
      'unreadable': list(self.window.unreadable),
    }
    self.window = Window()
    self.log.write('train', done, fields, self._timing(done))

  def _timing(self, done: int) -> dict[str, float | None]:
    rate, flops = self.clock.rate(done), self.task.step_flops(self.config.batch)
    if not rate:
      return {}
    timing = {
      'steps_per_second': rate,
      'examples_per_second': rate * self.config.batch,
      'eta_seconds': (self.config.steps - done) / rate,
    }
    peak = peak_flops(self.mesh.devices.flat[0]) if flops else None
    return timing | ({'mfu': flops * rate / (peak * self.mesh.size)} if peak else {})

  def evaluate(self) -> None:
    """Every evaluation of the Task over the held-out data, as one log line."""
    single = jax.process_count() == 1
    asked = lambda: single and self.request.signum is not None
    fields = self.held_out.fields(self.state, self.constants, asked)
    if fields is None:
      # The step is saved, or will be; the next start evaluates it.
      self.stop_agreed = self.is_evaluation_cut = True
      return
    self.log.write('evaluate', self.step, fields)

  def save(self, wait: bool = False) -> None:
    """A checkpoint of the state, the data position and the window, after the log up to it is on
    disk.
    """
    self.log.flush()  # what is cut back to this step must be there
    meta = {
      'position': self.position,
      'num_records': self.batches.num_records,
      'kept_fingerprint': self.batches.kept_fingerprint,
      'window': self.window.saved(),
      'config': configs.plain(self.config),
    }
    self.checkpoints.save(self.step, self.state, meta, wait=wait)
    self.last_saved = self.step

  def _non_finite(self, step: int, position: int, report: steps.Report) -> NonFiniteError:
    records = self.batches.record_ids(position).tolist()
    broken = sorted(name for name, (s, _) in report.sums.items() if not np.isfinite(s).all())
    self.checkpoints.wait()
    saved = self.checkpoints.steps()
    last_good = f'step {saved[-1]}' if saved else 'none yet'
    return NonFiniteError(
      f'step {step} is not finite ({", ".join(broken)}); the state stays as it was before it. Its '
      f'batch (data position {position}) had the records {_short(records)}. Last checkpoint in '
      f'{self.directory / "checkpoints"}: {last_good}. To go on: run again with a lower learning '
      'rate or a smaller clip (and --accept-config-change); or pass over the batch with '
      f'skip_batches=({position},) in the config; or start a new run with '
      f'--init-from {self.directory}.',
      step,
      position,
      records,
      self.state,
    )


def _printed(line: str) -> None:
  print(line, flush=True)


def machine(config: RunConfig, mesh: Mesh | None = None) -> tuple[Mesh, sharding.Rules]:
  """The devices of a run and its rules; a mesh it cannot have is a ConfigError."""
  sizes = configs.from_mapping(sharding.MeshConfig, config.mesh, 'mesh')
  try:
    mesh = mesh or sharding.make_mesh(sizes)
    sharding.share_of_rows(mesh)
    return mesh, sharding.rules_named(config.rules)
  except ValueError as error:
    raise ConfigError(str(error)) from error


def _initialised_from(path: str, state: TrainState, blueprint: states.Blueprint, echo):
  """The new run's state with the groups of parameters and the statistics that another run has."""
  inner = os.path.join(path, 'checkpoints')
  source = Checkpoints(inner if os.path.isdir(inner) else path)
  names, params = _newest_names(source), blueprint.abstract.params
  new = {g for g in params if not any(f'{n}/'.startswith(f'params/{g}/') for n in names)}
  new = new if len(new) < len(params) else set()  # nothing fits: reading all says what is wrong
  taken = {group: tree for group, tree in params.items() if group not in new}
  loaded, _, step = source.restore_partial(taken, 'params')
  extra = dict(state.extra)
  for collection, tree in blueprint.abstract.extra.items():
    if set(leaf_names.named_leaves(tree, ('extra', collection))) <= names:
      extra[collection] = source.restore_partial(tree, 'extra', collection, step=step)[0]
    else:
      new.add(collection)
  for name in sorted(new):
    echo(f'{path} has no {name} (or not all of it); it starts new')
  echo(f'starts from step {step:,} of {path} with {", ".join(taken)}')
  state = states.with_params(state, {**state.params, **loaded}, extra)
  finish = functools.partial(blueprint.task.after_init_from, new=frozenset(new))
  with jax.set_mesh(blueprint.mesh):
    return jax.jit(finish, out_shardings=blueprint.shardings, donate_argnums=0)(state)


def _newest_names(source: Checkpoints) -> set[str]:
  """The leaves of the newest checkpoint whose record can be read."""
  for step in reversed(source.steps()):
    with contextlib.suppress(CheckpointError):
      return set(source.metadata(step).shapes)
  return set()


@contextlib.contextmanager
def _compiling(batch: Mapping[str, Any], echo):
  shapes = ', '.join(f'{name} {list(x.shape)}' for name, x in batch.items())
  echo(f'compiling the step for {shapes}')
  before = time.perf_counter()
  yield
  echo(f'first step after {time.perf_counter() - before:.1f} s')


def _short(records: list[int]) -> str:
  return f'{records[:32]}'[:-1] + (f', ... {len(records) - 32} more]' if len(records) > 32 else ']')
