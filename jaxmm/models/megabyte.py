"""MEGABYTE (Yu et al. 2023, arXiv:2305.07185): bytes in patches, a transformer over each level.

This file has the sizes and the Task. The network is in `megabyte_network`, its config and cost in
`megabyte_config`, generation in `megabyte_generation`, strided and sliding-window likelihoods in
`megabyte_evaluation`.

Departures: dropout falls on what attention and MLP add, not on attention's weights; the public
numbers come from mixed precision, `dtype='bfloat16'` here. Two levels, as in all of the paper's
models.

Axes: B batch, L bytes of a row, P bytes of a patch.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxmm import task as tasks
from jaxmm.config import ConfigError, from_preset
from jaxmm.core import losses
from jaxmm.core.protocols import Scorer
from jaxmm.models.megabyte_config import MegabyteConfig, forward_flops
from jaxmm.models.megabyte_evaluation import sliding_nll
from jaxmm.models.megabyte_network import Megabyte, byte_nll


def _sizes(global_depth, global_width, global_heads, local_depth, local_width, local_heads, **rest):
  return dict(
    global_depth=global_depth, global_width=global_width, global_heads=global_heads,
    local_depth=local_depth, local_width=local_width, local_heads=local_heads, **rest,
  )  # fmt: skip


# Two that train on a laptop, and the paper's. Its sizes are GPT-3's shortened in depth (758M is 14
# of the 24 layers of 1.3B), which fixes layers and widths; the heads are GPT-3's. Those names count
# a share of GPT-3's vocabulary, so the parameters, said behind each name, are fewer.
PRESETS: dict[str, dict[str, Any]] = {
  'micro': _sizes(2, 64, 2, 2, 32, 2, patch=4, length=256),  # 142,736
  'mini': _sizes(4, 256, 4, 2, 128, 4, patch=8, length=1024),  # 3,635,744
  # Text, 8,192 bytes. Its table of sizes calls the first one 760M/262M.
  'text-758M-262M': _sizes(14, 2048, 32, 18, 1024, 16, patch=8, length=8192),  # 934,453,504
  'text-350M-290M': _sizes(24, 1024, 16, 20, 1024, 16, patch=8, length=8192),  # 555,723,904
  'text-1.3B-218M': _sizes(24, 2048, 32, 15, 1024, 16, patch=8, length=8192),  # 1,400,247,552
  # 64 x 64 x 3 bytes. 2.7B is 2560 wide, which 12 does not divide; 2568 is the next that it does,
  # with heads 80 wide as in GPT-3: 2,836,272,878.
  'imagenet64-2.7B-350M': _sizes(
    32, 2568, 32, 24, 1024, 16, patch=12, length=12_288, global_head_dim=80
  ),
  # Of figure 3, which compares FLOPs alone: widths of GPT-3's with the layers that give these
  # counts without embeddings.
  'fig3-452M-151M': _sizes(16, 1536, 16, 12, 1024, 16, patch=8, length=8192),
  'fig3-5.8B-604M': _sizes(29, 4096, 32, 12, 2048, 32, patch=8, length=8192),
  'fig3-170B-3.2B': _sizes(94, 12_288, 96, 16, 4096, 32, patch=8, length=8192),
  # 256 x 256 x 3 and 640 x 640 x 3 bytes; with patches of 192 a byte is 4 numbers wide in the
  # global model. -p48 and -p768 are of the ablation of patch sizes.
  'image256-125M-125M': _sizes(12, 768, 12, 12, 768, 12, patch=192, length=196_608),  # 171,248,900
  'image256-125M-125M-p48': _sizes(12, 768, 12, 12, 768, 12, patch=48, length=196_608),
  'image256-125M-125M-p768': _sizes(12, 768, 12, 12, 768, 12, patch=768, length=196_608),
  'image640-125M-83M': _sizes(12, 768, 12, 8, 768, 12, patch=192, length=1_228_800),  # 147,026,180
  'audio-350M-125M': _sizes(24, 1024, 16, 12, 768, 12, patch=32, length=524_288),  # 404,401,184
}


def config_of(model: Mapping[str, Any]) -> MegabyteConfig:
  """The config of a run's `model` section; `size` names a preset, the other keys override it.

  Raises:
    ConfigError: an unknown size or key, or a value that cannot be used.
  """
  return from_preset(MegabyteConfig, PRESETS, model, 'model')


def scorer(params: Mapping[str, Any], config: MegabyteConfig) -> Scorer:
  """Nats and bytes of every row of byte batches, for rooms that import no model."""

  @jax.jit
  def score(params, batch):
    nll_BL = byte_nll(params, config, batch['ids_BL'], batch['segment_BL'])
    weight_BL = target_weight(batch)
    nll_BL = jnp.where(weight_BL > 0, nll_BL, 0.0)
    return jnp.sum(nll_BL, axis=1), jnp.sum(weight_BL, axis=1)

  return lambda batch: score(params, dict(batch))


def target_weight(batch: tasks.Batch) -> jax.Array:
  """1 for every byte of a document, its first and byte 0 too, float32 [B, L].

  0 for padding and in rows that could not be read. `weight_BL` is not used: text rows have none on
  a document's first token, which this model does predict.
  """
  is_readable_B = batch['valid_B'] > 0
  return ((batch['segment_BL'] > 0) & is_readable_B[:, None]).astype(jnp.float32)


@dataclasses.dataclass(frozen=True)
class MegabyteTask(tasks.Task):
  """Cross-entropy of every byte.

  Attributes:
    config: the model's.
    row_length: bytes of a training row; None is `config.length`.
    strided: also evaluate by strided inference, for two more passes.
    sliding: also evaluate rows of several windows (a window is a training row) with this many bytes
      from one window to the next, so that few bytes have little before them; 0 for no such
      evaluation. With `strided` also both together, for four passes at half a window.
  """

  config: MegabyteConfig
  row_length: int | None = None
  strided: bool = False
  sliding: int = 0

  def init(self, key: jax.Array, batch: tasks.Batch) -> tasks.Variables:
    num, expected = batch['ids_BL'].shape[1], self.row_length or self.config.length
    if num != expected:
      field = 'row_length' if num <= self.config.length else 'length'
      mend = f'set model.{field}={num}, or data.bytes.length={expected} (of texts data.text.length)'
      if num % self.config.patch:
        mend = f'change the data: rows must be a multiple of model.patch {self.config.patch}'
      raise ConfigError(
        f'the data has rows of {num} bytes (data.text.length, data.bytes.length, or a whole '
        f'picture), but the model is told {expected}; {mend}'
      )
    # Two patches make all parameters that there are.
    few = min(num, 2 * self.config.patch)
    return Megabyte(self.config).init(key, batch['ids_BL'][:1, :few])

  def counts(self, batch: tasks.Batch) -> dict[str, jax.Array]:
    return {'bytes': jnp.sum(target_weight(batch))}

  def loss(self, variables, batch, key, step, counts):
    del step
    keys_B = tasks.example_keys(key, batch['index_B'])
    nll_BL = byte_nll(
      variables['params'], self.config, batch['ids_BL'], batch['segment_BL'], keys_B
    )
    total, count = losses.weighted_sum(nll_BL, target_weight(batch))
    sums = {'cross_entropy': (total, count), 'bits_per_byte': (total / math.log(2.0), count)}
    return total / jnp.maximum(counts['bytes'], 1), sums, {}

  def evaluations(self) -> Mapping[str, Callable[..., tasks.Sums]]:
    found = {'likelihood': self.likelihood}
    if self.strided:
      found['strided'] = self.strided_likelihood
    if self.sliding:
      found['sliding'] = self.sliding_likelihood
    if self.sliding and self.strided:
      found['sliding_strided'] = functools.partial(self.sliding_likelihood, strided=True)
    return found

  def likelihood(self, variables: tasks.Variables, batch: tasks.Batch, key: jax.Array):
    """Without dropout, in one pass: nats and bits a byte, and bits at each place of a patch [P].

    Rows longer than those of training are cut into such as are not.
    """
    del key
    return self._likelihood(variables, batch)

  def strided_likelihood(self, variables: tasks.Variables, batch: tasks.Batch, key: jax.Array):
    """The same by strided inference."""
    del key
    return self._likelihood(variables, batch, strided=True)

  def sliding_likelihood(
    self, variables: tasks.Variables, batch: tasks.Batch, key: jax.Array, strided: bool = False
  ):
    """The same in windows that overlap.

    Raises:
      ConfigError: rows of no more than a window.
    """
    del key
    window, num = self.row_length or self.config.length, batch['ids_BL'].shape[1]
    if num <= window:
      raise ConfigError(
        f'model.sliding is {self.sliding}, but rows of eval_data have {num} bytes and a window '
        f'{window}: set the length of eval_data to several windows, such as {4 * window} '
        '(eval_data.text.length, eval_data.bytes.length)'
      )
    return self._likelihood(variables, batch, stride=self.sliding, strided=strided)

  def _likelihood(self, variables, batch, stride: int | None = None, strided: bool = False):
    window = min(self.row_length or self.config.length, batch['ids_BL'].shape[1])
    nll_BL = sliding_nll(
      variables['params'], self.config, batch['ids_BL'], batch['segment_BL'],
      window=window, stride=stride or window, strided=strided,
    )  # fmt: skip
    patches = lambda a: a.reshape(-1, self.config.patch)
    nats_P, count_P = losses.position_sums(patches(nll_BL), patches(target_weight(batch)))
    nats, count, bit = jnp.sum(nats_P), jnp.sum(count_P), 1 / math.log(2.0)
    return {
      'cross_entropy': (nats, count),
      'bits_per_byte': (nats * bit, count),
      'bits_per_byte_by_place': (nats_P * bit, count_P),
    }

  def batch_shapes(self, batch_size: int):
    return tasks.packed_shapes(batch_size, self.row_length or self.config.length)

  def step_flops(self, batch_size: int) -> float:
    # Backward is twice forward.
    return 3.0 * batch_size * forward_flops(self.config, self.row_length or self.config.length)


def make_task(model: Mapping[str, Any]) -> MegabyteTask:
  """The Task of a run's `model` section: see `config_of`, and `MegabyteTask` for the other keys."""
  model = dict(model)
  row_length, strided = model.pop('row_length', None), model.pop('strided', False)
  sliding = model.pop('sliding', 0)
  config = config_of(model)
  if row_length is not None:
    config.num_patches(row_length)
  window = row_length or config.length
  if not 0 <= sliding <= window or sliding % config.patch:
    raise ConfigError(
      f'model.sliding is {sliding}, expected a multiple of model.patch {config.patch} up to a '
      f'window of {window} bytes (half of it is usual), or 0 for none'
    )
  return MegabyteTask(config, row_length, strided, sliding)
