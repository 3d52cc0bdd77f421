"""Sizes and switches of Transfusion (`models.transfusion`), the paper's five sizes among them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxmm.config import ConfigError, from_preset
from jaxmm.core import diffusion, positions, transformer
from jaxmm.models import mixed_rows as rows
from jaxmm.models import transfusion_patches as patches

# 32,000 ids of text, as the paper has; behind them padding (which is the null caption, too), bos,
# eos and the two brackets.
_PAPER = {
  'vocab_size': 32_005, 'length': 4096, 'boi_id': 32_003, 'eoi_id': 32_004, 'null_id': 32_000,
}  # fmt: skip
# Two that train on a laptop, and the paper's (table 2).
PRESETS: dict[str, dict[str, Any]] = {
  'micro': {'depth': 2, 'width': 64, 'num_heads': 2, 'hidden_multiple': 32, 'latent_size': 8},
  'mini': {'depth': 6, 'width': 256, 'num_heads': 8, 'hidden_multiple': 32, 'latent_size': 16},
  '0.16B': {'depth': 16, 'width': 768, 'num_heads': 12, **_PAPER},
  '0.37B': {'depth': 24, 'width': 1024, 'num_heads': 16, **_PAPER},
  '0.76B': {'depth': 24, 'width': 1536, 'num_heads': 24, **_PAPER},
  '1.4B': {'depth': 24, 'width': 2048, 'num_heads': 16, **_PAPER},
  '7B': {'depth': 32, 'width': 4096, 'num_heads': 32, **_PAPER},
}
OBJECTIVES = ('ddpm', 'flow')
CHOICES = {
  'patches': ('linear', 'unet'),
  'time': ('patch', 'width'),
  'attention': rows.ATTENTIONS,
  'image_positions': rows.IMAGE_POSITIONS,
  'objective': OBJECTIVES,
}


@dataclasses.dataclass(frozen=True)
class TransfusionConfig:
  """Sizes and training switches.

  Attributes:
    depth, width, num_heads: of the Stack; `transfusion.config_of({'size': '7B'})` fills them in.
    vocab_size: V; the default holds bytes, the three special tokens of `models.lm`, and the two
      brackets.
    length: the longest row.
    boi_id, eoi_id: the brackets around an image; the second is never drawn, it is put there.
    null_id: what stands in for a dropped caption; never drawn.
    latent_size, latent_channels: Y = X and C of an image's latent.
    patch: k, latent pixels along a side of a patch.
    patches: 'linear' or 'unet', see `transfusion_patches`.
    time: of linear patches, see `transfusion_patches.LinearPatches`.
    unet_base, unet_blocks: see `transfusion_patches.UNetPatches`; the default makes 0.27B.
    attention: within an image, 'bidirectional' (the paper's) or 'causal' (its ablation).
    image_positions: 'flat', the plain reading, or 'shared', all patches of an image at one rotary
      position and told apart by a learned vector each (a departure).
    objective: 'ddpm', the paper's, or 'flow' (rectified flow, a departure).
    num_timesteps: T.
    noise_limit: the noisiest timestep of images whose text comes after them (the paper: T / 2);
      None is no limit.
    image_weight: lambda, of the denoising loss.
    caption_dropout: chance that an image loses the text before it, which guidance needs; the
      paper's rate is not known.
    clean_rate: chance that an image whose text comes after it is shown clean, at timestep 0, and is
      not denoised. At 0, as in the paper, no timestep below 1 is ever trained.
    clean_timestep: of images that are given, when text is drawn or scored: 0, or 1, the least noisy
      that is always trained; None is 0 where `clean_rate` trains it, else 1.
    num_kv_heads, head_dim, hidden, hidden_multiple, norm_eps, rotary_base, token_dropout, dropout,
      loss_chunk, init_std: see `models.lm.LmConfig`.
    remat, attention_backend, unroll, dtype: see `core.transformer.StackConfig`.
  """

  depth: int
  width: int
  num_heads: int
  vocab_size: int = 261
  length: int = 512
  boi_id: int = 259
  eoi_id: int = 260
  null_id: int = 256
  latent_size: int = 32
  latent_channels: int = 8
  patch: int = 2
  patches: str = 'linear'
  time: str = 'patch'
  unet_base: int = 672
  unet_blocks: int = 2
  attention: str = 'bidirectional'
  image_positions: str = 'flat'
  objective: str = 'ddpm'
  num_timesteps: int = 1000
  noise_limit: int | None = None
  image_weight: float = 5.0
  caption_dropout: float = 0.1
  clean_rate: float = 0.0
  clean_timestep: int | None = None
  num_kv_heads: int | None = None
  head_dim: int | None = None
  hidden: int | None = None
  hidden_multiple: int = 256
  norm_eps: float = 1e-5
  rotary_base: float = 10_000.0
  token_dropout: float = 0.0
  dropout: float = 0.0
  loss_chunk: int = 0
  init_std: float = 0.02
  remat: str = 'none'
  attention_backend: str = 'xla'
  unroll: int = 1
  dtype: str = 'float32'

  def __post_init__(self):
    lowest = {
      'vocab_size': 1, 'length': 2, 'latent_channels': 1, 'hidden_multiple': 1, 'unet_base': 1,
      'unet_blocks': 1, 'num_timesteps': 1, 'loss_chunk': 0, 'image_weight': 0,
    }  # fmt: skip
    for name, low in lowest.items():
      if getattr(self, name) < low:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected at least {low}')
    for name in ('caption_dropout', 'clean_rate', 'token_dropout', 'dropout'):
      if not 0 <= getattr(self, name) < 1:
        raise ConfigError(f'model.{name} is {getattr(self, name)}, expected it in [0, 1)')
    for name, known in CHOICES.items():
      if getattr(self, name) not in known:
        raise ConfigError(
          f'model.{name} is {getattr(self, name)!r}, expected one of {", ".join(known)}'
        )
    special = (self.boi_id, self.eoi_id, self.null_id)
    if min(special) < 0 or max(special) >= self.vocab_size or len(set(special)) < 3:
      raise ConfigError(
        f'model.boi_id, eoi_id and null_id are {special}, expected three different ids below '
        f'model.vocab_size {self.vocab_size}'
      )
    if self.clean_timestep not in (0, 1, None):
      raise ConfigError(f'model.clean_timestep is {self.clean_timestep}, expected 0, 1 or None')
    if self.noise_limit is not None and not 1 <= self.noise_limit <= self.num_timesteps:
      raise ConfigError(
        f'model.noise_limit is {self.noise_limit}, expected 1 to model.num_timesteps '
        f'{self.num_timesteps}, or None'
      )
    patches.check(self.patches, self.patch, self.latent_size)
    if self.num_patches + 2 > self.length:
      raise ConfigError(
        f'an image takes {self.num_patches + 2} positions, but model.length is {self.length}; '
        'set a larger model.patch or a smaller model.latent_size'
      )
    if self.stack().head_width % 2:
      raise ConfigError(f'heads are {self.stack().head_width} wide, but rotary positions need even')

  @property
  def num_patches(self) -> int:
    """P, positions of an image without its brackets."""
    return (self.latent_size // self.patch) ** 2

  @property
  def given_timestep(self) -> int:
    """The timestep of images that are given, see `clean_timestep`."""
    return int(not self.clean_rate) if self.clean_timestep is None else self.clean_timestep

  @property
  def latent_shape(self) -> tuple[int, int, int]:
    """(Y, X, C)."""
    return (self.latent_size, self.latent_size, self.latent_channels)

  def hidden_width(self) -> int:
    """The MLP's width."""
    return self.hidden or transformer.gated_hidden(self.width, self.hidden_multiple)

  def stack(self) -> transformer.StackConfig:
    """The Stack of this model."""
    same = (
      'depth', 'width', 'num_heads', 'num_kv_heads', 'head_dim', 'norm_eps', 'dropout', 'init_std',
      'remat', 'attention_backend', 'unroll', 'dtype',
    )  # fmt: skip
    return transformer.StackConfig(
      hidden=self.hidden_width(), **{name: getattr(self, name) for name in same}
    )

  def patch_flops(self) -> float:
    """Of one image's way to tokens and back, forward."""
    shape = (self.patch, self.latent_size, self.latent_channels, self.width)
    if self.patches == 'linear':
      return patches.linear_flops(*shape)
    return patches.unet_flops(*shape, self.unet_base, self.unet_blocks)

  def rotary_tables(self, position: jax.Array) -> positions.Rotary:
    """Tables of positions [L] or [B, L]."""
    return positions.rotary_1d(position, self.stack().head_width, self.rotary_base)

  def noised(self, x0_BI: jax.Array, noise_BI: jax.Array, time_BI: jax.Array) -> jax.Array:
    """Latents at their timesteps, on the path of the objective."""
    if self.objective == 'flow':
      return diffusion.interpolated(x0_BI, noise_BI, time_BI / self.num_timesteps)
    return diffusion.noised(x0_BI, noise_BI, time_BI, _alpha_bar(self.num_timesteps))

  def target(self, x0_BI: jax.Array, noise_BI: jax.Array) -> jax.Array:
    """What the network is to predict of noised latents."""
    return noise_BI if self.objective == 'ddpm' else diffusion.velocity(x0_BI, noise_BI)


@functools.cache
def _alpha_bar(num_timesteps: int) -> np.ndarray:
  return diffusion.cosine_alpha_bar(num_timesteps)


def config_of(model: Mapping[str, Any]) -> TransfusionConfig:
  """The config of a run's `model` section; `size` names a preset, the other keys override it.

  Raises:
    ConfigError: an unknown size or key, or a value that cannot be used.
  """
  return from_preset(TransfusionConfig, PRESETS, model, 'model')
