"""D4's central claim in miniature: stated before it was run.

Claim (arXiv:2308.12284): text that D4 selects (semantic duplicates dropped, what is left clustered
again, the most prototypical dropped) teaches a model more in the same steps than random text, and
more than what SemDeDup alone leaves at the same size.

The paper's gain is on text that is not web text; held-out text like the pool may get worse, because
it resembles what is pruned. So held-out texts of other kinds are judged, and the pool's reported.
Corpus and control are those of the claim about SemDeDup.

This is the second statement. In the first run (seeds 1 to 4, 1,000 steps from random weights) when
a model began to see more than the frequency of tokens hung on chance, and seeds of one arm differed
as much as arms; it was inconclusive, README.md has its table.
Now all arms of a seed begin with the same model. Criteria and arms are the same; the seeds are new.
"""

from __future__ import annotations

import functools

from jaxmm.curation import d4
from jaxmm.curation.d4 import D4Config
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.stages import Stages
from jaxmm.studies import pruning_arms, pruning_claim, pruning_texts
from jaxmm.studies.pruning import Arm
from jaxmm.studies.pruning_claim import PruningClaim
from jaxmm.studies.verdict import Claim, Criterion

KEEP = 0.5
# Of all bytes, what half of the texts by D4 hold in the mean: it takes longer texts than chance.
BYTES_OF_D4 = 0.568


def corpora(data_path, scale):
  """Natural and planted pool of a folder."""
  return pruning_texts.of_folder(
    data_path,
    scale,
    plant=pruning_arms.plant_copies,
    planting=pruning_arms.PLANTING_OF_COPIES,
    what='for example Reuters-21578 as pool, and books, C4 and Wikipedia held out',
  )


def selected(pool, seed, directory, echo):
  """What D4 keeps, with the paper's R_dedup."""
  config = D4Config('hard', KEEP, 0.75, kmeans=KMeansConfig(seed=seed))
  return d4.run(pool.vectors(), config, Stages(directory, echo=echo))


CLAIM = Claim(
  paper='d4',
  sentence='Half of a corpus, chosen by D4, teaches a language model more in the same steps than a '
  'random half and than the half that SemDeDup alone leaves.',
  criteria=(
    Criterion(
      'other kinds of text need fewer bits than after a random half',
      metric='bits_elsewhere', arm='d4', against='random', claimed='below', unit='bits a byte',
    ),
    Criterion(
      'and fewer than after the half that SemDeDup leaves',
      metric='bits_elsewhere', arm='d4', against='semdedup', claimed='below', unit='bits a byte',
    ),
    pruning_arms.COPIES_ARE_SEEN,
    Criterion(
      'reported: and than after the whole corpus',
      metric='bits_elsewhere', arm='d4', against='everything', claimed='below',
      unit='bits a byte', is_reported=True,
    ),
    Criterion(
      'reported: held-out news against a random half',
      metric='bits_pool', arm='d4', against='random', claimed='below', unit='bits a byte',
      is_reported=True,
    ),
    Criterion(
      'reported, added after the run: other kinds of text, against random texts of as many bytes',
      metric='bits_elsewhere', arm='d4', against='random_of_bytes', claimed='below',
      unit='bits a byte', is_reported=True,
    ),
  ),
)  # fmt: skip

DEPARTURES = (
  '1.6 MB of newswire and a model of 0.2 M parameters, not CommonCrawl and OPT up to 6.7 B.',
  'Vectors are of all-MiniLM-L6-v2 (mean of the first 128 token states), not of the last token of '
  'OPT-125M.',
  'No MinHash first: the newswire has few copies that are not semantic duplicates as well.',
  'k is the square root of the number of texts, the rule that the paper takes 11,000 from.',
  'A fixed corpus, of which the half is seen about once, the whole less than once; the paper also '
  'repeats what it selects.',
)

STUDY = PruningClaim(
  claim=CLAIM,
  corpora=corpora,
  arms={
    'everything': pruning_arms.everything('natural'),
    'random': pruning_arms.random_texts('natural', KEEP),
    'semdedup': pruning_arms.deduplicated('natural', KEEP),
    'd4': Arm(
      'natural', selected, {'method': 'd4', 'keep': KEEP, 'dedup_keep': 0.75}, needs_vectors=True
    ),
    'random_of_bytes': pruning_arms.random_bytes('natural', BYTES_OF_D4),
    **pruning_arms.ARMS_WITH_COPIES,
  },
  seeds=(5, 6, 7, 8),
  title='Does text that D4 selects teach more?',
  subtitle='D4 (arXiv:2308.12284) in miniature on newswire',
  departures=DEPARTURES,
  encoder=pruning_arms.encoder,
  encoder_settings=pruning_arms.ENCODER,
)

# What `jaxmm reproduce d4` calls.
run = functools.partial(pruning_claim.run, STUDY)
