"""Rows of text and images by hand, in the shape that `models.transfusion` trains on."""

import jax.numpy as jnp
import numpy as np


def mixed_batch(config, rows, length, num_images, index=100, seed=0):
  """A batch of rows; a row is a list of documents, a document a list of ids and 'image's.

  Images are random; they get their brackets, numbers, and weights as the model's docstring says.
  """
  B, P = len(rows), config.num_patches
  batch = {
    name: np.zeros((B, length), np.int32)
    for name in ('ids_BL', 'image_BL', 'patch_BL', 'segment_BL')
  }
  batch['weight_BL'] = np.zeros((B, length), np.float32)
  shape = (B, num_images, *config.latent_shape)
  batch['latent_BIYXC'] = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
  batch['image_valid_BI'] = np.zeros((B, num_images), np.float32)
  batch['is_image_first_BI'] = np.zeros((B, num_images), np.float32)
  for b, documents in enumerate(rows):
    at, image = 0, 0
    for segment, document in enumerate(documents, 1):
      first = at
      for item in document:
        if item == 'image':
          batch['ids_BL'][b, at] = config.boi_id
          batch['weight_BL'][b, at] = at > first
          image += 1
          batch['image_BL'][b, at + 1 : at + 1 + P] = image
          batch['patch_BL'][b, at + 1 : at + 1 + P] = np.arange(P)
          batch['image_valid_BI'][b, image - 1] = 1
          batch['is_image_first_BI'][b, image - 1] = document.index('image') == 0
          batch['ids_BL'][b, at + 1 + P] = config.eoi_id
          at += P + 2
        else:
          batch['ids_BL'][b, at] = item
          batch['weight_BL'][b, at] = at > first
          at += 1
      batch['segment_BL'][b, first:at] = segment
    assert at <= length and image <= num_images
  batch['index_B'] = np.arange(index, index + B, dtype=np.uint32)
  batch['valid_B'] = np.ones(B, np.float32)
  return {name: jnp.asarray(a) for name, a in batch.items()}
