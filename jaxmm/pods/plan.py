"""A plan: one config on one machine, compiled, read and estimated; in numbers that JSON holds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.pods import ahead, offenders, program, roofline
from jaxmm.pods.ahead import Memory
from jaxmm.pods.program import Program
from jaxmm.pods.roofline import Estimate
from jaxmm.pods.topology import Topology, libtpu_version
from jaxmm.task import Task
from jaxmm.train import state as states
from jaxmm.train.run_config import RunConfig

# Width of the matrix unit (cloud.google.com/tpu/docs/system-architecture).
_TILES = {'v6e': 256, 'tpu7x': 256}


@dataclasses.dataclass(frozen=True)
class Plan:
  """What was found.

  Attributes:
    config: with the mesh and rules that were planned.
    mesh: sizes of the mesh axes.
    memory: on one device.
    estimate, program: None where it does not fit.
    model_flops: of a step on all devices, as the Task counts.
    parameters: numbers.
    offenders: what the program does that the rules did not mean.
    seconds: of tracing and compiling.
    evaluation: the evaluation that this is of; None is the training step.
  """

  topology: Topology
  config: RunConfig
  mesh: Mapping[str, int]
  memory: Memory
  estimate: Estimate | None
  program: Program | None
  model_flops: float
  parameters: int
  offenders: tuple[str, ...]
  seconds: float
  effort: str
  evaluation: str | None = None

  @property
  def hours(self) -> float | None:
    """Of the config's steps; None for an evaluation."""
    is_training = self.estimate is not None and self.evaluation is None
    return self.config.steps * self.estimate.step / 3600 if is_training else None

  def traffic_by_axis(self) -> dict[tuple[str, str], dict[str, float]]:
    """`{(kind, mesh axes): {bytes, times, seconds}}` of a step's collectives."""
    out: dict[tuple[str, str], dict[str, float]] = {}
    devices = self._devices()
    for one in self.program.collectives if self.program else ():
      entry = out.setdefault((one.kind, one.axes), dict(bytes=0.0, times=0.0, seconds=0.0))
      entry['bytes'] += one.bytes * one.times
      entry['times'] += one.times
      seconds = roofline.seconds_of(one, self.topology.chip, devices)
      entry['seconds'] += sum(seconds) * one.times
    return dict(sorted(out.items(), key=lambda kv: -kv[1]['seconds']))

  def _devices(self):
    return ahead.mesh_for(self.config, self.topology).devices.flatten()

  def as_json(self) -> dict[str, Any]:
    """All of it, for `jaxmm.report.pod_page` and for others' programs."""
    found, e = self.config, self.estimate
    rows = [
      dict(kind=kind, axes=axes, **numbers)
      for (kind, axes), numbers in self.traffic_by_axis().items()
    ]
    return dict(
      topology=str(self.topology), chips=self.topology.num_chips,
      devices=len(self.topology.devices), task=found.task, batch=found.batch, steps=found.steps,
      microbatches=found.microbatches, mesh=dict(self.mesh), rules=found.rules,
      model={k: v for k, v in found.model.items() if isinstance(v, (int, float, str))},
      parameters=self.parameters, model_flops=self.model_flops,
      memory=self.memory.classes() | dict(
        total=self.memory.total, available=self.memory.available, fits=self.memory.fits,
        is_measured=self.memory.is_measured,
      ),
      estimate=dataclasses.asdict(e) | dict(of_ceiling=e.of_ceiling) if e else None,
      flops=self.program.flops if self.program else None,
      traffic=self.program.bytes if self.program else None,
      kernels=dict(self.program.kernels) if self.program else {},
      unknown_calls=dict(self.program.unknown_calls) if self.program else {},
      collectives=rows, offenders=list(self.offenders), hours=self.hours,
      assumptions=dataclasses.asdict(roofline.ASSUMPTIONS),
      chip=dataclasses.asdict(self.topology.chip), effort=self.effort, seconds=self.seconds,
      evaluation=self.evaluation,
      versions=dict(jax=jax.__version__, libtpu=libtpu_version()),
    )  # fmt: skip


def planned(
  config: RunConfig,
  task: Task,
  topology: Topology,
  *,
  effort: str = 'quick',
  evaluation: str | None = None,
) -> Plan:
  """Compiles and reads the step of a config.

  Args:
    config: of the run.
    task: of the run.
    topology: the machine.
    effort: of the compiler, see `ahead.EFFORTS`.
    evaluation: plan this evaluation of the Task instead, on batches of the same size.
  """
  shapes = task.batch_shapes(config.batch)
  made = ahead.compiled_step(config, task, shapes, topology, effort, evaluation)
  mesh = dict(made.blueprint.mesh.shape)
  params = made.blueprint.abstract.params
  dtype = getattr(getattr(task, 'config', None), 'dtype', 'float32')
  # A forward pass is a third of a step.
  flops = task.step_flops(config.batch) / (1 if evaluation is None else 3)
  number = states.size_of(params)
  common = dict(
    topology=topology, config=config, mesh=mesh, model_flops=flops, parameters=number,
    seconds=made.seconds, effort=effort, evaluation=evaluation,
  )  # fmt: skip
  if not made.text:
    lines = tuple(offenders.whole_weights(made.blueprint))
    return Plan(memory=made.memory, estimate=None, program=None, offenders=lines, **common)
  read = program.read(made.text, mesh, _TILES.get(topology.chip.name, 128))
  width = 2 if dtype == 'bfloat16' else 4
  estimate = roofline.estimated(
    read, topology.chip, list(np.ravel(made.blueprint.mesh.devices)), mesh,
    model_flops=flops, weight_bytes=float(number * width),
  )  # fmt: skip
  kept = min(read.kept_bytes, made.memory.temporaries)
  memory = dataclasses.replace(
    made.memory, activations=kept, temporaries=made.memory.temporaries - kept
  )
  lines = tuple(offenders.offenders(read, made.blueprint, dtype, config.microbatches))
  return Plan(memory=memory, estimate=estimate, program=read, offenders=lines, **common)


def largest_batch(
  plan_of: Callable[[int], Plan], unit: int, start: int, is_over: Callable[[], bool]
) -> tuple[int, list[tuple[int, bool]]]:
  """The largest batch that fits, a multiple of `unit`, by bisection over compilations.

  Args:
    plan_of: the plan of a batch.
    unit: rows that a batch must be a multiple of.
    start: a batch to begin with.
    is_over: whether the time for this is up; what was found so far is then the answer.

  Returns:
    The batch (0 for none), and all that were tried with whether they fit.
  """
  if unit < 1:
    raise ConfigError(f'unit is {unit}, expected at least 1')
  tried: list[tuple[int, bool]] = []

  def fits(parts: int) -> bool:
    tried.append((parts * unit, plan_of(parts * unit).memory.fits))
    return tried[-1][1]

  low, high, parts = 0, None, max(start // unit, 1)
  while not is_over():
    if fits(parts):
      low = parts
      if high is None:
        parts *= 2
        continue
    else:
      high = parts
    if high - low <= max(1, low // 16):  # within a sixteenth: a compilation says no more
      break
    parts = (low + high) // 2
  return low * unit, tried
