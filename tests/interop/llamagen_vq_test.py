"""LlamaGen's tokenizer weights in, its numbers out."""

import json
import pathlib

import jax
import numpy as np
import pytest

from jaxmm.interop import llamagen_vq
from jaxmm.tokenizers.quantizer import QuantizerConfig
from jaxmm.tokenizers.vqgan import VQ_16, Vqgan, VqganConfig
from tests.references.golden_weights import golden_weights

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden' / 'llamagen'
TINY = VqganConfig(
  channels=32, multipliers=(1, 2), z_channels=32, quantizer=QuantizerConfig(codes=128)
)


def golden(name):
  with np.load(GOLDEN / f'{name}.npz') as archive:
    arrays = dict(archive)
  return arrays, golden_weights(json.loads(str(arrays.pop('param_shapes'))))


@pytest.fixture(scope='module')
def tiny():
  return golden('vq_tiny')


def nhwc(x_nchw):
  return x_nchw.transpose(0, 2, 3, 1)


def check_parity(config, arrays, state_dict):
  params = {'params': llamagen_vq.from_state_dict(config, state_dict)}
  model = Vqgan(config)
  image = nhwc(arrays['image_nchw'])
  out = jax.jit(model.apply)(params, image)
  latent = nhwc(arrays['latent_before_quantization_nchw'])
  recon = nhwc(arrays['reconstruction_nchw'])
  np.testing.assert_allclose(out.z_BYXD, latent, rtol=0, atol=1e-4)
  comparable = arrays['code_margin'] > 1e-5
  assert comparable.mean() > 0.9
  np.testing.assert_array_equal(
    np.asarray(out.quantized.ids_BL)[comparable], arrays['code_ids'][comparable]
  )
  codes = out.quantized.z_BLD.reshape(latent.shape)
  np.testing.assert_allclose(codes, nhwc(arrays['quantized_nchw']), rtol=0, atol=1e-4)
  np.testing.assert_allclose(out.recon_BYXC, recon, rtol=0, atol=1e-3)
  quantized = out.quantized
  np.testing.assert_allclose(quantized.codebook_error_BL.mean(), arrays['codebook_loss'], rtol=1e-4)
  np.testing.assert_allclose(
    0.25 * quantized.commitment_error_BL.mean(), arrays['commitment_loss'], rtol=1e-4
  )
  from_ids = jax.jit(lambda p, ids: model.apply(p, ids, method='decode_ids'))
  np.testing.assert_allclose(from_ids(params, arrays['code_ids']), recon, rtol=0, atol=1e-3)


def test_the_small_network_computes_what_llamagen_computes(tiny):
  check_parity(TINY, *tiny)


@pytest.mark.slow
def test_vq_16_computes_what_llamagen_computes():
  check_parity(VQ_16, *golden('vq_16'))


def check_round_trip(config, state_dict):
  back = llamagen_vq.to_state_dict(config, llamagen_vq.from_state_dict(config, state_dict))
  assert back.keys() == state_dict.keys() - {'quantize.codebook_used'}
  for name, array in back.items():
    assert array.dtype == np.float32 and array.flags.c_contiguous
    assert array.tobytes() == state_dict[name].tobytes(), name


def test_the_small_network_goes_out_as_it_came_in(tiny):
  check_round_trip(TINY, tiny[1])


@pytest.mark.slow
def test_vq_16_goes_out_as_it_came_in():
  check_round_trip(VQ_16, golden('vq_16')[1])


def test_the_record_of_used_codes_is_ignored(tiny):
  state_dict = tiny[1] | {'quantize.codebook_used': np.zeros(65536, np.float32)}
  check_round_trip(TINY, state_dict)


def test_names_of_a_published_checkpoint():
  name = llamagen_vq.parameter_name
  assert name(('quantizer', 'codebook')) == 'quantize.embedding.weight'
  assert name(('post_quant_conv', 'bias')) == 'post_quant_conv.bias'
  assert (
    name(('decoder', 'level_1_res_0', 'shortcut', 'kernel'))
    == 'decoder.conv_blocks.1.res.0.nin_shortcut.weight'
  )
  assert (
    name(('encoder', 'level_0_down', 'conv', 'kernel'))
    == 'encoder.conv_blocks.0.downsample.conv.weight'
  )
  assert name(('encoder', 'mid_1', 'proj', 'bias')) == 'encoder.mid.1.proj_out.bias'
  assert name(('decoder', 'norm_out', 'scale')) == 'decoder.norm_out.weight'


def test_missing_unknown_and_misshapen_weights_are_named(tiny):
  state_dict = dict(tiny[1])
  del state_dict['encoder.conv_in.bias']
  state_dict['encoder.extra.weight'] = np.zeros(3, np.float32)
  state_dict['decoder.conv_out.bias'] = np.zeros(4, np.float32)
  with pytest.raises(ValueError) as error:
    llamagen_vq.from_state_dict(TINY, state_dict)
  message = str(error.value)
  assert '1 missing: encoder.conv_in.bias' in message
  assert '1 that the model does not have: encoder.extra.weight' in message
  assert 'decoder.conv_out.bias is (4,), expected (3,)' in message


def test_parameters_of_another_config_are_refused(tiny):
  params = llamagen_vq.from_state_dict(TINY, tiny[1])
  del params['encoder']['mid_1']['q']
  with pytest.raises(ValueError, match='encoder/mid_1/q/bias'):
    llamagen_vq.to_state_dict(TINY, params)
  params = llamagen_vq.from_state_dict(TINY, tiny[1])
  params['decoder']['conv_out']['bias'] = np.zeros(4, np.float32)
  with pytest.raises(ValueError, match='decoder/conv_out/bias'):
    llamagen_vq.to_state_dict(TINY, params)
