"""TAEF2's public weights in, its numbers out, and back to the same files."""

import json
import os
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

import jaxmm
from jaxmm import cli
from jaxmm.config import ConfigError
from jaxmm.interop import taesd
from jaxmm.tokenizers.taesd import Taesd, TaesdConfig, make_task
from tests.references.golden_weights import golden_weights
from tests.references.taesd import half_shapes, pictures

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'taesd'
SMALL = TaesdConfig(latent_dim=4, channels=8)
# A folder with taef2_encoder.safetensors and taef2_decoder.safetensors.
WEIGHTS = pathlib.Path(os.environ.get('JAXMM_TAEF2') or 'taef2')
needs_weights = pytest.mark.skipif(
  not (WEIGHTS / 'taef2_encoder.safetensors').is_file(),
  reason='needs the public weights of TAEF2 (5 MB), their folder named by JAXMM_TAEF2',
)


def golden(name):
  with np.load(GOLDEN / f'{name}.npz') as archive:
    return dict(archive)


@pytest.fixture(scope='module')
def small():
  """(golden arrays, `{half: state dict}`) of the small network."""
  arrays = golden('small')
  state = golden_weights(json.loads(str(arrays['param_shapes'])))
  halves = {
    half: {k.removeprefix(f'{half}.'): v for k, v in state.items() if k.startswith(half)}
    for half in taesd.HALVES
  }
  return arrays, halves


def written(halves, folder):
  folder.mkdir(parents=True, exist_ok=True)
  for half, state in halves.items():
    safetensors.numpy.save_file(state, folder / f'taef2_{half}.safetensors')
  return folder


def check_parity(config, params, arrays, side):
  model, image = Taesd(config), pictures(side).astype(np.float32) / 127.5 - 1
  latent = arrays['latent_nchw'].transpose(0, 2, 3, 1)
  recon = arrays['reconstruction_nchw'].transpose(0, 2, 3, 1)

  @jax.jit
  def both(params, image, latent):
    apply = lambda x, method: model.apply({'params': params}, x, method=method)
    return apply(image, 'encode'), apply(latent, 'decode')

  found_latent, found_recon = both(params, image, latent)
  assert latent.std() > 0.1 and recon.std() > 0.1
  np.testing.assert_allclose(found_latent, latent, rtol=0, atol=1e-4)
  np.testing.assert_allclose((found_recon + 1) / 2, recon, rtol=0, atol=1e-4)


def test_the_small_network_computes_what_pytorch_computes(small, tmp_path):
  arrays, halves = small
  check_parity(SMALL, taesd.read_taef2(written(halves, tmp_path), SMALL), arrays, 16)


@needs_weights
def test_taef2_computes_what_pytorch_computes():
  check_parity(taesd.TAEF2, taesd.read_taef2(WEIGHTS), golden('taef2'), 64)


@pytest.mark.slow
def test_weights_go_out_as_they_came_in(small, tmp_path):
  halves = small[1]
  params = taesd.read_taef2(written(halves, tmp_path / 'in'), SMALL)
  taesd.write_taef2(tmp_path / 'out', params, SMALL)
  for half, state in halves.items():
    back = safetensors.numpy.load_file(tmp_path / 'out' / f'taef2_{half}.safetensors')
    assert back.keys() == state.keys()
    for name, array in back.items():
      np.testing.assert_array_equal(array, state[name], err_msg=name)


def test_half_precision_files_are_read_exactly(small, tmp_path):
  low = {h: {k: v.astype(np.float16) for k, v in state.items()} for h, state in small[1].items()}
  params = taesd.read_taef2(written(low, tmp_path), SMALL)
  kernel = params['encoder']['layer_2']['kernel']
  assert kernel.dtype == np.float32
  np.testing.assert_array_equal(kernel.transpose(3, 2, 0, 1), low['encoder']['2.weight'])


def test_wrong_weights_are_named(small, tmp_path):
  halves = small[1]
  with pytest.raises(ConfigError, match='holds no taef2_encoder.safetensors'):
    taesd.read_taef2(tmp_path / 'nowhere', SMALL)
  folder = written(halves, tmp_path / 'half')
  (folder / 'taef2_decoder.safetensors').unlink()
  with pytest.raises(ConfigError, match='holds no taef2_decoder.safetensors'):
    taesd.read_taef2(folder, SMALL)
  state = halves['encoder']
  lacking = {k: v for k, v in state.items() if k != '11.pool.1.bias'}
  with pytest.raises(ConfigError, match='lacks 11.pool.1.bias'):
    taesd.half_params('encoder', lacking, SMALL)
  with pytest.raises(ConfigError, match=r'14.bias has shape \(5,\), expected \(4,\)'):
    taesd.half_params('encoder', {**state, '14.bias': np.zeros(5)}, SMALL)
  with pytest.raises(ConfigError, match='holds 19.bias, which the encoder does not have'):
    taesd.half_params('encoder', {**state, '19.bias': np.zeros(3)}, SMALL)
  (folder / 'taef2_encoder.safetensors').write_bytes(b'rubbish' * 20)
  with pytest.raises(ConfigError, match='taef2_encoder.safetensors: not a readable'):
    taesd.read_taef2(folder, SMALL)


def test_settings_and_images_that_cannot_be_used():
  plain = {'image_size': 16, 'perceptual': {'name': 'none'}}
  with pytest.raises(ConfigError, match='model.image_size is 20.*multiples of 8'):
    make_task(plain | {'image_size': 20})
  with pytest.raises(ConfigError, match='taesd.latent_dim is 0'):
    make_task(plain | {'taesd': {'latent_dim': 0}})
  task = make_task(plain)
  with pytest.raises(ConfigError, match='used as it is'):
    task.loss({}, {}, None, 0, {})


@pytest.mark.slow
def test_converted_it_is_a_run_like_any_other(tmp_path, capsys):
  shapes = {half: half_shapes(half, 64, 32) for half in taesd.HALVES}
  halves = {half: golden_weights(names) for half, names in shapes.items()}
  folder, run = written(halves, tmp_path / 'public'), tmp_path / 'run'
  verb = ['convert', '--format', 'taef2']
  sizes = ['--image-size', '16']
  assert cli.main([*verb, *sizes, '--input', str(folder), '--output', str(run)]) == 0
  assert cli.main([*verb, *sizes, '--input', str(folder), '--output', str(run)]) == 2
  assert 'is a run directory already' in capsys.readouterr().err
  loaded, images = jaxmm.load(run), pictures(16)
  latents = loaded.encode(images)
  assert latents.shape == (2, 2, 2, 32) and latents.dtype == np.float32
  raw = loaded.model.apply(loaded.network(), images / np.float32(127.5) - 1, method='encode')
  scale = taesd.TAEF2_SCALE
  want = (np.asarray(raw) - scale.shift[0]) * scale.scale[0]
  np.testing.assert_allclose(latents, want, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(
    loaded.decode(latents).astype(int), loaded.reconstruct(images).astype(int), atol=1
  )
  back = tmp_path / 'back'
  assert cli.main([*verb, '--input', str(run), '--output', str(back)]) == 0
  for half, state in halves.items():
    out = safetensors.numpy.load_file(back / f'taef2_{half}.safetensors')
    for name, array in state.items():
      np.testing.assert_array_equal(out[name], array, err_msg=name)
  Image.fromarray(images[0]).save(tmp_path / 'picture.png')
  files = ['--images', str(tmp_path / 'picture.png'), '--output', str(tmp_path / 'rebuilt.png')]
  assert cli.main(['reconstruct', '--run', str(run), *files]) == 0
  assert '1 images, PSNR' in capsys.readouterr().out


def test_a_folder_that_is_no_taef2_is_refused(tmp_path, capsys):
  (tmp_path / 'empty').mkdir()
  run = ['--input', str(tmp_path / 'empty'), '--output', str(tmp_path / 'run')]
  assert cli.main(['convert', '--format', 'taef2', *run]) == 2
  assert 'holds no taef2_encoder.safetensors' in capsys.readouterr().err
  assert cli.main(['convert', '--format', 'taef2', '--preset', 'VQ-8', *run]) == 2
  assert 'taef2 is one network' in capsys.readouterr().err
  assert not (tmp_path / 'run').exists()
