"""Transfusion's autoencoder at the paper's size (arXiv:2408.11039): 86M parameters, 256x256
pictures to 32x32 latents of 8 channels, 1M steps.

    jaxmm train --config experiments/transfusion/vae.py --workdir GS/vae \
        --config.data.path=PICTURES --config.model.perceptual.weights=LPIPS.safetensors
    jaxmm latent-scale --run GS/vae --config.data.max_records=50000

The paper gives size, latents, loss (L1 + LPIPS + 0.5 GAN + 0.2 ID + 1e-6 KL, the GAN from step
50,000) and the number of steps. Not given, and here as LlamaGen has it: optimizer, batch size,
augmentation, discriminator, average of the weights. The ID term (MoCo-v2 features, weights not at
hand) is left out: model.identity_weight is 0.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """The run's config."""
  path = FieldReference('')  # eval_data follows what is set for data
  data = dict(
    name='images', path=path, split='train', image_size=256, channels=3, convert_channels=True,
    crop='random', flip=True, threads=16, prefetch=8,
  )  # fmt: skip
  adam = dict(name='adam', learning_rate=1e-4, b1=0.9, b2=0.95, clip=1.0, schedule='constant')
  return ConfigDict(
    dict(
      task='jaxmm.tokenizers.vae_task',
      seed=0,
      steps=1_000_000,
      batch=128,
      ema=0.9999,
      ema_warmup=True,
      model=dict(
        image_size=256,
        vae=dict(latent_dim=8, dtype='bfloat16'),
        perceptual=dict(name='lpips', weights='LPIPS.safetensors'),
        adversarial=dict(weight=0.5, loss='hinge', start=50_000),
        kl_weight=1e-6,
        identity_weight=0.0,
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
