"""The page of a two-stage study: what a person looks at to believe, or doubt, its numbers."""

from __future__ import annotations

import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from jaxmm.report import figures, images, page
from jaxmm.report.run_page import read_log
from jaxmm.studies import claim_page, loading, pictures, stages, two_stage
from jaxmm.studies.two_stage import TwoStage

METRICS = {
  'bits_per_image': 'stage-2 bits an image (held out)',
  'frechet': 'Frechet distance of samples',
  'reconstruction_frechet': 'Frechet distance of reconstructions',
  'generation_gap': "of the samples' distance, lost by generating",
  'reconstruction_mse': 'reconstruction error (MSE, images in [-1, 1])',
  'psnr': 'PSNR, dB',
  'code_perplexity': 'code perplexity',
  'code_usage': 'share of codes used',
}


def write(
  study: stages.Study,
  plan: TwoStage,
  *,
  title: str,
  subtitle: str,
  head: Sequence = (),
  controls: Sequence[str] = (),
  departures: Sequence[str] = (),
) -> pathlib.Path:
  """Writes `report.html` into the study's directory.

  Args:
    study: finished.
    plan: what was run.
    title, subtitle: of the page.
    head: blocks that come first (the verdict).
    controls: sentences, how the size of each control was found.
    departures: sentences, each one way in which this is not the paper.
  """
  out = page.Page(title, subtitle, claim_page.facts(plan.seeds))
  out.add(*head)
  _add_table(out, study, plan)
  if controls:
    out.add_section('How the controls were found', *controls)
  _add_positions(out, study, plan)
  _add_losses(out, study, plan)
  _add_reconstructions(out, study, plan)
  _add_samples(out, study, plan)
  _add_budget(out, plan)
  if departures:
    out.add_section('Where this departs from the paper', *departures)
  out.add_section(
    'Settings',
    *(page.settings(config, f'tokenizer, arm {arm}') for arm, config in plan.tokenizers.items()),
    page.settings(plan.image_model, 'image model (all arms)'),
  )
  return out.write(study.directory / 'report.html')


def _add_table(out: page.Page, study: stages.Study, plan: TwoStage) -> None:
  out.add_section(
    'The numbers',
    page.table(*claim_page.table(two_stage.measurements(study, plan), METRICS)),
    intro='Mean over seeds, in brackets the smallest and the largest.',
  )


def _add_positions(out: page.Page, study: stages.Study, plan: TwoStage) -> None:
  bits = two_stage.bits_by_position(study, plan)
  length = next(iter(bits.values())).shape[1]
  x = list(range(length))
  lines = [
    figures.over_seeds(arm, x, bits_SL, color=i) for i, (arm, bits_SL) in enumerate(bits.items())
  ]
  arms = list(bits)
  gaps = [
    figures.over_seeds(f'{arm} - {arms[0]}', x, np.cumsum(bits[arm] - bits[arms[0]], axis=1), i)
    for i, arm in enumerate(arms)
    if i
  ]
  blocks = [
    page.figure(
      figures.line_chart(
        lines, x_label='position in the image, raster order', y_label='bits a code'
      ),
      'Held-out cross-entropy of the image model at each position; bands run from the smallest to '
      'the largest seed.',
      look_for='the regularized line lies below, most of all late in the image',
    )
  ]
  if gaps:
    blocks.append(
      page.figure(
        figures.line_chart(
          gaps, x_label='position in the image, raster order', y_label='bits saved so far'
        ),
        f'The difference to {arms[0]}, added up along the image; the last value is the difference '
        'in bits an image.',
        look_for='a line that keeps falling: every part of the image became more predictable',
      )
    )
  out.add_section('Stage 2, position by position', page.columns(*blocks))


def _add_losses(out: page.Page, study: stages.Study, plan: TwoStage) -> None:
  seed = plan.seeds[0]
  charts = []
  for stage, metrics in (
    ('tokenizer', ('reconstruction', 'causal')),
    ('image_model', ('cross_entropy',)),
  ):
    for metric in metrics:
      series = []
      for i, arm in enumerate(plan.tokenizers):
        log = read_log(study.path(f'seed-{seed}/{arm}/{stage}') / 'log.jsonl')
        if metric in log.columns:
          steps, values = log.columns[metric]
          series.append(figures.thinned(figures.Series(arm, steps, values, color=i)))
      if series:
        title = f'{stage.replace("_", " ")}: {metric.replace("_", " ")}'
        charts.append(figures.line_chart(series, title=title, log_y=metric != 'cross_entropy'))
  out.add_section(
    'Loss curves', page.columns(*charts), intro=f'Training losses of seed {seed}, every arm.'
  )


def _add_reconstructions(out: page.Page, study: stages.Study, plan: TwoStage) -> None:
  seed, rows = plan.seeds[0], {}
  for arm in plan.tokenizers:
    loaded = loading.load(study.path(f'seed-{seed}/{arm}/tokenizer'))
    originals = pictures.held_out_images(loaded, 12)
    rows.setdefault('original', originals)
    rows[arm] = loaded.decode(loaded.encode(originals), batch=12)
  out.add_section(
    'Originals and reconstructions',
    page.figure(
      images.image_rows(rows),
      'Held-out images.',
      look_for='a regularized tokenizer may blur a little more; it must not lose the object',
    ),
  )


def _add_samples(out: page.Page, study: stages.Study, plan: TwoStage) -> None:
  seed, grids = plan.seeds[0], []
  for arm in plan.tokenizers:
    path = study.path(f'seed-{seed}/{arm}/samples') / 'samples.npz'
    with np.load(path) as arrays:
      grids.append(images.image_grid(arrays['arr_0'][:60], columns=10, title=arm))
  out.add_section(
    'Samples',
    page.columns(*grids),
    intro='The first 60 samples of each arm, one class a column; none is picked.',
  )


def _add_budget(out: page.Page, plan: TwoStage) -> None:
  head, rows = stages.budget_rows(two_stage.budgets(plan))
  out.add_section(
    'Compute',
    page.table(head, rows),
    intro='Planned training FLOPs; a multiply-add counts as two. Only a control that is smaller on '
    'purpose, in as many steps, costs less.',
  )


def print_table(measured: Mapping, echo) -> None:
  """The numbers for a terminal."""
  echo(stages.text_table(*claim_page.table(measured, METRICS)))
