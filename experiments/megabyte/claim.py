"""MEGABYTE's central claim in miniature: metric, sign, test and threshold, before it is run.

Claim (arXiv:2305.07185, section 4): trained with the same compute on the same data, MEGABYTE with a
long context models bytes better than a plain byte transformer, whose context has to be an eighth of
it: books 1.000 bits a byte against 1.057, pictures 3.158 against 3.801.

Books are whole ones, pictures CIFAR-10 at 16 x 16 pixels as raw bytes: in patch scan for MEGABYTE,
as in the paper, in raster order for the transformer. Both arms of a pair spend the same FLOPs, by
the formulas of their Tasks, some 6e12. The paper has no text model below some hundred million
parameters; that small ones do as well is what is asked here.

Batch sizes and learning rates are the best of pilots on seed 100, which is not judged; README.md
has them. They let expect that MEGABYTE wins on books and loses on pictures, and that on books, too,
it loses to blocks as used today.
"""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.config import ConfigError
from jaxmm.data import byte_images, pipeline
from jaxmm.studies import models_claim
from jaxmm.studies.models import DATA, Prepared
from jaxmm.studies.models_claim import Arm, ModelsClaim
from jaxmm.studies.verdict import Claim, Criterion

CLAIM = Claim(
  paper='megabyte',
  sentence='With the same compute on the same bytes, a transformer over patches with a long '
  'context needs fewer bits a byte than a plain one of the same blocks with an eighth of it, on '
  'books and pictures.',
  criteria=(
    Criterion(
      'fewer bits a byte of books',
      metric='bits_per_byte', arm='books_megabyte', against='books_transformer', claimed='below',
      unit='bits a byte',
    ),
    Criterion(
      'fewer bits a byte of pictures',
      metric='bits_per_byte', arm='pictures_megabyte', against='pictures_transformer',
      claimed='below', unit='bits a byte',
    ),
    Criterion(
      'reported: books, against a plain transformer of blocks as used today',
      metric='bits_per_byte', arm='books_megabyte', against='books_llama', claimed='below',
      unit='bits a byte', is_reported=True,
    ),
  ),
)  # fmt: skip

DEPARTURES = (
  'Models of 1 to 4 million parameters on 22 books and 16 x 16 pictures, not of a billion on 80 '
  'billion bytes.',
  'Contexts of 2,048 bytes (a picture: 768) against 256 (96), not of 8,192 against 1,024.',
  'No cross-patch attention, whose r the paper does not say; no strided inference.',
  'The plain transformer is of the blocks that MEGABYTE is of (layer norm, ReLU, learned '
  'positions); one of gated MLPs and rotary positions is reported beside it.',
  'The transformer is not asked for the first byte of a row, MEGABYTE is asked for all.',
)

# Bytes of a patch of pictures: 2 x 2 pixels, as of the paper's 64 x 64 ones.
PATCH = 12
_SIDE, _CHANNELS = 16, 3
SPLITS = ('train', 'test')
# Of each held-out book, and pictures: enough to tell a hundredth of a bit.
HELD_OUT_BYTES, HELD_OUT = 1 << 16, 512
_SHARED = (
  'data.name=bytes', 'model.dropout=0.0', 'checkpoint.every=500', 'log.every=50',
  'optimizer.model.warmup=50',
)  # fmt: skip


def _of_rows(length: int, batch: int) -> tuple[str, ...]:
  return (f'data.bytes.length={length}', f'model.length={length}', f'batch={batch}')


def prepared(path: pathlib.Path | None, scale: float) -> Prepared:
  """Books and pictures as files of bytes, held-out ones cut to what is judged; a folder a split."""
  del scale
  texts = {} if path is None else {s: sorted((path / 'books' / s).glob('*')) for s in SPLITS}
  if not all(texts.get(split) for split in SPLITS):
    raise ConfigError(
      f'megabyte needs --data-path, got {path}: a folder with books/train/* and books/test/* (any '
      'long texts), and pictures.zip (train/CLASS/*, test/CLASS/*) or none for CIFAR-10 from TFDS'
    )
  own = next(iter(sorted(path.glob('pictures*'))), None)
  of = dict(name='images', path=str(own)) if own else dict(name='cifar10')

  def write(directory: pathlib.Path) -> Mapping[str, Any]:
    return {
      split: _write_books(texts[split], split, directory) | _write_pictures(of, split, directory)
      for split in SPLITS
    }

  settings = {'books': [f.name for s in SPLITS for f in texts[s]], 'pictures': own and own.name}
  return Prepared(write, settings | {'patch': PATCH, 'held_out': [HELD_OUT_BYTES, HELD_OUT]})


def _write_books(files: Sequence[pathlib.Path], split: str, directory: pathlib.Path):
  to = directory / 'books' / split
  to.mkdir(parents=True, exist_ok=True)
  size = 0
  for file in files:
    data = file.read_bytes()
    size += (to / file.name).write_bytes(data[:HELD_OUT_BYTES] if split == 'test' else data)
  return {'books': len(files), 'bytes of books': size}


def _write_pictures(of: Mapping[str, str], split: str, directory: pathlib.Path) -> dict[str, int]:
  config = pipeline.DataConfig(
    **of, split=split, image_size=_SIDE, channels=_CHANNELS, crop='resize',
    max_records=HELD_OUT if split == 'test' else None,
  )  # fmt: skip
  batches = pipeline.make_batches(config, batch_size=256, seed=0, train=False)
  files, number = {}, 0
  for order in ('raster', 'patch'):
    (directory / order / split).mkdir(parents=True, exist_ok=True)
    files[order] = open(directory / order / split / 'pictures.bin', 'wb')
  try:
    for batch in batches.once():
      images = batch['image_BYXC'][batch['valid_B'] > 0]
      files['raster'].write(byte_images.raster_bytes(images).tobytes())
      files['patch'].write(byte_images.patch_scan(images, PATCH).tobytes())
      number += len(images)
  finally:
    for file in files.values():
      file.close()
  return {'pictures': number, 'bytes of pictures': number * _SIDE * _SIDE * _CHANNELS}


_BOOKS = (f'data.path={DATA}/books',)
# In the Task of the plain transformer a token is a byte.
_IN_BYTES = {'bits_per_token': 'bits_per_byte'}

# The blocks that the paper's models are made of.
_SAME_BLOCKS = (
  'model.mlp=relu', 'model.norm=layer', 'model.bias=True', 'model.positions=learned',
  'model.hidden=512', 'model.init_std=0.06', 'model.tied_head=True',
)  # fmt: skip
_RATE = 'optimizer.model.learning_rate'

STUDY = ModelsClaim(
  claim=CLAIM,
  arms={
    'books_transformer': Arm(
      'lm/mini.py', (*_SHARED, 'steps=900', *_of_rows(256, 4), *_SAME_BLOCKS, *_BOOKS),
      names=_IN_BYTES,
    ),
    'books_megabyte': Arm(
      'megabyte/mini.py', (*_SHARED, *_of_rows(2048, 1), 'data.bytes.align=8', *_BOOKS),
      equal_to='books_transformer',
    ),
    'books_llama': Arm(
      'lm/mini.py', (*_SHARED, *_of_rows(256, 4), f'{_RATE}=4e-3', *_BOOKS),
      equal_to='books_transformer', names=_IN_BYTES,
    ),
    'pictures_transformer': Arm(
      'lm/mini.py',
      (*_SHARED, 'steps=700', *_of_rows(96, 16), *_SAME_BLOCKS, f'data.path={DATA}/raster'),
      names=_IN_BYTES,
    ),
    'pictures_megabyte': Arm(
      'megabyte/mini.py',
      (*_SHARED, *_of_rows(768, 4), 'data.bytes.align=12', f'model.patch={PATCH}',
       'model.global_width=264', f'{_RATE}=1e-3', f'data.path={DATA}/patch'),
      equal_to='pictures_transformer',
    ),
  },
  seeds=(1, 2, 3),
  title='Do patches of bytes with a long context beat bytes with a short one?',
  subtitle='MEGABYTE (arXiv:2305.07185) in miniature on books and pictures',
  departures=DEPARTURES,
  prepared=prepared,
)  # fmt: skip

# What `jaxmm reproduce megabyte` calls.
run = functools.partial(models_claim.run, STUDY)
