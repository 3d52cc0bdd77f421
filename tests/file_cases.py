"""Tasks that read files, in miniature: MEGABYTE on bytes, Transfusion on captioned pictures.

Both with everything on that draws: dropout, and of Transfusion noise, timesteps, dropped captions
and clean images.
"""

import json
import pathlib
import wave
from typing import Any

import numpy as np
from PIL import Image

from jaxmm import config as configs
from jaxmm.data.array_store import ArrayStoreWriter
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.models import megabyte, transfusion
from tests import real_cases

PATCH, ROW = 4, 48  # bytes
NUM_PICTURES, SIDE, CHANNELS = 40, 4, 3  # of latents
DAMAGED = 7  # the picture that could not be read when the latents were made
WORDS = ('a', 'big', 'dog', 'and', 'two', 'red', 'cats', 'on', 'the', 'mat')
MEGABYTE = dict(
  size='micro', global_width=32, global_heads=2, local_width=16, patch=PATCH, length=ROW,
  cross_patch=2, conv_encoder=True, separate_documents=True, local_chunk=4, init_std=0.05,
  dropout=0.1,
)  # fmt: skip
# A bias of keys that have no rotation moves nothing: its gradient is rounding alone, of 1e-11 and
# less, which Adam with its usual eps of 1e-8 makes steps of that show.
ADAMW = dict(real_cases.ADAMW, eps=1e-6, schedule='cosine', warmup=3)
TRANSFUSION = dict(
  size='micro', width=32, num_heads=4, length=ROW, latent_size=SIDE, latent_channels=CHANNELS,
  num_timesteps=50, noise_limit=25, caption_dropout=0.25, clean_rate=0.25, token_dropout=0.1,
  dropout=0.1,
)  # fmt: skip


def text(rng: np.random.Generator, num_words: int) -> str:
  """Words in a row."""
  return ' '.join(rng.choice(WORDS, num_words))


def _write_bytes(folder: pathlib.Path) -> None:
  """Texts, sound, and files of all bytes, of many lengths; one file is damaged."""
  rng = np.random.default_rng(0)
  for split, number in (('train', 60), ('test', 25)):
    (folder / split).mkdir()
    for i in range(number):
      (folder / split / f'{i:02}.txt').write_text(text(rng, int(rng.integers(1, 30))))
    (folder / split / 'any').write_bytes(rng.integers(0, 256, 150, np.uint8).tobytes())
    with wave.open(str(folder / split / 'sound.wav'), 'wb') as sound:
      sound.setparams((1, 2, 8000, 0, 'NONE', ''))
      sound.writeframes(np.cumsum(rng.integers(-50, 51, 99)).astype('<i2').tobytes())
    (folder / split / 'damaged.wav').write_bytes(b'RIFF')


def byte_batches(split: str):
  """A function of (process, processes) to Batches of bytes."""

  def make(index: int, count: int):
    settings = {'length': ROW, 'packing': 'first_fit', 'align': PATCH}
    folder = real_cases.directory('bytes', _write_bytes)
    return _batches('bytes', folder, split, index, count, bytes=settings)

  return make


def _write_pictures(folder: pathlib.Path) -> None:
  """Pictures (their names alone matter), captions, texts, and latents of two views, of which those
  of one picture could not be made."""
  rng = np.random.default_rng(1)
  (folder / 'pictures').mkdir()
  records = []
  for i in range(NUM_PICTURES):
    Image.new('RGB', (8, 8)).save(folder / 'pictures' / f'{i:02}.png')
    images = [f'{i:02}.png', f'{(i + 1) % NUM_PICTURES:02}.png'] if i % 8 == 0 else f'{i:02}.png'
    records.append({'image': images, 'caption': text(rng, 1 + i % 3) if i % 9 else ''})
  (folder / 'captions.jsonl').write_text('\n'.join(map(json.dumps, records)))
  (folder / 'texts.jsonl').write_text(
    '\n'.join(json.dumps({'text': text(rng, int(rng.integers(1, 20)))}) for _ in range(30))
  )
  shape = (2, SIDE, SIDE, CHANNELS)
  fields = {'latents': (shape, 'float32'), 'label': ((), 'int32'), 'valid': ((), 'bool')}
  writer = ArrayStoreWriter(folder / 'latents', fields, NUM_PICTURES, NUM_PICTURES, {})
  number_N = np.arange(NUM_PICTURES)
  mean_N = rng.standard_normal(NUM_PICTURES)
  latents = mean_N.reshape(-1, 1, 1, 1, 1) + rng.standard_normal((NUM_PICTURES, *shape))
  rows = {'latents': np.float32(latents), 'label': 0 * number_N, 'valid': number_N != DAMAGED}
  writer.write_shard(0, rows)


def mixed_batches(split: str):
  """A function of (process, processes) to Batches of pictures and text."""

  def make(index: int, count: int):
    folder = real_cases.directory('mixed', _write_pictures)
    mixed = {
      'captions': str(folder / 'captions.jsonl'), 'text_path': str(folder / 'texts.jsonl'),
      'latents': str(folder / 'latents'), 'length': ROW, 'patches': 4, 'boi_id': 259,
      'eoi_id': 260, 'caption_first': 0.5,
    }  # fmt: skip
    ids = {'bos_id': 257, 'eos_id': 258, 'pad_id': 256}
    of = {'mixed': mixed, 'text': ids, 'max_bad_fraction': 0.4, 'test_fraction': 0.3}
    return _batches('mixed', folder / 'pictures', split, index, count, **of)

  return make


def _batches(name: str, path: pathlib.Path, split: str, index: int, count: int, **settings: Any):
  values = {'name': name, 'path': str(path), 'split': split, 'max_bad_fraction': 0.2, 'threads': 0}
  return make_batches(
    configs.from_mapping(DataConfig, values | settings, 'data'),
    batch_size=real_cases.BATCH, seed=7, process_index=index, process_count=count,
    train=split == 'train',
  )  # fmt: skip


def case(name: str) -> dict[str, Any]:
  """What `tests.train_cases.TrainCase` needs of the case `name`."""
  module, model, batches = {
    'megabyte': (megabyte, MEGABYTE, byte_batches),
    'transfusion': (transfusion, TRANSFUSION, mixed_batches),
  }[name]
  return dict(
    name=name,
    make_task=lambda: module.make_task(model),
    make_batches=batches('train'),
    make_eval=batches('test'),
    config=dict(
      real_cases.RUN,
      task=module.__name__,
      model=model,
      optimizer=dict(model=ADAMW),
      ema=0.9,
    ),
  )
