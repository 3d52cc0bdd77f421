"""A config file of runs that compile in seconds: 8x8 pictures, 16 codes an image.

`tokenizer` and `vae` read the folder `data.path` (see `write_pictures`), `image_lm` its codes.
"""

import pathlib

from ml_collections import ConfigDict
from PIL import Image

from tests import real_cases

CODES = 16
NETWORK = dict(
  channels=4, multipliers=(1, 1), res_blocks=1, attention=False, z_channels=4, norm_groups=2,
  quantizer=dict(codes=CODES, width=4, revive_after=4, revive_slots=64),
)  # fmt: skip
IMAGE_MODEL = dict(
  depth=1, width=16, num_heads=2, hidden=16, num_codes=CODES, num_classes=real_cases.CLASSES
)


def get_config(what: str = 'tokenizer') -> ConfigDict:
  """The run's config; `what` is tokenizer, baseline (the same without regularizer), vae or
  image_lm."""
  adamw = dict(name='adamw', learning_rate=1e-3, clip=1.0)
  config = ConfigDict(
    dict(
      task='jaxmm.models.image_lm', seed=0, steps=4, batch=8, rules='dp', model={}, data={},
      optimizer={}, checkpoint=dict(every=2, keep=2), log=dict(every=1), evaluate=dict(every=0),
    )
  )  # fmt: skip
  if what == 'image_lm':
    config.data = dict(name='tokens', path='', split='train', max_bad_fraction=0.1, threads=0)
    config.eval_data = dict(config.data, split='test')
    config.model = dict(IMAGE_MODEL, grid=4)
    config.optimizer.model = adamw
    return config
  config.task = 'jaxmm.tokenizers.vqgan_task'
  config.data = dict(
    name='images', path='', split='train', image_size=8, channels=3, crop='none', num_classes=3,
    convert_channels=False, max_bad_fraction=0.1, threads=0,
  )  # fmt: skip
  config.eval_data = dict(config.data, split='test')
  config.model = dict(image_size=8, perceptual=dict(name='none'), vqgan=NETWORK)
  config.optimizer.generator = adamw
  if what == 'vae':
    config.task = 'jaxmm.tokenizers.vae_task'
    network = {k: v for k, v in NETWORK.items() if k != 'quantizer'}
    config.model = dict(image_size=8, perceptual=dict(name='none'), vae=dict(network, latent_dim=3))
  if what == 'tokenizer':
    config.model.regularizer = dict(weight=4.0, ramp_steps=2, width=8, heads=2, hidden=8)
    config.optimizer.regularizer = adamw
  return config


def write_pictures(folder: pathlib.Path, train: int = 24, test: int = 10) -> pathlib.Path:
  """PNG files `train/CLASS/*` and `test/CLASS/*`; the first train picture of class 0 is damaged."""
  for split, number, seed in (('train', train, 1), ('test', test, 2)):
    for i, (image, label) in enumerate(zip(*real_cases.pictures(number, seed))):
      path = folder / split / str(label) / f'{i:03}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray(image).save(path)
  first = sorted((folder / 'train' / '0').iterdir())[0]
  first.write_bytes(first.read_bytes()[:40])
  return folder
