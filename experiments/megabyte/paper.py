"""MEGABYTE at the paper's sizes (arXiv:2305.07185, section 4 and appendix).

    jaxmm train --config experiments/megabyte/paper.py:text-758M-262M --workdir GS/megabyte \
        --config.data.path=TEXT

Arguments: the names of `jaxmm.models.megabyte.PRESETS`, `text-758M-262M` being the default. Theirs
are texts; `image...` take pictures (cropped to their size, in patch scan), `audio...` .wav files.

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

# Rows of a batch, learning rate, bytes of the run, patches whose local model runs at one time.
RUNS = {
  'text-758M-262M': (48, 2e-4, 80e9, 0),
  'text-350M-290M': (48, 2e-4, 80e9, 0),
  'text-1.3B-218M': (48, 2e-4, 80e9, 0),
  'imagenet64-2.7B-350M': (48, 2e-4, 1.4e12, 0),
  'image256-125M-125M': (16, 2e-4, 80e9, 64),
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
  """The run's config; `size` is a preset of the model."""
  if size not in RUNS:
    raise ConfigError(f'paper.py:{size}: expected {", ".join(RUNS)}')
  batch, learning_rate, total_bytes, chunk = RUNS[size]
  length = PRESETS[size]['length']
  path = FieldReference('')  # eval_data follows what is set for data
  data = dict(path=path, split='train', **_data(PRESETS[size]))
  return ConfigDict(
    dict(
      task='jaxmm.models.megabyte',
      seed=0,
      steps=round(total_bytes / (batch * length)),
      batch=batch,
      model=dict(
        size=size, dtype='bfloat16', remat='block', local_chunk=chunk,
        attention_backend='chunked' if length > 16_384 else 'xla',
      ),
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
