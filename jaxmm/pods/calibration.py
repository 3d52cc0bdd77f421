"""Published runs that the estimate is held against, built from our own Stack and step.

MaxText (github.com/AI-Hypercomputer/maxtext): `configs/tpu/v5e/README.md` says 61.10 % for 16B and
66.86 % for 32B on one v5e-256; `docs/reference/models/tiering.md` 65.4 % for Llama 2 70B on
v5p-512, which is 256 chips (the name counts cores). Shapes, rows a device and remat are those of
`16b.sh`, `32b.sh` and `llama2_70b.sh`; `global_parameter_scale` of 16 and 32 as its `types.py`
turns it into widths.

Predicted with `roofline.ASSUMPTIONS` (jax 0.10.2, libtpu 0.0.42.1, quick effort): 60.4 %, 64.3 %
and 65.1 %. The assumptions were written down before the first of these came out and needed no
change.
"""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Published:
  """One run.

  Attributes:
    topology: of the machine.
    rows: a device.
    utilisation: as published.
    model: of `jaxmm.models.lm`.
  """

  name: str
  topology: str
  rows: int
  utilisation: float
  model: dict[str, Any]


def _model(depth, width, heads, kv_heads, hidden, length, remat) -> dict[str, Any]:
  return dict(
    depth=depth, width=width, num_heads=heads, num_kv_heads=kv_heads, head_dim=128, hidden=hidden,
    length=length, vocab_size=32_000, dtype='bfloat16', remat=remat, attention_backend='auto',
  )  # fmt: skip


RUNS = (
  Published('16B', 'v5e:16x16', 6, 0.6110, _model(32, 4096, 64, 64, 28_672, 2048, 'block')),
  Published('32B', 'v5e:16x16', 4, 0.6686, _model(32, 8192, 64, 64, 28_672, 2048, 'block')),
  Published('70B', 'v5p:4x8x8', 4, 0.654, _model(80, 8192, 64, 8, 28_672, 4096, 'narrow')),
)
# Of the three predictions, each in shares of the peak.
TOLERANCE = 0.08


def run_settings(run: Published, devices: int) -> dict[str, Any]:
  """The run's config, for `jaxmm.train.run_config.RunConfig`."""
  adamw = dict(name='adamw', learning_rate=3e-5, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0)
  return dict(
    task='jaxmm.models.lm', steps=15, batch=run.rows * devices, model=run.model,
    optimizer=dict(model=adamw), mesh=dict(data=1, fsdp=-1, tensor=1), rules='fsdp',
  )  # fmt: skip
