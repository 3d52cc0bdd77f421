"""Public checkpoints into run directories, and runs back into the public layouts."""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from jaxmm.checkpoint import Checkpoints
from jaxmm.config import ConfigError
from jaxmm.interop import llamagen, llamagen_gpt, llamagen_vq, taesd
from jaxmm.models import image_lm
from jaxmm.studies import loading
from jaxmm.tokenizers import taesd as taesd_network
from jaxmm.tokenizers import vqgan_task
from jaxmm.tokenizers.latent_scale import LatentScale
from jaxmm.train.run_config import RunConfig, write_config

FORMATS = ('llamagen-vq', 'llamagen-gpt', 'taef2')
_VQ_PRESETS = {'VQ-16': 'vq_16', 'VQ-8': 'vq_8'}


def run(
  layout: str,
  source: str | os.PathLike,
  output: str | os.PathLike,
  *,
  preset: str | None = None,
  image_size: int = 256,
  weights: str = 'auto',
) -> str:
  """Converts in the direction that `source` says: files come in, a run directory goes out.

  Args:
    layout: one of FORMATS.
    source: a .safetensors, .npz or .pt file (for 'taef2' the folder of both), or a run directory.
    output: a run directory, or a .safetensors or .npz file (for 'taef2' a folder).
    preset: for a file: 'VQ-16', 'VQ-8', or 'B', 'L', 'XL', 'XXL', '3B'; none for 'taef2'.
    image_size: pixels a side of the images the checkpoint was trained on.
    weights: 'params', 'ema' (their running average), or 'auto': the average where there is one, as
      `jaxmm.load` takes it.

  Returns:
    What was written, in words.
  """
  if layout not in FORMATS:
    raise ConfigError(f'format is {layout!r}, expected one of {", ".join(FORMATS)}')
  is_weights = layout == 'taef2' and not pathlib.Path(source, 'config.json').is_file()
  if pathlib.Path(source).is_dir() and not is_weights:
    return _out(layout, source, output, weights)
  if layout == 'taef2':
    return _taef2_in(source, output, preset, image_size)
  model = _model_settings(layout, preset, image_size)
  state_dict = llamagen.read_state_dict(source, weights)
  if layout == 'llamagen-vq':
    network = vqgan_task.make_task(model).config.network
    params = {'vqgan': llamagen_vq.from_state_dict(network, state_dict)}
    task, optimizer = 'jaxmm.tokenizers.vqgan_task', {'generator': {}}
    data = _data_settings(image_size)
  else:
    params = llamagen_gpt.image_lm_from_llamagen(image_lm.config_of(model), state_dict)
    task, optimizer, data = 'jaxmm.models.image_lm', {'model': {}}, {}
  config = RunConfig(task=task, steps=1, batch=1, optimizer=optimizer, model=model, data=data)
  _write_run(pathlib.Path(output), config, params, str(source))
  return _said_of(params, source, output)


def _taef2_in(
  source: str | os.PathLike, output: str | os.PathLike, preset: str | None, image_size: int
) -> str:
  if preset is not None:
    raise ConfigError(f'--preset is {preset!r}, but taef2 is one network; leave it out')
  model = {'image_size': image_size, 'perceptual': {'name': 'none'}, 'taesd': {}}
  network = taesd_network.make_task(model).config.network
  params = {'taesd': taesd.read_taef2(source, network)}
  config = RunConfig(
    task='jaxmm.tokenizers.taesd', steps=1, batch=1, optimizer={'generator': {}}, model=model,
    data=_data_settings(image_size),
  )  # fmt: skip
  _write_run(pathlib.Path(output), config, params, str(source), taesd.TAEF2_SCALE)
  return _said_of(params, source, output)


def _data_settings(image_size: int) -> dict[str, Any]:
  return {'name': 'images', 'image_size': image_size, 'channels': 3, 'crop': 'center'}


def _said_of(params: Any, source: str | os.PathLike, output: str | os.PathLike) -> str:
  number = sum(x.size for x in jax.tree.leaves(params))
  return f'{number:,} parameters of {source} as a run in {output}'


def _model_settings(layout: str, preset: str | None, image_size: int) -> dict[str, Any]:
  known = list(_VQ_PRESETS) if layout == 'llamagen-vq' else list(image_lm.PRESETS)
  if preset not in known:
    raise ConfigError(f'--preset is {preset!r}, expected one of {", ".join(known)} for {layout}')
  if layout == 'llamagen-vq':
    return {
      'image_size': image_size,
      'vqgan': _VQ_PRESETS[preset],
      'perceptual': {'name': 'none'},
    }
  if image_size % 16:
    raise ConfigError(f'--image-size is {image_size}, expected a multiple of 16 (256, 384, 512)')
  return {'size': preset, 'grid': image_size // 16}


def _write_run(
  directory: pathlib.Path,
  config: RunConfig,
  params: Mapping[str, Any],
  source: str,
  scale: LatentScale | None = None,
) -> None:
  if (directory / 'config.json').exists():
    raise ConfigError(f'{directory} is a run directory already; give another --output')
  directory.mkdir(parents=True, exist_ok=True)
  # The checkpoint comes first: a directory with a config.json is whole.
  Checkpoints(directory / 'checkpoints').save(
    0, {'params': jax.device_put(params)}, {'converted_from': source}, wait=True
  )
  if scale is not None:
    loading.write_scale(directory, 0, 'params', scale)
  write_config(directory, config)


def _out(
  layout: str, source: str | os.PathLike, output: str | os.PathLike, weights: str = 'auto'
) -> str:
  loaded = loading.load(source, weights=weights)
  kinds = {
    'llamagen-vq': vqgan_task.VqganTask,
    'llamagen-gpt': image_lm.ImageLmTask,
    'taef2': taesd_network.TaesdTask,
  }
  if not isinstance(loaded.task, kinds[layout]):
    raise ConfigError(f'{source} is a run of {loaded.config["task"]}, which is no {layout}')
  params = jax.device_get(loaded.variables['params'])
  if layout == 'taef2':
    taesd.write_taef2(output, params['taesd'], loaded.task.config.network)
    return f'step {loaded.step} of {source} as two files in {output}'
  if layout == 'llamagen-vq':
    arrays = llamagen_vq.to_state_dict(loaded.task.config.network, params['vqgan'])
  else:
    arrays = llamagen_gpt.image_lm_to_llamagen(loaded.task.config, params)
  llamagen.write_state_dict(output, arrays)
  return f'step {loaded.step} of {source} as {output}: {len(arrays)} arrays'
