"""Tiny image autoencoders of the TAESD family (Ollin Boer Bohan, github.com/madebyollin/taesd):
public networks of a million parameters that imitate the latents of large ones.

Plain 3x3 convolutions in residual blocks of three, eight pixels a latent position, no Gaussian:
an image has one latent. TAEF2's three blocks next to the latents also have a wider, normalised 1x1
branch. They come as files of weights (`interop.taesd`) and are used as they are, not trained.

Axes: B batch, Y rows, X columns, C channels, D latent width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError, from_mapping
from jaxmm.core import convnet
from jaxmm.core.losses import weighted_sum
from jaxmm.task import Batch, Sums, Variables
from jaxmm.tokenizers import autoencoder
from jaxmm.tokenizers.autoencoder_task import AutoencoderTask, AutoencoderTaskConfig

_SAME: convnet.Padding = ((1, 1), (1, 1))
_NORM_GROUPS, _NORM_EPS = 4, 1e-5
# Layers by their number in the public files; those without weights have a number, too.
ENCODER = ('image', 'block', *('down', 'block', 'block', 'block') * 2, 'down', 'middle', 'middle',
           'middle', 'latent')  # fmt: skip
DECODER = ('clamp', 'wide', 'relu', 'middle', 'middle', 'middle', 'up', 'smooth',
           *('block', 'block', 'block', 'up', 'smooth') * 2, 'block', 'image')  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TaesdConfig:
  """Settings of the network; the default is TAEF2 (FLUX.2's latents), 2.7M parameters.

  Attributes:
    latent_dim: channels of the latents (4 in TAESD, 16 in TAEF1, 32 in TAEF2).
    channels: of every layer but the first and the last.
    middle_branch: whether the blocks next to the latents have the normalised branch.
    dtype: in which the networks compute; parameters are float32.
  """

  section: ClassVar[str] = 'taesd'
  image_channels: ClassVar[int] = 3
  downsampling: ClassVar[int] = 8

  latent_dim: int = 32
  channels: int = 64
  middle_branch: bool = True
  dtype: Literal['float32', 'bfloat16'] = 'float32'

  def __post_init__(self):
    for name in ('latent_dim', 'channels'):
      if getattr(self, name) < 1:
        raise ConfigError(f'taesd.{name} is {getattr(self, name)}, expected at least 1')
    if self.dtype not in ('float32', 'bfloat16'):
      raise ConfigError(f"taesd.dtype is {self.dtype!r}, expected 'float32' or 'bfloat16'")

  def grid(self, height: int, width: int) -> tuple[int, int]:
    """Rows and columns of the latent grid of an image.

    Raises:
      ConfigError: a side is not a positive multiple of 8.
    """
    return autoencoder.latent_grid(height, width, self.downsampling, 'the downsampling factor')


class Block(nn.Module):
  """Three 3x3 convolutions with ReLU between, added to the input, ReLU; before them, with `branch`,
  1x1 to four times the width, norm, ReLU, 1x1, added to the input."""

  branch: bool
  dtype: str

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    channels = x_BYXC.shape[-1]
    if self.branch:
      narrow = dict(kernel=1, padding=((0, 0), (0, 0)), dtype=self.dtype, bias=False)
      h = convnet.Conv(4 * channels, name='pool_0', **narrow)(x_BYXC)
      h = convnet.GroupNorm(_NORM_GROUPS, _NORM_EPS, dtype=self.dtype, name='pool_1')(h)
      x_BYXC = x_BYXC + convnet.Conv(channels, name='pool_3', **narrow)(nn.relu(h))
    h = nn.relu(convnet.Conv(channels, dtype=self.dtype, name='conv_0')(x_BYXC))
    h = nn.relu(convnet.Conv(channels, dtype=self.dtype, name='conv_2')(h))
    h = convnet.Conv(channels, dtype=self.dtype, name='conv_4')(h)
    return convnet.constrain(nn.relu(x_BYXC + h))


class Half(nn.Module):
  """Encoder or decoder: its layers one after the other, parameters in `layer_NUMBER`."""

  config: TaesdConfig
  layers: tuple[str, ...]

  @nn.compact
  def __call__(self, x_BYXC: jax.Array) -> jax.Array:
    c = self.config
    for number, kind in enumerate(self.layers):
      name = f'layer_{number}'
      if kind in ('block', 'middle'):
        x_BYXC = Block(kind == 'middle' and c.middle_branch, c.dtype, name=name)(x_BYXC)
      elif kind == 'clamp':
        x_BYXC = jnp.tanh(x_BYXC / 3) * 3  # keeps what a diffusion model overshoots in range
      elif kind == 'relu':
        x_BYXC = nn.relu(x_BYXC)
      elif kind == 'up':
        B, Y, X, C = x_BYXC.shape
        wide = jnp.broadcast_to(x_BYXC[:, :, None, :, None], (B, Y, 2, X, 2, C))
        x_BYXC = wide.reshape(B, 2 * Y, 2 * X, C)
      else:
        x_BYXC = self._conv(kind, name)(x_BYXC)
    return x_BYXC

  def _conv(self, kind: str, name: str) -> convnet.Conv:
    c = self.config
    is_first = kind == 'image' and self.layers[0] == 'image'
    sizes = {'latent': c.latent_dim, 'image': c.channels if is_first else c.image_channels}
    return convnet.Conv(
      sizes.get(kind, c.channels),
      stride=2 if kind == 'down' else 1,
      padding=_SAME,
      dtype=c.dtype,
      bias=kind not in ('down', 'smooth'),
      name=name,
    )


class Taesd(nn.Module):
  """Encoder and decoder; every method is pure, call it by `model.apply(variables, x,
  method='encode')`. The public networks read and write images in [0, 1]; these do in [-1, 1].
  """

  config: TaesdConfig

  def setup(self):
    self.encoder = Half(self.config, ENCODER)
    self.decoder = Half(self.config, DECODER)

  def encode(self, image_BYXC: jax.Array) -> jax.Array:
    """Latents float32 [B, Y/8, X/8, D] of images in [-1, 1].

    Raises:
      ConfigError: see `autoencoder.check_images`.
    """
    autoencoder.check_images(self.config, image_BYXC)
    unit_BYXC = (image_BYXC.astype(self.config.dtype) + 1) / 2
    return self.encoder(unit_BYXC).astype(jnp.float32)

  def decode(self, z_BYXD: jax.Array) -> jax.Array:
    """Images float32 [B, Y, X, 3] of latents, about [-1, 1] (not clipped).

    Raises:
      ConfigError: not four axes, or another width than the config's.
    """
    autoencoder.check_latents(z_BYXD.shape, self.config.latent_dim)
    return self.decoder(z_BYXD.astype(self.config.dtype)).astype(jnp.float32) * 2 - 1

  def __call__(self, image_BYXC: jax.Array) -> jax.Array:
    """Reconstructs images in [-1, 1]."""
    return self.decode(self.encode(image_BYXC))


@dataclasses.dataclass(frozen=True)
class TaesdTaskConfig(AutoencoderTaskConfig):
  """What a run of a public autoencoder remembers; of the base class, what evaluation needs.

  Attributes:
    taesd: the network.
  """

  taesd: TaesdConfig = TaesdConfig()

  @property
  def network(self) -> TaesdConfig:
    """The network's settings."""
    return self.taesd


def make_task(model: Mapping[str, Any]) -> TaesdTask:
  """The Task of `TaesdTaskConfig`'s settings.

  Raises:
    ConfigError: unknown or unusable settings.
  """
  return TaesdTask(from_mapping(TaesdTaskConfig, model, 'model'))


@dataclasses.dataclass(frozen=True, eq=False)
class TaesdTask(AutoencoderTask):
  """Loads and evaluates `Taesd`; parameters in the group 'taesd'."""

  group: ClassVar[str] = 'taesd'

  @property
  def model(self) -> Taesd:
    """The autoencoder; apply it to `{'params': params['taesd']}`."""
    return Taesd(self.config.taesd)

  def init(self, key: jax.Array, batch: Batch) -> Variables:
    return {'params': {'taesd': self.model.init(key, self.pixels(batch)[:1])['params']}}

  def loss(self, variables, batch, key, step, counts):
    """Refuses: these networks come trained (ConfigError)."""
    raise ConfigError(
      'task is jaxmm.tokenizers.taesd, a public autoencoder that is used as it is; to train one of '
      'your own, choose jaxmm.tokenizers.vae_task'
    )

  def evaluations(self):
    return {'reconstruction': self._reconstruction}

  def _reconstruction(self, variables: Variables, batch: Batch, key: jax.Array) -> Sums:
    """Errors of clipped reconstructions, as those of `VaeTask`."""
    del key
    image, valid_B = self.pixels(batch), batch['valid_B'].astype(jnp.float32)
    recon_BYXC = self.model.apply(self.network(variables['params']), image)
    values = self._errors(variables, image, recon_BYXC)
    return {name: weighted_sum(v, valid_B) for name, v in values.items()}
