"""Names of files of several folders: short, different, and of the paths alone."""

from __future__ import annotations

import collections
import os
from collections.abc import Sequence


def apart(names: Sequence[str], paths: Sequence[str]) -> list[str]:
  """The names; where several files have one, the paths below the deepest folder that holds them.

  Neither their order nor where that folder lies shows. Only if such a path is the name of another
  file the whole paths are taken.

  Args:
    names: of files.
    paths: of the same files; local ones or URLs.
  """
  places = collections.defaultdict(list)
  for i, name in enumerate(names):
    places[name].append(i)
  out = list(names)
  for same in places.values():
    if len(same) > 1:
      for i, name in zip(same, _below([paths[i] for i in same])):
        out[i] = name
  times = collections.Counter(out)
  return [name if times[name] == 1 else path for name, path in zip(out, paths)]


def _below(paths: Sequence[str]) -> list[str]:
  parts = [(path if '://' in path else os.path.abspath(path)).split('/') for path in paths]
  first = min(len(os.path.commonprefix(parts)), *(len(part) - 1 for part in parts))
  return ['/'.join(part[first:]) for part in parts]
