"""What the chips can do, as their maker publishes it.

Sources: the tables of cloud.google.com/tpu/docs/v4, v5e, v5p, v6e and tpu7x (memory, bandwidth,
peak); one-way bandwidth of a link, links and data-centre network a chip from "How to Scale Your
Model" (jax-ml.github.io/scaling-book/tpus, the table of chips), and for TPU7x the total of its
page (1,200 GB/s both ways over 6 links). Figures are of one *device* as jax counts them: a chip,
but of TPU7x half of one.
"""

from __future__ import annotations

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
  """One device.

  Attributes:
    name: of the generation, as topologies are called.
    memory: usable bytes of HBM: what its compiler admits (v5e, v5p, v6e as it says itself when a
      program is too large; the others as published).
    peak: bf16 FLOP/s.
    bandwidth: of HBM, bytes/s.
    link: of one interconnect link in one direction, bytes/s.
    dimensions: of the torus.
    network: to other slices, bytes/s of one direction.
    wraps_at: an axis of a slice is a ring where its length is a multiple of this, else a line.
    devices_a_chip: 2 where a chip counts as two devices.
  """

  name: str
  memory: float
  peak: float
  bandwidth: float
  link: float
  dimensions: int
  network: float
  wraps_at: int
  devices_a_chip: int = 1


CHIPS = {
  'v4': Chip('v4', 30.75 * GIB, 275e12, 1228e9, 45e9, 3, 6.25e9, 4),
  'v5e': Chip('v5e', 15.75 * GIB, 197e12, 819e9, 45e9, 2, 3.1e9, 16),
  'v5p': Chip('v5p', 95.74 * GIB, 459e12, 2765e9, 90e9, 3, 6.25e9, 4),
  'v6e': Chip('v6e', 31.25 * GIB, 918e12, 1638e9, 90e9, 2, 12.5e9, 16),
  'tpu7x': Chip('tpu7x', 94.75 * GIB, 1153.5e12, 3690e9, 100e9, 3, 6.25e9, 4, 2),
}
# The generation by what jax calls a device of it.
KINDS = {
  'TPU v4': 'v4', 'TPU v5 lite': 'v5e', 'TPU v5': 'v5p', 'TPU v5p': 'v5p', 'TPU v6 lite': 'v6e',
  'TPU7x': 'tpu7x',
}  # fmt: skip
