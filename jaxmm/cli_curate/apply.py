"""`jaxmm curate apply`: trains any config on the examples that a keep-list keeps."""

from __future__ import annotations

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
  p.add_argument('keep', metavar='KEEP.parquet')
  p.add_argument(
    '--config', required=True, metavar='FILE.py[:ARG]', help='what to train; ARG picks a variant'
  )
  p.add_argument('--workdir', required=True, metavar='DIR', help='the run, made if it is not there')
  p.add_argument('--init-from', metavar='RUN', help='start from the parameters of another run')
  p.add_argument(
    '--accept-config-change',
    action='store_true',
    help='resume although the config differs from the one the run began with',
  )
  p.add_argument('--stop-after', type=int, metavar='STEP', help='save and leave at this step')


def _apply(options) -> int:
  from jaxmm import config as configs
  from jaxmm.studies import run

  for assignment in options.overrides:
    if assignment.partition('=')[0] == _SETTING:
      raise ConfigError(f'--config.{assignment}: the keep-list is {options.keep!r} already')
  overrides = [*options.overrides, f'{_SETTING}={options.keep}']
  run.train_from_config(
    run.with_settings(configs.load_config(options.config), overrides),
    options.workdir,
    init_from=options.init_from,
    accept_config_change=options.accept_config_change,
    stop_after=options.stop_after,
  )
  return 0
