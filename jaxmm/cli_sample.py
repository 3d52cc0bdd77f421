"""The verb `sample`: images, texts, or the one from the other, as the run's model can."""

from __future__ import annotations

import sys
from typing import Any

from jaxmm.config import ConfigError

_OF_TOKENS = ('temperature', 'top_k', 'top_p', 'greedy')
# Options that some kinds of models have a use for.
_OF_SOME = (
  'image', 'steps', 'method', 'guidance', 'guidance_interval', 'length', 'tokenizer', 'num',
  'labels', 'array', 'interleave', *_OF_TOKENS,
)  # fmt: skip


def add_options(p) -> None:
  """The options of the verb."""
  p.add_argument('--run', dest='model', required=True, metavar='DIR', help='a run of such a model')
  p.add_argument(
    '--prompt',
    nargs='+',
    metavar='TEXT',
    help='what it goes on from, or what it is to draw; with --image, what is to become of those',
  )
  p.add_argument(
    '--image',
    nargs='+',
    metavar='FILE',
    help='pictures that a model of text and images describes, or changes as a --prompt says',
  )
  add_sampler_options(p)
  p.add_argument(
    '--length',
    type=int,
    metavar='N',
    help='new bytes or tokens of text (default: 256), or of what is said of an image (64)',
  )
  p.add_argument(
    '--tokenizer', metavar='DIR', help='default: the one whose codes the model was trained on'
  )
  p.add_argument('--num', type=int, default=64, help='how many (default: %(default)s)')
  p.add_argument(
    '--labels', type=int, nargs='+', metavar='ID', help='class ids; default: all in turn'
  )
  p.add_argument('--temperature', type=float, default=1.0, metavar='T', help='default: 1')
  p.add_argument(
    '--top-k', type=int, default=0, metavar='K', help='the K likeliest codes only; default: all'
  )
  p.add_argument(
    '--top-p', type=float, default=1.0, metavar='P', help='the likeliest codes with probability P'
  )
  p.add_argument(
    '--guidance-interval',
    type=int,
    default=-1,
    metavar='N',
    help="guide the first N + 2 codes only (LlamaGen's cfg_interval); default: all",
  )
  p.add_argument('--greedy', action='store_true', help='always the likeliest code')
  p.add_argument('--seed', type=int, default=0, help='default: %(default)s')
  p.add_argument(
    '--output',
    metavar='FILE',
    help='the grid (.png); of texts JSON lines or raw bytes (.bin), optional',
  )
  p.add_argument(
    '--interleave',
    metavar='DIR',
    help='go on with text, and with images where the model begins one, which are written there',
  )
  p.add_argument('--array', metavar='FILE.npz', help='also write uint8 images as arr_0')
  p.set_defaults(unset={name: p.get_default(name) for name in _OF_SOME})


def add_sampler_options(p) -> None:
  """The options of how a model of text and images draws."""
  p.add_argument(
    '--steps', type=int, default=250, metavar='N', help='of drawing an image (default: %(default)s)'
  )
  p.add_argument(
    '--method', help='ancestral (default) or ddim; euler for a model of flow, which needs no saying'
  )
  p.add_argument(
    '--guidance', type=float, default=1.0, metavar='S', help='guidance scale; default: 1, none'
  )


def sampler_of(options) -> dict[str, Any]:
  """Settings of `SamplerConfig` that the options name."""
  method = {} if options.method is None else {'method': options.method}
  return {'steps': options.steps, 'guidance_scale': options.guidance, **method}


def run(options) -> int:
  """Does what the options say."""
  if options.image is not None and options.prompt is None:
    return _describe(options)
  if options.prompt is not None:
    return _from_prompts(options)
  if not options.output:
    raise ConfigError('--output FILE.png is needed for images; for text give a --prompt')
  from jaxmm.studies import pictures

  of_classes = ('num', 'labels', 'tokenizer', 'array', 'guidance', 'guidance_interval')
  _refuse_others(options, 'images of classes', *of_classes, *_OF_TOKENS)
  print(
    pictures.sample(
      options.model,
      options.output,
      num=options.num,
      labels=options.labels,
      array=options.array,
      tokenizer=options.tokenizer,
      guidance_scale=options.guidance,
      guidance_interval=options.guidance_interval,
      **_of_tokens(options),
    )
  )
  return 0


def _of_tokens(options) -> dict[str, Any]:
  return {name: getattr(options, name) for name in ('seed', *_OF_TOKENS)}


def _refuse_others(options, what: str, *used: str) -> None:
  """Refuses options that were given and that do nothing for `what`."""
  for name, value in options.unset.items():
    if name not in used and getattr(options, name) != value:
      raise ConfigError(f'--{name.replace("_", "-")} does nothing for {what}; leave it out')


def _from_prompts(options) -> int:
  from jaxmm.studies import loading, pictures, texts
  from jaxmm.studies.loaded import LoadedMixed
  from jaxmm.studies.loaded_codes import LoadedCodesLm

  model = loading.load(options.model)
  if options.interleave:
    return _interleave(model, options)
  if isinstance(model, LoadedMixed):
    drawn = _OF_TOKENS if isinstance(model, LoadedCodesLm) else ('steps', 'method')
    used = ('image', 'guidance', 'tokenizer', 'array', *drawn)
    _refuse_others(options, 'images of a --prompt (for text, too, see --interleave)', *used)
    if not options.output:
      raise ConfigError('--output FILE.png is needed for what a model of text and images draws')
    of_codes = dict(_of_tokens(options), guidance_scale=options.guidance)
    settings = dict(sampler_of(options), seed=options.seed)
    done = pictures.draw(
      model,
      options.prompt,
      options.output,
      files=options.image,
      array=options.array,
      autoencoder=options.tokenizer,
      **(of_codes if isinstance(model, LoadedCodesLm) else settings),
    )
    print(done)
    return 0
  _refuse_others(options, 'text behind a --prompt', 'length', 'guidance', *_OF_TOKENS)
  done = texts.sample(
    model,
    options.prompt,
    length=256 if options.length is None else options.length,
    output=options.output,
    show=lambda text: print(text, end='', flush=True),
    guidance_scale=options.guidance,
    **_of_tokens(options),
  )
  print(done, file=sys.stderr)
  return 0


def _interleave(model, options) -> int:
  from jaxmm.studies import texts

  used = ('interleave', 'image', 'steps', 'method', 'guidance', 'length', 'tokenizer', *_OF_TOKENS)
  _refuse_others(options, 'text and images in turn', *used)
  sampling = _of_tokens(options)
  done = texts.compose(
    model,
    options.prompt,
    options.interleave,
    files=options.image,
    length=64 if options.length is None else options.length,
    show=lambda text: print(text, flush=True),
    autoencoder=options.tokenizer,
    seed=sampling.pop('seed'),
    sampling=sampling,
    **sampler_of(options),
  )
  print(done, file=sys.stderr)
  return 0


def _describe(options) -> int:
  from jaxmm.studies import loading, texts

  described = ('image', 'length', 'tokenizer', *_OF_TOKENS)
  _refuse_others(options, 'the description of an --image', *described)
  done = texts.describe(
    loading.load(options.model),
    options.image,
    length=64 if options.length is None else options.length,
    output=options.output,
    autoencoder=options.tokenizer,
    show=lambda text: print(text, flush=True),
    **_of_tokens(options),
  )
  print(done, file=sys.stderr)
  return 0
