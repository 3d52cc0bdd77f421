"""What each variant sees, by changing what it must not see; `transfusion_test` does so in detail
for the model of the paper."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.models.transfusion import Transfusion, config_of
from tests.mixed_rows import mixed_batch
from tests.models.transfusion_test import (
  IMAGE,
  TINY,
  VARIANTS,
  I,
  L,
  changed,
  random_params,
  rows_of,
)


@pytest.mark.parametrize('name', ['shared', 'unet'])
def test_no_variant_sees_what_is_later(name):
  """1 [image 1] 2 [image 2] 3."""
  config = config_of({**TINY, **VARIANTS[name]})
  batch = mixed_batch(config, [[[1, IMAGE, 2, IMAGE, 3]]], L, I)
  params = random_params(config)
  run = jax.jit(
    lambda *row: Transfusion(config).apply({'params': params}, *row, jnp.full((1, I), 20))
  )

  def seen_of(**moved):
    """Positions of text and images that a change moves."""
    rows = {**batch, **moved}
    (text, images), (old_text, old_images) = (
      run(*rows_of(b), b['latent_BIYXC']) for b in (rows, batch)
    )
    return changed(text[0], old_text[0]), changed(images[0], old_images[0])

  image = np.asarray(batch['image_BL'][0])
  first, second = (np.flatnonzero(image == i).tolist() for i in (1, 2))
  last = second[-1] + 2
  # A text sees itself and what is before it, a patch also the whole of its image.
  latents, ids = batch['latent_BIYXC'], batch['ids_BL']
  assert seen_of(ids_BL=ids.at[0, last].set(4)) == ([last], [])
  assert seen_of(ids_BL=ids.at[0, 0].set(4)) == (list(range(last + 1)), [0, 1])
  between = list(range(first[-1] + 2, last + 1))
  assert seen_of(ids_BL=ids.at[0, between[0]].set(4)) == (between, [1])
  assert seen_of(latent_BIYXC=latents.at[0, 1].add(1)) == (list(range(second[0], last + 1)), [1])
  assert seen_of(latent_BIYXC=latents.at[0, 0].add(1)) == (list(range(first[0], last + 1)), [0, 1])
