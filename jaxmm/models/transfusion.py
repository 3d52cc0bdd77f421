"""Transfusion: one transformer that predicts the next token and denoises images.

Zhou et al. 2024 (arXiv:2408.11039). A Llama-shaped Stack reads text ids and patches of image
latents in one sequence; attention is causal, and both ways within an image; text has the next-token
loss, each image a denoising loss at a timestep of its own, weighted by 5. No code was published;
what the paper leaves open is named where it is settled, here and in `transfusion_patches`.

A batch: `ids_BL` (0 at patches), `image_BL`, `patch_BL`, `segment_BL` (see `mixed_rows`),
`weight_BL` of each token as a target (0 for patches, for what follows the beginning of an image,
for its end, for padding), `latent_BIYXC` of unit variance, `image_valid_BI`, `is_image_first_BI`
(the text comes after the image), `index_B`, `valid_B`.

Axes: B rows, L positions, I images of a row, P patches, D width, V vocabulary, Y X C of a latent.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from jaxmm import task as tasks
from jaxmm.config import ConfigError
from jaxmm.core import axes, decode, layers, losses, positions, transformer
from jaxmm.models import mixed_rows as rows
from jaxmm.models import transfusion_patches as patches
from jaxmm.models.transfusion_config import PRESETS, TransfusionConfig, config_of

__all__ = [
  'PRESETS',
  'Transfusion',
  'TransfusionConfig',
  'TransfusionTask',
  'config_of',
  'make_task',
]

# Sub-streams of an example's index: what is chosen of it before any key is known.
_CAPTION, _CLEAN = 1, 2
# Shares of the schedule at which the denoising loss is evaluated.
EVALUATED_TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)


class Transfusion(nn.Module):
  """Hidden states of every position, and what is predicted of every image."""

  config: TransfusionConfig

  def setup(self):
    cfg = self.config
    init = nn.initializers.normal(cfg.init_std)
    self.token_embedding = layers.Embedding(cfg.vocab_size, cfg.width, init, cfg.dtype)
    shape = (cfg.patch, cfg.latent_size, cfg.latent_channels, cfg.width)
    if cfg.patches == 'linear':
      self.patches = patches.LinearPatches(*shape, cfg.time, cfg.init_std, cfg.dtype)
    else:
      self.patches = patches.UNetPatches(*shape, cfg.unet_base, cfg.unet_blocks, cfg.dtype)
    if cfg.image_positions == 'shared':
      self.patch_position = positions.LearnedPositions(cfg.num_patches, cfg.width, cfg.init_std)
    self.stack = transformer.Stack(cfg.stack())
    # A zero head: training starts from the uniform distribution.
    self.head = layers.Embedding(cfg.vocab_size, cfg.width, nn.initializers.zeros, cfg.dtype)

  def __call__(
    self,
    ids_BL: jax.Array,
    image_BL: jax.Array,
    patch_BL: jax.Array,
    segment_BL: jax.Array,
    latent_BIYXC: jax.Array,
    time_BI: jax.Array,
    dropout_key_B: jax.Array | None = None,
    *,
    return_kv: bool = False,
  ):
    """What the text head sees, [B, L, D], and what is predicted of each image, float32
    [B, I, Y, X, C].

    Args:
      ids_BL, image_BL, patch_BL, segment_BL: the rows, see the module.
      latent_BIYXC: noised latents.
      time_BI: their timesteps.
      dropout_key_B: one key an example; None drops nothing.
      return_kv: also return every layer's keys and values (`core.transformer.Stack`).
    """
    cfg = self.config
    check_rows(cfg, ids_BL.shape, latent_BIYXC.shape)
    if self.is_initializing():
      _ = self.head.table  # losses and samplers apply it; here it need only be made
    B, I = latent_BIYXC.shape[:2]
    tokens_NPD, remembered = self.encoded(
      latent_BIYXC.reshape(B * I, *cfg.latent_shape), time_BI.reshape(B * I)
    )
    tokens_BIPD = tokens_NPD.reshape(B, I, cfg.num_patches, cfg.width)
    x_BLD = self.embedded(ids_BL, image_BL, rows.in_sequence(tokens_BIPD, image_BL, patch_BL))
    seeds = None if dropout_key_B is None else layers.dropout_seeds(dropout_key_B)
    if seeds is not None:
      x_BLD = layers.dropout(x_BLD, cfg.token_dropout, layers.fold_seeds(seeds, 1))
    place_BL = rows.rotary_positions(image_BL, patch_BL, segment_BL, cfg.image_positions)
    out = self.stack(
      x_BLD,
      mask=rows.attention_mask(image_BL, segment_BL, cfg.attention, cfg.num_patches),
      rotary=cfg.rotary_tables(place_BL),
      dropout_key_B=None if seeds is None else layers.fold_seeds(seeds, 2),
      return_kv=return_kv,
    )
    hidden_BLD, *kv = out if return_kv else (out,)
    tokens_BIPD = rows.in_images(hidden_BLD, image_BL, patch_BL, I, cfg.num_patches)
    predicted = self.decoded(
      tokens_BIPD.reshape(B * I, cfg.num_patches, -1), remembered, time_BI.reshape(B * I)
    )
    return hidden_BLD, predicted.reshape(latent_BIYXC.shape), *kv

  def encoded(self, latent_NYXC: jax.Array, time_N: jax.Array) -> tuple[jax.Array, Any]:
    """Tokens [N, P, D] of noised latents, and what `decoded` takes up again."""
    tokens_NPD, remembered = self.patches.encode(latent_NYXC, time_N)
    if self.config.image_positions == 'shared':
      tokens_NPD = tokens_NPD + self.patch_position().astype(tokens_NPD.dtype)
    return tokens_NPD, remembered

  def decoded(self, hidden_NPD: jax.Array, remembered: Any, time_N: jax.Array) -> jax.Array:
    """What is predicted of N images from the Stack's output at their patches; float32 maps."""
    return self.patches.decode(hidden_NPD, remembered, time_N)

  def embedded(self, ids_BL, image_BL, patches_BLD) -> jax.Array:
    """The Stack's input: a patch's token where there is one, else the id's embedding."""
    x_BLD = jnp.where((image_BL > 0)[..., None], patches_BLD, self.token_embedding(ids_BL))
    return axes.constrain(x_BLD, axes.BATCH, axes.LENGTH, axes.ACT_EMBED)


def check_rows(config: TransfusionConfig, ids_shape, latent_shape) -> None:
  """Whether a batch fits the model.

  Raises:
    ConfigError: rows that are too long, no place for images, or latents of another shape.
  """
  if ids_shape[1] > config.length:
    raise ConfigError(
      f'rows have {ids_shape[1]} positions (data.mixed.length), but model.length is '
      f'{config.length}; make them agree'
    )
  if tuple(latent_shape[2:]) != config.latent_shape or len(latent_shape) != 5:
    raise ConfigError(
      f'latents are {list(latent_shape[2:])}, but the model expects {list(config.latent_shape)} '
      '(model.latent_size twice, model.latent_channels)'
    )
  if latent_shape[1] < 1:
    raise ConfigError(
      'rows have places for 0 images, expected at least 1 (image_valid_BI may be 0 for all)'
    )


@flax.struct.dataclass
class Choices:
  """What is chosen of each image of a batch by its example's index alone, so that counts know it.

  Attributes:
    uncaptioned_BI: it loses the text before it.
    clean_BI: it is shown clean.
  """

  uncaptioned_BI: jax.Array
  clean_BI: jax.Array


def choices(config: TransfusionConfig, batch: tasks.Batch) -> Choices:
  """The choices of training; the same on any mesh, in any microbatch, for any seed of a run.

  An image whose text comes after it may be shown clean, any other may lose its caption.
  """
  is_first_BI = batch['is_image_first_BI'] > 0
  index_B = batch['index_B'].astype(jnp.uint32)
  seeds_B2 = jnp.stack([index_B, jnp.zeros_like(index_B)], axis=1)

  def by_chance(stream, rate):
    bits = layers.uniform_bits(layers.fold_seeds(seeds_B2, stream), is_first_BI.shape[1:])
    return bits < jnp.uint32(round(rate * 2**32))

  valid_BI = batch['image_valid_BI'] > 0
  return Choices(
    by_chance(_CAPTION, config.caption_dropout) & ~is_first_BI & valid_BI,
    by_chance(_CLEAN, config.clean_rate) & is_first_BI & valid_BI,
  )


def no_choices(batch: tasks.Batch) -> Choices:
  """Every caption kept, no image clean: for evaluation."""
  none_BI = jnp.zeros(batch['image_valid_BI'].shape, bool)
  return Choices(none_BI, none_BI)


def timesteps(
  config: TransfusionConfig, batch: tasks.Batch, image_key_BI: jax.Array, clean_BI: jax.Array
) -> jax.Array:
  """One t ~ U{1 .. T} an image, or U{1 .. noise_limit}, or 0 if it is clean; int32 [B, I]."""
  uniform = jax.vmap(jax.vmap(lambda key: jax.random.uniform(jax.random.fold_in(key, 0))))
  last_BI = jnp.full(clean_BI.shape, config.num_timesteps)
  if config.noise_limit is not None:
    last_BI = jnp.where(batch['is_image_first_BI'] > 0, config.noise_limit, last_BI)
  time_BI = 1 + jnp.floor(uniform(image_key_BI) * last_BI).astype(jnp.int32)
  return jnp.where(clean_BI, 0, jnp.minimum(time_BI, last_BI))


def noise_of(config: TransfusionConfig, image_key_BI: jax.Array) -> jax.Array:
  """Standard normal latents, one an image's key, [B, I, Y, X, C]."""
  normal = lambda key: jax.random.normal(jax.random.fold_in(key, 1), config.latent_shape)
  return jax.vmap(jax.vmap(normal))(image_key_BI)


def image_keys(key: jax.Array, index_B: jax.Array, num_images: int) -> jax.Array:
  """Typed keys [B, I], one an image, from its example's key and its number in the row."""
  fold = lambda key: jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(1, num_images + 1))
  return jax.vmap(fold)(tasks.example_keys(key, index_B))


def shifted(x_BL: jax.Array) -> jax.Array:
  """Every position's successor, 0 after the last."""
  return jnp.pad(x_BL[:, 1:], ((0, 0), (0, 1)))


def text_rows(
  config: TransfusionConfig, batch: tasks.Batch, chosen: Choices
) -> tuple[jax.Array, jax.Array]:
  """Ids with dropped captions replaced, and the weight of every position's successor, [B, L]
  each.
  """
  ids_BL, lost_BL = rows.without_captions(
    batch['ids_BL'],
    batch['image_BL'],
    batch['segment_BL'],
    chosen.uncaptioned_BI,
    null_id=config.null_id,
    kept_ids=(config.boi_id, config.eoi_id),
  )
  weight_BL = shifted(jnp.where(lost_BL, 0.0, batch['weight_BL']))
  return ids_BL, weight_BL * batch['valid_B'][:, None]


def decode_params(params: Mapping[str, Any], config: TransfusionConfig) -> dict[str, Any]:
  """The parameters laid out for `transfusion_sampling`; make them once, under jit, and keep
  them.
  """
  return {
    'token_embedding': params['token_embedding']['table'].astype(config.dtype),
    'stack': decode.decode_layout(params['stack'], config.stack()),
    'head': params['head']['table'].astype(config.dtype),
  }


@dataclasses.dataclass(frozen=True)
class TransfusionTask(tasks.Task):
  """L_LM + image_weight * L_denoising (the paper's eq. 4).

  L_LM is the mean over weighted tokens, L_denoising the mean over images of the mean squared error
  within one. The paper does not say how it averages; with these means both terms are of the order
  of 1, which fits its lambda of 5.

  Attributes:
    config: of the model.
    row_length: positions of the rows trained on, for `step_flops`; None is `config.length`.
    row_images: images of those rows, likewise.
  """

  config: TransfusionConfig
  row_length: int | None = None
  row_images: int = 1

  def init(self, key: jax.Array, batch: tasks.Batch) -> tasks.Variables:
    time_BI = jnp.ones(batch['image_valid_BI'].shape, jnp.int32)
    return Transfusion(self.config).init(key, *self._rows(batch), batch['latent_BIYXC'], time_BI)

  def _rows(self, batch: tasks.Batch, ids_BL: jax.Array | None = None):
    ids_BL = batch['ids_BL'] if ids_BL is None else ids_BL
    return ids_BL, batch['image_BL'], batch['patch_BL'], batch['segment_BL']

  def counts(self, batch: tasks.Batch) -> dict[str, jax.Array]:
    chosen = choices(self.config, batch)
    weight_BL = text_rows(self.config, batch, chosen)[1]
    return {'tokens': jnp.sum(weight_BL), 'images': jnp.sum(image_weight(batch, chosen))}

  def loss(self, variables, batch, key, step, counts):
    del step
    chosen = choices(self.config, batch)
    keys_BI = image_keys(key, batch['index_B'], batch['latent_BIYXC'].shape[1])
    time_BI = timesteps(self.config, batch, keys_BI, chosen.clean_BI)
    dropout_key_B = tasks.example_keys(key, batch['index_B'])
    nats, squares = self.terms(variables['params'], batch, chosen, time_BI, keys_BI, dropout_key_B)
    scalar = nats[0] / jnp.maximum(counts['tokens'], 1)
    scalar += self.config.image_weight * squares[0] / jnp.maximum(counts['images'], 1)
    return scalar, {'cross_entropy': nats, 'denoising': squares}, {}

  def terms(
    self,
    params: Mapping[str, Any],
    batch: tasks.Batch,
    chosen: Choices,
    time_BI: jax.Array,
    image_key_BI: jax.Array,
    dropout_key_B: jax.Array | None = None,
  ) -> tuple[losses.SumCount, losses.SumCount]:
    """Nats of text and tokens; mean squared errors of images and images, at these timesteps."""
    cfg = self.config
    ids_BL, weight_BL = text_rows(cfg, batch, chosen)
    x0 = batch['latent_BIYXC'].astype(jnp.float32)
    noise = noise_of(cfg, image_key_BI)
    x = cfg.noised(x0, noise, time_BI)
    hidden_BLD, predicted = Transfusion(cfg).apply(
      {'params': params}, *self._rows(batch, ids_BL), x, time_BI, dropout_key_B
    )
    nll_BL = text_nll(params, cfg, hidden_BLD, ids_BL)
    images = image_weight(batch, chosen).reshape(-1)
    flat = lambda a: a.reshape(-1, *cfg.latent_shape)
    squares = losses.mean_squared_error(flat(predicted), flat(cfg.target(x0, noise)), images)
    return losses.weighted_sum(nll_BL, weight_BL), squares

  def evaluations(self) -> Mapping[str, Callable[..., tasks.Sums]]:
    return {'likelihood': self.likelihood, 'denoising': self.denoising}

  def likelihood(self, variables: tasks.Variables, batch: tasks.Batch, key: jax.Array):
    """Nats and bits a token of text that counts, images clean; then nats of that in documents
    without an image (`_text`) and of that behind one (`_after_image`) alone.
    """
    del key
    cfg, params = self.config, variables['params']
    time_BI = jnp.full(batch['image_valid_BI'].shape, cfg.given_timestep, jnp.int32)
    hidden_BLD, _ = Transfusion(cfg).apply(
      {'params': params}, *self._rows(batch), batch['latent_BIYXC'], time_BI
    )
    nll_BL = text_nll(params, cfg, hidden_BLD, batch['ids_BL'])
    weight_BL = text_rows(cfg, batch, no_choices(batch))[1]
    nats, count = losses.weighted_sum(nll_BL, weight_BL)
    kinds = rows.kinds_of_text(batch['image_BL'], batch['segment_BL'])
    of_kind = lambda mask_BL: losses.weighted_sum(nll_BL, weight_BL * shifted(mask_BL))
    return {
      'cross_entropy': (nats, count),
      'bits_per_token': (nats / math.log(2.0), count),
      **{f'cross_entropy_{kind}': of_kind(mask_BL) for kind, mask_BL in kinds.items()},
    }

  def denoising(self, variables: tasks.Variables, batch: tasks.Batch, key: jax.Array):
    """The denoising loss, captions kept, at fixed shares of the schedule and their mean."""
    cfg, chosen = self.config, no_choices(batch)
    keys_BI = image_keys(key, batch['index_B'], batch['latent_BIYXC'].shape[1])
    times = [max(1, round(share * cfg.num_timesteps)) for share in EVALUATED_TIMES]

    def at(time):
      time_BI = jnp.full(batch['image_valid_BI'].shape, time, jnp.int32)
      return self.terms(variables['params'], batch, chosen, time_BI, keys_BI)[1]

    total_T, count_T = jax.lax.map(at, jnp.array(times, jnp.int32))
    out = {f'denoising_{t}': (total_T[i], count_T[i]) for i, t in enumerate(times)}
    return {'denoising': (jnp.sum(total_T), jnp.sum(count_T)), **out}

  def batch_shapes(self, batch_size: int):
    num, of_images = self.row_length or self.config.length, (self.row_images,)
    return tasks.packed_shapes(
      batch_size, num, image_BL=((num,), 'int32'), patch_BL=((num,), 'int32'),
      is_image_first_BI=(of_images, 'bool'), image_valid_BI=(of_images, 'float32'),
      latent_BIYXC=((*of_images, *self.config.latent_shape), 'float32'),
    )  # fmt: skip

  def step_flops(self, batch_size: int) -> float:
    """6 a weight and position (the paper counts so), attention, and the patches of the images."""
    cfg, stack, num = self.config, self.config.stack(), self.row_length or self.config.length
    heads = stack.head_width * (cfg.num_heads + stack.kv_heads)
    weights = cfg.depth * cfg.width * (2 * heads + 3 * cfg.hidden_width())
    weights += cfg.width * cfg.vocab_size
    # Attention's two products as if everything saw everything, the usual count.
    attention = 12.0 * cfg.depth * cfg.num_heads * stack.head_width * num
    images = 3.0 * self.row_images * cfg.patch_flops()
    return batch_size * (num * (6.0 * weights + attention) + images)


def image_weight(batch: tasks.Batch, chosen: Choices) -> jax.Array:
  """1 for images that are denoised, float32 [B, I]."""
  weight_BI = (batch['image_valid_BI'] > 0) & ~chosen.clean_BI
  return weight_BI.astype(jnp.float32) * (batch['valid_B'] > 0)[:, None]


def text_nll(
  params: Mapping[str, Any], config: TransfusionConfig, hidden_BLD: jax.Array, ids_BL: jax.Array
) -> jax.Array:
  """-log p of each row's next id, nats, float32 [B, L]; whether that id is text, weights say.

  An id outside the vocabulary gives NaN.
  """
  target_BL = shifted(ids_BL)
  table_VD = params['head']['table']
  nll_BL = losses.projected_nll(hidden_BLD, table_VD, target_BL, config.loss_chunk)
  return jnp.where((target_BL >= 0) & (target_BL < config.vocab_size), nll_BL, jnp.nan)


def make_task(model: Mapping[str, Any]) -> TransfusionTask:
  """The Task of a run's `model` section (see `config_of`), which may also say `row_length` and
  `row_images`.
  """
  model = dict(model)
  row_length, row_images = model.pop('row_length', None), model.pop('row_images', 1)
  config = config_of(model)
  if row_length is not None and not 2 <= row_length <= config.length:
    raise ConfigError(
      f'model.row_length is {row_length}, expected 2 to model.length {config.length}, or None'
    )
  return TransfusionTask(config, row_length, row_images)
