"""What the training of every image autoencoder has in common: reconstruction and perceptual terms,
and a discriminator.

Autoencoder and discriminator are parts of one scalar, separated by stop-gradients, so one gradient
serves both and each has its own optimizer label. Every term is a mean over the valid images of the
*whole* batch, so the gradients of microbatches add up to the full batch's. Two options cannot keep
that promise, and say so where they are chosen: batch normalisation in the discriminator, and the
adaptive adversarial weight.

Axes: B batch, Y rows, X columns, C channels.
"""

from __future__ import annotations

import dataclasses
import functools
import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import convnet
from jaxmm.core.losses import weighted_sum
from jaxmm.task import Batch, Task
from jaxmm.tokenizers import discriminator, perceptual
from jaxmm.tokenizers.autoencoder import AutoencoderConfig
from jaxmm.tokenizers.discriminator import DiscriminatorConfig
from jaxmm.tokenizers.perceptual import PerceptualConfig


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
class AutoencoderTaskConfig:
  """What the training of every image autoencoder is told.

  Attributes:
    perceptual: which perceptual distance; must be said, see `perceptual.PerceptualConfig`.
    image_size: rows and columns of the images.
    reconstruction: 'l2' (mean squared) or 'l1' (mean absolute error).
    reconstruction_weight, perceptual_weight: of these terms.
    adversarial: None trains without a discriminator.
  """

  perceptual: PerceptualConfig | None = None
  image_size: int = 256
  reconstruction: Literal['l2', 'l1'] = 'l2'
  reconstruction_weight: float = 1.0
  perceptual_weight: float = 1.0
  adversarial: AdversarialConfig | None = None

  def __post_init__(self):
    if self.perceptual is None:
      raise ConfigError(
        "model.perceptual is not set; choose dict(name='lpips', weights=FILE), dict(name='edges') "
        "(a stand-in that needs no weights) or dict(name='none')"
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
  def network(self) -> AutoencoderConfig:
    """The network's settings."""
    raise NotImplementedError

  @property
  def grid(self) -> tuple[int, int]:
    """Rows and columns of the latent grid."""
    return self.network.grid(self.image_size, self.image_size)


def warn_of_stand_in(config: PerceptualConfig) -> None:
  """Warns where fixed edge features stand in for LPIPS."""
  if config.name == 'edges':
    warnings.warn(
      "perceptual.name is 'edges': fixed edge features stand in for LPIPS; reconstructions will "
      'look different from, and the logged distance cannot be compared with, training with LPIPS. '
      "Name its weights with dict(name='lpips', weights=FILE) to use it.",
      stacklevel=3,
    )


@dataclasses.dataclass(frozen=True, eq=False)
class AutoencoderTask(Task):
  """The shared part of `VqganTask` and `VaeTask`; parameters in `group` and 'discriminator'.

  Attributes:
    config: its settings.
    perceptual_weights: what `perceptual.load_weights` gives; None reads the files of
      `config.perceptual` when `constants` is first asked for.
  """

  group: ClassVar[str]  # of the autoencoder's parameters; also the section of its settings

  config: AutoencoderTaskConfig
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

  def network(self, params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The autoencoder's variables alone, as its `apply` takes them."""
    return {'params': params[self.group]}

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
        f'make data.image_size and model.image_size agree, and model.{self.group}.image_channels '
        'with the data'
      )
    if image.dtype != jnp.uint8:
      raise ConfigError(f'images are {image.dtype}, expected uint8 in [0, 255]')
    return image.astype(jnp.float32) / 127.5 - 1

  def counts(self, batch: Batch) -> dict[str, jax.Array]:
    return {'images': jnp.sum(batch['valid_B'].astype(jnp.float32))}

  def discriminator_variables(self, key: jax.Array, image_BYXC: jax.Array) -> tuple[dict, dict]:
    """`(params, extra)` of the discriminator before the first step, each {} where there is none."""
    if not self.config.adversarial:
      return {}, {}
    judge = self.config.adversarial.discriminator
    net = discriminator.Discriminator(judge)
    params = {'discriminator': net.init(key, image_BYXC, jnp.ones(1))['params']}
    running = discriminator.initial_running(judge)
    return params, {'discriminator_stats': running} if running else {}

  def adversarial_terms(self, variables, image, out, valid_B, step) -> tuple[dict, dict, dict]:
    """What the discriminator adds to `loss`: `(terms, notes, stats)`, {} where there is none.

    Args:
      variables: with the parameters of both networks.
      image, valid_B, step: of the microbatch.
      out: has `recon_BYXC`, and `last_BYXC` for an adaptive weight.
    """
    a = self.config.adversarial
    if not a:
      return {}, {}, {}
    judged = self._adversarial(variables, image, out, valid_B, step)
    terms = {
      'adversarial': (a.weight, judged['adversarial']),
      'discriminator': (a.discriminator_weight, judged['discriminator']),
    }
    return terms, judged['notes'], {'discriminator': judged['norm_sums']}

  def updated_extra(self, extra: Mapping[str, Any], stats: Mapping[str, Any]) -> dict[str, Any]:
    """`TrainState.extra` after an update: the discriminator's running statistics moved."""
    extra = dict(extra)
    if 'discriminator_stats' in extra:
      extra['discriminator_stats'] = discriminator.update_running(
        extra['discriminator_stats'], stats['discriminator']
      )
    return extra

  def label(self, path: tuple[str, ...]) -> str:
    return 'generator' if path[0] == self.group else path[0]

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
    layer = fixed(dict(variables['params'][self.group]['decoder']['conv_out']))
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

  def _errors(self, variables, image, recon_BYXC) -> dict[str, jax.Array]:
    """Errors [B] of clipped reconstructions, images in [-1, 1] (so PSNR's peak is 2)."""
    c, recon = self.config, jnp.clip(recon_BYXC.astype(jnp.float32), -1, 1)
    square_B = jnp.mean(jnp.square(recon - image), axis=(1, 2, 3))
    values = {
      'mse': square_B,
      'l1': jnp.mean(jnp.abs(recon - image), axis=(1, 2, 3)),
      'psnr': 10 * jnp.log10(4 / jnp.maximum(square_B, 1e-10)),
    }
    if c.perceptual.name != 'none':
      weights = variables.get('constants', {}).get('perceptual', {})
      values['perceptual'] = perceptual.distance(c.perceptual, weights, image, recon)
    return values

  def training_macs(self) -> int:
    """Multiply-adds an image of what the loss adds to the autoencoder, forward and backward."""
    c, side, macs = self.config, self.config.image_size, 0
    if c.perceptual.name == 'lpips':
      macs += 3 * perceptual.lpips_macs(side, side)  # two images forward, one gradient back
    if c.adversarial:
      # Real and fake forward, both backward to weights and inside; fake also back to the image.
      judge = c.adversarial.discriminator
      macs += 7 * discriminator.forward_macs(judge, c.network.image_channels, side, side)
    return macs
