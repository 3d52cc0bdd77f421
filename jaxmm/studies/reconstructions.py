"""How well an image tokenizer rebuilds held-out pictures: rFID and what compares pairs.

Every picture's values are rows of a resumable store in the order of the data; sums are taken of
them in float64 on the host.
"""

from __future__ import annotations

import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm import batch_job, sharding
from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.data import pipeline
from jaxmm.data.array_store import ArrayStore
from jaxmm.evaluate import images
from jaxmm.evaluate.codebook import CodeCounts
from jaxmm.studies import image_sets, loading
from jaxmm.studies.encoders import weights_digest
from jaxmm.studies.image_sets import Network
from jaxmm.tokenizers import perceptual

Echo = Callable[[str], None]


def pair_metrics(shape: Sequence[int]) -> dict[str, Callable]:
  """What can be measured of pairs of pictures of a shape [Y, X, C], `{name: fn(a, b) -> (sum, n)}`.

  SSIM and MS-SSIM need pictures of a least size; smaller ones have none.
  """
  found = {'mse': images.mean_squared_error}
  for name, metric, least in (
    ('psnr', images.psnr, 1),
    ('ssim', images.ssim, 11),
    ('ms_ssim', images.ms_ssim, 176),
  ):
    if min(shape[:2]) >= least:
      found[name] = lambda a, b, metric=metric: metric(a, b, data_range=255.0)
  return found


def pair_rows(a_BYXC: jax.Array, b_BYXC: jax.Array, lpips: Any = None) -> dict[str, jax.Array]:
  """`{metric: float32 [B]}` of pairs of pictures in [0, 255]; LPIPS where weights are given."""
  out = {}
  for name, metric in pair_metrics(a_BYXC.shape[1:]).items():
    one = lambda a, b, metric=metric: metric(a[None], b[None])[0]
    out[name] = jax.vmap(one)(a_BYXC, b_BYXC)
  if lpips is not None:
    a, b = (x.astype(jnp.float32) / 127.5 - 1.0 for x in (a_BYXC, b_BYXC))
    out['lpips'] = perceptual.lpips(lpips, a, b)
  return out


def read_lpips(files: Sequence[str]) -> Any:
  """The user's LPIPS weights; None where no file is named."""
  if not files:
    return None
  return perceptual.load_weights(perceptual.PerceptualConfig('lpips', tuple(files)))


def measure(
  loaded: loading.LoadedRun,
  directory: pathlib.Path,
  *,
  network: Network | None = None,
  lpips: Any = None,
  batch: int = 64,
  echo: Echo = print,
) -> ArrayStore:
  """The store of every held-out picture's values: pairs, codes, features of both.

  Args:
    loaded: a tokenizer or autoencoder run.
    directory: of the run's evaluation stores.
    network: of the features, `original_...` and `rebuilt_...`; None for none.
    lpips: weights, or None.
    batch: rows a step; rounded up to the mesh.
    echo: is given progress lines.

  Raises:
    ConfigError: no run that rebuilds pictures, or it has no held-out data.
  """
  if not isinstance(loaded, loading.LoadedTokenizer | loading.LoadedAutoencoder):
    raise ConfigError(
      f'{loaded.directory} is a run of {loaded.config["task"]}, which rebuilds none'
    )
  if not loaded.config.get('eval_data'):
    raise ConfigError(f'{loaded.directory} has no eval_data; name it: --config.eval_data.path=...')
  data = configs.from_mapping(
    pipeline.DataConfig, configs.plain(loaded.config['eval_data']), 'eval_data'
  )
  mesh = image_sets.mesh_of_all()
  batches = image_sets.folder_pass(data, mesh, batch)
  shape = (data.image_size, data.image_size, data.channels)
  variables = {'model': loaded.network(), 'features': network and network.params, 'lpips': lpips}
  fn = _values(loaded, network)
  fields = _fields(loaded, shape, network, lpips)
  identity = {
    'data': configs.plain(data),
    'weights': weights_digest(loaded.network()),
    'network': network and dict(network.identity),
    'lpips': None if lpips is None else weights_digest(lpips),
  }
  return batch_job.run(
    batches,
    fn,
    directory / f'pairs-{image_sets.digest(identity)}',
    variables=variables,
    fields=fields,
    mesh=mesh,
    rules=sharding.RULES['dp'],
    rows_per_shard=256,
    meta=identity,
    echo=echo,
  )


def _values(loaded, network: Network | None):
  task = loaded.task
  is_coded = isinstance(loaded, loading.LoadedTokenizer)

  def fn(variables, batch):
    image_BYXC = batch['image_BYXC']
    pixels = task.pixels(batch)
    out, ids = task.model.apply(variables['model'], pixels), None
    if is_coded:
      ids = out.quantized.ids_BL
    recon = images.to_pixels(getattr(out, 'recon_BYXC', out))
    values = pair_rows(image_BYXC, recon, variables['lpips'])
    if is_coded:
      values['ids'] = ids.reshape(len(ids), -1).astype(jnp.int32)
    if network is not None:
      for prefix, x in (('original_', image_BYXC), ('rebuilt_', recon)):
        found = network.fn(variables['features'], x)
        values |= {prefix + name: value for name, value in found.items()}
    return values

  return fn


def _fields(loaded, shape, network: Network | None, lpips: Any) -> dict[str, Any]:
  names = [*pair_metrics(shape), *(['lpips'] if lpips is not None else [])]
  fields: dict[str, Any] = dict.fromkeys(names, ((), np.float32))
  if isinstance(loaded, loading.LoadedTokenizer):
    fields['ids'] = ((int(np.prod(loaded.task.config.grid)),), np.int32)
  for prefix in ('original_', 'rebuilt_') if network else ():
    fields |= {prefix + name: field for name, field in network.fields.items()}
  return fields


def results(
  store: ArrayStore, *, num_codes: int | None = None, few_samples: str = 'error', echo: Echo = print
) -> dict[str, Any]:
  """`{metric: value}` of a store: means over the pictures that could be read, codebook use, and
  the distances of the rebuilt pictures to the originals as `rfid`, `rsfid`, ...

  Raises:
    ConfigError: no picture could be read.
  """
  valid_N = store.read(batch_job.VALID)
  if not valid_N.any():
    raise ConfigError(f'{store.directory}: none of the {len(valid_N)} pictures could be read')
  out: dict[str, Any] = {'images': int(valid_N.sum()), 'unreadable': int((~valid_N).sum())}
  for name in (*pair_metrics((10**6, 10**6)), 'lpips'):
    if name in store.fields:
      out[name] = float(store.read(name)[valid_N].astype(np.float64).mean())
  if num_codes is not None and 'ids' in store.fields:
    counts = CodeCounts.of(store.read('ids')[valid_N], num_codes)
    out |= {'code_usage': counts.usage, 'code_perplexity': counts.perplexity}
  if 'rebuilt_pool' in store.fields:
    sets = [image_sets.set_of_store(store, prefix) for prefix in ('rebuilt_', 'original_')]
    found = image_sets.compared(*sets, few_samples=few_samples, echo=echo)
    out |= {f'r{name}' if 'id' in name else name: value for name, value in found.items()}
  return out
