"""Runs a claim of any kind of study: its stages, its numbers, its verdict, its page.

What a kind of study has of its own (which stages, what its page shows below the numbers) it says in
a `Kind`; a paper's claim says sentence, criteria and arms. Claims about tokenizers, which first
search for the sizes of their controls, have their own way (`two_stage_claim`).
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from jaxmm.report import figures, page
from jaxmm.report.run_page import read_log
from jaxmm.studies import claim_page, stages
from jaxmm.studies.stages import Study, write_json
from jaxmm.studies.verdict import Claim, Measurements, concluded

Echo = Callable[[str], None]


class Stated(Protocol):
  """A paper's claim as its `claim.py` states it.

  Attributes:
    claim: sentence and criteria; metrics are those of the kind's measurements.
    title, subtitle: of the page.
    departures: sentences, each one way in which this is not the paper.
  """

  claim: Claim
  title: str
  subtitle: str
  departures: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Kind:
  """What `run` needs to know of a kind of study; plans have `seeds`.

  Attributes:
    add_stages: `(study, plan)`; adds all stages.
    measurements: `(study, plan) -> {arm: {seed: {metric: value}}}` of a study that has run.
    sections: `(page, study, plan)`; adds what stands between the numbers and the departures.
    intro: `plan -> sentence` above the numbers.
    names: `{metric: as tables call it}`, those that are shown; None shows all.
  """

  add_stages: Callable[[Study, Any], None]
  measurements: Callable[[Study, Any], Measurements]
  sections: Callable[[page.Page, Study, Any], None]
  intro: Callable[[Any], str]
  names: Mapping[str, str] | None = None


def run(
  stated: Stated, kind: Kind, plan: Any, workdir: pathlib.Path, scale: float, echo: Echo
) -> pathlib.Path:
  """Runs what is not done yet; prints and writes the verdict; returns the report's path.

  Args:
    stated: what is claimed.
    kind: of study.
    plan: its settings.
    workdir: the study's directory; gets `verdict.json`, `measurements.json` and `report.html`.
    scale: that steps were multiplied by; below 1 nothing is decided.
    echo: takes the progress lines.
  """
  study = Study(workdir, echo)
  kind.add_stages(study, plan)
  study.run()
  measured = kind.measurements(study, plan)
  write_json(study.directory / 'measurements.json', measured)
  head, rows = claim_page.table(measured, kind.names)
  echo(stages.text_table(head, rows))
  out = page.Page(stated.title, stated.subtitle, claim_page.facts(plan.seeds))
  out.add(*concluded(stated.claim, measured, scale, study.directory, echo))
  out.add_section('The numbers', page.table(head, rows), intro=kind.intro(plan))
  kind.sections(out, study, plan)
  if stated.departures:
    out.add_section('Where this departs from the paper', *stated.departures)
  return out.write(study.directory / 'report.html')


def add_losses(
  out: page.Page, logs: Mapping[str, Any], column: str, y_label: str, intro: str
) -> None:
  """A chart of the training losses, if there are any.

  Args:
    out: the page.
    logs: `{arm: training log}`.
    column: of the logs.
    y_label: what it is.
    intro: sentences above it.
  """
  series = []
  for i, (arm, path) in enumerate(logs.items()):
    columns = read_log(path).columns
    if column in columns:
      series.append(figures.thinned(figures.Series(arm, *columns[column], color=i)))
  if series:
    chart = figures.line_chart(series, x_label='step', y_label=y_label)
    out.add_section('Training losses', chart, intro=intro)
