"""Rows of mixed sequences: where an image's patches stand, what its caption is, who sees whom.

A row holds text ids and the patches of images; `image_BL` is 0 on text and i on the patches of the
row's i-th image, `patch_BL` their number in raster order, `segment_BL` the document (0 is padding).

Axes: B rows, L positions, I images of a row, P patches of an image, D width.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxmm.core import masks, positions

ATTENTIONS = ('bidirectional', 'causal')
IMAGE_POSITIONS = ('flat', 'shared')


def attention_mask(
  image_BL: jax.Array, segment_BL: jax.Array | None, attention: str, num_patches: int
) -> masks.Mask:
  """Causal, both ways within an image if 'bidirectional', within documents if there are several.

  The patches of an image stand next to one another, P of them.
  """
  mask = masks.Causal()
  if attention == 'bidirectional':
    mask = masks.Reach(last_of_image(image_BL), num_patches - 1)
  return mask if segment_BL is None else mask & masks.Segments(segment_BL)


def last_of_image(image_BL: jax.Array) -> jax.Array:
  """Where the image ends that a position is of, int32 [B, L]; of text its own place."""
  place_L = jnp.arange(image_BL.shape[1], dtype=jnp.int32)
  next_BL = jnp.pad(image_BL[:, 1:], ((0, 0), (0, 1)))
  is_last_BL = (image_BL == 0) | (image_BL != next_BL)
  end_BL = jnp.where(is_last_BL, place_L, image_BL.shape[1])
  return jax.lax.cummin(end_BL, axis=1, reverse=True)


def rotary_positions(
  image_BL: jax.Array, patch_BL: jax.Array, segment_BL: jax.Array, image_positions: str
) -> jax.Array:
  """How far each position stands from its document's first, int32 [B, L].

  'flat' counts every position; 'shared' counts an image once, all its patches standing where its
  first one does.
  """
  place_BL = positions.in_segments(segment_BL)
  if image_positions == 'flat':
    return place_BL
  counted_BL = jnp.cumsum((image_BL == 0) | (patch_BL == 0), axis=1, dtype=jnp.int32)
  first_BL = jnp.arange(image_BL.shape[1]) - place_BL
  return counted_BL - jnp.take_along_axis(counted_BL, first_BL, axis=1)


def in_sequence(tokens_BIPD: jax.Array, image_BL: jax.Array, patch_BL: jax.Array) -> jax.Array:
  """Each position's patch, [B, L, D]; anything where there is none."""
  B, I, P, D = tokens_BIPD.shape
  index_BL = jnp.clip((image_BL - 1) * P + patch_BL, 0, I * P - 1)
  flat = tokens_BIPD.reshape(B, I * P, D)
  return jnp.take_along_axis(flat, index_BL[..., None], axis=1)


def in_images(
  x_BLD: jax.Array, image_BL: jax.Array, patch_BL: jax.Array, num_images: int, num_patches: int
) -> jax.Array:
  """Each patch's position, [B, I, P, D]: the inverse of `in_sequence`; zeros for missing ones."""
  B, L, D = x_BLD.shape
  total = num_images * num_patches
  index_BL = jnp.where(image_BL > 0, (image_BL - 1) * num_patches + patch_BL, total)
  # What stands where: L where nothing does, which `fill` turns into zeros.
  place = lambda index_L: jnp.full(total, L).at[index_L].set(jnp.arange(L), mode='drop')
  place_BS = jax.vmap(place)(index_BL)
  out = jnp.take_along_axis(x_BLD, place_BS[..., None], axis=1, mode='fill', fill_value=0)
  return out.reshape(B, num_images, num_patches, D)


def next_image(image_BL: jax.Array, segment_BL: jax.Array) -> jax.Array:
  """The first image of its document that begins after a text position, int32 [B, L].

  0 where there is none, and on patches.
  """
  L = image_BL.shape[1]
  place_L = jnp.arange(L, dtype=jnp.int32)
  at_BL = jnp.where(image_BL > 0, place_L, L)
  at_BL = jax.lax.cummin(at_BL, axis=1, reverse=True)
  return _of_same_document(at_BL, image_BL, segment_BL)


def last_image(image_BL: jax.Array, segment_BL: jax.Array) -> jax.Array:
  """The last image of its document that ended before a text position, int32 [B, L]; else 0."""
  place_L = jnp.arange(image_BL.shape[1], dtype=jnp.int32)
  at_BL = jax.lax.cummax(jnp.where(image_BL > 0, place_L, -1), axis=1)
  return _of_same_document(at_BL, image_BL, segment_BL)


def _of_same_document(at_BL, image_BL, segment_BL):
  L = image_BL.shape[1]
  inside = (at_BL >= 0) & (at_BL < L) & (image_BL == 0) & (segment_BL > 0)
  at_BL = jnp.clip(at_BL, 0, L - 1)
  found_BL, segment_there_BL = (
    jnp.take_along_axis(a, at_BL, axis=1) for a in (image_BL, segment_BL)
  )
  return jnp.where(inside & (segment_there_BL == segment_BL), found_BL, 0)


def kinds_of_text(image_BL: jax.Array, segment_BL: jax.Array) -> dict[str, jax.Array]:
  """Masks [B, L] of the text in documents without an image, and behind one (as a caption is)."""
  is_text_BL = image_BL == 0
  after_BL = last_image(image_BL, segment_BL) > 0
  before_BL = next_image(image_BL, segment_BL) > 0
  return {'text': is_text_BL & ~after_BL & ~before_BL, 'after_image': is_text_BL & after_BL}


def of_image(value_BI: jax.Array, image_BL: jax.Array) -> jax.Array:
  """Each position's value of its image; of the first for positions without one."""
  index_BL = jnp.clip(image_BL - 1, 0, value_BI.shape[1] - 1)
  return jnp.take_along_axis(value_BI, index_BL, axis=1)


def without_captions(
  ids_BL: jax.Array,
  image_BL: jax.Array,
  segment_BL: jax.Array,
  dropped_BI: jax.Array,
  *,
  null_id: int,
  kept_ids: tuple[int, ...],
) -> tuple[jax.Array, jax.Array]:
  """Ids with the captions of some images replaced, and where (bool [B, L]) text has no loss for it.

  An image's caption is the text of its document between the image before it, or the document's
  beginning, and itself. Of several images behind one text only the first has it as its caption:
  when that is dropped, the later ones lose it, too, and a drop for a later one takes no text at
  all. The ids of a dropped caption become `null_id`, so that no position moves; `kept_ids` (the
  brackets around images) stay, though as targets they too are without loss.
  """
  caption_of_BL = next_image(image_BL, segment_BL)
  dropped_BL = (caption_of_BL > 0) & of_image(dropped_BI, caption_of_BL)
  is_kept = jnp.zeros_like(dropped_BL)
  for kept in kept_ids:
    is_kept = is_kept | (ids_BL == kept)
  return jnp.where(dropped_BL & ~is_kept, null_id, ids_BL), dropped_BL
