"""A small classifier of 32x32 photographs, for what pruned pictures are worth.

    jaxmm train --config experiments/dbp/mini.py --workdir runs/cifar10
    jaxmm curate apply keep.parquet --config experiments/dbp/mini.py --workdir runs/kept \
        --config.data.name=images --config.data.path=cifar10.zip

The data is TFDS's `cifar10`; for a folder or zip of pictures (train/CLASS/*, test/CLASS/*) set
--config.data.name=images --config.data.path=FILE. `jaxmm reproduce dbp` runs all (claim.py).
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """The run's config."""
  # eval_data follows what is set for data.
  name, path = FieldReference('cifar10'), FieldReference('')
  data = dict(
    name=name, path=path, split='train', image_size=32, channels=3, crop='none', flip=True,
    cache=True, num_classes=10,
  )  # fmt: skip
  return ConfigDict(
    dict(
      task='jaxmm.models.resnet',
      seed=0,
      steps=300,
      batch=48,
      model=dict(stem_stride=2, channels=(32, 64, 128), res_blocks=1, norm_groups=8),
      data=data,
      eval_data=dict(data, name=name.identity(), path=path.identity(), split='test', flip=False),
      optimizer=dict(
        model=dict(name='adamw', learning_rate=2e-3, b1=0.9, b2=0.95, weight_decay=0.05, clip=1.0,
                   schedule='cosine', warmup=50)
      ),
      checkpoint=dict(every=0, keep=1),
      log=dict(every=50),
      evaluate=dict(every=0),
    )
  )  # fmt: skip
