"""MEGABYTE on one row as its paper writes it: float64 NumPy and loops.

Numbers are the steps of section 2 of arXiv:2305.07185, in the order that they are computed. The
local model of all patches is one flat sequence with a list of the bytes that each may see.
"""

import numpy as np


def layer_norm(x, p, eps):
  out = np.zeros_like(x)
  for i, row in enumerate(x):
    out[i] = (row - row.mean()) / np.sqrt(row.var() + eps) * p['scale'] + p['bias']
  return out


def turned(x, angle):
  """Channels (m, m + R) as the plane, turned by angle[m]."""
  R = len(x) // 2
  a, b = x[:R], x[R:]
  return np.concatenate(
    [a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)]
  )


def attention(x, p, heads, seen, places=None):
  """seen[i]: which j position i attends to; places: rotary positions, or None."""
  q, k, v = (np.einsum('ld,dnh->lnh', x, p[n]['kernel']) + p[n]['bias'] for n in
             ('query', 'key', 'value'))  # fmt: skip
  H = q.shape[-1]
  frequency = 10_000.0 ** (-np.arange(0, H, 2) / H)
  out = np.zeros_like(x)
  for i in range(len(x)):
    for n in range(heads):
      scores = []
      for j in seen[i]:
        query, key = q[i, n], k[j, n]
        if places is not None:
          query = turned(query, places[i] * frequency)
          key = turned(key, places[j] * frequency)
        scores.append(query @ key / np.sqrt(H))
      weights = np.exp(np.array(scores) - max(scores))
      weights /= weights.sum()
      attended = sum(w * v[j, n] for w, j in zip(weights, seen[i]))
      out[i] += attended @ p['out']['kernel'][n]
  return out + p['out']['bias']


def layer(tree, t):
  return {n: layer(a, t) if isinstance(a, dict) else a[t] for n, a in tree.items()}


def transformer(x, params, depth, heads, seen, eps, places=None):
  for t in range(depth):
    p = layer(params['groups']['block0_self'], t)
    x = x + attention(layer_norm(x, p['attention_norm'], eps), p['attention'], heads, seen, places)
    h = layer_norm(x, p['mlp_norm'], eps) @ p['mlp']['up']['kernel'] + p['mlp']['up']['bias']
    x = x + np.maximum(h, 0) @ p['mlp']['down']['kernel'] + p['mlp']['down']['bias']
  return layer_norm(x, params['final_norm'], eps)


def convolutions(x, p):
  for size in (3, 5, 7):
    out = np.zeros_like(x)
    for t in range(len(x)):
      out[t] = p[f'bias_{size}']
      for back in range(size):
        if t - back >= 0:
          out[t] += x[t - back] @ p[f'kernel_{size}'][back]
    x = x + np.maximum(out, 0)
  return x


def logits(params, config, ids):
  """[T, V]; row t is of byte t, from those before it."""
  c, p, T = config, params, len(ids)
  P, K, G = c.patch, T // c.patch, c.global_width // c.patch

  # 1. Embeddings of the global model.
  byte_TG = np.stack([p['global_embedding']['table'][i] for i in ids])
  if c.conv_encoder:
    byte_TG = convolutions(byte_TG, p['conv_encoder'])
  # 2, 3. Patches, one place late, behind a pad.
  patches = []
  for k in range(K):
    parts = []
    for i in range(P):
      if c.pads == 'ids':  # the padding id in front, then embedded where it stands
        late = p['global_embedding']['table'][c.vocab_size] if k == 0 else byte_TG[(k - 1) * P + i]
        parts.append(late + p['global_positions'][k * P + i])
      elif k == 0:
        parts.append(p['global_pad'][i])
      else:
        parts.append(byte_TG[(k - 1) * P + i] + p['global_positions'][(k - 1) * P + i])
    patches.append(np.concatenate(parts))
  # 4. The global model.
  causal = [list(range(k + 1)) for k in range(K)]
  x = transformer(
    np.stack(patches), p['global_stack'], c.global_depth, c.global_heads, causal, c.norm_eps
  )
  # 5, 6. One slot a byte, and the byte before it in its patch.
  local = []
  for t in range(T):
    k, i = divmod(t, P)
    slot = x[k, i * G : (i + 1) * G] @ p['to_local']['kernel']
    table = p['local_embedding']['table']
    pad = table[c.vocab_size] if c.pads == 'ids' else p['local_pad']
    before = pad if i == 0 else table[ids[t - 1]]
    local.append(slot + before + p['local_positions'][i])
  # 7. The local model: of a byte's own patch, and the last bytes of the one before.
  seen = [
    [j for j in range(t + 1) if j // P == t // P or (j // P == t // P - 1 and
                                                     j % P >= P - c.cross_patch)]
    for t in range(T)
  ]  # fmt: skip
  places = np.arange(T) if c.cross_patch else None
  h = transformer(
    np.stack(local), p['local_stack'], c.local_depth, c.local_heads, seen, c.norm_eps, places
  )
  # 8. The tied head.
  return h @ p['local_embedding']['table'][: c.vocab_size].T
