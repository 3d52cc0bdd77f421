"""The corpora of a pruning study: pools to choose from, and held-out texts, as JSON lines.

A pool is what an arm may train on; a planted pool has junk or copies put into it, so that a study
can show that it would see an effect of this size. All is a function of the files that the user
names and of the numbers here.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig

POOLS, HELD_OUT = 'pools', 'held_out'
Texts = list[str]


def texts_of(paths: Sequence[str], suffixes: Sequence[str] = (), field: str = 'text') -> Texts:
  """The readable texts that are not empty, of files and folders, in the corpus's order."""
  config = CorpusConfig(tuple(map(str, paths)), text_field=field, suffixes=tuple(suffixes))
  found = []
  for shard in corpus.shards(config):
    found += [e.text for e in corpus.examples(shard, config) if not e.error and e.text]
  return found


def user_texts(
  data_path: str | os.PathLike | None, what: str, skipped: Sequence[str] = ()
) -> dict[str, Texts]:
  """The texts of a folder by the names of what lies in it: DIR/pool and DIR/held_out/NAME*.

  Args:
    data_path: the folder, with `pool` (a folder or a file) and `held_out` (files and folders).
    what: said in the error: what such texts might be.
    skipped: names of held-out texts that are not wanted.

  Returns:
    `pool`, and the held-out texts by their names up to the first dot.

  Raises:
    ConfigError: a part is missing or holds no text.
  """
  root = pathlib.Path(data_path or '.')
  pools = sorted(root.glob('pool*')) if data_path else []
  held_out = sorted((root / HELD_OUT).glob('[!.]*')) if data_path else []
  if not pools or not held_out:
    raise ConfigError(
      f'--data-path is {str(data_path)!r}, expected a folder with pool* (texts to choose from) and '
      f'held_out/NAME* (texts of other kinds): .txt, .jsonl(.gz), .parquet; {what}'
    )
  found = {'pool': texts_of([str(p) for p in pools])}
  for path in held_out:
    name = path.name.partition('.')[0]
    if name not in skipped:
      found[name] = texts_of([str(path)])
  for name, texts in found.items():
    if not texts:
      raise ConfigError(f'{name!r} of --data-path {data_path} holds no text in a field "text"')
  return found


def shuffled(texts: Iterable[str], seed: int = 0) -> Texts:
  """In an order that hangs on the texts alone, repeated ones too."""
  key = lambda item: hashlib.blake2b(
    f'{seed}:{item[0]}:{item[1]}'.encode(errors='replace')
  ).digest()
  seen: dict[str, int] = {}
  numbered = []
  for text in texts:
    seen[text] = seen.get(text, -1) + 1
    numbered.append((seen[text], text))
  return [text for _, text in sorted(numbered, key=key)]


def up_to(texts: Sequence[str], num_bytes: int, longest: int | None = None) -> Texts:
  """The first texts that together have so many bytes; of each at most `longest` characters."""
  out, total = [], 0
  for text in texts:
    text = text[:longest]
    if total >= num_bytes:
      break
    out.append(text)
    total += len(text.encode(errors='surrogatepass'))
  return out


def with_near_copies(texts: Sequence[str], share: float, sources: int, seed: int = 0) -> Texts:
  """As many texts, `share` of them copies of the first `sources`, a word in twenty left out."""
  rng = np.random.default_rng(seed)
  num_copies = round(share * len(texts))
  out = list(texts[: len(texts) - num_copies])
  for i in range(num_copies):
    words = out[i % sources].split(' ')
    stays = rng.random(len(words)) >= 0.05
    out.append(' '.join(w for w, stay in zip(words, stays) if stay))
  return out


def with_junk(
  texts: Sequence[str], share: float, junk: Callable[[np.random.Generator, int], str], seed: int = 0
) -> Texts:
  """As many texts, `share` of them replaced by junk of the same number of bytes."""
  rng = np.random.default_rng(seed)
  num_junk = round(share * len(texts))
  stay = len(texts) - num_junk
  sizes = [len(text.encode(errors='surrogatepass')) for text in texts[stay:]]
  return [*texts[:stay], *(junk(rng, size) for size in sizes)]


def noise(rng: np.random.Generator, size: int) -> str:
  """Words of random letters: nothing to learn from but the letters themselves."""
  lengths = rng.integers(2, 10, size // 3)
  letters = ''.join(chr(c) for c in rng.integers(97, 123, int(lengths.sum())))
  ends = np.cumsum(lengths)
  return ' '.join(letters[end - n : end] for n, end in zip(lengths, ends))[:size]


def literal_data(rng: np.random.Generator, size: int) -> str:
  """A Python file of nothing but numbers: what the longest files of code corpora often are."""
  lines, total = ['TABLE = ['], 0
  while total < size:
    lines.append('  ' + ', '.join(f'0x{n:08x}' for n in rng.integers(0, 2**32, 6)) + ',')
    total += len(lines[-1]) + 1
  return '\n'.join([*lines, ']', ''])


def write(directory: pathlib.Path, parts: Mapping[str, Mapping[str, Sequence[str]]]) -> dict:
  """Writes {POOLS or HELD_OUT: {name: texts}}; how many texts and bytes each has.

  A pool's examples have ids that say their place, so that equal texts stay apart.
  """
  counts: dict[str, dict] = {}
  for part, corpora in parts.items():
    for name, texts in corpora.items():
      path = file_of(directory, part, name)
      path.parent.mkdir(parents=True, exist_ok=True)
      with open(path, 'w', encoding='utf-8') as f:
        for number, text in enumerate(texts):
          text = text.encode('utf-8', 'replace').decode()
          f.write(json.dumps({'id': f'{number:06}', 'text': text}, ensure_ascii=False) + '\n')
      size = sum(len(text.encode(errors='replace')) for text in texts)
      counts.setdefault(part, {})[name] = {'texts': len(texts), 'bytes': size}
  return counts


def file_of(directory: str | os.PathLike, part: str, name: str) -> pathlib.Path:
  """Where `write` puts a corpus."""
  return pathlib.Path(directory, part, f'{name}.jsonl')


def identity_of(paths: Iterable[str | os.PathLike]) -> list[list]:
  """Names and sizes of all files below, for a stage's settings."""
  found = []
  for path in map(pathlib.Path, paths):
    files = sorted(p for p in path.rglob('*') if p.is_file()) if path.is_dir() else [path]
    found += [[str(p.relative_to(path.parent)), p.stat().st_size] for p in files if p.exists()]
  return found
