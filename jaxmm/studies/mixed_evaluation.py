"""How well a Transfusion draws what held-out texts say, and describes held-out pictures.

Each picture that comes after text is drawn anew from all that stands before it (a caption; or a
picture and an instruction), each picture with captions is described. Nothing here is the FID or
CLIP score of papers, whose networks are not at hand: features are those of EfficientNet-Lite0.

Axes: N pictures, Y X rows and columns, C channels, D feature width.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.data.array_store import ArrayStore
from jaxmm.data.image_files import FileSource
from jaxmm.data.mixed import MixedSource
from jaxmm.data.mixed_layout import Unit
from jaxmm.data.pipeline import DataConfig
from jaxmm.data.readers import ImageReader
from jaxmm.data.sources import UnreadableRecord
from jaxmm.evaluate import captions, statistics_file
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance, kernel_distance
from jaxmm.evaluate.features import feature_rows
from jaxmm.interop.efficientnet import read_classifier
from jaxmm.models import transfusion_sampling
from jaxmm.studies import pictures, run
from jaxmm.studies.loaded_mixed import LoadedTransfusion
from jaxmm.studies.loaded_text import Codec

Echo = Callable[[str], None]
# Pixels a side at which the classifier sees pictures up to this size; larger ones at its own.
SMALL = 64
# Pairs of original and drawn picture that a person is shown.
_SHOWN = 32


def measure(
  model: LoadedTransfusion, num: int, *, batch: int = 64, echo: Echo = print, **sampler: Any
) -> dict[str, Any]:
  """`{'drawn/metric': value, 'described/metric': value}`; what was drawn and said is in the run's
  directory as `evaluation_drawn.png` and `evaluation_described.jsonl`. All that was drawn and the
  originals are there as sample batches, `evaluation_drawn.npz` and `evaluation_originals.npz`: with
  the weights of the FID Inception, `jaxmm evaluate --images` compares them as papers do.

  drawn/pictures: how many; drawn/unreadable: whose picture, or one in their prompt, is damaged.
  drawn/kernel_distance: of the drawn pictures to the originals; 0 is as near as another draw of
    the same kind of pictures. drawn/kernel_distance_of_training: that of as many training pictures,
    through the autoencoder: what a perfect model might have.
  drawn/frechet_distance: likewise, where there are more pictures than features.
  drawn/similarity: cosine of the features of a drawn picture and of its own original;
    drawn/similarity_to_others: of the other originals, what it is without regard to the prompt.
  described/pictures, described/references: how many.
  described/cider_d, described/bleu_4: of greedy descriptions, see `evaluate.captions`;
    described/cider_d_of_others: against the captions of another picture.

  Args:
    model: a run whose `eval_data` is mixed.
    num: pictures that are drawn, and described, at most; evenly spaced.
    batch: rows of the model at one time.
    echo: is given progress lines.
    **sampler: of `SamplerConfig`.

  Raises:
    ConfigError: no mixed data, or see `check`.
  """
  check(model, num, **sampler)
  held_out, training = (
    run.make_batches(model.config, train=train, batch=batch).source for train in (False, True)
  )
  out = _drawn(model, held_out, training, num, batch, echo, sampler)
  return out | _described(model, held_out, num, batch, echo)


def check(model: LoadedTransfusion, num: int, **sampler: Any) -> None:
  """Whether `measure` has what it needs, said before anything is run.

  Raises:
    ConfigError: fewer than 2 pictures, settings with which this model cannot be sampled, its
      autoencoder or the classifier's weights are missing.
  """
  if num < 2:
    raise ConfigError(f'--samples is {num}, expected 2 or more pictures to compare')
  settings = model.sampler_config(sampler)
  settings.plan(model.task.config.num_timesteps)
  transfusion_sampling.check_samplers(model.task.config, SamplingConfig(), settings)
  model.autoencoder()
  read_classifier()


def prompts(source: MixedSource) -> dict[int, Unit]:
  """For each picture that stands behind text the first unit that ends with it."""
  out: dict[int, Unit] = {}
  for unit in _units(source):
    unit = unit.placed(False)
    if unit.pictures and unit.places[-1] > 0:
      out.setdefault(unit.pictures[-1], unit)
  return out


def described_pictures(source: MixedSource) -> dict[int, list[Unit]]:
  """For each picture its captions: of pairs, and of records where the text follows."""
  out: dict[int, list[Unit]] = {}
  for unit in _units(source):
    if len(unit.pictures) == 1 and all(unit.placed(True).is_image_first()):
      out.setdefault(unit.pictures[0], []).append(unit)
  return out


def _units(source: MixedSource):
  for r in range(len(source)):
    yield from source[r]['units']


def _spaced(of: Mapping[int, Any], num: int) -> dict[int, Any]:
  """At most `num` of them, evenly spaced."""
  keys = list(of)
  num = min(num, len(keys))
  return {keys[i]: of[keys[i]] for i in np.arange(num) * len(keys) // max(num, 1)}


class _Pictures:
  """Pictures by their numbers as the autoencoder was shown them for a store of latents; damaged
  ones are left out.
  """

  def __init__(self, latents: str, source: FileSource):
    store = ArrayStore(latents)
    data = configs.from_mapping(DataConfig, store.meta['data'], 'data')
    self._reader = ImageReader(data, source, 0, train=False)

  def __call__(self, numbers: Iterable[int]) -> dict[int, np.ndarray]:
    out = {}
    for number in dict.fromkeys(numbers):
      try:
        out[number] = self._reader.image(number, None)[0]
      except UnreadableRecord:
        continue
    return out


def _pictures(model: LoadedTransfusion, section: str, source: MixedSource) -> _Pictures:
  return _Pictures(model.config[section]['mixed']['latents'], source.pictures)


def _drawn(model, held_out, training, num, batch, echo, sampler) -> dict[str, Any]:
  wanted = _spaced(prompts(held_out), num)
  pixels = _pictures(model, 'eval_data', held_out)(
    [i for unit in wanted.values() for i in unit.pictures]
  )
  units = [unit for unit in wanted.values() if set(unit.pictures) <= set(pixels)]
  counts = {'drawn/pictures': len(units), 'drawn/unreadable': len(wanted) - len(units)}
  if len(units) < 2:
    return counts
  coder, stacked = model.autoencoder(), lambda found: np.stack(list(found.values()))
  sources = {i: pixels[i] for unit in units for i in unit.pictures[:-1]}
  latents = dict(zip(sources, coder.encode(stacked(sources), batch))) if sources else {}
  rows = [_before_last(unit, latents) for unit in units]
  echo(f'drawing {len(rows)} pictures')
  drawn = coder.decode(model.latents_after(rows, batch=batch, echo=echo, **sampler), batch)
  originals = np.stack([pixels[unit.pictures[-1]] for unit in units])
  pictures.write_pairs(originals[:_SHOWN], drawn[:_SHOWN], model.directory / 'evaluation_drawn.png')
  for name, images in (('drawn', drawn), ('originals', originals)):
    statistics_file.write_images(model.directory / f'evaluation_{name}.npz', images)
  others = _pictures(model, 'data', training)(_spaced(prompts(training), len(units)))
  others = coder.reconstruct(stacked(others), batch) if others else originals[:0]
  return counts | compared(drawn, originals, others, echo)


def _before_last(unit: Unit, latents: Mapping[int, np.ndarray]) -> list[Any]:
  """Ids and latents of a unit in order, up to its last picture."""
  row, at = [], 0
  for picture, place in zip(unit.pictures[:-1], unit.places):
    row += [*unit.ids[at:place].tolist(), latents[picture]]
    at = place
  return [*row, *unit.ids[at : unit.places[-1]].tolist()]


def compared(
  drawn: np.ndarray, originals: np.ndarray, training: np.ndarray, echo: Echo
) -> dict[str, Any]:
  """The metrics `drawn/...` of `measure`, of uint8 images [N, Y, X, C]."""
  size = SMALL if max(originals.shape[1:3]) <= SMALL else None
  options = dict(
    mesh=sharding.make_mesh(sharding.MeshConfig()), rules=sharding.RULES['dp'], size=size
  )
  params = read_classifier()
  features = lambda images: feature_rows(images, params, **options)
  drawn_ND, own_ND = map(features, (drawn, originals))
  unit = lambda rows: rows / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
  cosine_NN, num = unit(drawn_ND) @ unit(own_ND).T, len(drawn_ND)
  own = np.trace(cosine_NN) / num
  out = {
    'kernel_distance': kernel_distance(drawn_ND, own_ND),
    'kernel_distance_of_training': (
      kernel_distance(features(training), own_ND) if len(training) > 1 else None
    ),
    'similarity': float(own),
    'similarity_to_others': float((cosine_NN.sum() / num - own) / (num - 1)),
  }
  if num > drawn_ND.shape[1]:
    out['frechet_distance'] = frechet_distance(*map(FeatureStatistics.of, (drawn_ND, own_ND)))
  else:
    echo(f'no Frechet distance: it needs more than {drawn_ND.shape[1]} pictures, there are {num}')
  return {f'drawn/{name}': value for name, value in out.items()}


def _described(model, held_out, num, batch, echo) -> dict[str, Any]:
  wanted = _spaced(described_pictures(held_out), num)
  pixels = _pictures(model, 'eval_data', held_out)(wanted)
  codec = Codec.of(model.config)
  read = lambda unit: codec.decode(unit.ids).decode(errors='replace')
  references = [[read(unit) for unit in wanted[number]] for number in pixels]
  counts = {
    'described/pictures': len(pixels),
    'described/unreadable': len(wanted) - len(pixels),
    'described/references': sum(map(len, references)),
  }
  if len(pixels) < 2:
    return counts
  longest = max(len(unit.ids) for number in pixels for unit in wanted[number])
  echo(f'describing {len(pixels)} pictures')
  latents = model.autoencoder().encode(np.stack(list(pixels.values())), batch)
  # The end of a text is a token, too.
  said = model.texts_after(latents, longest + 1, batch=batch, echo=echo, greedy=True)
  names = [held_out.pictures.id(number) for number in pixels]
  _write_lines(model.directory / 'evaluation_described.jsonl', names, said, references)
  return counts | {
    'described/cider_d': float(captions.cider_d(said, references).mean()),
    'described/cider_d_of_others': float(
      captions.cider_d(said, references[1:] + references[:1]).mean()
    ),
    'described/bleu_4': captions.bleu(said, references),
  }


def _write_lines(path: pathlib.Path, names, said, references) -> None:
  rows = zip(names, said, references)
  lines = (json.dumps({'image': n, 'text': t, 'references': r}) + '\n' for n, t, r in rows)
  path.write_text(''.join(lines), encoding='utf-8')
