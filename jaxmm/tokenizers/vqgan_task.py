"""Training a VQGAN tokenizer: reconstruction, perceptual, quantizer and adversarial terms, and
CRT's, in one loss.

What is common to all image autoencoders is in `autoencoder_task`, also what one scalar for several
networks needs. Of the options here the entropy of a batch's own average depends on how the batch is
cut into microbatches, and says so where it is chosen.

Axes: B batch, Y rows, X columns, C channels, L latent positions, K codebook entries.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError, from_mapping
from jaxmm.core import axes
from jaxmm.core.losses import weighted_sum
from jaxmm.task import Batch, Sums, TrainState, Variables, example_keys
from jaxmm.tokenizers import crt, quantizer, vqgan
from jaxmm.tokenizers.autoencoder_task import (
  AutoencoderTask,
  AutoencoderTaskConfig,
  warn_of_stand_in,
)
from jaxmm.tokenizers.crt import RegularizerConfig
from jaxmm.tokenizers.vqgan import VqganConfig

PRESETS = {'vq_16': vqgan.VQ_16, 'vq_8': vqgan.VQ_8}
_CODEBOOK = ('vqgan', 'quantizer', 'codebook')
_RECENT = 100  # steps within which a code must have been used to count as in use


@dataclasses.dataclass(frozen=True)
class TokenizerConfig(AutoencoderTaskConfig):
  """Everything about the training of a tokenizer but its data and optimizers.

  Attributes:
    vqgan: the network: a preset ('vq_16', 'vq_8') or its settings.
    regularizer: CRT's; None trains without.
  """

  vqgan: VqganConfig | str = 'vq_16'
  regularizer: RegularizerConfig | None = None

  def __post_init__(self):
    if isinstance(self.vqgan, str) and self.vqgan not in PRESETS:
      raise ConfigError(
        f'model.vqgan is {self.vqgan!r}, expected settings or one of {", ".join(PRESETS)}'
      )
    super().__post_init__()

  @property
  def network(self) -> VqganConfig:
    """The network's settings."""
    return PRESETS[self.vqgan] if isinstance(self.vqgan, str) else self.vqgan

  @property
  def latent_width(self) -> int:
    """Channels of the latents that the regularizer predicts."""
    is_features = self.regularizer and self.regularizer.latent == 'features'
    return self.network.z_channels if is_features else self.network.quantizer.width


def make_task(model: Mapping[str, Any]) -> VqganTask:
  """The Task of `TokenizerConfig`'s settings.

  Raises:
    ConfigError: unknown or unusable settings.
  """
  config = from_mapping(TokenizerConfig, model, 'model')
  warn_of_stand_in(config.perceptual)
  return VqganTask(config)


@dataclasses.dataclass(frozen=True, eq=False)
class VqganTask(AutoencoderTask):
  """Trains `vqgan.Vqgan`; parameters in the groups 'vqgan', 'discriminator' and 'regularizer'."""

  group: ClassVar[str] = 'vqgan'

  @property
  def model(self) -> vqgan.Vqgan:
    """The autoencoder; apply it to `{'params': params['vqgan']}`."""
    return vqgan.Vqgan(self.config.network)

  def init(self, key: jax.Array, batch: Batch) -> Variables:
    c = self.config
    image = self.pixels(batch)[:1]
    keys = jax.random.split(key, 3)
    params = {'vqgan': self.model.init(keys[0], image)['params']}
    judge_params, judge_extra = self.discriminator_variables(keys[1], image)
    params |= judge_params
    if c.regularizer:
      latent = jnp.zeros((1, c.grid[0] * c.grid[1], c.latent_width))
      net = crt.CausalRegularizer(c.regularizer)
      params['regularizer'] = net.init(keys[2], latent, c.grid)['params']
    codebook_KD = nn.unbox(params['vqgan'])['quantizer']['codebook']
    statistics = quantizer.initial_statistics(c.network.quantizer, codebook_KD)
    names = (axes.CODES, axes.CODE_DIM)
    return {
      'params': params,
      'codebook_stats': {
        name: nn.LogicallyPartitioned(value, names[: value.ndim])
        for name, value in statistics.items()
      },
      **judge_extra,
    }

  def loss(self, variables, batch, key, step, counts):
    c, params = self.config, variables['params']
    q = c.network.quantizer
    image, valid_B = self.pixels(batch), batch['valid_B'].astype(jnp.float32)
    num_positions = c.grid[0] * c.grid[1]
    weight_BL = jnp.broadcast_to(valid_B[:, None], (valid_B.shape[0], num_positions))
    out = self.model.apply({'params': params['vqgan']}, image, weight_BL)
    num_images = jnp.maximum(counts['images'], 1.0)

    terms = {}  # name: (weight, (sum, count))
    look = self._appearance(variables, image, out.recon_BYXC)
    terms |= {name: (weight, weighted_sum(v, valid_B)) for name, (weight, v) in look.items()}
    terms |= self._quantizer_terms(variables, out.quantized, valid_B)
    notes = {}
    if c.regularizer:
      values, notes = self._causal(params['regularizer'], out)
      terms['causal'] = (crt.weight_at(c.regularizer, step), weighted_sum(values, valid_B))
    stats = {
      'codes': quantizer.batch_statistics(
        q,
        out.quantized,
        weight_BL,
        example_keys(key, batch['index_B']),
        counts['images'] * num_positions,
      )
    }
    more_terms, judged, more_stats = self.adversarial_terms(variables, image, out, valid_B, step)
    terms, stats = terms | more_terms, stats | more_stats
    scalar = sum(weight * total for weight, (total, _) in terms.values()) / num_images
    sums = {name: pair for name, (_, pair) in terms.items()}
    sums |= judged
    sums |= {name: weighted_sum(v, valid_B) for name, v in notes.items()}
    recent = jnp.mean(variables['codebook_stats']['unused_K'] < _RECENT)
    sums['codes_in_use'] = weighted_sum(jnp.broadcast_to(recent, valid_B.shape), valid_B)
    count_K = stats['codes']['count_K']
    sums['code_counts'] = (count_K, jnp.sum(count_K))
    return scalar, jax.lax.stop_gradient(sums), jax.lax.stop_gradient(stats)

  def _quantizer_terms(self, variables, quantized, valid_B):
    """Codebook, commitment and entropy terms: `{name: (weight, (sum, count))}`."""
    q = self.config.network.quantizer
    codebook_weight = q.codebook_weight if q.update == 'gradient' else 0.0
    mean = lambda error_BL: weighted_sum(jnp.mean(error_BL, axis=1), valid_B)
    terms = {
      'codebook': (codebook_weight, mean(quantized.codebook_error_BL)),
      'commitment': (q.commitment_weight, mean(quantized.commitment_error_BL)),
    }
    if q.entropy_weight:
      num_images = jnp.sum(valid_B)
      total = jnp.maximum(num_images, 1.0) * quantized.ids_BL.shape[1]
      reference_K = None
      if q.entropy_reference == 'running':
        reference_K = variables['codebook_stats']['probability_K']
      average = quantizer.average_entropy(quantized.probability_K / total, reference_K)
      terms['sample_entropy'] = (q.entropy_weight, mean(quantized.sample_entropy_BL))
      terms['average_entropy'] = (-q.entropy_weight, (average * num_images, num_images))
    return terms

  def _causal(self, params, out):
    c = self.config.regularizer
    latent_BLD = crt.latent_of(c, out)
    net = crt.CausalRegularizer(c)
    prediction_BLD = net.apply({'params': params}, latent_BLD, self.config.grid)
    return crt.causal_error(c, prediction_BLD, latent_BLD), crt.diagnostics(c, latent_BLD)

  def after_update(
    self, state: TrainState, stats: Any, key: jax.Array, step: jax.Array
  ) -> TrainState:
    q, extra = self.config.network.quantizer, self.updated_extra(state.extra, stats)
    codebook_KD = _at(state.params, _CODEBOOK)
    codebook_KD, extra['codebook_stats'], revived_K = quantizer.update_codebook(
      q, codebook_KD, extra['codebook_stats'], stats['codes'], key
    )
    state = state.replace(params=_replaced(state.params, _CODEBOOK, codebook_KD), extra=extra)
    if not q.revive_after:
      return state
    # The moments and the moving average of a revived code are those of the vector it replaced.
    opt_state = jax.tree_util.tree_map_with_path(
      lambda path, x: (
        jnp.where(revived_K[:, None], 0.0, x).astype(x.dtype) if _ends_with(path, _CODEBOOK) else x
      ),
      state.opt_state,
    )
    ema = state.ema
    if ema is not None:
      old_KD = _at(ema, _CODEBOOK)
      ema = _replaced(ema, _CODEBOOK, jnp.where(revived_K[:, None], codebook_KD, old_KD))
    return state.replace(opt_state=opt_state, ema=ema)

  def after_init_from(self, state: TrainState, new: frozenset[str]) -> TrainState:
    # Statistics of another codebook would overwrite the loaded one at the first 'ema' update.
    if not new & {'vqgan', 'codebook_stats'}:
      return state
    codebook_KD = _at(state.params, _CODEBOOK)
    statistics = quantizer.initial_statistics(self.config.network.quantizer, codebook_KD)
    return state.replace(extra={**state.extra, 'codebook_stats': statistics})

  def label(self, path: tuple[str, ...]) -> str:
    if tuple(path) == _CODEBOOK and self.config.network.quantizer.update == 'ema':
      return 'frozen'  # moved by `after_update`
    return super().label(path)

  def evaluations(self):
    return {'reconstruction': self._reconstruction}

  def _reconstruction(self, variables: Variables, batch: Batch, key: jax.Array) -> Sums:
    """Errors of clipped reconstructions, images in [-1, 1] (so PSNR's peak is 2), and counts of
    codes.

    'code_counts' is an int32 array [K] over the number of positions; see `summaries`.
    """
    del key
    image, valid_B = self.pixels(batch), batch['valid_B'].astype(jnp.float32)
    out = self.model.apply(self.network(variables['params']), image)
    errors = self._errors(variables, image, out.recon_BYXC)
    sums = {name: weighted_sum(v, valid_B) for name, v in errors.items()}
    count_K = quantizer.code_counts(
      out.quantized.ids_BL, self.config.network.quantizer.codes, valid_B
    )
    return sums | {'code_counts': (count_K, jnp.sum(count_K))}

  def summaries(self):
    return {'code_counts': quantizer.code_use}

  def step_flops(self, batch_size: int) -> float:
    """Forward and backward of all networks, the discriminator as after its start."""
    c, side = self.config, self.config.image_size
    num_positions, q = c.grid[0] * c.grid[1], c.network.quantizer
    macs = 3 * sum(vqgan.forward_macs(c.network, side, side)) + num_positions * q.codes * q.width
    if c.regularizer:
      macs += 3 * crt.forward_macs(c.regularizer, num_positions, c.latent_width)
    return 2.0 * (macs + self.training_macs()) * batch_size


def _at(tree: Any, path: tuple[str, ...]) -> Any:
  for name in path:
    tree = tree[name]
  return tree


def _replaced(tree: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
  inner = _replaced(tree[path[0]], path[1:], value) if len(path) > 1 else value
  return {**tree, path[0]: inner}


def _ends_with(path: tuple, names: tuple[str, ...]) -> bool:
  return tuple(getattr(entry, 'key', None) for entry in path[-len(names) :]) == names
