"""`jaxmm curate apply`: trains any config on the examples that a keep-list keeps."""

from __future__ import annotations

from jaxmm.cli_curate import training
from jaxmm.config import ConfigError

_SETTING = 'data.keep_list'


def add(methods, verb) -> None:
  """Adds the verb to those of `jaxmm curate`; `verb` is the command's own helper."""
  p = verb(
    methods, 'apply', _apply,
    'Trains what a config describes on the examples that a keep-list keeps; run again it resumes.\n'
    f'The same as `jaxmm train --config.{_SETTING}=KEEP.parquet`, which also trains in several\n'
    'processes. The list is of what data.path names; held-out data is never pruned.',
    'jaxmm curate apply keep.parquet --config experiments/lm/mini.py --workdir runs/kept \\\n'
    '    --config.data.path=corpus.jsonl.gz --config.data.id_field=id',
    setting='data.path=corpus.jsonl.gz',
  )  # fmt: skip
  p.add_argument('keep', metavar='KEEP.parquet', help='the keep-list')
  training.add_options(p)


def _apply(options) -> int:
  for assignment in options.overrides:
    if assignment.partition('=')[0] == _SETTING:
      raise ConfigError(f'--config.{assignment}: the keep-list is {options.keep!r} already')
  return training.train(options, [*options.overrides, f'{_SETTING}={options.keep}'])
