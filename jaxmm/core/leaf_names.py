"""The leaves of a tree by name, `params/stack/w_up`: as a checkpoint lists and compares them."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def named_leaves(tree: Any, prefix: tuple[str, ...] = (), arrays: bool = False) -> dict[str, Any]:
  """`{'a/b': leaf}`, in the order of the tree's leaves; abstract ones with a sharding each."""
  out = {}
  for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
    keys = [*prefix, *(jax.tree_util.keystr((key,), simple=True) for key in path)]
    name = '/'.join(keys)
    if not keys or '' in keys or any('/' in key for key in keys) or name in out:
      raise TypeError(
        f'a leaf at {jax.tree_util.keystr(path)!r} cannot be named in a checkpoint; keys must '
        "be unique, not empty and without '/', and the state a tree, not a bare array"
      )
    if not arrays:
      if not hasattr(x, 'shape') or not hasattr(x, 'dtype'):
        raise TypeError(f'{name} is {x!r}, expected a jax.ShapeDtypeStruct or an array')
      sharding = getattr(x, 'sharding', None)
      if sharding is None:
        sharding = _everywhere()
      x = jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
    out[name] = x
  return out


def nested(named: Mapping[str, Any]) -> dict[str, Any]:
  """The same leaves as nested dicts; the keys of sequences are '0', '1', ..."""
  root: dict[str, Any] = {}
  for name, x in named.items():
    *parents, leaf = name.split('/')
    node = root
    for key in parents:
      node = node.setdefault(key, {})
    node[leaf] = x
  return root


def savable_leaves(state: Any) -> dict[str, jax.Array]:
  """The leaves by name, all of them arrays that can be saved."""
  out = {}
  for name, x in named_leaves(state, arrays=True).items():
    if not isinstance(x, (jax.Array, np.ndarray, np.generic)):
      raise TypeError(
        f'{name} is {x!r} ({type(x).__name__}); a checkpoint holds arrays, wrap it in one'
      )
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      raise TypeError(f'{name} is a typed PRNG key; save jax.random.key_data(key) in its place')
    if not isinstance(x, jax.Array):
      if jax.dtypes.canonicalize_dtype(x.dtype) != x.dtype:
        raise TypeError(f'{name} is a numpy {x.dtype} array, which this jax would narrow; cast it')
      x = jnp.asarray(x)
    if jax.process_count() > 1 and x.is_fully_addressable:
      raise TypeError(
        f'{name} is on this process alone; make it global (jaxmm.sharding.replicated)'
      )
    out[name] = x
  if not any(x.size for x in out.values()):
    raise TypeError('the state has no array with elements')
  return out


def mismatches(
  wanted: Mapping[str, Any], table: Mapping[str, Mapping[str, Any]], whole: bool
) -> list[str]:
  """Where the leaves asked for are not those of a table, in words; [] if they agree.

  Args:
    wanted: leaves by name.
    table: `{'shape': [...], 'dtype': name}` by name.
    whole: whether a leaf of the table that is not wanted counts.
  """
  problems = []
  for name, x in wanted.items():
    if name not in table:
      near = difflib.get_close_matches(name, list(table), 2, 0.6)
      problems.append(f'it has no {name}' + (f' (but {" and ".join(near)})' if near else ''))
      continue
    shape, dtype = tuple(table[name]['shape']), table[name]['dtype']
    if shape != tuple(x.shape) or dtype != str(x.dtype):
      problems.append(f'{name} is {dtype}{list(shape)}, expected {_described(x)}')
  if whole:
    problems += [f'its {name} has no place in the state' for name in table if name not in wanted]
  return problems


def _everywhere() -> jax.sharding.Sharding:
  """For a leaf that says of no sharding: whole on one device, or, as an array of several processes
  must be the same in all of them, whole on every device."""
  if jax.process_count() == 1:
    return jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  mesh = jax.sharding.Mesh(np.array(jax.devices()), ('device',))
  return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())


def _described(x: Any) -> str:
  return f'{x.dtype}{list(x.shape)}'
