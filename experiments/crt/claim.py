"""CRT's central claim in miniature: metric, sign, test and threshold, stated before it was run.

Claim (arXiv:2412.16326, abstract and section on stage 2): with the causal regularizer the same
image model reaches a lower loss on the codes, and better samples, although reconstruction gets
slightly worse; codebook size, tokens and compute are the same.

Any worse tokenizer is easier to model, so the baseline is also degraded to the regularized
tokenizer's reconstruction error:

- `narrow` has fewer channels and the same codebook, and is trained for as many steps as the
  regularized one. Channels come in steps, so the mean of its error must lie between 0.99 and 1.08
  of the regularized one, or nothing is decided. How its size is found:
  `jaxmm/studies/matched_control.py`.

This is the second statement. The first run (seeds 1, 2, 3; latents before quantisation, weight
0.25) was inconclusive; README.md has its table. From it and from pilots on the seeds 0 and 3 come
`latent='quantized'` and weight 0.1; the seeds here were not looked at before. The criteria are the
same. The first run also reported a control with fewer codes, which was not judged and is not
repeated: a smaller alphabet lowers the bits of a code by itself.
"""

from __future__ import annotations

import functools

from jaxmm.studies import two_stage_claim
from jaxmm.studies.matched_control import MatchedControl
from jaxmm.studies.two_stage_claim import TwoStageClaim
from jaxmm.studies.verdict import Claim, Criterion

CLAIM = Claim(
  paper='crt',
  sentence='At equal codebook size, tokens and compute, a causally regularized tokenizer (in a '
  'variant: its codes are predicted) makes images cheaper to model and samples better, more than a '
  'worse network of the same error does.',
  criteria=(
    Criterion(
      'stage 2 needs fewer bits an image than on the baseline',
      metric='bits_per_image', arm='crt', against='baseline', claimed='below', threshold=0.0,
    ),
    Criterion(
      'and fewer than on the narrow control of the same error',
      metric='bits_per_image', arm='crt', against='narrow', claimed='below', threshold=0.0,
    ),
    Criterion(
      'samples are nearer to the training images (Frechet distance)',
      metric='frechet', arm='crt', against='baseline', claimed='below', threshold=0.0,
    ),
    Criterion(
      'the codebook is as much in use (perplexity, at least 0.9 of it)',
      metric='code_perplexity', arm='crt', against='baseline', claimed='above', threshold=0.9,
      compare='ratio',
    ),
    Criterion(
      'condition: narrow has the regularized error (at least 0.99 of it)',
      metric='reconstruction_mse', arm='narrow', against='crt', claimed='above', threshold=0.99,
      compare='ratio', test='mean', is_condition=True,
    ),
    Criterion(
      'condition: and not much more (at most 1.08 of it)',
      metric='reconstruction_mse', arm='narrow', against='crt', claimed='below', threshold=1.08,
      compare='ratio', test='mean', is_condition=True,
    ),
    Criterion(
      'reported: generating costs less of that distance (samples less reconstructions)',
      metric='generation_gap', arm='crt', against='baseline', claimed='below', threshold=0.0,
      is_reported=True,
    ),
  ),
)  # fmt: skip

CONTROLS = (
  MatchedControl(
    'narrow', of='baseline', like='crt', setting='model.vqgan.channels', ladder=(12, 8), multiple=2,
    equal='steps', search_seeds=5,
  ),
)  # fmt: skip

DEPARTURES = (
  'CIFAR-10 at 32x32 and 64 codes of 512, not ImageNet at 256x256 and 256 codes of 16,384; '
  'networks and runs are thousands of times smaller.',
  'No perceptual and no adversarial term: at this length a discriminator adds noise, not detail.',
  'All arms have an entropy term of weight 0.005, which keeps latents spread; without it the '
  'regularizer draws them together instead of making them predictable.',
  'The Frechet distance is in the features of EfficientNet-Lite0 at 128 pixels to 20,000 training '
  'images, from 5,000 samples without guidance; the paper reports Inception FID of 50,000 with it.',
  'The regularizer predicts the codes, with the gradient of the latents; the paper found that this '
  'costs too much detail and predicts latents before quantisation. Its weight is 0.1, not 4.0.',
  'The regularizer costs a larger share of the training FLOPs than the twentieth of the paper; the '
  'baseline trains that much longer.',
  'The paper has no control. narrow is a smaller network in as many steps.',
)


STUDY = TwoStageClaim(
  claim=CLAIM,
  config='crt/cifar10.py',
  arms={'baseline': 'baseline', 'crt': 'crt'},
  image_model='image_lm',
  equal_to='crt',
  controls=CONTROLS,
  # Those before are left out: settings were chosen on them.
  seeds=(4, 5, 6, 7, 8),
  measures=dict(views='flip', num_samples=5000, features='classifier', feature_size=128),
  title='Is a causally regularized tokenizer easier to model?',
  subtitle='CRT (arXiv:2412.16326) in miniature on CIFAR-10',
  departures=DEPARTURES,
)  # fmt: skip

# What `jaxmm reproduce crt` calls.
run = functools.partial(two_stage_claim.run, STUDY)
