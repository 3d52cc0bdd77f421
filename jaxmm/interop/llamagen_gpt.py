"""LlamaGen's class-conditional transformer checkpoints (`c2i_*.pt`) as parameters of
`models.image_lm`, and back.

Nothing is computed on the way, so a round trip gives the same bits. A linear map is (out, in) there
and (in, out) here, with heads as an axis of their own; queries, keys and values are fused there, in
this order; blocks are stacked here. `freqs_cis`, a table that some files carry, is dropped: it
follows from the config.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxmm.config import ConfigError
from jaxmm.models.image_lm import ImageLmConfig

IGNORED = ('freqs_cis',)
_SHOWN = 8  # names that an error lists before it says how many more there are
_BLOCK = 'block0_self'


def image_lm_from_llamagen(
  config: ImageLmConfig, state_dict: Mapping[str, np.ndarray]
) -> dict[str, Any]:
  """Parameters of `ImageLm(config)` as nested dicts of float32 NumPy arrays.

  Args:
    config: of the checkpoint; `config_of({'size': 'B'})` and so on are the published ones (grid 16
      or 24).
    state_dict: the weights by LlamaGen's names (`interop.llamagen.read_state_dict`).

  Raises:
    ConfigError: names that are missing, that the model does not have, or whose shape differs;
      named, with the shapes.
  """
  _check(state_dict, expected_shapes(config))
  array = lambda name: np.asarray(state_dict[name], np.float32)
  blocks = [_block(config, array, f'layers.{i}.') for i in range(config.depth)]
  return {
    'class_embedding': {'table': array('cls_embedding.embedding_table.weight')},
    'token_embedding': {'table': array('tok_embeddings.weight')},
    'stack': {
      'groups': {_BLOCK: _stacked(blocks)},
      'final_norm': {'scale': array('norm.weight')},
    },
    'head': {'kernel': np.ascontiguousarray(array('output.weight').T)},
  }


def image_lm_to_llamagen(config: ImageLmConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
  """The weights under LlamaGen's names and layouts; the inverse of `image_lm_from_llamagen`."""
  stack, array = params['stack'], lambda a: np.ascontiguousarray(np.asarray(a, np.float32))
  out = {
    'cls_embedding.embedding_table.weight': array(params['class_embedding']['table']),
    'tok_embeddings.weight': array(params['token_embedding']['table']),
  }
  block, width = stack['groups'][_BLOCK], config.width
  for i in range(config.depth):
    at = lambda *path, i=i: np.asarray(_leaf(block, path)[i], np.float32)
    flat = lambda *path, at=at: at(*path).reshape(width, -1).T
    fused = [flat('attention', name, 'kernel') for name in ('query', 'key', 'value')]
    out |= {
      f'layers.{i}.attention.wqkv.weight': np.concatenate(fused),
      f'layers.{i}.attention.wo.weight': array(
        at('attention', 'out', 'kernel').reshape(-1, width).T
      ),
      f'layers.{i}.feed_forward.w1.weight': array(at('mlp', 'gate', 'kernel').T),
      f'layers.{i}.feed_forward.w3.weight': array(at('mlp', 'up', 'kernel').T),
      f'layers.{i}.feed_forward.w2.weight': array(at('mlp', 'down', 'kernel').T),
      f'layers.{i}.attention_norm.weight': array(at('attention_norm', 'scale')),
      f'layers.{i}.ffn_norm.weight': array(at('mlp_norm', 'scale')),
    }
  out['norm.weight'] = array(stack['final_norm']['scale'])
  out['output.weight'] = array(np.asarray(params['head']['kernel']).T)
  return out


def expected_shapes(config: ImageLmConfig) -> dict[str, tuple[int, ...]]:
  """`{name: shape}` of a LlamaGen state dict with this config."""
  D, F, stack = config.width, config.hidden_width(), config.stack()
  qkv = (stack.num_heads + 2 * stack.kv_heads) * stack.head_width
  out = {
    'cls_embedding.embedding_table.weight': (config.num_classes + (config.class_dropout > 0), D),
    'tok_embeddings.weight': (config.num_codes, D),
  }
  for i in range(config.depth):
    out |= {
      f'layers.{i}.attention.wqkv.weight': (qkv, D),
      f'layers.{i}.attention.wo.weight': (D, D),
      f'layers.{i}.feed_forward.w1.weight': (F, D),
      f'layers.{i}.feed_forward.w3.weight': (F, D),
      f'layers.{i}.feed_forward.w2.weight': (D, F),
      f'layers.{i}.attention_norm.weight': (D,),
      f'layers.{i}.ffn_norm.weight': (D,),
    }
  return out | {'norm.weight': (D,), 'output.weight': (config.num_codes, D)}


def _block(config: ImageLmConfig, array, prefix: str) -> dict[str, Any]:
  """One block's parameters from its tensors."""
  stack, D = config.stack(), config.width
  N, K, H = stack.num_heads, stack.kv_heads, stack.head_width
  query, key, value = np.split(array(prefix + 'attention.wqkv.weight'), [N * H, (N + K) * H])
  return {
    'attention': {
      'query': {'kernel': query.T.reshape(D, N, H)},
      'key': {'kernel': key.T.reshape(D, K, H)},
      'value': {'kernel': value.T.reshape(D, K, H)},
      'out': {'kernel': array(prefix + 'attention.wo.weight').T.reshape(N, H, D)},
    },
    'mlp': {
      'gate': {'kernel': array(prefix + 'feed_forward.w1.weight').T},
      'up': {'kernel': array(prefix + 'feed_forward.w3.weight').T},
      'down': {'kernel': array(prefix + 'feed_forward.w2.weight').T},
    },
    'attention_norm': {'scale': array(prefix + 'attention_norm.weight')},
    'mlp_norm': {'scale': array(prefix + 'ffn_norm.weight')},
  }


def _stacked(trees: list[Any]) -> Any:
  if isinstance(trees[0], Mapping):
    return {name: _stacked([tree[name] for tree in trees]) for name in trees[0]}
  return np.stack(trees)


def _leaf(tree: Any, path: tuple[str, ...]) -> Any:
  for part in path:
    tree = tree[part]
  return tree


def _check(state_dict: Mapping[str, np.ndarray], expected: Mapping[str, tuple[int, ...]]) -> None:
  given = {n: tuple(np.shape(a)) for n, a in state_dict.items() if n not in IGNORED}
  wrong = [
    f'{n} has the shape {given[n]}, expected {shape}'
    for n, shape in expected.items()
    if n in given and given[n] != shape
  ]
  problems = [
    (f'{len(names)} {what}: ', names)
    for what, names in (
      ('missing', [n for n in expected if n not in given]),
      ('unknown', [n for n in given if n not in expected]),
      ('of another shape', wrong),
    )
    if names
  ]
  if problems:
    shown = [
      intro + ', '.join(names[:_SHOWN]) + (', ...' if len(names) > _SHOWN else '')
      for intro, names in problems
    ]
    raise ConfigError(
      'the checkpoint does not fit the model config (size, num_codes, num_classes?): '
      + '; '.join(shown)
    )
