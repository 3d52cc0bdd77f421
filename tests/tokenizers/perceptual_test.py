import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from jaxmm.config import ConfigError, from_mapping
from jaxmm.tokenizers import perceptual
from jaxmm.tokenizers.perceptual import PerceptualConfig
from tests.references import vgg_distance


@pytest.fixture(scope='module')
def named():
  return vgg_distance.random_weights(0)


def images(seed, *shape):
  return np.tanh(np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def test_lpips_equals_the_reference_also_on_odd_sizes(named):
  a, b = images(1, 2, 17, 20, 3), images(2, 2, 17, 20, 3)
  b[1] = a[1]
  got = jax.jit(perceptual.lpips)(perceptual.lpips_weights(named), a, b)
  want = vgg_distance.distance(named, a[0].transpose(2, 0, 1), b[0].transpose(2, 0, 1))
  np.testing.assert_allclose(got[0], want, rtol=1e-5)
  assert got[1] < 1e-12 and got.dtype == jnp.float32


def test_gradient_is_finite_where_all_channels_are_off():
  x = jnp.zeros((2, 3)).at[0].set(jnp.array([3.0, 4.0, 0.0]))
  np.testing.assert_allclose(perceptual.unit_channels(x), [[0.6, 0.8, 0], [0, 0, 0]], rtol=1e-6)
  assert np.isfinite(jax.grad(lambda x: perceptual.unit_channels(x)[1].sum())(x)).all()


@pytest.mark.parametrize('suffix', ['npz', 'safetensors'])
def test_weights_come_from_one_file_or_several(tmp_path, named, suffix):
  save = np.savez if suffix == 'npz' else lambda path, **arrays: save_file(arrays, path)
  slices = {0: 1, 2: 1, 5: 2, 7: 2, 10: 3, 12: 3, 14: 3, 17: 4, 19: 4, 21: 4, 24: 5, 26: 5, 28: 5}
  release = {}  # the names of the public LPIPS release
  for name, value in named.items():
    _, number, what = (name + '..').split('.')[:3]
    is_conv = name.startswith('features')
    release[f'net.slice{slices[int(number)]}.{number}.{what}' if is_conv else name] = value
  save(str(tmp_path / f'all.{suffix}'), **release)
  save(str(tmp_path / f'vgg.{suffix}'), **{k: v for k, v in named.items() if 'lin' not in k})
  save(str(tmp_path / f'lin.{suffix}'), **{k: v for k, v in named.items() if 'lin' in k})
  one = PerceptualConfig('lpips', str(tmp_path / f'all.{suffix}'))
  settings = {'name': 'lpips', 'weights': [str(tmp_path / f'{p}.{suffix}') for p in ('vgg', 'lin')]}
  several = from_mapping(PerceptualConfig, settings)
  expected = perceptual.lpips_weights(named)
  for config in (one, several):
    jax.tree.map(np.testing.assert_array_equal, perceptual.load_weights(config), expected)


def test_weights_that_are_missing_or_misshapen_are_named(tmp_path, named):
  without = {k: v for k, v in named.items() if k != 'lin3.model.1.weight'}
  with pytest.raises(ConfigError, match='lin3.model.1.weight'):
    perceptual.lpips_weights(without)
  heads = {k: v for k, v in named.items() if 'lin' in k}
  with pytest.raises(ConfigError, match='0 convolutions'):
    perceptual.lpips_weights(heads, 'heads.npz')
  with pytest.raises(ConfigError, match=r'features.2.weight.*\(1, 2\)'):
    perceptual.lpips_weights(named | {'features.2.weight': np.zeros((1, 2))})
  with pytest.warns(UserWarning, match='shift-tolerant'):
    perceptual.lpips_weights(named | {'net.slice2.5.filt': np.zeros(1)})
  (tmp_path / 'broken.safetensors').write_bytes(b'no such thing')
  (tmp_path / 'weights.txt').write_text('')
  for file, why in (('no.npz', 'no such file'), ('broken.safetensors', 'cannot be read')):
    with pytest.raises(ConfigError, match=why):
      perceptual.load_weights(PerceptualConfig('lpips', str(tmp_path / file)))
  with pytest.raises(ConfigError, match='expected a .safetensors'):
    perceptual.load_weights(PerceptualConfig('lpips', str(tmp_path / 'weights.txt')))


def test_pickled_arrays_are_refused(tmp_path):
  np.savez(tmp_path / 'p.npz', x=np.array([object()], dtype=object))
  with pytest.raises(ConfigError, match='cannot be read'):
    perceptual.load_weights(PerceptualConfig('lpips', str(tmp_path / 'p.npz')))


def test_settings_must_say_what_is_meant():
  with pytest.raises(ConfigError, match='lacks name'):
    from_mapping(PerceptualConfig, {})
  with pytest.raises(ConfigError, match='names no file'):
    PerceptualConfig('lpips')
  with pytest.raises(ConfigError, match='reads none'):
    PerceptualConfig('edges', 'a.npz')
  with pytest.raises(ConfigError, match='expected 1 or 3 channels'):
    perceptual.lpips({}, jnp.zeros((1, 8, 8, 3)), jnp.zeros((1, 8, 8, 3)))


def test_edges_see_blur_more_than_brightness():
  a = images(3, 1, 16, 16, 1)
  blurred = sum(np.roll(a, s, 1) for s in (-1, 0, 1)) / 3
  shift = np.sqrt(np.mean((blurred - a) ** 2))  # the same mean squared error
  distance = jax.jit(perceptual.edge_distance)
  assert distance(a, a)[0] < 1e-12
  assert distance(a, blurred)[0] > 100 * distance(a, a + shift)[0]
  np.testing.assert_allclose(distance(a, blurred), distance(blurred, a), rtol=1e-6)


def test_edges_and_none_need_no_weights():
  a, b = images(1, 3, 9, 5, 2), images(2, 3, 9, 5, 2)
  assert perceptual.load_weights(PerceptualConfig('edges')) == {}
  assert perceptual.distance(PerceptualConfig('edges'), {}, a, b).shape == (3,)
  assert not perceptual.distance(PerceptualConfig('none'), {}, a, b).any()
