"""The page of a keep-list: what was dropped, why, and what it looks like.

Reads the Parquet file that curation wrote. Contents of examples stand in the corpus, so whoever
asks for the page hands in those of `shown(...)`.
"""

from __future__ import annotations

import difflib
import io
import json
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxmm.report import images, page
from jaxmm.report.figures import Bar, Series, bar_chart, line_chart
from jaxmm.report.markup import Html, element, joined, number_text

# How much is shown.
_CLUSTERS, _OF_CLUSTER, _PAIRS, _OF_REASON = 8, 3, 12, 4
_WORDS, _SIDE = 120, 128

Content = str | bytes  # a text, or an encoded picture


class KeepListFile:
  """A keep-list as its file says it, and the rows that its page shows.

  Raises:
    ValueError: the file is no keep-list.
  """

  def __init__(self, path: str | os.PathLike):
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = pathlib.Path(path)
    files = sorted(path.glob('part-*.parquet')) if path.is_dir() else [path]
    table = pa.concat_tables([pq.read_table(file) for file in files])
    header = (table.schema.metadata or {}).get(b'jaxmm')
    if header is None:
      raise ValueError(f'{path} is no keep-list')
    self.header: dict[str, Any] = json.loads(header)
    self.table = table
    self.kept_N = table['keep'].to_numpy()
    self.reason_N = np.array(table['reason'].to_pylist(), object)

  def column(self, name: str) -> np.ndarray | None:
    """Numbers of a column of the method, nan where there is none; None if it has no such column."""
    import pyarrow as pa

    found = [c for c in self.table.column_names if c == name or c.endswith(f'.{name}')]
    if not found:
      return None
    values = self.table[found[-1]]
    if pa.types.is_string(values.type):
      return np.array(values.to_pylist(), object)
    return values.cast(pa.float64()).to_numpy(zero_copy_only=False)

  def ids(self, rows: Sequence[int]) -> list[str]:
    return [self.table['id'][int(row)].as_py() for row in rows]

  def clusters(self) -> list[tuple[Any, np.ndarray]]:
    """(name, rows from most to least prototypical) of the largest clusters."""
    cluster_N, distance_N = self.column('cluster'), self.column('distance')
    if cluster_N is None or distance_N is None or cluster_N.dtype.kind != 'f':
      return []
    rows = np.flatnonzero(np.isfinite(cluster_N) & np.isfinite(distance_N))
    names, size = np.unique(cluster_N[rows], return_counts=True)
    largest = names[np.argsort(-size, kind='stable')[:_CLUSTERS]]
    of = lambda name: rows[cluster_N[rows] == name]
    return [(int(n), of(n)[np.argsort(distance_N[of(n)], kind='stable')]) for n in largest]

  def pairs(self) -> list[tuple[int, str, float]]:
    """(row, nearest, similarity) of dropped duplicates, spread over the similarities."""
    similarity_N = self.column('similarity')
    near = [c for c in self.table.column_names if c.split('.')[-1] == 'nearest']
    if similarity_N is None or not near:
      return []
    is_one = np.array(['duplicate' in reason for reason in self.reason_N], bool)
    rows = np.flatnonzero(is_one & np.isfinite(similarity_N))
    rows = rows[np.argsort(-similarity_N[rows], kind='stable')]
    rows = rows[np.unique(np.linspace(0, len(rows) - 1, _PAIRS).astype(int))] if len(rows) else rows
    nearest = self.table[near[-1]]
    found = [(int(r), nearest[int(r)].as_py(), float(similarity_N[r])) for r in rows]
    return [pair for pair in found if pair[1] is not None]

  def of_reasons(self) -> dict[str, np.ndarray]:
    """A few rows of each reason but duplicates, evenly spread, and of what is kept ('kept')."""
    out = {}
    for reason in dict.fromkeys(['', *sorted(set(self.reason_N))]):
      rows = np.flatnonzero(self.reason_N == reason)
      if 'duplicate' not in reason and len(rows):
        out[reason or 'kept'] = rows[
          np.unique(np.linspace(0, len(rows) - 1, _OF_REASON).astype(int))
        ]
    return out

  def shown(self) -> set[str]:
    """Ids of the examples whose contents the page shows."""
    rows = [r for _, of in self.clusters() for r in _ends(of)]
    rows += [r for of in self.of_reasons().values() for r in of]
    rows += [r for r, _, _ in self.pairs()]
    return set(self.ids(rows)) | {near for _, near, _ in self.pairs()}


def keep_list_page(of: KeepListFile, contents: Mapping[str, Content]) -> page.Page:
  """The page, not yet written; examples without content are named by their ids."""
  header = of.header
  kept = header['kept'] / max(header['examples'], 1)
  out = page.Page(
    f'Keep-list: {header["method"]}',
    f'{header["kept"]:,} of {header["examples"]:,} examples are kept ({kept:.1%})',
    {'fingerprint': header['fingerprint']} | dict(header['versions']),
  )
  out.add_section('Kept and dropped', _reasons(of), *_scores(of))
  for add in (_add_clusters, _add_pairs, _add_examples):
    add(out, of, contents)
  out.add_section('How it was made', page.settings(header['parameters'], 'Parameters'))
  return out


def _reasons(of: KeepListFile) -> Html:
  names, counts = np.unique(of.reason_N.astype(str), return_counts=True)
  rows = sorted(zip(counts.tolist(), names.tolist()), reverse=True)
  return page.figure(
    bar_chart([Bar(name or 'kept', n) for n, name in rows], x_label='examples'),
    'Every example of the corpus once, by the reason for which it is dropped.',
  )


def _scores(of: KeepListFile) -> list[Html]:
  out, score_N = [], of.column('score')
  is_there = np.isfinite(score_N)
  if is_there.sum() > 1 and np.ptp(score_N[is_there]) > 0:
    edges = np.linspace(score_N[is_there].min(), score_N[is_there].max(), 41)
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    series = [
      Series(name, middle, np.histogram(score_N[is_there & chosen], edges)[0].tolist(), color=c)
      for name, chosen, c in (('kept', of.kept_N, 2), ('dropped', ~of.kept_N, 1))
    ]
    out.append(page.figure(line_chart(series, x_label='score', y_label='examples'), 'Scores.'))
  similarity_N = of.column('similarity')
  if similarity_N is not None and np.isfinite(similarity_N).any():
    eps = 1 - np.sort(similarity_N[np.isfinite(similarity_N)])[::-1]
    places = np.unique(np.linspace(0, len(eps) - 1, 200).astype(int))
    share = 1 - (np.arange(len(eps)) + 1) / len(similarity_N)
    line = Series('', eps[places].tolist(), share[places].tolist())
    out.append(
      page.figure(
        line_chart([line], x_label='eps = 1 - similarity', y_label='share kept'),
        'What dropping everything as similar as that would keep, all else being kept.',
        look_for='where the curve turns from copies to mere likeness',
      )
    )
  return [page.columns(*out)] if out else []


def _add_clusters(out: page.Page, of: KeepListFile, contents) -> None:
  found = of.clusters()
  if not found:
    return
  rows = [[name, len(of_it), int(of.kept_N[of_it].sum())] for name, of_it in found]
  blocks = [page.table(['cluster', 'examples', 'kept'], rows)]
  for name, of_it in found:
    near, far = of_it[:_OF_CLUSTER], of_it[::-1][:_OF_CLUSTER]
    shown = [
      element('div', page.subheading(title), *(_example(of, r, contents) for r in part))
      for title, part in (('most prototypical', near), ('least prototypical', far))
    ]
    title = f'cluster {name}: {len(of_it):,} examples, {int(of.kept_N[of_it].sum()):,} kept'
    blocks.append(page.collapsible(title, page.columns(*shown)))
  out.add_section('Clusters', *blocks, intro='The largest, and who stands in their middle.')


def _ends(rows: np.ndarray) -> list[int]:
  return [*rows[:_OF_CLUSTER], *rows[::-1][:_OF_CLUSTER]]


def _add_pairs(out: page.Page, of: KeepListFile, contents) -> None:
  found = of.pairs()
  if not found:
    return
  blocks = []
  for row, near, similarity in found:
    dropped = of.ids([row])[0]
    sides = _beside(contents.get(dropped), contents.get(near))
    heads = (f'dropped: {dropped}', f'nearest: {near}')
    parts = [element('div', element('b', head), side) for head, side in zip(heads, sides)]
    title = f'similarity {number_text(similarity)}: {dropped}'
    blocks.append(page.collapsible(title, page.columns(*parts), is_open=len(blocks) < 3))
  intro = 'From the most similar to the least that was dropped; what differs is marked.'
  out.add_section('Duplicates side by side', *blocks, intro=intro)


def _beside(one: Content | None, other: Content | None) -> tuple[Html, Html]:
  """Both contents; of texts the words that the other has not are marked."""
  if not (isinstance(one, str) and isinstance(other, str)):
    return _content(one), _content(other)
  a, b = (re.findall(r'\S+|\n', text)[:_WORDS] for text in (one, other))
  left, right = [], []
  for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, a, b, autojunk=False).get_opcodes():
    for side, words in ((left, a[a0:a1]), (right, b[b0:b1])):
      text = ' '.join(words)
      if text:
        side.append(text if kind == 'equal' else element('mark', text))
  return tuple(element('p', joined(*side, between=' ')) for side in (left, right))


def _add_examples(out: page.Page, of: KeepListFile, contents) -> None:
  blocks = []
  for reason, rows in of.of_reasons().items():
    number = int((of.reason_N == ('' if reason == 'kept' else reason)).sum())
    shown = [_example(of, row, contents) for row in rows]
    blocks.append(page.collapsible(f'{reason}: {number:,} examples', page.columns(*shown)))
  out.add_section('Examples', *blocks, intro='A few of each kind, evenly spread by id.')


def _example(of: KeepListFile, row: int, contents) -> Html:
  name = of.ids([row])[0]
  said = [] if of.kept_N[row] else [of.reason_N[row]]
  for column in ('distance', 'similarity', 'score'):
    value = of.column(column)
    if value is not None and np.isfinite(value[row]):
      said.append(f'{column} {number_text(float(value[row]))}')
  error = of.column('error')
  if error is not None and error[row]:
    said.append(error[row])
  facts = f' ({", ".join(said)})' if said else ''
  return element('div', element('b', name), facts, _content(contents.get(name)))


def _content(content: Content | None) -> Html:
  if content is None:
    return element('p', '(not shown)', class_='intro')
  if isinstance(content, bytes):
    return _thumbnail(content)
  words = re.findall(r'\S+', content)
  return element('p', ' '.join(words[:_WORDS]) + (' …' if len(words) > _WORDS else ''))


def _thumbnail(data: bytes) -> Html:
  try:
    with Image.open(io.BytesIO(data)) as picture:
      picture.thumbnail((_SIDE, _SIDE))
      small = np.asarray(picture.convert('RGB'))
  except (OSError, ValueError, Image.DecompressionBombError) as error:
    return element('p', f'not a picture: {error}')
  # Small pictures are enlarged, or nobody sees what differs.
  width = round(small.shape[1] * _SIDE / max(small.shape[:2]))
  style = f'width:{width}px;display:block;image-rendering:pixelated'
  return element('img', src=images.png_data(small), alt='thumbnail', style=style)
