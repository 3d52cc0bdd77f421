"""Joins the processes of one run, before anything else uses a device."""

from __future__ import annotations

import jax

from jaxmm.config import ConfigError, RunError
from jaxmm.train import watch


def join(
  coordinator: str | None = None,
  process_id: int | None = None,
  process_count: int | None = None,
  *,
  is_found: bool = False,
  resume: str = 'run the same command again',
) -> None:
  """Makes this process one of several; does nothing where no argument is given.

  From then on the loss of one process ends the others (`train.watch`).

  Args:
    coordinator: HOST:PORT where process 0 listens, the same for all.
    process_id: of this process, from 0.
    process_count: how many there are.
    is_found: all three are jax's to find (TPU pods, SLURM, Open MPI, Kubernetes).
    resume: what the last line says to do when another process was lost.

  Raises:
    ConfigError: some of the three without the others, or values that cannot be.
    RunError: the processes did not find each other.
  """
  flags = {
    '--coordinator': coordinator,
    '--process-id': process_id,
    '--process-count': process_count,
  }
  given = [name for name, value in flags.items() if value is not None]
  missing = [name for name in flags if name not in given]
  if is_found and given:
    raise ConfigError(
      f'--distributed lets jax find the processes, but {", ".join(given)} is given; leave one out'
    )
  if is_found:
    _initialize(
      {}, 'found no cluster; name --coordinator, --process-id and --process-count instead'
    )
    return watch.start(resume)
  if not given:
    return None
  if missing:
    raise ConfigError(
      f'{", ".join(given)} is given without {", ".join(missing)}; a run of several processes needs '
      'all three in each of them (or --distributed alone on TPU pods and under SLURM)'
    )
  host, _, port = coordinator.rpartition(':')
  if not (host and port.isdigit()):
    raise ConfigError(f'--coordinator is {coordinator!r}, expected HOST:PORT such as node0:1234')
  if process_count < 1 or not 0 <= process_id < process_count:
    raise ConfigError(
      f'--process-id is {process_id} and --process-count {process_count}, expected ids from 0 to '
      'count - 1'
    )
  arguments = dict(
    coordinator_address=coordinator, num_processes=process_count, process_id=process_id
  )
  _initialize(arguments, f'could not join the {process_count} processes at {coordinator}')
  return watch.start(resume, host.strip('[]'))


def _initialize(arguments: dict[str, str | int], failure: str) -> None:
  try:
    jax.distributed.initialize(**arguments)
  except (ValueError, RuntimeError) as error:
    raise RunError(f'jax {failure} ({error})') from error
