"""The real Tasks in miniature: a tokenizer with every term of its loss, a VAE, and an image LM."""

import atexit
import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.data.array_store import ArrayStoreWriter
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.data.sources import ArraySource, UnreadableRecord
from jaxmm.models import image_lm
from jaxmm.tokenizers import discriminator, quantizer, vae_task, vqgan_task

SIDE, CODES, GRID, CLASSES = 8, 24, 4, 3
BATCH = 16
PICTURES = 18  # the draw that is trained on; which one matters, see `margins`

NETWORK = dict(
  channels=8,
  multipliers=(1, 1),
  res_blocks=1,
  attention=False,
  z_channels=8,
  norm_groups=2,
)
REGULARIZER = dict(weight=4.0, ramp_steps=5, width=16, heads=4, hidden=16)
ADVERSARIAL = dict(start=2, discriminator=dict(channels=8, layers=1, norm='group'))
RUN = dict(
  steps=20, batch=BATCH, checkpoint=dict(every=4), log=dict(every=3), evaluate=dict(every=10)
)
ADAMW = dict(name='adamw', learning_rate=1e-3, b1=0.9, b2=0.95, clip=1.0)


def pictures(rows: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
  """(image_NYXC uint8, label_N): a disc, a square or a stripe (the class) in two colours."""
  rng = np.random.default_rng(seed)
  y, x = np.mgrid[:SIDE, :SIDE]
  label_N, images = rng.integers(0, CLASSES, rows), []
  for label in label_N:
    centre, colours = rng.uniform(2, SIDE - 2, 2), rng.integers(0, 256, (2, 3))
    dy, dx = y - centre[0], x - centre[1]
    distance = (np.hypot(dy, dx), np.maximum(abs(dy), abs(dx)), abs(dy))[label]
    noise = rng.integers(-12, 13, (SIDE, SIDE, 3))
    image = np.where((distance < SIDE / 4)[..., None], *colours) + noise
    images.append(np.clip(image, 0, 255))
  return np.stack(images).astype(np.uint8), label_N


class Damaged(ArraySource):
  """Every 17th record cannot be read."""

  def __getitem__(self, i: int) -> dict[str, Any]:
    if i % 17 == 16:
      raise UnreadableRecord('its bytes are damaged')
    return super().__getitem__(i)


def image_batches(rows: int, seed: int, train: bool):
  """A function of (process, processes) to Batches of pictures, a few of them unreadable."""
  config = DataConfig(
    name='arrays', image_size=SIDE, channels=3, crop='none', flip=train, num_classes=CLASSES,
    max_bad_fraction=0.2, threads=0,
  )  # fmt: skip
  source = Damaged(*pictures(rows, seed))
  return lambda index, count: make_batches(
    config, batch_size=BATCH, seed=7, process_index=index, process_count=count, train=train,
    source=source,
  )  # fmt: skip


# One directory for a test process and those that it starts: the log names files.
_FILES = 'JAXMM_TEST_FILES'
if _FILES not in os.environ:
  os.environ[_FILES] = tempfile.mkdtemp(prefix='jaxmm-cases-')
  atexit.register(shutil.rmtree, os.environ[_FILES], ignore_errors=True)


def directory(name: str, write: Callable[[pathlib.Path], None]) -> pathlib.Path:
  """The directory of that name, made by `write` where it is not there yet; several processes may
  ask for it at once."""
  path = pathlib.Path(os.environ[_FILES], name)
  if not path.is_dir():
    made = path.with_name(f'{name}.{os.getpid()}')
    made.mkdir()
    write(made)
    with contextlib.suppress(OSError):  # another process was faster
      made.rename(path)
  return path


def _write_stores(directory: pathlib.Path) -> None:
  """Stores of both splits with two views a row, of codes that have something to learn: a class's
  own walk over the codebook."""
  for split, rows in (('train', 53), ('test', 21)):
    rng = np.random.default_rng(rows)
    label_N = rng.integers(0, CLASSES, rows)
    walk_NVL = np.cumsum(rng.integers(0, 3, (rows, 2, GRID**2)), axis=-1)
    write_tokens(directory / split, (walk_NVL + 8 * label_N[:, None, None]) % CODES, label_N, split)


def write_tokens(directory, codes, label_N, split: str = 'train', **meta: Any) -> None:
  """A token store as `jaxmm tokenize` writes them; every 17th row is of an unreadable picture."""
  fields = {'codes': (codes.shape[1:], 'uint16'), 'label': ((), 'int32'), 'valid': ((), 'bool')}
  meta = {'num_codes': CODES, 'grid': [GRID, GRID], 'num_classes': CLASSES, 'split': split} | meta
  writer = ArrayStoreWriter(directory, fields, len(codes), len(codes), meta)
  valid_N = np.arange(len(codes)) % 17 != 16
  writer.write_shard(0, {'codes': codes, 'label': label_N, 'valid': valid_N})


def token_batches(split: str):
  """A function of (process, processes) to Batches of codes."""

  def make(index: int, count: int):
    config = DataConfig(
      name='tokens', path=str(directory('tokens', _write_stores)), split=split, num_classes=CLASSES,
      max_bad_fraction=0.2, threads=0,
    )  # fmt: skip
    return make_batches(
      config, batch_size=BATCH, seed=7, process_index=index, process_count=count,
      train=split == 'train',
    )  # fmt: skip

  return make


def tokenizer_model(**quantizer: Any) -> dict[str, Any]:
  """Settings of a tokenizer with regularizer and discriminator."""
  return dict(
    image_size=SIDE,
    perceptual=dict(name='none'),
    vqgan=dict(NETWORK, quantizer=dict(codes=CODES, width=4, **quantizer)),
    regularizer=REGULARIZER,
    adversarial=ADVERSARIAL,
  )


def case(name: str) -> dict[str, Any]:
  """What `tests.train_cases.TrainCase` needs of the case `name`."""
  if name == 'image_lm':
    model = dict(
      depth=2, width=32, num_heads=4, hidden=32, num_codes=CODES, num_classes=CLASSES, grid=GRID
    )
    return dict(
      name=name,
      make_task=lambda: image_lm.make_task(model),
      make_batches=token_batches('train'),
      make_eval=token_batches('test'),
      config=dict(
        RUN,
        task='jaxmm.models.image_lm',
        model=model,
        optimizer=dict(model=dict(ADAMW, weight_decay=0.05, schedule='cosine', warmup=3)),
        ema=0.9,
      ),
    )
  if name == 'vae':
    module, labels = vae_task, ('generator', 'discriminator')
    network = dict(NETWORK, latent_dim=3)
    model = dict(
      image_size=SIDE, perceptual=dict(name='none'), vae=network, adversarial=ADVERSARIAL
    )
  else:
    module, labels = vqgan_task, ('generator', 'discriminator', 'regularizer')
    model = tokenizer_model(**QUANTIZERS[name])
  return dict(
    name=name,
    make_task=lambda: module.make_task(model),
    make_batches=image_batches(53, seed=PICTURES, train=True),
    make_eval=image_batches(21, seed=2, train=False),
    config=dict(
      RUN,
      task=module.__name__,
      model=model,
      optimizer=dict.fromkeys(labels, ADAMW),
      ema=0.9,
    ),
  )


QUANTIZERS = {
  'tokenizer_ema': dict(update='ema', revive_after=4, revive_slots=64),
  'tokenizer_gradient': dict(
    revive_after=4, revive_slots=64, entropy_weight=0.1, entropy_temperature=0.5,
    entropy_reference='running',
  ),
}  # fmt: skip


def margins(task: vqgan_task.VqganTask, params: Any, batch: Any) -> dict[str, jax.Array]:
  """How far a tokenizer's step is from a branch: what float32 must resolve for two machines to take
  the same one.

  A code's choice, each leaky ReLU and the hinge have an edge. A number within rounding of its edge
  (1e-6 of the numbers' root mean square, after some steps) falls to either side as the machine
  rounds, and the gradient jumps. With the draw of pictures 1, 'gradient' has one such number:
  a pre-activation of 9e-7 in `conv_1` at step 8. In float64 the discriminator's gradient norm is
  2.0675185 there, and 2.0674220 with that one slope flipped; one device logs 2.0675185, two
  processes 2.0674217.

  Returns:
    The least distance of each kind, relative to the root mean square for pre-activations.
  """
  image, valid_B = task.pixels(batch), batch['valid_B'] > 0
  out = task.model.apply({'params': params['vqgan']}, image)
  codes_KD = quantizer.unit(params['vqgan']['quantizer']['codebook'])
  distance_BLK = jnp.sum((out.quantized.latent_BLD[:, :, None] - codes_KD) ** 2, axis=-1)
  best_BL2 = -jax.lax.top_k(-distance_BLK, 2)[0]
  least = lambda x: jnp.min(jnp.where(valid_B.reshape(-1, *[1] * (x.ndim - 1)), x, jnp.inf))
  found = {'code': least(best_BL2[..., 1] - best_BL2[..., 0])}
  config = task.config.adversarial.discriminator
  judge = discriminator.Discriminator(config)
  for name, x, sign in (('real', image, 1), ('fake', out.recon_BYXC, -1)):
    (logits_BYX, _), seen = judge.apply(
      {'params': params['discriminator']}, x, valid_B, capture_intermediates=True
    )
    found[f'hinge of {name}'] = least(abs(1 - sign * logits_BYX))
    for i in range(len(config.plan)):
      layer = f'norm_{i}' if i else 'conv_0'
      before_BYXC = seen['intermediates'][layer]['__call__'][0]
      scale = jnp.sqrt(jnp.mean(before_BYXC**2))
      found[f'{layer} of {name}'] = least(abs(before_BYXC)) / scale
  return found
