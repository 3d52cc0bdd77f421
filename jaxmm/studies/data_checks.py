"""Whether a run's data is what its model reads, said before anything is compiled.

The one place that knows both: a Task knows no data set, and data knows no model. What can be seen
in a batch's shapes alone, the Tasks say themselves.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxmm.config import ConfigError
from jaxmm.data import byte_files
from jaxmm.data.array_store import ArrayStore
from jaxmm.data.mixed import MixedSource
from jaxmm.data.packing import PackedSource
from jaxmm.data.pipeline import Batches
from jaxmm.data.sources import TokenSource
from jaxmm.models import image_lm, lm, megabyte, resnet, transfusion
from jaxmm.task import Task
from jaxmm.tokenizers import text
from jaxmm.tokenizers.autoencoder_task import AutoencoderTask

_PICTURES = "pictures, such as data.name='images' or 'mnist5k'"
_ROWS = (
  "rows of ids: data.name='text' or 'bytes', 'mixed' with data.mixed.codes, or pictures with "
  "data.bytes.image_order='patch' or 'raster'"
)
_MIXED = (
  "captioned pictures as latents: data.name='mixed' with data.mixed.latents, a store that `jaxmm "
  'tokenize` wrote'
)
# Fields of a batch that a Task needs, those it would read wrongly, and which data has the first.
_READ: tuple[tuple[type | tuple[type, ...], tuple[str, ...], tuple[str, ...], str], ...] = (
  (AutoencoderTask, ('image_BYXC',), (), _PICTURES),
  (resnet.ResNetTask, ('image_BYXC', 'label_B'), (), _PICTURES),
  (transfusion.TransfusionTask, ('ids_BL', 'latent_BIYXC'), (), _MIXED),
  (
    (lm.LmTask, megabyte.MegabyteTask),
    ('ids_BL', 'segment_BL'),
    ('latent_BIYXC', 'pixels_BIYXC'),
    _ROWS,
  ),
)


def check_data(task: Task, batches: Mapping[str, Batches | None]) -> None:
  """Refuses data that the model cannot read, or would silently read as something else.

  Args:
    task: of the run.
    batches: its data, by section of the config ('data', 'eval_data'); None where there is none.

  Raises:
    ConfigError: names the settings that do not go together.
  """
  there = {section: data for section, data in batches.items() if data is not None}
  if isinstance(task, image_lm.ImageLmTask):
    _check_tokens(task.config, there)
  for section, data in there.items():
    _check_fields(task, section, data)
    if isinstance(task, lm.LmTask | megabyte.MegabyteTask | transfusion.TransfusionTask):
      _check_ids(task, section, data)
    if isinstance(task, megabyte.MegabyteTask) and task.config.separate_documents:
      _check_boundaries(task.config, section, data)
    if isinstance(task, megabyte.MegabyteTask):
      _check_scan(task.config, section, data)
    if isinstance(task, transfusion.TransfusionTask):
      _check_layout(task.config, section, data)
  _check_makers(there)


def _check_fields(task: Task, section: str, data: Batches) -> None:
  for kind, needed, refused, known in _READ:
    if not isinstance(task, kind):
      continue
    missing = [name for name in needed if name not in data.fields]
    wrong = [name for name in refused if name in data.fields]
    if missing or wrong:
      raise ConfigError(
        f'{section}.name is {data.config.name!r}, whose batches hold {", ".join(data.fields)}, but '
        f'this model reads {known}'
      )


def _check_ids(task: Any, section: str, data: Batches) -> None:
  """Ids outside the vocabulary would make every loss NaN."""
  vocabulary = task.config.vocab_size
  for field, last in _last_ids(section, data):
    # The id after the last of a MEGABYTE is its padding, and is never predicted.
    is_padding = field.endswith(('pad_id', 'padding')) and isinstance(task, megabyte.MegabyteTask)
    if last > vocabulary - (not is_padding):
      raise ConfigError(
        f'{field} has id {last}, but model.vocab_size is {vocabulary} (ids 0 to {vocabulary - 1}); '
        f'set model.vocab_size to {last + 1} or more, or choose other ids'
      )


def _last_ids(section: str, data: Batches) -> Iterator[tuple[str, int]]:
  """What gives ids to rows, and the highest that it gives."""
  config = data.config
  if config.name == 'bytes' or config.bytes.image_order:
    yield f'a byte of {section}', 255
    if not config.bytes.image_order:
      yield f'{section}: padding', byte_files.PAD
    return
  if config.name not in ('text', 'mixed'):
    return
  name = config.text.tokenizer
  if name == 'bytes':
    yield f'a byte of {section}', 255
  else:
    yield f'{section}.text.tokenizer {name!r}', text.load(name).num_ordinary - 1
  for field in ('bos_id', 'eos_id', 'pad_id'):
    if (value := getattr(config.text, field)) is not None:
      yield f'{section}.text.{field}', value
  if config.name == 'mixed':
    yield f'{section}.mixed.boi_id', config.mixed.boi_id
    yield f'{section}.mixed.eoi_id', config.mixed.eoi_id
  if config.name == 'mixed' and config.mixed.codes:
    num_codes = ArrayStore(config.mixed.codes).meta['num_codes']
    yield f'{section}.mixed.codes', config.mixed.first_code + num_codes - 1


def _check_boundaries(model: megabyte.MegabyteConfig, section: str, data: Batches) -> None:
  """A patch is of one document."""
  source = data.source
  if isinstance(source, MixedSource):
    raise ConfigError(
      f'model.separate_documents keeps documents apart by patches, but those of {section}.name '
      "'mixed' begin anywhere; set it to False"
    )
  if isinstance(source, PackedSource) and source.align % model.patch:
    of = f'{section}.{data.config.name}.align'
    raise ConfigError(
      f'model.separate_documents keeps documents apart by patches of {model.patch} bytes, but {of} '
      f'is {source.align}, so that a patch may hold two; set {of}={model.patch}'
    )


def _check_scan(model: megabyte.MegabyteConfig, section: str, data: Batches) -> None:
  """A patch of a picture in patch scan is one square of it."""
  scan = data.config.bytes
  if scan.image_order == 'patch' and scan.patch != model.patch:
    raise ConfigError(
      f'{section}.bytes.patch is {scan.patch}, but model.patch is {model.patch}, so that the '
      f"model's patches would be no squares of the pictures; set both to the same"
    )


def _check_layout(model: transfusion.TransfusionConfig, section: str, data: Batches) -> None:
  """Patches and brackets mean the same to the rows and to the model."""
  mixed, special = data.config.mixed, data.config.text
  for field, found, name, expected in (
    ('patches', mixed.patches, 'an image has', model.num_patches),
    ('boi_id', mixed.boi_id, 'model.boi_id is', model.boi_id),
    ('eoi_id', mixed.eoi_id, 'model.eoi_id is', model.eoi_id),
  ):
    if found != expected:
      of = f'{expected} (model.latent_size, model.patch)' if field == 'patches' else expected
      raise ConfigError(
        f'{section}.mixed.{field} is {found}, but {name} {of}; set {section}.mixed.{field}='
        f'{expected} or change the model'
      )
  for field in ('bos_id', 'eos_id'):
    if getattr(special, field) == model.null_id:
      raise ConfigError(
        f'model.null_id is {model.null_id}, which is {section}.text.{field}, too; it stands for a '
        'dropped caption and must mean nothing else (the padding of rows will do)'
      )
  num_ordinary = text.load(special.tokenizer).num_ordinary
  if model.null_id < num_ordinary:
    raise ConfigError(
      f'model.null_id is {model.null_id}, which {section}.text.tokenizer {special.tokenizer!r} '
      'gives to text; it stands for a dropped caption and is never drawn, so set it behind the '
      f'{num_ordinary} ids of the tokenizer (the padding of rows will do)'
    )


def _check_makers(batches: Mapping[str, Batches]) -> None:
  """Training and held-out pictures were made by the same tokenizer, at the same scale."""
  names = ('tokenizer_model', 'tokenizer_step', 'latent_scale')
  stores = {
    f'{section}.mixed.{field}': store
    for section, data in batches.items()
    for field in ('latents', 'codes')
    if data.config.name == 'mixed' and (store := getattr(data.config.mixed, field))
  }
  metas = [ArrayStore(store).meta for store in stores.values()]
  if len({json.dumps([meta.get(name) for name in names], sort_keys=True) for meta in metas}) > 1:
    raise ConfigError(
      f'{" and ".join(stores)} were made by different tokenizers, different steps of one, or at '
      'different scales; write both with the same run'
    )


def _check_tokens(model: image_lm.ImageLmConfig, batches: Mapping[str, Batches]) -> None:
  """Tokens of another codebook or grid, with more classes, or of different tokenizers."""
  origins = set()
  for section, data in batches.items():
    source = data.source
    if not isinstance(source, TokenSource):
      raise ConfigError(
        f'{section}.name is {data.config.name!r}, but an image model trains on codes: write them '
        "with `jaxmm tokenize` and set it to 'tokens'"
      )
    meta, found = source.store.meta, _found_in(source)
    for name, expected in (
      ('num_codes', model.num_codes),
      ('grid', model.grid),
      ('num_classes', model.num_classes),
    ):
      # A table of classes may be larger than needed; of codes not, they are another tokenizer's.
      is_fit = found[name] <= expected if name == 'num_classes' else found[name] == expected
      if not is_fit:
        raise ConfigError(
          f'model.{name} is {expected}, but the tokens in {source.store.directory} ({section}) '
          f'have {found[name]:g}; set model.{name} to it, or name the tokens of another tokenizer '
          f'in {section}.path'
        )
    origins.add((meta.get('tokenizer_model'), meta.get('tokenizer_step')))
  if len(origins) > 1:
    raise ConfigError(
      'data.path and eval_data.path hold the tokens of different tokenizers (or of different steps '
      'of one); write both with the same run'
    )


def _found_in(source: TokenSource) -> dict[str, float]:
  """Codes, grid and classes of a token store; the classes are those that its labels have."""
  num_codes = source.store.meta.get('num_codes')
  if num_codes is None:
    num_codes = int(source.store.read('codes').max()) + 1
  return {
    'num_codes': num_codes,
    'grid': math.sqrt(source.length),
    'num_classes': int(source.store.read('label').max()) + 1,
  }
