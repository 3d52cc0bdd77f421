"""Ids that come twice, found before the costly part of a method begins."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from jaxmm.curation import runners
from jaxmm.curation.embeddings import check_ids
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig, Shard


def check(
  inputs: CorpusConfig,
  workdir: str | os.PathLike,
  processes: int = 1,
  echo: runners.Echo | None = print,
) -> None:
  """Reads the ids of a corpus; those that are file and row are different ones anyway.

  Args:
    inputs: the corpus.
    workdir, processes, echo: see `runners.map_shards`.

  Raises:
    ConfigError: an id comes twice.
  """
  if not inputs.id_field:
    return
  tables = runners.map_shards(
    ids_of_file, corpus.shards(inputs), workdir, name='ids',
    settings={'corpus': dataclasses.asdict(inputs)}, processes=processes, echo=echo,
  )  # fmt: skip
  check_ids(pa.concat_tables(tables)['id'].combine_chunks())


def ids_of_file(shard: Shard, settings: Mapping[str, Any], _) -> pa.Table:
  """The column `id` of one file."""
  inputs = corpus.of_json(settings['corpus'])
  names = [example.id for example in corpus.examples(shard, inputs)]
  return pa.table({'id': pa.array(names, pa.string())})
