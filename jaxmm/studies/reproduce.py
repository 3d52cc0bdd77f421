"""`jaxmm reproduce PAPER`: runs the claim that a paper's `experiments/PAPER/claim.py` states."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable, Sequence

from jaxmm.config import ConfigError


def papers() -> dict[str, pathlib.Path]:
  """The papers that have a claim, and its file."""
  spec = importlib.util.find_spec('jaxmm.experiments')
  found = {}
  for root in (spec.submodule_search_locations or []) if spec else []:
    for path in sorted(pathlib.Path(root).glob('*/claim.py')):
      found.setdefault(path.parent.name, path)
  return found


def run(
  paper: str,
  workdir: pathlib.Path,
  *,
  data_path: str | None = None,
  seeds: Sequence[int] | None = None,
  scale: float = 1.0,
  echo: Callable[[str], None] = print,
) -> pathlib.Path:
  """Runs what is not done yet of a claim's study; prints its verdict; returns the report's path.

  Args:
    paper: its id.
    workdir: the study's directory.
    data_path: where the data is, if it is not to come from TFDS.
    seeds: instead of the claim's own.
    scale: multiplies all step counts; below 1 nothing is decided, it only shows that all runs.

  Raises:
    ConfigError: a paper without a claim.
  """
  known = papers()
  if paper not in known:
    raise ConfigError(f'there is no claim of {paper!r}; there are {", ".join(known) or "none"}')
  spec = importlib.util.spec_from_file_location(f'jaxmm_claim_{paper}', known[paper])
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.run(workdir, data_path=data_path, seeds=seeds, scale=scale, echo=echo)
