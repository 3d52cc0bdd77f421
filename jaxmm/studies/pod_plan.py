"""Plans of runs on machines that are not here: which config, which machine, which comparisons."""

from __future__ import annotations

import dataclasses
import itertools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.pods import plan as plans
from jaxmm.pods import text, topology
from jaxmm.pods.plan import Plan
from jaxmm.pods.topology import Topology
from jaxmm.report import pod_page
from jaxmm.studies import run
from jaxmm.train.run_config import RunConfig

Echo = Callable[[str], None]
# Parts that `--search` splits heads and hidden units into.
_TENSOR_PARTS = (1, 2, 4, 8)
_REMATS = ('none', 'dots', 'narrow', 'block')


@dataclasses.dataclass(frozen=True)
class Request:
  """What is asked for.

  Attributes:
    config: the user's config, overrides applied.
    topology, slices: the machine.
    rules: tables to compare; none is the config's own.
    largest: whether to look for the largest batch that fits.
    search: whether to try meshes and remat policies.
    seconds: that `largest` and `search` may take together; a compilation that has begun is let
      finish.
    effort: of the compiler.
    evaluation: the Task's evaluation to plan in place of the step.
    output: a folder for plan.json and plan.html; None writes none.
  """

  config: Mapping[str, Any]
  topology: str
  slices: int = 1
  rules: tuple[str, ...] = ()
  largest: bool = False
  search: bool = False
  seconds: float = 600.0
  effort: str = 'quick'
  evaluation: str | None = None
  output: str | None = None


def make(request: Request, echo: Echo = print) -> list[Plan]:
  """All plans of a request, the config's own first; says and writes what was found.

  Raises:
    ConfigError: see `pods.topology.described` and `pods.ahead.compiled_step`.
  """
  machine = topology.described(request.topology, request.slices)
  start = time.monotonic()
  is_over = lambda: time.monotonic() - start > request.seconds
  made: list[Plan] = []

  def planned(settings: Mapping[str, Any]) -> Plan:
    settings = configs.plain(settings)
    config = configs.from_mapping(RunConfig, settings, 'the config')
    return plans.planned(
      config,
      run.make_task(settings),
      machine,
      effort=request.effort,
      evaluation=request.evaluation,
    )

  for settings in _by_rules(request, machine):
    made.append(planned(settings))
    echo(text.described(made[-1]))
  own = configs.plain(_by_rules(request, machine)[0])
  extra: dict[str, Any] = {}
  if request.largest:
    extra['largest'] = _largest(own, made[0], planned, is_over, echo)
  if request.search:
    made += _searched(own, made[0], machine, planned, is_over, echo)
  if len(made) > 1:
    echo(text.compared(made))
  if request.output:
    _write(pathlib.Path(request.output), made, extra, echo)
  return made


def _by_rules(request: Request, machine: Topology) -> list[dict[str, Any]]:
  """The config once for every rule table; a table of another kind gets the mesh that is usual."""
  own = configs.plain(request.config)
  out = []
  for name in request.rules or (own.get('rules', 'dp'),):
    sharding.rules_named(name)
    if name == own.get('rules', 'dp'):
      out.append(_over_slices(own, machine.slices))
      continue
    mesh = {
      'dp': dict(data=-1, fsdp=1, tensor=1),
      'fsdp': dict(data=machine.slices, fsdp=-1, tensor=1),
      'tensor': dict(data=machine.slices, fsdp=-1, tensor=4),
    }[name]
    out.append(own | dict(rules=name, mesh=mesh))
  return out


def _over_slices(settings: dict[str, Any], slices: int) -> dict[str, Any]:
  """Weights are split within a slice and repeated in each, unless the config says otherwise."""
  mesh = settings.get('mesh') or {}
  if slices > 1 and mesh.get('data') == 1:
    return settings | dict(mesh=dict(mesh, data=slices))
  return settings


def _largest(own, first: Plan, planned, is_over, echo: Echo) -> int:
  parts = first.mesh[sharding.MESH_AXES[0]] * first.mesh[sharding.MESH_AXES[1]]
  unit = parts * first.config.microbatches
  found, tried = plans.largest_batch(
    lambda batch: planned(own | dict(batch=batch)), unit, first.config.batch, is_over
  )
  said = ', '.join(f'{batch:,} {"fits" if fits else "does not"}' for batch, fits in tried)
  echo(f'largest batch that fits: {found:,} (tried {said})')
  return found


def _searched(own, first: Plan, machine: Topology, planned, is_over, echo: Echo) -> list[Plan]:
  """Other meshes and remat policies, likeliest first, until the time is up."""
  made, left = [], 0
  for settings in candidates(own, machine):
    if is_over():
      left += 1
      continue
    try:
      made.append(planned(settings))
    except ConfigError as error:  # a mesh that does not divide rows or heads
      echo(f'not tried: {error}')
      continue
    echo(text.line(made[-1]))
  if left:
    echo(f'{left} candidates were not tried for want of time; raise --seconds')
  best = max([first, *made], key=lambda p: p.estimate.utilisation if p.memory.fits else -1.0)
  echo(
    'best that was tried: ' + text.line(best) if best.memory.fits else 'none that was tried fits'
  )
  return made


def candidates(own: Mapping[str, Any], machine: Topology) -> list[dict[str, Any]]:
  """Configs with other meshes and remat policies, those without the config's own first pair."""
  devices, slices = len(machine.devices), machine.slices
  within = devices // slices
  meshes = [('dp', dict(data=devices, fsdp=1, tensor=1))]
  meshes += [('fsdp', dict(data=slices, fsdp=within, tensor=1))]
  meshes += [
    ('fsdp', dict(data=slices * parts, fsdp=within // parts, tensor=1))
    for parts in (4, 16)
    if within % parts == 0 and within > parts
  ]
  meshes += [
    ('tensor', dict(data=slices, fsdp=within // parts, tensor=parts))
    for parts in _TENSOR_PARTS[1:]
    if within % parts == 0
  ]
  model = configs.plain(own['model'])
  remats = [r for r in _REMATS if 'remat' in model]
  out = []
  for remat, (rules, mesh) in itertools.product(remats or [None], meshes):
    changed = dict(model, remat=remat) if remat else model
    if (changed, rules, mesh) != (model, own.get('rules'), own.get('mesh')):
      out.append(dict(own) | dict(model=changed, rules=rules, mesh=mesh))
  return out


def _write(folder: pathlib.Path, made: Sequence[Plan], extra: Mapping[str, Any], echo: Echo):
  folder.mkdir(parents=True, exist_ok=True)
  found = dict(plans=[p.as_json() for p in made], **extra)
  (folder / 'plan.json').write_text(json.dumps(found, indent=1) + '\n')
  echo(str(pod_page.write_pod_page(folder / 'plan.json', folder / 'plan.html')))
