"""Sets of pictures under the FID Inception: features in resumable stores, then all distances.

A set is a folder or zip of pictures, a sample batch (`.npz` with `arr_0`), or, as a reference, a
file of public statistics. Features are kept in the output directory, shard by shard, so a command
that was stopped goes on; what is made of them is float64 on the host, in the order of the pictures,
and so the same for any batch, mesh and number of processes.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError
from jaxmm.data import pipeline, sources, transforms
from jaxmm.data.array_store import ArrayStore
from jaxmm.data.image_files import FileSource
from jaxmm.evaluate import inception, manifold, statistics_file
from jaxmm.evaluate.distances import FeatureStatistics, frechet_distance, kernel_distance
from jaxmm.evaluate.features import image_pass
from jaxmm.interop.inception import read_inception
from jaxmm.studies.encoders import weights_digest

Echo = Callable[[str], None]
# Rows of features whose statistics are taken at once; fixed, so that results do not move.
_ROWS_AT_ONCE = 1024
# Rows that a command that was stopped has to compute again, at most.
_ROWS_A_SHARD = 256
# Pictures of a set for the distances that compare every row with every other.
_PAIRWISE_LIMIT = 50_000


@dataclasses.dataclass(frozen=True)
class Network:
  """What makes features of pictures.

  Attributes:
    params: arrays that `fn` reads.
    fn: pure; `fn(params, image_BYXC) -> {field: [B, width]}`, 'pool' among them.
    fields: `{field: (shape of a row, dtype)}`.
    identity: JSON values that determine the features.
  """

  params: Any
  fn: Callable[[Any, jax.Array], Mapping[str, jax.Array]]
  fields: Mapping[str, tuple[tuple[int, ...], Any]]
  identity: Mapping[str, Any]


def inception_network(weights: str | os.PathLike, convention: str = 'adm') -> Network:
  """The FID Inception with the user's weights, in one of `inception.CONVENTIONS`."""
  if convention not in inception.CONVENTIONS:
    raise ConfigError(
      f'convention is {convention!r}, expected one of {", ".join(inception.CONVENTIONS)}'
    )
  params = read_inception(weights)

  def features(params, image_BYXC):
    return inception.image_features(params, in_colour(image_BYXC), convention)

  identity = {
    'network': 'fid-inception',
    'weights': weights_digest(params),
    'convention': convention,
  }
  return Network(params, features, inception.FIELDS, identity)


def in_colour(image_BYXC: jax.Array) -> jax.Array:
  """Grey pictures with three equal channels; others as they are."""
  return jnp.broadcast_to(image_BYXC, (*image_BYXC.shape[:-1], 3))


@dataclasses.dataclass(frozen=True)
class Pictures:
  """One set as an ordered pass, and what it is by its contents rather than its place."""

  batches: batch_job.Pass
  identity: Mapping[str, Any]


def open_pictures(
  path: str | os.PathLike,
  *,
  mesh: jax.sharding.Mesh,
  batch: int = 64,
  image_size: int | None = None,
  max_images: int | None = None,
) -> Pictures:
  """A folder or zip of pictures, or a sample batch.

  Args:
    path: of the set.
    mesh: what the batches are to be split over; `batch` is rounded up to it.
    batch: rows a step.
    image_size: side to which pictures of a folder are cropped (ADM's centre crop); None takes them
      as they are, all of one size.
    max_images: use only so many, evenly spaced.

  Raises:
    ConfigError: nothing there, no pictures, or pictures of several sizes.
  """
  if batch < 1 or (max_images is not None and max_images < 1):
    raise ConfigError(f'batch is {batch} and max_images {max_images}, expected at least 1')
  if str(path).endswith('.npz'):
    if image_size is not None:
      raise ConfigError(
        f'image_size is {image_size}, but {path} holds pictures of one size already; leave it out'
      )
    images = statistics_file.read_images(path)
    identity = {'images': statistics_file.checksum(path, 'arr_0')}
    if max_images is not None and max_images < len(images):
      images = images[np.arange(max_images) * len(images) // max_images]
      identity['max_images'] = max_images
    return Pictures(image_pass(images, batch, mesh), identity)
  settings = dict(name='images', path=str(path), split='all', labels='none', convert_channels=True)
  source = pipeline.open_source(pipeline.DataConfig(**settings))
  size = image_size or _side(source, str(path))
  config = pipeline.DataConfig(
    **settings,
    image_size=size,
    crop='none' if image_size is None else 'center',
    max_records=max_images,
  )
  identity = {'files': _contents(path, source), 'image_size': image_size, 'max_images': max_images}
  return Pictures(folder_pass(config, mesh, batch), identity)


def _contents(path: str | os.PathLike, source: FileSource) -> str:
  """Digest of names, sizes and times of a folder's files, or of what a zip says of its members."""
  root, names = pathlib.Path(path), [source.id(i) for i in range(len(source))]
  if root.is_dir():
    stats = ((root / name).stat() for name in names)
    known = [(name, s.st_size, s.st_mtime_ns) for name, s in zip(names, stats)]
  else:
    with zipfile.ZipFile(root) as archive:
      known = [(name, (i := archive.getinfo(name)).file_size, i.CRC) for name in names]
  return digest(known)


def digest(value: Any) -> str:
  """Of what JSON can hold; names a store by what determines it."""
  return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def folder_pass(config: pipeline.DataConfig, mesh: jax.sharding.Mesh, batch: int):
  """One ordered pass over a data set, in batches of `batch` rounded up to the mesh."""
  return pipeline.make_batches(
    config,
    batch_size=fitting(batch, mesh),
    seed=0,
    process_index=jax.process_index(),
    process_count=jax.process_count(),
    train=False,
  )


def fitting(batch: int, mesh: jax.sharding.Mesh) -> int:
  """The least batch of at least `batch` rows that the mesh and the processes divide."""
  if batch < 1:
    raise ConfigError(f'batch is {batch}, expected at least 1')
  parts = int(np.lcm(mesh.shape['data'] * mesh.shape['fsdp'], jax.process_count()))
  return -(-batch // parts) * parts


def _side(source, path: str) -> int:
  for i in range(len(source)):
    try:
      name = source.name(i)
      return len(transforms.decode_image(source[i]['image'], 3, True, name))
    except sources.UnreadableRecord:
      continue
  raise ConfigError(f'{path}: none of its {len(source)} pictures can be read')


def features_of(
  pictures: Pictures,
  network: Network,
  directory: str | os.PathLike,
  *,
  mesh: jax.sharding.Mesh,
  echo: Echo | None = print,
) -> ArrayStore:
  """The store of a set's features, below `directory` under the digest of what determines them;
  what is there already is not computed again."""
  meta = {**pictures.identity, **network.identity}

  def fn(params, batch):
    return dict(network.fn(params, batch['image_BYXC']))

  return batch_job.run(
    pictures.batches,
    fn,
    pathlib.Path(directory, f'features-{digest(meta)}'),
    variables=network.params,
    fields=network.fields,
    mesh=mesh,
    rules=sharding.RULES['dp'],
    rows_per_shard=_ROWS_A_SHARD,
    meta=meta,
    echo=echo,
  )


@dataclasses.dataclass(frozen=True)
class FeatureSet:
  """What is known of one set: rows of features where there are pictures, and statistics.

  Attributes:
    rows: pooled features [N, D] of the pictures that could be read; None of statistics alone.
    statistics: by field; of a reference file those that it states, whatever pictures it holds.
    unreadable: pictures that could not be read.
  """

  rows: np.ndarray | None
  statistics: Mapping[str, FeatureStatistics]
  unreadable: int = 0


def set_of_store(store: ArrayStore, prefix: str = '') -> FeatureSet:
  """The set behind a store, in the order of its rows; fields called `prefix` + name."""
  valid_N, rows = store.read(batch_job.VALID), None
  statistics = {}
  names = [n for n in store.fields if n.startswith(prefix)]
  for field in [n for n in names if n.removeprefix(prefix) in ('pool', 'spatial')]:
    values = store.read(field)[valid_N]
    total = FeatureStatistics.empty(values.shape[1])
    for start in range(0, len(values), _ROWS_AT_ONCE):
      total = total.merge(FeatureStatistics.of(values[start : start + _ROWS_AT_ONCE]))
    statistics[field.removeprefix(prefix)] = total
    if field == f'{prefix}pool':
      rows = values
  return FeatureSet(rows, statistics, int((~valid_N).sum()))


def reference_of(
  path: str | os.PathLike,
  network: Network,
  directory: pathlib.Path,
  *,
  mesh: jax.sharding.Mesh,
  echo: Echo | None = print,
  **options: Any,
) -> FeatureSet:
  """What samples are compared with: statistics, pictures, or a file of both (as ADM's).

  Args:
    path: of the file or folder.
    network: of the features.
    directory: where those of pictures are kept.
    mesh, echo: as of `features_of`.
    **options: of `open_pictures`.
  """
  names = statistics_file.entries(path) if str(path).endswith('.npz') else []
  stated = statistics_file.read_statistics(path) if {'mu', 'sigma'} & set(names) else {}
  if stated and 'arr_0' not in names:
    return FeatureSet(None, stated)
  pictures = open_pictures(path, mesh=mesh, **options)
  found = set_of_store(features_of(pictures, network, directory, mesh=mesh, echo=echo))
  return dataclasses.replace(found, statistics={**found.statistics, **stated})


def check_enough(num: int, network: Network, few_samples: str) -> None:
  """Refuses what `compared` will refuse of `num` pictures, before their features are computed."""
  width = network.fields['pool'][0][0]
  if num <= width and few_samples == 'error':
    raise ConfigError(
      f'a Frechet distance in {width} features needs more than {width} samples of each set, got '
      f'{num}; take more, or say few_samples="accept"'
    )


def compared(
  samples: FeatureSet, reference: FeatureSet, *, few_samples: str = 'error', echo: Echo = print
) -> dict[str, Any]:
  """Distances of two sets, and precision and recall where both have pictures.

  fid, sfid: Frechet distances of pooled and spatial features (of spatial ones where both have
    them and pictures enough).
  kid: kernel distance of pooled features.
  precision, recall: of `evaluate.manifold`.

  Raises:
    ConfigError: fewer pictures than features, unless `few_samples` is 'accept'.
  """
  out: dict[str, Any] = {}
  for field, name in (('pool', 'fid'), ('spatial', 'sfid')):
    if field in samples.statistics and field in reference.statistics:
      own, other = samples.statistics[field], reference.statistics[field]
      out[name] = frechet_distance(own, other, few_samples=few_samples)
  if samples.rows is None or reference.rows is None:
    echo('no precision, recall and kid: the reference has statistics, but no pictures')
    return out
  if max(len(samples.rows), len(reference.rows)) > _PAIRWISE_LIMIT:
    echo(f'no precision, recall and kid: of more than {_PAIRWISE_LIMIT:,} pictures; see max_images')
    return out
  out['kid'] = kernel_distance(reference.rows, samples.rows)
  return out | manifold.precision_recall(reference.rows, samples.rows)


@functools.cache
def mesh_of_all() -> jax.sharding.Mesh:
  """All devices of all processes, rows split over them."""
  return sharding.make_mesh(sharding.MeshConfig())
