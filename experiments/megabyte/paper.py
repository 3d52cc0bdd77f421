"""MEGABYTE at the paper's sizes (arXiv:2305.07185, section 4 and appendix).

    jaxmm train --config experiments/megabyte/paper.py:text-758M-262M --workdir GS/megabyte \
        --config.data.path=TEXT

Arguments: the names of `jaxmm.models.megabyte.PRESETS`, `text-758M-262M` being the default. Theirs
are texts; `image...` take pictures (cropped to their size, in patch scan), `audio...` .wav files.
`plain-320M` and `plain-350M` are the plain transformers over bytes beside them, with a context of
1,024: that of the tables, and that of the comparison of generation speed.

Optimizer, schedule, dropout and initial weights are the paper's, and the bytes of the text runs (80
billion) and of ImageNet64 (1.4 trillion). Batches and learning rates are not certain: they are as
others report its appendix. How long the other runs were is not known to us; theirs stand for a
beginning. Cross-patch attention, whose r the paper does not say, is off:
`--config.model.cross_patch=R` turns it on. Documents begin at patches and see those before them in
their row, unless `--config.model.separate_documents=True` keeps them apart.
"""

import math
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict, FieldReference

from jaxmm.config import ConfigError
from jaxmm.models.megabyte import PRESETS

# Layers of the plain transformers: 22 and 24 of the 24 of GPT-3's 350M.
PLAIN = {'plain-320M': 22, 'plain-350M': 24}
CONTEXT, PLAIN_BATCH = 1024, 384  # as many bytes a step as rows of 8,192

# Rows of a batch, learning rate, bytes of the run, patches whose local model runs at one time.
RUNS = {
  'text-758M-262M': (48, 2e-4, 80e9, 0),
  'text-350M-290M': (48, 2e-4, 80e9, 0),
  'text-1.3B-218M': (48, 2e-4, 80e9, 0),
  'fig3-452M-151M': (48, 2e-4, 80e9, 0),
  'fig3-5.8B-604M': (48, 2e-4, 80e9, 0),
  'fig3-170B-3.2B': (48, 2e-4, 80e9, 0),
  'imagenet64-2.7B-350M': (48, 2e-4, 1.4e12, 0),
  'image256-125M-125M': (16, 2e-4, 80e9, 64),
  'image256-125M-125M-p48': (16, 2e-4, 80e9, 256),
  'image256-125M-125M-p768': (16, 2e-4, 80e9, 16),
  'image640-125M-83M': (32, 3e-4, 80e9, 64),
  'audio-350M-125M': (32, 2e-4, 80e9, 512),
}


def _data(preset: Mapping[str, Any]) -> dict[str, Any]:
  """What is read: texts, pictures in patch scan, or the samples of .wav files."""
  length, patch = preset['length'], preset['patch']
  if patch == 8:
    text = dict(length=length, packing='concat', align=patch, field='text', pad_id=256)
    return dict(name='text', text=text)
  if patch == 32:
    sound = dict(length=length, packing='concat', align=patch, suffixes=('.wav',))
    return dict(name='bytes', bytes=sound)
  scan = dict(length=length, image_order='patch', patch=patch)
  return dict(name='images', image_size=math.isqrt(length // 3), crop='center', bytes=scan)


def get_config(size: str = 'text-758M-262M') -> ConfigDict:
  """The run's config; `size` is a preset of the model, or a plain transformer."""
  if size in PLAIN:
    return _plain(PLAIN[size])
  if size not in RUNS:
    raise ConfigError(f'paper.py:{size}: expected {", ".join((*RUNS, *PLAIN))}')
  batch, learning_rate, total_bytes, chunk = RUNS[size]
  length = PRESETS[size]['length']
  model = dict(
    size=size, dtype='bfloat16', remat='block', local_chunk=chunk,
    attention_backend='auto',
  )  # fmt: skip
  steps = round(total_bytes / (batch * length))
  task = 'jaxmm.models.megabyte'
  return _run(task, model, _data(PRESETS[size]), batch, steps, learning_rate)


def _plain(depth: int) -> ConfigDict:
  """Blocks and initial weights as MEGABYTE's; its first token, 256, is what pads, too."""
  model = dict(
    depth=depth, width=1024, num_heads=16, hidden=4096, mlp='relu', norm='layer', bias=True,
    positions='learned', tied_head=True, dropout=0.1, init_std=0.006, vocab_size=257,
    length=CONTEXT, dtype='bfloat16', remat='block',
  )  # fmt: skip
  text = dict(length=CONTEXT, packing='concat', field='text', pad_id=256)
  steps = round(80e9 / (PLAIN_BATCH * CONTEXT))
  return _run('jaxmm.models.lm', model, dict(name='text', text=text), PLAIN_BATCH, steps, 2e-4)


def _run(task, model, read, batch: int, steps: int, learning_rate: float) -> ConfigDict:
  path = FieldReference('')  # eval_data follows what is set for data
  data = dict(path=path, split='train', **read)
  return ConfigDict(
    dict(
      task=task,
      seed=0,
      steps=steps,
      batch=batch,
      model=model,
      data=data,
      eval_data=dict(data, path=path.identity(), split='test'),
      optimizer=dict(
        model=dict(
          name='adamw', learning_rate=learning_rate, b1=0.9, b2=0.98, weight_decay=0.1, clip=1.0,
          schedule='linear', warmup=500,
        )
      ),
      mesh=dict(data=1, fsdp=-1, tensor=1),
      rules='fsdp',
      checkpoint=dict(every=2000, keep=3, keep_every=50_000),
      log=dict(every=100),
      evaluate=dict(every=10_000),
    )
  )  # fmt: skip
