"""Optimizers by label: which parameters a setting trains, how fast, and what of it the log is told.

A Task gives every parameter a label ('generator', 'discriminator'); the config has one
`OptimizerConfig` a label. Norms and clipping are per label, because two networks that share a step
do not share a scale.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxmm.config import ConfigError, unknown_key
from jaxmm.core import axes

FROZEN = 'frozen'


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
  """How the parameters of one label are trained.

  Attributes:
    name: adamw and lion decouple the weight decay; sgd adds it to the gradient; adam has none.
    learning_rate: the highest learning rate of the schedule.
    b1: decay of the first moment (adam, adamw, lion).
    b2: decay of the second moment (adam, adamw) or of the momentum (lion).
    eps: added to the root of the second moment (adam, adamw).
    momentum: of sgd.
    weight_decay: applied to the parameters that have at least `decay_min_ndim` dimensions.
    decay_min_ndim: 2 spares biases and scales; the stacked layer axis is not counted.
    clip: largest global norm of this label's gradient; None for no clipping.
    schedule: what follows the warmup. cosine and linear end with the run; rsqrt falls as
      sqrt(max(warmup, 1) / step).
    warmup: steps over which the learning rate rises linearly; step s has (s + 1) / warmup of it.
    end: the lowest learning rate of the schedule, as a fraction of `learning_rate`.
    freeze: patterns of parameter paths ('encoder/*', shell wildcards) that stay as they are.
  """

  name: Literal['adamw', 'adam', 'sgd', 'lion'] = 'adamw'
  learning_rate: float = 1e-4
  b1: float = 0.9
  b2: float = 0.95
  eps: float = 1e-8
  momentum: float = 0.0
  weight_decay: float = 0.0
  decay_min_ndim: int = 2
  clip: float | None = None
  schedule: Literal['constant', 'cosine', 'linear', 'rsqrt'] = 'constant'
  warmup: int = 0
  end: float = 0.0
  freeze: tuple[str, ...] = ()

  def __post_init__(self):
    known = ('adamw', 'adam', 'sgd', 'lion')
    if self.name not in known:
      raise unknown_key(self.name, known, 'optimizer.name')
    for field, low in (('learning_rate', 0), ('weight_decay', 0), ('warmup', 0), ('eps', 0)):
      if not getattr(self, field) >= low:
        raise ConfigError(
          f'optimizer.{field} is {getattr(self, field)!r}, expected a number >= {low}'
        )
    for field in ('b1', 'b2', 'momentum'):
      if not 0 <= getattr(self, field) < 1:
        raise ConfigError(
          f'optimizer.{field} is {getattr(self, field)!r}, expected a number in [0, 1)'
        )
    if not 0 <= self.end <= 1:
      raise ConfigError(f'optimizer.end is {self.end!r}, expected a fraction in [0, 1]')
    if self.clip is not None and not self.clip > 0:
      raise ConfigError(f'optimizer.clip is {self.clip!r}, expected a positive norm or None')
    if self.weight_decay and self.name == 'adam':
      raise ConfigError(
        f'optimizer.weight_decay is {self.weight_decay}, but adam has none; use name="adamw"'
      )

  @property
  def ends_with_the_run(self) -> bool:
    """Whether the learning rate of a step depends on how many steps the run has in all."""
    return self.schedule in ('cosine', 'linear')


def learning_rate(config: OptimizerConfig, steps: int) -> Callable[[jax.Array], jax.Array]:
  """The schedule of one label: step -> learning rate (float32 scalar)."""

  def schedule(step):
    step = jnp.asarray(step, jnp.float32)
    rise = jnp.minimum(1.0, (step + 1) / max(config.warmup, 1))
    # `end` is reached at step `steps`, one after the last, so that a rate of 0 wastes no step.
    progress = jnp.clip((step - config.warmup) / max(steps - config.warmup, 1), 0.0, 1.0)
    left = {
      'constant': lambda: jnp.ones(()),
      'cosine': lambda: 0.5 * (1 + jnp.cos(jnp.pi * progress)),
      'linear': lambda: 1 - progress,
      'rsqrt': lambda: jnp.sqrt(max(config.warmup, 1) / jnp.maximum(step + 1, config.warmup)),
    }[config.schedule]()
    floor = config.end if config.schedule != 'constant' else 0.0
    if config.schedule == 'rsqrt':
      return config.learning_rate * rise * jnp.maximum(left, floor)
    return config.learning_rate * rise * (floor + (1 - floor) * left)

  return schedule


def parameter_labels(
  label: Callable[[tuple[str, ...]], str], params: Any, configs: Mapping[str, OptimizerConfig]
) -> Any:
  """The label of every parameter, as a tree like `params` (boxed or not) with strings for leaves.

  Args:
    label: the Task's, from a path to a label.
    params: arrays, shapes or boxes.
    configs: the optimizers of the config; their `freeze` patterns turn labels into 'frozen'.

  Raises:
    ConfigError: a label without an optimizer, an optimizer or a freeze pattern without a parameter.
  """
  used, matched = {}, set()

  def one(key_path, leaf):
    del leaf
    path = tuple(_key(k) for k in key_path)
    name = label(path)
    used.setdefault(name, path)
    for pattern in configs[name].freeze if name in configs else ():
      if fnmatch.fnmatchcase('/'.join(path), pattern):
        matched.add((name, pattern))
        return FROZEN
    return name

  labels = jax.tree_util.tree_map_with_path(one, params, is_leaf=_is_box)
  for name, path in used.items():
    if name not in configs and name != FROZEN:
      raise ConfigError(
        f'the parameter {"/".join(path)} has the label {name!r}, but the config has no '
        f'optimizer.{name}; it has {", ".join(sorted(configs)) or "none"}'
      )
  for name, config in configs.items():
    if name not in used:
      raise unknown_key(name, sorted(set(used) - {FROZEN}), 'optimizer')
    for pattern in config.freeze:
      if (name, pattern) not in matched:
        raise ConfigError(
          f'optimizer.{name}.freeze has {pattern!r}, but no parameter of that label matches it; '
          f'one of its parameters is {"/".join(used[name])}'
        )
  return labels


def parameter_ndims(params: Any) -> Any:
  """Dimensions of every parameter without the stacked layer axis, a tree of ints.

  A scanned Stack keeps the biases of all its layers in one [layers, D] array; it is a bias still.
  """

  def one(leaf):
    if _is_box(leaf):
      return leaf.value.ndim - leaf.names.count(axes.LAYERS)
    return leaf.ndim

  return jax.tree.map(one, params, is_leaf=_is_box)


def make_optimizer(
  configs: Mapping[str, OptimizerConfig], labels: Any, steps: int, ndims: Any = None
) -> optax.GradientTransformation:
  """One transformation for all labels; parameters labelled 'frozen' get zero updates.

  Args:
    configs: an optimizer a label.
    labels: a tree of strings like the parameters, from `parameter_labels`.
    steps: length of the run, for the schedules that end with it.
    ndims: a tree of ints like `labels`, from `parameter_ndims`; None counts the arrays' own
    dimensions.
  """
  missing = sorted(set(jax.tree.leaves(labels)) - set(configs) - {FROZEN})
  if missing:
    raise ConfigError(f'there is no optimizer for the label(s) {", ".join(missing)}')
  transforms = {name: _transform(config, steps, ndims) for name, config in configs.items()}
  return optax.partition(transforms | {FROZEN: optax.set_to_zero()}, labels)


def norms_by_label(tree: Any, labels: Any) -> dict[str, jax.Array]:
  """The global l2 norm of the leaves of each label that is trained, float32 scalars."""
  squares: dict[str, jax.Array] = {}
  for name, leaf in zip(jax.tree.leaves(labels), jax.tree.leaves(tree), strict=True):
    if name != FROZEN:
      square = jnp.sum(jnp.square(leaf.astype(jnp.float32)))
      squares[name] = squares[name] + square if name in squares else square
  return {name: jnp.sqrt(square) for name, square in squares.items()}


def _transform(config: OptimizerConfig, steps: int, ndims: Any) -> optax.GradientTransformation:
  if ndims is None:
    decays = lambda params: jax.tree.map(lambda p: p.ndim >= config.decay_min_ndim, params)
  else:
    decays = jax.tree.map(lambda n: n >= config.decay_min_ndim, ndims)
  clip = [] if config.clip is None else [optax.clip_by_global_norm(config.clip)]
  decay = []
  if config.weight_decay:
    decay = [optax.add_decayed_weights(config.weight_decay, mask=decays)]
  rule = {
    'adam': lambda: [optax.scale_by_adam(config.b1, config.b2, config.eps)],
    'adamw': lambda: [optax.scale_by_adam(config.b1, config.b2, config.eps), *decay],
    'lion': lambda: [optax.scale_by_lion(config.b1, config.b2), *decay],
    'sgd': lambda: [*decay, *([optax.trace(config.momentum)] if config.momentum else [])],
  }[config.name]()
  return optax.chain(*clip, *rule, optax.scale_by_learning_rate(learning_rate(config, steps)))


def _key(entry: Any) -> str:
  return str(getattr(entry, 'key', getattr(entry, 'name', getattr(entry, 'idx', entry))))


def _is_box(leaf: Any) -> bool:
  return isinstance(leaf, nn.LogicallyPartitioned)
