"""The page of a plan: reads `plan.json`, writes one self-contained HTML file."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxmm.report import page as pages
from jaxmm.report.markup import Html

_GIB = 2**30


def write_pod_page(source: str | os.PathLike, output: str | os.PathLike) -> pathlib.Path:
  """Writes the page of the plans in `source` (`jaxmm plan --output`)."""
  found = json.loads(pathlib.Path(source).read_text())
  first = found['plans'][0]
  page = pages.Page(
    f'{first["task"].rpartition(".")[2]} on {first["topology"]}',
    'Compiled ahead of time; an estimate, not a measurement',
    {
      'parameters': first['parameters'], 'chips': first['chips'], 'batch': first['batch'],
      'jax': first['versions']['jax'], 'libtpu': first['versions']['libtpu'],
    },
  )  # fmt: skip
  page.add(_verdict(first))
  if 'largest' in found:
    page.add(f'Largest batch that fits: {found["largest"]:,} rows.')
  if len(found['plans']) > 1:
    page.add_section('Compared', _comparison(found['plans']), intro='Every plan that was made.')
  for plan in found['plans']:
    _add_plan(page, plan)
  page.add_section(
    'Assumptions',
    pages.facts_table(first['assumptions']),
    pages.facts_table(first['chip']),
    intro='Shares of the published figures that a program reaches, set on published runs.',
  )
  return page.write(output)


def _verdict(plan: Mapping[str, Any]) -> Html:
  memory = plan['memory']
  free = (memory['available'] - memory['total']) / _GIB
  if not memory['fits']:
    return pages.verdict_box('does not fit', 'fails', f'It misses by {-free:.2f} GiB a device.')
  e = plan['estimate']
  return pages.verdict_box(
    'fits',
    'holds',
    f'{free:.2f} GiB a device to spare. A step is estimated at {e["step"] * 1e3:.1f} ms, '
    f'{e["utilisation"]:.1%} of the peak, {e["of_ceiling"]:.0%} of the arithmetic ceiling'
    + (f'; {plan["steps"]:,} steps take {plan["hours"]:,.1f} hours.' if plan['hours'] else '.'),
  )


def _title(plan: Mapping[str, Any]) -> str:
  mesh = ' '.join(f'{n}={s}' for n, s in plan['mesh'].items() if s > 1) or 'one device'
  return f'{plan["rules"]}, {mesh}, remat {plan["model"].get("remat", "-")}, batch {plan["batch"]}'


def _comparison(plans) -> Html:
  rows = []
  for plan in plans:
    e = plan['estimate'] or {}
    share = e.get('utilisation')
    rows.append([
      _title(plan), 'fits' if plan['memory']['fits'] else 'does not fit',
      plan['memory']['total'] / _GIB, e['step'] * 1e3 if e else None,
      share * 100 if share is not None else None, plan['hours'], len(plan['offenders']),
    ])  # fmt: skip
  head = ['plan', 'memory', 'GiB a device', 'ms a step', 'utilisation %', 'hours', 'offenders']
  return pages.table(head, rows)


def _add_plan(page: pages.Page, plan: Mapping[str, Any]) -> None:
  memory = plan['memory']
  kept = ('total', 'available', 'fits', 'is_measured')
  rows = [[name, size / _GIB] for name, size in memory.items() if name not in kept]
  rows += [['total', memory['total'] / _GIB], ['available', memory['available'] / _GIB]]
  blocks = [pages.subheading('Memory a device'), pages.table(['class', 'GiB'], rows)]
  if plan['estimate']:
    times = ('products', 'traffic', 'core', 'links', 'network', 'step')
    shares = ('utilisation', 'hardware', 'ceiling', 'of_ceiling')
    e = plan['estimate']
    blocks += [
      pages.subheading('Time of a step'),
      pages.table(['part', 'ms'], [[n, e[n] * 1e3] for n in times]),
      pages.table(['share', '%'], [[n, e[n] * 100] for n in shares]),
      pages.subheading('Collectives of a step, a device'),
      pages.table(
        ['kind', 'mesh axes', 'GiB', 'executions', 'ms'],
        [
          [c['kind'], c['axes'], c['bytes'] / _GIB, c['times'], c['seconds'] * 1e3]
          for c in plan['collectives']
        ],
      ),
      pages.subheading('Attention kernels'),
      pages.facts_table(plan['kernels'] or {'none': ''}),
    ]
  blocks.append(pages.subheading('Offenders'))
  blocks += plan['offenders'] or ['None.']
  blocks.append(pages.settings(plan['model'], 'Model'))
  page.add_section(_title(plan), *blocks)
