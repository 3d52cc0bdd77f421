"""A plan in words."""

from __future__ import annotations

from collections.abc import Sequence

from jaxmm.pods.plan import Plan

_GIB = 2**30
_SHOWN = 8


def described(plan: Plan) -> str:
  """All of a plan, for a person."""
  config, memory, e = plan.config, plan.memory, plan.estimate
  machine = plan.topology
  lines = [
    f'{config.task} {config.model.get("size", "")}, {plan.parameters:,} parameters, batch '
    f'{config.batch:,} on {machine} ({machine.num_chips} chips), mesh {mesh_text(plan)}, rules '
    f'{config.rules}, remat {config.model.get("remat", "-")}',
    f'memory a device: {verdict(plan)}',
  ]
  whole = max(memory.total, 1.0)
  for name, size in memory.classes().items():
    if size >= 2**20:
      lines.append(f'  {name:<12} {size / _GIB:7.2f} GiB  {size / whole:5.1%}')
  if e is not None:
    lines += [
      f'model: {plan.model_flops:.3e} FLOPs a step; executed '
      f'{plan.program.flops * len(machine.devices) / plan.model_flops:.2f} times that',
      f'estimate: {e.step * 1e3:.1f} ms a step; products {e.products * 1e3:.1f}, HBM '
      f'{e.traffic * 1e3:.1f}, both {e.core * 1e3:.1f}, links {e.links * 1e3:.1f}, network between '
      f'slices {e.network * 1e3:.1f}',
      f'utilisation {e.utilisation:.1%} of the peak, {e.of_ceiling:.0%} of the arithmetic ceiling '
      f'of {e.ceiling:.1%}; hardware {e.hardware:.1%}',
      f'run: {config.steps:,} steps in {plan.hours:,.1f} hours'
      if plan.hours is not None
      else f'of one batch of the evaluation {plan.evaluation}',
      'collectives of a step, a device:',
    ]
    for (kind, axes), found in list(plan.traffic_by_axis().items())[:_SHOWN]:
      lines.append(
        f'  {kind:<19} {axes:<12} {found["bytes"] / _GIB:9.3f} GiB in {found["times"]:,.0f}, '
        f'{found["seconds"] * 1e3:.2f} ms'
      )
    kernels = ', '.join(f'{n} x{c:g}' for n, c in plan.program.kernels.items())
    lines.append(f'attention kernels: {kernels or "none"}')
    if plan.program.unknown_calls:
      names = ', '.join(f'{n} x{c:g}' for n, c in plan.program.unknown_calls.items())
      lines.append(f'calls that nothing here can count: {names}')
  lines += [f'offender: {line}' for line in plan.offenders]
  lines.append(f'compiled in {plan.seconds:.0f} s with effort {plan.effort}')
  return '\n'.join(lines)


def verdict(plan: Plan) -> str:
  """Whether it fits, or by how much it misses."""
  memory = plan.memory
  sizes = f'{memory.total / _GIB:.2f} of {memory.available / _GIB:.2f} GiB'
  if memory.fits:
    return f'fits, {sizes}, {memory.free / _GIB:.2f} to spare'
  about = '' if memory.is_measured else ' (as the compiler says that refused it)'
  return f'DOES NOT FIT, {sizes}, misses by {-memory.free / _GIB:.2f} GiB{about}'


def mesh_text(plan: Plan) -> str:
  """Sizes of the axes above 1."""
  return ' '.join(f'{n}={s}' for n, s in plan.mesh.items() if s > 1) or 'of one device'


def line(plan: Plan) -> str:
  """One line."""
  config, e = plan.config, plan.estimate
  head = (
    f'{config.rules:<6} {mesh_text(plan):<24} remat {config.model.get("remat", "-"):<6} batch '
    f'{config.batch:<6}'
  )
  if e is None or not plan.memory.fits:
    return f'{head} {verdict(plan)}'
  return (
    f'{head} {plan.memory.total / _GIB:6.2f} GiB  {e.step * 1e3:9.1f} ms  {e.utilisation:6.1%}  '
    f'{plan.hours or 0:,.1f} h  {len(plan.offenders)} offenders'
  )


def compared(made: Sequence[Plan]) -> str:
  """Plans one below the other, the fastest that fits first."""
  rank = lambda p: -p.estimate.utilisation if p.memory.fits else 1.0
  return '\n'.join(['compared:', *('  ' + line(p) for p in sorted(made, key=rank))])
