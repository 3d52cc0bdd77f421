"""The `.npz` files in which sets of images and their statistics are passed around.

    arr_0                uint8 images [N, Y, X, 3]: a sample batch of the ADM suite
    mu, sigma            mean and covariance of the 2048 pooled features: of pytorch-fid and ADM
    mu_s, sigma_s        those of the 2023 spatial features (sFID), where ADM's file has them
    count                rows behind the statistics; ours alone, other programs pass it over

ADM's reference batches hold both statistics (of a whole training set) and images (10,000 of them,
for precision and recall). Nothing here is a pickle: a file with object arrays is refused.
"""

from __future__ import annotations

import os
import pathlib
import zipfile
import zlib

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.evaluate.distances import FeatureStatistics
from jaxmm.models.inception import FEATURES, SPATIAL_FEATURES

# Our names of the features -> entries of mean and covariance, and how wide they are.
_ENTRIES = {
  'pool': ('mu', 'sigma', FEATURES, "'pool_3'"),
  'spatial': ('mu_s', 'sigma_s', SPATIAL_FEATURES, "'mixed_6/conv'"),
}


def entries(path: str | os.PathLike) -> list[str]:
  """Names of the arrays of a file.

  Raises:
    ConfigError: no such file, or no `.npz`.
  """
  path = pathlib.Path(path)
  if not path.is_file():
    raise ConfigError(f'{path}: there is no such file')
  try:
    with zipfile.ZipFile(path) as archive:
      return [n.removesuffix('.npy') for n in archive.namelist() if n.endswith('.npy')]
  except zipfile.BadZipFile as error:
    raise ConfigError(f'{path}: not a readable .npz file ({error})') from error


def read_statistics(path: str | os.PathLike) -> dict[str, FeatureStatistics]:
  """`{'pool': statistics, 'spatial': statistics}` of a file; 'spatial' where it has them.

  Raises:
    ConfigError: no statistics in it, of another number of features than the FID Inception's, or
      not finite.
  """
  names = entries(path)
  if not {'mu', 'sigma'} <= set(names):
    raise ConfigError(
      f'{path}: holds {", ".join(names[:8]) or "no arrays"}, expected statistics (mu and sigma, as '
      'pytorch-fid and the ADM suite write them)'
    )
  count = int(_array(path, 'count')) if 'count' in names else None
  out = {}
  for name, (mean, covariance, width, layer) in _ENTRIES.items():
    if mean not in names or covariance not in names:
      continue
    mean_D, covariance_DD = (_array(path, n) for n in (mean, covariance))
    if mean_D.shape != (width,) or covariance_DD.shape != (width, width):
      raise ConfigError(
        f'{path}: {mean} has shape {mean_D.shape} and {covariance} {covariance_DD.shape}, expected '
        f'({width},) and ({width}, {width}), of the layer {layer} of the FID Inception; they are '
        'of another layer (--dims of pytorch-fid) or of another network'
      )
    mean_D, covariance_DD = mean_D.astype(np.float64), covariance_DD.astype(np.float64)
    if not (np.isfinite(mean_D).all() and np.isfinite(covariance_DD).all()):
      raise ConfigError(f'{path}: {mean} or {covariance} is not finite')
    scale = 1 if count is None else count - 1
    out[name] = FeatureStatistics(count, mean_D, covariance_DD * scale)
  return out


def write_statistics(path: str | os.PathLike, statistics: dict[str, FeatureStatistics]) -> None:
  """Writes what `read_statistics` reads, whole or not at all; readable by pytorch-fid and ADM."""
  if len({found.count for found in statistics.values()}) > 1:
    raise ValueError('statistics of one file are of one number of images')
  arrays = {}
  for name, found in statistics.items():
    mean, covariance, width, _ = _ENTRIES[name]
    if found.width != width:
      raise ConfigError(f'statistics of {found.width} features, expected {width} for {mean}')
    arrays |= {mean: found.mean(), covariance: found.covariance()}
    if found.count is not None:
      arrays['count'] = np.int64(found.count)
  _write(path, arrays)


def read_images(path: str | os.PathLike) -> np.ndarray:
  """The images of a sample batch, uint8 [N, Y, X, C].

  Of a file that `np.savez` wrote they are mapped, not read: 50,000 of them are 10 GB.

  Raises:
    ConfigError: no `arr_0` in it, or no uint8 images.
  """
  names = entries(path)
  if 'arr_0' not in names:
    raise ConfigError(
      f'{path}: holds {", ".join(names[:8]) or "no arrays"}, expected images as arr_0'
    )
  images = _mapped(path, 'arr_0')
  images = _array(path, 'arr_0') if images is None else images
  if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
    raise ConfigError(f'{path}: arr_0 is {images.dtype}{images.shape}, expected uint8 [N, Y, X, 3]')
  if not len(images):
    raise ConfigError(f'{path}: arr_0 holds no images')
  return images


def write_images(path: str | os.PathLike, image_NYXC: np.ndarray) -> None:
  """Writes a sample batch that the ADM suite reads, whole or not at all."""
  _write(path, {'arr_0': image_NYXC})


def checksum(path: str | os.PathLike, entry: str) -> str:
  """What the file itself says of one array's bytes, without reading them."""
  with zipfile.ZipFile(path) as archive:
    info = archive.getinfo(f'{entry}.npy')
  return f'{info.CRC:08x}-{info.file_size}'


def _array(path: str | os.PathLike, name: str) -> np.ndarray:
  try:
    with np.load(path, allow_pickle=False) as arrays:
      return arrays[name]
  except (ValueError, OSError, zipfile.BadZipFile, zlib.error) as error:
    raise ConfigError(f'{path}: {name} cannot be read ({error})') from error


def _mapped(path: str | os.PathLike, name: str) -> np.ndarray | None:
  """An array that lies uncompressed in the file; None if it does not."""
  with zipfile.ZipFile(path) as archive:
    info = archive.getinfo(f'{name}.npy')
  if info.compress_type != zipfile.ZIP_STORED:
    return None
  with open(path, 'rb') as file:
    file.seek(info.header_offset + 26)  # of the local header: lengths of name and extra field
    lengths = int.from_bytes(file.read(2), 'little') + int.from_bytes(file.read(2), 'little')
    file.seek(info.header_offset + 30 + lengths)
    try:
      version = np.lib.format.read_magic(file)
      read = {(1, 0): np.lib.format.read_array_header_1_0}.get(
        version, np.lib.format.read_array_header_2_0
      )
      shape, is_fortran, dtype = read(file)
    except ValueError as error:
      raise ConfigError(f'{path}: {name} cannot be read ({error})') from error
    if is_fortran or dtype.hasobject or not np.prod(shape):
      return None
    return np.memmap(path, dtype, 'r', file.tell(), shape)


def _write(path: str | os.PathLike, arrays: dict[str, np.ndarray]) -> None:
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(f'.{path.name}.{os.getpid()}')
  with open(partial, 'wb') as file:
    np.savez(file, **arrays)
  os.replace(partial, path)
