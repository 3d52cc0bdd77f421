"""One self-contained HTML page: text, tables, verdicts, figures, settings; it loads nothing.

A page is a list of blocks. A block is `Html`; plain strings become escaped paragraphs:

    page = Page('Tokenizers compared', 'A causal regularizer on digits')
    page.add_section('Losses', figure(line_chart(...), look_for='the lines part after step 100'))
    page.write('report.html')
"""

from __future__ import annotations

import json
import numbers
import os
import pathlib
import re
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

from jaxmm.report.markup import Html, element, escaped, joined

TONES = ('holds', 'fails', 'open')


class Page:
  """A page under construction; sections appear in the order they were added."""

  def __init__(self, title: str, subtitle: str = '', facts: Mapping[str, Any] | None = None):
    """`facts` are short labelled values under the title: date, device, commit."""
    self.title = title
    self.subtitle = subtitle
    self.facts = dict(facts or {})
    self.footer: Html | str = ''
    self._parts: list[tuple[str, str, Html]] = []

  def add(self, *blocks: Any) -> None:
    """Blocks without a heading, for what must be seen first (the verdict)."""
    self._parts.append(('', '', _blocks(blocks)))

  def add_section(self, heading: str, *blocks: Any, intro: str = '') -> None:
    """A section with a heading, a link to it at the top, and one sentence of introduction."""
    anchor = re.sub(r'[^a-z0-9]+', '-', heading.lower()).strip('-') or 'section'
    taken = {name for name, _, _ in self._parts}
    anchor = next(a for a in [anchor, *(f'{anchor}-{i}' for i in range(2, 999))] if a not in taken)
    body = joined(
      element('h2', heading),
      element('p', intro, class_='intro') if intro else '',
      _blocks(blocks),
    )
    self._parts.append((anchor, heading, element('section', body, id=anchor)))

  def html(self) -> str:
    """The whole document."""
    links = [element('a', heading, href=f'#{name}') for name, heading, _ in self._parts if name]
    facts = [element('li', element('b', name), value) for name, value in self.facts.items()]
    header = element(
      'header',
      element('h1', self.title),
      element('p', self.subtitle, class_='subtitle') if self.subtitle else '',
      element('ul', *facts, class_='facts') if facts else '',
      element('nav', *links) if len(links) > 1 else '',
    )
    head = element(
      'head',
      element('meta', charset='utf-8'),
      element('meta', name='viewport', content='width=device-width, initial-scale=1'),
      element('title', self.title),
      element('style', Html(_style())),
    )
    body = element(
      'body',
      header,
      element('main', *(part for _, _, part in self._parts)),
      element('footer', self.footer) if self.footer else '',
    )
    return f'<!doctype html>\n{element("html", head, body, lang="en")}\n'

  def write(self, path: str | os.PathLike) -> pathlib.Path:
    """Writes the page at once: a reader sees the old page or the new one, never half."""
    path = pathlib.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
    try:
      with os.fdopen(handle, 'w', encoding='utf-8', errors='backslashreplace') as stream:
        stream.write(self.html())
      os.chmod(name, 0o644)
      os.replace(name, path)
    except BaseException:
      pathlib.Path(name).unlink(missing_ok=True)
      raise
    return path


def _style() -> str:
  return (pathlib.Path(__file__).parent / 'style.css').read_text(encoding='utf-8')


def _blocks(blocks: Sequence[Any]) -> Html:
  return joined(*(block if isinstance(block, Html) else paragraph(block) for block in blocks))


def paragraph(text: Any) -> Html:
  """Text as a paragraph; an empty line starts another."""
  if isinstance(text, Html):
    return element('p', text)
  return joined(*(element('p', part) for part in re.split(r'\n\s*\n', str(text)) if part.strip()))


def subheading(text: str) -> Html:
  """A heading within a section."""
  return element('h3', text)


def figure(content: Html, caption: str = '', *, look_for: str = '') -> Html:
  """A chart or images with a caption; `look_for` tells the reader what the figure decides."""
  parts = [element('b', 'Look for: '), look_for, '. ' if look_for[-1:] not in '.?!' else ' ']
  said = joined(*(parts if look_for else ()), caption)
  return element('figure', content, element('figcaption', said) if said else '')


def columns(*blocks: Html) -> Html:
  """Blocks beside one another where the screen is wide enough, else below one another."""
  return element('div', *(element('div', block) for block in blocks), class_='columns')


def table(
  head: Sequence[str], rows: Sequence[Sequence[Any]], *, best: Mapping[int, str] | None = None
) -> Html:
  """A table; columns that hold only numbers are aligned right.

  Args:
    head: the names of the columns.
    rows: cells, escaped unless they are `Html`; numbers are written with four significant digits.
    best: column index -> 'low' or 'high'; that column's best number is set in bold.
  """
  for row in rows:
    if len(row) != len(head):
      raise ValueError(f'table row {list(row)!r} has {len(row)} cells, expected {len(head)}')
  kinds = [
    'number' if rows and all(r[i] is None or _is_number(r[i]) for r in rows) else None
    for i in range(len(head))
  ]
  marked = set()
  for column, side in (best or {}).items():
    if side not in ('low', 'high'):
      raise ValueError(f"best of column {column} is {side!r}, expected 'low' or 'high'")
    values = [(r[column], i) for i, r in enumerate(rows) if _is_number(r[column])]
    if values:
      top = (min if side == 'low' else max)(values)[0]
      marked |= {(i, column) for value, i in values if value == top}
  lines = [
    element(
      'tr',
      *(
        element('td', cell, class_=' '.join(
          k for k in (kinds[j], 'best' if (i, j) in marked else None) if k) or None)
        for j, cell in enumerate(row)
      ),
    )
    for i, row in enumerate(rows)
  ]  # fmt: skip
  top = element('tr', *(element('th', h, class_=k) for h, k in zip(head, kinds, strict=True)))
  body = element('table', element('thead', top), element('tbody', *lines))
  return element('div', body, class_='scroll')


def _is_number(value: Any) -> bool:
  return isinstance(value, numbers.Real) and not isinstance(value, bool)


def facts_table(values: Mapping[str, Any]) -> Html:
  """Names and values, one a line."""
  rows = [element('tr', element('td', k), element('td', v)) for k, v in values.items()]
  return element(
    'div', element('table', element('tbody', *rows), class_='facts-table'), class_='scroll'
  )


def verdict_box(outcome: str, tone: str, *blocks: Any) -> Html:
  """The outcome in large letters with what it rests on.

  Args:
    outcome: the word, for example 'not reproduced'.
    tone: 'holds' (green), 'fails' (red) or 'open' (amber).
    *blocks: sentences or `Html` under it.
  """
  _check_tone(tone)
  head = element('div', outcome, class_='outcome')
  return element('div', head, _blocks(blocks), class_=f'verdict {tone}')


def mark(text: str, tone: str) -> Html:
  """A word in the colour of its tone, for table cells; the word itself must carry the meaning."""
  _check_tone(tone)
  return element('span', text, class_=f'mark {tone}')


def _check_tone(tone: str) -> None:
  if tone not in TONES:
    raise ValueError(f'tone is {tone!r}, expected one of {", ".join(TONES)}')


def collapsible(title: str, *blocks: Any, is_open: bool = False) -> Html:
  """Blocks that are folded away under `title` until asked for."""
  return element(
    'details', element('summary', title), _blocks(blocks), open='open' if is_open else None
  )


def code(text: str) -> Html:
  """Preformatted text: a command, a traceback."""
  return element('pre', text)


def settings(values: Mapping[str, Any], title: str = 'Configuration') -> Html:
  """A nested mapping as indented JSON, folded away."""
  text = json.dumps(values, indent=2, ensure_ascii=False, default=str)
  return collapsible(title, element('pre', escaped(text)))
