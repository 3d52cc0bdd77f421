"""Runs that every test of the trainer goes through: a Task, its data and the config that trains it.

A further Task is one more entry of `CASES`; the tests that it must pass then take it up.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import pytest

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.task import Task
from jaxmm.train import optimizer as optimizers
from jaxmm.train import state as states
from jaxmm.train import step as steps
from jaxmm.train.run_config import RunConfig
from tests import file_cases, real_cases
from tests.references import toy_task

# The machines that a run must not depend on: rules, mesh sizes, microbatches.
MESHES = {
  'one': ('dp', dict(data=1), 1),
  'dp': ('dp', dict(data=8), 1),
  'fsdp': ('fsdp', dict(data=2, fsdp=4), 1),
  'tensor': ('tensor', dict(data=2, fsdp=2, tensor=2), 2),
}


@dataclasses.dataclass(frozen=True)
class TrainCase:
  """Attributes: make_batches and make_eval take the number of this process and of all processes;
  config: of `RunConfig`, without mesh and rules; rtol: of a loss curve on another mesh; is_slow:
  its tests are for the slow suite."""

  name: str
  make_task: Callable[[], Task]
  make_batches: Callable[[int, int], Any]
  make_eval: Callable[[int, int], Any]
  config: Mapping[str, Any]
  rtol: float = 1e-5
  is_slow: bool = False

  def run_config(self, **overrides: Any) -> RunConfig:
    """The config of the case, with other values where given."""
    return configs.from_mapping(RunConfig, {**self.config, **overrides})


TOY = TrainCase(
  name='toy',
  make_task=toy_task.ToyTask,
  make_batches=lambda index, count: toy_task.ToyBatches(16, 101, index, count),
  make_eval=lambda index, count: toy_task.ToyBatches(16, 50, index, count, seed=3),
  config=dict(
    task='tests.references.toy_task',
    steps=20,
    batch=16,
    optimizer=dict(
      body=dict(learning_rate=1e-3, weight_decay=0.1, clip=1.0, schedule='cosine', warmup=3),
      head=dict(name='sgd', momentum=0.9, learning_rate=1e-3),
    ),
    ema=0.9,
    checkpoint=dict(every=4),
    log=dict(every=3),
    evaluate=dict(every=10),
  ),
)

REAL = tuple(
  TrainCase(**cases.case(name), is_slow=True)
  for cases, names in (
    (real_cases, ('tokenizer_ema', 'tokenizer_gradient', 'vae', 'image_lm')),
    (file_cases, ('megabyte', 'transfusion')),
  )
  for name in names
)
CASES = {case.name: case for case in (TOY, *REAL)}


def parameters() -> list:
  """The names of all cases, for `pytest.mark.parametrize`."""
  return [
    pytest.param(name, marks=[pytest.mark.slow] * case.is_slow) for name, case in CASES.items()
  ]


def make_mesh(name: str):
  """(mesh, rules, microbatches) of one entry of MESHES."""
  rules, sizes, microbatches = MESHES[name]
  config = sharding.MeshConfig(**sizes)
  number = config.data * config.fsdp * config.tensor
  return sharding.make_mesh(config, jax.devices()[:number]), sharding.RULES[rules], microbatches


def plan(case: TrainCase, mesh, rules) -> states.Blueprint:
  """The state of a case on a mesh, as shapes."""
  config = case.run_config()
  shapes = {
    name: jax.ShapeDtypeStruct((config.batch, *x.shape[1:]), x.dtype)
    for name, x in case.make_batches(0, 1).at(0).items()
  }
  return states.plan_state(
    case.make_task(),
    config.optimizers(),
    shapes,
    steps=config.steps,
    seed=config.seed,
    mesh=mesh,
    rules=rules,
    has_ema=config.ema > 0,
  )


def labels_of(case: TrainCase, params: Any) -> Any:
  """The label of every parameter."""
  configs_of = case.run_config().optimizers()
  return optimizers.parameter_labels(case.make_task().label, params, configs_of)


class Bench:
  """A step, its state and the means to drive them, without the loop around."""

  def __init__(self, case: TrainCase, mesh_name: str, task: Task | None = None):
    self.mesh, rules, microbatches = make_mesh(mesh_name)
    config = case.run_config(microbatches=microbatches)
    self.batches = case.make_batches(0, 1)
    self.blueprint = plan(case, self.mesh, rules)
    self.step = steps.Step(task or case.make_task(), self.blueprint, config.step_config())
    self._init = states.initializer(self.blueprint)
    self.reset()
    self.stop_B = self.global_batch(0)['index_B'].astype('int32') * 0

  def reset(self) -> 'Bench':
    """Back to step 0."""
    with jax.set_mesh(self.mesh):
      self.state = self._init(self.global_batch(0))
    self.healthy = jax.device_put(True, sharding.replicated(self.mesh))
    return self

  def global_batch(self, step: int, **replaced):
    """Global batch `step` on the mesh."""
    return sharding.global_batch(self.mesh, self.batches.at(step) | replaced)

  def take(self, step: int, **replaced) -> steps.Report:
    """One step on batch `step`."""
    batch = self.global_batch(step, **replaced)
    self.state, self.healthy, vector = self.step(self.state, self.healthy, batch, self.stop_B)
    return self.step.read(vector, steps.shapes_of(batch))


def assert_same_log(a: list[dict], b: list[dict], rtol: float = 1e-5) -> None:
  """Log lines of runs on different machines: the same steps and rows, numbers within rtol."""
  assert [(x['step'], x['kind'], x.get('records')) for x in a] == [
    (x['step'], x['kind'], x.get('records')) for x in b
  ]
  for x, y in zip(a, b):
    assert set(x) == set(y)
    for name, value in x.items():
      if name == 'unreadable':
        # Why, only the process that read the record knows.
        record = lambda text: text.partition(' (unreadable: ')[0]
        assert [record(text) for text in value] == [record(text) for text in y[name]]
      elif isinstance(value, str):
        assert value == y[name]
      else:
        np.testing.assert_allclose(
          np.asarray(value, float), np.asarray(y[name], float), rtol=rtol, atol=1e-6, err_msg=name
        )


def assert_same_vectors(a: Any, b: Any, rtol: float = 1e-5) -> None:
  """Statistics and moments of runs on different machines: within rtol of the length of the vector
  (last axis) that an entry belongs to, plus 1e-6; of themselves if they are no vectors.

  The sums that make an entry of a vector have terms as long as the vector. Seen: an entry of
  -0.0175 in a code's sum of length 1.2 was off by 1.5e-6, its vector by 1e-6 of itself.
  """
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    scale = np.linalg.norm(y, axis=-1, keepdims=True) if y.ndim > 1 else abs(y)
    error = abs(x - y)
    worse = error > 1e-6 + rtol * scale
    assert not worse.any(), (jax.tree_util.keystr(path), x[worse], y[worse])


def assert_same_parameters(case: TrainCase, a: Any, b: Any) -> None:
  """Parameters after the runs of a case on two machines: each within 1e-6, or what Adam makes of
  rounding if that is more (`amplified_rounding`), plus 1e-5 of itself. What has no moments is a
  statistic (a codebook that follows the latents), its vectors held as in `assert_same_vectors`."""
  allowed, loose, total = amplified_rounding(case), 0, 0
  for (path, x), y in zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True):
    x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
    atol = np.maximum(1e-6, allowed.get(_names(path), 0.0))
    loose, total = loose + np.sum(np.broadcast_to(atol, x.shape) > 1e-6), total + x.size
    is_statistic = _names(path) not in allowed
    scale = np.linalg.norm(y, axis=-1, keepdims=True) if is_statistic else abs(y)
    worse = abs(x - y) > atol + 1e-5 * scale
    assert not worse.any(), (jax.tree_util.keystr(path), x[worse], y[worse])
  assert loose < 0.01 * total  # almost all are held to 1e-6


def amplified_rounding(case: TrainCase) -> dict[tuple, np.ndarray]:
  """How far the rounding of gradients can move each parameter in a run, by its path.

  Adam divides a gradient by its own size. An entry's rounding follows its leaf's scale: the sums
  that make it have terms of that size. So where they cancel, rounding becomes a share of the
  learning rate. Seen at step 0 of 'tokenizer_gradient', with the draw of pictures 1: an entry of
  -5.0e-8 in a kernel whose gradient has a root mean square of 3.3e-3. A change of 0.5 % of that
  entry, 8e-8 of the scale, so less than float32's eps, moved the parameter by 5.1e-6, and no other
  entry of the kernel by more than 1e-7. An entry therefore gets 1e-6 (eight times eps) of the
  scale of its leaf, over its own (and Adam's eps), of every step's learning rate.
  """
  settings = case.run_config().optimizers().values()
  ((b2, eps),) = {(c.b2, c.eps) for c in settings if c.name != 'sgd'}
  rate = max(c.learning_rate for c in settings)
  bench, out = Bench(case, 'one'), {}
  for step in range(case.config['steps']):
    bench.take(step)
    for path, nu in jax.tree_util.tree_leaves_with_path(bench.state.opt_state):
      if 'nu' in (names := _names(path)):
        size = np.sqrt(np.asarray(nu, np.float64) / (1 - b2 ** (step + 1)))
        scale = np.sqrt(np.mean(size**2))
        share = np.where(size > 0, scale / np.where(size > 0, size + eps, 1.0), 0.0)
        name = names[names.index('nu') + 1 :]
        out[name] = out.get(name, 0.0) + rate * 1e-6 * share
  return out


def _names(path: tuple) -> tuple:
  return tuple(getattr(key, 'key', getattr(key, 'name', None)) for key in path)
