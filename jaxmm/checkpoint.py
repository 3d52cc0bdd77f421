"""Seam between a program and the disk: checkpoints that say of themselves whether they are whole.

Orbax writes the arrays and makes a checkpoint appear at once or not at all. Added here: a digest of
every array, so that a damaged checkpoint is recognised and the next older one is taken; the data
position and whatever else the run remembers (`meta`) in the same atomic directory; partial loads;
retention; errors that say what to do.

A checkpoint is the directory `DIRECTORY/<step>`. A leaf is called by the path of its keys,
`params/stack/w_up`.
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import json
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp

from jaxmm.config import ConfigError, RunError
from jaxmm.core import digest, leaf_names

_ITEM = 'state'  # the name of the arrays within an Orbax checkpoint
_RECORD = '_CHECKPOINT_METADATA'  # the file in which Orbax keeps what it was given as metadata
_TEMPORARY = '.orbax-checkpoint-tmp'
_FORMAT = 1


class _Reported(logging.Filter):
  """Drops the stack of every thread of a failed save; `wait` raises the error that they share."""

  def filter(self, record: logging.LogRecord) -> bool:
    return '_SignalingThread.run() raised' not in str(record.msg)


_REPORTED = _Reported()


class CheckpointError(RunError, RuntimeError):
  """A checkpoint that cannot be written, read or fitted to the state, and why."""


class DamagedCheckpointWarning(UserWarning):
  """A checkpoint that was skipped because it is not what was saved."""


class _Damaged(Exception):
  """Why one checkpoint cannot be used."""


class Metadata(NamedTuple):
  """What a checkpoint holds, known without reading its arrays.

  Attributes:
    step: its step.
    meta: the dict that was saved with it.
    shapes: `{leaf name: jax.ShapeDtypeStruct}`.
  """

  step: int
  meta: dict[str, Any]
  shapes: dict[str, jax.ShapeDtypeStruct]


class Checkpoints:
  """The checkpoints of one run. In a multi-process program every process makes the same calls."""

  def __init__(self, directory: str | os.PathLike, keep: int = 3, keep_every: int | None = None):
    """Nothing is created or deleted before the first `save`, so a reader may open a live run.

    Args:
      directory: where the checkpoints are, or will be.
      keep: how many of the newest stay.
      keep_every: every checkpoint whose step is a multiple of this stays as well.
    """
    if keep < 1 or (keep_every is not None and keep_every < 1):
      raise ConfigError(f'keep={keep}, keep_every={keep_every}: expected at least 1 (or None)')
    self._directory = epath.Path(
      os.path.abspath(directory) if '://' not in str(directory) else directory
    )
    self._keep, self._keep_every = keep, keep_every
    self._pending: tuple[int, Any] | None = None
    self._damaged: set[int] = set()
    self._swept = False

  def save(self, step: int, state: Any, meta: Mapping[str, Any], wait: bool = False) -> None:
    """Writes a checkpoint in the background; a step that exists is replaced.

    Only the copy off the devices is waited for, so the state may be donated as soon as this
    returns. An earlier save that still runs is waited for first.

    Args:
      step: at least 0.
      state: a tree (dicts, tuples, dataclasses) of arrays of any sharding.
      meta: what JSON can hold.
      wait: whether to return only when it is on disk.

    Raises:
      CheckpointError: this save cannot start, or the one before it failed. Older checkpoints are
        intact.
      TypeError: a leaf is no array, or meta no JSON; the message names it.
    """
    self.wait()
    logging.getLogger('absl').addFilter(_REPORTED)  # the same object again changes nothing
    leaves = leaf_names.savable_leaves(state)
    text = _json(meta)
    newer = [s for s in self._agreed_steps() if s > step and s not in self._damaged]
    if newer:
      raise CheckpointError(
        f'{self._directory} holds checkpoints of later steps ({_listed(newer)}) than the {step} to '
        'be saved; a resumed run would take those. Move them away or save into another directory'
      )
    digests = digest.whole(digest.local_digests(list(leaves.values())))
    table = {
      name: {'shape': list(x.shape), 'dtype': str(x.dtype), 'digest': f'{d:016x}'}
      for (name, x), d in zip(leaves.items(), digests)
    }
    content = {'format': _FORMAT, 'step': int(step), 'leaves': table, 'meta': json.loads(text)}
    try:
      if jax.process_index() == 0:
        self._directory.mkdir(parents=True, exist_ok=True)
        self._sweep()
      with _context():
        response = ocp.save_checkpointables_async(
          self._directory / str(step),
          {_ITEM: leaf_names.nested({n: x for n, x in leaves.items() if x.size})},
          overwrite=True,
          custom_metadata={'content': content, 'sha256': _sha256(content)},
        )
    except Exception as error:
      raise self._save_error(step, error) from error
    self._pending = (int(step), response)
    if wait:
      self.wait()

  def wait(self) -> None:
    """Returns when the last save is on disk (at once if there is none), then deletes what retention
    lets go.

    Raises:
      CheckpointError: that save failed.
    """
    if self._pending is None:
      return
    step, response = self._pending
    try:
      response.result()  # an interrupt leaves it pending
    except Exception as error:
      self._pending, self._swept = None, False
      if jax.process_index() == 0:
        for path in self._directory.glob(f'{step}{_TEMPORARY}*'):
          _remove(path)  # it holds space that is wanted
      raise self._save_error(step, error) from error
    self._pending = None
    self._damaged.discard(step)
    if jax.process_index() == 0:
      self._prune(step)

  def steps(self) -> list[int]:
    """Steps of the finished checkpoints, ascending, as this process sees them; damaged ones too."""
    if not self._directory.is_dir():
      return []
    return sorted(int(p.name) for p in self._directory.iterdir() if p.name.isdigit())

  def restore(
    self, abstract_state: Any, step: int | None = None
  ) -> tuple[Any, dict[str, Any], int] | None:
    """The newest checkpoint that is whole, on any mesh; damaged ones are skipped with a warning
    each.

    Args:
      abstract_state: a tree like the saved one, of `jax.ShapeDtypeStruct` with shardings (or of
        arrays).
      step: take this one and no other.

    Returns:
      (state, meta, step), or None if there is no checkpoint at all.

    Raises:
      CheckpointError: all are damaged (or the one asked for is), or the state is not the saved one:
        the leaf that is missing, left over or of another shape or type is named.
    """
    if step is None:
      self._warn_of_unfinished()
    return self._restored(
      leaf_names.named_leaves(abstract_state), jax.tree.structure(abstract_state), step, whole=True
    )

  def restore_partial(
    self, abstract_subtree: Any, *prefix: str, step: int | None = None
  ) -> tuple[Any, dict[str, Any], int]:
    """A part of the newest whole checkpoint: `restore_partial(abstract_params, 'params')`.

    Args:
      abstract_subtree: as in `restore`, for the part below `prefix`.
      *prefix: keys from the root of the saved state; nothing for a subset that starts at the root.

    Raises:
      CheckpointError: as in `restore`, and when there is no checkpoint.
    """
    named = leaf_names.named_leaves(abstract_subtree, prefix)
    out = self._restored(named, jax.tree.structure(abstract_subtree), step, whole=False)
    if out is None:
      raise CheckpointError(f'there is no checkpoint in {self._directory}')
    return out

  def load_numpy(
    self, *prefix: str, step: int | None = None
  ) -> tuple[dict[str, Any], dict[str, Any], int]:
    """As `restore_partial`, with the shapes of the checkpoint, as nested dicts of numpy arrays."""
    for at in [step] if step is not None else self._agreed_steps()[::-1]:
      try:
        shapes = self.metadata(at).shapes
      except CheckpointError:
        continue
      break
    else:
      shapes = {}
    start = '/'.join(prefix) + '/' if prefix else ''
    wanted = {n.removeprefix(start): x for n, x in shapes.items() if n.startswith(start)}
    if shapes and not wanted:
      raise CheckpointError(
        f'checkpoint {self._directory} has nothing below {"/".join(prefix)!r}; it has '
        + ', '.join(dict.fromkeys(n.split('/')[0] for n in shapes))
      )
    tree, meta, found = self.restore_partial(
      leaf_names.nested(wanted) if wanted else {}, *prefix, step=step
    )
    return jax.tree.map(np.asarray, tree), meta, found

  def metadata(self, step: int) -> Metadata:
    """Shapes and meta of one checkpoint, without reading its arrays.

    Raises:
      CheckpointError: there is none, or it is damaged.
    """
    try:
      content = self._content(step)
    except _Damaged as damage:
      raise CheckpointError(f'checkpoint {self._directory / str(step)}: {damage}') from damage
    shapes = {
      n: jax.ShapeDtypeStruct(tuple(x['shape']), jnp.dtype(x['dtype']))
      for n, x in content['leaves'].items()
    }
    return Metadata(step, content['meta'], shapes)

  # Reading.

  def _restored(
    self, wanted: dict[str, jax.ShapeDtypeStruct], treedef: Any, step: int | None, whole: bool
  ):
    self.wait()
    steps = self._agreed_steps()
    if step is not None and step not in steps:
      raise CheckpointError(
        f'there is no checkpoint {self._directory / str(step)}; there are '
        f'{_listed(steps) or "none"}'
      )
    reasons = []
    for at in [step] if step is not None else steps[::-1]:
      path = self._directory / str(at)
      try:
        leaves, meta = self._one(at, wanted, whole)
      except _Damaged as damage:
        self._damaged.add(at)
        reasons.append(f'{path}: {damage}')
        if step is None:
          warnings.warn(
            f'checkpoint {path} is damaged and skipped: {damage}',
            DamagedCheckpointWarning,
            stacklevel=3,
          )
        continue
      return jax.tree.unflatten(treedef, list(leaves.values())), meta, at
    if not reasons:
      return None
    raise CheckpointError(
      'no checkpoint can be used, and starting from zero is not done silently:\n  '
      + '\n  '.join(reasons)
      + '\nRepair one, give another directory, or move these away to start anew'
    )

  def _one(
    self, step: int, wanted: dict[str, jax.ShapeDtypeStruct], whole: bool
  ) -> tuple[dict[str, jax.Array], dict[str, Any]]:
    """The wanted leaves of one checkpoint and its meta, verified; raises _Damaged."""
    path = self._directory / str(step)
    content = _together(lambda: self._content(step))
    table = content['leaves']
    problems = leaf_names.mismatches(wanted, table, whole)
    if problems:
      more = f' and {len(problems) - 5} more' if len(problems) > 5 else ''
      raise CheckpointError(
        f'checkpoint {path} is not of this model: ' + '; '.join(problems[:5]) + more
      )
    leaves = _together(lambda: _read(path, wanted))
    for (name, x), found in zip(
      leaves.items(), digest.whole(digest.local_digests(list(leaves.values()), every_replica=True))
    ):
      if found != int(table[name]['digest'], 16) * digest.replica_weight(x) % 2**64:
        raise _Damaged(f'the digest of {name} is not the saved one')
    return leaves, content['meta']

  def _content(self, step: int) -> dict[str, Any]:
    """The table of leaves and the meta of one checkpoint, checked against its own digest."""
    path = self._directory / str(step)
    if not path.is_dir():
      raise _Damaged('there is no such directory')
    try:
      # Orbax's own reader would open every array as well.
      record = json.loads((path / _RECORD).read_text())['custom_metadata']
    except Exception as error:
      raise _Damaged(f'its record cannot be read ({_short(error)})') from error
    if not isinstance(record, dict) or 'content' not in record:
      raise _Damaged('it has no table of digests (half written, or not written by jaxmm)')
    content = record['content']
    if record.get('sha256') != _sha256(content):
      raise _Damaged('its table of digests is damaged')
    if content['format'] != _FORMAT:
      raise CheckpointError(f'{path} has format {content["format"]}; this version reads {_FORMAT}')
    if content['step'] != step:
      raise _Damaged(f'it is the checkpoint of step {content["step"]}, renamed')
    return content

  def _agreed_steps(self) -> list[int]:
    """`steps()` of process 0, in all processes."""
    steps = self.steps()
    if jax.process_count() == 1:
      return steps
    count = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    mine = np.resize(np.asarray(steps or [0], np.int32), count)
    return multihost_utils.broadcast_one_to_all(mine).tolist() if count else []

  def _warn_of_unfinished(self) -> None:
    if jax.process_index() == 0 and self._pending is None and self._directory.is_dir():
      for path in self._directory.glob(f'*{_TEMPORARY}*'):
        warnings.warn(
          f'{path} is half written (a save that was cut off, or still runs elsewhere) and ignored',
          DamagedCheckpointWarning,
          stacklevel=3,
        )

  # Writing.

  def _sweep(self) -> None:
    """Deletes, once, what earlier runs left half written or half deleted."""
    if not self._swept:
      for path in self._directory.glob(f'*{_TEMPORARY}*'):
        _remove(path)
    self._swept = True

  def _prune(self, newest: int) -> None:
    older = [s for s in self.steps() if s <= newest]
    kept = set([s for s in older if s not in self._damaged][-self._keep :])
    for step in older:
      if step not in kept and not (self._keep_every and step % self._keep_every == 0):
        # Renamed first: a deletion that is cut off must not leave something that looks like a
        # checkpoint.
        doomed = self._directory / f'{step}{_TEMPORARY}-deleted'
        (self._directory / str(step)).rename(doomed)
        _remove(doomed)

  def _save_error(self, step: int, error: Exception) -> CheckpointError:
    place = str(self._directory)
    while not os.path.exists(place) and os.path.dirname(place) != place:
      place = os.path.dirname(place)
    try:
      usage = shutil.disk_usage(place)
      free = f'{usage.free / 2**20:,.1f} MiB of {usage.total / 2**20:,.1f} MiB are free there'
    except OSError:
      free = 'its free space is unknown'
    try:
      left = _listed(self.steps())
    except OSError:
      left = ''
    return CheckpointError(
      f'checkpoint {step} could not be saved in {self._directory} ({_short(error)}); {free}. '
      f'Checkpoints that are there and untouched: {left or "none"}. Free some space or mend '
      'the permissions, lower checkpoint.keep, or choose another directory'
    )


def _context(partial: bool = False, alone: bool = False) -> ocp.Context:
  context = ocp.Context()
  context.array.saving.use_compression = False  # weights shrink by 8 % and take four times as long
  context.array.saving.enable_write_sharding_file = False  # the reader says how to shard
  context.pytree.loading.partial_load = partial
  if alone:
    # Each process reads on its own, so that one that fails leaves no other waiting at a barrier.
    context.multiprocessing.active_processes = {jax.process_index()}
    context.multiprocessing.primary_host = jax.process_index()
  return context


def _read(path: epath.Path, wanted: Mapping[str, jax.ShapeDtypeStruct]) -> dict[str, jax.Array]:
  """The named leaves; what goes wrong is damage, except a lack of memory."""
  stored = {n: x for n, x in wanted.items() if x.size}
  loaded, reason = {}, None
  with _without_echoes():
    try:
      with _context(partial=True, alone=True):
        tree = (
          ocp.load(path, leaf_names.nested(stored), checkpointable_name=_ITEM) if stored else {}
        )
      loaded = leaf_names.named_leaves(tree, arrays=True)
    except Exception as error:
      of_device = isinstance(error, jax.errors.JaxRuntimeError)
      if isinstance(error, MemoryError) or (of_device and 'RESOURCE_EXHAUSTED' in str(error)):
        raise
      reason = f'its arrays cannot be read ({_short(error)})'
    if reason:
      gc.collect()  # which is when the echoes come
  if reason:
    raise _Damaged(reason)

  leaves = {}
  for name, x in wanted.items():
    if x.size:
      leaves[name] = leaf = loaded.get(name)
      if not isinstance(leaf, jax.Array) or (leaf.shape, leaf.dtype) != (x.shape, x.dtype):
        raise _Damaged(f'its record says of {name} what is not so')
    else:
      leaves[name] = jax.make_array_from_callback(
        x.shape, x.sharding, lambda _, x=x: np.zeros(x.shape, x.dtype)
      )
  return leaves


@contextlib.contextmanager
def _without_echoes() -> Iterator[None]:
  """Hides what asyncio says of the other reads when one has failed; that one is reported."""
  log, hook = logging.getLogger('asyncio'), sys.unraisablehook
  level = log.level
  log.setLevel(logging.CRITICAL)
  sys.unraisablehook = lambda _: None
  try:
    with warnings.catch_warnings():
      warnings.filterwarnings('ignore', 'coroutine .* was never awaited', RuntimeWarning)
      yield
  finally:
    log.setLevel(level)
    sys.unraisablehook = hook


def _together(read: Callable[[], Any]) -> Any:
  """`read()`, which raises _Damaged in all processes if it does in one."""
  result, damage = None, None
  try:
    result = read()
  except _Damaged as error:
    damage = error
  if jax.process_count() > 1:
    failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(damage is not None)))
    if failed.size and damage is None:
      damage = _Damaged(f'process {failed[0]} cannot read it, its own warning says why')
  if damage is not None:
    raise damage
  return result


def _json(meta: Mapping[str, Any]) -> str:
  for key, value in dict(meta).items():
    try:
      json.dumps({key: value})
    except (TypeError, ValueError) as error:
      raise TypeError(f'meta[{key!r}] is {value!r}, which JSON cannot hold: {error}') from error
  return json.dumps(dict(meta))


def _sha256(content: Any) -> str:
  return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _remove(path: epath.Path) -> None:
  if '://' in str(path):
    path.rmtree(missing_ok=True)
  else:
    shutil.rmtree(path, ignore_errors=True)


def _listed(steps: list[int]) -> str:
  return ', '.join(map(str, steps[-10:]))


def _short(error: BaseException) -> str:
  text = ' '.join(str(error).split())
  return f'{type(error).__name__}: {text[:300]}{"..." if len(text) > 300 else ""}'
