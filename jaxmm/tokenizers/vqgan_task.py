"""Training a VQGAN tokenizer: reconstruction, perceptual, quantizer and adversarial terms, and
CRT's, in one loss.

Generator, discriminator and regularizer are parts of one scalar, separated by stop-gradients, so
one gradient serves all three and each has its own optimizer label. Every term is a mean over the
valid images of the *whole* batch, so the gradients of microbatches add up to the full batch's.
Three options cannot keep that promise, and say so where they are chosen: batch normalisation in the
discriminator, the adaptive adversarial weight, and the entropy of a batch's own average.

Axes: B batch, Y rows, X columns, C channels, L latent positions, K codebook entries.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError, from_mapping
from jaxmm.core import axes, convnet
from jaxmm.core.losses import weighted_sum
from jaxmm.task import Batch, Sums, Task, TrainState, Variables, example_keys
from jaxmm.tokenizers import crt, discriminator, perceptual, quantizer, vqgan
from jaxmm.tokenizers.crt import RegularizerConfig
from jaxmm.tokenizers.discriminator import DiscriminatorConfig
from jaxmm.tokenizers.perceptual import PerceptualConfig
from jaxmm.tokenizers.vqgan import VqganConfig

PRESETS = {'vq_16': vqgan.VQ_16, 'vq_8': vqgan.VQ_8}
_CODEBOOK = ('vqgan', 'quantizer', 'codebook')
_RECENT = 100  # steps within which a code must have been used to count as in use


@dataclasses.dataclass(frozen=True)
class AdversarialConfig:
  """The adversarial part of the loss; the default is LlamaGen's.

  Attributes:
    weight: of the generator's term.
    loss: 'hinge' or 'non_saturating', for both networks.
    start: the step from which both networks' terms count; before it the discriminator is not run at
      all.
    weighting: 'fixed', or 'adaptive': the weight is also multiplied by the ratio of gradient norms
      at the decoder's last convolution (arXiv:2012.09841, eq. 7), exact on any mesh. A microbatch
      only knows its own gradients, so under gradient accumulation each uses its own ratio instead
      of the whole batch's.
    discriminator_weight: of the discriminator's term. Adam does not see it; a clipped gradient norm
      does.
    discriminator: the network.
  """

  weight: float = 0.5
  loss: Literal['hinge', 'non_saturating'] = 'hinge'
  start: int = 20_000
  weighting: Literal['fixed', 'adaptive'] = 'fixed'
  discriminator_weight: float = 0.5
  discriminator: DiscriminatorConfig = DiscriminatorConfig()

  def __post_init__(self):
    if self.loss not in ('hinge', 'non_saturating'):
      raise ConfigError(f"adversarial.loss is {self.loss!r}, expected 'hinge' or 'non_saturating'")
    if self.weighting not in ('fixed', 'adaptive'):
      raise ConfigError(
        f"adversarial.weighting is {self.weighting!r}, expected 'fixed' or 'adaptive'"
      )
    if self.start < 0:
      raise ConfigError(f'adversarial.start is {self.start}, expected a step, 0 or more')


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
  """Everything about the training of a tokenizer but its data and optimizers.

  Attributes:
    perceptual: which perceptual distance; must be said, see `perceptual.PerceptualConfig`.
    vqgan: the network: a preset ('vq_16', 'vq_8') or its settings.
    image_size: rows and columns of the images.
    reconstruction: 'l2' (mean squared) or 'l1' (mean absolute error).
    reconstruction_weight, perceptual_weight: of these terms.
    adversarial: None trains without a discriminator.
    regularizer: CRT's; None trains without.
  """

  perceptual: PerceptualConfig | None = None
  vqgan: VqganConfig | str = 'vq_16'
  image_size: int = 256
  reconstruction: Literal['l2', 'l1'] = 'l2'
  reconstruction_weight: float = 1.0
  perceptual_weight: float = 1.0
  adversarial: AdversarialConfig | None = None
  regularizer: RegularizerConfig | None = None

  def __post_init__(self):
    if self.perceptual is None:
      raise ConfigError(
        "model.perceptual is not set; choose dict(name='lpips', weights=FILE), dict(name='edges') "
        '(a stand-in that '
        "needs no weights) or dict(name='none')"
      )
    if isinstance(self.vqgan, str) and self.vqgan not in PRESETS:
      raise ConfigError(
        f'model.vqgan is {self.vqgan!r}, expected settings or one of {", ".join(PRESETS)}'
      )
    if self.reconstruction not in ('l2', 'l1'):
      raise ConfigError(f"model.reconstruction is {self.reconstruction!r}, expected 'l2' or 'l1'")
    try:
      _ = self.grid
    except ValueError as error:
      raise ConfigError(f'model.image_size is {self.image_size}: {error}') from error
    if self.adversarial:
      self.adversarial.discriminator.patches(self.image_size, self.image_size)

  @property
  def network(self) -> VqganConfig:
    """The network's settings."""
    return PRESETS[self.vqgan] if isinstance(self.vqgan, str) else self.vqgan

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the latent grid."""
    return self.network.grid(self.image_size, self.image_size)

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
  if config.perceptual.name == 'edges':
    warnings.warn(
      "perceptual.name is 'edges': fixed edge features stand in for LPIPS; reconstructions will "
      'look different from, and '
      'the logged distance cannot be compared with, training with LPIPS. Name its weights with '
      "dict(name='lpips', "
      'weights=FILE) to use it.',
      stacklevel=2,
    )
  return VqganTask(config)


@dataclasses.dataclass(frozen=True, eq=False)
class VqganTask(Task):
  """Trains `vqgan.Vqgan`; parameters in the groups 'vqgan', 'discriminator' and 'regularizer'.

  Attributes:
    config: its settings.
    perceptual_weights: what `perceptual.load_weights` gives; None reads the files of
      `config.perceptual` when `constants` is first asked for.
  """

  config: TokenizerConfig
  perceptual_weights: Mapping[str, Any] | None = None

  @functools.cached_property
  def constants(self) -> Mapping[str, Any]:
    """The weights of the perceptual network, which only loss and evaluation need.

    Raises:
      ConfigError: they cannot be read.
    """
    weights = self.perceptual_weights
    if weights is None:
      weights = perceptual.load_weights(self.config.perceptual)
    return {'perceptual': weights} if weights else {}

  @property
  def model(self) -> vqgan.Vqgan:
    """The autoencoder; apply it to `{'params': params['vqgan']}`."""
    return vqgan.Vqgan(self.config.network)

  def init(self, key: jax.Array, batch: Batch) -> Variables:
    c = self.config
    image = self.pixels(batch)[:1]
    keys = jax.random.split(key, 3)
    params = {'vqgan': self.model.init(keys[0], image)['params']}
    if c.adversarial:
      net = discriminator.Discriminator(c.adversarial.discriminator)
      params['discriminator'] = net.init(keys[1], image, jnp.ones(1))['params']
    if c.regularizer:
      latent = jnp.zeros((1, c.grid[0] * c.grid[1], c.latent_width))
      net = crt.CausalRegularizer(c.regularizer)
      params['regularizer'] = net.init(keys[2], latent, c.grid)['params']
    codebook_KD = nn.unbox(params['vqgan'])['quantizer']['codebook']
    statistics = quantizer.initial_statistics(c.network.quantizer, codebook_KD)
    names = (axes.CODES, axes.CODE_DIM)
    variables = {
      'params': params,
      'codebook_stats': {
        name: nn.LogicallyPartitioned(value, names[: value.ndim])
        for name, value in statistics.items()
      },
    }
    if c.adversarial and (running := discriminator.initial_running(c.adversarial.discriminator)):
      variables['discriminator_stats'] = running
    return variables

  def pixels(self, batch: Batch) -> jax.Array:
    """The batch's images in [-1, 1].

    Raises:
      ConfigError: images of another size, channel count or type than the config's.
    """
    image, c = batch['image_BYXC'], self.config
    expected = (c.image_size, c.image_size, c.network.image_channels)
    if image.ndim != 4 or image.shape[1:] != expected:
      raise ConfigError(
        f'images have shape {tuple(image.shape[1:])} (rows, columns, channels), the tokenizer '
        f'expects {expected}; '
        'make data.image_size and model.image_size agree, and model.vqgan.image_channels with the '
        'data'
      )
    if image.dtype != jnp.uint8:
      raise ConfigError(f'images are {image.dtype}, expected uint8 in [0, 255]')
    return image.astype(jnp.float32) / 127.5 - 1

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {'images': jnp.sum(batch['valid_B'].astype(jnp.float32))}

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
    if c.adversarial:
      judged = self._adversarial(variables, image, out, valid_B, step)
      terms['adversarial'] = (c.adversarial.weight, judged['adversarial'])
      terms['discriminator'] = (c.adversarial.discriminator_weight, judged['discriminator'])
      stats['discriminator'] = judged['norm_sums']
    scalar = sum(weight * total for weight, (total, _) in terms.values()) / num_images
    sums = {name: pair for name, (_, pair) in terms.items()}
    if c.adversarial:
      sums |= judged['notes']
    sums |= {name: weighted_sum(v, valid_B) for name, v in notes.items()}
    recent = jnp.mean(variables['codebook_stats']['unused_K'] < _RECENT)
    sums['codes_in_use'] = weighted_sum(jnp.broadcast_to(recent, valid_B.shape), valid_B)
    count_K = stats['codes']['count_K']
    sums['code_counts'] = (count_K, jnp.sum(count_K))
    return scalar, jax.lax.stop_gradient(sums), jax.lax.stop_gradient(stats)

  def _appearance(self, variables, image, recon):
    """Reconstruction and perceptual terms: `{name: (weight, value_B)}`."""
    c = self.config
    difference = recon.astype(jnp.float32) - image
    error = jnp.square(difference) if c.reconstruction == 'l2' else jnp.abs(difference)
    out = {'reconstruction': (c.reconstruction_weight, jnp.mean(error, axis=(1, 2, 3)))}
    if c.perceptual.name != 'none':
      weights = variables.get('constants', {}).get('perceptual', {})
      value_B = perceptual.distance(c.perceptual, weights, image, recon)
      out['perceptual'] = (c.perceptual_weight, value_B)
    return out

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

  def _adversarial(self, variables, image, out, valid_B, step):
    """Both networks' terms, zeros before the start."""
    a = self.config.adversarial
    judge = lambda: self._judged(variables, image, out, valid_B)
    if not a.start:
      return judge()
    zeros = lambda: jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(judge))
    # A branch, not a product with zero: the discriminator costs nothing until it counts.
    return jax.lax.cond(step >= a.start, judge, zeros)

  def _judged(self, variables, image, out, valid_B):
    a, fixed = self.config.adversarial, jax.lax.stop_gradient
    net = discriminator.Discriminator(a.discriminator)
    params, recon = variables['params']['discriminator'], out.recon_BYXC.astype(jnp.float32)
    # The reconstruction is judged twice only in the text: the compiler merges equal forward passes.
    judge_fixed = lambda x: net.apply({'params': fixed(params)}, x, valid_B)[0]
    real_BYX, real_sums = net.apply({'params': params}, image, valid_B)
    fake_BYX, fake_sums = net.apply({'params': params}, fixed(recon), valid_B)
    adversarial = discriminator.generator_loss(a.loss, judge_fixed(recon), valid_B)
    notes = {
      'logits_real': weighted_sum(jnp.mean(real_BYX, axis=(1, 2)), valid_B),
      'logits_fake': weighted_sum(jnp.mean(fake_BYX, axis=(1, 2)), valid_B),
    }
    if a.weighting == 'adaptive':
      ratio = self._adaptive_weight(variables, image, out, valid_B, judge_fixed)
      adversarial = (ratio * adversarial[0], adversarial[1])
      notes['adaptive_weight'] = (ratio * jnp.sum(valid_B), jnp.sum(valid_B))
    return {
      'adversarial': adversarial,
      'discriminator': discriminator.discriminator_loss(a.loss, real_BYX, fake_BYX, valid_B),
      'norm_sums': jax.tree.map(jnp.add, real_sums, fake_sums),
      'notes': notes,
    }

  def _adaptive_weight(self, variables, image, out, valid_B, judge) -> jax.Array:
    """Ratio of gradient norms at the kernel of the decoder's last convolution; no gradient."""
    c, fixed = self.config, jax.lax.stop_gradient
    layer = fixed(dict(variables['params']['vqgan']['decoder']['conv_out']))
    conv = convnet.Conv(c.network.image_channels, dtype=c.network.dtype)
    num_images = jnp.maximum(jnp.sum(valid_B), 1.0)

    def last(kernel):
      recon = conv.apply({'params': {**layer, 'kernel': kernel}}, fixed(out.last_BYXC))
      return recon.astype(jnp.float32)

    def appearance(recon):
      terms = self._appearance(fixed(variables), image, recon).values()
      return sum(weight * weighted_sum(v, valid_B)[0] for weight, v in terms) / num_images

    def adversarial(recon):
      return discriminator.generator_loss(c.adversarial.loss, judge(recon), valid_B)[0] / num_images

    recon, pull = jax.vjp(last, layer['kernel'])
    grads = [pull(jax.grad(f)(fixed(recon)))[0] for f in (appearance, adversarial)]
    return discriminator.adaptive_weight(*grads)

  def after_update(
    self, state: TrainState, stats: Any, key: jax.Array, step: jax.Array
  ) -> TrainState:
    q, extra = self.config.network.quantizer, dict(state.extra)
    codebook_KD = _at(state.params, _CODEBOOK)
    codebook_KD, extra['codebook_stats'], revived_K = quantizer.update_codebook(
      q, codebook_KD, extra['codebook_stats'], stats['codes'], key
    )
    if 'discriminator_stats' in extra:
      extra['discriminator_stats'] = discriminator.update_running(
        extra['discriminator_stats'], stats['discriminator']
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
    return 'generator' if path[0] == 'vqgan' else path[0]

  def evaluations(self):
    return {'reconstruction': self._reconstruction}

  def _reconstruction(self, variables: Variables, batch: Batch, key: jax.Array) -> Sums:
    """Errors of clipped reconstructions, images in [-1, 1] (so PSNR's peak is 2), and counts of
    codes.

    'code_counts' is an int32 array [K] over the number of positions; see `summaries`.
    """
    del key
    c = self.config
    image, valid_B = self.pixels(batch), batch['valid_B'].astype(jnp.float32)
    out = self.model.apply({'params': variables['params']['vqgan']}, image)
    recon = jnp.clip(out.recon_BYXC.astype(jnp.float32), -1, 1)
    square_B = jnp.mean(jnp.square(recon - image), axis=(1, 2, 3))
    values = {
      'mse': square_B,
      'l1': jnp.mean(jnp.abs(recon - image), axis=(1, 2, 3)),
      'psnr': 10 * jnp.log10(4 / jnp.maximum(square_B, 1e-10)),
    }
    if c.perceptual.name != 'none':
      weights = variables.get('constants', {}).get('perceptual', {})
      values['perceptual'] = perceptual.distance(c.perceptual, weights, image, recon)
    sums = {name: weighted_sum(v, valid_B) for name, v in values.items()}
    count_K = quantizer.code_counts(out.quantized.ids_BL, c.network.quantizer.codes, valid_B)
    return sums | {'code_counts': (count_K, jnp.sum(count_K))}

  def summaries(self):
    return {'code_counts': quantizer.code_use}

  def step_flops(self, batch_size: int) -> float:
    """Forward and backward of all networks, the discriminator as after its start."""
    c, side = self.config, self.config.image_size
    num_positions, q = c.grid[0] * c.grid[1], c.network.quantizer
    macs = 3 * sum(vqgan.forward_macs(c.network, side, side)) + num_positions * q.codes * q.width
    if c.perceptual.name == 'lpips':
      macs += 3 * perceptual.lpips_macs(side, side)  # two images forward, one gradient back
    if c.regularizer:
      macs += 3 * crt.forward_macs(c.regularizer, num_positions, c.latent_width)
    if c.adversarial:
      # Real and fake forward, both backward to weights and inside; fake also back to the image.
      judge = c.adversarial.discriminator
      macs += 7 * discriminator.forward_macs(judge, c.network.image_channels, side, side)
    return 2.0 * macs * batch_size


def _at(tree: Any, path: tuple[str, ...]) -> Any:
  for name in path:
    tree = tree[name]
  return tree


def _replaced(tree: Mapping[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
  inner = _replaced(tree[path[0]], path[1:], value) if len(path) > 1 else value
  return {**tree, path[0]: inner}


def _ends_with(path: tuple, names: tuple[str, ...]) -> bool:
  return tuple(getattr(entry, 'key', None) for entry in path[-len(names) :]) == names
