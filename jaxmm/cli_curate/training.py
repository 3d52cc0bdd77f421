"""What `jaxmm train` and `jaxmm curate apply` have in common: which run, and how it begins."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def add_options(p: argparse.ArgumentParser) -> None:
  """The options of a run on this machine."""
  p.add_argument(
    '--config', required=True, metavar='FILE.py[:ARG]', help='what to train; ARG picks a variant'
  )
  p.add_argument('--workdir', required=True, metavar='DIR', help='the run, made if it is not there')
  p.add_argument(
    '--init-from',
    metavar='RUN',
    help='start from the parameters of another run; default: from new ones',
  )
  p.add_argument(
    '--accept-config-change',
    action='store_true',
    help='resume although the config differs from the one the run began with',
  )
  p.add_argument(
    '--profile',
    metavar='FIRST:LAST',
    help='trace these steps with the JAX profiler; default: none',
  )
  p.add_argument(
    '--stop-after', type=int, metavar='STEP', help='save and leave at this step; default: the last'
  )


def train(options, overrides: Sequence[str]) -> int:
  """Trains what these options describe."""
  from jaxmm import config as configs
  from jaxmm.studies import run

  profile = window(options.profile)
  run.train_from_config(
    run.with_settings(configs.load_config(options.config), overrides),
    options.workdir,
    init_from=options.init_from,
    accept_config_change=options.accept_config_change,
    profile=profile,
    stop_after=options.stop_after,
  )
  return 0


def window(text: str | None) -> tuple[int, int] | None:
  """First and last step of `--profile`.

  Raises:
    ConfigError: it is none.
  """
  from jaxmm.config import ConfigError

  if text is None:
    return None
  first, _, last = text.partition(':')
  if not (first.isdigit() and last.isdigit() and int(first) <= int(last)):
    raise ConfigError(f'--profile is {text!r}, expected FIRST:LAST, for example 20:25')
  return int(first), int(last)
