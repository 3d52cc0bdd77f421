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

# Of glibc's malloc.h.
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
_NEVER = 2**31 - 1


def keep_freed_memory(environment: Mapping[str, str] = os.environ) -> bool:
  """Lets this process keep what it frees; whether it does.

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
  return bool(mallopt(_MMAP_MAX, 0)) and bool(mallopt(_TRIM_THRESHOLD, _NEVER))
