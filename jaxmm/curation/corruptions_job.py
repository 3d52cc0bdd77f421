"""Corruptions of a whole corpus: files in, one table of damaged texts out, to be embedded.

    id       string   `ORIGINAL:KIND`, so that the file can be read as a corpus itself
    of       string   id of the original
    kind     string
    text     string   null where nothing was damaged
    places   int64    where this kind could be done
    changed  int64    where it was done
    reason   string   why nothing was damaged, '' if it was; 'unreadable' and 'empty' are two

Each example of the corpus has a row for each kind. A worker holds the texts of one file of the
corpus, as often as there are kinds, so files of a few hundred MB are as large as they should be.
"""

from __future__ import annotations

import collections
import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from jaxmm.config import ConfigError
from jaxmm.curation import corruptions, keep_list, runners
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig, Shard

SCHEMA = pa.schema(
  {
    'id': pa.string(),
    'of': pa.string(),
    'kind': pa.string(),
    'text': pa.large_string(),
    'places': pa.int64(),
    'changed': pa.int64(),
    'reason': pa.string(),
  }
)


@dataclasses.dataclass(frozen=True)
class CorruptionsConfig:
  """What damage, and how much.

  Attributes:
    kinds: of `corruptions.KINDS`.
    rate: in (0, 1], share of the places that are changed, never none.
    seed: any whole number.
  """

  kinds: tuple[str, ...] = corruptions.KINDS
  rate: float = 0.1
  seed: int = 0

  def __post_init__(self):
    unknown = [kind for kind in self.kinds if kind not in corruptions.KINDS]
    if unknown or not self.kinds or len(set(self.kinds)) < len(self.kinds):
      raise ConfigError(
        f'kinds is {self.kinds}, expected some of {", ".join(corruptions.KINDS)}, each once'
      )
    if not 0 < self.rate <= 1:
      raise ConfigError(f'rate is {self.rate}, expected in (0, 1]: the share of places to change')


def run(
  inputs: CorpusConfig,
  config: CorruptionsConfig,
  workdir: str | os.PathLike,
  *,
  runner: runners.Runner = runners.LOCAL,
  echo: runners.Echo | None = print,
) -> pa.Table:
  """Damages a corpus; columns of SCHEMA, in the order of the files, kinds in that of the config.

  Args:
    inputs: the corpus, of Python sources.
    config: what damage.
    workdir: where finished files are kept; the table is mapped from there, not loaded.
    runner: who reads and damages files.
    echo: takes progress lines.
  """
  tables = runners.map_shards(
    damaged,
    corpus.shards(inputs),
    workdir,
    name='damaged',
    settings={'corpus': dataclasses.asdict(inputs), 'corruptions': dataclasses.asdict(config)},
    runner=runner,
    echo=echo,
  )
  return pa.concat_tables(tables)


def damaged(shard: Shard, settings: Mapping[str, Any], _) -> pa.Table:
  """The rows of one file."""
  config = settings['corruptions']
  rows = []
  for example in corpus.examples(shard, corpus.of_json(settings['corpus'])):
    for kind in config['kinds']:
      rows.append({'id': f'{example.id}:{kind}', 'of': example.id, 'kind': kind})
      rows[-1] |= _outcome(example, kind, config)
  return pa.Table.from_pylist(rows, SCHEMA)


def _outcome(example: corpus.Example, kind: str, config: Mapping[str, Any]) -> dict[str, Any]:
  if example.error or not example.text:
    reason = keep_list.UNREADABLE if example.error else keep_list.EMPTY
    return {'text': None, 'places': 0, 'changed': 0, 'reason': reason}
  found = corruptions.corrupted(
    example.text, kind, example_id=example.id, seed=config['seed'], rate=config['rate']
  )
  return dataclasses.asdict(found) | {'text': None if found.reason else found.text}


def outcomes(table: pa.Table) -> dict[str, dict[str, int]]:
  """Kind -> reason ('' where the text is damaged) -> how many examples."""
  counted = collections.Counter(zip(table['kind'].to_pylist(), table['reason'].to_pylist()))
  out: dict[str, dict[str, int]] = {}
  for (kind, reason), number in sorted(counted.items()):
    out.setdefault(kind, {})[reason] = number
  return out


def write(table: pa.Table, path: str | os.PathLike) -> None:
  """Writes Parquet; the file appears whole or not at all."""
  path = pathlib.Path(path)
  path.parent.mkdir(parents=True, exist_ok=True)
  partial = path.with_name(path.name + '.partial')
  pq.write_table(table, partial, compression='zstd')
  os.replace(partial, path)
