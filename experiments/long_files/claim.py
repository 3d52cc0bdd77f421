"""The central claim of "Brevity is the soul of wit" in miniature: stated before it was run.

Claim (arXiv:2407.00434): at a small compute budget, dropping the longest files of a code corpus is
better than dropping random ones (and than pruning by embeddings, see the claim about SCIP); the
perplexity of held-out long code rises.

The paper judges by HumanEval, short functions: here it is the bits a byte of short held-out files
(and of HumanEval and MBPP where the user has them), with those of long files beside. A fifth of the
bytes is dropped. `planted` is the harness's own control: every tenth file of that pool is replaced
by a table of numbers of twenty times its size, which is what the paper finds among long files.

All arms of a seed begin with one model that has been trained on other files (see `pruning`).
"""

from __future__ import annotations

import functools

import numpy as np

from jaxmm.curation import long_files
from jaxmm.curation.long_files import LongFilesConfig
from jaxmm.studies import pruning_arms, pruning_claim, pruning_corpora, pruning_texts
from jaxmm.studies.pruning import Arm
from jaxmm.studies.pruning_claim import PruningClaim
from jaxmm.studies.verdict import Claim, Criterion

DROP, POOL_BYTES = 0.5, 4_000_000


def with_tables(texts):
  """Every tenth file is a long table of numbers."""
  rng = np.random.default_rng(0)
  return [
    pruning_corpora.literal_data(rng, min(20 * len(text), 100_000)) if i % 10 == 0 else text
    for i, text in enumerate(texts)
  ]


def corpora(data_path, scale):
  """Natural and planted pool of Python files."""
  return pruning_texts.of_library(
    data_path, scale, pool_bytes=POOL_BYTES, plant=with_tables, planting={'tables': 'every tenth'}
  )


def short(pool, seed, directory, echo):
  """All but the longest files, which hold the share of the bytes."""
  del seed
  return long_files.run(pool.inputs, LongFilesConfig(drop_token_share=DROP), directory, echo=echo)


def without_longest(pool: str) -> Arm:
  """The shorter files as an arm."""
  return Arm(pool, short, {'method': 'long_files', 'drop_token_share': DROP})


CLAIM = Claim(
  paper='long_files',
  sentence='At a small budget, code without its longest files (half of the bytes) teaches a '
  'language model more about short code than random files of as many bytes.',
  criteria=(
    Criterion(
      'short code needs fewer bits than after random files',
      metric='bits_short', arm='long_files', against='random', claimed='below', unit='bits a byte',
    ),
    Criterion(
      'condition: planted tables are seen at this size',
      metric='bits_short', arm='planted_long_files', against='planted_random', claimed='below',
      unit='bits a byte', is_condition=True,
    ),
    Criterion(
      'reported: and than after everything',
      metric='bits_short', arm='long_files', against='everything', claimed='below',
      unit='bits a byte', is_reported=True,
    ),
    Criterion(
      'reported: long code needs more bits, as the paper says',
      metric='bits_long', arm='long_files', against='random', claimed='above', unit='bits a byte',
      is_reported=True,
    ),
  ),
)  # fmt: skip

DEPARTURES = (
  "4 MB of the standard library's Python and a model of 0.2 M parameters, not The Stack "
  'and a pretrained LLM of 7 B; ours has been trained on 0.8 MB of other files before.',
  'Quality is the bits a byte of held-out short code, not HumanEval pass@1.',
  'Length is counted in bytes.',
)

STUDY = PruningClaim(
  claim=CLAIM,
  corpora=corpora,
  arms={
    'everything': pruning_arms.everything('natural'),
    'random': pruning_arms.random_bytes('natural', 1 - DROP),
    'long_files': without_longest('natural'),
    'planted_random': pruning_arms.random_bytes('planted', 1 - DROP),
    'planted_long_files': without_longest('planted'),
  },
  seeds=(5, 6, 7, 8),
  title='Does code without its longest files teach more?',
  subtitle='Brevity is the soul of wit (arXiv:2407.00434) in miniature',
  departures=DEPARTURES,
)

# What `jaxmm reproduce long_files` calls.
run = functools.partial(pruning_claim.run, STUDY)
