"""A run's own evaluations over its held-out data, as numbers that a table can show; and those of
the pictures that it rebuilds or draws.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.errors
import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from jaxmm import batch_job
from jaxmm.checkpoint import CheckpointError, Checkpoints
from jaxmm.config import ConfigError
from jaxmm.evaluate import inception, likelihood
from jaxmm.sharding import RULES
from jaxmm.studies import (
  drawn_sets,
  image_sets,
  loading,
  mixed_evaluation,
  reconstructions,
  run,
  set_evaluation,
)
from jaxmm.studies.loaded_mixed import LoadedTransfusion
from jaxmm.studies.loaded_text import LoadedLm
from jaxmm.studies.stages import write_json
from jaxmm.tokenizers import text
from jaxmm.train import window

Functions = Mapping[str, Callable[..., Any]]
_BYTES = 'bytes'


@dataclasses.dataclass(frozen=True)
class PictureOptions:
  """How pictures that a run rebuilds or draws are measured.

  Attributes:
    weights: file of the FID Inception; '' leaves out what needs it.
    convention: of `evaluate.inception`.
    reference: pictures or statistics that samples are compared with.
    lpips: files of LPIPS weights, for what a tokenizer rebuilds.
    few_samples: 'accept' computes Frechet distances of fewer pictures than features.
    is_paired: whether a tokenizer's pictures are compared one by one without any of these.
  """

  weights: str = ''
  convention: str = 'adm'
  reference: str = ''
  lpips: tuple[str, ...] = ()
  few_samples: str = 'error'
  is_paired: bool = False

  @property
  def any(self) -> bool:
    """Whether anything is asked for."""
    return bool(self.weights or self.reference or self.lpips or self.is_paired)


def functions_of(loaded: loading.LoadedRun) -> Functions:
  """`{evaluation: fn(variables, batch)}` of a run's Task; kept, they are compiled once.

  Of a language model of text also `_BYTES`, which counts the bytes that its likelihood is of.
  """
  own = {
    name: lambda variables, rows, fn=evaluate: fn(variables, rows, jax.random.key(0))
    for name, evaluate in loaded.task.evaluations().items()
  }
  data = loaded.config.get('eval_data') or {}
  if not isinstance(loaded, LoadedLm) or data.get('name') != 'text':
    return own
  lengths_V = text.load(data.get('text', {}).get('tokenizer', 'bytes')).byte_lengths()

  def counted(variables, rows):
    del variables
    weight_BL = rows['weight_BL'][:, 1:] * rows['valid_B'][:, None]
    # Padding may have an id that the tokenizer has not.
    ids_BL = jnp.clip(rows['ids_BL'][:, 1:], 0, len(lengths_V) - 1)
    bytes_BL = jnp.where(weight_BL > 0, jnp.asarray(lengths_V)[ids_BL], 0)
    return {_BYTES: (jnp.sum(bytes_BL), jnp.sum(weight_BL > 0))}

  return own | {_BYTES: counted}


def run_sums(
  loaded: loading.LoadedRun,
  *,
  batch: int = 64,
  echo: Callable[[str], None] | None = None,
  functions: Functions | None = None,
) -> dict[str, dict[str, tuple[Any, Any]]]:
  """`{evaluation: {metric: (sum, count)}}` over the whole of `eval_data`, exact on any mesh.

  `batch` is rounded up to what the devices and processes divide; rows that pad count nothing.
  """
  mesh = image_sets.mesh_of_all()
  batches = run.make_batches(loaded.config, train=False, batch=image_sets.fitting(batch, mesh))
  run.check_data(loaded.task, {'eval_data': batches})
  return {
    name: batch_job.run_sums(
      batches,
      evaluate,
      variables=loaded.variables | {'constants': loaded.task.constants},
      mesh=mesh,
      rules=RULES['dp'],
      echo=echo,
    )
    for name, evaluate in (functions or functions_of(loaded)).items()
  }


def run_evaluations(loaded: loading.LoadedRun, **options: Any) -> dict[str, Any]:
  """`{evaluation/metric: value}` of `run_sums`: means as floats or lists, None where nothing was
  counted, and what the Task's summaries make of counts; with a cross-entropy its perplexity, of
  text also bits a byte, which compare tokenizers.
  """
  found = run_sums(loaded, **options)
  num_bytes = found.pop(_BYTES, {}).get(_BYTES, (0, 0))[0]
  out: dict[str, Any] = {}
  for name, sums in found.items():
    # As the trainer's log has them; counts are whole numbers below 2^53, which float64 holds.
    values = window.shown(window.added({}, sums), loaded.task.summaries())
    if values.get('cross_entropy') is not None:
      values['perplexity'] = math.exp(min(values['cross_entropy'], 700.0))  # below infinity
      if num_bytes:
        values['bits_per_byte'] = likelihood.bits_per_byte(sums['cross_entropy'][0], num_bytes)
    out |= {f'{name}/{metric}': value for metric, value in values.items()}
  return out


def train_and_measure(
  config: Mapping[str, Any], path: pathlib.Path, echo: Callable[[str], None]
) -> dict[str, Any]:
  """Trains in `path`, then evaluates on the held-out data: `{metric: value}`."""
  run.train_from_config(config, path, evaluates=False, echo=echo)
  results = run_evaluations(loading.load(path))
  return {name.partition('/')[2]: value for name, value in results.items()}


def write(
  directory: str | os.PathLike,
  *,
  batch: int = 64,
  samples: int = 0,
  overrides: Sequence[str] = (),
  echo: Callable[[str], None] = print,
  pictures: PictureOptions = PictureOptions(),
  **sampler: Any,
) -> pathlib.Path:
  """Evaluates a run, prints a line a metric, writes `evaluation.json` beside its log.

  Args:
    directory: the run.
    batch: rows a step.
    samples: how many pictures are also drawn: of a model of text and images from held-out texts,
      and as many described (`mixed_evaluation.measure`); of an image model of classes in turn, and
      compared with `pictures.reference`.
    overrides: `model.key=value` and `eval_data.key=value`.
    echo: is given lines.
    pictures: what is measured of pictures that a tokenizer rebuilds or an image model draws.
    **sampler: of `SamplerConfig`, for `samples`.

  Raises:
    ConfigError: settings that do not fit the parameters, options of another kind of model, or what
      `mixed_evaluation.check` refuses, before anything is evaluated.
  """
  loaded = loading.load(directory, overrides=overrides)
  settings = dict(batch=batch, samples=samples, overrides=overrides, pictures=pictures)
  record = evaluated(loaded, echo=echo, sampler=sampler, **settings)
  path = pathlib.Path(directory, 'evaluation.json')
  if jax.process_index() == 0:
    write_json(path, record)
    echo(f'written to {path}')
  return path


def evaluated(
  loaded: loading.LoadedRun,
  *,
  batch: int,
  samples: int,
  overrides: Sequence[str],
  pictures: PictureOptions,
  sampler: Mapping[str, Any],
  echo: Callable[[str], None],
  functions: Functions | None = None,
) -> dict[str, Any]:
  """What `write` writes of a run that is loaded: `{'step', 'settings', 'results', ...}`; shows the
  results. Arguments as of `write`; `functions` are those of `functions_of`."""
  is_mixed = isinstance(loaded, LoadedTransfusion)
  _check(loaded, samples, pictures)
  if samples and is_mixed:  # before what may take hours
    mixed_evaluation.check(loaded, samples, **sampler)
  try:
    results = run_evaluations(loaded, batch=batch, echo=echo, functions=functions)
  except (flax.errors.FlaxError, ValueError) as error:
    of_model = [o for o in overrides if o.startswith('model.')]
    if isinstance(error, ConfigError) or not of_model:
      raise
    raise ConfigError(
      f'{", ".join(of_model)} wants other parameters than {loaded.directory} has: {error}'
    ) from error
  if samples and is_mixed:
    results |= mixed_evaluation.measure(loaded, samples, batch=batch, echo=echo, **sampler)
  elif samples or pictures.any:
    results |= _of_pictures(loaded, samples, pictures, batch, echo)
  set_evaluation.show(results, echo)
  record = {'step': loaded.step, 'settings': [*overrides], 'results': results}
  if samples:
    record['sampler'] = {'samples': samples, **(sampler if is_mixed else {})}
  if pictures.any:
    record['pictures'] = dataclasses.asdict(pictures)
  return record


def _check(loaded: loading.LoadedRun, samples: int, pictures: PictureOptions) -> None:
  kind, task = type(loaded), loaded.config['task']
  draws = issubclass(kind, loading.LoadedImageLm)
  if samples and not (draws or issubclass(kind, LoadedTransfusion)):
    raise ConfigError(
      f'--samples is {samples}, but {loaded.directory} is a run of {task}, which does '
      'not draw pictures; leave it out'
    )
  if draws and (samples or pictures.any) and not (samples and pictures.weights):
    raise ConfigError(
      f'{loaded.directory} is a run of an image model: its pictures are drawn (--samples N) and '
      'seen by the FID Inception (--inception FILE); name both'
    )
  rebuilds = issubclass(kind, loading.LoadedTokenizer | loading.LoadedAutoencoder)
  if pictures.any and not (draws or rebuilds):
    raise ConfigError(
      f'{loaded.directory} is a run of {task}, of which --inception, --reference, --lpips and '
      '--pairs measure nothing; compare arrays of its pictures by --images'
    )
  if draws and (pictures.lpips or pictures.is_paired):
    raise ConfigError('--lpips and --pairs compare pairs; an image model draws none')
  if rebuilds and pictures.reference and not pictures.weights:
    raise ConfigError('--reference is compared in features: name the FID Inception (--inception)')


def _of_pictures(loaded, samples, pictures, batch, echo) -> dict[str, Any]:
  """`{'rebuilt/metric': value}` or `{'drawn/metric': value}`."""
  network = (
    image_sets.inception_network(pictures.weights, pictures.convention)
    if pictures.weights
    else None
  )
  at, mesh = loaded.directory / 'evaluation', image_sets.mesh_of_all()
  few = dict(few_samples=pictures.few_samples, echo=echo)
  if pictures.reference and samples:
    image_sets.check_enough(samples, network, pictures.few_samples)
  other = (
    image_sets.reference_of(pictures.reference, network, at, mesh=mesh, batch=batch, echo=echo)
    if pictures.reference
    else None
  )
  if samples:
    store = drawn_sets.draw(loaded, samples, network, at, batch=batch, echo=echo)
    own, prefix = image_sets.set_of_store(store), 'drawn'
    out = {'images': samples}
    out['inception_score'] = inception.inception_score(network.params, own.rows)
  else:
    lpips = reconstructions.read_lpips(pictures.lpips)
    options = dict(network=network, lpips=lpips, batch=batch, echo=echo)
    store = reconstructions.measure(loaded, at, **options)
    codes = loaded.num_codes if isinstance(loaded, loading.LoadedTokenizer) else None
    out, prefix = reconstructions.results(store, num_codes=codes, **few), 'rebuilt'
    own = image_sets.set_of_store(store, 'rebuilt_') if other else None
  if other:
    # Of a tokenizer these stand beside its rFID, which has the very originals as reference.
    out |= image_sets.compared(own, other, **few)
  return {f'{prefix}/{name}': value for name, value in out.items()}


def follow(
  directory: str | os.PathLike,
  *,
  every_s: float = 5.0,
  echo: Callable[[str], None] = print,
  overrides: Sequence[str] = (),
  sampler: Mapping[str, Any] | None = None,
  **options: Any,
) -> pathlib.Path:
  """Evaluates each checkpoint of a training run as it comes, from another process than trains it.

  A line of JSON a checkpoint is added to `evaluations.jsonl` in the run's directory. Steps that it
  has are not evaluated again, so a command that was stopped goes on. Nothing of the run is changed;
  a checkpoint that the run deletes before it could be read is passed over, with a line. Returns
  when the last step of the run's config has been evaluated.

  Args:
    directory: the run; it need not hold a checkpoint yet.
    every_s: how often to look for new checkpoints, in seconds.
    echo: is given lines.
    overrides: as of `write`.
    sampler: of `SamplerConfig`.
    **options: batch, samples and pictures, as of `write`.
  """
  directory = pathlib.Path(directory)
  path, functions = directory / 'evaluations.jsonl', None
  done = {int(record['step']) for record in read_followed(path)}
  options = {'batch': 64, 'samples': 0, 'pictures': PictureOptions(), **options}
  passed_over: set[int] = set()
  told = -1
  while True:
    last = loading.read_config(directory)['steps']
    step = _agreed_step(directory, done | passed_over)
    if step < 0:
      newest = max(done | passed_over, default=0)
      if newest >= last:
        echo(f'{directory}: all {last:,} steps are done')
        return path
      if told != newest:
        echo(f'{directory}: waiting for a checkpoint after step {newest:,} of {last:,}')
        told = newest
      time.sleep(every_s)
      continue
    try:
      loaded = loading.load(directory, step=step, overrides=overrides)
    except CheckpointError as error:
      if step in Checkpoints(directory / 'checkpoints').steps():
        echo(f'step {step:,} is passed over: {error}')
      else:
        echo(f'step {step:,} is passed over: the run has deleted it; see checkpoint.keep')
      passed_over.add(step)
      continue
    echo(f'step {step:,} of {last:,}')
    functions = functions or functions_of(loaded)
    given = dict(overrides=overrides, sampler=sampler or {}, functions=functions, echo=echo)
    record = evaluated(loaded, **given, **options)
    if jax.process_index() == 0:
      _add_line(path, json.dumps(record))
    done.add(step)


def _add_line(path: pathlib.Path, line: str) -> None:
  text = path.read_bytes() if path.is_file() else b''
  with open(path, 'a', encoding='utf-8') as file:
    # A line that was cut off stays what it is, and spoils no other.
    file.write(line + '\n' if text.endswith(b'\n') or not text else f'\n{line}\n')


def read_followed(path: str | os.PathLike) -> list[dict[str, Any]]:
  """The records that `follow` wrote; a last line that was cut off is left out."""
  path, out = pathlib.Path(path), []
  if path.is_file():
    for line in path.read_text(encoding='utf-8').splitlines():
      try:
        out.append(json.loads(line))
      except ValueError:
        continue
  return out


def _agreed_step(directory: pathlib.Path, seen: set[int]) -> int:
  """The oldest checkpoint not yet seen, -1 if there is none; the same in all processes."""
  new = [s for s in Checkpoints(directory / 'checkpoints').steps() if s not in seen]
  step = new[0] if new else -1
  if jax.process_count() > 1:
    step = int(multihost_utils.broadcast_one_to_all(np.int32(step)))
  return step
