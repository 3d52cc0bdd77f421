"""Seconds of collectives and steps, against arithmetic by hand."""

import dataclasses
import math

import pytest

from jaxmm.pods import roofline
from jaxmm.pods.chips import CHIPS
from jaxmm.pods.collectives import Collective
from jaxmm.pods.program import Program, Work
from jaxmm.pods.roofline import Assumptions

IDEAL = Assumptions(matrix=1, kernel=1, memory=1, links=1, exposed=0, hop=0)


@dataclasses.dataclass(frozen=True)
class Device:
  coords: tuple[int, int, int]
  slice_index: int = 0


def torus(rows, columns, slices=1):
  return [Device((x, y, 0), s) for s in range(slices) for x in range(rows) for y in range(columns)]


def seconds(kind, size, group, devices, chip='v5e'):
  one = Collective(kind, (), size, tuple(group), '', 1, '')
  return roofline.seconds_of(one, CHIPS[chip], devices, IDEAL)


def test_a_gather_over_a_whole_torus_comes_in_over_four_links():
  got = seconds('all-gather', 1.8e9, range(256), torus(16, 16))
  assert got == pytest.approx((1.8e9 * 255 / 256 / (4 * 45e9), 0))


def test_a_reduction_moves_twice_what_a_gather_does():
  gather, reduce = (seconds(k, 1e9, range(256), torus(16, 16))[0] for k in
                    ('all-gather', 'all-reduce'))  # fmt: skip
  assert reduce == pytest.approx(2 * gather)


def test_a_line_has_one_link_where_a_ring_has_two():
  # v5e wraps around at 16 only.
  line = seconds('all-gather', 1e9, range(8), torus(1, 8))[0]
  assert line == pytest.approx(1e9 * 7 / 8 / 45e9)
  ring = seconds('all-gather', 1e9, range(8), torus(1, 8), 'v5p')[0]
  assert ring == pytest.approx(1e9 * 7 / 8 / (2 * 90e9))


def test_between_slices_each_chip_has_a_share_of_the_network():
  got = seconds('all-reduce', 1e9, (0, 256), torus(16, 16, 2))
  assert got == pytest.approx((0, 2 * 1e9 / 2 / 3.1e9))


def test_775m_at_256_tokens_a_chip_is_bound_by_communication():
  flops, weights = 6 * 775e6 * 256 * 256, 2 * 775e6
  mesh = {'data': 256, 'fsdp': 1, 'tensor': 1}
  got = roofline.ceiling(CHIPS['v5e'], torus(16, 16), mesh, flops, weights, IDEAL)
  assert 0.33 < got < 0.37


def test_a_step_takes_the_slower_of_products_and_traffic_one_by_one():
  chip = CHIPS['v5e']
  work = (
    Work('a', chip.peak, chip.peak, 0.5 * chip.bandwidth, 3, ''),  # 1 s each by products
    Work('b', 0, 0, 2 * chip.bandwidth, 1, ''),  # 2 s by traffic
  )
  program = Program(work, (), {}, {}, 0.0)
  one = {'data': 1, 'fsdp': 1, 'tensor': 1}
  got = roofline.estimated(
    program, chip, torus(1, 1), one, model_flops=2 * chip.peak, weight_bytes=1.0, assumptions=IDEAL
  )
  assert (got.products, got.traffic, got.core, got.step) == pytest.approx((3, 3.5, 5, 5))
  assert (got.utilisation, got.hardware, got.ceiling) == pytest.approx((0.4, 0.6, 1.0))


def test_what_overlap_leaves_exposed():
  chip = CHIPS['v5e']
  one = Collective('all-gather', (), 4 * 45e9 * 256 / 255, tuple(range(256)), 'fsdp', 2, '')  # 2 s
  program = Program((Work('a', chip.peak, chip.peak, 0, 3, ''),), (one,), {}, {}, 0.0)
  a = dataclasses.replace(IDEAL, exposed=0.25)
  got = roofline.estimated(
    program, chip, torus(16, 16), {'data': 1, 'fsdp': 256, 'tensor': 1}, model_flops=1.0,
    weight_bytes=1.0, assumptions=a,
  )  # fmt: skip
  assert got.step == pytest.approx(3 + 0.25 * 2)
  assert math.isclose(got.links, 2.0)
