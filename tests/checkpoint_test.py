"""What was saved comes back, bit for bit, on any mesh; what is damaged never does."""

import json
import pathlib
import random
import resource
import shutil
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm.checkpoint import CheckpointError, Checkpoints, DamagedCheckpointWarning
from jaxmm.core import digest
from tests import multiprocess


def make_mesh(num_devices):
  devices = jax.devices()[:num_devices]
  return jax.make_mesh((num_devices,), ('x',), axis_types=(AxisType.Auto,), devices=devices)


def make_state(num_devices, spec=None, seed=0):
  """A small state with the dtypes and the containers that occur."""
  random_state, mesh = np.random.default_rng(seed), make_mesh(num_devices)
  split, whole = NamedSharding(mesh, P('x') if spec is None else spec), NamedSharding(mesh, P())
  floats = random_state.normal(size=(3, 8, 512)).astype(np.float32)
  return {
    'params': {'w': jax.device_put(floats[0], split), 'v': jax.device_put(floats[1], split)},
    'opt_state': (
      {'mu': jax.device_put(floats[2].astype(jnp.bfloat16), split)},
      (),
      jax.device_put(jnp.int32(7), whole),
    ),
    'extra': {
      'used': jax.device_put(floats[0] > 0, split),
      'none': jax.device_put(np.zeros((0, 4), np.float32), whole),
    },
    'ema': None,
    'key': jax.device_put(np.array([1, 2**32 - 1], np.uint32), whole),
  }


def abstract(state):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for (path, x), y in zip(jax.tree_util.tree_flatten_with_path(a)[0], jax.tree.leaves(b)):
    assert x.dtype == y.dtype and x.shape == y.shape, path
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes(), path


def data_files(path):
  """The files of a checkpoint, the larger first."""
  files = [p for p in pathlib.Path(path).rglob('*') if p.is_file() and p.stat().st_size]
  return sorted(files, key=lambda p: (-p.stat().st_size, str(p)))


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
  """A directory with the checkpoints 10 and 20 of two different states, and these."""
  directory = tmp_path_factory.mktemp('saved')
  checkpoints, states = Checkpoints(directory), {}
  for step in (10, 20):
    states[step] = make_state(8, seed=step)
    checkpoints.save(step, states[step], {'position': step, 'digest': 'abc'})
  checkpoints.wait()
  return directory, states


@pytest.mark.parametrize('num_devices, spec', [(1, P()), (2, P(None, 'x')), (4, P('x'))])
def test_restores_bit_equal_on_another_mesh_and_sharding(saved, num_devices, spec):
  directory, states = saved
  target = abstract(make_state(num_devices, spec))
  state, meta, step = Checkpoints(directory).restore(target)
  assert (meta, step) == ({'position': 20, 'digest': 'abc'}, 20)
  assert_same(states[20], state)
  for x, y in zip(jax.tree.leaves(state), jax.tree.leaves(target)):
    assert x.sharding == y.sharding


def test_no_checkpoint_is_none_and_nothing_is_created(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'absent')
  assert checkpoints.restore(abstract(make_state(1))) is None
  assert checkpoints.steps() == [] and not (tmp_path / 'absent').exists()


def test_a_step_can_be_chosen(saved):
  directory, states = saved
  state, _, step = Checkpoints(directory).restore(abstract(states[10]), step=10)
  assert step == 10
  assert_same(states[10], state)
  with pytest.raises(CheckpointError, match=r'15; there are 10, 20'):
    Checkpoints(directory).restore(abstract(states[10]), step=15)


def test_the_state_may_be_donated_right_after_save(tmp_path):
  checkpoints, state = Checkpoints(tmp_path), make_state(8)
  copy = jax.tree.map(np.array, state)
  step = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 + 1, s), donate_argnums=0)
  target = abstract(state)
  checkpoints.save(1, state, {})
  for _ in range(3):  # in place, while the file is being written
    state = step(state)
  jax.block_until_ready(state)
  assert_same(copy, checkpoints.restore(target)[0])


# Damage.


def flipped_bit(file, at, directory, target):
  """The step that is restored when one bit of `file` is wrong; the state must be right."""
  original = file.read_bytes()
  content = bytearray(original)
  content[at] ^= 1 << (at * 5 % 8)
  file.write_bytes(content)
  with warnings.catch_warnings():
    warnings.simplefilter('ignore')
    state, _, step = Checkpoints(directory).restore(target)
  file.write_bytes(original)
  return state, step


def flip_bits(directory, states, tmp_path, trials):
  """Flips bits of checkpoint 20 anywhere, and in its arrays; returns how many were noticed."""
  target, rng = abstract(make_state(1)), random.Random(0)
  copy = tmp_path / 'copy'
  shutil.copytree(directory, copy)
  files, noticed = data_files(copy / '20'), 0
  for trial in range(trials):
    file = files[trial % len(files)] if trial % 2 == 0 else files[0]
    state, step = flipped_bit(file, rng.randrange(file.stat().st_size), copy, target)
    # A device's name or a dead region may be wrong; the numbers never.
    assert_same(states[step], state)
    noticed += step == 10
  weights = np.asarray(states[20]['params']['w'])
  for _ in range(trials // 2):
    row = weights[rng.randrange(8)].tobytes()
    (file,) = [f for f in files if row in f.read_bytes()]
    at = file.read_bytes().index(row) + rng.randrange(len(row))
    state, step = flipped_bit(file, at, copy, target)
    assert step == 10, 'a wrong weight was not noticed'
    assert_same(states[10], state)
  return noticed


def test_a_flipped_bit_is_noticed(saved, tmp_path):
  assert flip_bits(*saved, tmp_path, trials=24) >= 12


@pytest.mark.slow
def test_many_flipped_bits_are_noticed(saved, tmp_path):
  assert flip_bits(*saved, tmp_path, trials=300) >= 150


@pytest.mark.parametrize('harm', ['truncate', 'empty', 'remove', 'unfinished', 'table'])
def test_a_damaged_newest_is_skipped_with_a_warning_that_names_it(saved, tmp_path, harm):
  directory, states = saved
  shutil.copytree(directory, tmp_path / 'copy')
  path = tmp_path / 'copy' / '20'
  largest = data_files(path)[0]
  if harm == 'truncate':
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  elif harm == 'empty':
    largest.write_bytes(b'')
  elif harm == 'remove':
    largest.unlink()
  elif harm == 'unfinished':
    shutil.rmtree(path / 'state')
  else:
    file = path / '_CHECKPOINT_METADATA'
    file.write_text(file.read_text().replace('"position": 20', '"position": 21'))
  with pytest.warns(DamagedCheckpointWarning, match=rf'{path} is damaged and skipped: .*'):
    state, meta, step = Checkpoints(tmp_path / 'copy').restore(abstract(states[10]))
  assert (step, meta['position']) == (10, 10)
  assert_same(states[10], state)
  with pytest.raises(CheckpointError, match='starting from zero is not done silently'):
    Checkpoints(tmp_path / 'copy').restore(abstract(states[10]), step=20)


def test_all_damaged_is_an_error(saved, tmp_path):
  directory, states = saved
  shutil.copytree(directory, tmp_path / 'copy')
  for step in ('10', '20'):
    data_files(tmp_path / 'copy' / step)[0].unlink()
  with pytest.warns(DamagedCheckpointWarning), pytest.raises(CheckpointError) as error:
    Checkpoints(tmp_path / 'copy').restore(abstract(states[10]))
  assert 'copy/10: ' in str(error.value) and 'copy/20: ' in str(error.value)


def test_a_half_written_directory_is_named_and_swept_by_the_next_save(saved, tmp_path):
  directory, states = saved
  shutil.copytree(directory, tmp_path / 'copy')
  shutil.copytree(tmp_path / 'copy' / '20', tmp_path / 'copy' / '30.orbax-checkpoint-tmp')
  checkpoints = Checkpoints(tmp_path / 'copy')
  with pytest.warns(DamagedCheckpointWarning, match='30.orbax-checkpoint-tmp is half written'):
    assert checkpoints.restore(abstract(states[20]))[2] == 20
  checkpoints.save(30, states[20], {}, wait=True)
  assert {p.name for p in (tmp_path / 'copy').iterdir()} == {'10', '20', '30'}


def test_a_damaged_one_does_not_push_out_good_ones(saved, tmp_path):
  directory, states = saved
  shutil.copytree(directory, tmp_path / 'copy')
  data_files(tmp_path / 'copy' / '20')[0].unlink()
  checkpoints = Checkpoints(tmp_path / 'copy', keep=2)
  with pytest.warns(DamagedCheckpointWarning):
    assert checkpoints.restore(abstract(states[10]))[2] == 10
  checkpoints.save(15, states[10], {}, wait=True)
  assert checkpoints.steps() == [10, 15, 20]
  checkpoints.save(20, states[20], {}, wait=True)  # replaces the damaged one
  assert checkpoints.steps() == [15, 20]
  assert_same(states[20], checkpoints.restore(abstract(states[20]))[0])


# A state that is not the saved one.


def test_another_model_is_an_error_that_names_the_leaf(saved):
  directory, states = saved
  checkpoints, target = Checkpoints(directory), abstract(states[20])
  wide = jax.ShapeDtypeStruct((8, 32), jnp.float32)
  with pytest.raises(
    CheckpointError, match=r'params/w is float32\[8, 512\], expected float32\[8, 32\]'
  ):
    checkpoints.restore(target | {'params': target['params'] | {'w': wide}})
  with pytest.raises(CheckpointError, match=r'has no params/ww \(but params/w'):
    checkpoints.restore(target | {'params': target['params'] | {'ww': wide}})
  with pytest.raises(CheckpointError, match=r'its key has no place in the state'):
    checkpoints.restore({k: v for k, v in target.items() if k != 'key'})


def test_part_of_a_checkpoint(saved):
  directory, states = saved
  checkpoints, target = Checkpoints(directory), abstract(states[20]['params'])
  params, meta, step = checkpoints.restore_partial(target, 'params')
  assert (step, meta['position']) == (20, 20)
  assert_same(states[20]['params'], params)
  only = checkpoints.restore_partial({'v': target['v']}, 'params', step=10)[0]
  assert_same({'v': states[10]['params']['v']}, only)
  with pytest.raises(CheckpointError, match='it has no ema/w'):
    checkpoints.restore_partial(target, 'ema')


def test_loads_without_a_model(saved, tmp_path):
  directory, states = saved
  tree, meta, step = Checkpoints(directory).load_numpy('params')
  assert step == 20 and isinstance(tree['w'], np.ndarray)
  assert_same(jax.tree.map(np.asarray, states[20]['params']), tree)
  with pytest.raises(CheckpointError, match="nothing below 'parms'; it has"):
    Checkpoints(directory).load_numpy('parms')
  with pytest.raises(CheckpointError, match='there is no checkpoint in'):
    Checkpoints(tmp_path).load_numpy('params')


def test_metadata_tells_shapes_without_reading(saved, tmp_path):
  directory, states = saved
  shutil.copytree(directory, tmp_path / 'copy')
  data_files(tmp_path / 'copy' / '20')[0].unlink()
  found = Checkpoints(tmp_path / 'copy').metadata(20)
  assert found.meta == {'position': 20, 'digest': 'abc'}
  assert found.shapes['opt_state/0/mu'] == jax.ShapeDtypeStruct((8, 512), jnp.bfloat16)
  with pytest.raises(CheckpointError, match='there is no such directory'):
    Checkpoints(directory).metadata(11)


# Saving.


def test_retention(tmp_path):
  checkpoints = Checkpoints(tmp_path, keep=2, keep_every=4)
  for step in range(1, 8):
    checkpoints.save(step, {'x': jnp.full(3, step)}, {})
  checkpoints.wait()
  assert checkpoints.steps() == [4, 6, 7]
  with pytest.raises(CheckpointError, match=r'later steps \(6, 7\) than the 5'):
    checkpoints.save(5, {'x': jnp.ones(3)}, {})
  with pytest.raises(ValueError, match='keep=0'):
    Checkpoints(tmp_path, keep=0)


def test_leaves_that_cannot_be_saved_are_named(tmp_path):
  checkpoints = Checkpoints(tmp_path)
  for state, problem in [
    ({'a': {'key': jax.random.key(0)}}, r'a/key is a typed PRNG key; save jax.random.key_data'),
    ({'a': [jnp.ones(2), 3.5]}, r'a/1 is 3.5 \(float\)'),
    ({'a': np.ones(2)}, r'a is a numpy float64 array'),
    ({'a/b': jnp.ones(2)}, r"'a/b'.* cannot be named"),
    (jnp.ones(2), 'not a bare array'),
  ]:
    with pytest.raises(TypeError, match=problem):
      checkpoints.save(1, state, {})
  with pytest.raises(TypeError, match=r"meta\['when'\] is "):
    checkpoints.save(1, {'a': jnp.ones(2)}, {'when': object()})
  assert checkpoints.steps() == []


def test_a_full_disk_is_reported_at_the_next_call_and_harms_nothing(tmp_path):
  checkpoints = Checkpoints(tmp_path / 'run')
  state = {'x': jnp.arange(300_000, dtype=jnp.float32)}
  checkpoints.save(1, state, {}, wait=True)
  limits = resource.getrlimit(resource.RLIMIT_FSIZE)
  resource.setrlimit(
    resource.RLIMIT_FSIZE, (400_000, limits[1])
  )  # the system refuses to write more
  try:
    checkpoints.save(2, state, {})
    with pytest.raises(CheckpointError) as error:
      checkpoints.save(3, state, {})
  finally:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
  for part in ('checkpoint 2 could not', str(tmp_path / 'run'), 'MiB are free', 'untouched: 1.'):
    assert part in str(error.value)
  assert [p.name for p in (tmp_path / 'run').iterdir()] == ['1']
  assert checkpoints.restore(abstract(state))[2] == 1
  checkpoints.save(3, state, {}, wait=True)
  assert checkpoints.steps() == [1, 3]


def test_an_unwritable_place_is_an_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(CheckpointError, match=r'could not be saved in .*file/run .*MiB are free'):
    Checkpoints(tmp_path / 'file' / 'run').save(1, {'x': jnp.ones(2)}, {}, wait=True)


# Several processes.

_SAVE = """
import sys
import jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from jaxmm.checkpoint import Checkpoints, DamagedCheckpointWarning
mesh = jax.make_mesh((2, 2), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)
value = np.arange(64, dtype=np.float32).reshape(8, 8)
def put(spec):
  return jax.make_array_from_callback(value.shape, NamedSharding(mesh, spec), lambda i: value[i])
state = {'a': put(P('x')), 'b': put(P('y', 'x')), 'whole': put(P())}
other = {'a': put(P()), 'b': put(P('x', 'y')), 'whole': put(P('x'))}
abstract = jax.eval_shape(lambda: other)
abstract = {n: abstract[n].update(sharding=other[n].sharding) for n in other}
checkpoints = Checkpoints(sys.argv[1])
"""


def test_two_processes_save_and_restore_and_one_reads_it(tmp_path):
  script = """
import json, pathlib, warnings
for step in (1, 2):
  checkpoints.save(step, state, {'position': step})
  state = jax.jit(lambda s: jax.tree.map(lambda x: x + 0, s), donate_argnums=0)(state)
checkpoints.wait()
restored, meta, step = checkpoints.restore(abstract)
same = all(np.array_equal(np.asarray(s.data), value[s.index])
           for x in restored.values() for s in x.addressable_shards)
plain, _, plain_step = checkpoints.load_numpy()
same_plain = plain_step == 2 and set(plain) == set(state) and all(
  isinstance(x, np.ndarray) and np.array_equal(x, value) for x in plain.values())
# Now only process 1 finds the newest damaged, and both must take the older one.
import jaxmm.checkpoint as module
read = module._read
def fails(path, wanted):
  if jax.process_index() == 1 and path.name == '2':
    raise module._Damaged('a bad cable')
  return read(path, wanted)
module._read = fails
with warnings.catch_warnings(record=True) as caught:
  warnings.simplefilter('always')
  older = Checkpoints(sys.argv[1]).restore(abstract)[2]
messages = [str(w.message) for w in caught]
print(json.dumps([same and same_plain, meta['position'], step, older, messages]))
"""
  outs = multiprocess.run_processes(2, _SAVE + script, 2, [tmp_path])
  for process, out in enumerate(outs):
    same, position, step, older, messages = json.loads(out)
    assert (same, position, step, older) == (True, 2, 2, 1)
    reason = 'a bad cable' if process == 1 else 'process 1 cannot read it'
    assert (
      len(messages) == 1 and f'{tmp_path}/2 is damaged' in messages[0] and reason in messages[0]
    )
  value = jnp.arange(64, dtype=jnp.float32).reshape(8, 8)
  state = {'a': value, 'b': value, 'whole': value}
  restored, _, step = Checkpoints(tmp_path).restore(abstract(state))
  assert step == 2
  assert_same(state, restored)


def test_every_copy_of_a_restored_array_is_verified():
  # A copy that one process alone holds must not escape because another holds a good one.
  x = jax.device_put(np.arange(12, dtype=np.float32), NamedSharding(make_mesh(4), P()))
  (whole,) = digest.local_digests([x]).tolist()
  (all_copies,) = digest.local_digests([x], every_replica=True).tolist()
  assert digest.replica_weight(x) == 16 and all_copies == whole * 16 % 2**64
