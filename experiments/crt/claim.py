"""CRT's central claim in miniature: metric, sign, test and threshold, stated before the first run.

Claim (arXiv:2412.16326, abstract and section on stage 2): with the causal regularizer the same
image model reaches a lower loss on the codes, and better samples, although reconstruction gets
slightly worse; codebook size, tokens and compute are the same.

Any worse tokenizer is easier to model, so a third arm, `control`, is the baseline degraded to the
regularized tokenizer's reconstruction error by a smaller codebook: its size is interpolated (in the
logarithm of the size) between baselines trained on the first seed. That its error came out within
0.99 and 1.05 of the regularized one is a condition: where it does not hold, nothing is decided.
"""

from __future__ import annotations

import math
import pathlib
from collections.abc import Callable, Sequence

import numpy as np

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.interop.efficientnet import read_classifier
from jaxmm.studies import two_stage, two_stage_page
from jaxmm.studies.stages import Stage, Study, check_equal_budgets, paired, write_json
from jaxmm.studies.two_stage import TwoStage
from jaxmm.studies.verdict import Claim, Criterion, judge

# Seed 0 is left out: the weight and the lengths were chosen on it.
SEEDS = (1, 2, 3)
NUM_SAMPLES = 5000
# Sizes of codebook that the control's is interpolated between, besides the baseline's own.
LADDER = (128, 32)

CLAIM = Claim(
  paper='crt',
  sentence='At equal codebook size, tokens and compute, a causally regularized tokenizer makes '
  'images cheaper to model and samples better, more than degrading the tokenizer as far does.',
  criteria=(
    Criterion(
      'stage 2 needs fewer bits an image than on the baseline',
      metric='bits_per_image', arm='crt', against='baseline', claimed='below', threshold=0.0,
    ),
    Criterion(
      'and fewer than on the control of the same reconstruction error',
      metric='bits_per_image', arm='crt', against='control', claimed='below', threshold=0.0,
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
      'condition: the control has the regularized error (at least 0.99 of it)',
      metric='reconstruction_mse', arm='control', against='crt', claimed='above', threshold=0.99,
      compare='ratio', test='mean', is_condition=True,
    ),
    Criterion(
      'condition: and not much more (at most 1.05 of it)',
      metric='reconstruction_mse', arm='control', against='crt', claimed='below', threshold=1.05,
      compare='ratio', test='mean', is_condition=True,
    ),
  ),
)  # fmt: skip

DEPARTURES = (
  'CIFAR-10 at 32x32 and 64 codes of 512, not ImageNet at 256x256 and 256 codes of 16,384; '
  'networks and runs are thousands of times smaller.',
  'No perceptual and no adversarial term: at this length a discriminator adds noise, not detail.',
  'The Frechet distance is in the features of EfficientNet-Lite0 at 128 pixels to 20,000 training '
  'images, from 5,000 samples without guidance; the paper reports Inception FID of 50,000 with it.',
  'The regularizer costs about an eighth of the training FLOPs here, a twentieth in the paper; the '
  'baseline trains that much longer.',
)


def run(
  workdir: pathlib.Path,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
  echo: Callable[[str], None] = print,
) -> pathlib.Path:
  """Runs what is not done yet; prints and writes the verdict; returns the report's path."""
  if scale <= 0:
    raise ConfigError(f'scale is {scale}, expected a positive number')
  seeds = tuple(seeds or SEEDS)
  paired(seeds, ['any'])  # what is wrong with the seeds or missing of the weights shows at once
  read_classifier()
  stage = {w: _config(w, data_path, scale) for w in ('crt', 'baseline', 'image_lm')}
  baseline = two_stage.at_equal_flops(stage['baseline'], stage['crt'])
  study = Study(workdir, echo)
  arms = {'baseline': baseline, 'crt': stage['crt']}
  codes = _control_codes(study, arms, seeds[0])
  control = two_stage.at_equal_flops(_with_codes(baseline, codes), stage['crt'])
  plan = TwoStage(
    tokenizers=arms | {'control': control},
    image_model=stage['image_lm'],
    seeds=seeds,
    views='flip',
    num_samples=NUM_SAMPLES if scale >= 1 else 1500,
    features='classifier',
    feature_size=128,
  )
  check_equal_budgets(two_stage.budgets(plan), tolerance=0.03)
  two_stage.add_stages(study, plan)
  study.run()
  measured = two_stage.measurements(study, plan)
  two_stage_page.print_table(measured, echo)
  head = []
  if len(seeds) >= CLAIM.min_seeds and scale >= 1:
    verdict = judge(CLAIM, measured)
    echo('\n' + verdict.text())
    write_json(study.directory / 'verdict.json', verdict.to_json())
    head = verdict.blocks()
  else:
    echo(f'\nno verdict: {len(seeds)} seeds at scale {scale}; the claim needs 3 at scale 1')
  return two_stage_page.write(
    study,
    plan,
    title='Is a causally regularized tokenizer easier to model?',
    subtitle='CRT (arXiv:2412.16326) in miniature on CIFAR-10',
    head=head,
    departures=DEPARTURES,
  )


def _config(what: str, data_path: str | None, scale: float) -> dict:
  config = configs.plain(configs.load_config(f'crt/cifar10.py:{what}'))
  config['steps'] = max(2, round(config['steps'] * scale))
  for settings in config['optimizer'].values():
    settings['warmup'] = round(settings['warmup'] * scale)
  if 'regularizer' in config['model']:
    settings = config['model']['regularizer']
    settings['ramp_steps'] = round(settings['ramp_steps'] * scale)
  if data_path and what != 'image_lm':
    for section in ('data', 'eval_data'):
      config[section] |= {'name': 'images', 'path': str(data_path)}
  return config


def _with_codes(config: dict, codes: int) -> dict:
  network = config['model']['vqgan']
  network = dict(network, quantizer=dict(network['quantizer'], codes=codes))
  return dict(config, model=dict(config['model'], vqgan=network))


def _control_codes(study: Study, arms: dict[str, dict], seed: int) -> int:
  """The codebook size at which a baseline has the regularized tokenizer's error, rounded down."""
  full = arms['baseline']['model']['vqgan']['quantizer']['codes']
  names: dict = {}
  for arm, config in arms.items():
    names[arm] = two_stage.add_tokenizer(study, config, seed, arm)
  for codes in LADDER:
    config = _with_codes(arms['baseline'], codes)
    names[codes] = two_stage.add_tokenizer(study, config, seed, f'search-{codes}')
  search = Stage(
    'control',
    lambda path: {'codes': _interpolated(study, names, full)},
    {'ladder': list(LADDER)},
    tuple(names.values()),
    title='codebook size of the control',
    cost=0.1,
  )
  study.add(search)
  study.run()
  codes = study.result('control')['codes']
  study.echo(f'the control has {codes} codes, the baseline {full}')
  return codes


def _interpolated(study: Study, names: dict, full: int) -> int:
  errors = {c: study.result(names[c])['mse'] for c in LADDER}
  errors[full] = study.result(names['baseline'])['mse']
  return interpolated_codes(errors, study.result(names['crt'])['mse'])


def interpolated_codes(errors: dict[int, float], target: float) -> int:
  """The largest codebook with at least the error `target`, linear in the logarithm of the size.

  Args:
    errors: `{codes: reconstruction error}` of baselines.
    target: the regularized tokenizer's error.

  Raises:
    ConfigError: the errors do not rise as codebooks shrink, or the target lies beyond them.
  """
  sizes = sorted(errors, reverse=True)
  values = [errors[c] for c in sizes]
  if any(b <= a for a, b in zip(values, values[1:])):
    raise ConfigError(f'errors {errors} do not rise as codebooks shrink; train the search longer')
  if target > values[-1]:
    raise ConfigError(
      f'the regularized error {target:.4g} is beyond that of {sizes[-1]} codes ({values[-1]:.4g}); '
      'add a smaller codebook to LADDER'
    )
  if target <= values[0]:
    return sizes[0]  # nothing was lost, so the baseline itself is the control
  return int(math.floor(2 ** np.interp(target, values, [math.log2(c) for c in sizes])))
