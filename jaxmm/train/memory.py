"""Memory that a step frees and the next one asks for again, kept by the process.

A training step on a CPU frees and asks for the same large arrays again and again. glibc returns
such memory to the system at once, which hands it back page by page and zeroed: a tenth of the time
of a small transformer's step. Kept, it costs nothing but that a process holds on to its peak. It is
for a process of our own, the command `jaxmm`, not for a library that somebody imports.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

# Of glibc's malloc.h. One arena, because those of threads hold no large array; no array in a
# mapping of its own, which ends with it; and the end of the heap is never given back.
_SETTINGS = {'M_ARENA_MAX': (-8, 1), 'M_MMAP_MAX': (-4, 0), 'M_TRIM_THRESHOLD': (-1, -1)}


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
  """Lets this process keep what it frees; whether it does. Call it before threads are started.

  False where the C library is not glibc, or where `environment` already says how malloc is to
  behave (GLIBC_TUNABLES, MALLOC_*): then nothing is changed.
  """
  if any(name == 'GLIBC_TUNABLES' or name.startswith('MALLOC_') for name in environment):
    return False
  try:
    library = ctypes.CDLL(None)
    library.gnu_get_libc_version  # noqa: B018  only glibc has it
    mallopt = library.mallopt
  except (AttributeError, OSError, TypeError):  # no such function; no such library (Windows)
    return False
  taken = [mallopt(name, value) for name, value in _SETTINGS.values()]
  return all(taken)
