"""Arms of pruning studies that several claims share: all texts, random ones, what is known to be no
junk, what SemDeDup leaves; and the control that plants copies.
"""

from __future__ import annotations

import functools
import pathlib

import numpy as np

from jaxmm.curation import semdedup
from jaxmm.curation.keep_list import KeepList
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.semdedup import SemDedupConfig
from jaxmm.curation.stages import Stages
from jaxmm.studies import encoders, pruning_corpora
from jaxmm.studies.pruning import Arm, Echo, Pool
from jaxmm.studies.verdict import Criterion

# The first tokens of a text say what it is about, and take half the time of twice as many.
ENCODER = {'encoder': 'minilm', 'max_tokens': 128}
_COPIES, _SOURCES, _KEEP_OF_COPIES = 0.6, 40, 0.4


def encoder():
  """all-MiniLM-L6-v2 on the beginning of each text."""
  return encoders.minilm(max_tokens=ENCODER['max_tokens'])


def everything(pool: str) -> Arm:
  """All texts of a pool."""

  def select(of: Pool, seed: int, directory: pathlib.Path, echo: Echo) -> KeepList:
    return of.only(np.ones(len(of.examples), bool), 'everything')

  return Arm(pool, select, {'method': 'everything'})


def random_texts(pool: str, share: float) -> Arm:
  """A random share of the texts."""

  def select(of: Pool, seed: int, directory: pathlib.Path, echo: Echo) -> KeepList:
    order = np.random.default_rng([seed, 17]).permutation(len(of.examples))
    keep_N = np.zeros(len(order), bool)
    keep_N[order[: round(share * len(order))]] = True
    return of.only(keep_N, 'random', share=share, seed=seed)

  return Arm(pool, select, {'method': 'random', 'keep': share})


def random_bytes(pool: str, share: float) -> Arm:
  """Random texts until they hold this share of all bytes."""

  def select(of: Pool, seed: int, directory: pathlib.Path, echo: Echo) -> KeepList:
    size_N = np.array([len(e.content) for e in of.examples])
    order = np.random.default_rng([seed, 17]).permutation(len(size_N))
    held = np.cumsum(size_N[order])
    keep_N = np.zeros(len(order), bool)
    keep_N[order[: int(np.searchsorted(held, share * held[-1])) + 1]] = True
    return of.only(keep_N, 'random', share_of_bytes=share, seed=seed)

  return Arm(pool, select, {'method': 'random', 'share_of_bytes': share})


def without_junk(pool: str, junk: float) -> Arm:
  """The answer of a pool that `pruning_corpora.with_junk` planted: the junk stands last."""

  def select(of: Pool, seed: int, directory: pathlib.Path, echo: Echo) -> KeepList:
    number = len(of.examples)
    return of.only(np.arange(number) < number - round(junk * number), 'planted')

  return Arm(pool, select, {'method': 'planted', 'junk': junk})


def deduplicated(pool: str, keep: float) -> Arm:
  """The share that SemDeDup leaves; k about the square root of the texts."""

  def select(of: Pool, seed: int, directory: pathlib.Path, echo: Echo) -> KeepList:
    config, stages = SemDedupConfig('hard', keep=keep), Stages(directory, echo=echo)
    return semdedup.run(of.vectors(), config, KMeansConfig(seed=seed), stages)

  return Arm(pool, select, {'method': 'semdedup', 'keep': keep}, needs_vectors=True)


# The control of SemDeDup and D4: three fifths of a pool are copies of a few texts.

plant_copies = functools.partial(
  pruning_corpora.with_near_copies, share=_COPIES, sources=_SOURCES
)  # fmt: skip
PLANTING_OF_COPIES = {'copies': _COPIES, 'sources': _SOURCES}
COPIES_ARE_SEEN = Criterion(
  'condition: planted copies are seen at this size',
  metric='bits_elsewhere', arm='planted_semdedup', against='planted_random', claimed='below',
  unit='bits a byte', is_condition=True,
)  # fmt: skip
ARMS_WITH_COPIES = {
  'planted_random': random_texts('planted', _KEEP_OF_COPIES),
  'planted_semdedup': deduplicated('planted', _KEEP_OF_COPIES),
}
