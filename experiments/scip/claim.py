"""SCIP's central claim in miniature: stated before it was run.

Claim (arXiv:2312.02418): files that lie in small clusters, or far from their centroid, are where
synthetically damaged code ends up; a model that trains without them is better at code than one that
trains on a random part of the same size, and than one that trains on everything.

The encoder is a stand-in (StarEncoder is not packaged): all-MiniLM-L6-v2 on the beginning of each
file. Two fifths are pruned, twice the paper's share, so that there is something to see. `planted`
is the harness's own control, with the answer known: two fifths of that pool are tables of numbers.

All arms of a seed begin with one model that has been trained on other files (see `pruning`).
"""

from __future__ import annotations

import functools

import numpy as np

from jaxmm.curation import scip
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.scip import ScipConfig
from jaxmm.curation.stages import Stages
from jaxmm.studies import encoders, pruning_arms, pruning_claim, pruning_corpora, pruning_texts
from jaxmm.studies.pruning import Arm
from jaxmm.studies.pruning_claim import PruningClaim
from jaxmm.studies.verdict import Claim, Criterion

PRUNE, JUNK, POOL_BYTES = 0.4, 0.4, 4_000_000


def corpora(data_path, scale):
  """Natural and planted pool of Python files."""
  return pruning_texts.of_library(
    data_path,
    scale,
    pool_bytes=POOL_BYTES,
    plant=lambda texts: pruning_corpora.with_junk(texts, JUNK, pruning_corpora.literal_data),
    planting={'junk': JUNK, 'kind': 'literal_data'},
  )


def easy(pool, seed, directory, echo):
  """What SCIP keeps, with the paper's alpha; k about the square root of the files."""
  of = pool.vectors()
  found = Stages(directory, echo=echo).clustering('kmeans', of, KMeansConfig(seed=seed))
  cluster_N, distance_N = np.zeros(len(of), np.int64), np.zeros(len(of), np.float32)
  cluster_N[of.usable_U], distance_N[of.usable_U] = found.cluster_N, found.distance_N
  config = ScipConfig('easy', prune_fraction=PRUNE, alpha=0.8)
  return scip.judged(
    of.ids, of.digest_N, cluster_N, distance_N, config, other_reason_N=of.reason_N
  )  # fmt: skip


CLAIM = Claim(
  paper='scip',
  sentence='Code without the files that SCIP prunes teaches a language model more in the same '
  'steps than code without random files.',
  criteria=(
    Criterion(
      'short code needs fewer bits than after a random part of the same size',
      metric='bits_short', arm='scip', against='random', claimed='below', unit='bits a byte',
    ),
    Criterion(
      'and fewer than after everything',
      metric='bits_short', arm='scip', against='everything', claimed='below', unit='bits a byte',
    ),
    Criterion(
      'condition: planted junk is seen at this size',
      metric='bits_short', arm='planted_clean', against='planted_random', claimed='below',
      unit='bits a byte', is_condition=True,
    ),
    Criterion(
      'reported: pieces of long files, against a random part',
      metric='bits_long', arm='scip', against='random', claimed='below', unit='bits a byte',
      is_reported=True,
    ),
  ),
)  # fmt: skip

DEPARTURES = (
  "4 MB of the standard library's Python and a model of 0.2 M parameters, not The Stack "
  'and a model of 1.5 B.',
  'The encoder is all-MiniLM-L6-v2 on the first 256 tokens of a file, not StarEncoder.',
  'k is the square root of the number of files, not 100; two fifths are pruned, not one.',
  'Quality is the bits a byte of held-out short code, not pass@1 on HumanEval and MBPP.',
)

STUDY = PruningClaim(
  claim=CLAIM,
  corpora=corpora,
  arms={
    'everything': pruning_arms.everything('natural'),
    'random': pruning_arms.random_texts('natural', 1 - PRUNE),
    'scip': Arm(
      'natural', easy, {'method': 'scip', 'prune': PRUNE, 'alpha': 0.8}, needs_vectors=True
    ),
    'planted_random': pruning_arms.random_texts('planted', 1 - JUNK),
    'planted_clean': pruning_arms.without_junk('planted', JUNK),
  },
  seeds=(5, 6, 7, 8),
  title='Does code without the files that SCIP prunes teach more?',
  subtitle='SCIP (arXiv:2312.02418) in miniature',
  departures=DEPARTURES,
  encoder=encoders.minilm,
  encoder_settings={'encoder': 'minilm'},
)

# What `jaxmm reproduce scip` calls.
run = functools.partial(pruning_claim.run, STUDY)
