"""Damage to Python code the slow way: on syntax trees, or on characters, never on tokens."""

import ast
import collections
import re

# Strings and comments, for code whose f-strings hold no quotes of their own kind.
_NOT_CODE = re.compile(
  r'#[^\n]*|"""(?:\\.|[^\\])*?"""|\'\'\'(?:\\.|[^\\])*?\'\'\'|"(?:\\.|[^"\\\n])*"|'
  r"'(?:\\.|[^'\\\n])*'",
  re.DOTALL,
)
_OPPOSITE = {ast.Eq: ast.NotEq, ast.Lt: ast.GtE, ast.Gt: ast.LtE, ast.Is: ast.IsNot,
             ast.In: ast.NotIn, ast.And: ast.Or}  # fmt: skip
OPPOSITE = _OPPOSITE | {v: k for k, v in _OPPOSITE.items()}


def without_closing_brackets(text: str) -> str:
  out, end = [], 0
  for match in _NOT_CODE.finditer(text):
    out += [re.sub(r'[)\]}]', '', text[end : match.start()]), match[0]]
    end = match.end()
  return ''.join([*out, re.sub(r'[)\]}]', '', text[end:])])


class _NoFStrings(ast.NodeTransformer):
  def visit_JoinedStr(self, node):
    return ast.Constant('')


def tree(text: str) -> ast.Module:
  return _NoFStrings().visit(ast.parse(text))


class _Shifted(ast.NodeTransformer):
  """Every index in a subscript plus one, but those in annotations."""

  def visit_JoinedStr(self, node):
    return node

  def visit_arg(self, node):
    return node

  def visit_AnnAssign(self, node):
    node.target = self.visit(node.target)
    node.value = node.value and self.visit(node.value)
    return node

  def visit_FunctionDef(self, node):
    returns, node.returns = node.returns, None
    self.generic_visit(node)
    node.returns = returns
    return node

  visit_AsyncFunctionDef = visit_FunctionDef

  def visit_Subscript(self, node):
    self.generic_visit(node)
    node.slice = self.shifted(node.slice)
    return node

  def shifted(self, index):
    if isinstance(index, ast.Tuple):
      index.elts = [self.shifted(e) for e in index.elts]
      return index
    if isinstance(index, ast.Slice):
      index.lower = index.lower and self.shifted(index.lower)
      index.upper = index.upper and self.shifted(index.upper)
      return index
    return ast.BinOp(index, ast.Add(), ast.Constant(1)) if is_index(index) else index


def is_index(node) -> bool:
  """A name, a whole number, or a sum, difference, product, ... of what may be numbers."""
  if isinstance(node, ast.BinOp | ast.UnaryOp):
    leaves = [node]
    while any(isinstance(leaf, ast.BinOp | ast.UnaryOp) for leaf in leaves):
      at = next(i for i, n in enumerate(leaves) if isinstance(n, ast.BinOp | ast.UnaryOp))
      inner = leaves.pop(at)
      if type(inner.op).__name__ not in (
        'Add', 'Sub', 'Mult', 'FloorDiv', 'Mod', 'Pow', 'USub', 'UAdd',
      ):  # fmt: skip
        return False
      leaves += [inner.operand] if isinstance(inner, ast.UnaryOp) else [inner.left, inner.right]
    return all(
      isinstance(n, ast.Attribute | ast.Call | ast.Subscript | ast.Name) or is_index(n)
      for n in leaves
    )
  return isinstance(node, ast.Name) or isinstance(node, ast.Constant) and type(node.value) is int


def shifted(text: str) -> str:
  """The syntax tree with every index shifted, as text."""
  return ast.dump(_Shifted().visit(ast.parse(text)))


def operators(text: str) -> collections.Counter:
  """How often each operator of a condition stands in a text."""
  found = collections.Counter()
  for node in ast.walk(tree(text)):
    if isinstance(node, ast.Compare):
      found.update(type(op) for op in node.ops)
    elif isinstance(node, ast.BoolOp):
      found[type(node.op)] += len(node.values) - 1
  return found


def variables(text: str) -> collections.Counter:
  """How often each name that is assigned somewhere, or is a parameter, stands in a text."""
  nodes = list(ast.walk(tree(text)))
  names = [n for n in nodes if isinstance(n, ast.Name)]
  args = [n.arg for n in nodes if isinstance(n, ast.arg)]
  bound = {n.id for n in names if isinstance(n.ctx, ast.Store)} | set(args)
  return collections.Counter(n for n in args + [n.id for n in names] if n in bound)
