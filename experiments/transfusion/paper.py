"""Transfusion at the paper's sizes (arXiv:2408.11039): 32x32 latents of 8 channels, 2 x 2 patches.

    jaxmm train --config experiments/transfusion/paper.py:0.76B --workdir GS/transfusion \
        --config.data.path=PICTURES --config.data.mixed.captions=CAPTIONS.jsonl \
        --config.data.mixed.latents=LATENTS --config.data.mixed.text_path=TEXTS \
        --config.data.mixed.text_share=0.5 --config.data.text.tokenizer=TOKENIZER.json

Arguments: `0.16B` (default), `0.37B`, `0.76B`, `1.4B`, `7B`: the controlled runs of 0.5T tokens
(section 4.1), 512 rows of 4096 positions a step, linear patches, no noise limit; `large`: the 7B
model with U-Net patches, 4M tokens a step, 2T tokens (section 4.4). For the ablations set
--config.model.patches=unet, model.patch, model.attention=causal, model.noise_limit=500.

From the paper: sizes, rows, tokens a step, steps, optimizer, schedule, loss weight, 4:1 captions
first, noise limit. Not given there, and here our choice: the rate of dropped captions (0.1), how
the losses are averaged, the U-Net's inside (`models.transfusion_patches`), that `large` has the
noise limit, no average of the weights.
"""

from ml_collections import ConfigDict, FieldReference

from jaxmm.config import ConfigError

SIZES = ('0.16B', '0.37B', '0.76B', '1.4B', '7B')
LENGTH, VOCABULARY = 4096, 32_000


def get_config(what: str = '0.16B') -> ConfigDict:
  """The run's config; `what` is a size or large."""
  if what not in (*SIZES, 'large'):
    raise ConfigError(f'paper.py:{what}: expected {", ".join(SIZES)} or large')
  # eval_data follows what is set for data.
  path = FieldReference('')
  mixed = {name: FieldReference('') for name in ('captions', 'latents', 'text_path')}
  of_all = dict(
    image_field='image', length=LENGTH, patches=256, boi_id=31_998, eoi_id=31_999, max_images=15,
  )  # fmt: skip
  tokenizer = FieldReference('bytes')
  special = dict(bos_id=1, eos_id=2, pad_id=0)
  data = dict(
    name='mixed', path=path, split='train', threads=16, prefetch=8, mixed=dict(mixed, **of_all),
    text=dict(tokenizer=tokenizer, **special),
  )  # fmt: skip
  held_out = dict(
    data, path=path.identity(), split='test',
    mixed=dict({name: v.identity() for name, v in mixed.items()}, **of_all),
    text=dict(tokenizer=tokenizer.identity(), **special),
  )  # fmt: skip
  is_large, is_sharded = what == 'large', what in ('1.4B', '7B', 'large')
  config = ConfigDict(
    dict(
      task='jaxmm.models.transfusion',
      seed=0,
      steps=500_000 if is_large else 250_000,
      batch=1024 if is_large else 512,
      model=dict(
        size='7B' if is_large else what, length=LENGTH, vocab_size=VOCABULARY, row_images=15,
        dtype='bfloat16', remat='dots', attention_backend='chunked', loss_chunk=512,
      ),
      data=data,
      eval_data=held_out,
      optimizer=dict(
        model=dict(name='adamw', learning_rate=3e-4, b1=0.9, b2=0.95, eps=1e-8, weight_decay=0.1,
                   clip=1.0, schedule='cosine', warmup=4000, end=0.05)
      ),
      mesh=dict(data=1, fsdp=-1, tensor=1) if is_sharded else dict(data=-1, fsdp=1, tensor=1),
      rules='fsdp' if is_sharded else 'dp',
      checkpoint=dict(every=2000, keep=3, keep_every=50_000),
      log=dict(every=100),
      evaluate=dict(every=10_000),
    )
  )  # fmt: skip
  if is_large:
    config.model.patches = 'unet'
    config.model.noise_limit = 500
  return config
