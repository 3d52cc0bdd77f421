"""Devices of machines that are not here: TPU slices by name, described by the `libtpu` wheel."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import math
import os
import re
from collections.abc import Sequence

import jax
from jax.experimental import topologies

from jaxmm.config import ConfigError
from jaxmm.pods.chips import CHIPS, Chip

# Shapes that are rented, smallest to largest (cloud.google.com/tpu/docs, "Accelerator
# configurations"); others of the same form compile as well.
FLAT = ('2x2', '2x4', '4x4', '4x8', '8x8', '8x16', '16x16')
SOLID = (
  '2x2x1', '2x2x2', '2x2x4', '2x4x4', '4x4x4', '4x4x8', '4x8x8', '8x8x8', '8x8x16', '8x16x16',
  '16x16x16', '16x16x24',
)  # fmt: skip
# Without these the wheel looks for a machine's metadata server before it says what is known.
_QUIET = {
  'TPU_SKIP_MDS_QUERY': '1',
  'TPU_ACCELERATOR_TYPE': 'v5litepod-8',
  'TPU_WORKER_HOSTNAMES': 'localhost',
  'TPU_WORKER_ID': '0',
  # Nothing here opens a device, so two plans may be made at one time.
  'ALLOW_MULTIPLE_LIBTPU_LOAD': '1',
}


@dataclasses.dataclass(frozen=True)
class Topology:
  """A machine by name.

  Attributes:
    name: such as 'v5e:16x16'.
    slices: how many of them, joined by the data-centre network.
    chip: what one device can do.
    devices: of all slices, as `jaxmm.sharding.make_mesh` takes them.
  """

  name: str
  slices: int
  chip: Chip
  devices: Sequence[jax.Device]

  @property
  def num_chips(self) -> int:
    """Of all slices."""
    return len(self.devices) // self.chip.devices_a_chip

  def __str__(self) -> str:
    return f'{self.slices} x {self.name}' if self.slices > 1 else self.name


def known() -> str:
  """The names that are known, for messages."""
  lines = []
  for name, chip in CHIPS.items():
    shapes = FLAT if chip.dimensions == 2 else SOLID
    lines.append(', '.join(f'{name}:{shape}' for shape in shapes))
  return '\n  '.join(lines)


def parsed(name: str) -> tuple[str, tuple[int, ...]]:
  """Generation and shape of a name.

  Raises:
    ConfigError: no such generation, or a shape of another dimension.
  """
  found = re.fullmatch(r'(\w+):(\d+(?:x\d+)*)', name)
  generation = found and found[1].lower()
  if not found or generation not in CHIPS:
    raise ConfigError(f'topology is {name!r}, which is unknown; known are\n  {known()}')
  shape = tuple(int(n) for n in found[2].split('x'))
  if len(shape) != CHIPS[generation].dimensions or not all(shape):
    raise ConfigError(
      f'topology is {name!r}, but {generation} is a torus of {CHIPS[generation].dimensions} '
      f'dimensions; known are\n  {known()}'
    )
  return generation, shape


def described(name: str, slices: int = 1) -> Topology:
  """The devices of a slice, or of several.

  Args:
    name: generation and shape, `v5e:16x16`, `v5p:8x8x8`, `v6e:16x16`, `tpu7x:4x4x4`, `v4:4x4x4`.
    slices: how many.

  Raises:
    ConfigError: a name that is unknown, no `libtpu`, or one that cannot describe it.
  """
  generation, shape = parsed(name)
  if slices < 1:
    raise ConfigError(f'slices is {slices}, expected a number >= 1')
  check_libtpu()
  for variable, value in _QUIET.items():
    os.environ.setdefault(variable, value)
  full = f'{generation}:{"x".join(map(str, shape))}'
  options = {'num_slices': slices} if slices > 1 else {}
  try:
    found = topologies.get_topology_desc(platform='tpu', topology_name=full, **options)
  except Exception as error:
    raise ConfigError(
      f'topology is {name!r}, which libtpu cannot describe: {error}; known are\n  {known()}'
    ) from error
  chip = CHIPS[generation]
  expected = math.prod(shape) * slices * chip.devices_a_chip
  if len(found.devices) != expected:
    raise ConfigError(
      f'topology {full} has {len(found.devices)} devices where {expected} were expected; this '
      'libtpu describes it otherwise than jaxmm.pods.chips'
    )
  return Topology(full, slices, chip, tuple(found.devices))


def check_libtpu() -> None:
  """Whether the compiler is here.

  Raises:
    ConfigError: no `libtpu`; the message says how to install it.
  """
  if importlib.util.find_spec('libtpu') is None:
    raise ConfigError(
      "libtpu is not installed, and it is what compiles for TPUs; pip install -e '.[pods]' brings "
      "the one that this jax pins (jax[tpu]); a newer one cannot print v5p's and v6e's programs"
    )


def libtpu_version() -> str:
  """Of the wheel that compiles."""
  return importlib.metadata.version('libtpu')
