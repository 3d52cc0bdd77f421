"""A control arm: one tokenizer degraded until it reconstructs as badly as another.

Any worse tokenizer is easier to model, so a method that worsens reconstruction must be compared
with what the same loss of detail buys without it. Here detail is taken away by a smaller codebook:
baselines with the codebooks of a ladder are trained on one seed, and the control's size is
interpolated between them, linear in the logarithm of the size.

All of the search trains for as many steps as the full codebook does. The control itself gets the
FLOPs of the other arms, and a smaller codebook makes a step cheaper: in CRT's miniature by 0.14 %
at most, which is one step more than 679 with few codes and none with many. The last step of a
cosine schedule has a learning rate of almost nothing, so the search's errors stand for it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.studies import two_stage
from jaxmm.studies.stages import Stage, Study


@dataclasses.dataclass(frozen=True)
class MatchedControl:
  """How the control is made.

  Attributes:
    of: the arm that is degraded.
    like: the arm whose reconstruction error it is to have.
    ladder: sizes of codebook, besides that of `of`, that are trained to interpolate between.
    arm: what the control is called.
  """

  of: str
  like: str
  ladder: tuple[int, ...]
  arm: str = 'control'


def add_search(
  study: Study,
  control: MatchedControl,
  tokenizers: Mapping[str, Mapping[str, Any]],
  seed: int,
  *,
  must_answer: bool = True,
) -> None:
  """Adds the stages that find the control's codebook; the last one's result has it (`codes`).

  Args:
    study: gets the tokenizers of both arms and of the ladder, and a stage called after the control.
    control: how it is made.
    tokenizers: `{arm: run config}`, at equal FLOPs.
    seed: on which the search is trained.
    must_answer: False for runs too short for their errors to mean anything: where the search finds
      nothing it says so, and the control gets the ladder's first codebook.

  Raises:
    ConfigError: an arm that is not there, or a ladder that does not lead down.
  """
  for arm in (control.of, control.like):
    if arm not in tokenizers:
      raise ConfigError(
        f'the control is to compare with arm {arm!r}, but there are {", ".join(tokenizers)}'
      )
  full = codes_of(tokenizers[control.of])
  if not control.ladder or not 0 < min(control.ladder) <= max(control.ladder) < full:
    raise ConfigError(
      f'ladder is {control.ladder}, expected sizes of codebook below the {full} of {control.of}'
    )
  names: dict[Any, str] = {}
  for arm in tokenizers:
    names[arm] = two_stage.add_tokenizer(study, tokenizers[arm], seed, arm)
  for codes in control.ladder:
    config = with_codes(tokenizers[control.of], codes)
    names[codes] = two_stage.add_tokenizer(study, config, seed, f'search-{codes}')

  def search(path) -> dict[str, int]:
    del path
    errors = {c: study.result(names[c])['mse'] for c in control.ladder}
    errors[full] = study.result(names[control.of])['mse']
    try:
      return {'codes': interpolated_codes(errors, study.result(names[control.like])['mse'])}
    except ConfigError as error:
      if must_answer:
        raise
      study.echo(f'no control to be had at this length: {error}; it gets {control.ladder[0]} codes')
      return {'codes': control.ladder[0]}

  study.add(
    Stage(
      control.arm,
      search,
      {'ladder': list(control.ladder)} | ({} if must_answer else {'must_answer': False}),
      tuple(names.values()),
      title=f'codebook size of the {control.arm}',
      cost=0.1,
    )
  )


def codes_of(tokenizer: Mapping[str, Any]) -> int:
  """Size of the codebook of a tokenizer's run config."""
  return tokenizer['model']['vqgan']['quantizer']['codes']


def with_codes(tokenizer: Mapping[str, Any], codes: int) -> dict[str, Any]:
  """The tokenizer's run config with another size of codebook, all else the same."""
  network = tokenizer['model']['vqgan']
  network = dict(network, quantizer=dict(network['quantizer'], codes=codes))
  return dict(tokenizer, model=dict(tokenizer['model'], vqgan=network))


def interpolated_codes(errors: Mapping[int, float], target: float) -> int:
  """The largest codebook with at least the error `target`, linear in the logarithm of the size.

  Args:
    errors: `{codes: reconstruction error}` of baselines.
    target: the error that the control is to have.

  Raises:
    ConfigError: the errors do not rise as codebooks shrink, or the target lies beyond them.
  """
  sizes = sorted(errors, reverse=True)
  values = [errors[c] for c in sizes]
  if any(b <= a for a, b in zip(values, values[1:])):
    raise ConfigError(f'errors {errors} do not rise as codebooks shrink; train the search longer')
  if target > values[-1]:
    raise ConfigError(
      f'the error {target:.4g} is beyond that of {sizes[-1]} codes ({values[-1]:.4g}); add a '
      'smaller codebook to the ladder'
    )
  if target <= values[0]:
    return sizes[0]  # nothing was lost, so the arm itself is the control
  return int(math.floor(2 ** np.interp(target, values, [math.log2(c) for c in sizes])))
