"""The convolution itself, with a kernel gradient that is fast on a CPU as well.

XLA's kernel gradient on CPU falls to a third of the machine's speed or less on large maps, and to a
fiftieth where a layer has few channels out. Summed over bands of rows, each one a matrix product
that fits the cache, it keeps its speed. Which one a program gets is decided when it is lowered for
a platform, so that nothing above this file knows about devices; accelerators keep XLA's own.

Axes: B batch, Y rows, X columns, I and O channels in and out, H and W rows and columns of a kernel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# Measured on a server core with 1 MiB of second-level cache: below these sizes XLA's own is faster.
_LARGE_MAP = 64 * 64
_LARGE_BATCH = 2**15  # positions of all maps of a batch
_BAND_ELEMENTS = 2**20  # of one band's patches


def conv(x_BYXI: jax.Array, kernel_HWIO: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Cross-correlation of a map with a kernel, in the dtype of its inputs; [B, Y', X', O].

  Args:
    stride: step in rows and columns.
    padding: zeros ((above, below), (left, right)); each less than the kernel's side.
  """
  if kernel_HWIO.shape[:2] == (1, 1) and stride == 1 and padding == ((0, 0), (0, 0)):
    return x_BYXI @ kernel_HWIO[0, 0]
  return _conv(x_BYXI, kernel_HWIO, stride, padding)


def native(x_BYXI: jax.Array, kernel_HWIO: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """The same as XLA's own convolution, with XLA's own gradients."""
  return lax.conv_general_dilated(
    x_BYXI, kernel_HWIO, (stride, stride), padding, dimension_numbers=_LAYOUT
  )


_conv = jax.custom_vjp(native, nondiff_argnums=(2, 3))


def _forward(x_BYXI, kernel_HWIO, stride, padding):
  return native(x_BYXI, kernel_HWIO, stride, padding), (x_BYXI, kernel_HWIO)


def _backward(stride, padding, residuals, grad_BYXO):
  x_BYXI, kernel_HWIO = residuals
  _, input_vjp = jax.vjp(lambda x: native(x, kernel_HWIO, stride, padding), x_BYXI)
  kernel_grad_HWIO = lax.platform_dependent(
    x_BYXI,
    kernel_HWIO,
    grad_BYXO,
    cpu=functools.partial(cpu_kernel_grad, stride, padding),
    default=functools.partial(native_kernel_grad, stride, padding),
  )
  return *input_vjp(grad_BYXO), kernel_grad_HWIO


_conv.defvjp(_forward, _backward)


def native_kernel_grad(
  stride: int, padding: Padding, x_BYXI: jax.Array, kernel_HWIO: jax.Array, grad_BYXO: jax.Array
) -> jax.Array:
  """The kernel's gradient as XLA computes it."""
  _, vjp = jax.vjp(lambda kernel: native(x_BYXI, kernel, stride, padding), kernel_HWIO)
  return vjp(grad_BYXO)[0]


def cpu_kernel_grad(
  stride: int, padding: Padding, x_BYXI: jax.Array, kernel_HWIO: jax.Array, grad_BYXO: jax.Array
) -> jax.Array:
  """The kernel's gradient by whichever way is fastest on a CPU at this size."""
  H, W, I, O = kernel_HWIO.shape
  (above, below), (left, right) = padding
  positions = x_BYXI.shape[1] * x_BYXI.shape[2]
  if stride == 1 and 4 * O <= I:
    # Patches are cut from the side with fewer channels: seen from the output, the input is shifted
    # the other way, so the kernel comes out reversed and with its channels exchanged.
    mirrored = ((H - 1 - above, H - 1 - below), (W - 1 - left, W - 1 - right))
    grad_HWOI = banded_kernel_grad(1, mirrored, grad_BYXO, (H, W), x_BYXI)
    grad_HWIO = grad_HWOI[::-1, ::-1].swapaxes(2, 3)
  elif positions >= _LARGE_MAP and positions * x_BYXI.shape[0] >= _LARGE_BATCH:
    grad_HWIO = banded_kernel_grad(stride, padding, x_BYXI, (H, W), grad_BYXO)
  else:
    return native_kernel_grad(stride, padding, x_BYXI, kernel_HWIO, grad_BYXO)
  return grad_HWIO.astype(kernel_HWIO.dtype)


def banded_kernel_grad(
  stride: int,
  padding: Padding,
  x_BYXI: jax.Array,
  kernel_size: tuple[int, int],
  grad_BYXO: jax.Array,
) -> jax.Array:
  """The kernel's gradient as a sum over bands of rows of (output gradient)^T (patches), float32.

  The band keeps the whole batch, so a batch split over devices stays split.
  """
  (H, W), I = kernel_size, x_BYXI.shape[-1]
  B, Y, X, O = grad_BYXO.shape
  rows = _largest_divisor(Y, _BAND_ELEMENTS // (B * X * H * W * I))
  padded_BYXI = jnp.pad(x_BYXI, ((0, 0), *padding, (0, 0)))
  tall, wide = (rows - 1) * stride + 1, (X - 1) * stride + 1

  def add_band(sum_OK, band):
    x_ByXI = lax.dynamic_slice_in_dim(padded_BYXI, band * rows * stride, tall + H - 1, axis=1)
    grad_ByXO = lax.dynamic_slice_in_dim(grad_BYXO, band * rows, rows, axis=1)
    met_ByXI = [
      lax.slice(x_ByXI, (0, h, w, 0), (B, h + tall, w + wide, I), (1, stride, stride, 1))
      for h in range(H)
      for w in range(W)
    ]
    patches_NK = jnp.concatenate(met_ByXI, axis=-1).reshape(-1, H * W * I)
    contract = (((0,), (0,)), ((), ()))
    band_OK = lax.dot_general(
      grad_ByXO.reshape(-1, O), patches_NK, contract, preferred_element_type=jnp.float32
    )
    return sum_OK + band_OK, None

  zero_OK = jnp.zeros((O, H * W * I), jnp.float32)
  sum_OK, _ = lax.scan(add_band, zero_OK, jnp.arange(Y // rows))
  return sum_OK.reshape(O, H, W, I).transpose(1, 2, 3, 0)


def _largest_divisor(number: int, limit: int) -> int:
  """The largest divisor up to `limit`; 1 if the limit is less than that."""
  return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(1, limit))
