"""The reader of PyTorch files: equal to PyTorch's own loading, and closed to everything else.

`golden/torch_file` holds one dict saved by PyTorch 2.13 in both formats, and its arrays as PyTorch
itself loads them.
"""

import collections
import io
import os
import pathlib
import pickle
import struct
import types
import zipfile

import ml_dtypes
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.interop.torch_file import read_torch_file

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'torch_file'


@pytest.mark.parametrize('name', ['zip.pt', 'legacy.pt'])
def test_reads_what_torch_reads(name):
  found = read_torch_file(GOLDEN / name)
  with np.load(GOLDEN / 'loaded_by_torch.npz') as expected:
    assert set(found) == set(expected.files)
    for key in expected.files:
      value = found[key]
      if key == 'model.bfloat16':
        assert value.dtype == ml_dtypes.bfloat16
        value = value.astype(np.float32)
      assert value.dtype == expected[key].dtype and value.shape == expected[key].shape, key
      np.testing.assert_array_equal(value, expected[key], err_msg=key)
      assert not value.size or not found[key].flags.writeable


def test_reads_one_entry_and_names_those_there_are():
  below = read_torch_file(GOLDEN / 'zip.pt', under='module')
  assert sorted(below) == ['bias', 'weight']
  with pytest.raises(ConfigError, match="no entry 'ema'.*model, module, steps, args, list"):
    read_torch_file(GOLDEN / 'zip.pt', under='ema')


class Storage:
  """Pickles as a reference to `torch.FloatStorage` by persistent id."""

  def __init__(self, key: str, size: int):
    self.key, self.size = key, size


def torch_pickle(content, names: dict[object, tuple[str, str]]) -> bytes:
  """A pickle in which the markers `names` are globals of that module and name."""

  class Pickler(pickle._Pickler):
    def save_global(self, obj, name=None):
      module, attribute = names[obj] if obj in names else (obj.__module__, obj.__qualname__)
      self.write(pickle.GLOBAL + f'{module}\n{attribute}\n'.encode())

    def persistent_id(self, obj):
      if isinstance(obj, Storage):
        return ('storage', FloatStorage, obj.key, 'cpu', obj.size)
      return None

    dispatch = {**pickle._Pickler.dispatch, type: save_global, types.FunctionType: save_global}

  buffer = io.BytesIO()
  Pickler(buffer, 2).dump(content)
  return buffer.getvalue()


class FloatStorage:
  pass


def rebuild(*args):
  raise AssertionError('only its name is used')


class Tensor:
  """Pickles as a call of `torch._utils._rebuild_tensor_v2`."""

  def __init__(self, *args):
    self.args = args

  def __reduce__(self):
    return rebuild, self.args


NAMES = {
  FloatStorage: ('torch', 'FloatStorage'),
  rebuild: ('torch._utils', '_rebuild_tensor_v2'),
}


def zip_file(path: pathlib.Path, data: bytes, compression=zipfile.ZIP_STORED) -> pathlib.Path:
  with zipfile.ZipFile(path, 'w', compression) as archive:
    archive.writestr('archive/data.pkl', data)
    archive.writestr('archive/data/0', np.arange(6, dtype=np.float32).tobytes())
  return path


def saved(path, *tensor, compression=zipfile.ZIP_STORED):
  return zip_file(path, torch_pickle({'w': Tensor(*tensor)}, NAMES), compression)


def test_a_tensor_must_lie_inside_its_storage(tmp_path):
  storage, hooks = Storage('0', 6), collections.OrderedDict()
  good = saved(tmp_path / 'good.pt', storage, 1, (2, 2), (2, 1), False, hooks)
  np.testing.assert_array_equal(read_torch_file(good)['w'], [[1, 2], [3, 4]])
  for offset, shape, strides in [(1, (2, 3), (3, 1)), (-1, (2,), (1,)), (0, (2, 2), (-1, 1))]:
    bad = saved(tmp_path / 'bad.pt', storage, offset, shape, strides, False, hooks)
    with pytest.raises(ConfigError, match='past its storage|impossible tensor'):
      read_torch_file(bad)
  too_long = saved(tmp_path / 'long.pt', Storage('0', 600), 0, (600,), (1,), False, hooks)
  with pytest.raises(ConfigError, match='not a readable PyTorch checkpoint'):
    read_torch_file(too_long)


def test_a_compressed_storage_is_refused(tmp_path):
  bomb = saved(
    tmp_path / 'bomb.pt', Storage('0', 6), 0, (6,), (1,), compression=zipfile.ZIP_DEFLATED
  )
  with pytest.raises(ConfigError, match='compressed'):
    read_torch_file(bomb)


class Command:
  """The classic: a pickle that runs a command when it is loaded."""

  def __init__(self, target):
    self.target = target

  def __reduce__(self):
    return os.system, (f'touch {self.target}',)


def legacy_file(path: pathlib.Path, content: bytes) -> pathlib.Path:
  head = b''.join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
  path.write_bytes(head + content + pickle.dumps([], 2))
  return path


@pytest.mark.parametrize('make', [zip_file, legacy_file])
def test_a_malicious_pickle_runs_nothing(tmp_path, make):
  target = tmp_path / 'was_here'
  attack = pickle.dumps({'w': Command(target)}, 2)
  pickle.loads(attack)
  assert target.exists()  # the attack is a real one
  target.unlink()
  with pytest.raises(ConfigError, match=r'names posix.system, which is none'):
    read_torch_file(make(tmp_path / 'model.pt', attack))
  assert not target.exists()


def globals_only(module: str, name: str) -> bytes:
  return b'\x80\x02' + b'c' + f'{module}\n{name}\n'.encode() + b'.'


@pytest.mark.parametrize(
  'module, name',
  [
    ('builtins', 'eval'),
    ('builtins', 'getattr'),
    ('torch', 'load'),
    ('torch.storage', '_load_from_bytes'),
    ('torch._utils', '_rebuild_tensor_v2.__call__'),
    ('collections', 'OrderedDict.__class__'),
    ('collections', 'namedtuple'),
    ('jaxmm.interop.torch_file', 'pickle'),
    ('argparse', 'ArgumentParser'),
  ],
)
def test_no_other_name_is_known(tmp_path, module, name):
  with pytest.raises(ConfigError, match='could run code'):
    read_torch_file(zip_file(tmp_path / 'model.pt', globals_only(module, name)))


@pytest.mark.parametrize(
  'name',
  [
    ('torch._utils', '_rebuild_tensor_v2'),
    ('torch', 'FloatStorage'),
    ('collections', 'OrderedDict'),
    ('argparse', 'Namespace'),
  ],
)
def test_a_pickle_cannot_change_what_the_allow_list_gives(tmp_path, name):
  # BUILD with a pair sets attributes of the object below it, here of what find_class returned.
  load = globals_only(*name)[:-1]
  state = b'N}X\x05\x00\x00\x00pwnedI1\ns\x86b.'
  with pytest.raises(ConfigError, match='not a readable PyTorch checkpoint'):
    read_torch_file(zip_file(tmp_path / 'model.pt', load + state))
  assert not hasattr(collections.OrderedDict, 'pwned')


def test_damaged_and_foreign_files_are_named(tmp_path):
  whole = (GOLDEN / 'legacy.pt').read_bytes()
  for cut in (3, 30, len(whole) // 2, len(whole) - 5):
    (tmp_path / 'cut.pt').write_bytes(whole[:cut])
    with pytest.raises(ConfigError, match='cut.pt'):
      read_torch_file(tmp_path / 'cut.pt')
  (tmp_path / 'text.pt').write_text('no checkpoint at all')
  with pytest.raises(ConfigError, match='text.pt'):
    read_torch_file(tmp_path / 'text.pt')
  with zipfile.ZipFile(tmp_path / 'pictures.pt', 'w') as archive:
    archive.writestr('a.jpg', b'')
  with pytest.raises(ConfigError, match='not one that torch.save wrote'):
    read_torch_file(tmp_path / 'pictures.pt')
  with pytest.raises(ConfigError, match='no such file'):
    read_torch_file(tmp_path / 'absent.pt')


def test_appended_storages_cannot_claim_more_than_the_file_has(tmp_path):
  content = torch_pickle({'w': Tensor(Storage('0', 10**12), 0, (1,), (1,))}, NAMES)
  head = b''.join(pickle.dumps(x, 2) for x in (0x1950A86A20F9469CFC6C, 1001, {}))
  tail = pickle.dumps(['0'], 2) + struct.pack('<q', 10**12)
  (tmp_path / 'huge.pt').write_bytes(head + content + tail)
  with pytest.raises(ConfigError, match='larger than the file'):
    read_torch_file(tmp_path / 'huge.pt')
