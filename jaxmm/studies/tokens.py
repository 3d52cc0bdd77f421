"""The codes or latents of a data set, written once by a trained tokenizer; image models train on
them.

Axes: B batch, V views of one image, L codes, Y X rows and columns, C channels, D latent width.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmm import batch_job, sharding
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.data import pipeline
from jaxmm.data.array_store import ArrayStore
from jaxmm.data.image_files import FileSource
from jaxmm.studies import loading

VIEWS = ('one', 'flip', 'ten')


def write(
  tokenizer: str | os.PathLike,
  output: str | os.PathLike,
  *,
  split: str = 'train',
  views: str = 'one',
  batch: int = 64,
  dtype: str | None = None,
  overrides: Sequence[str] = (),
  echo: Callable[[str], None] | None = print,
) -> ArrayStore:
  """Writes a token store; run again after an interruption it goes on.

  Args:
    tokenizer: the run directory of a tokenizer, or of an autoencoder with continuous latents.
    output: the store, a directory. Fields `label`, and `codes` [L] or [V, L], or `latents`
      [Y, X, D] or [V, Y, X, D], scaled to unit variance.
    split: of the run's data.
    views: 'one' (the run's crop without randomness), 'flip' (and its mirror image) or 'ten'
      (LlamaGen's ten crops, for each of `data.ten_crop_ratios`).
    batch: images a step.
    dtype: of latents, 'float32' or 'float16'; None for float32, and for codes.
    overrides: `data.key=value` settings on top of the run's own data. Its keep-list holds for the
      split that it was trained on; with `data.keep_list=` codes of other records are written.
    echo: receives progress lines.

  Raises:
    ConfigError: not a tokenizer's run, an unknown setting, or a store of other settings.
  """
  if views not in VIEWS:
    raise ConfigError(f'views is {views!r}, expected one of {", ".join(VIEWS)}')
  loaded = loading.load(tokenizer)
  data = data_config(loaded.config, split, views, overrides)
  field, row, dtype = _layout(loaded, data, dtype)
  batches = batches_of(loaded, data, batch)
  num_views = {'one': 1, 'flip': 2, 'ten': 10 * len(data.ten_crop_ratios)}[views]
  if echo:
    echo(
      f'{batches.num_records} images of split {split}, {num_views} views of '
      f'{"x".join(map(str, row))} {field} each'
    )
  return batch_job.run(
    batches,
    _encoder(loaded, field, num_views, row),
    output,
    variables=loaded.network(),
    fields={
      field: (row if num_views == 1 else (num_views, *row), dtype),
      'label': ((), 'int32'),
    },
    mesh=sharding.make_mesh(sharding.MeshConfig()),
    rules=sharding.RULES['dp'],
    meta=_meta(loaded, output, data, batches),
    echo=echo,
  )


def _layout(
  loaded: loading.LoadedRun, data: pipeline.DataConfig, dtype: str | None
) -> tuple[str, tuple[int, ...], str]:
  """Name, shape of a row and dtype of what the run makes of an image."""
  if isinstance(loaded, loading.LoadedTokenizer):
    if dtype is not None:
      raise ConfigError(
        f'dtype is {dtype!r}, but {loaded.directory} makes codes, whose type follows from their '
        'number; leave it out'
      )
    rows, columns = loaded.model.config.grid(data.image_size, data.image_size)
    return 'codes', (rows * columns,), 'uint16' if loaded.num_codes <= 2**16 else 'int32'
  if not isinstance(loaded, loading.LoadedAutoencoder):
    raise ConfigError(
      f'{loaded.directory} is a run of {loaded.config["task"]}, expected a tokenizer'
    )
  if dtype not in (None, 'float32', 'float16'):
    raise ConfigError(f"dtype is {dtype!r}, expected 'float32' or 'float16'")
  grid = loaded.model.config.grid(data.image_size, data.image_size)
  return 'latents', (*grid, loaded.latent_dim), dtype or 'float32'


def batches_of(
  loaded: loading.LoadedRun, data: pipeline.DataConfig, batch: int
) -> pipeline.Batches:
  """One ordered pass over data for this process."""
  return pipeline.make_batches(
    data,
    batch_size=batch,
    seed=loaded.config['seed'],
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    train=False,
  )


def data_config(
  config: Mapping[str, Any], split: str, views: str, overrides: Sequence[str]
) -> pipeline.DataConfig:
  """The run's data without randomness, as one split, with the user's changes."""
  import ml_collections

  section = {**configs.plain(pipeline.DataConfig()), **config['data']}
  tree = ml_collections.ConfigDict({'data': section})
  # Fields that are None or tuples are typed by DataConfig itself.
  if split != tree.data.split:
    tree.data.keep_list = ''  # held-out data is never pruned
  configs.override(tree, overrides)
  section = tree.data.to_dict() | {'split': split, 'flip': False, 'cache': False}
  if views == 'ten':
    section['crop'] = 'ten'
  return configs.from_mapping(pipeline.DataConfig, section, 'data')


def _encoder(
  loaded: loading.LoadedTokenizer | loading.LoadedAutoencoder,
  field: str,
  num_views: int,
  row: tuple[int, ...],
):
  scale = loaded.scale if field == 'latents' else None

  def encoded(variables, pixels):
    if scale is None:
      return loaded.model.apply(variables, pixels, method='encode_ids')
    return scale.scaled(loaded.model.apply(variables, pixels, method='encode'))

  def encode(variables, batch: dict[str, jax.Array]) -> dict[str, jax.Array]:
    if num_views == 1:
      images = batch['image_BYXC']
    elif num_views == 2:
      images = jnp.stack([batch['image_BYXC'], batch['image_BYXC'][:, :, ::-1]], axis=1)
    else:
      images = batch['image_BVYXC']
    flat_MYXC = images.reshape(-1, *images.shape[-3:])
    out = encoded(variables, loaded.task.pixels({'image_BYXC': flat_MYXC}))
    lead = batch['label_B'].shape + (() if num_views == 1 else (num_views,))
    return {field: out.reshape(*lead, *row), 'label': batch['label_B']}

  return encode


def _meta(loaded, output, data, batches) -> dict[str, Any]:
  """What made the store: a store with another `meta` is not continued."""
  where = pathlib.Path(loaded.directory).resolve()
  grid = loaded.model.config.grid(data.image_size, data.image_size)
  if isinstance(loaded, loading.LoadedTokenizer):
    kind = {'num_codes': loaded.num_codes}
  else:
    scale = {'scale': loaded.scale.scale, 'shift': loaded.scale.shift}
    kind = {'latent_dim': loaded.latent_dim, 'latent_scale': configs.plain(scale)}
  if isinstance(batches.source, FileSource):
    kind |= {'pictures': batches.source.digest()}
  model = json.dumps(loaded.config['model'], sort_keys=True).encode()
  return {
    'tokenizer': str(where),
    'tokenizer_relative': os.path.relpath(where, pathlib.Path(output).resolve()),
    'tokenizer_step': loaded.step,
    'tokenizer_model': hashlib.sha256(model).hexdigest()[:16],
    **kind,
    'grid': list(grid),
    'num_classes': batches.num_classes,
    'kept_fingerprint': batches.kept_fingerprint,
    'split': data.split,
    'data': configs.plain(data),
  }
