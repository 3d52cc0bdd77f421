import sys

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.interop import llamagen

WEIGHTS = {
  'norm.weight': np.arange(3, dtype=np.float32),
  'layers.0.attention.wo.weight': np.eye(2, dtype=np.float32).T,
}


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_array_equal(a[name], b[name])


@pytest.mark.parametrize('ending', ['.safetensors', '.npz'])
def test_what_is_written_is_read_without_freqs_cis(tmp_path, ending):
  path = tmp_path / f'weights{ending}'
  llamagen.write_state_dict(path, {**WEIGHTS, 'freqs_cis': np.ones(2, np.float32)})
  same(llamagen.read_state_dict(path), WEIGHTS)


@pytest.mark.parametrize('wrapper', ['model.', 'module.', 'state_dict.', 'model.module.', ''])
def test_wrappers_are_taken_off(tmp_path, wrapper):
  path = tmp_path / 'weights.npz'
  beside = {'optimizer.state.0.exp_avg': np.ones(1)} if wrapper else {}
  np.savez(path, **{wrapper + name: a for name, a in WEIGHTS.items()}, **beside)
  same(llamagen.read_state_dict(path), WEIGHTS)


def test_the_average_is_taken_where_there_is_one_or_as_asked(tmp_path):
  path, plain = tmp_path / 'weights.npz', tmp_path / 'plain.npz'
  np.savez(path, **{'model.norm.weight': np.zeros(1), 'ema.norm.weight': np.ones(1)})
  np.savez(plain, **{'model.norm.weight': np.zeros(1)})
  taken = lambda p, *weights: float(llamagen.read_state_dict(p, *weights)['norm.weight'][0])
  assert [taken(path), taken(path, 'ema'), taken(path, 'params')] == [1, 1, 0]
  assert [taken(plain), taken(plain, 'params')] == [0, 0]
  with pytest.raises(ConfigError, match="no averaged weights .'ema'.; it holds model"):
    llamagen.read_state_dict(plain, 'ema')
  np.savez(path, **{'ema.norm.weight': np.ones(1)})
  with pytest.raises(ConfigError, match=r'holds ema, but no weights \(params\)'):
    llamagen.read_state_dict(path, 'params')


def test_errors_say_what_would_do(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, 'torch', None)
  with pytest.raises(ConfigError, match='needs PyTorch .* write .safetensors or .npz'):
    llamagen.write_state_dict(tmp_path / 'weights.pt', WEIGHTS)
  with pytest.raises(ConfigError, match="ending '.gguf' is none of .safetensors"):
    llamagen.write_state_dict(tmp_path / 'weights.gguf', WEIGHTS)
  with pytest.raises(ConfigError, match='no such file'):
    llamagen.read_state_dict(tmp_path / 'absent.npz')
