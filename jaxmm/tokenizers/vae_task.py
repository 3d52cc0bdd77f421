"""Training the continuous autoencoder: Transfusion's loss (arXiv:2408.11039)

    L1 + LPIPS + 0.5 GAN + 0.2 ID + 1e-6 KL

with the adversarial term from step 50,000 on. What is common to all image autoencoders is in
`autoencoder_task`.

What the paper leaves open, and how it is here. L1 is a mean over pixels and channels, as the equal
weights of L1 and LPIPS suggest. KL is the sum over the latents of an image, averaged over images
(as in latent diffusion, arXiv:2112.10752); averaged over latents, too, a weight of 1e-6 would do
nothing. In training the decoder reads a draw, in evaluation the mean.

ID compares features of the MoCo-v2 network, whose weights do not come with this library: its weight
is 0 by default (a departure from the paper), and training with any other is refused unless the Task
is given a network.

Axes: B batch, Y rows, X columns, C channels, D latent width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError, from_mapping
from jaxmm.core.losses import weighted_sum
from jaxmm.task import Batch, Sums, TrainState, Variables, example_keys
from jaxmm.tokenizers import perceptual, vae
from jaxmm.tokenizers.autoencoder_task import (
  AutoencoderTask,
  AutoencoderTaskConfig,
  warn_of_stand_in,
)
from jaxmm.tokenizers.vae import VaeConfig

# Images [B, Y, X, C] in [-1, 1] to feature maps [B, ...] of a fixed network.
Features = Callable[[jax.Array], Sequence[jax.Array]]


@dataclasses.dataclass(frozen=True)
class VaeTaskConfig(AutoencoderTaskConfig):
  """Everything about the training of a VAE but its data and optimizers.

  Attributes:
    vae: the network.
    kl_weight: of the divergence in nats an image, summed over its latents.
    identity_weight: of the ID term (0.2 in the paper); needs `VaeTask.identity_features`.
  """

  reconstruction: Literal['l2', 'l1'] = 'l1'
  vae: VaeConfig = VaeConfig()
  kl_weight: float = 1e-6
  identity_weight: float = 0.0

  def __post_init__(self):
    super().__post_init__()
    for name in ('kl_weight', 'identity_weight'):
      if getattr(self, name) < 0:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected 0 or more')

  @property
  def network(self) -> VaeConfig:
    """The network's settings."""
    return self.vae


def make_task(model: Mapping[str, Any]) -> VaeTask:
  """The Task of `VaeTaskConfig`'s settings.

  Raises:
    ConfigError: unknown or unusable settings.
  """
  config = from_mapping(VaeTaskConfig, model, 'model')
  warn_of_stand_in(config.perceptual)
  return VaeTask(config)


@dataclasses.dataclass(frozen=True, eq=False)
class VaeTask(AutoencoderTask):
  """Trains `vae.Vae`; parameters in the groups 'vae' and 'discriminator'.

  Attributes:
    identity_features: the network of the ID term (MoCo-v2's in the paper), a pure function that
      holds its own weights; training needs it where `config.identity_weight` is not 0.
  """

  group: ClassVar[str] = 'vae'

  identity_features: Features | None = None

  @property
  def model(self) -> vae.Vae:
    """The autoencoder; apply it to `{'params': params['vae']}`."""
    return vae.Vae(self.config.vae)

  def init(self, key: jax.Array, batch: Batch) -> Variables:
    """See `Task.init`.

    Raises:
      ConfigError: an ID term without its network.
    """
    self._check_identity()
    image = self.pixels(batch)[:1]
    keys = jax.random.split(key, 2)
    judge_params, extra = self.discriminator_variables(keys[1], image)
    return {'params': {'vae': self.model.init(keys[0], image)['params'], **judge_params}, **extra}

  def loss(self, variables, batch, key, step, counts):
    image, valid_B = self.pixels(batch), batch['valid_B'].astype(jnp.float32)
    keys_B = example_keys(key, batch['index_B'])
    out = self.model.apply(self.network(variables['params']), image, keys_B)
    values = self._appearance(variables, image, out.recon_BYXC)
    values['kl'] = (self.config.kl_weight, out.posterior.kl())
    terms = {name: (weight, weighted_sum(v, valid_B)) for name, (weight, v) in values.items()}
    more_terms, notes, stats = self.adversarial_terms(variables, image, out, valid_B, step)
    terms |= more_terms
    num_images = jnp.maximum(counts['images'], 1.0)
    scalar = sum(weight * total for weight, (total, _) in terms.values()) / num_images
    sums = {name: pair for name, (_, pair) in terms.items()} | notes
    spread_B = jnp.mean(out.posterior.std_BYXD, axis=(1, 2, 3))
    sums['posterior_std'] = weighted_sum(spread_B, valid_B)
    return scalar, jax.lax.stop_gradient(sums), jax.lax.stop_gradient(stats)

  def _appearance(self, variables, image, recon):
    """As in the base class, and the ID term."""
    terms = super()._appearance(variables, image, recon)
    if self.config.identity_weight:
      self._check_identity()
      value_B = identity_distance(self.identity_features, image, recon)
      terms['identity'] = (self.config.identity_weight, value_B)
    return terms

  def _check_identity(self) -> None:
    # Where it is trained, not where it is made: to encode and decode the network is not needed.
    if self.config.identity_weight and self.identity_features is None:
      raise ConfigError(
        f'model.identity_weight is {self.config.identity_weight}, but no feature network is given '
        "and MoCo-v2's weights do not come with this library; set it to 0 (a departure from the "
        'paper), or train with a Task of your own: VaeTask(config, identity_features=network)'
      )

  def after_update(
    self, state: TrainState, stats: Any, key: jax.Array, step: jax.Array
  ) -> TrainState:
    del key, step
    return state.replace(extra=self.updated_extra(state.extra, stats))

  def evaluations(self):
    return {'reconstruction': self._reconstruction}

  def _reconstruction(self, variables: Variables, batch: Batch, key: jax.Array) -> Sums:
    """Errors of clipped reconstructions from the means, and the divergence in nats an image."""
    del key
    image, valid_B = self.pixels(batch), batch['valid_B'].astype(jnp.float32)
    out = self.model.apply(self.network(variables['params']), image)
    values = self._errors(variables, image, out.recon_BYXC)
    values['kl'] = out.posterior.kl()
    return {name: weighted_sum(v, valid_B) for name, v in values.items()}

  def step_flops(self, batch_size: int) -> float:
    """Forward and backward of all networks but that of ID, the discriminator as after its start."""
    side = self.config.image_size
    macs = 3 * sum(vae.forward_macs(self.config.vae, side, side)) + self.training_macs()
    return 2.0 * macs * batch_size


def identity_distance(
  features: Features, image_BYXC: jax.Array, recon_BYXC: jax.Array
) -> jax.Array:
  """1 - cosine of each feature map of image and reconstruction, mean over the maps; float32 [B].

  The paper names the network and that its inner features are compared, not how; the cosine is ours,
  after the loss of the same name in arXiv:2102.02766.
  """
  flat = lambda x: perceptual.unit_channels(x.astype(jnp.float32).reshape(x.shape[0], -1))
  pairs = zip(
    features(image_BYXC.astype(jnp.float32)), features(recon_BYXC.astype(jnp.float32)), strict=True
  )
  return jnp.mean(jnp.stack([1.0 - jnp.sum(flat(a) * flat(b), axis=-1) for a, b in pairs]), axis=0)
