"""Normalisation, linear maps, embeddings and dropout.

Axes: B batch, L positions, D width, V vocabulary. Parameters are float32; products run in the
caller's dtype; normalisation runs in float32 whatever that is.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.core import axes

# Odd constants of a 32-bit finaliser with low bias (Wellons' `lowbias32`) and of Weyl's sequence.
_MIX_A, _MIX_B, _WEYL = 0x7FEB352D, 0x846CA68B, 0x9E3779B9


def rms_norm(x: jax.Array, scale: jax.Array, eps: float, axis: int = -1) -> jax.Array:
  """x / sqrt(mean(x^2) + eps) * scale over `axis` (arXiv:1910.07467, eq. 4); scale broadcasts."""
  x32 = x.astype(jnp.float32)
  inverse = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=axis, keepdims=True) + eps)
  return (x32 * inverse * scale).astype(x.dtype)


def layer_norm(
  x: jax.Array, scale: jax.Array, bias: jax.Array | None, eps: float, axis: int = -1
) -> jax.Array:
  """(x - mean) / sqrt(variance + eps) * scale + bias over `axis` (arXiv:1607.06450)."""
  x32 = x.astype(jnp.float32)
  centred = x32 - jnp.mean(x32, axis=axis, keepdims=True)
  inverse = jax.lax.rsqrt(jnp.mean(centred * centred, axis=axis, keepdims=True) + eps)
  out = centred * inverse * scale
  return (out if bias is None else out + bias).astype(x.dtype)


def _recomputed(norm: Callable, eps: float) -> Callable:
  """Keeps the input alone for the gradient; float32 copies of the stream would weigh more."""
  return jax.checkpoint(functools.partial(norm, eps=eps), prevent_cse=False)


class RMSNorm(nn.Module):
  """`rms_norm` over the last axis with a learned scale of the logical axis `axis_name`."""

  eps: float = 1e-5
  axis_name: str = axes.EMBED

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    init = axes.weight(nn.initializers.ones_init(), self.axis_name)
    return _recomputed(rms_norm, self.eps)(x, self.param('scale', init, (x.shape[-1],)))


class LayerNorm(nn.Module):
  """`layer_norm` over the last axis with a learned scale and, if `bias`, a learned shift."""

  eps: float = 1e-5
  bias: bool = True
  axis_name: str = axes.EMBED

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
    scale = self.param('scale', axes.weight(ones, self.axis_name), (x.shape[-1],))
    shift = None
    if self.bias:
      shift = self.param('bias', axes.weight(zeros, self.axis_name), (x.shape[-1],))
    return _recomputed(layer_norm, self.eps)(x, scale, shift)


def native_linear(x: jax.Array, kernel: jax.Array, num_in: int = 1) -> jax.Array:
  """The product of `linear`, with XLA's own gradients."""
  contracted = (tuple(range(x.ndim - num_in, x.ndim)), tuple(range(num_in)))
  return jax.lax.dot_general(x, kernel, (contracted, ((), ())))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def linear(x: jax.Array, kernel: jax.Array, num_in: int = 1) -> jax.Array:
  """Contracts the last `num_in` axes of `x` with the first ones of `kernel`, in their dtype.

  On a CPU the kernel's gradient is taken as x^T g from a finished g. Left alone, XLA takes
  (g^T x)^T: it copies g transposed together with all elementwise work that made it, which is then
  done twice, against the order of memory.

  Args:
    x: [rows..., inputs...].
    kernel: [inputs..., outputs...].
    num_in: how many axes the inputs are.

  Returns:
    [rows..., outputs...].
  """
  return native_linear(x, kernel, num_in)


def _linear_forward(x, kernel, num_in):
  return native_linear(x, kernel, num_in), (x, kernel)


def _linear_backward(num_in, residuals, grad):
  return jax.lax.platform_dependent(
    *residuals,
    grad,
    cpu=functools.partial(cpu_linear_grads, num_in),
    default=functools.partial(native_linear_grads, num_in),
  )


def native_linear_grads(
  num_in: int, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The gradients of `x` and `kernel` as XLA computes them."""
  return jax.vjp(lambda x, kernel: native_linear(x, kernel, num_in), x, kernel)[1](grad)


def cpu_linear_grads(
  num_in: int, x: jax.Array, kernel: jax.Array, grad: jax.Array
) -> tuple[jax.Array, jax.Array]:
  """The same in the order that is fast on a CPU."""
  grad = jax.lax.optimization_barrier(grad)
  rows = tuple(range(x.ndim - num_in))
  outputs = (tuple(range(len(rows), grad.ndim)), tuple(range(num_in, kernel.ndim)))
  return (
    jax.lax.dot_general(grad, kernel, (outputs, ((), ()))),
    jax.lax.dot_general(x, grad, ((rows, rows), ((), ()))),
  )


linear.defvjp(_linear_forward, _linear_backward)


class Dense(nn.Module):
  """A linear map of the last `num_in` axes to `features`, as one einsum-shaped weight.

  The weight has the shape `inputs + features` and the logical names `names`, one an axis.

  Attributes:
    features: sizes of the axes that come out.
    names: logical axes of the weight, inputs first.
    num_in: how many trailing axes of the input are contracted.
    bias: whether to add one, shaped `features`.
    initializer: of the weight; sees the two-dimensional shape (all inputs, all outputs).
  """

  features: Sequence[int]
  names: Sequence[str | None]
  num_in: int = 1
  bias: bool = False
  initializer: Callable = nn.initializers.normal(0.02)
  dtype: str = 'float32'

  @nn.compact
  def __call__(self, x: jax.Array) -> jax.Array:
    shape = x.shape[x.ndim - self.num_in :] + tuple(self.features)
    kernel = self.param('kernel', axes.weight(self._drawn, *self.names), shape)
    dtype = jnp.dtype(self.dtype)
    kernel = axes.gathered(kernel.astype(dtype), self.names)
    out = linear(x.astype(dtype), kernel, self.num_in)
    if self.bias:
      zeros = axes.weight(nn.initializers.zeros_init(), *self.names[self.num_in :])
      out = out + self.param('bias', zeros, tuple(self.features)).astype(dtype)
    return out

  def _drawn(self, key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    # Initializers that look at the fan-in must see matrices, not split heads.
    inputs = int(np.prod(shape[: self.num_in]))
    return self.initializer(key, (inputs, int(np.prod(shape)) // inputs), dtype).reshape(shape)


class Embedding(nn.Module):
  """A table of `num` rows of `width`; ids outside it give NaN rows, never a silent neighbour."""

  num: int
  width: int
  initializer: Callable = nn.initializers.normal(0.02)
  dtype: str = 'float32'

  def setup(self):
    init = axes.weight(self.initializer, axes.VOCAB, axes.EMBED)
    self.table = self.param('table', init, (self.num, self.width))

  def __call__(self, ids: jax.Array) -> jax.Array:
    return jnp.take(self.table, ids, axis=0, mode='fill').astype(self.dtype)

  def attend(self, x: jax.Array) -> jax.Array:
    """Products with every row: the logits of a tied output head, float32 [..., num]."""
    return jax.lax.dot_general(
      x.astype(self.dtype),
      self.table.astype(self.dtype),
      (((x.ndim - 1,), (1,)), ((), ())),
      preferred_element_type=jnp.float32,
    )


def dropout_seeds(key_B: jax.Array) -> jax.Array:
  """uint32 [B, 2] from per-example keys, typed ([B]) or raw (uint32 [B, words])."""
  if jnp.issubdtype(key_B.dtype, jax.dtypes.prng_key):
    key_B = jax.random.key_data(key_B)
  if key_B.ndim != 2 or key_B.dtype != jnp.uint32:
    raise ValueError(
      f'per-example dropout keys are {key_B.dtype}{list(key_B.shape)}, expected typed keys [B] or '
      'uint32 [B, words]; make them with jaxmm.task.example_keys(key, index_B)'
    )
  return jnp.stack([key_B[:, 0], key_B[:, -1]], axis=1)


def fold_seeds(seeds_B2: jax.Array, *numbers: jax.Array | int) -> jax.Array:
  """Seeds of a sub-stream (a layer, a place within it), as cheap as a few multiplications."""
  first, second = seeds_B2[:, 0], seeds_B2[:, 1]
  for number in numbers:
    word = jnp.asarray(number).astype(jnp.uint32) * jnp.uint32(_WEYL) + jnp.uint32(1)
    first, second = _mixed(first ^ word), _mixed(second + _mixed(word))
  return jnp.stack([first, second], axis=1)


def uniform_bits(seeds_B2: jax.Array, shape: Sequence[int]) -> jax.Array:
  """Uniform uint32 [B, *shape], a hash of (seed, place): the same for an example on any mesh or
  batch.

  A counter-based hash costs ten integer operations a number and fuses with its use; Threefry costs
  ten times that.
  """
  counter = jnp.zeros((1, *shape), jnp.uint32)
  for axis in range(len(shape)):
    stride = int(np.prod(shape[axis + 1 :], dtype=np.int64)) & 0xFFFFFFFF
    place = jax.lax.broadcasted_iota(jnp.uint32, (1, *shape), axis + 1)
    counter = counter + place * jnp.uint32(stride)
  first, second = (seeds_B2[:, i].reshape((-1,) + (1,) * len(shape)) for i in (0, 1))
  # The second word enters between the rounds, so that two examples' streams are no shifts of one
  # another.
  return _mixed(counter * jnp.uint32(_WEYL) + first, between=second)


def _mixed(x: jax.Array, between: jax.Array | None = None) -> jax.Array:
  x = (x ^ (x >> 16)) * jnp.uint32(_MIX_A)
  x = x if between is None else x ^ between
  x = (x ^ (x >> 15)) * jnp.uint32(_MIX_B)
  return x ^ (x >> 16)


def dropout(x_B: jax.Array, rate: float, seeds_B2: jax.Array | None) -> jax.Array:
  """Zeroes each entry with probability `rate` and scales the rest by 1 / (1 - rate).

  Args:
    x_B: any array with the batch in front.
    rate: in [0, 1).
    seeds_B2: an example's seeds (`dropout_seeds`, `fold_seeds`), or None for no dropout.
  """
  if seeds_B2 is None or rate == 0.0:
    return x_B
  keep = uniform_bits(seeds_B2, x_B.shape[1:]) >= jnp.uint32(round(rate * 2**32))
  return jnp.where(keep, x_B * (1.0 / (1.0 - rate)), 0).astype(x_B.dtype)
