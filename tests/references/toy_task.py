"""A Task that is small but uses every part of the seam: ragged masks, two labels, a statistic,
after_update.

A two-layer classifier of tokens (label 'body') whose features a second head (label 'head')
classifies again; `extra['stats']` keeps an exponential average of the features, merged over the
rows that count. Only `after_update` moves the parameter 'unused', as it does an averaged codebook.

Axes: B rows, L positions, D features, C classes.
"""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.core import axes
from jaxmm.task import Task, example_keys


class ToyModel(nn.Module):
  width: int = 16
  classes: int = 10

  @nn.compact
  def __call__(self, x_BLD):
    normal = nn.initializers.lecun_normal()
    w_in = self.param('w_in', axes.weight(normal, axes.EMBED, axes.MLP), (8, self.width))
    b_in = self.param('b_in', axes.weight(nn.initializers.zeros, axes.MLP), (self.width,))
    w_out = self.param(
      'w_out', axes.weight(normal, axes.MLP, axes.VOCAB), (self.width, self.classes)
    )
    head = self.param('head', axes.weight(normal, axes.EMBED, axes.MLP), (self.width, 4))
    self.param('unused', axes.weight(nn.initializers.ones, axes.EMBED), (5,))
    self.variable('stats', 'mean', nn.initializers.zeros, None, (self.width,))
    x_BLD = axes.constrain(x_BLD, axes.BATCH, axes.LENGTH, None)
    h_BLF = jnp.tanh(x_BLD @ w_in + b_in)
    return h_BLF, h_BLF @ w_out, jax.lax.stop_gradient(h_BLF) @ head


@dataclasses.dataclass(frozen=True)
class ToyTask(Task):
  """Attributes: noise: scale of the noise drawn per example; poison: objective is nan at this
  step.
  """

  width: int = 16
  noise: float = 0.1
  poison: int = -1
  flops: float = 0.0

  def init(self, key, batch):
    return ToyModel(self.width).init(key, batch['x_BLD'])

  def counts(self, batch):
    return {'tokens': jnp.sum(_mask(batch))}

  def loss(self, variables, batch, key, step, counts):
    keys = example_keys(key, batch['index_B'])
    x_BLD = batch['x_BLD']
    x_BLD = x_BLD + self.noise * jax.vmap(lambda k: jax.random.uniform(k, x_BLD.shape[1:]))(keys)
    # The second head lives on its own label, so its gradient must not reach the first.
    variables = {'params': variables['params'], 'stats': variables['stats']}
    h_BLF, logits_BLC, logits2_BLC = ToyModel(self.width).apply(variables, x_BLD)
    mask_BL = _mask(batch)
    ids_BL = batch['ids_BL']
    ce_BL = -jnp.take_along_axis(jax.nn.log_softmax(logits_BLC), ids_BL[..., None], -1)[..., 0]
    ce2_BL = -jnp.take_along_axis(jax.nn.log_softmax(logits2_BLC), ids_BL[..., None] % 4, -1)[
      ..., 0
    ]
    first, second = jnp.sum(ce_BL * mask_BL), jnp.sum(ce2_BL * mask_BL)
    scalar = (first + 0.5 * second) / jnp.maximum(counts['tokens'], 1)
    scalar = jnp.where(step == self.poison, jnp.nan, scalar)
    tokens = jnp.sum(mask_BL)
    sums = {
      'cross_entropy': (first, tokens),
      'second': (second, tokens),
      'by_position': (jnp.sum(ce_BL * mask_BL, 0), jnp.sum(mask_BL, 0)),
      'class_counts': (jnp.zeros(10).at[ids_BL].add(mask_BL), tokens),
    }
    stats = {'total': jnp.sum(h_BLF * mask_BL[..., None], (0, 1)), 'count': tokens}
    return scalar, sums, jax.lax.stop_gradient(stats)

  def after_update(self, state, stats, key, step):
    mean = stats['total'] / jnp.maximum(stats['count'], 1)
    old = state.extra['stats']['mean']
    params = {**state.params, 'unused': state.params['unused'] + 1.0}
    return state.replace(params=params, extra={'stats': {'mean': 0.9 * old + 0.1 * mean}})

  def label(self, path):
    return {'head': 'head', 'unused': 'frozen'}.get(path[0], 'body')

  def evaluations(self):
    def cross_entropy(variables, batch, key):
      del key
      _, logits_BLC, _ = ToyModel(self.width).apply(
        {'params': variables['params'], 'stats': variables['stats']}, batch['x_BLD']
      )
      ce_BL = -jnp.take_along_axis(jax.nn.log_softmax(logits_BLC), batch['ids_BL'][..., None], -1)[
        ..., 0
      ]
      mask_BL = _mask(batch)
      return {
        'nll': (jnp.sum(ce_BL * mask_BL), jnp.sum(mask_BL)),
        'nll_by_position': (jnp.sum(ce_BL * mask_BL, 0), jnp.sum(mask_BL, 0)),
      }

    return {'held_out': cross_entropy}

  def summaries(self):
    return {'class_counts': lambda count_C, total: {'classes_seen': float(np.mean(count_C > 0))}}

  def step_flops(self, batch_size):
    return self.flops * batch_size


def _mask(batch):
  return batch['weight_BL'] * batch['valid_B'][:, None]


def make_task(model):
  return ToyTask(**model)


class ToyBatches:
  """Batches computed from the example's index alone; every 37th record cannot be read."""

  kept_fingerprint = ''

  def __init__(self, batch_size=16, num_records=101, process_index=0, process_count=1, seed=0):
    self.batch_size, self.num_records, self.seed = batch_size, num_records, seed
    share = batch_size // process_count
    self.rows = slice(process_index * share, (process_index + 1) * share)

  def record_ids(self, step):
    index_B = np.arange(step * self.batch_size, (step + 1) * self.batch_size, dtype=np.int64)
    return (index_B * 7 + self.seed) % self.num_records

  def _rows(self, index_B, record_B, real_B):
    x_BLD = np.stack([np.random.default_rng(int(r)).normal(size=(4, 8)) for r in record_B])
    ids_BL = (np.abs(x_BLD.sum(-1)) * 3).astype(np.int32) % 10
    weight_BL = np.arange(4)[None, :] <= (record_B % 4)[:, None]
    return {
      'x_BLD': x_BLD.astype(np.float32),
      'ids_BL': ids_BL,
      'weight_BL': weight_BL.astype(np.float32),
      'index_B': index_B.astype(np.uint32),
      'record_B': record_B.astype(np.int32),
      'valid_B': (real_B & (record_B % 37 != 36)).astype(np.float32),
    }

  def at(self, step):
    index_B = np.arange(step * self.batch_size, (step + 1) * self.batch_size)[self.rows]
    record_B = self.record_ids(step)[self.rows]
    return self._rows(index_B, record_B, np.ones(len(index_B), bool))

  def from_step(self, step):
    while True:
      yield self.at(step)
      step += 1

  def once(self):
    for start in range(0, self.num_records, self.batch_size):
      index_B = np.arange(start, start + self.batch_size)[self.rows]
      record_B = np.minimum(index_B, self.num_records - 1)
      yield self._rows(index_B, record_B, index_B < self.num_records)

  def describe(self, record):
    return f'toy record {record}: every 37th cannot be read'
