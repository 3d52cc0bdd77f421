"""Transfusion as on a blackboard: one row at a time, float64 NumPy, loops over positions."""

import math

import numpy as np

from jaxmm.core import transformer
from tests.references import transformer as blackboard


def silu(x):
  return x / (1 + np.exp(-x))


def dense(p, x):
  return x @ p['kernel'] + p['bias']


def time_embedding(p, t, num_features=256):
  angles = [t * 10_000 ** (-j / (num_features // 2)) for j in range(num_features // 2)]
  features = np.array([math.cos(a) for a in angles] + [math.sin(a) for a in angles])
  return dense(p['out'], silu(dense(p['in'], features)))


def allowed(image_L, segment_L, attention):
  """Who sees whom, position by position."""
  L = len(image_L)
  out = np.zeros((L, L), bool)
  for i in range(L):
    for j in range(L):
      same_image = image_L[i] > 0 and image_L[i] == image_L[j] and attention == 'bidirectional'
      out[i, j] = (j <= i or same_image) and segment_L[i] == segment_L[j]
  return out


def places(image_L, patch_L, segment_L, image_positions):
  """Rotary positions."""
  out, at = [], 0
  for i in range(len(image_L)):
    if i == 0 or segment_L[i] != segment_L[i - 1]:
      at = 0
    elif image_positions == 'flat' or image_L[i] == 0 or patch_L[i] == 0:
      at += 1
    out.append(at)
  return np.array(out)


def patch(x_YXC, number, k):
  """The numbers of one patch, its pixels in raster order."""
  columns = x_YXC.shape[1] // k
  y, x = divmod(number, columns)
  return np.concatenate([x_YXC[y * k + i, x * k + j] for i in range(k) for j in range(k)])


def linear_encode(p, config, x_YXC, t):
  time, out = time_embedding(p['time_embedding'], t), []
  for number in range(config.num_patches):
    numbers = patch(x_YXC, number, config.patch)
    if config.time == 'patch':
      out.append(dense(p['patch_in'], numbers + time))
    else:
      out.append(dense(p['patch_in'], numbers) + time)
  return out, None


def linear_decode(p, config, hidden_PD, remembered, t):
  out, k, C = np.zeros(config.latent_shape), config.patch, config.latent_channels
  for number, hidden in enumerate(hidden_PD):
    numbers = dense(p['patch_out'], hidden).reshape(k, k, C)
    y, x = divmod(number, config.latent_size // k)
    out[y * k : y * k + k, x * k : x * k + k] = numbers
  return out


def conv(p, x_YXC, stride=1, before=1):
  """3x3 (or 1x1) convolution; `before` zeros above and to the left, one below and to the right."""
  H = p['kernel'].shape[0]
  if H == 3:
    x_YXC = np.pad(x_YXC, ((before, 1), (before, 1), (0, 0)))
  Y, X = ((n - H) // stride + 1 for n in x_YXC.shape[:2])
  out = np.zeros((Y, X, p['kernel'].shape[-1]))
  for y in range(Y):
    for x in range(X):
      window = x_YXC[y * stride : y * stride + H, x * stride : x * stride + H]
      out[y, x] = np.einsum('HWI,HWIO->O', window, p['kernel']) + p['bias']
  return out


def layer_norm(p, x):
  centred = x - x.mean(-1, keepdims=True)
  return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * p['scale'] + p['bias']


def res(p, x, time):
  h = conv(p['conv1'], silu(layer_norm(p['norm1'], x))) + dense(p['time'], silu(time))
  h = conv(p['conv2'], silu(layer_norm(p['norm2'], h)))
  return (conv(p['shortcut'], x) if 'shortcut' in p else x) + h


def unet_encode(p, config, x_YXC, t):
  time, h, remembered = time_embedding(p['time_embedding'], t), conv(p['conv_in'], x_YXC), []
  for level in range(int(math.log2(config.patch)) + 1):
    if level:
      h = conv(p[f'halve_{level - 1}']['conv'], h, stride=2, before=0)
    for i in range(config.unet_blocks):
      h = res(p[f'down_{level}_{i}'], h, time)
      remembered.append(h)
  return list(dense(p['tokens'], h.reshape(-1, h.shape[-1]))), remembered


def unet_decode(p, config, hidden_PD, remembered, t):
  time, remembered = time_embedding(p['time_embedding'], t), list(remembered)
  side = config.latent_size // config.patch
  h = dense(p['map'], np.array(hidden_PD)).reshape(side, side, -1)
  for level in reversed(range(int(math.log2(config.patch)) + 1)):
    for i in range(config.unet_blocks):
      h = res(p[f'up_{level}_{i}'], np.concatenate([h, remembered.pop()], -1), time)
    if level:
      h = conv(p[f'double_{level - 1}']['conv'], h.repeat(2, 0).repeat(2, 1))
  return dense(p['conv_out'], silu(layer_norm(p['norm_out'], h)))


def forward(params, config, ids_L, image_L, patch_L, segment_L, latent_IYXC, time_I):
  """Logits [L, V] and predictions [I, Y, X, C] of one row; predictions of absent images are 0."""
  encode = linear_encode if config.patches == 'linear' else unet_encode
  decode = linear_decode if config.patches == 'linear' else unet_decode
  encoded = [encode(params['patches'], config, x, t) for x, t in zip(latent_IYXC, time_I)]
  x_LD = []
  for i in range(len(ids_L)):
    if image_L[i] == 0:
      x_LD.append(params['token_embedding']['table'][ids_L[i]])
      continue
    token = encoded[image_L[i] - 1][0][patch_L[i]]
    if config.image_positions == 'shared':
      token = token + params['patch_position']['table'][patch_L[i]]
    x_LD.append(token)
  width = config.stack().head_width
  place = places(image_L, patch_L, segment_L, config.image_positions)
  angle = place[:, None] * config.rotary_base ** (-np.arange(0, width, 2) / width)
  _, hidden_LD = blackboard.stack(
    transformer.unstacked(params['stack'], config.stack()),
    params['stack']['final_norm'],
    config.stack(),
    np.array(x_LD),
    allowed(image_L, segment_L, config.attention),
    (np.cos(angle), np.sin(angle)),
  )
  predicted = np.zeros(latent_IYXC.shape)
  for i, (_, remembered) in enumerate(encoded):
    at = np.flatnonzero(image_L == i + 1)
    if len(at):
      hidden_PD = hidden_LD[at[np.argsort(patch_L[at])]]
      predicted[i] = decode(params['patches'], config, hidden_PD, remembered, time_I[i])
  return hidden_LD @ params['head']['table'].T, predicted
