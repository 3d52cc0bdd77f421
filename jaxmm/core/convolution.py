"""The convolution itself, with gradients that are fast on a CPU as well.

XLA computes the weight gradient of a convolution on CPU at a tenth of the machine's speed. As one
matrix product a kernel position, contracting all map positions, it reaches the speed of matrix
products. Which one a program gets is decided when it is lowered for a platform, so nothing above
this file knows about devices.

Axes: B batch, Y rows, X columns, I and O channels in and out, H and W rows and columns of a kernel.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax

Padding = tuple[tuple[int, int], tuple[int, int]]
_LAYOUT = ('NHWC', 'HWIO', 'NHWC')


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x_BYXI: jax.Array, kernel_HWIO: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """Cross-correlation of a map with a kernel, in the dtype of its inputs; [B, Y', X', O].

  Args:
    stride: step in rows and columns.
    padding: zeros ((above, below), (left, right)); none of them negative.
  """
  return native(x_BYXI, kernel_HWIO, stride, padding)


def native(x_BYXI: jax.Array, kernel_HWIO: jax.Array, stride: int, padding: Padding) -> jax.Array:
  """The same as XLA's own convolution, with XLA's own gradients."""
  return lax.conv_general_dilated(
    x_BYXI, kernel_HWIO, (stride, stride), padding, dimension_numbers=_LAYOUT
  )


def _forward(x_BYXI, kernel_HWIO, stride, padding):
  return conv(x_BYXI, kernel_HWIO, stride, padding), (x_BYXI, kernel_HWIO)


def _backward(stride, padding, residuals, grad_BYXO):
  x_BYXI, kernel_HWIO = residuals
  _, input_vjp = jax.vjp(lambda x: native(x, kernel_HWIO, stride, padding), x_BYXI)
  kernel_grad_HWIO = lax.platform_dependent(
    x_BYXI,
    kernel_HWIO,
    grad_BYXO,
    cpu=functools.partial(_shifted_kernel_grad, stride, padding),
    default=functools.partial(_native_kernel_grad, stride, padding),
  )
  return *input_vjp(grad_BYXO), kernel_grad_HWIO


conv.defvjp(_forward, _backward)


def _native_kernel_grad(stride, padding, x_BYXI, kernel_HWIO, grad_BYXO):
  _, vjp = jax.vjp(lambda kernel: native(x_BYXI, kernel, stride, padding), kernel_HWIO)
  return vjp(grad_BYXO)[0]


def _shifted_kernel_grad(stride, padding, x_BYXI, kernel_HWIO, grad_BYXO):
  """One matrix product a kernel position: the inputs that it met, against the output's gradient."""
  H, W, I, O = kernel_HWIO.shape
  B, Y, X, _ = grad_BYXO.shape
  padded = jnp.pad(x_BYXI, ((0, 0), *padding, (0, 0)))
  blocks = []
  for h in range(H):
    for w in range(W):
      met_BYXI = lax.slice(
        padded,
        (0, h, w, 0),
        (B, h + (Y - 1) * stride + 1, w + (X - 1) * stride + 1, I),
        (1, stride, stride, 1),
      )
      blocks.append(
        lax.dot_general(
          met_BYXI,
          grad_BYXO,
          (((0, 1, 2), (0, 1, 2)), ((), ())),
          preferred_element_type=jnp.float32,
        )
      )
  return jnp.stack(blocks).reshape(H, W, I, O).astype(kernel_HWIO.dtype)
