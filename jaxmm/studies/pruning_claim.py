"""Runs a claim about pruned corpora: arms at equal steps, planted controls, seeds, a verdict.

A paper's `claim.py` says what is claimed and of which selections (`PruningClaim`); this runs it.
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmm import config as configs
from jaxmm.curation.embedding_job import Embedder
from jaxmm.studies import claim_run, pruning_page
from jaxmm.studies import run as runs
from jaxmm.studies.pruning import Arm, Pruning
from jaxmm.studies.verdict import Claim

Echo = Callable[[str], None]
# A model of 0.17 M parameters whose runs take half a minute on a core; pilots chose them.
TINY = (
  'steps=600', 'batch=8', 'model.width=64', 'model.depth=2', 'model.num_heads=2',
  'model.tied_head=True', 'data.text.length=128', 'optimizer.model.learning_rate=4e-3',
  'checkpoint.every=1000', 'log.every=50',
)  # fmt: skip
TINY_START = ('steps=800', 'optimizer.model.learning_rate=8e-3')


@dataclasses.dataclass(frozen=True)
class Corpora:
  """The pools and held-out texts of a claim, before they are written.

  Attributes:
    write: puts them below a directory; returns their sizes.
    settings: all that they depend on, JSON values.
    held_out: names of the held-out texts.
    means: {metric: names of held-out texts}; see `pruning.Pruning`.
  """

  write: Callable[[pathlib.Path], Mapping[str, Any]]
  settings: Mapping[str, Any]
  held_out: tuple[str, ...]
  means: Mapping[str, tuple[str, ...]]


@dataclasses.dataclass(frozen=True)
class PruningClaim:
  """A claim that is judged by what a language model learns from what a selection keeps.

  Attributes:
    claim: sentence and criteria; the metrics are those of `pruning.measurements`.
    corpora: of the user's `--data-path` (None where it is not given) and the scale.
    arms: by name.
    seeds: every arm is trained with each.
    title, subtitle: of the page.
    departures: sentences, each one way in which this is not the paper.
    config: file with `get_config` of the LM.
    settings: `key=value` of it.
    start: the same of the model that all arms of a seed begin with, over `settings`; none begins
      with random weights. See `pruning`.
    vocab_size: see `pruning.Pruning`.
    encoder: of vectors, for the arms that need them.
    encoder_settings: its name.
  """

  claim: Claim
  corpora: Callable[[pathlib.Path | None, float], Corpora]
  arms: Mapping[str, Arm]
  seeds: tuple[int, ...]
  title: str
  subtitle: str
  departures: tuple[str, ...] = ()
  config: str = 'lm/mini.py'
  settings: tuple[str, ...] = TINY
  start: tuple[str, ...] = TINY_START
  vocab_size: int = 1024
  encoder: Callable[[], Embedder] | None = None
  encoder_settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def run(
  claim: PruningClaim,
  workdir: pathlib.Path,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
  echo: Echo = print,
) -> pathlib.Path:
  """Runs what is not done yet; prints and writes the verdict; returns the report's path.

  Args:
    claim: what is claimed and of which selections.
    workdir: the study's directory; gets `verdict.json`, `measurements.json` and `report.html`.
    data_path: where the texts are; what is expected there the claim's page says.
    seeds: instead of the claim's.
    scale: multiplies steps and pools; below 1 nothing is decided, it only shows that all runs.
    echo: takes the progress lines.

  Raises:
    ConfigError: seeds, scale, the data or the claim's own settings cannot be; before training.
  """
  plan = planned(claim, data_path=data_path, seeds=seeds, scale=scale)
  return claim_run.run(claim, pruning_page.KIND, plan, workdir, scale, echo)


def planned(
  claim: PruningClaim,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
) -> Pruning:
  """The plan; see `run` for arguments and errors."""
  claim.claim.check(list(claim.arms), scale)
  corpora = claim.corpora(pathlib.Path(data_path) if data_path else None, scale)
  start = (*claim.settings, *claim.start)
  return Pruning(
    corpora=corpora.write,
    corpora_settings=corpora.settings,
    arms=claim.arms,
    model=_config(claim, claim.settings, scale),
    start=_config(claim, start, scale) if claim.start else None,
    held_out=corpora.held_out,
    means=corpora.means,
    seeds=tuple(seeds or claim.seeds),
    vocab_size=claim.vocab_size,
    encoder=claim.encoder,
    encoder_settings=claim.encoder_settings,
  )


def _config(claim: PruningClaim, settings: Sequence[str], scale: float) -> dict[str, Any]:
  """The LM's run config with its lengths in steps scaled."""
  config = configs.plain(runs.with_settings(configs.load_config(claim.config), settings))
  config['steps'] = max(2, round(config['steps'] * scale))
  for rule in config['optimizer'].values():
    rule['warmup'] = min(rule.get('warmup', 0), config['steps'] // 2)
  return config
