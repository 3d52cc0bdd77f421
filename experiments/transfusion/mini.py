"""Transfusion in miniature on captioned 32x32 pictures: 8x8 latents of 4 channels (`vae_mini.py`),
text as bytes; minutes on two CPU cores.

    jaxmm train --config experiments/transfusion/mini.py --workdir runs/transfusion \
        --config.data.path=PICTURES --config.data.mixed.captions=CAPTIONS.jsonl \
        --config.data.mixed.latents=runs/vae-latents

PICTURES is a folder or zip, CAPTIONS.jsonl has lines {"image": "a.jpg", "caption": "a dog"}, and
the latents are those of all PICTURES (README.md says how they are written).

Arguments: `bidirectional` (default) attention within an image, as in the paper, or `causal`, its
ablation; `unet`, U-Net patches; `flow`, rectified flow in place of DDPM. The noise limit is on
(`--config.model.noise_limit=None` for none).
"""

from ml_collections import ConfigDict, FieldReference

from jaxmm.config import ConfigError

# What differs from the default.
VARIANTS = {
  'bidirectional': {},
  'causal': {'attention': 'causal'},
  'unet': {'patches': 'unet', 'patch': 2, 'unet_base': 32, 'unet_blocks': 1},
  'flow': {'objective': 'flow'},
}


def get_config(what: str = 'bidirectional') -> ConfigDict:
  """The run's config; `what` is a variant."""
  if what not in VARIANTS:
    raise ConfigError(f'mini.py:{what}: expected {", ".join(VARIANTS)}')
  length = FieldReference(160)
  model = dict(
    size='mini', depth=4, width=128, num_heads=4, vocab_size=261, length=length.identity(),
    latent_size=8, latent_channels=4, noise_limit=500, **{'patch': 1, **VARIANTS[what]},
  )  # fmt: skip
  # eval_data follows what is set for data.
  data = {'name': 'mixed', 'path': FieldReference('')}
  mixed = {
    'captions': FieldReference(''), 'image_field': FieldReference('image'),
    'latents': FieldReference(''), 'length': length, 'patches': (8 // model['patch']) ** 2,
    'boi_id': 259, 'eoi_id': 260,
  }  # fmt: skip
  text = {'tokenizer': 'bytes', 'bos_id': 257, 'eos_id': 258, 'pad_id': 256}
  same = lambda values: {
    name: v.identity() if isinstance(v, FieldReference) else v for name, v in values.items()
  }
  return ConfigDict(
    dict(
      task='jaxmm.models.transfusion',
      seed=0,
      steps=2000,
      batch=16,
      ema=0.999,
      ema_warmup=True,
      model=model,
      data=dict(data, split='train', text=text, mixed=mixed),
      eval_data=dict(same(data), split='test', text=dict(text), mixed=same(mixed)),
      optimizer=dict(
        model=dict(name='adamw', learning_rate=1e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0,
                   schedule='cosine', warmup=100, end=0.05)
      ),
      checkpoint=dict(every=500, keep=2),
      log=dict(every=50),
      evaluate=dict(every=0),
    )
  )  # fmt: skip
