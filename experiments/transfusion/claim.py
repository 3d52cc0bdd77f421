"""Transfusion's central claim in miniature: metric, sign, test and threshold, before it is run.

Claim (arXiv:2408.11039, table 3): with the same compute on the same data, one transformer that
predicts text and denoises continuous images is better than one that predicts text and the codes of
images (Chameleon's way), at text (perplexity of C4 7.72 against 8.41), at images (FID 16.8 against
29.6) and at captions (CIDEr 27.2 against 18.0).

Text is whole books, images are CIFAR-10 with captions that name their class. Both transformers are
the same Stack on rows of as many positions. Images are latents of an autoencoder, 16 patches each,
or codes of its twin with a codebook, 64 each: four times as many positions, as in the paper.

Learning rates are of two for each arm, by pilots on seed 100, which is not judged: of codes the one
that is better at everything, of Transfusion that of the smaller denoising loss. README.md has them;
they let expect that the claim holds.
"""

from __future__ import annotations

import functools
import io
import json
import pathlib
import zipfile
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.data import pipeline
from jaxmm.evaluate.distances import kernel_distance
from jaxmm.evaluate.features import feature_rows
from jaxmm.interop.efficientnet import read_classifier
from jaxmm.studies import latents, loading, models_claim, tokens
from jaxmm.studies import run as runs
from jaxmm.studies.loading import LoadedRun
from jaxmm.studies.models import DATA, Prepared
from jaxmm.studies.models_claim import Arm, ModelsClaim
from jaxmm.studies.verdict import Claim, Criterion

CLAIM = Claim(
  paper='transfusion',
  sentence='With the same compute on the same books and captioned pictures, a transformer that '
  'denoises latents of pictures beats one that predicts their codes: at text, at pictures and at '
  'captions.',
  criteria=(
    Criterion(
      'fewer nats a byte of books',
      metric='cross_entropy_text', arm='transfusion', against='codes', claimed='below',
      unit='nats a byte',
    ),
    Criterion(
      'drawn pictures nearer to real ones',
      metric='kernel_distance', arm='transfusion', against='codes', claimed='below',
      unit='kernel distance',
    ),
    Criterion(
      'fewer nats a byte of captions, given the picture',
      metric='cross_entropy_after_image', arm='transfusion', against='codes', claimed='below',
      unit='nats a byte',
    ),
    Criterion(
      'reported: captions that name the class',
      metric='named', arm='transfusion', against='codes', claimed='above', unit='%',
      is_reported=True,
    ),
  ),
)  # fmt: skip

DEPARTURES = (
  'Models of 0.9 million parameters on 22 books and 20,000 pictures of 32 x 32 pixels, not of 7 '
  'billion on 0.5 trillion tokens.',
  'Captions name the class of a picture in one of six phrases; there is nothing else in them.',
  'A picture is 16 patches (8 x 8 latents of 4 channels, two by two) or 64 of 512 codes, not 256 '
  'patches or 1,024 of 16,384 codes.',
  'Neither autoencoder has a perceptual or adversarial term.',
  'Pictures are drawn without guidance, and captions are never dropped: a model of codes here has '
  'no guidance. 50 steps, not 250.',
  'Pictures are judged by the kernel distance of features of EfficientNet-Lite0 at 64 pixels, for '
  'which 512 of them suffice, and not by FID; captions by their likelihood and not by CIDEr.',
  'A picture that is described stands at timestep 0, which is not trained: the least noisy one '
  'that is, the default of today, came after these runs.',
  'The model of codes is the same Llama-shaped one; Chameleon adds norms and a z-loss, which keep '
  "it stable at the paper's size.",
)

CLASSES = (
  'airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck',
)  # fmt: skip
PHRASES = (
  'a photo of {}.', '{} in a small picture.', 'this shows {}.', 'here you can see {}.',
  'the camera saw {}.', 'picture: {}.',
)  # fmt: skip
SPLITS = ('train', 'test')
# Held-out pictures with captions, bytes of each held-out book, and pictures drawn.
HELD_OUT, HELD_OUT_BYTES, DRAWN, NAMED = 1000, 1 << 16, 512, 250
AUTOENCODER = 'transfusion/vae_mini.py'
FEATURE_SIZE = 64
SAMPLER = {'steps': 50}
Echo = Callable[[str], None]


def prepared(path: pathlib.Path | None, scale: float) -> Prepared:
  """Pictures, captions, books; autoencoders, latents and codes; features of real pictures."""
  books = {} if path is None else {s: sorted((path / 'books' / s).glob('*')) for s in SPLITS}
  if not all(books.get(split) for split in SPLITS):
    raise ConfigError(
      f'transfusion needs --data-path, got {path}: a folder with books/train/* and books/test/* '
      '(any long texts), and pictures.zip (train/CLASS/*, test/CLASS/* of CIFAR-10) or none for '
      'CIFAR-10 from TFDS'
    )
  read_classifier(None)  # that the weights are missing shows at once
  own = next(iter(sorted(path.glob('pictures*'))), None)
  of = dict(name='images', path=str(own)) if own else dict(name='cifar10')

  def write(directory: pathlib.Path) -> Mapping[str, Any]:
    _write_books(books, directory)
    out = _write_pictures(of, directory)
    for what, field in (('plain', 'latents'), ('vq', 'codes')):
      out |= _write_encoded(what, field, directory, scale)
    real = _images(directory, 'test', 4 * HELD_OUT)
    features = _features(real)  # sorted by class
    np.savez(directory / 'features.npz', features)
    few = np.arange(len(real)) % 8 == 0
    for what in ('plain', 'vq'):
      rebuilt = loading.load(directory / what).reconstruct(real[few])
      distance = kernel_distance(_features(rebuilt), features[~few])
      out[f'kernel distance of what {what} rebuilds'] = round(distance, 4)
    return out

  names = {split: [f.name for f in files] for split, files in books.items()}
  settings = {'books': names, 'pictures': own and own.name, 'scale': scale}
  return Prepared(write, settings | {'held_out': [HELD_OUT, HELD_OUT_BYTES]})


def _write_books(books: Mapping[str, Sequence[pathlib.Path]], directory: pathlib.Path) -> None:
  for split, files in books.items():
    to = directory / 'books' / split
    to.mkdir(parents=True, exist_ok=True)
    for file in files:
      data = file.read_bytes()
      (to / file.name).with_suffix('.txt').write_bytes(
        data[:HELD_OUT_BYTES] if split == 'test' else data
      )


def _write_pictures(of: Mapping[str, str], directory: pathlib.Path) -> dict[str, Any]:
  """Pictures as PNG in a zip, and lines that name them, their captions and splits."""
  out, lines = {}, []
  with zipfile.ZipFile(directory / 'pictures.zip', 'w') as archive:
    for split in SPLITS:
      number = 0
      data = pipeline.DataConfig(**of, split=split, image_size=32, channels=3, crop='none')
      for batch in pipeline.make_batches(data, batch_size=256, seed=0, train=False).once():
        good = batch['valid_B'] > 0
        for image, label in zip(batch['image_BYXC'][good], batch['label_B'][good], strict=True):
          name = f'{split}/{CLASSES[label]}/{number:05}.png'
          archive.writestr(name, _png(image))
          number += 1
          # Every fourth held-out one, whatever its class.
          if split == 'train' or (number % 4 == 0 and number <= 4 * HELD_OUT):
            caption = PHRASES[number % len(PHRASES)].format(_with_article(CLASSES[label]))
            lines.append(json.dumps({'image': name, 'caption': caption, 'split': split}))
      out[f'pictures, {split}'] = number
  (directory / 'captions.jsonl').write_text('\n'.join(lines))
  return out


def _with_article(noun: str) -> str:
  return f'{"an" if noun[0] in "aeiou" else "a"} {noun}'


def _png(image_YXC: np.ndarray) -> bytes:
  out = io.BytesIO()
  Image.fromarray(image_YXC).save(out, 'PNG', compress_level=1)
  return out.getvalue()


def _write_encoded(what: str, field: str, directory: pathlib.Path, scale: float) -> dict[str, Any]:
  """Trains an autoencoder on the training pictures and encodes all."""
  echo = lambda line: None
  settings = ('data.name=images', f'data.path={directory / "pictures.zip"}', 'data.cache=False')
  config = configs.plain(runs.with_settings(configs.load_config(f'{AUTOENCODER}:{what}'), settings))
  config['steps'] = max(2, round(config['steps'] * min(scale, 1.0)))
  warmup = config['optimizer']['generator']
  warmup['warmup'] = min(warmup['warmup'], config['steps'] // 2)
  runs.train_from_config(config, directory / what, evaluates=False, echo=echo)
  if field == 'latents':
    latents.measure(directory / what, echo=echo)
  tokens.write(directory / what, directory / field, split='all', echo=echo)
  return {f'steps of {what}': config['steps']}


def _images(directory: pathlib.Path, split: str, number: int) -> np.ndarray:
  """Pictures of a split, evenly spaced, uint8 [N, Y, X, C]."""
  data = pipeline.DataConfig(
    name='images', path=str(directory / 'pictures.zip'), split=split, image_size=32, channels=3,
    crop='none', max_records=number,
  )  # fmt: skip
  batches = pipeline.make_batches(data, batch_size=100, seed=0, train=False)
  return np.concatenate([b['image_BYXC'][b['valid_B'] > 0] for b in batches.once()])


def _features(images: np.ndarray) -> np.ndarray:
  mesh = sharding.make_mesh(sharding.MeshConfig())
  rules = sharding.RULES['dp']
  return feature_rows(images, read_classifier(None), mesh=mesh, rules=rules, size=FEATURE_SIZE)


def measure(loaded: LoadedRun, path: pathlib.Path, seed: int, echo: Echo) -> dict[str, Any]:
  """Distance of pictures drawn for held-out captions, and how many held-out pictures are named."""
  mixed = loaded.config['data']['mixed']
  directory = pathlib.Path(mixed['captions']).parent
  lines = [json.loads(line) for line in (directory / 'captions.jsonl').read_text().splitlines()]
  held_out = [line for line in lines if line['split'] == 'test']
  captions = [line['caption'] for line in _spaced(held_out, DRAWN)]
  sampler = SAMPLER if mixed.get('latents') else {}
  drawn = []
  for start in range(0, len(captions), 128):
    part = captions[start : start + 128]
    drawn.append(loaded.draw(part, seed=1000 * seed + start, **sampler))
    echo(f'drawn: {start + len(part)}/{len(captions)}')
  images = np.concatenate(drawn)
  np.savez_compressed(path / 'drawn.npz', arr_0=images)
  shown = _spaced(held_out, NAMED)
  with zipfile.ZipFile(directory / 'pictures.zip') as archive:
    real = [np.asarray(Image.open(archive.open(line['image']))) for line in shown]
  texts = loaded.describe(np.stack(real), 32, greedy=True)
  right = [line['image'].split('/')[1] in text for line, text in zip(shown, texts, strict=True)]
  (path / 'described.json').write_text(json.dumps(texts[:50], indent=1))
  with np.load(directory / 'features.npz') as real_features:
    distance = kernel_distance(_features(images), real_features['arr_0'])
  return {'kernel_distance': distance, 'named': 100.0 * float(np.mean(right))}


def _spaced(lines: Sequence[Any], number: int) -> list[Any]:
  return [lines[i] for i in np.linspace(0, len(lines) - 1, number).astype(int)]


# Of both arms: rows of pairs and text, half of the positions each (held-out data whole).
_SHARED = (
  'data.name=mixed', f'data.path={DATA}/pictures.zip', 'model.length=256', 'batch=8',
  f'data.mixed.captions={DATA}/captions.jsonl', 'data.mixed.split_field=split',
  f'data.mixed.text_path={DATA}/books', 'data.mixed.text_share=0.5', 'data.mixed.length=256',
  'data.mixed.boi_id=259', 'data.mixed.eoi_id=260', 'eval_data.mixed.text_share=None',
  # Held-out captions all come behind their pictures.
  'eval_data.mixed.caption_first=0.0', 'checkpoint.every=500', 'log.every=50', 'ema=0.99',
  'ema_warmup=True', 'optimizer.model.warmup=50',
)  # fmt: skip

STUDY = ModelsClaim(
  claim=CLAIM,
  arms={
    'codes': Arm(
      'lm/mini.py',
      (*_SHARED, 'steps=900', f'data.mixed.codes={DATA}/codes', 'data.mixed.patches=64',
       'data.mixed.first_code=261', 'model.vocab_size=773',
       'optimizer.model.learning_rate=4e-3'),
    ),
    'transfusion': Arm(
      'transfusion/mini.py',
      (*_SHARED, f'data.mixed.latents={DATA}/latents', 'data.mixed.patches=16', 'model.patch=2',
       'model.noise_limit=None', 'model.caption_dropout=0.0', 'model.clean_timestep=0',
       'optimizer.model.learning_rate=2e-3'),
      equal_to='codes',
    ),
  },
  seeds=(1, 2, 3),
  title='Does denoising pictures beat predicting their codes?',
  subtitle='Transfusion (arXiv:2408.11039) in miniature on books and captioned pictures',
  departures=DEPARTURES,
  measure=measure,
  measure_settings={'drawn': DRAWN, 'named': NAMED, 'sampler': SAMPLER, 'features': FEATURE_SIZE},
  prepared=prepared,
)  # fmt: skip

# What `jaxmm reproduce transfusion` calls.
run = functools.partial(models_claim.run, STUDY)
