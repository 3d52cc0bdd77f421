"""The convolution itself, as fast on a CPU as elsewhere.

XLA's kernel gradient on CPU falls to a third of the machine's speed or less on large maps, and to a
fiftieth where a layer has few channels out. Summed over bands of rows, each one a matrix product
that fits the cache, it keeps its speed. Wide layers at few positions are slow there all three ways
(forward, and both gradients), and are single matrix products here. Which one a program gets is
decided when it is lowered for a platform, so that nothing above this file knows about devices;
accelerators keep XLA's own.

Axes: B batch, Y rows, X columns, I and O channels in and out, H and W rows and columns of a kernel.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]

_LAYOUT = ('NHWC', 'HWIO', 'NHWC')
# Measured on server cores with 1 MiB of second-level cache: below these sizes XLA's own is faster.
_LARGE_MAP, _LARGE_BATCH = 64 * 64, 2**15  # positions of a map, of all maps of a batch
_WIDE_MAP, _WIDE = 32 * 32, 2**14  # positions from which on it is slower; elements of I x O
_BAND_ELEMENTS = 2**20  # of one band's patches
# Up to here a product reads the kernel once, and the patches are smaller than it.
_FEW_POSITIONS, _VERY_WIDE = 256, 2**16


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


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x_BYXI, kernel_HWIO, stride, padding):
  if not _is_one_product(x_BYXI, kernel_HWIO, stride):
    return native(x_BYXI, kernel_HWIO, stride, padding)
  return lax.platform_dependent(
    x_BYXI,
    kernel_HWIO,
    cpu=functools.partial(product, padding),
    default=lambda x, kernel: native(x, kernel, stride, padding),
  )


def _forward(x_BYXI, kernel_HWIO, stride, padding):
  return _conv(x_BYXI, kernel_HWIO, stride, padding), (x_BYXI, kernel_HWIO)


def _backward(stride, padding, residuals, grad_BYXO):
  x_BYXI, kernel_HWIO = residuals
  if _is_one_product(x_BYXI, kernel_HWIO, stride):
    x_grad_BYXI = lax.platform_dependent(
      *(x_BYXI, kernel_HWIO, grad_BYXO),
      cpu=functools.partial(product_input_grad, padding),
      default=functools.partial(native_input_grad, stride, padding),
    )
  else:
    x_grad_BYXI = native_input_grad(stride, padding, x_BYXI, kernel_HWIO, grad_BYXO)
  kernel_grad_HWIO = lax.platform_dependent(
    x_BYXI,
    kernel_HWIO,
    grad_BYXO,
    cpu=functools.partial(cpu_kernel_grad, stride, padding),
    default=functools.partial(native_kernel_grad, stride, padding),
  )
  return x_grad_BYXI, kernel_grad_HWIO


_conv.defvjp(_forward, _backward)


def _is_one_product(x_BYXI: jax.Array, kernel_HWIO: jax.Array, stride: int) -> bool:
  """Whether a wide layer meets so few positions that on a CPU one product is faster."""
  I, O = kernel_HWIO.shape[2:]
  return stride == 1 and math.prod(x_BYXI.shape[:3]) <= _FEW_POSITIONS and I * O >= _VERY_WIDE


def product(padding: Padding, x_BYXI: jax.Array, kernel_HWIO: jax.Array) -> jax.Array:
  """The convolution of stride 1 as patches times kernel."""
  H, W, I, O = kernel_HWIO.shape
  padded_BYXI = jnp.pad(x_BYXI, ((0, 0), *padding, (0, 0)))
  B, Y, X = padded_BYXI.shape[0], padded_BYXI.shape[1] - H + 1, padded_BYXI.shape[2] - W + 1
  patches_NK = _patches(padded_BYXI, (H, W), (Y, X), 1)
  return (patches_NK @ kernel_HWIO.reshape(H * W * I, O)).reshape(B, Y, X, O)


def product_input_grad(
  padding: Padding, x_BYXI: jax.Array, kernel_HWIO: jax.Array, grad_BYXO: jax.Array
) -> jax.Array:
  """The input's gradient of stride 1: of all patches at once, each added where it was cut out."""
  H, W, I, O = kernel_HWIO.shape
  B, Y, X, _ = grad_BYXO.shape
  contract = (((1,), (1,)), ((), ()))
  patches_NK = lax.dot_general(
    grad_BYXO.reshape(-1, O), kernel_HWIO.reshape(H * W * I, O), contract
  )
  patches_BYXHWI = patches_NK.reshape(B, Y, X, H, W, I)
  (above, _), (left, _) = padding
  sum_BYXI = jnp.zeros_like(x_BYXI)
  for h in range(H):
    for w in range(W):
      rows = (h - above, x_BYXI.shape[1] - Y - (h - above), 0)
      columns = (w - left, x_BYXI.shape[2] - X - (w - left), 0)
      zero = jnp.zeros((), patches_NK.dtype)
      sum_BYXI += lax.pad(
        patches_BYXHWI[:, :, :, h, w], zero, ((0, 0, 0), rows, columns, (0, 0, 0))
      )
  return sum_BYXI


def native_input_grad(
  stride: int, padding: Padding, x_BYXI: jax.Array, kernel_HWIO: jax.Array, grad_BYXO: jax.Array
) -> jax.Array:
  """The input's gradient as XLA computes it."""
  _, vjp = jax.vjp(lambda x: native(x, kernel_HWIO, stride, padding), x_BYXI)
  return vjp(grad_BYXO)[0]


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
  elif (
    (positions >= _LARGE_MAP and positions * x_BYXI.shape[0] >= _LARGE_BATCH)
    or (positions >= _WIDE_MAP and I * O >= _WIDE)
    or _is_one_product(x_BYXI, kernel_HWIO, stride)
  ):
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
  tall = (rows - 1) * stride + H

  def add_band(sum_OK, band):
    x_ByXI = lax.dynamic_slice_in_dim(padded_BYXI, band * rows * stride, tall, axis=1)
    grad_ByXO = lax.dynamic_slice_in_dim(grad_BYXO, band * rows, rows, axis=1)
    patches_NK = _patches(x_ByXI, (H, W), (rows, X), stride)
    contract = (((0,), (0,)), ((), ()))
    band_OK = lax.dot_general(
      grad_ByXO.reshape(-1, O), patches_NK, contract, preferred_element_type=jnp.float32
    )
    return sum_OK + band_OK, None

  zero_OK = jnp.zeros((O, H * W * I), jnp.float32)
  sum_OK, _ = lax.scan(add_band, zero_OK, jnp.arange(Y // rows))
  return sum_OK.reshape(O, H, W, I).transpose(1, 2, 3, 0)


def _patches(
  padded_BYXI: jax.Array, kernel_size: tuple[int, int], out_size: tuple[int, int], stride: int
) -> jax.Array:
  """What the kernel meets at every position of a result of `out_size`: [B * Y' * X', H * W * I]."""
  (H, W), (B, I) = kernel_size, (padded_BYXI.shape[0], padded_BYXI.shape[-1])
  tall, wide = ((n - 1) * stride + 1 for n in out_size)
  met_BYXI = [
    lax.slice(padded_BYXI, (0, h, w, 0), (B, h + tall, w + wide, I), (1, stride, stride, 1))
    for h in range(H)
    for w in range(W)
  ]
  return jnp.concatenate(met_BYXI, axis=-1).reshape(-1, H * W * I)


def _largest_divisor(number: int, limit: int) -> int:
  """The largest divisor up to `limit`; 1 if the limit is less than that."""
  return max(d for d in range(1, number + 1) if number % d == 0 and d <= max(1, limit))
