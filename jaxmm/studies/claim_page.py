"""What the pages of all kinds of claims have in common."""

from __future__ import annotations

from collections.abc import Sequence
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
  """The mean and, where seeds differ, the smallest and the largest in brackets."""
  mean = f'{np.mean(values):.4g}'
  return mean if len(set(values)) == 1 else f'{mean} ({min(values):.4g} to {max(values):.4g})'
