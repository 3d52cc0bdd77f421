"""Runs a claim about pruned sets of pictures: arms in equally many steps, seeds, a verdict, a page.

A paper's `claim.py` says what is claimed and of which lists (`ImagePruningClaim`); this is what
runs it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jaxmm import config as configs
from jaxmm.data import image_files
from jaxmm.data.kept import read_columns
from jaxmm.data.transforms import decode_image
from jaxmm.interop.efficientnet import read_classifier
from jaxmm.report import images, page
from jaxmm.studies import claim_run, image_pruning
from jaxmm.studies.image_pruning import POOL, Arm, ImagePruning
from jaxmm.studies.planted_images import PlantedConfig
from jaxmm.studies.stages import Study, paired
from jaxmm.studies.verdict import Claim

_OF_LISTS = ('keep', 'eps', 'clusters', 'allocation', 'feature_size')
METRICS = {
  'accuracy': 'accuracy on the test pictures, %',
  'cross_entropy': 'cross-entropy on them, nats',
  'kept': 'pictures kept',
  'different': 'different originals among them',
  'class_perplexity': 'classes, as exp of the entropy of their shares',
}


@dataclasses.dataclass(frozen=True)
class ImagePruningClaim:
  """A claim that is judged by what a classifier learns from pruned pictures.

  Attributes:
    claim: sentence and criteria; the metrics are those of `image_pruning.measurements`.
    config: file with `get_config` of the classifier.
    planted: the pool.
    arms: `{arm: what it trains on}`.
    seeds: every arm is trained with each.
    title, subtitle: of the page.
    departures: sentences, each one way in which this is not the paper.
    settings: other settings of `ImagePruning` (keep, eps, clusters, ...).
  """

  claim: Claim
  config: str
  planted: PlantedConfig
  arms: Mapping[str, Arm]
  seeds: tuple[int, ...]
  title: str
  subtitle: str
  departures: tuple[str, ...] = ()
  settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(
  claim: ImagePruningClaim,
  workdir: pathlib.Path,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
  echo: Callable[[str], None] = print,
) -> pathlib.Path:
  """Runs what is not done yet; prints and writes the verdict; returns the report's path.

  Args:
    claim: what is claimed and of which lists.
    workdir: the study's directory; gets `verdict.json` and `report.html`.
    data_path: a folder or zip of pictures, instead of the config's data.
    seeds: instead of the claim's.
    scale: multiplies the number of steps; below 1 nothing is decided, it only shows that all runs.
    echo: takes the progress lines.

  Raises:
    ConfigError: seeds, scale or the claim's own settings cannot be; before anything is trained.
  """
  plan = planned(claim, data_path=data_path, seeds=seeds, scale=scale)
  read_classifier(plan.feature_weights)  # that the weights are missing shows at once
  return claim_run.run(claim, KIND, plan, workdir, scale, echo)


def planned(
  claim: ImagePruningClaim,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
) -> ImagePruning:
  """The plan; trains nothing. See `run` for arguments and errors."""
  claim.claim.check(list(claim.arms), scale)
  config = configs.plain(configs.load_config(claim.config))
  config['steps'] = max(2, round(config['steps'] * scale))
  for settings in config['optimizer'].values():
    settings['warmup'] = round(settings.get('warmup', 0) * scale)
  if data_path:
    for section in ('data', 'eval_data'):
      config[section] |= {'name': 'images', 'path': str(data_path)}
  seeds = tuple(seeds or claim.seeds)
  paired(seeds, list(claim.arms))
  return ImagePruning(config, claim.planted, claim.arms, seeds, **claim.settings)


def _add_sections(out: page.Page, study: Study, plan: ImagePruning) -> None:
  out.add_section(
    'What is kept',
    page.figure(
      images.image_rows(_kept_pictures(study, plan)),
      f'Pictures of every arm, seed {plan.seeds[0]}: the first kept ones in an order drawn for the '
      'pool, which is the same for all arms.',
      look_for='rows of one arm that look alike: what it prefers',
    ),
  )
  lists = {name: getattr(plan, name) for name in _OF_LISTS}
  out.add_section(
    'Settings',
    page.settings(plan.classifier, 'classifier (all arms)'),
    page.settings(dataclasses.asdict(plan.planted), 'pool'),
    page.settings(lists, 'lists'),
  )


def _intro(plan: ImagePruning) -> str:
  steps, batch = plan.classifier['steps'], plan.classifier['batch']
  return (
    'Mean over seeds, in brackets the smallest and the largest. Every arm trains the same '
    f'network in {steps} steps of {batch} pictures.'
  )


KIND = claim_run.Kind(
  image_pruning.add_stages, image_pruning.measurements, _add_sections, _intro, METRICS
)


def _kept_pictures(study: Study, plan: ImagePruning, number: int = 12) -> dict[str, np.ndarray]:
  """Some pictures that each arm keeps, uint8 [number, Y, X, 3]; fewer if one keeps fewer."""
  lists, chosen = study.path(f'seed-{plan.seeds[0]}/lists'), {}
  read = image_files.ZipReader(study.path('pool') / POOL)
  for arm in plan.arms:
    ids, keep_N, _ = read_columns(lists / f'{arm}.parquet')
    order = np.random.default_rng(0).permutation(len(ids))
    chosen[arm] = [ids[i] for i in order if keep_N[i]][:number]
  least = min(map(len, chosen.values()))
  pictures = lambda names: np.stack([decode_image(read(n), 3, True, n) for n in names])
  return {arm: pictures(names[:least]) for arm, names in chosen.items()}
