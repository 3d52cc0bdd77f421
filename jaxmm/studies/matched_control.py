"""A control arm: one tokenizer degraded until it reconstructs as badly as another.

Any worse tokenizer is easier to model, so a method that worsens reconstruction must be compared
with what the same loss of detail buys without it. Detail is taken away by one whole number of the
tokenizer's run config, its size: width of the network, codes of the codebook. Baselines with the
sizes of a ladder are trained, and the control's size is interpolated between their errors, linear
in the logarithm of the size.

Every tokenizer of the search is trained as long as the control itself will be, so that a size of
the ladder is, on its seed, the very control it stands for. How long is a choice. At equal `flops` a
smaller network takes more steps; where runs are short that can make it the better one, and nothing
is degraded. At equal `steps` it sees the same rows as often and is only smaller.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import two_stage
from jaxmm.studies.stages import Stage, Study


@dataclasses.dataclass(frozen=True)
class MatchedControl:
  """How a control is made.

  Attributes:
    arm: what the control is called.
    of: the arm that is degraded.
    like: the arm whose reconstruction error it is to have.
    setting: where the size stands in the tokenizer's run config, such as 'model.vqgan.channels'.
    ladder: sizes, besides that of `of`, that are trained to interpolate between.
    equal: what it spends as much of as `like`: training 'flops' or 'steps'.
    search_seeds: on how many of the study's seeds, from the first, the ladder is trained; the mean
      of the errors counts.
    multiple: the size that is found is rounded down to a multiple of it.
    must_answer: False where a search that finds nothing is no reason to stop (a control that is
      shown but decides nothing): the control then gets the size of the ladder whose error is
      nearest, and its result says why.
  """

  arm: str
  of: str
  like: str
  setting: str
  ladder: tuple[int, ...]
  equal: str = 'flops'
  search_seeds: int = 1
  multiple: int = 1
  must_answer: bool = True


def add_search(
  study: Study,
  control: MatchedControl,
  tokenizers: Mapping[str, Mapping[str, Any]],
  seeds: Sequence[int],
) -> None:
  """Adds the stages that find a control's size; the last one, called after it, has it as `size`.

  Args:
    study: gets the tokenizers of both arms (if it does not have them) and of the ladder.
    control: how it is made.
    tokenizers: `{arm: run config}`.
    seeds: of the study; the search takes the first of them.

  Raises:
    ConfigError: an arm that is not there, a ladder that does not lead down, or a size that may come
      out but that no tokenizer can have.
  """
  _check(control, tokenizers)
  full = size_of(tokenizers[control.of], control.setting)
  names: dict[Any, list[str]] = {}  # of an arm or a size, the stages on all seeds
  for seed in seeds[: control.search_seeds]:
    for arm in (control.of, control.like):
      name = two_stage.add_tokenizer(study, tokenizers[arm], seed, arm)
      names.setdefault(arm, []).append(name)
    for size in control.ladder:
      config = degraded(control, tokenizers, size)
      name = two_stage.add_tokenizer(study, config, seed, f'search-{control.arm}-{size}')
      names.setdefault(size, []).append(name)

  def mean_error(which) -> float:
    return statistics.fmean(study.result(name)['mse'] for name in names[which])

  def search(path) -> dict[str, Any]:
    del path
    errors = {size: mean_error(size) for size in control.ladder}
    errors[full] = mean_error(control.of)
    target, reason = mean_error(control.like), ''
    try:
      size = interpolated_size(errors, target, control.multiple)
    except ConfigError as error:
      if control.must_answer:
        raise ConfigError(f'control {control.arm}: {error}') from error
      size, reason = min(control.ladder, key=lambda s: abs(errors[s] - target)), str(error)
    shown = {str(s): errors[s] for s in sorted(errors, reverse=True)}
    found = {'setting': control.setting, 'size': size, 'errors': shown, 'target': target}
    found |= {'reason': reason, 'seeds': len(names[control.like])}
    study.echo(f'  {remark(control.arm, found)}')
    return found

  settings = dataclasses.asdict(control)
  trained = tuple(name for group in names.values() for name in group)
  study.add(
    Stage(control.arm, search, settings, trained, title=f'control {control.arm}: size', cost=0.1)
  )


def _check(control: MatchedControl, tokenizers: Mapping[str, Mapping[str, Any]]) -> None:
  arm = control.arm
  for other in (control.of, control.like):
    if other not in tokenizers:
      raise ConfigError(
        f'control {arm} is to compare with arm {other!r}, but there are {", ".join(tokenizers)}'
      )
  if arm in tokenizers:
    raise ConfigError(f'control {arm} is called as an arm of the claim; choose another name')
  if control.equal not in ('flops', 'steps'):
    raise ConfigError(f'control {arm}: equal is {control.equal!r}, expected flops or steps')
  for name in ('multiple', 'search_seeds'):
    if getattr(control, name) < 1:
      raise ConfigError(f'control {arm}: {name} is {getattr(control, name)}, expected at least 1')
  full = size_of(tokenizers[control.of], control.setting)
  ladder = control.ladder
  if not ladder or len(set(ladder)) < len(ladder) or not 0 < min(ladder) <= max(ladder) < full:
    raise ConfigError(
      f'control {arm}: ladder is {ladder}, expected different sizes below the {full} that '
      f'{control.setting} is in {control.of}'
    )
  if any(size % control.multiple for size in ladder):
    raise ConfigError(
      f'control {arm}: ladder is {ladder}, expected multiples of {control.multiple}'
    )
  # The largest size that may be found: where it and the ladder can be built, so can what lies
  # between (a width must be divisible by the groups of its normalisation).
  degraded(control, tokenizers, (full - 1) // control.multiple * control.multiple)


def degraded(
  control: MatchedControl, tokenizers: Mapping[str, Mapping[str, Any]], size: int
) -> dict[str, Any]:
  """The control's run config for a size, as long as the arm that it is to be like."""
  config = with_size(tokenizers[control.of], control.setting, size)
  like = tokenizers[control.like]
  if control.equal == 'steps':
    return dict(config, steps=like['steps'])
  return two_stage.at_equal_flops(config, like)


def size_of(config: Mapping[str, Any], setting: str) -> int:
  """The whole number at a dotted path of a run config.

  Raises:
    ConfigError: there is none.
  """
  values = configs.flattened(config)
  if setting not in values:
    raise configs.unknown_key(setting, list(values), "the tokenizer's run config")
  if type(values[setting]) is not int:
    raise ConfigError(f'{setting} is {values[setting]!r}, expected a whole number to degrade')
  return values[setting]


def with_size(config: Mapping[str, Any], setting: str, size: int) -> dict[str, Any]:
  """The run config with another number at a dotted path, all else the same."""
  key, _, rest = setting.partition('.')
  return dict(config) | {key: with_size(config[key], rest, size) if rest else size}


def interpolated_size(errors: Mapping[int, float], target: float, multiple: int = 1) -> int:
  """The largest size with at least the error `target`, linear in the logarithm of the size.

  Args:
    errors: `{size: reconstruction error}` of baselines.
    target: the error that the control is to have.
    multiple: of which the size has to be one; the largest size in `errors` may be any.

  Raises:
    ConfigError: the target is above the error of the largest size, and the errors do not rise as
      sizes shrink or it lies beyond them.
  """
  sizes = sorted(errors, reverse=True)
  values = [errors[s] for s in sizes]
  shown = ', '.join(f'{v:.4g} at {s}' for s, v in zip(sizes, values, strict=True))
  if target <= values[0]:
    return sizes[0]  # nothing was lost, so the arm itself is the control
  if not all(b > a for a, b in zip(values, values[1:])):
    raise ConfigError(
      f'the errors do not rise as sizes shrink: {shown}; train longer, or give the ladder other '
      'sizes'
    )
  if not target <= values[-1]:
    raise ConfigError(
      f'the error {target:.4g} is beyond that of the smallest size ({shown}); add a smaller one to '
      'the ladder'
    )
  size = 2 ** np.interp(target, values, [math.log2(s) for s in sizes])
  return int(math.floor(size / multiple + 1e-6)) * multiple  # 12 may come out as 11.999...


def remark(arm: str, found: Mapping[str, Any]) -> str:
  """One sentence or two on the size that a search found; `found` is the result of its stage."""
  errors = ', '.join(f'{error:.4g} at {size}' for size, error in found['errors'].items())
  said = (
    f'Control {arm} has {found["setting"]}={found["size"]}: the search for an error of '
    f'{found["target"]:.4g} ({_seeds(found["seeds"])}) found {errors}.'
  )
  if not found['reason']:
    return said
  return f'{said} No size answers ({found["reason"]}), so this is the nearest of the ladder.'


def _seeds(number: int) -> str:
  return 'one seed' if number == 1 else f'mean of {number} seeds'
