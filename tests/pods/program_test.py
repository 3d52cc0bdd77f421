"""The reader of compiled programs: a committed text as libtpu writes them, and programs for CPUs
whose products and collectives are known."""

import pathlib

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm import sharding
from jaxmm.pods import collectives, hlo, products, program

TEXT = (pathlib.Path(__file__).parent / 'programs' / 'v5e_loop.hlo').read_text()
MESH = {'data': 2, 'fsdp': 4, 'tensor': 1}


@pytest.fixture(scope='module')
def loop():
  return program.read(TEXT, {'data': 1, 'fsdp': 256, 'tensor': 1})


def test_a_loop_counts_as_often_as_it_runs(loop):
  module = hlo.parsed(TEXT)
  assert module.entry == 'main'
  assert module.times()['body.1'] == 32
  assert 'add.1' not in module.times()  # applied to single elements


def test_a_computation_of_another_thread_ends_where_it_ends():
  text = TEXT.replace(
    '}\n\n%fused_computation.1', '}, execution_thread="sparsecore"\n\n%fused_computation.1'
  )
  assert hlo.parsed(text).computations.keys() == hlo.parsed(TEXT).computations.keys()


def test_a_loop_that_steps_by_two_from_eight():
  text = TEXT.replace('%one = s32[]{:T(128)} constant(1)', '%one = s32[]{:T(128)} constant(2)')
  text = text.replace('%zero = s32[]{:T(128)} constant(0)', '%zero = s32[]{:T(128)} constant(8)')
  assert hlo.parsed(text).times()['body.1'] == 12


def test_products_of_loops_and_kernels(loop):
  gate = 2 * 6 * 2048 * 4096 * 28_672
  kernel = 2 * 2 * 6 * 64 * 2048 * 2048 * 128
  assert loop.flops == 32 * gate + kernel
  assert loop.kernels == {'splash_mha_fwd': 1}
  assert loop.unknown_calls == {}


def test_collectives_have_bytes_axes_and_trips(loop):
  gather, reduce = sorted(loop.collectives, key=lambda c: c.kind)
  assert (gather.kind, gather.axes, gather.times) == ('all-gather', 'fsdp', 32)
  assert gather.bytes == 4096 * 28_672 * 2
  assert (reduce.kind, reduce.group, reduce.bytes) == ('all-reduce', (0, 1, 2, 3), 4)


def test_traffic_is_what_a_fusion_slices_and_not_what_stays_on_the_chip(loop):
  by_name = {w.name: w for w in loop.work}
  # One layer of float32 is read, one of bfloat16 written.
  assert by_name['slice_convert_fusion'].bytes == 16 * 28_672 * (4 + 2) + 4
  # The product's result is in S(1), on-chip memory.
  assert by_name['fusion.1'].bytes == 2 * (6 * 2048 * 4096 + 4096 * 28_672)


@pytest.mark.parametrize(
  'text, group',
  [
    ('{{0,1},{2,3}}', (0, 1)),
    ('[2,2]<=[4]', (0, 1)),
    ('[2,2]<=[2,2]T(1,0)', (0, 2)),
    ("mesh['a'=2,'b'=4] {'b'}", (0, 1, 2, 3)),
    ("mesh['a'=2,'b'=4] {'a'}", (0, 4)),
    ("mesh['a'=2,'b'=4] {'b':(1)2}", (0, 2)),
    ("mesh['a'=2,'b'=4] {'b':(2)2}", (0, 1)),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", (0, 1, 2, 3)),
    ("mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", (0, 4)),
    ('{}', (0, 1, 2, 3, 4, 5, 6, 7)),
  ],
)
def test_replica_groups_in_every_way_they_are_written(text, group):
  assert collectives.first_group(text, 8) == group


def test_a_gather_over_the_inner_axis_of_two():
  groups = "mesh['a'=16,'b'=16], device_ids=([16,16]T(1,0)) {'a'}"
  text = TEXT.replace("mesh['axis_0'=256,'axis_1'=1] {'axis_0'}", groups)
  found = program.read(text, {'data': 16, 'fsdp': 16, 'tensor': 1}).collectives
  assert [c.axes for c in found if c.kind == 'all-gather'] == ['fsdp']


def test_the_axes_of_a_group():
  assert collectives.axes_of((0, 1), MESH) == 'fsdp'
  assert collectives.axes_of((0, 4), MESH) == 'data'
  assert collectives.axes_of((0, 1, 4), MESH) == 'data+fsdp'
  assert collectives.axes_of((3,), MESH) == 'none'


@pytest.mark.parametrize(
  'line, flops',
  [
    # Over rows 0 and b: a product of [16 * 256, 1280] and [1280, 20 * 64].
    (
      '  %c = bf16[16,256,20,64]{3,2,1,0} convolution(%a, %b), window={size=1x20 pad=0_0x19_19 '
      'rhs_reversal=0x1}, dim_labels=0bf1_i1o0->0b1f',
      2 * 16 * 256 * 1280 * 20 * 64,
    ),
    # A batch of 16 * 20 products [256, 64] x [64, 256].
    (
      '  %c = f32[16,20,256,256]{3,2,1,0} convolution(%d, %e), window={size=16x20 stride=15x19 '
      'lhs_dilate=16x20}, dim_labels=0b1f_0o1i->01bf',
      2 * 16 * 20 * 256 * 64 * 256,
    ),
  ],
)
def test_convolutions_that_are_products(line, flops):
  text = f"""
ENTRY %main (a: bf16[16,256,1280,1]) -> f32[] {{
  %a = bf16[16,256,1280,1]{{3,2,1,0}} parameter(0)
  %b = bf16[1280,20,64,1]{{3,2,1,0}} parameter(1)
  %d = bf16[16,256,20,64]{{3,2,1,0}} parameter(2)
  %e = bf16[16,256,20,64]{{3,2,1,0}} parameter(3)
{line}
}}
"""
  module = hlo.parsed(text)
  home = module.computations['main']
  assert products.product(home.instructions['c'], home).flops == flops


def test_a_trip_count_that_cannot_be_read_is_an_error():
  with pytest.raises(ValueError, match=r'trip count of the loop while\.1'):
    hlo.parsed(TEXT.replace('constant(32)', 'parameter(1)')).times()


# Programs that XLA compiled for eight CPU devices.


def test_products_of_a_compiled_loop():
  def f(x, w_T):
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w_T)[0]

  args = jax.ShapeDtypeStruct((24, 32), jnp.float32), jax.ShapeDtypeStruct((5, 32, 32), jnp.float32)
  found = program.read(jax.jit(f).lower(*args).compile().as_text(), {'data': 1})
  assert found.flops == 5 * 2 * 24 * 32 * 32


def test_collectives_of_a_compiled_loop():
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=4))

  def f(x):
    def body(x, _):
      x = x * jax.lax.psum(x, 'fsdp')
      gathered = jax.lax.all_gather(x, 'data', tiled=True)
      return x + gathered[:16] + jax.lax.ppermute(x, 'fsdp', [(0, 1), (1, 0)]), None

    return jax.lax.scan(body, x, length=3)[0]

  spec = P(('data', 'fsdp'))
  split = jax.shard_map(f, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
  x = jax.ShapeDtypeStruct((128, 8), jnp.float32, sharding=NamedSharding(mesh, spec))
  found = program.read(jax.jit(split).lower(x).compile().as_text(), dict(mesh.shape))
  by_kind = {c.kind: c for c in found.collectives}
  part = 16 * 8 * 4
  expected = {
    'all-reduce': ('fsdp', part, 3),
    'all-gather': ('data', 2 * part, 3),
    'collective-permute': ('fsdp', part, 3),
  }
  assert {k: (c.axes, c.bytes, c.times) for k, c in by_kind.items()} == expected
