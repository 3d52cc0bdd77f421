"""The verb `evaluate`: a run, as it is or as it grows; sets of pictures; labels; embeddings."""

from __future__ import annotations

from jaxmm import cli_sample
from jaxmm.cli_curate import several
from jaxmm.config import ConfigError

# Options -> what they belong to, by the option that begins it.
_OF = {
  'run': (
    'batch', 'samples', 'steps', 'method', 'guidance', 'inception', 'convention', 'reference',
    'lpips', 'pairs', 'few_samples', 'follow', 'every_seconds',
  ),
  'images': (
    'batch', 'inception', 'convention', 'reference', 'lpips', 'pairs', 'few_samples', 'output',
    'image_size', 'max_images', 'statistics', 'classifier', 'labels',
  ),
  'queries': ('keys', 'relevant', 'at', 'inner_product', 'output'),
}  # fmt: skip
EXAMPLES = (
  'jaxmm evaluate --run runs/mini\n'
  '  jaxmm evaluate --run runs/mini --follow  # while it trains\n'
  '  jaxmm evaluate --run runs/mini --inception pt_inception.pth --lpips vgg.pth heads.pth\n'
  '  jaxmm evaluate --run runs/mini-lm --samples 50000 --inception pt_inception.pth \\\n'
  '    --reference VIRTUAL_imagenet256_labeled.npz\n'
  '  jaxmm evaluate --run runs/transfusion --samples 256 --steps 50 --guidance 3\n'
  '  jaxmm evaluate --images samples.npz --reference photos --inception pt_inception.pth \\\n'
  '    --convention pytorch-fid --output runs/fid\n'
  '  jaxmm evaluate --images photos.zip --labels labels.csv --classifier --output runs/classes\n'
  '  jaxmm evaluate --queries questions.npy --keys passages.npy --output runs/recall'
)


def add_options(p) -> None:
  """The options of the verb."""
  what = p.add_argument_group('what is evaluated (one of them)')
  what.add_argument('--run', dest='model', metavar='DIR', help='a run of any kind')
  what.add_argument('--images', metavar='SET', help='a folder, a zip, or an .npz with arr_0')
  what.add_argument('--queries', metavar='FILE.npy', help='embeddings that look for --keys')
  p.add_argument('--batch', type=int, default=64, help='rows a step (default: %(default)s)')
  p.add_argument(
    '--output', metavar='DIR', help='results without a --run, and what they are made of'
  )
  _add_run_options(p)
  _add_picture_options(p)
  of = p.add_argument_group('embeddings')
  of.add_argument('--keys', metavar='FILE.npy', help='embeddings that are looked for')
  of.add_argument(
    '--relevant', metavar='FILE.json', help='keys of each query; default: key i for query i'
  )
  of.add_argument('--at', type=int, nargs='+', metavar='K', help='of recall@K; default: 1 5 10')
  of.add_argument('--inner-product', action='store_true', help='without normalising them first')
  several.add_options(p, 'the data and the results')
  options = {name for names in _OF.values() for name in names}
  p.set_defaults(unset={name: p.get_default(name) for name in options})


def _add_run_options(p) -> None:
  of = p.add_argument_group('a run')
  of.add_argument(
    '--follow',
    action='store_true',
    help='each checkpoint as a training run writes it, until its last; evaluations.jsonl',
  )
  of.add_argument(
    '--every-seconds', type=float, default=5.0, metavar='S', help='look for checkpoints (5)'
  )
  of.add_argument(
    '--samples',
    type=int,
    default=0,
    metavar='N',
    help='draw N pictures: of an image model, to compare with a --reference; of a model of text '
    'and images from held-out texts, and describe N (default: none)',
  )
  cli_sample.add_sampler_options(of)


def _add_picture_options(p) -> None:
  of = p.add_argument_group('pictures')
  of.add_argument(
    '--inception',
    metavar='FILE',
    help='weights of the FID Inception (pt_inception-2015-12-05-6726825d.pth, or .safetensors)',
  )
  of.add_argument(
    '--convention',
    default='adm',
    choices=['adm', 'pytorch-fid'],
    help='how pictures are resized for it: as in the ADM suite, or in pytorch-fid (default: adm)',
  )
  of.add_argument(
    '--reference', metavar='SET', help='pictures, or .npz statistics (mu, sigma), to compare with'
  )
  of.add_argument(
    '--few-samples',
    default='error',
    choices=['error', 'accept'],
    help='what to do with fewer pictures than features (default: error)',
  )
  of.add_argument('--pairs', action='store_true', help='PSNR, SSIM, MS-SSIM of picture and picture')
  of.add_argument('--lpips', nargs='+', metavar='FILE', help='LPIPS weights (VGG16 and heads)')
  of.add_argument('--image-size', type=int, metavar='N', help="crop files to N (ADM's crop)")
  of.add_argument('--max-images', type=int, metavar='N', help='only so many, evenly spaced')
  of.add_argument('--statistics', metavar='FILE.npz', help='write mu and sigma of --images')
  of.add_argument(
    '--classifier',
    nargs='?',
    const='',
    metavar='FILE',
    help='top-1 and top-5 of EfficientNet-Lite0 (its package, or a file of weights)',
  )
  of.add_argument('--labels', metavar='FILE.csv', help='classes; default: the folders')


def run(options) -> int:
  """Does what the options say."""
  given = [n for n, v in _begins(options).items() if v is not None]
  if len(given) != 1:
    found = ', '.join(f'--{n}' for n in given) or 'none'
    raise ConfigError(f'{found} of --run, --images and --queries is given, expected one')
  _refuse_others(options, given[0])
  if given[0] != 'run' and not options.output:
    raise ConfigError('--output DIR is needed for results without a --run')
  if given[0] != 'run' and options.overrides:
    raise ConfigError('--config.* settings belong to a --run')
  with several.joined(options):
    {'run': _run, 'images': _images, 'queries': _queries}[given[0]](options)
  return 0


def _begins(options) -> dict[str, str | None]:
  return {'run': options.model, 'images': options.images, 'queries': options.queries}


def _refuse_others(options, what: str) -> None:
  for name, value in options.unset.items():
    if name not in _OF[what] and getattr(options, name) != value:
      raise ConfigError(f'--{name.replace("_", "-")} does nothing for --{what}; leave it out')
  if options.every_seconds <= 0:
    raise ConfigError(f'--every-seconds is {options.every_seconds:g}, expected more than 0')


def _run(options) -> None:
  from jaxmm.studies import evaluation

  settings = dict(
    batch=options.batch,
    samples=options.samples,
    overrides=options.overrides,
    pictures=evaluation.PictureOptions(
      weights=options.inception or '',
      convention=options.convention,
      reference=options.reference or '',
      lpips=tuple(options.lpips or ()),
      few_samples=options.few_samples,
      is_paired=options.pairs,
    ),
  )
  sampler = cli_sample.sampler_of(options)
  if options.follow:
    evaluation.follow(options.model, every_s=options.every_seconds, sampler=sampler, **settings)
  else:
    evaluation.write(options.model, **settings, **sampler)


def _images(options) -> None:
  from jaxmm.studies import set_evaluation

  if options.classifier is not None:
    set_evaluation.classify(
      options.images,
      options.output,
      weights=options.classifier,
      labels=options.labels or '',
      size=options.image_size,
      batch=options.batch,
      max_images=options.max_images,
    )
    return
  if options.labels:
    raise ConfigError('--labels are for a --classifier; name it')
  set_evaluation.compare(
    options.images,
    options.output,
    weights=options.inception or '',
    convention=options.convention,
    reference=options.reference or '',
    is_paired=options.pairs,
    lpips=options.lpips or (),
    statistics=options.statistics or '',
    few_samples=options.few_samples,
    batch=options.batch,
    image_size=options.image_size,
    max_images=options.max_images,
  )


def _queries(options) -> None:
  from jaxmm.studies import set_evaluation

  if not options.keys:
    raise ConfigError('--queries look for --keys FILE.npy; name them')
  set_evaluation.retrieve(
    options.queries,
    options.keys,
    options.output,
    relevant=options.relevant or '',
    at=options.at or (1, 5, 10),
    is_cosine=not options.inner_product,
  )
