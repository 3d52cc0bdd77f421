"""Drawing text and images with Transfusion: one compiled sampler whose rows are in different modes.

Section 3.4 of arXiv:2408.11039. A row draws text until it draws the beginning of an image; then an
image is denoised at the next positions, put there clean, closed by its bracket, and text goes on.
Keys and values before an image stay as they are while it is denoised; its own are made anew at
every step, and a last pass with the clean image writes those that later text sees.

All rows draw text until each waits for an image or is done; then those that wait get theirs
together. A row's cache is its own, from position 0, without gaps: what it draws depends neither on
the other rows nor on how long their prompts are.

Axes: B rows, R rows of the network (2 B under guidance), S positions, I images a row has room for,
P patches, D width, Y X C of a latent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError
from jaxmm.core import decode, decoding, diffusion
from jaxmm.models import mixed_rows as rows
from jaxmm.models.transfusion import Transfusion, TransfusionConfig
from jaxmm.models.transfusion_prompts import Mixed

TEXT, IMAGE, DONE = 0, 1, 2
Params = Mapping[str, Any]


@flax.struct.dataclass
class State:
  """A sampler between two phases.

  Attributes:
    mixed: what there is so far.
    mode_B: TEXT (the cache lacks the last token), IMAGE (an image is due) or DONE.
    most_B: images that each row may come to have.
    cache: of S positions; garbage from `length_B` on.
  """

  mixed: Mixed
  mode_B: jax.Array
  most_B: jax.Array
  cache: decode.Cache


def begin(
  params: Params, config: TransfusionConfig, prompt: Mixed, num_positions: int, num_images: int
) -> State:
  """The state after the prompts, which go through the Stack at once; trace it under jit.

  Args:
    params, config: the model.
    prompt: from `prompts`.
    num_positions: S.
    num_images: more images that each row may draw.

  Raises:
    ConfigError: more positions than `config.length`, or than fit the prompts.
  """
  num = prompt.ids_BS.shape[1]
  if not num <= num_positions <= config.length:
    raise ConfigError(
      f"num_positions is {num_positions}, expected it from the prompts' {num} to model.length "
      f'{config.length}'
    )
  prompt = jax.tree.map(jnp.asarray, prompt)
  cache = _context_cache(params, config, prompt, prompt.ids_BS, num_positions)
  more = lambda a: jnp.pad(a, ((0, 0), (0, num_positions - num)))
  room = ((0, 0), (0, num_images), (0, 0), (0, 0), (0, 0))
  mixed = Mixed(
    more(prompt.ids_BS),
    more(prompt.image_BS),
    more(prompt.patch_BS),
    prompt.length_B,
    jnp.pad(prompt.latent_BIYXC, room),
    prompt.images_B,
  )
  mode_B = jnp.full(prompt.length_B.shape, TEXT)
  return State(mixed, mode_B, prompt.images_B + num_images, cache)


def _context_cache(params, config, mixed: Mixed, ids_BS, length: int) -> decode.Cache:
  """Keys and values of rows with clean images, as training computes them."""
  segment_BS = _is_filled(mixed).astype(jnp.int32)
  time_BI = jnp.full(mixed.latent_BIYXC.shape[:2], config.given_timestep, jnp.int32)
  *_, kv = Transfusion(config).apply(
    {'params': params}, ids_BS, mixed.image_BS, mixed.patch_BS, segment_BS, mixed.latent_BIYXC,
    time_BI, return_kv=True,
  )  # fmt: skip
  return decode.cache_of(kv, config.stack(), length)


def _is_filled(mixed: Mixed) -> jax.Array:
  return jnp.arange(mixed.ids_BS.shape[1]) < mixed.length_B[:, None]


def _rotary(config: TransfusionConfig, mixed: Mixed, at_BL: jax.Array):
  """Rotary tables at these positions of each row."""
  one_document = jnp.ones_like(mixed.image_BS)
  place_BS = rows.rotary_positions(
    mixed.image_BS, mixed.patch_BS, one_document, config.image_positions
  )
  return config.rotary_tables(jnp.take_along_axis(place_BS, at_BL, axis=1, mode='clip'))


def text_phase(
  layout: Mapping[str, Any],
  config: TransfusionConfig,
  state: State,
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
  *,
  stop_id: int | None = None,
  num_tokens: int | None = None,
) -> State:
  """Draws text until no row is in text mode, or so many tokens a row.

  The closing bracket and the null id are never drawn; the opening one only where an image and its
  brackets still fit, and a place for it is left.

  Args:
    layout: from `transfusion.decode_params`.
    config: the model's.
    state: from `begin` or another phase.
    key_B: typed keys, one a row; a token is drawn from its row's key and its position.
    sampling: of text; guidance is a matter of images.
    stop_id: a row that draws it is done.
    num_tokens: to show text as it comes; None draws until there is none to draw.
  """

  def is_on(carry):
    count, state = carry
    within = True if num_tokens is None else count < num_tokens
    return within & jnp.any(state.mode_B == TEXT)

  def step(carry):
    count, state = carry
    return count + 1, _next_token(layout, config, state, key_B, sampling, stop_id)

  return jax.lax.while_loop(is_on, step, (jnp.int32(0), state))[1]


def _next_token(layout, config: TransfusionConfig, state: State, key_B, sampling, stop_id) -> State:
  mixed = state.mixed
  S, at_B = mixed.ids_BS.shape[1], mixed.length_B - 1
  token_B = jnp.take_along_axis(mixed.ids_BS, at_B[:, None], axis=1)[:, 0]
  x_BD = jnp.take(layout['token_embedding'], token_B, axis=0, mode='fill')
  hidden_BLD, kv = decode.decode_tokens(
    layout['stack'], config.stack(), x_BD[:, None], state.cache, at_B,
    rotary=_rotary(config, mixed, at_B[:, None]),
  )  # fmt: skip
  cache = decode.with_tokens(state.cache, kv, at_B)
  logits_BV = decode.logits_of(layout['head'], hidden_BLD[:, 0].T)
  drawn_B = _drawn(config, state, logits_BV, key_B, sampling)

  # A row whose last token opens an image draws nothing: its cache is now complete.
  is_text_B, opens_B = state.mode_B == TEXT, token_B == config.boi_id
  writes_B = is_text_B & ~opens_B & (mixed.length_B < S)
  here_BS = (jnp.arange(S) == mixed.length_B[:, None]) & writes_B[:, None]
  stops_B = ~writes_B if stop_id is None else ~writes_B | (drawn_B == stop_id)
  after_B = jnp.where(opens_B & _has_room(config, state), IMAGE, jnp.where(stops_B, DONE, TEXT))
  mixed = mixed.replace(
    ids_BS=jnp.where(here_BS, drawn_B[:, None], mixed.ids_BS),
    length_B=mixed.length_B + writes_B,
  )
  mode_B = jnp.where(is_text_B, after_B, state.mode_B)
  return State(mixed, mode_B, state.most_B, cache)


def _has_room(config: TransfusionConfig, state: State, opening: int = 0) -> jax.Array:
  """Whether a row has room for an image, its closing bracket and `opening` more positions."""
  mixed = state.mixed
  fits_B = mixed.length_B + opening + config.num_patches + 1 <= mixed.ids_BS.shape[1]
  return fits_B & (mixed.images_B < state.most_B)


def _drawn(config: TransfusionConfig, state: State, logits_BV, key_B, sampling) -> jax.Array:
  id_V = jnp.arange(logits_BV.shape[1])
  is_never_V = (id_V == config.eoi_id) | (id_V == config.null_id)
  is_opening_BV = (id_V == config.boi_id) & ~_has_room(config, state, 1)[:, None]
  logits_BV = jnp.where(is_never_V | is_opening_BV, -jnp.inf, logits_BV)
  key_B = jax.vmap(jax.random.fold_in)(key_B, state.mixed.length_B)
  return decoding.next_ids(logits_BV, 0, key_B, sampling)


def image_phase(
  layout: Mapping[str, Any],
  params: Params,
  config: TransfusionConfig,
  state: State,
  key_B: jax.Array,
  sampler: diffusion.SamplerConfig,
) -> State:
  """Draws the images that are due, puts them into their rows, and goes back to text.

  Under guidance every row comes a second time with null ids in place of the caption, the text
  between the image before and this one, as in training with `caption_dropout`; no position moves.

  Args:
    layout, params: the model's, for the Stack and for the patches.
    config: the model's.
    state: with rows in mode IMAGE.
    key_B: typed keys, one a row; noise comes from its row's key and the image's position.
    sampler: how images are drawn.
  """
  mixed, is_due_B = state.mixed, state.mode_B == IMAGE
  P, first_B = config.num_patches, state.mixed.length_B
  number_B = mixed.images_B + 1
  back_BS = jnp.arange(mixed.ids_BS.shape[1]) - first_B[:, None]
  inside_BS = (back_BS >= 0) & (back_BS < P) & is_due_B[:, None]
  placed = mixed.replace(
    image_BS=jnp.where(inside_BS, number_B[:, None], mixed.image_BS),
    patch_BS=jnp.where(inside_BS, back_BS, mixed.patch_BS),
  )
  rotary_B = _rotary(config, placed, first_B[:, None] + jnp.arange(P))
  guided = sampler.is_guided
  twice = lambda tree: jax.tree.map(lambda a: jnp.concatenate([a, a]), tree)
  cache_R, first_R, rotary_R = state.cache, first_B, rotary_B
  if guided:
    free = _free_cache(params, config, mixed, placed, decode.num_positions(state.cache))
    cache_R = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), state.cache, free)
    first_R, rotary_R = twice((first_B, rotary_B))
  apply = lambda *args, method: Transfusion(config).apply({'params': params}, *args, method=method)

  def through(x_RYXC, time, cache, first_R, rotary_R):
    """What is predicted of the images, and their keys and values."""
    time_R = jnp.full(x_RYXC.shape[0], time)
    tokens_RPD, remembered = apply(x_RYXC, time_R, method='encoded')
    hidden_RPD, kv = decode.decode_tokens(
      layout['stack'], config.stack(), tokens_RPD, cache, first_R,
      rotary=rotary_R, two_way=config.attention == 'bidirectional',
    )  # fmt: skip
    return apply(hidden_RPD, remembered, time_R, method='decoded'), kv

  times, updates = sampler.plan(config.num_timesteps)
  times, updates = jnp.asarray(times), jax.tree.map(jnp.asarray, updates)
  image_key_B = jax.vmap(jax.random.fold_in)(key_B, first_B)

  def noise(number):
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, number), config.latent_shape)
    return jax.vmap(draw)(image_key_B)

  def step(i, x_BYXC):
    x_RYXC = twice(x_BYXC) if guided else x_BYXC
    out, _ = through(x_RYXC, times[i], cache_R, first_R, rotary_R)
    if guided:
      out = diffusion.guided(*jnp.split(out, 2), sampler.guidance_scale)
    update = jax.tree.map(lambda a: a[i], updates)
    fresh = noise(i + 1) if sampler.is_random else None
    return diffusion.updated(x_BYXC, out, update, fresh, sampler.clip_x0)

  x_BYXC = jax.lax.fori_loop(0, sampler.steps, step, noise(0))
  _, kv = through(x_BYXC, config.given_timestep, state.cache, first_B, rotary_B)
  filled = decode.with_tokens(state.cache, kv, first_B)
  keep = lambda new, old: jnp.where(is_due_B[:, None, None, None], new, old)
  return State(
    _with_images(config, placed, x_BYXC, back_BS == P, is_due_B),
    jnp.where(is_due_B, TEXT, state.mode_B),
    state.most_B,
    jax.tree.map(keep, filled, state.cache),
  )


def _free_cache(params, config, mixed: Mixed, placed: Mixed, length: int) -> decode.Cache:
  """The context of each row's next image, its caption replaced by null ids."""
  index_I = jnp.arange(mixed.latent_BIYXC.shape[1])
  ids_BS, _ = rows.without_captions(
    mixed.ids_BS,
    placed.image_BS,
    jnp.ones_like(mixed.ids_BS),
    index_I == mixed.images_B[:, None],
    null_id=config.null_id,
    kept_ids=(config.boi_id, config.eoi_id),
  )
  return _context_cache(params, config, mixed, ids_BS, length)


def _with_images(config, placed: Mixed, x_BYXC, is_end_BS, is_due_B) -> Mixed:
  """The rows that were due with one image and its bracket more."""
  is_slot_BI = jnp.arange(placed.latent_BIYXC.shape[1]) == placed.images_B[:, None]
  is_slot_BI = (is_slot_BI & is_due_B[:, None])[..., None, None, None]
  return placed.replace(
    ids_BS=jnp.where(is_end_BS & is_due_B[:, None], config.eoi_id, placed.ids_BS),
    length_B=placed.length_B + jnp.where(is_due_B, config.num_patches + 1, 0),
    latent_BIYXC=jnp.where(is_slot_BI, x_BYXC[:, None], placed.latent_BIYXC),
    images_B=placed.images_B + is_due_B,
  )


def generate(
  layout: Mapping[str, Any],
  params: Params,
  config: TransfusionConfig,
  prompt: Mixed,
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
  sampler: diffusion.SamplerConfig,
  *,
  num_positions: int,
  num_images: int = 1,
  stop_id: int | None = None,
  stop_after_images: bool = False,
) -> Mixed:
  """The prompts with what follows them, text and images; jit it with all but the arrays static.

  Captioning is a prompt with an image and `num_images` 0 (`caption`); editing a prompt with an
  image and an instruction that ends with `config.boi_id`.

  Args:
    layout: from `transfusion.decode_params`.
    params, config: the model.
    prompt: from `prompts`.
    key_B: typed keys, one a row (`jaxmm.task.example_keys`).
    sampling: of text.
    sampler: of images; guidance needs a model that was trained with caption_dropout.
    num_positions: S, prompts and brackets included.
    num_images: more images that each row may draw.
    stop_id: a row that draws it is done.
    stop_after_images: a row is done with its `num_images`-th new image.

  Raises:
    ConfigError: guidance of text, or of images by a model without caption_dropout; a sampler of
      another objective; too many positions.
  """
  check_samplers(config, sampling, sampler)

  def images(state: State) -> State:
    state = image_phase(layout, params, config, state, key_B, sampler)
    if not stop_after_images:
      return state
    return state.replace(mode_B=jnp.where(state.mixed.images_B >= state.most_B, DONE, state.mode_B))

  def both(state: State) -> State:
    state = text_phase(layout, config, state, key_B, sampling, stop_id=stop_id)
    if num_positions <= config.num_patches:
      return state  # no room for an image, so that none is due
    return jax.lax.cond(jnp.any(state.mode_B == IMAGE), images, lambda state: state, state)

  state = begin(params, config, prompt, num_positions, num_images)
  return jax.lax.while_loop(lambda state: jnp.any(state.mode_B != DONE), both, state).mixed


def check_samplers(
  config: TransfusionConfig, sampling: decoding.SamplingConfig, sampler: diffusion.SamplerConfig
) -> None:
  """Whether this model can be sampled so; raises ConfigError."""
  if sampling.is_guided:
    raise ConfigError(
      f'guidance_scale of text is {sampling.guidance_scale}, but only images are guided; use 1'
    )
  if sampler.is_guided and config.caption_dropout == 0:
    raise ConfigError(
      f'guidance_scale is {sampler.guidance_scale}, but model.caption_dropout is 0: this model '
      'never saw an image without its caption; use guidance_scale=1 or train with caption_dropout'
    )
  if (sampler.method == 'euler') != (config.objective == 'flow'):
    known = 'euler' if config.objective == 'flow' else 'ancestral or ddim'
    raise ConfigError(
      f'method is {sampler.method!r}, but model.objective is {config.objective!r}: use {known}'
    )


def caption(
  layout: Mapping[str, Any],
  params: Params,
  config: TransfusionConfig,
  latent_BYXC: jax.Array,
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
  num_tokens: int,
  *,
  stop_id: int | None = None,
  before: tuple[int, ...] = (),
) -> jax.Array:
  """Text that follows each image, int32 [B, num_tokens]; null ids after a row's end.

  Args:
    layout, params, config: the model.
    latent_BYXC: clean latents of unit variance.
    key_B: typed keys, one a row.
    sampling: of text.
    num_tokens: at most so many tokens of each row.
    stop_id: what ends a row; it is the last token shown.
    before: ids in front of the image (the document's first token).
  """
  B, P = latent_BYXC.shape[0], config.num_patches
  head, num = jnp.array([*before, config.boi_id], jnp.int32), len(before) + P + 2
  zeros = lambda n: jnp.zeros(n, jnp.int32)
  row = lambda *parts: jnp.broadcast_to(jnp.concatenate(parts), (B, num))
  prompt = Mixed(
    row(head, zeros(P), jnp.array([config.eoi_id], jnp.int32)),
    row(zeros(len(head)), zeros(P) + 1, zeros(1)),
    row(zeros(len(head)), jnp.arange(P), zeros(1)),
    jnp.full(B, num),
    latent_BYXC[:, None],
    jnp.ones(B, jnp.int32),
  )
  state = begin(params, config, prompt, num + num_tokens, 0)
  mixed = text_phase(layout, config, state, key_B, sampling, stop_id=stop_id).mixed
  return jnp.where(_is_filled(mixed), mixed.ids_BS, config.null_id)[:, num:]
