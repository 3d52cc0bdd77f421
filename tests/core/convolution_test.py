"""Whichever way the convolution and its gradients are computed, they are the convolution's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxmm import sharding
from jaxmm.core import convolution

SAME = ((1, 1), (1, 1))
DOWN = ((0, 1), (0, 1))


def arrays(batch, rows, columns, channels, features, kernel=3, stride=1, padding=SAME):
  rng = np.random.default_rng(0)
  x = rng.standard_normal((batch, rows, columns, channels), np.float32)
  k = rng.standard_normal((kernel, kernel, channels, features), np.float32) / kernel
  shape = jax.eval_shape(lambda x, k: convolution.native(x, k, stride, padding), x, k).shape
  return x, k, rng.standard_normal(shape, np.float32)


@pytest.mark.parametrize(
  'shape, kernel, stride, padding',
  [
    ((2, 12, 10, 5, 3), 3, 1, SAME),
    ((3, 8, 12, 4, 6), 3, 2, DOWN),
    ((2, 9, 7, 4, 6), 3, 2, SAME),  # the last row or column of the padding is not met
    ((2, 11, 6, 4, 4), 4, 2, SAME),
    ((2, 6, 6, 3, 5), 3, 1, ((2, 0), (0, 2))),
    ((1, 7, 5, 4, 4), 1, 1, ((0, 0), (0, 0))),
    ((2, 8, 8, 6, 2), 1, 2, ((0, 0), (0, 0))),
  ],
)
def test_bands_sum_to_the_native_gradient(shape, kernel, stride, padding, monkeypatch):
  monkeypatch.setattr(convolution, '_BAND_ELEMENTS', 2000)  # several bands of several rows
  x, k, grad = arrays(*shape, kernel, stride, padding)
  native = convolution.native_kernel_grad(stride, padding, x, k, grad)
  banded = convolution.banded_kernel_grad(stride, padding, x, (kernel, kernel), grad)
  np.testing.assert_allclose(banded, native, atol=1e-5 * float(jnp.abs(native).max()))


@pytest.mark.parametrize(
  'shape, stride, padding, way',
  [
    ((1, 8, 8, 4, 4), 1, SAME, 'native'),
    ((2, 128, 128, 5, 4), 1, SAME, 'banded'),
    ((2, 128, 128, 4, 5), 2, DOWN, 'banded'),
    ((2, 16, 12, 16, 3), 1, SAME, 'banded'),
    ((2, 16, 12, 16, 3), 1, ((2, 0), (1, 1)), 'banded'),
    ((1, 32, 32, 64, 256), 1, SAME, 'banded'),
    ((2, 5, 6, 256, 257), 1, SAME, 'banded'),
    ((2, 5, 6, 257, 256), 1, ((2, 0), (0, 2)), 'banded'),
    ((2, 3, 4, 256, 256), 1, ((1, 0), (0, 0)), 'banded'),
    ((2, 6, 6, 256, 256), 2, DOWN, 'native'),
  ],
)
def test_every_way_that_is_chosen_is_the_native_gradient(shape, stride, padding, way, monkeypatch):
  taken = []
  banded = convolution.banded_kernel_grad
  monkeypatch.setattr(
    convolution, 'banded_kernel_grad', lambda *a: taken.append('banded') or banded(*a)
  )
  x, k, grad = arrays(*shape, 3, stride, padding)

  def everything(conv):
    def run(x, k):
      y, vjp = jax.vjp(lambda *a: conv(*a, stride, padding), x, k)
      return y, *vjp(grad)

    return jax.jit(run)(x, k)

  for ours, native in zip(everything(convolution.conv), everything(convolution.native)):
    np.testing.assert_allclose(ours, native, atol=1e-5 * float(jnp.abs(native).max()))
  assert (taken or ['native']) == [way]


def test_the_native_gradient_against_a_loop():
  x, k, grad = arrays(2, 5, 6, 3, 2, 3, 2, DOWN)
  padded = np.pad(x, ((0, 0), *DOWN, (0, 0)))
  expected = np.zeros_like(k)
  for y in range(grad.shape[1]):
    for z in range(grad.shape[2]):
      patch = padded[:, 2 * y : 2 * y + 3, 2 * z : 2 * z + 3]
      expected += np.einsum('bhwi,bo->hwio', patch, grad[:, y, z])
  for way in (convolution.native_kernel_grad, convolution.cpu_kernel_grad):
    np.testing.assert_allclose(way(2, DOWN, x, k, grad), expected, atol=1e-5)


def test_a_pointwise_convolution_is_the_native_one():
  x, k, grad = arrays(2, 4, 5, 6, 3, 1, 1, ((0, 0), (0, 0)))
  y, vjp = jax.vjp(lambda x, k: convolution.conv(x, k, 1, ((0, 0), (0, 0))), x, k)
  native, native_vjp = jax.vjp(lambda x, k: convolution.native(x, k, 1, ((0, 0), (0, 0))), x, k)
  np.testing.assert_allclose(y, native, atol=1e-5)
  for ours, theirs in zip(vjp(grad), native_vjp(grad)):
    np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_bfloat16_kernel_gradients_are_summed_in_float32():
  x, k, grad = arrays(2, 128, 128, 5, 4)
  low = [jnp.asarray(a, jnp.bfloat16) for a in (x, k, grad)]
  exact = convolution.native_kernel_grad(1, SAME, *(a.astype(jnp.float32) for a in low))
  ours = convolution.cpu_kernel_grad(1, SAME, *low)
  assert ours.dtype == jnp.bfloat16
  rounded = exact.astype(jnp.bfloat16).astype(jnp.float32)
  # One unit in the last of eight bits, where the two sums fall on two sides of a boundary.
  np.testing.assert_allclose(ours.astype(jnp.float32), rounded, rtol=2**-7, atol=1e-2)


def test_vmap_of_the_gradient():
  x, k, _ = arrays(4, 8, 6, 16, 3)

  def kernel_grad(conv):
    loss = lambda k, x: jnp.sum(conv(x[None], k, 1, SAME) ** 2)
    return jax.jit(jax.vmap(jax.grad(loss), in_axes=(None, 0)))(k, x)

  native = kernel_grad(convolution.native)
  assert native.shape == (4, 3, 3, 16, 3)
  np.testing.assert_allclose(
    kernel_grad(convolution.conv), native, atol=1e-5 * float(jnp.abs(native).max())
  )


@pytest.mark.parametrize('shape', [(8, 64, 64, 4, 3), (8, 8, 8, 16, 3)])
def test_the_gradient_of_a_batch_over_eight_devices(shape):
  x, k, grad = arrays(*shape)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=4, fsdp=2))
  rows = sharding.batch_sharding(mesh)
  kernels = jax.sharding.NamedSharding(mesh, P())

  def both(x, k, grad):
    return jax.vjp(lambda x, k: convolution.conv(x, k, 1, SAME), x, k)[1](grad)

  single = jax.jit(both)(x, k, grad)
  split = jax.jit(both, in_shardings=(rows, kernels, rows), out_shardings=(rows, kernels))(
    *(jax.device_put(a, s) for a, s in zip((x, k, grad), (rows, kernels, rows)))
  )
  for a, b in zip(split, single):
    np.testing.assert_allclose(a, b, atol=1e-5 * float(jnp.abs(b).max()))


def test_a_gradient_of_a_gradient():
  x, k, _ = arrays(1, 6, 6, 8, 2)

  def penalty(conv):
    return jax.grad(
      lambda k: jnp.sum(jax.grad(lambda x: jnp.sum(conv(x, k, 1, SAME) ** 3))(x) ** 2)
    )

  native = penalty(convolution.native)(k)
  np.testing.assert_allclose(
    penalty(convolution.conv)(k), native, atol=1e-5 * float(jnp.abs(native).max())
  )
