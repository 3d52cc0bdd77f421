"""One compilation cache for all tests of this room, also for the processes that they start."""

import os

import jax
import pytest
from jax.experimental.compilation_cache import compilation_cache


@pytest.fixture(scope='package', autouse=True)
def compiled(tmp_path_factory):
  """Programs of the toy compile in a second or two; every resume would compile them again."""
  names = ('jax_compilation_cache_dir', 'jax_persistent_cache_min_compile_time_secs')
  before = {name: getattr(jax.config, name) for name in names}
  directory = before[names[0]] or str(tmp_path_factory.mktemp('compiled'))
  new = dict(zip(names, (directory, 0.0)))
  with pytest.MonkeyPatch.context() as patch:
    for name, value in new.items():
      jax.config.update(name, value)
      patch.setitem(os.environ, name.upper(), str(value))
    compilation_cache.reset_cache()
    yield directory
  for name, value in before.items():
    jax.config.update(name, value)
  compilation_cache.reset_cache()
