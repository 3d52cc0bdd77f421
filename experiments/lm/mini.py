"""A byte LM on any text, in minutes on two CPU cores.

    jaxmm train --config experiments/lm/mini.py --config.data.path=TEXT --workdir runs/text-lm

TEXT is a .txt or .md file, a .jsonl (.gz, .zst), .parquet or .array_record file with a field
`text`, or a folder of these; a tenth of it is held out. `eval_data` reads what `data` reads unless
it is told otherwise.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """The run's config."""
  text = {'length': 256, 'packing': 'concat', 'field': 'text', 'tokenizer': 'bytes',
          'bos_id': 257, 'eos_id': 258, 'pad_id': 256}  # fmt: skip
  data = {'name': 'text', 'path': '', 'split': 'train', 'test_fraction': 0.1}
  data = {name: FieldReference(value) for name, value in data.items()}
  text = {name: FieldReference(value) for name, value in text.items()}
  # `identity` follows what it is of, and can be set apart from it.
  follow = lambda references: {name: r.identity() for name, r in references.items()}

  return ConfigDict(
    dict(
      task='jaxmm.models.lm',
      seed=0,
      steps=500,
      batch=16,
      model=dict(size='mini', vocab_size=259, length=text['length'].identity(), dropout=0.0),
      data=dict(data, text=text),
      eval_data=dict(follow(data), split='test', text=follow(text)),
      optimizer=dict(
        model=dict(name='adamw', learning_rate=2e-3, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0,
                   schedule='cosine', warmup=20)
      ),
      checkpoint=dict(every=100, keep=2),
      log=dict(every=10),
      evaluate=dict(every=0),
    )
  )  # fmt: skip
