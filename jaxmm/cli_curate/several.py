"""Several processes of one command: options, how they find each other, and who speaks."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Iterator


def add_options(p: argparse.ArgumentParser, shared: str) -> None:
  """The options of a command that several processes run together; `shared` is what all see."""
  of = p.add_argument_group(
    'several processes',
    f'the same command in each, on one machine or many; every one sees {shared}',
  )
  of.add_argument(
    '--coordinator',
    metavar='HOST:PORT',
    help='where process 0 listens; default: none, one process runs',
  )
  of.add_argument(
    '--process-id', type=int, metavar='I', help='of this process, from 0; default: none'
  )
  of.add_argument(
    '--process-count', type=int, metavar='N', help='how many there are; default: none'
  )
  of.add_argument(
    '--distributed', action='store_true', help='find all three: on TPU pods and under SLURM'
  )


def join(options: argparse.Namespace) -> None:
  """Makes this process one of several, if its options say so; before anything uses a device."""
  from jaxmm.train import processes

  place = getattr(options, 'workdir', None)
  processes.join(
    options.coordinator,
    options.process_id,
    options.process_count,
    is_found=options.distributed,
    resume='run the same command again, in as many processes as there are now: it goes on from '
    + (f'the newest checkpoint in {place}' if place else 'where it was'),
  )


@contextlib.contextmanager
def joined(options: argparse.Namespace) -> Iterator[None]:
  """`join`, and of several processes only the first prints; nothing where there are no such
  options."""
  if not hasattr(options, 'coordinator'):
    yield
    return
  join(options)
  import jax

  if jax.process_index() == 0:
    yield
  else:
    with contextlib.redirect_stdout(io.StringIO()):
      yield
