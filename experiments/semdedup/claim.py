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

from jaxmm.studies import pruning_arms, pruning_claim, pruning_texts
from jaxmm.studies.pruning_claim import PruningClaim
from jaxmm.studies.verdict import Claim, Criterion

KEEP = 0.5


def corpora(data_path, scale):
  """Natural and planted pool of a folder."""
  return pruning_texts.of_folder(
    data_path,
    scale,
    plant=pruning_arms.plant_copies,
    planting=pruning_arms.PLANTING_OF_COPIES,
    what='for example Reuters-21578 as pool, and books, C4 and Wikipedia held out',
  )


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
    pruning_arms.COPIES_ARE_SEEN,
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
    'everything': pruning_arms.everything('natural'),
    'random': pruning_arms.random_texts('natural', KEEP),
    'semdedup': pruning_arms.deduplicated('natural', KEEP),
    **pruning_arms.ARMS_WITH_COPIES,
  },
  seeds=(5, 6, 7, 8),
  title='Does a corpus without semantic duplicates teach more?',
  subtitle='SemDeDup (arXiv:2303.09540) in miniature on newswire',
  departures=DEPARTURES,
  encoder=pruning_arms.encoder,
  encoder_settings=pruning_arms.ENCODER,
)

# What `jaxmm reproduce semdedup` calls.
run = functools.partial(pruning_claim.run, STUDY)
