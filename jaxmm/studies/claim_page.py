"""What the pages of all kinds of claims have in common."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxmm


def facts(seeds: Sequence[int], **more: Any) -> dict[str, Any]:
  """What stands at the head of a page: on what, with what and how often it was run."""
  return {
    'device': f'{jax.device_count()} x {jax.devices()[0].device_kind}',
    'jaxmm': jaxmm.__version__,
    'jax': jax.__version__,
    'seeds': ', '.join(map(str, seeds)),
    **more,
  }


def spread(values: Sequence[float]) -> str:
  """The mean and, where seeds differ, the smallest and the largest in brackets; '' of nothing."""
  if not values:
    return ''
  mean = f'{np.mean(values):.4g}'
  return mean if len(set(values)) == 1 else f'{mean} ({min(values):.4g} to {max(values):.4g})'


def table(
  measured: Mapping[str, Mapping[Any, Mapping[str, float]]],
  names: Mapping[str, str] | None = None,
) -> tuple[list[str], list[list[str]]]:
  """Columns and rows of `{arm: {seed: {metric: value}}}`: a row a metric, a column an arm.

  `names` are the metrics that are shown, and how they are called; None shows all.
  """
  if names is None:
    names = {m: m for of in measured.values() for values in of.values() for m in values}
  cell = lambda of, metric: spread([v[metric] for v in of.values() if metric in v])
  rows = [[name, *(cell(of, m) for of in measured.values())] for m, name in names.items()]
  return ['', *measured], rows
