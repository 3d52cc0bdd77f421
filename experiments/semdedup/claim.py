"""SemDeDup's central claim in miniature, on text: stated before it was run.

Claim (arXiv:2303.09540): of a corpus with semantic redundancy, what is left without semantic
duplicates teaches a model more than a random part of the same size does (in the same steps).

The corpus is newswire, much of which is made from templates (earnings, dividends), as the paper's
LAION is full of near-copies. Held-out texts are of other kinds (books, web pages, encyclopedia):
news held out of the same templates would reward what is pruned. `planted` is the harness's own
control: three fifths of that pool are copies of a few texts with some words left out.

This is the second statement. In the first run (seeds 1 to 4, 1,000 steps from random weights) when
a model began to see more than the frequency of tokens hung on chance, and seeds of one arm differed
as much as arms; it was inconclusive, README.md has its table.
Now all arms of a seed begin with the same model. Criteria and arms are the same; the seeds are new.
"""

from __future__ import annotations

import functools

from jaxmm.curation import semdedup
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.semdedup import SemDedupConfig
from jaxmm.curation.stages import Stages
from jaxmm.studies import encoders, pruning, pruning_claim, pruning_corpora, pruning_texts
from jaxmm.studies.pruning import Arm
from jaxmm.studies.pruning_claim import PruningClaim
from jaxmm.studies.verdict import Claim, Criterion

KEEP, PLANTED_KEEP = 0.5, 0.4
COPIES, SOURCES = 0.6, 40
SETTINGS = (
  'steps=600', 'batch=8', 'model.width=64', 'model.depth=2', 'model.num_heads=2',
  'model.tied_head=True', 'data.text.length=128', 'optimizer.model.learning_rate=4e-3',
  'checkpoint.every=1000', 'log.every=50',
)  # fmt: skip
START = ('steps=800', 'optimizer.model.learning_rate=8e-3')
VOCAB_SIZE = 1024
ENCODER = {'encoder': 'minilm', 'max_tokens': 128}
WHAT = 'for example Reuters-21578 as pool, and books, C4 and Wikipedia held out'


def encoder():
  """Of the beginning of each text."""
  return encoders.minilm(max_tokens=ENCODER['max_tokens'])


def corpora(data_path, scale):
  """Natural and planted pool of a folder."""
  return pruning_texts.of_folder(
    data_path,
    scale,
    plant=lambda texts: pruning_corpora.with_near_copies(texts, COPIES, SOURCES),
    planting={'copies': COPIES, 'sources': SOURCES},
    what=WHAT,
  )


def without_duplicates(keep, pool, seed, directory, echo):
  """The share that SemDeDup keeps; k about the square root of the texts."""
  config = SemDedupConfig('hard', keep=keep)
  return semdedup.run(pool.vectors(), config, KMeansConfig(seed=seed), Stages(directory, echo=echo))


def deduplicated(pool: str, keep: float) -> Arm:
  """SemDeDup as an arm."""
  settings = {'method': 'semdedup', 'keep': keep}
  return Arm(pool, functools.partial(without_duplicates, keep), settings, needs_vectors=True)


def at_random(pool: str, keep: float) -> Arm:
  """A random share as an arm."""
  select = functools.partial(pruning.random_texts, keep)
  return Arm(pool, select, {'method': 'random', 'keep': keep})


CONTROL = Criterion(
  'condition: planted copies are seen at this size',
  metric='bits_elsewhere', arm='planted_semdedup', against='planted_random', claimed='below',
  unit='bits a byte', is_condition=True,
)  # fmt: skip
CONTROL_ARMS = {
  'planted_random': at_random('planted', PLANTED_KEEP),
  'planted_semdedup': deduplicated('planted', PLANTED_KEEP),
}

CLAIM = Claim(
  paper='semdedup',
  sentence='Half of a redundant corpus, chosen by SemDeDup, teaches a language model more in the '
  'same steps than a random half.',
  criteria=(
    Criterion(
      'other kinds of text need fewer bits than after a random half',
      metric='bits_elsewhere', arm='semdedup', against='random', claimed='below',
      unit='bits a byte',
    ),
    CONTROL,
    Criterion(
      'reported: and than after the whole corpus',
      metric='bits_elsewhere', arm='semdedup', against='everything', claimed='below',
      unit='bits a byte', is_reported=True,
    ),
    Criterion(
      'reported: held-out news against a random half',
      metric='bits_pool', arm='semdedup', against='random', claimed='below',
      unit='bits a byte', is_reported=True,
    ),
  ),
)  # fmt: skip

DEPARTURES = (
  'Text, not images: 1.6 MB of newswire and a model of 0.2 M parameters, not LAION and CLIP.',
  'Vectors are of all-MiniLM-L6-v2 (mean of the first 128 token states), the paper takes the '
  'last token of OPT-125M for text.',
  'Quality is the bits a byte of held-out text, not accuracy.',
  'k is the square root of the number of texts; the paper takes 11,000 for C4.',
)

STUDY = PruningClaim(
  claim=CLAIM,
  corpora=corpora,
  arms={
    'everything': Arm('natural', pruning.everything, {'method': 'everything'}),
    'random': at_random('natural', KEEP),
    'semdedup': deduplicated('natural', KEEP),
    **CONTROL_ARMS,
  },
  settings=SETTINGS,
  start=START,
  vocab_size=VOCAB_SIZE,
  seeds=(5, 6, 7, 8),
  title='Does a corpus without semantic duplicates teach more?',
  subtitle='SemDeDup (arXiv:2303.09540) in miniature on newswire',
  departures=DEPARTURES,
  encoder=encoder,
  encoder_settings=ENCODER,
)

# What `jaxmm reproduce semdedup` calls.
run = functools.partial(pruning_claim.run, STUDY)
