"""The first thing a newcomer runs: CRT on MNIST, from images to a verdict, in minutes."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Callable
from typing import Any

from jaxmm import config as configs
from jaxmm.report import page
from jaxmm.studies import two_stage, two_stage_page
from jaxmm.studies.stages import Study, check_equal_budgets
from jaxmm.studies.two_stage import TwoStage

NUM_SAMPLES = 500

DEPARTURES = (
  'One seed on 5,000 digits: a demonstration, not evidence. The claim itself, with seeds and a '
  'degraded control, is `jaxmm reproduce crt`.',
  'No perceptual and no adversarial term; a network hundreds of times smaller than VQ-16.',
  'The Frechet distance is taken in the leading principal components of the training images, not '
  'in the features of a network.',
)


def plan(seed: int = 0, steps: tuple[int, int] | None = None) -> TwoStage:
  """The study; `steps` (tokenizer, image model) replaces the config's, to try it out."""
  stage = {w: configs.plain(configs.load_config(f'crt/mini.py:{w}')) for w in _PARTS}
  if steps is not None:
    stage['crt']['steps'], stage['image_lm']['steps'] = steps
  baseline = two_stage.at_equal_flops(stage['baseline'], stage['crt'])
  return TwoStage(
    tokenizers={'baseline': baseline, 'crt': stage['crt']},
    image_model=stage['image_lm'],
    seeds=(seed,),
    num_samples=NUM_SAMPLES,
  )


_PARTS = ('crt', 'baseline', 'image_lm')


def run(
  workdir: str | os.PathLike,
  *,
  seed: int = 0,
  steps: tuple[int, int] | None = None,
  echo: Callable[[str], None] = print,
) -> pathlib.Path:
  """Runs what is not done yet and writes `workdir/report.html`; returns its path."""
  settings = plan(seed, steps)
  check_equal_budgets(two_stage.budgets(settings), tolerance=0.02)
  study = Study(workdir, echo)
  two_stage.add_stages(study, settings)
  study.run()
  measured = two_stage.measurements(study, settings)
  two_stage_page.print_table(measured, echo)
  sentence, tone = _finding(measured, seed)
  echo(f'\n{sentence}')
  return two_stage_page.write(
    study,
    settings,
    title='Causally regularized tokens on MNIST',
    subtitle='The same codebook, tokens, compute and image model, with and without the regularizer',
    head=[page.verdict_box('What came out', tone, sentence)],
    departures=DEPARTURES,
  )


def _finding(measured: dict[str, dict[int, dict[str, Any]]], seed: int) -> tuple[str, str]:
  """What the one pair says, whichever way it points."""
  ours, base = measured['crt'][seed], measured['baseline'][seed]
  bits = ours['bits_per_image'] / base['bits_per_image'] - 1
  error = ours['reconstruction_mse'] / base['reconstruction_mse'] - 1
  better, worse = bits < 0, error > 0
  direction = 'as the paper claims' if better else 'against what the paper claims'
  sentence = (
    f'With the regularizer the image model needs {abs(bits):.1%} {"fewer" if better else "more"} '
    f'bits an image ({ours["bits_per_image"]:.1f} against {base["bits_per_image"]:.1f}), '
    f'{direction}; reconstructions have {abs(error):.1%} {"more" if worse else "less"} squared '
    f'error, and code perplexity is {ours["code_perplexity"]:.0f} against '
    f'{base["code_perplexity"]:.0f}. One seed: see `jaxmm reproduce crt` for a test.'
  )
  return sentence, 'holds' if better else 'fails'
