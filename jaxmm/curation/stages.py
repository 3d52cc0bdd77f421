"""Stages of a method on vectors: each leaves its arrays in a file, and is not done again.

A file's name holds the digest of all that determines the arrays, so that other settings or other
vectors are another file.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxmm.curation import keep_list, kmeans
from jaxmm.curation.kmeans import Clustering, KMeansConfig
from jaxmm.curation.vectors import Vectors

Echo = Callable[[str], None]
Arrays = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Stages:
  """Where stages are kept (None keeps none), on which mesh they run, and who is told."""

  directory: str | os.PathLike | None = None
  mesh: jax.sharding.Mesh | None = None
  echo: Echo | None = None

  def arrays(self, name: str, settings: Any, make: Callable[[], Arrays]) -> Arrays:
    """What `make` gives, from the file if it is there."""
    if self.directory is None:
      return make()
    path = pathlib.Path(self.directory) / f'{name}-{digest_of(settings)}.npz'
    if _all_see(path.exists()):
      if self.echo:
        self.echo(f'{name}: done before ({path})')
      with np.load(path, allow_pickle=False) as saved:
        return dict(saved)
    made = make()
    if jax.process_index() == 0:
      path.parent.mkdir(parents=True, exist_ok=True)
      partial = path.with_suffix('.partial')
      with open(partial, 'wb') as f:
        np.savez(f, **made)
      os.replace(partial, path)
    return made

  def clustering(self, name: str, vectors: Vectors, config: KMeansConfig) -> Clustering:
    """k-means of the usable vectors."""
    settings = [dataclasses.asdict(config), fingerprint(vectors)]
    directory = None
    if self.directory is not None:
      directory = pathlib.Path(self.directory) / f'{name}-{digest_of(settings)}'

    def make() -> Arrays:
      found = kmeans.fit(vectors.x_UD, config, self.mesh, directory=directory, echo=self.echo)
      return dataclasses.asdict(found) | {'history': np.array(found.history)}

    made = dict(self.arrays(name, settings, make))
    return Clustering(**made | {'history': tuple(made['history'].tolist())})


def _all_see(is_there: bool) -> bool:
  """What the first process sees: one that is ahead must not change another's plan."""
  if jax.process_count() == 1:
    return is_there
  return bool(multihost_utils.broadcast_one_to_all(np.array(is_there)))


def digest_of(settings: Any) -> str:
  """Of JSON values."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


def fingerprint(vectors: Vectors) -> str:
  """Of examples and vectors (of 4,096 rows of them)."""
  rows = np.unique(np.linspace(0, len(vectors) - 1, 4096).astype(np.int64))
  of = hashlib.sha256(np.ascontiguousarray(vectors.x_ND[rows]).tobytes())
  return f'{keep_list.fingerprint(vectors.digest_N)}-{of.hexdigest()[:16]}'
