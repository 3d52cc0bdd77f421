"""HTML that is known to be safe, and how numbers are written: shared by figures and pages.

Text becomes HTML in one place, `escaped`: whatever is not already `Html` is escaped there, so a
class name, a path or a config value can hold `<`, `&` or quotes and still arrive as written.
"""

from __future__ import annotations

import html
import math
import numbers
from typing import Any


class Html(str):
  """A string that is HTML already; only code that built it from escaped parts may say so."""

  __slots__ = ()


def escaped(value: Any) -> Html:
  """`value` as HTML: `Html` as it is, numbers by `number_text`, everything else escaped."""
  if isinstance(value, Html):
    return value
  if value is None:
    return Html('–')
  if isinstance(value, numbers.Real) and not isinstance(value, bool):
    return Html(number_text(value))
  return Html(html.escape(str(value), quote=True))


def element(tag: str, *children: Any, **attributes: Any) -> Html:
  """`<tag attributes>children</tag>`; attribute names like `class_`, `text_anchor` lose their `_`.

  Attributes that are None are left out; children are escaped unless they are `Html`.
  """
  names = {name: name.rstrip('_').replace('_', '-') for name in attributes}
  written = ''.join(
    f' {names[name]}="{html.escape(str(value), quote=True)}"'
    for name, value in attributes.items()
    if value is not None
  )
  if tag in ('img', 'meta', 'br', 'hr'):  # HTML gives these no end tag
    return Html(f'<{tag}{written}>')
  return Html(f'<{tag}{written}>{joined(*children)}</{tag}>')


def joined(*children: Any, between: str = '') -> Html:
  """The children one after the other, each escaped; `between` is HTML."""
  return Html(between.join(escaped(child) for child in children))


def number_text(value: float, digits: int = 4) -> str:
  """A number for people: whole numbers in full, others to `digits` significant digits.

  >>> number_text(16384), number_text(0.012345), number_text(1.5e-7), number_text(12345.678)
  ('16,384', '0.01235', '1.5e-7', '12,346')
  """
  if isinstance(value, numbers.Integral):
    return f'{int(value):,}'
  value = float(value)
  if not math.isfinite(value):
    return str(value)
  if value == 0:
    return '0'
  exponent = math.floor(math.log10(abs(value)))
  if exponent < -4 or exponent >= 9:
    mantissa, _, power = f'{value:.{digits - 1}e}'.partition('e')
    return f'{_trimmed(mantissa)}e{int(power)}'
  return _trimmed(f'{value:,.{max(digits - 1 - exponent, 0)}f}')


def tick_text(value: float) -> str:
  """A number for an axis: short, with k, M, G for thousands."""
  for size, letter in ((1e9, 'G'), (1e6, 'M'), (1e3, 'k')):
    if abs(value) >= size * (10 if letter == 'k' else 1):
      return f'{value / size:.4g}{letter}'
  if value and abs(value) < 1e-3:
    mantissa, _, power = f'{value:.3e}'.partition('e')
    return f'{_trimmed(mantissa)}e{int(power)}'
  return f'{value:.5g}'


def duration_text(seconds: float) -> str:
  """Seconds as `45 s`, `3 min 20 s` or `2 h 05 min`."""
  seconds = max(0, round(seconds))
  if seconds < 60:
    return f'{seconds} s'
  minutes, rest = divmod(seconds, 60)
  if minutes < 60:
    return f'{minutes} min {rest:02d} s'
  return f'{minutes // 60} h {minutes % 60:02d} min'


def _trimmed(text: str) -> str:
  return text.rstrip('0').rstrip('.') if '.' in text else text
