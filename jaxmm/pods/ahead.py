"""The trainer's own step, compiled for a machine that is not here; its memory by class."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import time
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.pods.topology import Topology
from jaxmm.task import Task
from jaxmm.train import state as states
from jaxmm.train import step as steps
from jaxmm.train.run_config import RunConfig
from jaxmm.train.state import Blueprint

# How hard the compiler tries; it takes 10 to 30 times as long at its own default, for programs that
# are a little faster and somewhat smaller.
EFFORTS = {'quick': -1.0, 'full': 0.0}
_SIZE = re.compile(r'([\d.]+)([KMGT]?)(?:i?B)?\b')
_UNITS = {'': 1, 'K': 2**10, 'M': 2**20, 'G': 2**30, 'T': 2**40}


@dataclasses.dataclass(frozen=True)
class Memory:
  """Bytes on one device while a step runs.

  Attributes:
    parameters, optimizer, average, statistics, constants, batch: what the step is given.
    activations: what loops over layers keep for the gradient; a part of what the compiler calls
      temporaries.
    temporaries: the rest of those: gradients, gathered weights, buffers, results.
    code: the program.
    available: of the chip's HBM, for all of these.
    is_measured: False where the program did not compile for want of memory; then temporaries are
      what the compiler said it needed beyond the arguments, and activations are among them.
  """

  available: float
  parameters: float = 0.0
  optimizer: float = 0.0
  average: float = 0.0
  statistics: float = 0.0
  constants: float = 0.0
  batch: float = 0.0
  activations: float = 0.0
  temporaries: float = 0.0
  code: float = 0.0
  is_measured: bool = True

  @property
  def total(self) -> float:
    """All classes."""
    return sum(self.classes().values())

  @property
  def free(self) -> float:
    """Bytes to spare; negative is by how much it misses."""
    return self.available - self.total

  @property
  def fits(self) -> bool:
    """Whether it runs."""
    return self.is_measured and self.free >= 0

  def classes(self) -> dict[str, float]:
    """Bytes by class."""
    rest = ('available', 'is_measured')
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name not in rest}


@dataclasses.dataclass(frozen=True)
class Compiled:
  """A step for a machine.

  Attributes:
    text: of the compiled program, '' where it did not compile for want of memory.
    memory: `Memory` with activations still among the temporaries.
    blueprint: shapes and shardings of the state.
    seconds: that tracing and compiling took.
  """

  text: str
  memory: Memory
  blueprint: Blueprint
  seconds: float


def mesh_for(config: RunConfig, topology: Topology) -> jax.sharding.Mesh:
  """The config's mesh over the topology's devices.

  Raises:
    ConfigError: it does not divide the devices.
  """
  try:
    sizes = configs.from_mapping(sharding.MeshConfig, config.mesh, 'mesh')
    return sharding.make_mesh(sizes, topology.devices)
  except ValueError as error:
    raise ConfigError(f'{topology}: {error}') from error


def compiled_step(
  config: RunConfig,
  task: Task,
  batch_shapes: Mapping[str, jax.ShapeDtypeStruct],
  topology: Topology,
  effort: str = 'quick',
  evaluation: str | None = None,
) -> Compiled:
  """Compiles `jaxmm.train.step.Step`, with the state that `plan_state` makes of the config.

  Args:
    config: of the run; its mesh and rules are those of the step.
    task: of the run.
    batch_shapes: of the global batch.
    topology: the machine.
    effort: see EFFORTS.
    evaluation: compile this evaluation of the Task instead of the step.

  Raises:
    ConfigError: a mesh that does not divide the devices, rows that do not divide over the mesh, an
      evaluation that the Task does not have.
  """
  if effort not in EFFORTS:
    raise ConfigError(f'effort is {effort!r}, expected one of {", ".join(EFFORTS)}')
  start = time.perf_counter()
  mesh, rules = mesh_for(config, topology), sharding.rules_named(config.rules)
  steps.check_rows(config.batch, config.microbatches, mesh)
  check_heads(config, task, mesh)
  rows, whole = sharding.batch_sharding(mesh), sharding.replicated(mesh)
  shaped = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s)
  batch = {name: shaped(x, rows) for name, x in batch_shapes.items()}
  blueprint = states.plan_state(
    task, config.optimizers(), batch, steps=config.steps, seed=config.seed, mesh=mesh, rules=rules,
    has_ema=config.ema > 0,
  )  # fmt: skip
  state, constants = blueprint.abstract, jax.tree.map(lambda x: shaped(x, whole), task.constants)
  given = dict(parameters=state.params, statistics=state.extra, constants=constants, batch=batch)
  if evaluation is None:
    given |= dict(optimizer=state.opt_state, average=state.ema)
    jitted = steps.Step(task, blueprint, config.step_config(), constants).jitted
    healthy = jax.ShapeDtypeStruct((), jnp.bool_, sharding=whole)
    stop = jax.ShapeDtypeStruct((config.batch,), jnp.int32, sharding=rows)
    arguments = (state, healthy, batch, stop, dict(constants))
  else:
    jitted = steps.evaluation_program(_evaluation(task, evaluation), mesh)
    key = jax.eval_shape(lambda: jax.random.key(0))
    variables = {**state.extra, 'params': state.params}
    if constants:
      variables['constants'] = constants
    arguments = (variables, batch, shaped(key, whole))
  sizes = {name: float(states.bytes_of(tree)[1]) for name, tree in given.items()}
  with sharding.in_mesh(mesh, rules), _effort(effort):
    text, memory = _compiled(jitted.lower(*arguments), sizes, topology)
  return Compiled(text, memory, blueprint, time.perf_counter() - start)


def _evaluation(task: Task, name: str):
  known = task.evaluations()
  if name not in known:
    raise configs.unknown_key(name, sorted(known), 'evaluation')
  return known[name]


def _compiled(lowered, sizes: Mapping[str, float], topology: Topology) -> tuple[str, Memory]:
  """A program's text and its memory; '' where it does not compile for want of memory."""
  try:
    program = lowered.compile()
  except jax.errors.JaxRuntimeError as error:
    return '', _refused(str(error), sizes, topology)
  found = program.memory_analysis()
  memory = Memory(
    **sizes,
    # At the worst moment; `temp_size_in_bytes` adds up what is never there at one time.
    temporaries=float(max(found.peak_memory_in_bytes - found.argument_size_in_bytes, 0)),
    code=float(found.generated_code_size_in_bytes),
    available=topology.chip.memory,
  )
  return program.as_text(), memory


def check_heads(config: RunConfig, task: Task, mesh: jax.sharding.Mesh) -> None:
  """Whether the tensor axis divides the heads of every Stack of the model.

  Raises:
    ConfigError: it does not; the message says which.
  """
  parts = dict(mesh.shape).get('tensor', 1)
  model = getattr(task, 'config', None)
  if config.rules != 'tensor' or parts == 1 or model is None:
    return
  for field in dataclasses.fields(model):
    if 'heads' in field.name and (number := getattr(model, field.name)) and number % parts:
      raise ConfigError(
        f'mesh.tensor is {parts}, but model.{field.name} is {number}, which it does not divide; '
        f'set mesh.tensor to a divisor of {number}'
      )


@contextlib.contextmanager
def _effort(name: str):
  before = jax.config.jax_exec_time_optimization_effort
  jax.config.update('jax_exec_time_optimization_effort', EFFORTS[name])
  try:
    yield
  finally:
    jax.config.update('jax_exec_time_optimization_effort', before)


def _refused(message: str, sizes: Mapping[str, float], topology: Topology) -> Memory:
  """Memory of a program that the compiler would not make.

  Raises:
    RuntimeError: it was not for want of memory.
  """
  needed = needed_bytes(message)
  if needed is None:
    raise RuntimeError(f'{topology}: the compiler failed: {message[:2000]}')
  total, available, has_arguments = needed
  given = sum(sizes.values())
  rest = max(total - given, 0.0) if has_arguments else total
  return Memory(**sizes, temporaries=rest, available=available, is_measured=False)


def needed_bytes(message: str) -> tuple[float, float, bool] | None:
  """(needed, available, whether arguments are counted in) as a compiler that ran out of memory said
  it; None where the message is about something else.
  """
  if 'RESOURCE_EXHAUSTED' not in message and 'Ran out of memory' not in message:
    return None
  used = re.search(r'Used ([\d.]+[KMGT]?) of ([\d.]+[KMGT]?) hbm', message)
  if used:
    return _bytes(used[1]), _bytes(used[2]), True
  temporaries = re.search(
    r'temporaries \(([\d.]+[KMGT]?)\) exceeds available HBM \(([\d.]+[KMGT]?)\)', message
  )
  if temporaries:
    return _bytes(temporaries[1]), _bytes(temporaries[2]), False
  arguments = re.search(
    r'arguments[^()]*\(([\d.]+[KMGT]?)[^()]*\)[^()]*HBM[^()]*\(([\d.]+[KMGT]?)', message
  )
  return (_bytes(arguments[1]), _bytes(arguments[2]), True) if arguments else None


def _bytes(text: str) -> float:
  number, unit = _SIZE.fullmatch(text).groups()
  return float(number) * _UNITS[unit]
