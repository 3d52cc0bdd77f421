"""What a run runs on: `environment.json`, for whoever asks later why two runs differ."""

from __future__ import annotations

import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
from typing import Any

import jax

import jaxmm
from jaxmm import config as configs

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain', 'numpy')


def described() -> dict[str, Any]:
  """Versions, and the machine as this process sees it."""
  device = jax.devices()[0]
  return {
    'versions': {
      'jaxmm': jaxmm.__version__,
      'python': platform.python_version(),
      **{name: version for name in _PACKAGES if (version := _version(name))},
    },
    'commit': _commit(pathlib.Path(jaxmm.__file__).resolve().parent.parent),
    'machine': platform.platform(),
    'platform': device.platform,
    'device_kind': device.device_kind,
    'device_count': jax.device_count(),
    'process_count': jax.process_count(),
  }


def write(workdir: pathlib.Path) -> list[str]:
  """Writes `environment.json`; returns what differs from the one that was there, one line each.

  It decides nothing: a run may go on anywhere, and one file that cannot be read is replaced.
  """
  path, new = workdir / 'environment.json', described()
  try:
    old = json.loads(path.read_text())
  except (FileNotFoundError, ValueError):
    old = new
  temporary = path.with_name(f'{path.name}.new')
  temporary.write_text(json.dumps(new, indent=2) + '\n')
  os.replace(temporary, path)
  return configs.differences(old, new) if isinstance(old, dict) else []


def _version(package: str) -> str | None:
  try:
    return importlib.metadata.version(package)
  except importlib.metadata.PackageNotFoundError:
    return None


def _commit(root: pathlib.Path) -> str | None:
  """The commit of the checkout at `root`, '-dirty' where files differ; None if it is none."""
  if not (root / '.git').exists():  # an installed package may lie inside another project's checkout
    return None
  command = (
    'git',
    '-C',
    str(root),
    'describe',
    '--always',
    '--dirty',
    '--exclude=*',
    '--abbrev=40',
  )
  try:
    done = subprocess.run(
      command,
      env=dict(os.environ, GIT_OPTIONAL_LOCKS='0'),
      capture_output=True,
      text=True,
      timeout=10,
    )
  except (OSError, subprocess.TimeoutExpired):
    return None
  return done.stdout.strip() or None
