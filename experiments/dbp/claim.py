"""DBP's central claim in miniature: metric, sign, test and threshold, stated before it was run.

Claim (arXiv:2401.04578): of deduplicated pictures, as many as are to be kept are better shared out
among clusters by their complexity (distance within times distance between them), the hardest of
each, than taken as the hardest of one ranking (self-supervised prototypes), and better than taken
at random: a model trained on them for equally many steps is more accurate.

The pool is CIFAR-10, 500 pictures a class, and 20 near-copies of each of 165 of them, 40 % of all.
That the study can see what pictures are worth at this size is a condition: of the deduplicated pool
a random part must teach more than as large a random part of the whole pool.

A first run, of the seeds 1 to 4, left everything open, the condition too (README.md keeps it): one
accuracy varies by some 1.3 points between seeds. This second one has ten fresh seeds and is the
same otherwise: at the first run's spread, differences of 0.9 points (random against copies) and of
1.4 (DBP against random) can be told from none.

Settings come from pilots on the seeds 100 and 101, which are not judged (README.md has them). They
let expect that the hardest teach less than a random part here, as Sorscher et al. 2022
(arXiv:2206.14486) say of little data; the paper's choice is judged all the same, and what the
easiest of each cluster teach is reported.
"""

from __future__ import annotations

import functools

from jaxmm.studies import image_pruning_claim
from jaxmm.studies.image_pruning import Arm
from jaxmm.studies.image_pruning_claim import ImagePruningClaim
from jaxmm.studies.planted_images import PlantedConfig
from jaxmm.studies.verdict import Claim, Criterion

CLAIM = Claim(
  paper='dbp',
  sentence='Half of a deduplicated set of pictures, shared out among clusters by their complexity, '
  'teaches a classifier more in the same steps than a random half and than the half that is '
  'hardest in one ranking.',
  criteria=(
    Criterion(
      'more accurate than after a random half',
      metric='accuracy', arm='dbp', against='random', claimed='above', unit='%',
    ),
    Criterion(
      'and than after the hardest half (prototypes)',
      metric='accuracy', arm='dbp', against='prototypes', claimed='above', unit='%',
    ),
    Criterion(
      'condition: copies cost accuracy (as many of the pool with its copies)',
      metric='accuracy', arm='random', against='with_copies', claimed='above', unit='%',
      is_condition=True,
    ),
    Criterion(
      'reported: the easiest of each cluster against a random half',
      metric='accuracy', arm='dbp_easy', against='random', claimed='above', unit='%',
      is_reported=True,
    ),
    Criterion(
      'reported: against the whole pool in as many steps',
      metric='accuracy', arm='dbp', against='full', claimed='above', unit='%', is_reported=True,
    ),
  ),
)  # fmt: skip

DEPARTURES = (
  '5,000 pictures of CIFAR-10 with their labels and a classifier of 0.36 million parameters, not '
  '280 million pictures with texts and CLIP: accuracy on test pictures, not of zero-shot ImageNet.',
  'So little data that every picture is seen some five times; in the paper data is plenty.',
  'The ten classes are equally large, whereas concepts of web data are not.',
  'Features are of EfficientNet-Lite0 at 64 pixels, not of a distilled DINOv2.',
  'The pool is cleaned by SemDeDup alone, with no filter by similarity to texts, which there are '
  'none of; near-copies are planted.',
  '100 clusters as for DataComp Medium, before SemDeDup and after it; tau 0.1 and 20 neighbours, '
  'which are not certain to be those of the paper.',
  'Counts are solved exactly, not by a QP solver and rounding.',
)

STUDY = ImagePruningClaim(
  claim=CLAIM,
  config='dbp/mini.py',
  planted=PlantedConfig(500, copied=165, copies=20, kinds=('jpeg', 'brightness', 'shift')),
  arms={
    'with_copies': Arm('random', is_deduplicated=False),
    'random': Arm('random'),
    'prototypes': Arm('prototypes'),
    'dbp': Arm('dbp'),
    'dbp_easy': Arm('dbp', prefer='easy'),
    'full': Arm('all', is_deduplicated=False),
  },
  seeds=(5, 6, 7, 8, 9, 10, 11, 12, 13, 14),
  title='Does complexity say how many pictures of a cluster to keep?',
  subtitle='DBP (arXiv:2401.04578) in miniature on CIFAR-10',
  departures=DEPARTURES,
  settings=dict(keep=0.5, eps=0.2, clusters=100, feature_size=64,
                allocation=dict(temperature=0.1, neighbours=20, balance=0.0)),
)  # fmt: skip

# What `jaxmm reproduce dbp` calls.
run = functools.partial(image_pruning_claim.run, STUDY)
