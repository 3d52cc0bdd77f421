"""The page of a keep-list: what was dropped, why, and what it looks like.

Reads the Parquet file that curation wrote. Contents of examples stand in the corpus, so whoever
asks for the page hands in those of `shown(...)`. A list that joins several methods has a section
for each, as their scores and clusters cannot be compared. What is shown is bounded, however long
the list.
"""

from __future__ import annotations

import difflib
import functools
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
_CLUSTERS, _OF_CLUSTER, _PAIRS, _OF_REASON, _REASONS = 8, 3, 12, 4, 20
_WORDS, _CHARACTERS, _SIDE = 120, 2000, 128

Content = str | bytes  # a text, or an encoded picture


class Part:
  """What one method said of the examples; the whole list where nothing was joined.

  Args:
    table: the list.
    name: of the method there.
    prefix: of its columns.
  """

  def __init__(self, table, name: str, prefix: str = ''):
    self.name = name
    self._table = table
    self._names = {
      c.removeprefix(prefix): c for c in table.column_names if c.startswith(prefix) or not prefix
    }
    self._numbers: dict[str, np.ndarray | None] = {}
    self.reasons, self._code_N = _coded(table[self._names['reason']])

  @property
  def kept_N(self) -> np.ndarray:
    """Whether it keeps the example."""
    return self._of_reason('')

  @property
  def asked_N(self) -> np.ndarray:
    """Whether it was asked about the example."""
    return self._code_N >= 0

  def _of_reason(self, reason: str) -> np.ndarray:
    at = self.reasons.index(reason) if reason in self.reasons else -2
    return self._code_N == at

  def counts(self) -> dict[str, int]:
    """How many examples by reason, the most frequent first; '' are those that are kept."""
    number = np.bincount(self._code_N[self.asked_N], minlength=len(self.reasons)).tolist()
    return dict(sorted(zip(self.reasons, number), key=lambda item: (-item[1], item[0])))

  def rows(self, reason: str) -> np.ndarray:
    """Of the examples with a reason."""
    return np.flatnonzero(self._of_reason(reason))

  def _column(self, name: str) -> str | None:
    """The column of that name, else the last that ends in it."""
    ending = [c for c in self._names if c.endswith(f'.{name}')]
    found = name if name in self._names else ending[-1] if ending else None
    return None if found is None else self._names[found]

  def numbers(self, name: str) -> np.ndarray | None:
    """A column of numbers, nan where there is none; None if it has no such column."""
    if name not in self._numbers:
      self._numbers[name] = self._read_numbers(name)
    return self._numbers[name]

  def _read_numbers(self, name: str) -> np.ndarray | None:
    import pyarrow as pa

    column = self._column(name)
    if column is None or pa.types.is_string(self._table[column].type):
      return None
    values = self._table[column].cast(pa.float64()).to_numpy(zero_copy_only=False)
    return values if np.isfinite(values).any() else None

  def value(self, name: str, row: int) -> Any:
    """What stands in a column, None where nothing does."""
    column = self._column(name)
    return None if column is None else self._table[column][row].as_py()

  @functools.cached_property
  def clusters(self) -> list[tuple[Any, np.ndarray]]:
    """(name, rows from most to least prototypical) of the largest clusters."""
    cluster_N, distance_N = self.numbers('cluster'), self.numbers('distance')
    if cluster_N is None or distance_N is None:
      return []
    rows = np.flatnonzero(np.isfinite(cluster_N) & np.isfinite(distance_N))
    names, size = np.unique(cluster_N[rows], return_counts=True)
    largest = names[np.argsort(-size, kind='stable')[:_CLUSTERS]]
    of = lambda name: rows[cluster_N[rows] == name]
    return [(int(n), of(n)[np.argsort(distance_N[of(n)], kind='stable')]) for n in largest]

  @functools.cached_property
  def pairs(self) -> list[tuple[int, str, float]]:
    """(row, nearest, similarity) of dropped duplicates, spread over the similarities."""
    similarity_N = self.numbers('similarity')
    if similarity_N is None or self._column('nearest') is None:
      return []
    is_one = np.isin(self._code_N, [i for i, r in enumerate(self.reasons) if 'duplicate' in r])
    rows = np.flatnonzero(is_one & np.isfinite(similarity_N))
    rows = _spread(rows[np.argsort(-similarity_N[rows], kind='stable')], _PAIRS)
    found = [(int(r), self.value('nearest', r), float(similarity_N[r])) for r in rows.tolist()]
    return [pair for pair in found if pair[1] is not None]

  @property
  def kept_by_eps(self) -> tuple[np.ndarray, np.ndarray]:
    """(eps, share of the examples with at most that similarity to an earlier one), eps ascending.

    Of methods on vectors alone, which have a distance: where both of a pair have a similarity, as
    MinHash's survivors do, it does not say who is dropped.
    """
    similarity_N = self.numbers('similarity')
    if similarity_N is None or self.numbers('distance') is None:
      return np.zeros(0), np.zeros(0)
    value_S = np.sort(similarity_N[np.isfinite(similarity_N)])
    dropped_S = len(value_S) - np.searchsorted(value_S, value_S, side='right')
    return (1 - value_S)[::-1], (1 - dropped_S / self.asked_N.sum())[::-1]


def _coded(column) -> tuple[list[str], np.ndarray]:
  """The different strings of a column, and of every row which it is; -1 for none."""
  coded = column.combine_chunks().dictionary_encode()
  coded = coded.combine_chunks() if hasattr(coded, 'combine_chunks') else coded
  return coded.dictionary.to_pylist(), coded.indices.fill_null(-1).to_numpy()


def _spread(rows: np.ndarray, number: int) -> np.ndarray:
  """That many of the rows, evenly spread, the first and the last among them."""
  if not len(rows):
    return rows
  return rows[np.unique(np.linspace(0, len(rows) - 1, number).astype(int))]


class KeepListFile:
  """A keep-list as its file says it, and the rows that its page shows.

  Attributes:
    header: of the file.
    whole: the verdicts of the whole list.
    parts: those of the methods that were joined in it; the whole alone where none were.

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
    self.whole = Part(table, self.header['method'])
    names = self.header.get('parts', [])
    is_joined = len(names) > 1
    self.parts = [Part(table, n, f'{n}.') for n in names] if is_joined else [self.whole]

  def ids(self, rows: Sequence[int]) -> list[str]:
    return [self.table['id'][int(row)].as_py() for row in rows]

  def of_reasons(self) -> dict[str, np.ndarray]:
    """A few rows of each reason but duplicates, evenly spread, and of what is kept ('')."""
    names = [name for name in self.whole.counts() if name and 'duplicate' not in name]
    rows = {name: _spread(self.whole.rows(name), _OF_REASON) for name in ['', *names[:_REASONS]]}
    return {name: of for name, of in rows.items() if len(of)}

  def shown(self) -> set[str]:
    """Ids of the examples whose contents the page shows."""
    rows = [r for of in self.of_reasons().values() for r in of]
    near = set()
    for part in self.parts:
      rows += [r for _, of in part.clusters for r in _ends(of)]
      rows += [r for r, _, _ in part.pairs]
      near |= {name for _, name, _ in part.pairs}
    return set(self.ids(rows)) | near


def keep_list_page(of: KeepListFile, contents: Mapping[str, Content]) -> page.Page:
  """The page, not yet written; examples without content are named by their ids."""
  header = of.header
  kept = header['kept'] / max(header['examples'], 1)
  out = page.Page(
    f'Keep-list: {header["method"]}',
    f'{header["kept"]:,} of {header["examples"]:,} examples are kept ({kept:.1%})',
    {'fingerprint': header['fingerprint']} | dict(header['versions']),
  )
  out.add_section('Kept and dropped', _reasons(of), *_table_of_parts(of))
  for part in of.parts:
    named = (lambda title: title) if len(of.parts) == 1 else f'{part.name}: {{}}'.format
    scores = _scores(part)
    if scores:
      out.add_section(named('Scores'), page.columns(*scores))
    _add_clusters(out, named('Clusters'), of, part, contents)
    _add_pairs(out, named('Duplicates side by side'), of, part, contents)
  _add_examples(out, of, contents)
  out.add_section('How it was made', page.settings(header['parameters'], 'Parameters'))
  return out


def _reasons(of: KeepListFile) -> Html:
  counts = of.whole.counts()
  bars = [Bar(name or 'kept', n) for name, n in counts.items()][:_REASONS]
  return page.figure(
    bar_chart(bars, x_label='examples'),
    'Every example of the corpus once, by the reason for which it is dropped.',
  )


def _table_of_parts(of: KeepListFile) -> list[Html]:
  if len(of.parts) == 1:
    return []
  rows = [[p.name, int(p.asked_N.sum()), int(p.kept_N.sum())] for p in of.parts]
  return [page.table(['method', 'asked about', 'keeps of these'], rows)]


def _scores(part: Part) -> list[Html]:
  out, score_N = [], part.numbers('score')
  is_there = np.isfinite(score_N) if score_N is not None else np.zeros(1, bool)
  if is_there.sum() > 1 and np.ptp(score_N[is_there]) > 0:
    edges = np.linspace(score_N[is_there].min(), score_N[is_there].max(), 41)
    middle = ((edges[1:] + edges[:-1]) / 2).tolist()
    kept_N = part.kept_N
    series = [
      Series(name, middle, np.histogram(score_N[is_there & chosen], edges)[0].tolist(), color=c)
      for name, chosen, c in (('kept', kept_N, 2), ('dropped', ~kept_N, 1))
    ]
    out.append(page.figure(line_chart(series, x_label='score', y_label='examples'), 'Scores.'))
  eps, share = part.kept_by_eps
  if len(eps):
    places = np.unique(np.linspace(0, len(eps) - 1, 200).astype(int))
    line = Series('', eps[places].tolist(), share[places].tolist())
    out.append(
      page.figure(
        line_chart([line], x_label='eps', y_label='share kept'),
        'What other values of eps would keep: all but the examples that are more similar than '
        '1 - eps to an earlier one.',
        look_for='where the curve turns from copies to mere likeness',
      )
    )
  return out


def _add_clusters(out: page.Page, title: str, of: KeepListFile, part: Part, contents) -> None:
  if not part.clusters:
    return
  kept_N = part.kept_N
  rows = [[name, len(of_it), int(kept_N[of_it].sum())] for name, of_it in part.clusters]
  blocks = [page.table(['cluster', 'examples', 'kept'], rows)]
  for name, of_it in part.clusters:
    near, far = of_it[:_OF_CLUSTER], of_it[::-1][:_OF_CLUSTER]
    shown = [
      element('div', page.subheading(end), *(_example(of, [part], r, contents) for r in rows))
      for end, rows in (('most prototypical', near), ('least prototypical', far))
    ]
    of_one = f'cluster {name}: {len(of_it):,} examples, {int(kept_N[of_it].sum()):,} kept'
    blocks.append(page.collapsible(of_one, page.columns(*shown)))
  out.add_section(title, *blocks, intro='The largest, and who stands in their middle.')


def _ends(rows: np.ndarray) -> list[int]:
  return [*rows[:_OF_CLUSTER], *rows[::-1][:_OF_CLUSTER]]


def _add_pairs(out: page.Page, title: str, of: KeepListFile, part: Part, contents) -> None:
  if not part.pairs:
    return
  blocks = []
  for row, near, similarity in part.pairs:
    dropped = of.ids([row])[0]
    sides = _beside(contents.get(dropped), contents.get(near))
    heads = (f'dropped: {dropped}', f'nearest: {near}')
    parts = [element('div', element('b', head), side) for head, side in zip(heads, sides)]
    of_one = f'similarity {number_text(similarity)}: {dropped}'
    blocks.append(page.collapsible(of_one, page.columns(*parts), is_open=len(blocks) < 3))
  intro = 'From the most similar to the least that was dropped; what differs is marked.'
  out.add_section(title, *blocks, intro=intro)


def _beside(one: Content | None, other: Content | None) -> tuple[Html, Html]:
  """Both contents; of texts the words that the other has not are marked."""
  if not (isinstance(one, str) and isinstance(other, str)):
    return _content(one), _content(other)
  a, b = (_words(text) for text in (one, other))
  left, right = [], []
  bare = ([word.strip() for word in words] for words in (a, b))
  for kind, a0, a1, b0, b1 in difflib.SequenceMatcher(None, *bare, autojunk=False).get_opcodes():
    for side, words in ((left, a[a0:a1]), (right, b[b0:b1])):
      text = ''.join(words)
      said = text.lstrip()
      side += [text[: len(text) - len(said)], said if kind == 'equal' else _marked(said)]
  return _text(joined(*left), one), _text(joined(*right), other)


def _marked(text: str) -> str | Html:
  return element('mark', text) if text else ''


def _words(text: str) -> list[str]:
  """The first words, each with the blanks before it; of a text of lines as they stand there."""
  text = text[:_CHARACTERS]
  if '\n' not in text.strip():
    text = ' '.join(text.split())
  return re.findall(r'\s*\S+', text.strip('\n'))[:_WORDS]


def _text(shown: str | Html, whole: str) -> Html:
  """Part of a text; its line breaks and indentation stay where it has more lines than one."""
  return element('p', shown, class_='lines' if '\n' in whole.strip() else None)


def _add_examples(out: page.Page, of: KeepListFile, contents) -> None:
  blocks, counts = [], of.whole.counts()
  for reason, rows in of.of_reasons().items():
    shown = [_example(of, of.parts, row, contents) for row in rows]
    title = f'{reason or "kept"}: {counts[reason]:,} examples'
    blocks.append(page.collapsible(title, page.columns(*shown)))
  out.add_section('Examples', *blocks, intro='A few of each kind, evenly spread by id.')


def _example(of: KeepListFile, parts: Sequence[Part], row: int, contents) -> Html:
  row = int(row)
  name = of.ids([row])[0]
  facts = ''.join(f' ({said})' for part in parts if (said := _said(part, row, len(parts) > 1)))
  return element('div', element('b', name), facts, _content(contents.get(name)))


def _said(part: Part, row: int, is_named: bool) -> str:
  """What a method says of an example, in a few words."""
  said = [reason] if (reason := part.value('reason', row)) else []
  for column in ('distance', 'similarity', 'score'):
    values = part.numbers(column)
    if values is not None and np.isfinite(values[row]):
      said.append(f'{column} {number_text(float(values[row]))}')
  said += [error] if (error := part.value('error', row)) else []
  return f'{part.name}: {", ".join(said)}' if said and is_named else ', '.join(said)


def _content(content: Content | None) -> Html:
  if content is None:
    return element('p', '(not shown)', class_='intro')
  if isinstance(content, bytes):
    return _thumbnail(content)
  shown = ''.join(_words(content))
  is_cut = (
    len(shown.split()) < len(content[: _CHARACTERS + 1].split()) or len(content) > _CHARACTERS
  )
  return _text(shown + ' …' * is_cut, content)


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
