"""Per-document work as an Apache Beam pipeline, on Dataflow, Flink, Spark or this machine.

A pipeline has an element a file of the corpus. What is to be done stands in one file in the work
directory, the plan (a pipeline that held it itself would pass what services take as a job), and an
element is a place in it. Workers import the functions by name, so jaxmm (the same version; no jax)
has to be installed where they run.

Tables go to the work directory, as with every runner. A bundle that is done again, or twice at the
same time, changes nothing: a table that is there is not made again, and one appears only whole.

Workers elsewhere have to see the work directory and the inputs: URLs that `fsspec` knows, or paths
of a file system that all machines mount. Dataflow has none, so paths are refused for it; for other
clusters a line says so before the start, and a worker that does not see what the plan names fails
with that, rather than take a file for unreadable.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import re
import socket
import threading
import uuid
from collections.abc import Iterator, Sequence
from typing import Any

import apache_beam as beam
import pyarrow.compute as pc
from apache_beam.metrics import Metrics
from apache_beam.options import pipeline_options

import jaxmm
from jaxmm.config import ConfigError, RunError
from jaxmm.curation import work_tables
from jaxmm.curation.runners import Progress, Task
from jaxmm.data.corpus import Shard, is_tfds

_ERRORS = {'ConfigError': ConfigError, 'RunError': RunError}
_HERE = ('direct', 'switchingdirect', 'bundlebaseddirect', 'fnapi', 'prism', 'interactive')
_WORKER = 'a Beam worker on '
# A pipeline may run for hours, and not every runner says how far it is.
_SAY_EVERY_SECONDS = 30


class Beam:
  """A `runners.Runner`.

  Attributes:
    result: of the last pipeline, for its metrics; counters `files`, `examples` and `unreadable` in
      the namespace `jaxmm`.
  """

  def __init__(self, options: Sequence[str] = ()):
    """Takes pipeline options as Beam's own programs do: ['--runner=FlinkRunner', ...].

    Raises:
      ConfigError: an option has a wrong value.
    """
    try:
      self._options = pipeline_options.PipelineOptions(list(options))
      self._options.get_all_options()  # reads them; those that nobody knows are a warning
      self._name = self._options.view_as(pipeline_options.StandardOptions).runner or 'DirectRunner'
      portable = self._options.view_as(pipeline_options.PortableOptions)
      is_loopback = portable.environment_type == 'LOOPBACK'
    except SystemExit as error:  # Beam reads them with argparse, which has said what is wrong
      raise ConfigError(f'Beam does not take the options {" ".join(options)}') from error
    short = self._name.rpartition('.')[2].lower().removesuffix('runner')
    self._is_here = short in _HERE or is_loopback
    self._is_dataflow = short == 'dataflow'
    self.result = None

  def run(self, tasks: Sequence[Task], progress: Progress) -> None:
    directory = tasks[0].path.rpartition('/')[0]
    self._check_places(tasks, directory, progress)
    for name in work_tables.names(directory) & {_error_of(_file(task)) for task in tasks}:
      work_tables.remove(f'{directory}/{name}')
    progress.say(f'{len(tasks)} files as a Beam pipeline on {self._name}')
    plan = _absolute(f'{directory}/{progress.name}-{uuid.uuid4().hex[:12]}.plan')
    places = written_plan(tasks, plan)
    try:
      with _followed(tasks, directory, progress):
        self._run_pipeline(places, plan, progress.name)
    except Exception as error:
      told = _of_worker(tasks, directory) or _unseen(error)
      if told is None:
        raise
      raise told from error
    finally:
      work_tables.remove(plan)
    there = work_tables.names(directory)
    missing = [task for task in tasks if _file(task) not in there]
    if missing:
      raise _of_worker(tasks, directory) or RunError(
        f'the Beam pipeline ended, but {len(missing)} of {len(tasks)} tables are not in '
        f'{directory}, the first that of {missing[0].shard.path}; run it again'
      )
    progress.add(sum(len(work_tables.read(task.path)) for task in tasks), len(tasks))
    for task in tasks:
      progress.check(task)

  def _run_pipeline(self, places: Sequence[tuple[int, int]], plan: str, name: str) -> None:
    try:
      pipeline = beam.Pipeline(options=self._options)
    except ValueError as error:
      raise ConfigError(f'Beam does not take its options: {error}') from error
    _ = pipeline | 'tasks' >> beam.Create(places) | name >> WriteTables(plan)
    result = self.result = pipeline.run()
    try:
      state = result.wait_until_finish()
    except KeyboardInterrupt:
      result.cancel()
      raise
    if state not in (None, beam.runners.runner.PipelineState.DONE):
      raise RunError(f'the Beam pipeline {name!r} ended as {state}; its runner says why')

  def _check_places(self, tasks: Sequence[Task], directory: str, progress: Progress) -> None:
    """Refuses, or says, what workers elsewhere may not see."""
    paths = [task.shard.path for task in tasks if not work_tables.is_url(task.shard.path)]
    what = [f'{len(paths)} input files (such as {paths[0]})'] if paths else []
    what += [] if work_tables.is_url(directory) else [f'the work directory {directory}']
    if self._is_here or not what:
      return
    if self._is_dataflow:
      raise ConfigError(
        f'workers of {self._name} do not see {" and ".join(what)}; give URLs such as '
        'gs://bucket/corpus/*.jsonl.gz for inputs, and for the work directory (--workdir) '
        'gs://bucket/work'
      )
    progress.say(f'every worker of {self._name} has to see {" and ".join(what)} under that path')


@contextlib.contextmanager
def _followed(tasks: Sequence[Task], directory: str, progress: Progress) -> Iterator[None]:
  """Says now and then how many tables are there."""
  ended = threading.Event()

  def follow():
    while not ended.wait(_SAY_EVERY_SECONDS):
      there = work_tables.names(directory)
      progress.say(f'{sum(_file(task) in there for task in tasks)} of {len(tasks)} files')

  thread = threading.Thread(target=follow, daemon=True)
  thread.start()
  try:
    yield
  finally:
    ended.set()
    thread.join()


class WriteTables(beam.PTransform):
  """Places in a plan -> the paths of the tables, each of which is written."""

  def __init__(self, plan: str):
    super().__init__()
    self._plan = plan

  def expand(self, places):
    return places | beam.ParDo(_WriteTable(self._plan))


class _WriteTable(beam.DoFn):
  def __init__(self, plan: str):
    self._plan = plan

  def process(self, place):
    task, size = _task_at(self._plan, *place)
    try:
      if work_tables.is_there(task.path):
        table = work_tables.read(task.path)
      else:
        _check_seen(task.shard, size)
        table = task.done()
    except (ConfigError, RunError) as error:
      said = json.dumps([type(error).__name__, str(error)]).encode()
      work_tables.write_bytes(said, _error_of(task.path))
      raise
    Metrics.counter('jaxmm', 'files').inc()
    Metrics.counter('jaxmm', 'examples').inc(len(table))
    if 'error' in table.column_names:
      lengths = pc.fill_null(pc.binary_length(table['error']), 0)
      Metrics.counter('jaxmm', 'unreadable').inc(pc.sum(pc.greater(lengths, 0)).as_py() or 0)
    yield task.path


def written_plan(tasks: Sequence[Task], path: str) -> list[tuple[int, int]]:
  """Writes what is to be done; of each task the first byte and the one after the last."""
  lines = [json.dumps(_planned(task)).encode() + b'\n' for task in tasks]
  work_tables.write_bytes(b''.join(lines), path)
  places, start = [], 0
  for line in lines:
    places.append((start, start + len(line)))
    start += len(line)
  return places


def _planned(task: Task) -> dict[str, Any]:
  work, shard = task.work, task.shard
  if work.__module__ == '__main__' or '<' in work.__qualname__:
    raise ConfigError(
      f'{work.__module__}.{work.__qualname__}: Beam workers import work by name, so it has to be '
      'at the top level of a module that is installed'
    )
  return {
    'jaxmm': jaxmm.__version__,
    'work': [work.__module__, work.__qualname__],
    'shard': [_absolute(shard.path), shard.name, shard.format],
    'size': work_tables.state(shard.path)[0],
    'settings': task.settings,
    'particular': task.particular,
    'path': _absolute(task.path),
  }


def _absolute(path: str) -> str:
  """Workers may be in another directory."""
  if work_tables.is_url(path) or is_tfds(path):
    return path
  return os.path.abspath(path.removeprefix('file://'))


def _task_at(plan: str, start: int, end: int) -> tuple[Task, int]:
  """A task, and the size of its file."""
  try:
    of = json.loads(work_tables.read_bytes(plan, start, end))
  except FileNotFoundError as error:
    raise ConfigError(
      f'{_WORKER}{socket.gethostname()} does not see the work directory '
      f'{plan.rpartition("/")[0]}; give one that all workers see (--workdir): a URL such as '
      'gs://bucket/work, or a path on a file system that they share'
    ) from error
  if of['jaxmm'] != jaxmm.__version__:
    raise ConfigError(
      f'{_WORKER}{socket.gethostname()} has jaxmm {jaxmm.__version__}, and the pipeline '
      f'was started by {of["jaxmm"]}; install the same version in both places'
    )
  module, function = of['work']
  work = getattr(importlib.import_module(module), function)
  return Task(work, Shard(*of['shard']), of['settings'], of['particular'], of['path']), of['size']


def _check_seen(shard: Shard, size: int) -> None:
  """A file of the same name may be another here; one that is not there is to be told plainly."""
  try:
    found = work_tables.state(shard.path)[0]
  except FileNotFoundError:
    found = None
  if found != size:
    raise ConfigError(
      f'{_WORKER}{socket.gethostname()} does not see the input {shard.path} as it is where '
      'the pipeline was started; give inputs that all workers see: URLs, or paths on a file system '
      'that they share'
    )


def _file(task: Task) -> str:
  return task.path.rpartition('/')[2]


def _error_of(path: str) -> str:
  """Where the error of a task is told: Beam's own ways keep no more than a traceback's text."""
  return f'{path}.error'


def _unseen(error: Exception) -> ConfigError | None:
  """What a worker had to say that could not say it in the work directory."""
  found = re.search(rf'ConfigError: ({_WORKER}.*?)(?: \[while running |\n|$)', str(error))
  return ConfigError(found[1]) if found else None


def _of_worker(tasks: Sequence[Task], directory: str) -> Exception | None:
  """The first error that workers told of, in the order of the files."""
  there = work_tables.names(directory)
  for task in tasks:
    if _file(task) not in there and _error_of(_file(task)) in there:
      name, message = json.loads(work_tables.read_bytes(_error_of(task.path)))
      return _ERRORS[name](message)
  return None
