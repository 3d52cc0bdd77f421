"""A transformer as on a blackboard: float64 NumPy, loops over layers, heads and queries."""

import math

import numpy as np


def softmax(x):
  e = np.exp(x - np.max(x))
  return e / e.sum()


def attention(q_LNH, k_SKH, v_SKH, allowed_LS, scale, bias_NLS=None):
  """Each query over the keys it may see; zeros where there is none."""
  (L, N, H), K = q_LNH.shape, k_SKH.shape[1]
  out = np.zeros((L, N, H))
  for i in range(L):
    for n in range(N):
      keys = np.flatnonzero(allowed_LS[i])
      if len(keys) == 0:
        continue
      shared = n // (N // K)  # consecutive query heads share a key/value head
      logits = k_SKH[keys, shared] @ q_LNH[i, n] * scale
      if bias_NLS is not None:
        logits = logits + bias_NLS[n, i, keys]
      out[i, n] = softmax(logits) @ v_SKH[keys, shared]
  return out


def rotate(x_LNH, cos_LR, sin_LR, pairing):
  out, R = np.zeros_like(x_LNH), x_LNH.shape[-1] // 2
  for m in range(R):
    a, b = (2 * m, 2 * m + 1) if pairing == 'adjacent' else (m, m + R)
    cos, sin = cos_LR[:, None, m], sin_LR[:, None, m]
    out[..., a] = x_LNH[..., a] * cos - x_LNH[..., b] * sin
    out[..., b] = x_LNH[..., b] * cos + x_LNH[..., a] * sin
  return out


def norm(x, p, config):
  if config.norm == 'rms':
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * p['scale']
  centred = x - x.mean(-1, keepdims=True)
  out = centred / np.sqrt(np.mean(centred**2, -1, keepdims=True) + config.norm_eps) * p['scale']
  return out + p.get('bias', 0.0)


def rms(x, scale, eps):
  return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * scale


def attend(p, config, x_LD, source_SD, allowed_LS, rotary, bias_NLS=None):
  project = lambda name, a: (
    np.einsum('LD,DNH->LNH', a, p[name]['kernel']) + p[name].get('bias', 0.0)
  )
  q, k, v = project('query', x_LD), project('key', source_SD), project('value', source_SD)
  if config.qk_norm:
    q = rms(q, p['query_norm']['scale'], config.norm_eps)
    k = rms(k, p['key_norm']['scale'], config.norm_eps)
  if rotary is not None:
    q, k = (rotate(a, *rotary, config.rotary) for a in (q, k))
  scale = q.shape[-1] ** -0.5 if config.attention_scale is None else config.attention_scale
  out = attention(q, k, v, allowed_LS, scale, bias_NLS)
  return np.einsum('LNH,NHD->LD', out, p['out']['kernel']) + p['out'].get('bias', 0.0)


_erf = np.vectorize(math.erf)
_tanh_gelu = lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
ACTIVATIONS = {
  'swiglu': lambda x: x / (1 + np.exp(-x)),
  'silu': lambda x: x / (1 + np.exp(-x)),
  'geglu': _tanh_gelu,
  'gelu_tanh': _tanh_gelu,
  'gelu': lambda x: 0.5 * x * (1 + _erf(x / math.sqrt(2))),
  'relu': lambda x: np.maximum(x, 0),
}


def mlp(p, config, x_LD):
  linear = lambda name, a: a @ p[name]['kernel'] + p[name].get('bias', 0.0)
  act = ACTIVATIONS[config.mlp]
  if 'gate' in p:
    return linear('down', act(linear('gate', x_LD)) * linear('up', x_LD))
  return linear('down', act(linear('up', x_LD)))


def stack(blocks, final_norm, config, x_LD, allowed_LS, rotary=None, context_SD=None, bias=None):
  """All states of one example, first to last, and the hidden states after the final norm."""
  states = [x_LD]

  def added(x, p, f):
    return x + f(norm(x, p, config)) if config.norm_place == 'pre' else norm(x + f(x), p, config)

  for p in blocks:
    self_attend = lambda h, p=p: attend(p['attention'], config, h, h, allowed_LS, rotary, bias)
    x_LD = added(x_LD, p['attention_norm'], self_attend)
    if 'cross' in p:
      all_seen = np.ones((len(x_LD), len(context_SD)), bool)
      cross = lambda h, p=p, seen=all_seen: attend(p['cross'], config, h, context_SD, seen, None)
      x_LD = added(x_LD, p['cross_norm'], cross)
    x_LD = added(x_LD, p['mlp_norm'], lambda h, p=p: mlp(p['mlp'], config, h))
    states.append(x_LD)
  return np.stack(states), x_LD if final_norm is None else norm(x_LD, final_norm, config)
