"""Transfusion at the paper's sizes (arXiv:2408.11039): 32x32 latents of 8 channels, 2 x 2 patches.

    jaxmm train --config experiments/transfusion/paper.py:0.76B --workdir GS/transfusion \
        --config.data.path=PICTURES --config.data.mixed.captions=CAPTIONS.jsonl \
        --config.data.mixed.latents=LATENTS --config.data.mixed.text_path=TEXTS \
        --config.data.mixed.text_share=0.5 --config.data.text.tokenizer=TOKENIZER.json

Arguments: `0.16B` (default), `0.37B`, `0.76B`, `1.4B`, `7B`: the controlled runs of 0.5T tokens
(section 4.1), 512 rows of 4096 positions a step, linear patches, no noise limit; `large`: the 7B
model with U-Net patches, 4M tokens a step, 2T tokens (section 4.4). For the ablations set
--config.model.patches=unet, model.patch=K (patches and room for images of the data follow it),
model.attention=causal, model.noise_limit=500.

TOKENIZER.json is a BPE of up to 32,000 ordinary ids that `BpeTokenizer.train` of
`jaxmm.tokenizers.text` made and saved (`vocab_size=32_003` with its three special tokens); without
it text is bytes. The paper's own, of Llama 2, is not read. Padding and the null caption, bos, eos
and the brackets have the five ids behind 32,000, whatever the tokenizer.

From the paper: sizes, rows, tokens a step, steps, optimizer, schedule, loss weight, 4:1 captions
first, noise limit. Not given there, and here our choice: the rate of dropped captions (0.1), how
the losses are averaged, the U-Net's inside (`models.transfusion_patches`), that `large` has the
noise limit, no average of the weights.
"""

from ml_collections import ConfigDict, FieldReference

from jaxmm.config import ConfigError

SIZES = ('0.16B', '0.37B', '0.76B', '1.4B', '7B')
LENGTH, TEXT = 4096, 32_000  # positions of a row, ordinary ids
LATENT = 32  # pixels of a latent along a side
TIGHT = 10  # brackets and the shortest captions: so many images fit a row, hardly ever more


def get_config(what: str = '0.16B') -> ConfigDict:
  """The run's config; `what` is a size or large."""
  if what not in (*SIZES, 'large'):
    raise ConfigError(f'paper.py:{what}: expected {", ".join(SIZES)} or large')
  # eval_data follows what is set for data.
  path = FieldReference('')
  mixed = {name: FieldReference('') for name in ('captions', 'latents', 'text_path')}
  mixed['image_field'] = FieldReference('image')
  patch = FieldReference(2)
  side = FieldReference(LATENT) // patch
  patches = side * side
  images = LENGTH // (patches + TIGHT)  # 15 of the paper's patches
  of_all = dict(length=LENGTH, boi_id=TEXT + 3, eoi_id=TEXT + 4)
  tokenizer = FieldReference('bytes')
  special = dict(bos_id=TEXT + 1, eos_id=TEXT + 2, pad_id=TEXT)
  data = dict(
    name='mixed', path=path, split='train', threads=16, prefetch=8,
    mixed=dict(mixed, patches=patches, max_images=images, **of_all),
    text=dict(tokenizer=tokenizer, **special),
  )  # fmt: skip
  held_out = dict(
    data, path=path.identity(), split='test',
    mixed=dict(
      {name: v.identity() for name, v in mixed.items()}, patches=patches.identity(),
      max_images=images.identity(), **of_all
    ),
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
        size='7B' if is_large else what, length=LENGTH, vocab_size=TEXT + 5,
        row_images=images.identity(), latent_size=LATENT, patch=patch, dtype='bfloat16',
        remat='dots', attention_backend='auto', loss_chunk=512,
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
