"""Whose caption is dropped, in rows written out by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.models import mixed_rows

BOI, EOI, NULL = 8, 9, 10
# Two images of one patch behind the text 1 2, text 3 behind them; a third in a document of its own.
IDS = [1, 2, BOI, 0, EOI, BOI, 0, EOI, 3, 4, BOI, 0, EOI]
IMAGE = [0, 0, 0, 1, 0, 0, 2, 0, 0, 0, 0, 3, 0]
SEGMENT = [1] * 9 + [2] * 4


@pytest.mark.parametrize(
  'dropped, nulls, lossless',
  [
    (0, [0, 1], [0, 1, 2]),  # the text of all images of its document, and its own bracket
    (1, [], [4, 5]),  # the brackets between the images, no text
    (2, [9], [9, 10]),
  ],
)
def test_a_text_before_several_images_is_the_caption_of_the_first(dropped, nulls, lossless):
  row = lambda values: jnp.asarray([values], jnp.int32)
  ids, lost = mixed_rows.without_captions(
    row(IDS), row(IMAGE), row(SEGMENT), jnp.arange(3)[None] == dropped, null_id=NULL,
    kept_ids=(BOI, EOI),
  )  # fmt: skip
  expected = np.array(IDS)
  expected[nulls] = NULL
  assert ids[0].tolist() == expected.tolist()
  assert np.flatnonzero(lost[0]).tolist() == lossless
