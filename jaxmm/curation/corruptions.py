"""Damage done on purpose to Python code (SCIP, Yang et al. 2023, arXiv:2312.02418, section 3).

Two kinds break the syntax and two only the meaning:

    delete_brackets   syntax   a closing ), ] or } goes
    bad_names         syntax   a variable is renamed to what is no name: `x` to `1_x`
    flip_conditions   content  == and !=, < and >=, > and <=, is and is not, in and not in, and and
                               or are exchanged
    shift_indices     content  an index i becomes i + 1

Only code is changed: strings (f-strings as a whole, on every version of Python), comments, line
ends and layout stay as they are. A syntax error never parses afterwards and a change of content
always does; it is checked each time.

Which places are changed follows from the example's id, the seed and the kind alone: each place has
a key, and those with the least keys are changed, so what a low rate changes a higher one changes
too. The paper's rate is not known; here it is a setting, and where there is a place at all at least
one is changed.

What is Python code is for the interpreter that runs this to say: code of another version of the
language may not parse, which is a reason, no error.
"""

from __future__ import annotations

import ast
import dataclasses
import functools
import hashlib
import io
import math
import re
import tokenize
import warnings
from collections.abc import Iterator
from fractions import Fraction

from jaxmm.config import ConfigError

SYNTAX = ('delete_brackets', 'bad_names')
CONTENT = ('flip_conditions', 'shift_indices')
KINDS = (*SYNTAX, *CONTENT)
# Why a text is returned as it was.
NOT_TOKENIZED, NOT_PARSED, NO_PLACE = 'not_tokenized', 'not_parsed', 'no_place'
# The damage would have parsed, or the change of content not; nothing is known to do that.
UNSOUND = 'unsound'
# What Python raises on what is no code; the last two where it is nested too deeply.
_REFUSALS = (SyntaxError, ValueError, tokenize.TokenError, RecursionError, MemoryError)
_LINE = re.compile(r'[^\r\n]*(?:\r\n|\r|\n)|[^\r\n]+')
_FLIPS = {
  '==': '!=', '!=': '==', '<': '>=', '>=': '<', '>': '<=', '<=': '>', 'and': 'or', 'or': 'and',
}  # fmt: skip
# Operators that bind at least as tightly as the + that is appended.
_ARITHMETIC = (ast.Add, ast.Sub, ast.Mult, ast.FloorDiv, ast.Mod, ast.Pow)
_LAYOUT = ('COMMENT', 'NL', 'NEWLINE', 'INDENT', 'DEDENT', 'ENDMARKER')
_F_STRINGS = tuple(getattr(ast, n) for n in ('JoinedStr', 'TemplateStr') if hasattr(ast, n))
_ANNOTATIONS = ('annotation', 'returns', 'type_params', 'type_comment')


@dataclasses.dataclass(frozen=True, order=True)
class Edit:
  """Characters `column` to `end` of a line (from 0) become `new`."""

  line: int
  column: int
  end: int
  new: str


# What is changed together or not at all: one operator, or all occurrences of a variable.
Place = tuple[Edit, ...]


@dataclasses.dataclass(frozen=True)
class Corruption:
  """A text and what was done to it.

  Attributes:
    text: the damaged text; as it was where there is a reason.
    places: where this kind of damage could be done.
    changed: at how many of them it was done.
    reason: '' if the text is damaged, else NOT_TOKENIZED, NOT_PARSED, NO_PLACE or UNSOUND.
  """

  text: str
  places: int
  changed: int
  reason: str


def corrupted(
  text: str, kind: str, *, example_id: str, seed: int = 0, rate: float = 0.1
) -> Corruption:
  """The text with one kind of damage.

  Args:
    text: Python source.
    kind: one of KINDS.
    example_id: of the document; decides with `seed` and `kind` where it is damaged.
    seed: any whole number.
    rate: in (0, 1], share of the places that are changed, rounded up: never none.

  Raises:
    ConfigError: no such kind, or a rate out of range.
  """
  if not 0 < rate <= 1:
    raise ConfigError(f'rate is {rate}, expected in (0, 1]: the share of places to change')
  found, reason = places(text, kind)
  if not found:
    return Corruption(text, 0, 0, reason or NO_PLACE)
  number = math.ceil(Fraction(str(rate)) * len(found))
  key = lambda n: hashlib.blake2b(
    f'{seed}\0{kind}\0{n}\0{example_id}'.encode('utf-8', 'surrogatepass'), digest_size=16
  ).digest()
  chosen = sorted(range(len(found)), key=key)[:number]
  damaged = _edited(text, [edit for n in chosen for edit in found[n]])
  if parses(damaged) != (kind in CONTENT):
    return Corruption(text, len(found), 0, UNSOUND)
  return Corruption(damaged, len(found), number, '')


def parses(text: str) -> bool:
  """Whether Python takes the text for code."""
  return _tree(text) is not None


def places(text: str, kind: str) -> tuple[list[Place], str]:
  """Where a kind of damage can be done, in the order of the text, and a reason if it is no code.

  Lines are those of the text, whichever way they end; columns count characters.
  """
  if kind not in KINDS:
    raise ConfigError(f'kind is {kind!r}, expected one of {", ".join(KINDS)}')
  code = _code(text)
  if code.tree is None:
    is_read = code.tokens and all(t.type != tokenize.ERRORTOKEN for t in code.tokens)
    return [], NOT_PARSED if is_read else NOT_TOKENIZED
  if kind == 'bad_names':
    return list(_variables(code.tree, code.lines)), ''
  if kind == 'shift_indices':
    return list(_indices(code.tree, code.lines)), ''
  if kind == 'flip_conditions':
    return list(_conditions(code.tokens, code.lines)), ''
  return [(_edit(t, ''),) for t in code.tokens if t.string in (')', ']', '}')], ''


@dataclasses.dataclass(frozen=True)
class _Code:
  """A text as Python reads it; no tokens where it cannot."""

  lines: list[str]
  tokens: list[tokenize.TokenInfo]
  tree: ast.Module | None


@functools.lru_cache(maxsize=1)
def _code(text: str) -> _Code:
  """Read once for all kinds of damage."""
  source = _normal(text)
  try:
    tokens = list(_code_tokens(source))
  except _REFUSALS:
    tokens = []
  return _Code(source.split('\n'), tokens, _tree(text))


def _normal(text: str) -> str:
  """As Python reads it: without a byte order mark, lines ended by \\n."""
  return text.removeprefix('\ufeff').replace('\r\n', '\n').replace('\r', '\n')


def _tree(text: str) -> ast.Module | None:
  try:
    with warnings.catch_warnings():
      warnings.simplefilter('ignore')  # of escapes in strings and the like
      return ast.parse(_normal(text))
  except _REFUSALS:
    return None


def _edited(text: str, edits: list[Edit]) -> str:
  mark = '\ufeff' if text.startswith('\ufeff') else ''
  lines = _LINE.findall(text.removeprefix('\ufeff'))
  for edit in sorted(edits, reverse=True):
    line = lines[edit.line]
    lines[edit.line] = line[: edit.column] + edit.new + line[edit.end :]
  return mark + ''.join(lines)


def _code_tokens(source: str) -> Iterator[tokenize.TokenInfo]:
  """Of an f-string only the beginning; before Python 3.12 it is one token. No layout."""
  depth = 0
  for token in tokenize.generate_tokens(io.StringIO(source).readline):
    name = tokenize.tok_name[token.type]
    if not depth and name not in _LAYOUT:
      yield token
    depth += name in ('FSTRING_START', 'TSTRING_START')
    depth -= name in ('FSTRING_END', 'TSTRING_END')


def _edit(token: tokenize.TokenInfo, new: str) -> Edit:
  return Edit(token.start[0] - 1, token.start[1], token.end[1], new)


def _conditions(tokens: list[tokenize.TokenInfo], lines: list[str]) -> Iterator[Place]:
  depth, loops, before = 0, [], ''
  for token, following in zip(tokens, [*tokens[1:], None]):
    word, after = token.string, following.string if following else ''
    depth += (word in ('(', '[', '{')) - (word in (')', ']', '}'))
    if word in _FLIPS:
      yield (_reworded(token, _FLIPS[word], lines),)
    elif word == 'for':
      loops.append(depth)
    elif word == 'is':
      removed = after == 'not'
      yield (_removed(following, lines) if removed else _edit(token, 'is not'),)
    elif word == 'in' and before != 'not':
      # The first `in` at the depth of a `for` belongs to it: a target has none outside brackets.
      if loops and loops[-1] == depth:
        loops.pop()
      else:
        yield (_reworded(token, 'not in', lines),)
    elif word == 'not' and after == 'in':
      yield (_removed(token, lines),)
    before = word


def _reworded(token: tokenize.TokenInfo, new: str, lines: list[str]) -> Edit:
  line, column = token.start
  # A word must not grow together with a number before it: `0and x` is code, `0or x` is not.
  grows = new[0].isalpha() and column and lines[line - 1][column - 1].isalnum()
  return _edit(token, ' ' + new if grows else new)


def _removed(token: tokenize.TokenInfo, lines: list[str]) -> Edit:
  """The word goes, with the blanks after it."""
  line, end = token.end
  rest = lines[line - 1][end:]
  return Edit(line - 1, token.start[1], end + len(rest) - len(rest.lstrip(' \t')), '')


def _column(lines: list[str], line: int, byte: int) -> int:
  """In characters, of a place that a syntax tree names in bytes."""
  text = lines[line - 1]
  return byte if text.isascii() else len(text.encode()[:byte].decode())


def _nodes(tree: ast.AST, without: tuple[str, ...] = ()) -> Iterator[ast.AST]:
  """All nodes outside of f-strings (which have no true positions before Python 3.12)."""
  waiting = [tree]
  while waiting:
    node = waiting.pop()
    yield node
    for field, value in ast.iter_fields(node):
      if field not in without:
        inner = value if isinstance(value, list) else [value]
        waiting += [n for n in inner if isinstance(n, ast.AST) and not isinstance(n, _F_STRINGS)]


def _variables(tree: ast.Module, lines: list[str]) -> Iterator[Place]:
  """A place for every name that is assigned somewhere or is a parameter: all its occurrences.

  A name is taken for the same variable in the whole file. Digits and an underscore before it are
  never a number, whatever the name.
  """
  edits: dict[str, list[Edit]] = {}
  bound = set()
  for node in _nodes(tree):
    if isinstance(node, (ast.Name, ast.arg)):
      name = node.id if isinstance(node, ast.Name) else node.arg
      column = _column(lines, node.lineno, node.col_offset)
      edits.setdefault(name, []).append(Edit(node.lineno - 1, column, column, '1_'))
      if isinstance(node, ast.arg) or isinstance(node.ctx, ast.Store):
        bound.add(name)
  found = [tuple(sorted(edits[name])) for name in bound]
  yield from sorted(found, key=lambda place: place[0])


def _indices(tree: ast.Module, lines: list[str]) -> Iterator[Place]:
  """A place for every index and bound of a slice that is a name, a whole number, or arithmetic.

  Strings and other keys are none, nor is what stands in an annotation.
  """
  found = []
  for node in _nodes(tree, without=_ANNOTATIONS):
    if isinstance(node, ast.Subscript):
      for index in _parts(node.slice):
        if _is_index(index):
          column = _column(lines, index.end_lineno, index.end_col_offset)
          found.append(Edit(index.end_lineno - 1, column, column, ' + 1'))
  yield from ((edit,) for edit in sorted(found))


def _parts(index: ast.expr) -> Iterator[ast.expr]:
  if isinstance(index, ast.Tuple):
    for element in index.elts:
      yield from _parts(element)
  elif isinstance(index, ast.Slice):
    yield from (bound for bound in (index.lower, index.upper) if bound)
  else:
    yield index


def _is_index(node: ast.expr) -> bool:
  """A name, a whole number, or arithmetic of what may be numbers."""
  if isinstance(node, (ast.BinOp, ast.UnaryOp)):
    return all(_is_term(term) for term in _terms(node))
  return isinstance(node, ast.Name) or _is_whole(node)


def _terms(node: ast.expr) -> Iterator[ast.expr | None]:
  """What arithmetic is made of, None for any other operator; sums may be too long to recurse."""
  waiting = [node]
  while waiting:
    node = waiting.pop()
    if isinstance(node, ast.BinOp) and isinstance(node.op, _ARITHMETIC):
      waiting += [node.left, node.right]
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
      waiting.append(node.operand)
    else:
      yield None if isinstance(node, (ast.BinOp, ast.UnaryOp)) else node


def _is_term(node: ast.expr | None) -> bool:
  return isinstance(node, (ast.Name, ast.Attribute, ast.Call, ast.Subscript)) or _is_whole(node)


def _is_whole(node: ast.expr | None) -> bool:
  return isinstance(node, ast.Constant) and type(node.value) is int
