"""A trained run as an object with encode, decode, sample: what `jaxmm.load(dir)` returns.

Axes: B batch, L codes of an image, Y X rows and columns, C channels, D latent width.
"""

from __future__ import annotations

import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.checkpoint import Checkpoints
from jaxmm.config import ConfigError
from jaxmm.core.decoding import SamplingConfig
from jaxmm.data.array_store import ArrayStore
from jaxmm.evaluate.images import to_pixels
from jaxmm.models import image_lm, lm, megabyte, transfusion
from jaxmm.studies import run
from jaxmm.studies.loaded import LoadedRun
from jaxmm.studies.loaded_codes import LoadedCodesLm
from jaxmm.studies.loaded_mixed import LoadedTransfusion
from jaxmm.studies.loaded_text import LoadedLm, LoadedMegabyte
from jaxmm.task import example_keys
from jaxmm.tokenizers import taesd, vae_task, vqgan_task
from jaxmm.tokenizers.autoencoder import check_latents
from jaxmm.tokenizers.latent_scale import LatentScale
from jaxmm.tokenizers.vqgan import Vqgan, VqganConfig


class LoadedTokenizer(LoadedRun):
  """A trained image tokenizer; images are uint8, codes are in raster order."""

  @property
  def model(self) -> Vqgan:
    """The network."""
    return self.task.model

  @property
  def num_codes(self) -> int:
    """Entries of the codebook."""
    return self.model.config.quantizer.codes

  def network(self) -> Mapping[str, Any]:
    """The network's variables alone."""
    return self.task.network(self.variables['params'])

  def reconstruct(self, image_BYXC: np.ndarray, batch: int = 64) -> np.ndarray:
    """Images as their codes keep them, uint8 like the images given."""
    return self.decode(self.encode(image_BYXC, batch), batch=batch)

  def encode(self, image_BYXC: np.ndarray, batch: int = 64) -> np.ndarray:
    """Code ids int32 [B, L] of uint8 images [B, Y, X, C]."""
    image_BYXC = _checked_images(image_BYXC)
    return _in_chunks(_encoder(self.task.config), self.network(), image_BYXC, batch)

  def decode(
    self, ids_BL: np.ndarray, grid: tuple[int, int] | None = None, batch: int = 64
  ) -> np.ndarray:
    """Images uint8 [B, Y, X, C] of code ids; `grid` (rows, columns) where it is not square."""
    ids_BL = np.asarray(ids_BL)
    if ids_BL.ndim != 2 or ids_BL.dtype.kind not in 'iu':
      raise ConfigError(
        f'decode takes integer ids [B, L], got {ids_BL.dtype}{list(ids_BL.shape)}; the ids of one '
        'image are ids.reshape(1, -1)'
      )
    if ids_BL.size and (ids_BL.min() < 0 or ids_BL.max() >= self.num_codes):
      raise ConfigError(
        f'ids run from {ids_BL.min()} to {ids_BL.max()}, but the tokenizer in {self.directory} has '
        f'codes 0 to {self.num_codes - 1}'
      )

    decoder = _decoder(self.model.config, tuple(grid) if grid else None)
    return _in_chunks(decoder, self.network(), ids_BL, batch)


class LoadedAutoencoder(LoadedRun):
  """A trained image autoencoder with continuous latents; images are uint8, latents float32 of unit
  variance."""

  @property
  def model(self) -> nn.Module:
    """The network; its methods `encode` and `decode` know latents without a scale."""
    return self.task.model

  @property
  def latent_dim(self) -> int:
    """Channels of the latents."""
    return self.model.config.latent_dim

  @functools.cached_property
  def scale(self) -> LatentScale:
    """The scale that `jaxmm latent-scale` measured for these parameters.

    Raises:
      ConfigError: it did not yet, or of the other weights (average or not) of this step.
    """
    found = read_scale(self.directory, self.step, self.weights)
    if found is None:
      raise ConfigError(
        f'the latents of step {self.step} of {self.directory} have no measured scale; measure it '
        f'once: jaxmm latent-scale --run {self.directory}'
      )
    return found

  def network(self) -> Mapping[str, Any]:
    """The network's variables alone."""
    return self.task.network(self.variables['params'])

  def encode(self, image_BYXC: np.ndarray, batch: int = 64) -> np.ndarray:
    """Scaled latents float32 [B, Y/f, X/f, D] of uint8 images [B, Y, X, C]: the encoder's means."""
    encoder = _latent_encoder(type(self.task), self.task.config, self.scale)
    return _in_chunks(encoder, self.network(), _checked_images(image_BYXC), batch)

  def decode(self, latent_BYXD: np.ndarray, batch: int = 64) -> np.ndarray:
    """Images uint8 [B, Y, X, C] of scaled latents, of any grid."""
    latent_BYXD = np.asarray(latent_BYXD)
    if latent_BYXD.dtype.kind != 'f':
      raise ConfigError(f'decode takes latents of a float type, got {latent_BYXD.dtype}')
    check_latents(latent_BYXD.shape, self.latent_dim)
    decoder = _latent_decoder(type(self.task), self.task.config, self.scale)
    return _in_chunks(decoder, self.network(), latent_BYXD, batch)

  def reconstruct(self, image_BYXC: np.ndarray, batch: int = 64) -> np.ndarray:
    """Images as their latents keep them, uint8 like the images given; needs no scale."""
    unscaled = LatentScale((1.0,))
    encoder = _latent_encoder(type(self.task), self.task.config, unscaled)
    decoder = _latent_decoder(type(self.task), self.task.config, unscaled)
    latent_BYXD = _in_chunks(encoder, self.network(), _checked_images(image_BYXC), batch)
    return _in_chunks(decoder, self.network(), latent_BYXD, batch)


class LoadedImageLm(LoadedRun):
  """A trained image LM with the tokenizer whose codes it was trained on."""

  def tokenizer(self) -> LoadedTokenizer:
    """The tokenizer, as it was when it wrote the token store that the run's config names."""
    directory, step = tokenizer_of(self.config, self.directory)
    steps = Checkpoints(directory / 'checkpoints').steps()
    if step not in steps:
      raise ConfigError(
        f'the codes that {self.directory} was trained on were written by step {step} of '
        f'{directory}, which now has the steps {", ".join(map(str, steps)) or "none"}; codes mean '
        'something else to another step. Write the tokens again and train on them, or name a '
        'tokenizer aloud (tokenizer=DIR, --tokenizer DIR) to decode with its newest step'
      )
    return load(directory, step=step)

  def sample_ids(
    self,
    labels: Sequence[int],
    *,
    seed: int = 0,
    sampling: SamplingConfig | None = None,
    batch: int = 64,
  ) -> np.ndarray:
    """Code ids int32 [B, L], one image for each class id in `labels`.

    The image of example i depends on (seed, i) alone, not on how examples are batched.
    """
    labels = np.asarray(labels, np.int32)
    if labels.ndim != 1:
      raise ConfigError(f'labels has shape {list(labels.shape)}, expected a list of class ids')
    config = self.task.config
    if labels.size and (labels.min() < 0 or labels.max() >= config.num_classes):
      raise ConfigError(
        f'labels run from {labels.min()} to {labels.max()}, but the model in {self.directory} has '
        f'classes 0 to {config.num_classes - 1}'
      )
    layout = jax.jit(image_lm.decode_params, static_argnums=1)(self.variables['params'], config)
    draw, key = _sampler(config, sampling or SamplingConfig()), jax.random.key(seed)
    chunks = []
    for start in range(0, len(labels), batch):
      chunk = labels[start : start + batch]
      padded = np.resize(chunk, batch if len(labels) > batch else len(chunk))
      index = np.arange(start, start + len(padded), dtype=np.uint32)
      chunks.append(np.asarray(draw(layout, padded, key, index))[: len(chunk)])
    return np.concatenate(chunks) if chunks else np.zeros((0, config.length), np.int32)

  def sample(
    self,
    labels: Sequence[int],
    *,
    seed: int = 0,
    batch: int = 64,
    tokenizer: str | os.PathLike | None = None,
    **sampling: Any,
  ) -> np.ndarray:
    """Images uint8 [B, Y, X, C], one for each class id; `sampling` as in `SamplingConfig`.

    `tokenizer` is a run directory; None is the tokenizer whose codes the model was trained on.
    """
    decoder = load(tokenizer) if tokenizer else self.tokenizer()
    if decoder.num_codes != self.task.config.num_codes:
      raise ConfigError(
        f'the tokenizer in {decoder.directory} has {decoder.num_codes} codes, the model in '
        f'{self.directory} {self.task.config.num_codes}'
      )
    settings = configs.from_mapping(SamplingConfig, sampling, 'sampling')
    ids_BL = self.sample_ids(labels, seed=seed, batch=batch, sampling=settings)
    return decoder.decode(ids_BL, batch=batch)


def load(
  directory: str | os.PathLike,
  *,
  step: int | None = None,
  weights: str = 'auto',
  overrides: Sequence[str] = (),
) -> LoadedRun:
  """A trained run, ready to use.

  Args:
    directory: a run directory (with config.json and checkpoints/).
    step: of the checkpoint; None for the newest that is whole.
    weights: 'params', 'ema', or 'auto': the average where the run kept one.
    overrides: `model.key=value` and `eval_data.key=value`, for another use of the same parameters.

  Returns:
    LoadedTokenizer or LoadedAutoencoder (encode, decode), LoadedImageLm (sample), LoadedLm or
    LoadedMegabyte (write), LoadedTransfusion (draw, edit, describe), LoadedCodesLm (draw,
    describe), or LoadedRun for other Tasks.

  Raises:
    ConfigError: the directory is not a run, or holds no checkpoint, or no such weights.
  """
  directory = pathlib.Path(directory)
  config = read_config(directory)
  if overrides:
    config = _with_overrides(config, overrides)
  task = run.make_task(config)
  checkpoints = Checkpoints(directory / 'checkpoints')
  if not checkpoints.steps():
    raise ConfigError(f'{directory} holds no checkpoint yet; train it first')
  if weights not in ('auto', 'params', 'ema'):
    raise ConfigError(f'weights is {weights!r}, expected auto, params or ema')
  if weights == 'ema' and not config.get('ema'):
    raise ConfigError(f'{directory} kept no average of its parameters: ema is 0 in its config')
  if weights == 'auto':
    weights = 'ema' if config.get('ema') else 'params'
  params, _, step = checkpoints.load_numpy(weights, step=step)
  variables = {'params': params}
  if any(name.startswith('extra/') for name in checkpoints.metadata(step).shapes):
    variables |= checkpoints.load_numpy('extra', step=step)[0]
  mesh = sharding.make_mesh(sharding.MeshConfig())
  variables = jax.device_put(variables, sharding.replicated(mesh))
  kinds = {
    vqgan_task.VqganTask: LoadedTokenizer,
    vae_task.VaeTask: LoadedAutoencoder,
    taesd.TaesdTask: LoadedAutoencoder,
    image_lm.ImageLmTask: LoadedImageLm,
    lm.LmTask: LoadedCodesLm if config['data'].get('mixed', {}).get('codes') else LoadedLm,
    megabyte.MegabyteTask: LoadedMegabyte,
    transfusion.TransfusionTask: LoadedTransfusion,
  }
  return kinds.get(type(task), LoadedRun)(directory, config, task, step, variables, weights)


def _with_overrides(config: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
  others = [o for o in overrides if not o.startswith(('model.', 'eval_data.'))]
  if others:
    raise ConfigError(
      f'{others[0].partition("=")[0]} belongs to training, which is over; expected settings of '
      'model or eval_data'
    )
  import ml_collections

  return configs.plain(run.with_settings(ml_collections.ConfigDict(config), overrides))


def read_config(directory: str | os.PathLike) -> dict[str, Any]:
  """The settings a run began with."""
  path = pathlib.Path(directory, 'config.json')
  if not path.is_file():
    raise ConfigError(f'{directory} is not a run directory: it has no config.json')
  return json.loads(path.read_text())


def scale_path(directory: str | os.PathLike, step: int) -> pathlib.Path:
  """Where the latent scale of a step of a run is kept."""
  return pathlib.Path(directory, f'latent_scale-{step}.json')


def read_scale(directory: str | os.PathLike, step: int, weights: str) -> LatentScale | None:
  """The latent scale of a step of a run; None where none was measured.

  Raises:
    ConfigError: it belongs to the step's other weights ('params' or 'ema').
  """
  path = scale_path(directory, step)
  if not path.is_file():
    return None
  kept = json.loads(path.read_text())
  if kept['weights'] != weights:
    raise ConfigError(
      f'{path} was measured on the weights {kept["weights"]!r}, but {weights!r} are loaded; load '
      f'those (weights={kept["weights"]!r}): others have other latents'
    )
  return LatentScale(tuple(kept['scale']), tuple(kept['shift']), kept['origin'])


def write_scale(directory: str | os.PathLike, step: int, weights: str, scale: LatentScale) -> None:
  """Keeps the latent scale of a step of a run, whole or not at all."""
  path = scale_path(directory, step)
  kept = {'step': step, 'weights': weights, **configs.plain(scale)}
  temporary = path.with_name(f'{path.name}.new')
  temporary.write_text(json.dumps(kept, indent=1) + '\n')
  os.replace(temporary, path)


def tokenizer_of(
  config: Mapping[str, Any], directory: str | os.PathLike
) -> tuple[pathlib.Path, int]:
  """The run directory and the step of the tokenizer that wrote the codes a run was trained on.

  Where the files were moved together, the path relative to the token store still leads there.
  """
  data = config.get('data', {})
  if data.get('name') != 'tokens':
    raise ConfigError(
      f'the run in {directory} names no token store, so its tokenizer is unknown; name it '
      '(tokenizer=DIR, --tokenizer DIR)'
    )
  candidates = []
  for base in (pathlib.Path(data['path']), pathlib.Path(directory, data['path'])):
    inner = base / data.get('split', 'train')
    store = inner if (inner / 'manifest.json').is_file() else base
    if not (store / 'manifest.json').is_file():
      continue
    meta = ArrayStore(store).meta
    step = meta['tokenizer_step']
    candidates += [
      (store / meta['tokenizer_relative'], step),
      (pathlib.Path(meta['tokenizer']), step),
    ]
  for candidate, step in candidates:
    if (candidate / 'config.json').is_file():
      return candidate, step
  raise ConfigError(
    f'the tokenizer of the run in {directory} is not where its tokens say; looked at '
    + (', '.join(str(path) for path, _ in candidates) or f'{data["path"]}, which is gone')
  )


@functools.cache
def _sampler(config: image_lm.ImageLmConfig, sampling: SamplingConfig):
  """The compiled loop `(layout, label_B, key, index_B) -> ids_BL`; kept for the next call."""

  @jax.jit
  def draw(layout, label_B, key, index_B):
    return image_lm.generate(layout, config, label_B, example_keys(key, index_B), sampling)

  return draw


@functools.cache
def _encoder(config: vqgan_task.TokenizerConfig):
  """The compiled `(variables, image_BYXC) -> ids_BL`; kept for the next call."""
  task = vqgan_task.VqganTask(config)

  @jax.jit
  def encode(variables, image_BYXC):
    pixels = task.pixels({'image_BYXC': image_BYXC})
    return task.model.apply(variables, pixels, method='encode_ids')

  return encode


@functools.cache
def _decoder(config: VqganConfig, grid: tuple[int, int] | None):
  """The compiled `(variables, ids_BL) -> image_BYXC`; kept for the next call."""

  @jax.jit
  def decode(variables, ids_BL):
    image = Vqgan(config).apply(variables, ids_BL, grid, method='decode_ids')
    return to_pixels(image).astype(jnp.uint8)

  return decode


@functools.cache
def _latent_encoder(task_type: type, config: Any, scale: LatentScale):
  """The compiled `(variables, image_BYXC) -> latent_BYXD`; kept for the next call."""
  task = task_type(config)

  @jax.jit
  def encode(variables, image_BYXC):
    pixels = task.pixels({'image_BYXC': image_BYXC})
    return scale.scaled(task.model.apply(variables, pixels, method='encode'))

  return encode


@functools.cache
def _latent_decoder(task_type: type, config: Any, scale: LatentScale):
  """The compiled `(variables, latent_BYXD) -> image_BYXC`; kept for the next call."""
  model = task_type(config).model

  @jax.jit
  def decode(variables, latent_BYXD):
    image = model.apply(variables, scale.unscaled(latent_BYXD), method='decode')
    return to_pixels(image).astype(jnp.uint8)

  return decode


def _checked_images(image_BYXC: np.ndarray) -> np.ndarray:
  image_BYXC = np.asarray(image_BYXC)
  if image_BYXC.dtype != np.uint8:
    raise ConfigError(f'encode takes uint8 images in 0..255, got {image_BYXC.dtype}')
  if image_BYXC.ndim != 4:
    raise ConfigError(
      f'encode takes images [B, Y, X, C], got {list(image_BYXC.shape)}; one image is image[None]'
    )
  return image_BYXC


def _in_chunks(compiled, variables, rows: np.ndarray, batch: int) -> np.ndarray:
  """`compiled(variables, rows)` in chunks of one size, so that it is compiled once."""
  out = []
  batch = min(batch, max(1, len(rows)))
  for start in range(0, max(1, len(rows)), batch):
    chunk = rows[start : start + batch]
    if not len(chunk):
      raise ConfigError('there are no rows to work on')
    padded = np.concatenate([chunk, np.repeat(chunk[-1:], batch - len(chunk), axis=0)])
    out.append(np.asarray(compiled(variables, padded))[: len(chunk)])
  return np.concatenate(out)
