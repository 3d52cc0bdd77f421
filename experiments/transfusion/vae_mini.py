"""The continuous autoencoder in miniature: 32x32 pictures to 8x8 latents of 4 channels, minutes on
two CPU cores.

    jaxmm train --config experiments/transfusion/vae_mini.py --workdir runs/vae \
        --config.data.name=images --config.data.path=cifar10.zip
    jaxmm latent-scale --run runs/vae
    jaxmm reconstruct --run runs/vae --num 16 --output rebuilt.png
    jaxmm tokenize --run runs/vae --split train --output runs/vae-latents/train

Without the two settings CIFAR-10 comes from TFDS. Arguments: `plain` (default), L1 and KL;
`adversarial`, also the edge features that stand in for LPIPS (whose weights are the user's) and a
small discriminator from the middle of the run on: the paper's whole loss but for its ID term;
`vq`, the twin whose latents are codes, a codebook of 512 in place of KL, for models of text and
codes (the paper's Chameleon).
"""

from ml_collections import ConfigDict, FieldReference

from jaxmm.config import ConfigError

IMAGE_SIZE = 32
NETWORK = dict(channels=16, multipliers=(1, 2, 2), res_blocks=1, z_channels=32, norm_groups=8)


def get_config(what: str = 'plain') -> ConfigDict:
  """The run's config; `what` is plain, adversarial or vq."""
  if what not in ('plain', 'adversarial', 'vq'):
    raise ConfigError(f'vae_mini.py:{what}: expected plain, adversarial or vq')
  # eval_data follows what is set for data.
  name, path = FieldReference('cifar10'), FieldReference('')
  data = dict(
    name=name, path=path, split='train', image_size=IMAGE_SIZE, channels=3, crop='none',
    flip=True, cache=True, num_classes=10,
  )  # fmt: skip
  adam = dict(
    name='adam', learning_rate=2e-3, b1=0.9, b2=0.95, clip=1.0, schedule='cosine', warmup=30
  )
  config = ConfigDict(
    dict(
      task='jaxmm.tokenizers.vae_task',
      seed=0,
      steps=800,
      batch=16,
      model=dict(
        image_size=IMAGE_SIZE,
        vae=dict(NETWORK, latent_dim=4),
        perceptual=dict(name='none'),
      ),
      data=data,
      eval_data=dict(data, name=name.identity(), path=path.identity(), split='test', flip=False),
      optimizer=dict(generator=adam),
      checkpoint=dict(every=200, keep=2),
      log=dict(every=50),
      evaluate=dict(every=0),
    )
  )  # fmt: skip
  if what == 'vq':
    # The paper's commitment weight and width; codes nobody uses begin anew.
    quantizer = dict(codes=512, width=8, commitment_weight=0.25, revive_after=50)
    config.task = 'jaxmm.tokenizers.vqgan_task'
    config.model = dict(
      image_size=IMAGE_SIZE, vqgan=dict(NETWORK, quantizer=quantizer), reconstruction='l1',
      perceptual=dict(name='none'),
    )  # fmt: skip
  if what == 'adversarial':
    config.model.perceptual.name = 'edges'
    config.model.adversarial = dict(
      weight=0.5, start=400, weighting='adaptive',
      discriminator=dict(channels=16, layers=2, norm='group'),
    )  # fmt: skip
    config.optimizer.discriminator = dict(adam, learning_rate=1e-3)
  return config
