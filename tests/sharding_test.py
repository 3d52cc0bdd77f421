"""Meshes and rule tables: every array is born where it belongs, whatever the strategy."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmm import sharding
from jaxmm.core import axes
from tests import multiprocess


class Net(nn.Module):
  """One matrix that two mesh axes can split, one that none divides."""

  @nn.compact
  def __call__(self, x_BD):
    init = nn.initializers.lecun_normal()
    up_DF = self.param('up', axes.weight(init, axes.EMBED, axes.MLP), (16, 32))
    odd_FO = self.param('odd', axes.weight(init, axes.MLP, axes.EMBED), (32, 7))
    h_BF = axes.constrain(x_BD @ up_DF, axes.BATCH, axes.ACT_MLP)
    return h_BF @ odd_FO


@pytest.mark.parametrize(
  ('rules', 'up', 'odd'),
  [
    ('dp', P(None, None), P(None, None)),
    ('fsdp', P('fsdp', None), P(None, None)),  # 7 is not divided by 2: it stays whole
    ('tensor', P('fsdp', 'tensor'), P('tensor', None)),
  ],
)
def test_sharded_init_equals_unsharded_init(rules, up, odd):
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  key, x = jax.random.key(0), jnp.ones((8, 16))
  table = sharding.rules_named(rules)
  sharded = sharding.init_sharded(Net().init, key, x, mesh=mesh, rules=table)
  assert sharded['params']['up'].sharding.spec == up
  assert sharded['params']['odd'].sharding.spec == odd
  chex.assert_trees_all_close(sharded, nn.unbox(Net().init(key, x)), rtol=1e-6)


def test_a_constraint_is_the_identity_off_a_mesh():
  x = jnp.ones((4, 2))
  assert axes.constrain(x, axes.BATCH, axes.ACT_EMBED) is x


def test_rows_are_spread_over_every_device_that_holds_other_data():
  mesh = sharding.make_mesh(sharding.MeshConfig(2, 2, 2))
  batch = sharding.global_batch(mesh, {'x': np.arange(8)})
  assert {s.data.shape for s in batch['x'].addressable_shards} == {(2,)}
  np.testing.assert_array_equal(batch['x'], np.arange(8))


@pytest.mark.parametrize(
  ('config', 'message'),
  [
    (sharding.MeshConfig(3, 1, 1), 'there are 8'),
    (sharding.MeshConfig(-1, -1, 1), 'at most one of them -1'),
    (sharding.MeshConfig(-1, 3, 1), 'multiple of 3 devices'),
    (sharding.MeshConfig(0, 1, 1), 'must be positive'),
  ],
)
def test_a_mesh_that_does_not_fit_the_devices_says_so(config, message):
  with pytest.raises(ValueError, match=message):
    sharding.make_mesh(config)


def test_an_unknown_rule_table_names_the_known():
  with pytest.raises(ValueError, match='dp, fsdp, tensor'):
    sharding.rules_named('zero')


class SliceDevice:
  """A fake device of a slice; jax asks a device for no more to make a mesh."""

  platform = device_kind = 'cpu'

  def __init__(self, number, slices, count):
    self.id, self.slice_index = number, number % slices  # out of order on purpose
    self.process_index, self.client, self.num_devices = self.slice_index, None, count


def slice_devices(slices, count):
  return [SliceDevice(i, slices, count) for i in range(count)]


@pytest.mark.parametrize('sizes', [(4, 2, 1), (-1, 1, 2), (2, 2, 2), (2, -1, 1)])
def test_only_the_data_axis_goes_across_slices(sizes):
  mesh = sharding.make_mesh(sharding.MeshConfig(*sizes), slice_devices(2, 8))
  slices = np.vectorize(lambda d: d.slice_index)(mesh.devices)
  half = len(slices) // 2
  assert (slices[:half] == 0).all() and (slices[half:] == 1).all()
  assert len({d.id for d in mesh.devices.flat}) == 8
  assert mesh.axis_names == sharding.MESH_AXES


def test_a_mesh_whose_data_axis_slices_do_not_divide_is_refused():
  with pytest.raises(ValueError, match='1 parts along data, but the devices are of 2 slices'):
    sharding.make_mesh(sharding.MeshConfig(1, 8, 1), slice_devices(2, 8))
  with pytest.raises(ValueError, match='make mesh.data a multiple of 4'):
    sharding.make_mesh(sharding.MeshConfig(2, 4, 1), slice_devices(4, 8))


class HostDevice:
  """A fake device of a process."""

  def __init__(self, process):
    self.process_index = process


def mesh_of_processes(processes, shape):
  devices = np.array([HostDevice(p) for p in processes]).reshape(shape)
  return jax.sharding.Mesh(devices, sharding.MESH_AXES)


@pytest.mark.parametrize(
  'processes, shape, share, order',
  [
    ([0, 0, 1, 1], (2, 2, 1), (0, 2), [0, 1, 2, 3, 4, 5, 6, 7]),
    # A pod's network orders the devices: this process has the first and the last part.
    ([0, 1, 1, 0], (2, 2, 1), (0, 2), [0, 1, 4, 5, 6, 7, 2, 3]),
    ([1, 0, 0, 1], (4, 1, 1), (1, 2), [0, 1, 4, 5, 6, 7, 2, 3]),
    # Both processes hold all rows, or two of four the same half.
    ([0, 1, 0, 1], (2, 1, 2), (0, 1), [0, 1, 2, 3, 4, 5, 6, 7]),
    ([1, 2, 0, 3], (1, 2, 2), (1, 2), [0, 1, 2, 3, 4, 5, 6, 7]),
  ],
)
def test_processes_that_hold_the_same_rows_read_the_same_share(processes, shape, share, order):
  mesh = mesh_of_processes(processes, shape)
  assert sharding.share_of_rows(mesh) == share
  assert sharding.row_order(mesh, 8).tolist() == order


def test_rows_that_are_cut_across_processes_are_refused():
  with pytest.raises(ValueError, match='some processes hold a part of the same rows'):
    sharding.share_of_rows(mesh_of_processes([0, 0, 0, 1], (2, 1, 2)))


PLACED = """
import numpy as np
from jax.experimental import multihost_utils
from jaxmm import sharding
for order, shape in (([0, 2, 3, 1], (2, 2, 1)), ([0, 2, 1, 3], (2, 1, 2))):
  mesh = jax.sharding.Mesh(np.array(jax.devices())[order].reshape(shape), sharding.MESH_AXES)
  index, count = sharding.share_of_rows(mesh)
  mine = np.arange(8).reshape(count, -1)[index]
  x = sharding.global_batch(mesh, {'x': mine})['x']
  whole = jax.jit(lambda x: x, out_shardings=sharding.replicated(mesh))(x)
  print(np.asarray(whole).tolist() == sharding.row_order(mesh, 8).tolist(), count)
"""


def test_every_row_is_there_once_wherever_the_processes_lie():
  for said in multiprocess.run_processes(2, PLACED, 2):
    assert said.split('\n')[:2] == ['True 2', 'True 1']
