"""CRT at the paper's size: ImageNet-1k at 256x256 (arXiv:2412.16326; LlamaGen, arXiv:2406.06525).

    jaxmm train --config experiments/crt/imagenet256.py:crt --workdir GS/crt \
        --config.data.path=IMAGENET --config.model.perceptual.weights=LPIPS.safetensors
    jaxmm tokenize --run GS/crt --views ten --output GS/tokens/train
    jaxmm tokenize --run GS/crt --split test --output GS/tokens/test
    jaxmm train --config experiments/crt/imagenet256.py:XL --workdir GS/xl \
        --config.data.path=GS/tokens

Arguments: `crt` (default, 380k iterations), `baseline` (400k: equal training FLOPs), `crt_131k`
(the 131,072-code tokenizer of CRT_opt, whose wider decoder and longer training the paper does not
quantify), and the image models `B`, `L`, `XL`, `XXL`, `3B`.

Where the paper is silent the settings are LlamaGen's: optimizer, adversarial start and weight,
augmentation, codes of width 8. The regularizer's width follows from the paper's "about 5 % of the
training FLOPs"; its optimizer's settings are the generator's.
"""

from ml_collections import ConfigDict, FieldReference

from jaxmm.config import ConfigError

TOKENIZERS = ('crt', 'baseline', 'crt_131k')
IMAGE_MODELS = ('B', 'L', 'XL', 'XXL', '3B')


def get_config(what: str = 'crt') -> ConfigDict:
  """The run's config; `what` is a tokenizer or a size of the image model."""
  if what in IMAGE_MODELS:
    return image_lm(what)
  if what not in TOKENIZERS:
    raise ConfigError(f'imagenet256.py:{what}: expected {", ".join(TOKENIZERS + IMAGE_MODELS)}')
  return tokenizer(what)


def tokenizer(what: str) -> ConfigDict:
  """Stage 1: VQ-16, 256 codes an image."""
  path = FieldReference('')  # eval_data follows what is set for data
  data = dict(
    name='images', path=path, split='train', image_size=256, channels=3, convert_channels=True,
    crop='random', flip=True, num_classes=1000, threads=16, prefetch=8,
  )  # fmt: skip
  adam = dict(name='adam', learning_rate=1e-4, b1=0.9, b2=0.95, clip=1.0, schedule='constant')
  config = ConfigDict(
    dict(
      task='jaxmm.tokenizers.vqgan_task',
      seed=0,
      steps=400_000 if what == 'baseline' else 380_000,
      batch=128,
      ema=0.9999,
      ema_warmup=True,
      model=dict(
        image_size=256,
        vqgan=dict(
          dtype='bfloat16',
          quantizer=dict(codes=131_072 if what == 'crt_131k' else 16_384, width=8),
        ),
        perceptual=dict(name='lpips', weights='LPIPS.safetensors'),
        adversarial=dict(weight=0.5, loss='hinge', start=20_000),
      ),
      data=data,
      eval_data=dict(data, path=path.identity(), split='test', crop='center', flip=False),
      optimizer=dict(generator=adam, discriminator=adam),
      mesh=dict(data=-1, fsdp=1, tensor=1),
      rules='dp',
      checkpoint=dict(every=2000, keep=3, keep_every=50_000),
      log=dict(every=100),
      evaluate=dict(every=10_000),
    )
  )
  if what != 'baseline':
    config.model.regularizer = dict(weight=4.0, ramp_steps=1000, layers=2, dtype='bfloat16')
    config.optimizer.regularizer = dict(adam, name='adamw', weight_decay=0.0)
  return config


def image_lm(size: str) -> ConfigDict:
  """Stage 2; the paper's largest run is XL: 375k iterations at batch 256."""
  path = FieldReference('tokens')  # eval_data follows what is set for data
  data = dict(name='tokens', path=path, split='train', num_classes=1000, threads=8)
  # With weights whole on every chip 775M and its optimizer's step do not fit 16 GB beside 16 rows.
  is_large = size in ('XL', 'XXL', '3B')
  return ConfigDict(
    dict(
      task='jaxmm.models.image_lm',
      seed=0,
      steps=375_000,
      batch=256,
      model=dict(
        size=size, num_codes=16_384, num_classes=1000, grid=16, dtype='bfloat16', remat='dots',
        attention_backend='auto',
      ),
      data=data,
      eval_data=dict(data, path=path.identity(), split='test'),
      optimizer=dict(
        model=dict(
          name='adamw', learning_rate=1e-4, b1=0.9, b2=0.95, weight_decay=0.05, clip=1.0,
          schedule='constant',
        )
      ),
      mesh=dict(data=1, fsdp=-1, tensor=1) if is_large else dict(data=-1, fsdp=1, tensor=1),
      rules='fsdp' if is_large else 'dp',
      checkpoint=dict(every=2000, keep=3, keep_every=75_000),
      log=dict(every=100),
      evaluate=dict(every=25_000),
    )
  )  # fmt: skip
