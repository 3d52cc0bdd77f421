"""Seam between what the user wrote (a config file, `--config.key=value`) and frozen dataclasses.

A config file is a Python file with `get_config(arg=None) -> ml_collections.ConfigDict`. Every
consumer turns its part into a frozen dataclass with `from_mapping`, so that a key that nobody reads
is an error that names its nearest neighbours, never a setting that is silently ignored.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import importlib.util
import inspect
import pathlib
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

T = TypeVar('T')


class ConfigError(ValueError):
  """A setting that cannot be used; the message names the field, the value and what was expected."""


class RunError(Exception):
  """A run that cannot go on for a reason outside the program; the message is all that a user needs.

  The command line prints it without a traceback.
  """


def unknown_key(key: str, known: Sequence[str], where: str) -> ConfigError:
  """The error for a key that does not exist, with its nearest neighbours."""
  near = difflib.get_close_matches(
    key.rpartition('.')[2], [k.rpartition('.')[2] for k in known], 3, 0.5
  )
  full = [k for n in near for k in known if k.rpartition('.')[2] == n] or sorted(known)
  hint = 'did you mean' if near else 'known keys are'
  return ConfigError(f'{where} has no key {key!r}; {hint} {", ".join(dict.fromkeys(full))}')


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = '') -> T:
  """Builds the frozen dataclass `cls` from a mapping, nested dataclasses included.

  Args:
    cls: a dataclass; its fields are the keys that are allowed.
    values: a dict or ConfigDict.
    where: how the mapping is called in the user's config, for error messages.

  Raises:
    ConfigError: an unknown key (with its neighbours), a missing one, or a value of the wrong type.
  """
  where = where or cls.__name__
  values = values.to_dict() if hasattr(values, 'to_dict') else values
  fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
  hints = typing.get_type_hints(cls)
  for key in values:
    if key not in fields:
      raise unknown_key(key, list(fields), where)
  missing = [
    n
    for n, f in fields.items()
    if n not in values
    and f.default is dataclasses.MISSING
    and f.default_factory is dataclasses.MISSING
  ]
  if missing:
    raise ConfigError(f'{where} lacks {", ".join(missing)}')
  return cls(**{k: _converted(hints[k], v, f'{where}.{k}') for k, v in dict(values).items()})


def from_preset(
  cls: type[T], presets: Mapping[str, Mapping[str, Any]], values: Mapping[str, Any], where: str
) -> T:
  """As `from_mapping`; the key `size` names a preset, which the other keys override."""
  values = dict(values)
  size = values.pop('size', None)
  if size is not None and size not in presets:
    raise ConfigError(f'{where}.size is {size!r}, expected one of {", ".join(presets)}')
  return from_mapping(cls, {**presets.get(size, {}), **values}, where)


def _converted(hint: Any, value: Any, where: str) -> Any:
  """`value` as the annotated type: nested dataclasses built, lists to tuples, ints to floats."""
  options = (
    typing.get_args(hint)
    if isinstance(hint, types.UnionType) or (typing.get_origin(hint) is typing.Union)
    else (hint,)
  )
  if value is None and type(None) in options:
    return None
  for option in options:
    origin = typing.get_origin(option) or option
    if dataclasses.is_dataclass(option) and isinstance(value, Mapping):
      return from_mapping(option, value, where)
    if origin is tuple and isinstance(value, (list, tuple)):
      inner = typing.get_args(option)
      return tuple(_converted(inner[0], v, where) for v in value) if inner else tuple(value)
    if origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
      return float(value)
    if origin is Any or origin is typing.Literal and value in typing.get_args(option):
      return value
    if origin in (dict, Mapping) or getattr(origin, '__name__', '') == 'Mapping':
      if isinstance(value, Mapping):
        return plain(value)
    elif (
      isinstance(origin, type)
      and isinstance(value, origin)
      and not (origin is int and isinstance(value, bool))
    ):
      return value
    elif dataclasses.is_dataclass(option) and isinstance(value, option):
      return value
  expected = ' or '.join(_named(o) for o in options)
  raise ConfigError(f'{where} is {value!r} ({type(value).__name__}), expected {expected}')


def _named(hint: Any) -> str:
  """An annotation as a user reads it."""
  if hint is type(None):
    return 'None'
  if typing.get_origin(hint) is typing.Literal:
    return 'one of ' + ', '.join(map(repr, typing.get_args(hint)))
  return str(hint) if typing.get_args(hint) else getattr(hint, '__name__', str(hint))


def plain(values: Any) -> Any:
  """The same settings as plain dicts, lists and scalars (what is written to `config.json`)."""
  if dataclasses.is_dataclass(values) and not isinstance(values, type):
    values = {f.name: getattr(values, f.name) for f in dataclasses.fields(values)}
  if hasattr(values, 'to_dict'):
    values = values.to_dict()
  if isinstance(values, Mapping):
    return {str(k): plain(v) for k, v in values.items()}
  if isinstance(values, (list, tuple)):
    return [plain(v) for v in values]
  return values


def flattened(values: Any, prefix: str = '') -> dict[str, Any]:
  """`{'a': {'b': 1}}` as `{'a.b': 1}`; empty dicts stay as values."""
  out = {}
  for key, value in plain(values).items():
    if isinstance(value, Mapping) and value:
      out |= flattened(value, f'{prefix}{key}.')
    else:
      out[f'{prefix}{key}'] = value
  return out


def differences(old: Any, new: Any) -> list[str]:
  """One line a setting that differs: `steps: 100 -> 200`."""
  a, b = flattened(old), flattened(new)
  absent = '(absent)'
  return [
    f'{k}: {a.get(k, absent)!r} -> {b.get(k, absent)!r}'
    for k in sorted(a | b)
    if a.get(k, absent) != b.get(k, absent)
  ]


def load_config(spec: str):
  """Runs `get_config` of a config file.

  Args:
    spec: `path/to/file.py` or `path/to/file.py:arg`; the argument is passed to `get_config`. A path
      that does not exist is looked up in the packaged experiments (`crt/mini.py`,
      `experiments/crt/mini.py`).

  Returns:
    The locked ConfigDict.
  """
  path, _, arg = spec.partition(':')
  found = _config_path(path)
  module_spec = importlib.util.spec_from_file_location(f'jaxmm_config_{found.stem}', found)
  module = importlib.util.module_from_spec(module_spec)
  module_spec.loader.exec_module(module)
  if not hasattr(module, 'get_config'):
    raise ConfigError(f'{found} defines no get_config(arg=None) -> ConfigDict')
  if arg and not inspect.signature(module.get_config).parameters:
    raise ConfigError(f'{found}: get_config takes no argument, got {arg!r}')
  config = module.get_config(arg) if arg else module.get_config()
  return config.lock()


def _config_path(path: str) -> pathlib.Path:
  candidates = [pathlib.Path(path)]
  packaged = importlib.util.find_spec('jaxmm.experiments')
  inner = path.removeprefix('./').removeprefix('experiments/')
  for root in (packaged.submodule_search_locations or []) if packaged else []:
    candidates.append(pathlib.Path(root) / inner)
  for candidate in candidates:
    if candidate.is_file():
      return candidate
  raise ConfigError(
    f'--config names {path!r}, but there is no such file; looked at '
    + ', '.join(str(c) for c in candidates)
  )


def override(config, assignments: Sequence[str], unchecked: Sequence[str] = ()):
  """Applies `key.subkey=value` to a ConfigDict, in place, typed like the value it replaces.

  `None` (or `null`) is accepted anywhere: whoever reads the section refuses it where it cannot be.

  Args:
    config: a ConfigDict.
    assignments: `key.subkey=value`.
    unchecked: sections that may leave settings out; a key they lack is added, its value read as a
      Python literal (else as text), and `from_mapping` names the mistakes when the section is read.

  Raises:
    ConfigError: the key does not exist (with its neighbours) or the value has another type.
  """
  for assignment in assignments:
    key, eq, text = assignment.partition('=')
    if not eq:
      raise ConfigError(f'--config.{assignment} has no value; write --config.{key}=VALUE')
    *parents, leaf = key.split('.')
    if parents and parents[0] in unchecked:
      with config.unlocked(), config.ignore_type():
        _add(config, parents, leaf, text)
      continue
    known = flattened(config)
    node = config
    for part in [*parents, leaf]:
      if not hasattr(node, 'keys') or part not in node:
        raise unknown_key(key, list(known), 'the config')
      parent, node = node, node[part]
    parent[leaf] = _typed_like(node, text, key)
  return config


def _add(config, parents: Sequence[str], leaf: str, text: str) -> None:
  """Sets a key of a section that may lack it, and the sections on the way."""
  node = config
  for depth, part in enumerate(parents, 1):
    if node.get(part) is None:
      node[part] = {}
    node = node[part]
    if not hasattr(node, 'keys'):
      where = '.'.join(parents[:depth])
      raise ConfigError(f'{where} is {node!r}, which has no key {leaf!r} to set')
  is_text = isinstance(node.get(leaf), str) and text not in _NONE
  node[leaf] = text if is_text else _literal(text)


_NONE = ('None', 'null')  # `none` is the name of a choice in several places


def _literal(text: str) -> Any:
  """A Python literal; what is none is text."""
  if text in _NONE:
    return None
  try:
    return ast.literal_eval({'true': 'True', 'false': 'False'}.get(text.lower(), text))
  except (ValueError, SyntaxError):
    return text


def _typed_like(old: Any, text: str, key: str) -> Any:
  value = _literal(text)
  if value is None:
    return None
  if isinstance(old, str):
    return text
  if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
    return float(value)
  if isinstance(old, (tuple, list)) and isinstance(value, (tuple, list)):
    return type(old)(value)
  if old is not None and type(value) is not type(old):
    raise ConfigError(f'--config.{key}={text}: expected {type(old).__name__} (now {old!r})')
  return value
