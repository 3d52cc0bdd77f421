"""What every trained run has once it is loaded."""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxmm.task import Task


@dataclasses.dataclass(frozen=True)
class LoadedRun:
  """A run's config, Task and parameters.

  Attributes:
    directory: the run directory.
    config: its settings, plain dicts.
    task: the Task they describe.
    step: of the checkpoint that was read.
    variables: `{'params': ..., other collections}`, on all devices.
    weights: which parameters these are: 'params', or 'ema', their average.
  """

  directory: pathlib.Path
  config: Mapping[str, Any]
  task: Task
  step: int
  variables: Mapping[str, Any]
  weights: str = 'params'
