"""BERT as a sentence encoder, from its papers (arXiv:1810.04805, 1706.03762): float64, loops.

It takes a state dict with the published names. One text at a time and no padding.
"""

import math

import numpy as np

_erf = np.vectorize(math.erf)
ACTIVATIONS = {
  'gelu': lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
  'relu': lambda x: np.maximum(x, 0),
}


def linear(state, name, x):
  return x @ state[f'{name}.weight'].astype(np.float64).T + state[f'{name}.bias']


def layer_norm(state, name, x, eps):
  centred = x - x.mean(-1, keepdims=True)
  scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + eps)
  return scaled * state[f'{name}.weight'] + state[f'{name}.bias']


def attention(state, name, x_LD, num_heads):
  q, k, v = (linear(state, f'{name}.self.{n}', x_LD) for n in ('query', 'key', 'value'))
  width = x_LD.shape[1] // num_heads
  out = np.zeros_like(x_LD)
  for n in range(num_heads):
    one = slice(n * width, (n + 1) * width)
    for i in range(len(x_LD)):
      logits = k[:, one] @ q[i, one] / math.sqrt(width)
      weights = np.exp(logits - logits.max())
      out[i, one] = weights / weights.sum() @ v[:, one]
  return linear(state, f'{name}.output.dense', out)


def hidden(state, config, ids, types=None):
  """[L, D] of one text; `config` has the published names."""
  eps, act = config['layer_norm_eps'], ACTIVATIONS[config['hidden_act']]
  types = [0] * len(ids) if types is None else types
  tables = [state[f'embeddings.{n}_embeddings.weight'].astype(np.float64) for n in
            ('word', 'token_type', 'position')]  # fmt: skip
  rows = [tables[0][a] + tables[1][b] + tables[2][i] for i, (a, b) in enumerate(zip(ids, types))]
  x = layer_norm(state, 'embeddings.LayerNorm', np.stack(rows), eps)
  for layer in range(config['num_hidden_layers']):
    name = f'encoder.layer.{layer}'
    y = attention(state, f'{name}.attention', x, config['num_attention_heads'])
    x = layer_norm(state, f'{name}.attention.output.LayerNorm', x + y, eps)
    y = act(linear(state, f'{name}.intermediate.dense', x))
    y = linear(state, f'{name}.output.dense', y)
    x = layer_norm(state, f'{name}.output.LayerNorm', x + y, eps)
  return x


def embedding(state, config, ids, types=None):
  """[D]: the mean of the tokens' states, of length 1."""
  mean = hidden(state, config, ids, types).mean(0)
  return mean / np.linalg.norm(mean)


def random_state(rng, config):
  """Published names, random arrays."""
  D, F = config['hidden_size'], config['intermediate_size']
  shapes = {'embeddings.word_embeddings.weight': (config['vocab_size'], D),
            'embeddings.token_type_embeddings.weight': (config['type_vocab_size'], D),
            'embeddings.position_embeddings.weight': (config['max_position_embeddings'], D),
            'embeddings.LayerNorm.weight': (D,), 'embeddings.LayerNorm.bias': (D,)}  # fmt: skip
  for layer in range(config['num_hidden_layers']):
    name = f'encoder.layer.{layer}'
    dense = {'attention.self.query': (D, D), 'attention.self.key': (D, D),
             'attention.self.value': (D, D), 'attention.output.dense': (D, D),
             'intermediate.dense': (F, D), 'output.dense': (D, F)}  # fmt: skip
    for part, shape in dense.items():
      shapes[f'{name}.{part}.weight'], shapes[f'{name}.{part}.bias'] = shape, shape[:1]
    for part in ('attention.output.LayerNorm', 'output.LayerNorm'):
      shapes[f'{name}.{part}.weight'] = shapes[f'{name}.{part}.bias'] = (D,)
  state = {name: 0.3 * rng.standard_normal(shape) for name, shape in shapes.items()}
  state |= {n: 1 + value for n, value in state.items() if n.endswith('LayerNorm.weight')}
  return {name: value.astype(np.float32) for name, value in state.items()}
