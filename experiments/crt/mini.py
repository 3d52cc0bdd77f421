"""CRT in miniature on 5,000 MNIST digits: minutes on two CPU cores.

    jaxmm train --config experiments/crt/mini.py --workdir runs/mini
    jaxmm tokenize --run runs/mini --split train --output runs/mini-tokens/train
    jaxmm tokenize --run runs/mini --split test --output runs/mini-tokens/test
    jaxmm train --config experiments/crt/mini.py:image_lm --workdir runs/mini-lm
    jaxmm sample --run runs/mini-lm --num 64 --output samples.png

Arguments: `crt` (default) and `baseline`, the tokenizer with and without the regularizer;
`image_lm`, stage 2 on the tokens in runs/mini-tokens (for others set --config.data.path).
"""

from ml_collections import ConfigDict, FieldReference

from jaxmm.config import ConfigError

IMAGE_SIZE, DOWNSAMPLING, CODES = 28, 4, 128


def get_config(what: str = 'crt') -> ConfigDict:
  """The run's config; `what` is crt, baseline or image_lm."""
  if what == 'image_lm':
    return image_lm()
  if what not in ('crt', 'baseline'):
    raise ConfigError(f'mini.py:{what}: expected crt, baseline or image_lm')
  return tokenizer(is_regularized=what == 'crt')


def tokenizer(is_regularized: bool) -> ConfigDict:
  """Stage 1."""
  data = dict(name='mnist5k', split='train', image_size=IMAGE_SIZE, channels=1, crop='none',
              cache=True)  # fmt: skip
  adamw = dict(name='adamw', learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.0, clip=1.0,
               schedule='cosine', warmup=20)  # fmt: skip
  config = ConfigDict(
    dict(
      task='jaxmm.tokenizers.vqgan_task',
      seed=0,
      steps=250,
      batch=32,
      model=dict(
        image_size=IMAGE_SIZE,
        vqgan=dict(
          image_channels=1,
          channels=16,
          multipliers=(1, 2, 2),
          res_blocks=1,
          z_channels=32,
          norm_groups=8,
          quantizer=dict(codes=CODES, width=8, revive_after=50),
        ),
        perceptual=dict(name='none'),
      ),
      data=data,
      eval_data=dict(data, split='test'),
      optimizer=dict(generator=adamw),
      checkpoint=dict(every=100, keep=2),
      log=dict(every=20),
      evaluate=dict(every=0),
    )
  )
  if is_regularized:
    # The paper's 4.0 belongs to a loss with LPIPS and GAN terms; against a squared error alone it
    # makes all latents equal before the decoder has learned anything (see README.md).
    config.model.regularizer = dict(weight=0.25, ramp_steps=80, width=64, heads=4)
    config.optimizer.regularizer = adamw
  return config


def image_lm() -> ConfigDict:
  """Stage 2."""
  path = FieldReference('runs/mini-tokens')  # eval_data follows what is set for data
  data = dict(name='tokens', path=path, split='train', num_classes=10)
  return ConfigDict(
    dict(
      task='jaxmm.models.image_lm',
      seed=0,
      steps=320,
      batch=32,
      model=dict(
        size='mini', num_codes=CODES, num_classes=10, grid=IMAGE_SIZE // DOWNSAMPLING
      ),
      data=data,
      eval_data=dict(data, path=path.identity(), split='test'),
      optimizer=dict(
        model=dict(name='adamw', learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.05, clip=1.0,
                   schedule='cosine', warmup=20)
      ),
      checkpoint=dict(every=100, keep=2),
      log=dict(every=20),
      evaluate=dict(every=0),
    )
  )  # fmt: skip
