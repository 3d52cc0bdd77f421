"""CRT on CIFAR-10, 32x32 photographs: 64 codes an image; the size at which the claim is tested.

    jaxmm train --config experiments/crt/cifar10.py:crt --workdir runs/cifar-crt
    jaxmm tokenize --run runs/cifar-crt --views flip --output runs/cifar-tokens/train
    jaxmm tokenize --run runs/cifar-crt --split test --output runs/cifar-tokens/test
    jaxmm train --config experiments/crt/cifar10.py:image_lm --workdir runs/cifar-lm

The data is TFDS's `cifar10`; for a folder or zip of pictures (train/CLASS/*, test/CLASS/*) set
--config.data.name=images --config.data.path=FILE. Arguments: `crt` (default), `baseline`,
`image_lm`. `jaxmm reproduce crt` runs them all (claim.py).
"""

from ml_collections import ConfigDict, FieldReference

from jaxmm.config import ConfigError

IMAGE_SIZE, DOWNSAMPLING, CODES = 32, 4, 512


def get_config(what: str = 'crt') -> ConfigDict:
  """The run's config; `what` is crt, baseline or image_lm."""
  if what == 'image_lm':
    return image_lm()
  if what not in ('crt', 'baseline'):
    raise ConfigError(f'cifar10.py:{what}: expected crt, baseline or image_lm')
  return tokenizer(is_regularized=what == 'crt')


def tokenizer(is_regularized: bool) -> ConfigDict:
  """Stage 1."""
  # eval_data follows what is set for data.
  name, path = FieldReference('cifar10'), FieldReference('')
  data = dict(
    name=name, path=path, split='train', image_size=IMAGE_SIZE, channels=3, crop='none',
    flip=True, cache=True, num_classes=10,
  )  # fmt: skip
  adamw = dict(
    name='adamw', learning_rate=2e-3, b1=0.9, b2=0.95, weight_decay=0.0, clip=1.0,
    schedule='cosine', warmup=30,
  )  # fmt: skip
  config = ConfigDict(
    dict(
      task='jaxmm.tokenizers.vqgan_task',
      seed=0,
      # At equal compute small batches reach a squared error a third lower.
      steps=1240,
      batch=8,
      model=dict(
        image_size=IMAGE_SIZE,
        vqgan=dict(
          channels=16,
          multipliers=(1, 2, 2),
          res_blocks=1,
          z_channels=64,
          norm_groups=2,  # the claim's control has channels in steps of two
          # The entropy term keeps latents spread over the sphere. Without it the regularizer wins
          # by drawing them together, codes following, and predicts nothing better (README.md).
          quantizer=dict(codes=CODES, width=8, revive_after=50, entropy_weight=0.005),
        ),
        perceptual=dict(name='none'),
      ),
      data=data,
      eval_data=dict(data, name=name.identity(), path=path.identity(), split='test', flip=False),
      optimizer=dict(generator=adamw),
      checkpoint=dict(every=100, keep=2),
      log=dict(every=20),
      evaluate=dict(every=0),
    )
  )
  if is_regularized:
    # The paper's 4.0 belongs to a loss with LPIPS and GAN terms; against a squared error alone it
    # makes all latents equal before the decoder has learned anything. Predicting the codes, not the
    # latents before them, keeps latents from crowding where the prediction points (README.md).
    config.model.regularizer = dict(
      weight=0.1, ramp_steps=400, width=64, heads=4, latent='quantized'
    )
    config.optimizer.regularizer = adamw
  return config


def image_lm() -> ConfigDict:
  """Stage 2."""
  path = FieldReference('runs/cifar-tokens')  # eval_data follows what is set for data
  data = dict(name='tokens', path=path, split='train', num_classes=10)
  adamw = dict(
    name='adamw', learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.05, clip=1.0,
    schedule='cosine', warmup=30,
  )  # fmt: skip
  return ConfigDict(
    dict(
      task='jaxmm.models.image_lm',
      seed=0,
      steps=800,
      batch=16,
      model=dict(
        size='mini', num_codes=CODES, num_classes=10, grid=IMAGE_SIZE // DOWNSAMPLING
      ),
      data=data,
      eval_data=dict(data, path=path.identity(), split='test'),
      optimizer=dict(model=adamw),
      checkpoint=dict(every=100, keep=2),
      log=dict(every=20),
      evaluate=dict(every=0),
    )
  )  # fmt: skip
