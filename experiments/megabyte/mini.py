"""A MEGABYTE on any text as bytes, in minutes on two CPU cores (arXiv:2305.07185).

    jaxmm train --config experiments/megabyte/mini.py --config.data.path=TEXT --workdir runs/bytes

TEXT is a .txt or .md file, a .jsonl (.gz, .zst), .parquet or .array_record file with a field
`text`, or a folder of these; a tenth of it is held out. `eval_data` reads what `data` reads unless
it is told otherwise.

Documents begin at patches (`align`; set it with another `model.patch`). They see those before them
in their row, unless they are kept apart by `--config.model.separate_documents=True`.

The paper's initial weights (0.006) are for its widths: with them, or with 0.02, a model this small
stays at the frequencies of the bytes for hundreds of steps.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
  """The run's config."""
  text = {'length': 512, 'packing': 'concat', 'align': 8, 'field': 'text', 'pad_id': 256}
  data = {'name': 'text', 'path': '', 'split': 'train', 'test_fraction': 0.1}
  data = {name: FieldReference(value) for name, value in data.items()}
  text = {name: FieldReference(value) for name, value in text.items()}
  of_files = {'align': FieldReference(8)}  # for data.name=bytes
  # `identity` follows what it is of, and can be set apart from it.
  follow = lambda references: {name: r.identity() for name, r in references.items()}

  return ConfigDict(
    dict(
      task='jaxmm.models.megabyte',
      seed=0,
      steps=200,
      batch=4,
      model=dict(size='mini', length=text['length'].identity(), init_std=0.06, dropout=0.0),
      data=dict(data, text=text, bytes=of_files),
      eval_data=dict(follow(data), split='test', text=follow(text), bytes=follow(of_files)),
      optimizer=dict(
        model=dict(name='adamw', learning_rate=2e-3, b1=0.9, b2=0.98, weight_decay=0.1, clip=1.0,
                   schedule='linear', warmup=20)
      ),
      checkpoint=dict(every=100, keep=2),
      log=dict(every=10),
      evaluate=dict(every=0),
    )
  )  # fmt: skip
