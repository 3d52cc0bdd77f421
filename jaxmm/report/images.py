"""Images on a page: grids and labelled rows, as PNG inside the HTML.

Axes: B images, Y rows, X columns, C channels (1 or 3). Images are uint8 in [0, 255]; floats are
refused, because whether they lie in [0, 1] or [-1, 1] cannot be told from the array.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxmm.report.markup import Html, element, joined


def png_data(image_YXC: np.ndarray) -> str:
  """One uint8 image as the `data:` address of a PNG, lossless."""
  image = np.asarray(image_YXC)
  if image.dtype != np.uint8 or image.ndim != 3 or image.shape[-1] not in (1, 3):
    raise ValueError(
      f'an image is {image.dtype} {image.shape}, expected uint8 [rows, columns, 1 or 3]'
    )
  picture = Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
  stream = io.BytesIO()
  picture.save(stream, 'PNG', optimize=True)
  return 'data:image/png;base64,' + base64.b64encode(stream.getvalue()).decode('ascii')


def tiled(image_BYXC: np.ndarray, columns: int, gap: int = 1) -> np.ndarray:
  """One image [Y', X', C] of all of them in reading order; gaps and missing tiles are mid-grey."""
  images = np.asarray(image_BYXC)
  if images.ndim != 4 or not len(images):
    raise ValueError(f'images have shape {images.shape}, expected [B, rows, columns, channels]')
  count, height, width, channels = images.shape
  rows = -(-count // columns)
  canvas = np.full(
    (rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 128, np.uint8
  )
  for i, image in enumerate(images):
    y, x = (i // columns) * (height + gap), (i % columns) * (width + gap)
    canvas[y : y + height, x : x + width] = image
  return canvas


def image_grid(
  image_BYXC: np.ndarray,
  *,
  columns: int = 8,
  labels: Sequence[Any] | None = None,
  title: str = '',
) -> Html:
  """A grid of images in reading order; with `labels` (one an image) each tile carries its own."""
  images = np.asarray(image_BYXC)
  head = element('div', title, class_='chart-title') if title else Html('')
  if labels is None:
    tiles = tiled(images, min(columns, max(len(images), 1)))
    img = element('img', src=png_data(tiles), alt=title or 'image grid', class_='pixels')
    return element('div', head, img, class_='chart')
  if len(labels) != len(images):
    raise ValueError(f'{len(labels)} labels for {len(images)} images')
  cells = [
    element(
      'div', element('img', src=png_data(image), alt=label, class_='pixels'),
      element('span', label), class_='tile',
    )
    for image, label in zip(images, labels, strict=True)
  ]  # fmt: skip
  style = f'grid-template-columns:repeat({columns},minmax(0,1fr))'
  return element('div', head, element('div', *cells, class_='tiles', style=style), class_='chart')


def image_rows(rows: Mapping[str, np.ndarray], *, title: str = '') -> Html:
  """Rows of images under one another, a label before each: originals above their reconstructions.

  Args:
    rows: label -> uint8 [B, Y, X, C], the same number of images in each row, in the same order.
  """
  counts = {name: len(images) for name, images in rows.items()}
  if len(set(counts.values())) != 1:
    raise ValueError(f'rows must hold the same number of images, got {counts}')
  cells = []
  for name, images in rows.items():
    cells.append(element('div', name, class_='row-label'))
    strip = png_data(tiled(images, counts[name]))
    cells.append(element('img', src=strip, alt=name, class_='pixels'))
  # Narrow screens scroll the strips sideways instead of shrinking the images to dots.
  style = f'min-width:{max(counts.values()) * 34 + 96}px'
  grid = element('div', *cells, class_='rows', style=style)
  head = element('div', title, class_='chart-title') if title else Html('')
  return joined(element('div', head, element('div', grid, class_='scroll'), class_='chart'))
