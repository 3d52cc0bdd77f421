"""The console command `jaxmm`: verbs only, each one call into a room."""

from __future__ import annotations

import argparse
import errno
import os
import pathlib
import re
import sys
from collections.abc import Sequence

import jaxmm
from jaxmm import cli_evaluate, cli_plan, cli_sample
from jaxmm.cli_curate import several, training
from jaxmm.config import ConfigError, RunError
from jaxmm.train import watch
from jaxmm.train.memory import keep_freed_memory

# A disk that is full, over its quota or read-only.
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
_RESUMES = ('quickstart', 'train', 'tokenize', 'evaluate', 'reproduce', 'curate')
_INTERRUPTED = 130  # what a shell reports for a command ended by ctrl-C


def main(argv: Sequence[str] | None = None) -> int:
  """Runs one verb; returns the exit status (0 done, 1 failed, 2 bad usage or bad setting)."""
  if hasattr(sys.stdout, 'reconfigure'):
    sys.stdout.reconfigure(line_buffering=True)  # progress shows at once in a log file, too
  args, rest = _split_overrides(list(sys.argv[1:] if argv is None else argv))
  parser = _parser()
  options = parser.parse_args(args)
  if rest and not getattr(options, 'takes_overrides', False):
    parser.error(f'{_name(options)} takes no --config.* settings, got {" ".join(rest)}')
  options.overrides = rest
  # The command itself, not a call from another program. Batches of many lengths, as a text encoder
  # gets, do not fit the holes of those before: kept, they took three times the memory.
  if argv is None and _name(options) != 'curate embed':
    keep_freed_memory()
  try:
    return options.run(options) or 0
  except (ConfigError, RunError, OSError) as error:
    if isinstance(error, OSError) and not _is_the_users(error):
      raise
    if not isinstance(error, ConfigError):
      watch.wait_for_news()
    said = f'jaxmm {_name(options)}: {_described(error, options)}'
    print(said, file=sys.stderr)
    status = 2 if isinstance(error, ConfigError) or _names_a_file(error) else 1
    watch.fail(status, said)
    return status
  except KeyboardInterrupt:
    on = 'to go on' if options.verb in _RESUMES else 'to do it from the beginning'
    print(f'\njaxmm {_name(options)}: interrupted; run the same command again {on}', flush=True)
    watch.fail(_INTERRUPTED, 'interrupted')
    return _INTERRUPTED


def _name(options: argparse.Namespace) -> str:
  # `--method` of other verbs is a setting.
  method = getattr(options, 'method', None) if options.verb == 'curate' else None
  return ' '.join(filter(None, [options.verb, method]))


def _is_the_users(error: OSError) -> bool:
  """Whether it is about a file that the user named, or the disk, rather than a bug."""
  return _names_a_file(error) or error.errno in _FULL


def _names_a_file(error: Exception) -> bool:
  kinds = (
    FileNotFoundError, FileExistsError, PermissionError, NotADirectoryError, IsADirectoryError,
  )  # fmt: skip
  return isinstance(error, kinds)


def _described(error: Exception, options: argparse.Namespace) -> str:
  # Which stage of a study it was, what is left; others' notes are about tracebacks.
  ours = ('in stage ', 'what was done ')
  notes = [n for n in getattr(error, '__notes__', ()) if n.startswith(ours)]
  flags = _flags_of(str(error), options) if isinstance(error, ConfigError) else []
  if isinstance(error, OSError) and error.errno in _FULL:
    # A failed write does not say where.
    names = ('workdir', 'output', 'model', 'run_dir')
    where = next((str(v) for n in names if (v := getattr(options, n, None))), '.')
    notes.append(f'while writing for {where}; make room and run the same command again to go on')
  said = f'{error} ({", ".join(flags)})' if flags else str(error)
  return '\n  '.join([said, *notes])


def _flags_of(message: str, options: argparse.Namespace) -> list[str]:
  """Flags of the settings that a message calls by the names that a program has for them."""
  no_flags = ('verb', 'method', 'run', 'model', 'overrides', 'takes_overrides', 'flags', 'unset')
  names = [name for name in vars(options) if name not in no_flags]
  flags = {name: '--' + name.replace('_', '-') for name in names}
  flags |= getattr(options, 'flags', {})
  found = {}
  for name, flag in flags.items():
    # A word such as `keep` is a setting only where its value follows, or it is to be changed.
    after = r'(?![\w.])' if '_' in name else r'(?= is | \d| \'|, and )'
    named = rf'(?<![\w.-]){re.escape(name)}{after}|(?<=raise |lower ){re.escape(name)}\b'
    place = re.search(named, message)
    if place and not re.search(rf'{flag}(?![\w-])', message):
      found[flag] = place.start()
  return sorted(found, key=found.get)


def _split_overrides(argv: list[str]) -> tuple[list[str], list[str]]:
  """`--config.key=value` and `--config.key value` apart from the rest."""
  args, overrides = [], []
  words = iter(argv)
  for word in words:
    if not word.startswith('--config.'):
      args.append(word)
      continue
    setting = word.removeprefix('--config.')
    overrides.append(setting if '=' in setting else f'{setting}={next(words, "")}')
  return args, overrides


def _parser() -> argparse.ArgumentParser:
  parser = argparse.ArgumentParser(
    prog='jaxmm', description='Multimodal generative modelling and data curation in JAX.'
  )
  parser.add_argument('--version', action='version', version=f'jaxmm {jaxmm.__version__}')
  verbs = parser.add_subparsers(dest='verb', required=True, metavar='VERB')
  for add in (
    _add_quickstart, _add_train, _add_latent_scale, _add_tokenize, _add_reconstruct, _add_sample,
    _add_evaluate, _add_reproduce, _add_convert, _add_report, _add_plan, _add_curate,
  ):  # fmt: skip
    add(verbs)
  return parser


def _verb(verbs, name: str, run, what: str, example: str, setting: str = ''):
  """A verb's parser; `setting` is an example of the `--config.*` settings that it takes, if any."""
  settings = (
    f'\n\n--config.KEY=VALUE changes a setting, such as --config.{setting}; VALUE may be\n'
    'None where there can be none. A key that does not exist names its nearest neighbours.'
  )
  parser = verbs.add_parser(
    name,
    help=what,
    description=what + settings * bool(setting),
    epilog=f'example:\n  {example}',
    formatter_class=argparse.RawDescriptionHelpFormatter,
  )
  parser.set_defaults(run=run, takes_overrides=bool(setting))
  return parser


def _add_quickstart(verbs):
  p = _verb(
    verbs, 'quickstart', _quickstart,
    'Trains a tokenizer without and with causal regularization on MNIST, the same image model on\n'
    'both, samples, and writes DIR/report.html.',
    'jaxmm quickstart --workdir runs/quickstart',
  )  # fmt: skip
  p.add_argument('--workdir', metavar='DIR', default='runs/quickstart', help='default: %(default)s')
  p.add_argument('--seed', type=int, default=0, help='default: %(default)s')


def _quickstart(options) -> int:
  from jaxmm.studies import quickstart

  page = quickstart.run(pathlib.Path(options.workdir), seed=options.seed)
  print(f'\nreport: {page}')
  return 0


def _add_train(verbs):
  p = _verb(
    verbs, 'train', _train,
    'Trains what a config describes; run again it resumes from the newest good checkpoint.',
    'jaxmm train --config experiments/crt/mini.py --config.steps=100 --workdir runs/mini\n'
    '  jaxmm train --config experiments/crt/mini.py --workdir runs/mini \\\n'
    '    --coordinator localhost:1234 --process-count 2 --process-id 0  # and the same with 1',
    setting='model.regularizer.weight=0.5',
  )  # fmt: skip
  training.add_options(p)
  several.add_options(p, 'the data and the workdir')


def _train(options) -> int:
  several.join(options)
  return training.train(options, options.overrides)


def _add_tokenize(verbs):
  p = _verb(
    verbs, 'tokenize', _tokenize,
    'Writes the codes (or scaled latents) of a data set as a store, which image models train on.',
    'jaxmm tokenize --run runs/mini --split train --output runs/mini-tokens/train',
    setting='data.path=FOLDER',
  )  # fmt: skip
  p.add_argument('--run', dest='model', required=True, metavar='DIR', help='a tokenizer run')
  p.add_argument(
    '--output',
    required=True,
    metavar='DIR',
    help='the store; an image model looks for STORES/SPLIT',
  )
  p.add_argument('--split', default='train', help="split of the run's data (default: %(default)s)")
  p.add_argument(
    '--views',
    default='one',
    choices=['one', 'flip', 'ten'],
    help="one view an image, also its mirror image, or LlamaGen's ten crops (default: one)",
  )
  p.add_argument('--batch', type=int, default=64, help='images a step (default: %(default)s)')
  p.add_argument(
    '--dtype', choices=['float32', 'float16'], help='of latents, not of codes; default: float32'
  )


def _tokenize(options) -> int:
  from jaxmm.studies import tokens

  tokens.write(
    options.model,
    options.output,
    split=options.split,
    views=options.views,
    batch=options.batch,
    dtype=options.dtype,
    overrides=options.overrides,
  )
  return 0


def _add_latent_scale(verbs):
  p = _verb(
    verbs, 'latent-scale', _latent_scale,
    'Measures what gives an autoencoder\'s latents unit variance; kept with the run.',
    'jaxmm latent-scale --run runs/vae',
    setting='data.path=FOLDER',
  )  # fmt: skip
  p.add_argument('--run', dest='model', required=True, metavar='DIR', help='an autoencoder run')
  p.add_argument('--split', default='train', help="split of the run's data (default: %(default)s)")
  p.add_argument('--per-channel', action='store_true', help='each channel by its own numbers')
  p.add_argument('--center', action='store_true', help='subtract the mean, too')
  p.add_argument('--batch', type=int, default=64, help='images a step (default: %(default)s)')
  p.add_argument(
    '--replace', action='store_true', help='in place of another scale that the run has already'
  )


def _latent_scale(options) -> int:
  from jaxmm.studies import latents

  latents.measure(
    options.model,
    split=options.split,
    per_channel=options.per_channel,
    center=options.center,
    batch=options.batch,
    overrides=options.overrides,
    replace=options.replace,
  )
  return 0


def _add_reconstruct(verbs):
  p = _verb(
    verbs, 'reconstruct', _reconstruct,
    'Writes a picture of originals beside a tokenizer\'s reconstructions.',
    'jaxmm reconstruct --run runs/mini --num 16 --output reconstructions.png',
  )  # fmt: skip
  p.add_argument('--run', dest='model', required=True, metavar='DIR', help='a tokenizer run')
  p.add_argument('--images', nargs='+', metavar='FILE', help="default: the run's evaluation data")
  p.add_argument('--num', type=int, default=16, help='how many (default: %(default)s)')
  p.add_argument('--output', required=True, metavar='FILE.png')


def _reconstruct(options) -> int:
  from jaxmm.studies import pictures

  print(pictures.reconstruct(options.model, options.output, num=options.num, files=options.images))
  return 0


def _add_sample(verbs):
  p = _verb(
    verbs, 'sample', cli_sample.run,
    'Samples images from an image model and writes them as a grid (and as an array); goes on '
    'writing from a prompt with a model of text or bytes. With a model of both, --prompt draws '
    'what it says, --image is described, and both together change the picture.',
    'jaxmm sample --run runs/mini-lm --num 64 --guidance 2.0 --output samples.png\n  '
    'jaxmm sample --run runs/bytes --prompt "Once upon a time" --length 400\n  '
    'jaxmm sample --run runs/transfusion --prompt "a frog" --guidance 3 --output frog.png\n  '
    'jaxmm sample --run runs/transfusion --image frog.png\n  '
    'jaxmm sample --run runs/transfusion --image frog.png --prompt "make it blue" --output b.png',
  )  # fmt: skip
  cli_sample.add_options(p)


def _add_evaluate(verbs):
  p = _verb(
    verbs, 'evaluate', cli_evaluate.run,
    'Runs a model\'s evaluations over its evaluation data; prints and writes evaluation.json.\n'
    'Also of pictures that it rebuilds or draws, with the FID Inception; of sets of pictures\n'
    'without a model, of a classifier, of embeddings. Stopped, it goes on where it was.',
    cli_evaluate.EXAMPLES,
    setting='eval_data.max_records=1000',
  )  # fmt: skip
  cli_evaluate.add_options(p)


def _add_reproduce(verbs):
  p = _verb(
    verbs, 'reproduce', _reproduce,
    'Re-runs a paper\'s central claim in miniature and prints the verdict as it came out.',
    'jaxmm reproduce crt --workdir runs/reproduce-crt --data-path cifar10.zip',
  )  # fmt: skip
  p.add_argument('paper', help='paper id, for example crt')
  p.add_argument('--workdir', help='default: runs/reproduce-PAPER')
  p.add_argument(
    '--data-path',
    metavar='PATH',
    help="the claim's data, as experiments/PAPER/README.md says: pictures train/CLASS/*, "
    'test/CLASS/* (crt, dbp), a folder with pool* and held_out/* (texts), one with '
    'books/{train,test}/* and pictures.zip (megabyte, transfusion); default: from TFDS, or '
    'the standard library of Python (scip, long_files)',
  )
  p.add_argument('--seeds', type=int, nargs='+', help='default: those of the claim')
  p.add_argument('--scale', type=float, default=1.0, help='scale all step counts (to try it out)')


def _reproduce(options) -> int:
  from jaxmm.studies import reproduce

  page = reproduce.run(
    options.paper,
    pathlib.Path(options.workdir or f'runs/reproduce-{options.paper}'),
    data_path=options.data_path,
    seeds=options.seeds,
    scale=options.scale,
  )
  print(f'\nreport: {page}')
  return 0


def _add_convert(verbs):
  p = _verb(
    verbs, 'convert', _convert,
    'Turns a public checkpoint into a run directory, or a run into the public layout.',
    'jaxmm convert --format llamagen-vq --preset VQ-16 --input vq_ds16_c2i.pt --output runs/vq16\n'
    '  jaxmm convert --format llamagen-gpt --input runs/lm --output lm.safetensors\n'
    '  jaxmm convert --format taef2 --input taef2 --output runs/taef2',
  )  # fmt: skip
  p.add_argument('--format', required=True, choices=['llamagen-vq', 'llamagen-gpt', 'taef2'])
  p.add_argument('--preset', help='VQ-16, VQ-8; B, L, XL, XXL, 3B')
  p.add_argument('--image-size', type=int, default=256, help='default: %(default)s')
  p.add_argument(
    '--input',
    required=True,
    help='a .safetensors, .npz or .pt file (taef2: the folder of both), or a run',
  )
  p.add_argument(
    '--output',
    required=True,
    help="a run directory, or a .safetensors, .npz or .pt file (.pt needs the extra 'torch')",
  )
  p.add_argument(
    '--ema',
    action=argparse.BooleanOptionalAction,
    help='the averaged weights, or those as trained; default: the average where there is one',
  )


def _convert(options) -> int:
  from jaxmm.studies import convert

  weights = {None: 'auto', True: 'ema', False: 'params'}[options.ema]
  print(
    convert.run(
      options.format,
      options.input,
      options.output,
      preset=options.preset,
      image_size=options.image_size,
      weights=weights,
    )
  )
  return 0


def _add_report(verbs):
  p = _verb(
    verbs, 'report', _report,
    'Writes one self-contained HTML page about a run: loss curves, evaluations, config.',
    'jaxmm report runs/mini',
  )  # fmt: skip
  p.add_argument('run_dir', metavar='DIR', help='the run')
  p.add_argument('--output', metavar='FILE.html', help='default: DIR/report.html')


def _report(options) -> int:
  from jaxmm.report import run_page

  output = options.output or os.path.join(options.run_dir, 'report.html')
  print(run_page.write_run_page(options.run_dir, output))
  return 0


def _add_plan(verbs):
  p = _verb(
    verbs, 'plan', cli_plan.run,
    'Compiles the training step for TPUs that are not here (needs the extra pods) and says\n'
    'whether it fits, what it communicates and how fast it would be.',
    'jaxmm plan --config experiments/crt/imagenet256.py:XL --topology v5e:16x16\n'
    '  jaxmm plan --config experiments/crt/imagenet256.py:3B --topology v5p:4x4x4 --slices 2 \\\n'
    '    --rules fsdp tensor --largest-batch --output plans/3B',
    setting='batch=2048',
  )  # fmt: skip
  cli_plan.add_options(p)


def _add_curate(verbs):
  from jaxmm.cli_curate import verbs as curate

  curate.add(verbs, _verb)


if __name__ == '__main__':
  sys.exit(main())
