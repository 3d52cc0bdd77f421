"""The verbs of `jaxmm curate`, joined."""

from __future__ import annotations

from collections.abc import Callable

from jaxmm.cli_curate import (
  apply,
  code,
  embed,
  lists,
  minhash,
  options,
  quality,
  several,
  vectors,
)

# Flags of settings that a program calls otherwise.
_FLAGS = {
  'batch_size': '--batch',
  'counter': '--tokens',
  'inputs': '--input',
  'keep_fraction': '--keep',
  'prune_fraction': '--prune',
  'shingles.kind': '--shingle',
  'shingles.size': '--shingle-size',
  'suffixes': '--suffix',
}


def add(verbs, verb) -> None:
  """Adds `curate` and its verbs to the command's parser; `verb` is the command's own helper."""
  p = verb(
    verbs, 'curate', None,
    'Says which examples of a corpus are worth keeping, and why the others are not.',
    'jaxmm curate minhash --input corpus/*.jsonl.gz --id-field id --output keep.parquet',
  )  # fmt: skip
  methods = p.add_subparsers(dest='method', required=True, metavar='METHOD')
  for of in (minhash, quality, embed, vectors, code, lists, apply):
    of.add(methods, verb)
  for of_method in methods.choices.values():
    of_method.set_defaults(run=_careful(of_method.get_default('run')), flags=_FLAGS)


def _careful(run: Callable) -> Callable:
  def checked(given) -> int:
    with several.joined(given):
      options.check_output(given)
      with options.tidied(given):
        return run(given)

  return checked
