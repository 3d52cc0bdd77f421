"""The corpora that the claims about pruned text and code share.

The texts themselves are the user's (`--data-path`) or, of code, the standard library of the Python
that runs.
"""

from __future__ import annotations

import pathlib
import sysconfig
from collections.abc import Callable, Mapping, Sequence

from jaxmm.config import ConfigError
from jaxmm.studies import pruning_corpora
from jaxmm.studies.pruning import START
from jaxmm.studies.pruning_claim import Corpora
from jaxmm.studies.pruning_corpora import HELD_OUT, POOLS, Texts

# Bytes of a pool, of what models begin with, and of each held-out text at scale 1; pilots chose
# them for minutes on two cores.
POOL_BYTES, START_BYTES, HELD_OUT_BYTES = 1_600_000, 800_000, 120_000
_LIBRARY = pathlib.Path(sysconfig.get_paths()['stdlib'])
_SKIPPED = ('site-packages', 'dist-packages', '__pycache__')


def of_folder(
  data_path: pathlib.Path | None,
  scale: float,
  *,
  plant: Callable[[Texts], Texts],
  planting: Mapping[str, object],
  what: str,
) -> Corpora:
  """Pools `natural` and `planted` of DIR/pool*, what models begin with, held-out texts of
  DIR/held_out, and `pool`, held out of the pool itself.

  `bits_elsewhere` is the mean over the held-out texts that are not of the pool.

  Args:
    data_path: DIR.
    scale: of the sizes.
    plant: makes the planted pool of the natural one.
    planting: what `plant` does, for the stage's settings.
    what: said in errors: what such texts might be.
  """
  found = pruning_corpora.user_texts(data_path, what, skipped=('pool',))
  elsewhere = tuple(name for name in found if name != 'pool')
  sizes = {
    'pool_bytes': round(POOL_BYTES * scale),
    'start_bytes': round(START_BYTES * scale),
    'held_out_bytes': round(HELD_OUT_BYTES * scale),
  }

  def write(directory: pathlib.Path):
    order = pruning_corpora.shuffled(found['pool'])
    of_pool = pruning_corpora.up_to(order, sizes['held_out_bytes'])
    natural = pruning_corpora.up_to(order[len(of_pool) :], sizes['pool_bytes'])
    left = order[len(of_pool) + len(natural) :]
    start = pruning_corpora.up_to(left, sizes['start_bytes'])
    held_out = {'pool': of_pool}
    for name in elsewhere:
      pieces = pruning_corpora.shuffled(_pieces(found[name]))
      held_out[name] = pruning_corpora.up_to(pieces, sizes['held_out_bytes'])
    pools = {'natural': natural, 'planted': plant(natural), START: start}
    return pruning_corpora.write(directory, {POOLS: pools, HELD_OUT: held_out})

  return Corpora(
    write,
    {**sizes, 'planting': dict(planting), 'files': pruning_corpora.identity_of([data_path])},
    ('pool', *elsewhere),
    {'bits_elsewhere': elsewhere, 'bits_pool': ('pool',)},
  )


def _pieces(texts: Sequence[str], length: int = 4000) -> Texts:
  """Long texts in pieces, so that a few thousand bytes are not all of one book."""
  return [text[at : at + length] for text in texts for at in range(0, len(text), length)]


def of_library(
  data_path: pathlib.Path | None,
  scale: float,
  *,
  pool_bytes: int,
  plant: Callable[[Texts], Texts],
  planting: Mapping[str, object],
) -> Corpora:
  """Pools `natural` and `planted` of the standard library's Python files (or those of a folder).

  Held out are `short`, whole files of at most 4,000 characters, and `long`, pieces of files of more
  than 30,000; and what a folder's `held_out` has besides.

  Args:
    data_path: a folder with pool* (Python files) and held_out, or None.
    scale, plant, planting: see `of_folder`.
    pool_bytes: of the natural pool at scale 1.
  """
  if data_path:
    root = pathlib.Path(data_path)
    extra = sorted((root / HELD_OUT).glob('[!.]*'))
    sources = [str(p) for p in sorted(root.glob('pool*'))] or [str(_LIBRARY)]
  else:
    extra, sources = [], [str(_LIBRARY)]
  sizes = {
    'pool_bytes': round(pool_bytes * scale),
    'start_bytes': round(START_BYTES * scale),
    'held_out_bytes': round(HELD_OUT_BYTES * scale),
  }
  names = tuple(path.name.partition('.')[0] for path in extra)

  def write(directory: pathlib.Path):
    files = pruning_corpora.shuffled(_python_files(sources))
    held_out = {
      'short': pruning_corpora.up_to([f for f in files if len(f) <= 4000], sizes['held_out_bytes']),
      'long': pruning_corpora.up_to(
        [f[len(f) // 2 :] for f in files if len(f) > 30_000], sizes['held_out_bytes'], 6000
      ),
    }
    taken = {text[-200:] for texts in held_out.values() for text in texts}
    long_taken = {f for f in files if len(f) > 30_000 and f[len(f) // 2 :][:6000][-200:] in taken}
    left = [f for f in files if f[-200:] not in taken and f not in long_taken]
    for name, path in zip(names, extra, strict=True):
      texts = pruning_corpora.shuffled(pruning_corpora.texts_of([str(path)]))
      held_out[name] = pruning_corpora.up_to(texts, sizes['held_out_bytes'])
    natural = pruning_corpora.up_to(left, sizes['pool_bytes'])
    start = pruning_corpora.up_to(left[len(natural) :], sizes['start_bytes'])
    pools = {'natural': natural, 'planted': plant(natural), START: start}
    return pruning_corpora.write(directory, {POOLS: pools, HELD_OUT: held_out})

  return Corpora(
    write,
    {
      **sizes,
      'planting': dict(planting),
      'files': pruning_corpora.identity_of([*extra, *(sources if data_path else [])]),
      'library': '' if data_path else sysconfig.get_python_version(),
    },
    ('short', 'long', *names),
    {'bits_short': ('short', *names), 'bits_long': ('long',)},
  )


def _python_files(sources: Sequence[str]) -> Texts:
  found = []
  for source in map(pathlib.Path, sources):
    files = sorted(source.rglob('*.py')) if source.is_dir() else [source]
    for path in files:
      if any(part in _SKIPPED for part in path.relative_to(source).parts):
        continue
      try:
        text = path.read_text(encoding='utf-8')
      except UnicodeDecodeError:
        continue  # of another encoding: the corpus would call it unreadable
      if text.strip():
        found.append(text)
  if not found:
    raise ConfigError(f'{", ".join(sources)} hold no Python files')
  return found
