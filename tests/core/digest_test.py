"""The digest is the definition's, on any sharding, and one wrong bit always shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm.core import digest


def splitmix64(x):
  mask = 2**64 - 1
  x = x * 0x9E3779B97F4A7C15 & mask
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & mask
  x = (x ^ x >> 27) * 0x94D049BB133111EB & mask
  return (x ^ x >> 31) | 1


def by_definition(array):
  """One Python loop over elements; the last axis counts the 32-bit words of an element."""
  words = np.ascontiguousarray(array[..., None])
  words = words.view(f'u{min(words.dtype.itemsize, 4)}')
  total = 0
  for index, word in np.ndenumerate(words):
    weight = 1
    for axis, i in enumerate(index):
      weight = weight * splitmix64(i + (axis + 1 << 48)) % 2**64
    total += int(word) * weight
  return total % 2**64


def whole(x):
  return digest.local_digests([x]).tolist()[0]


@pytest.mark.parametrize('dtype', ['float32', 'bfloat16', 'int8', 'bool', 'uint32', 'complex64'])
def test_is_its_definition_on_any_sharding(dtype):
  mesh = jax.make_mesh((2, 4), ('x', 'y'), axis_types=(AxisType.Auto,) * 2)
  array = np.random.default_rng(0).normal(size=(4, 3, 8)) * 10
  array = np.asarray(jnp.asarray(array > 0 if dtype == 'bool' else array, dtype))
  expected = by_definition(array)
  for spec in (P(), P('x'), P(None, None, 'y'), P('y', None, 'x'), P(None, None, ('x', 'y'))):
    x = jax.device_put(array, NamedSharding(mesh, spec))
    assert whole(x) == expected, spec
    (copies,) = digest.local_digests([x], every_replica=True).tolist()
    assert copies == expected * digest.replica_weight(x) % 2**64, spec


@pytest.mark.parametrize('shape', [(), (1,), (70_000,), (3, 70_000), (5000, 30)])
def test_long_axes_and_scalars(shape):
  array = np.random.default_rng(1).integers(0, 2**32, shape, dtype=np.uint32)
  # The sum over the first half and the second half of the first axis, with that axis' weights.
  if array.size < 100:
    assert whole(jnp.asarray(array)) == by_definition(array)
  else:
    middle = shape[0] // 2
    start = (0,) * (len(shape) - 1)
    parts = [
      digest.block_digest(array[:middle], (0, *start)),
      digest.block_digest(array[middle:], (middle, *start)),
    ]
    assert whole(jnp.asarray(array)) == sum(parts) % 2**64


def test_every_single_bit_and_what_cancels_in_weaker_sums_shows():
  array = np.random.default_rng(2).normal(size=(4, 8)).astype(np.float32)
  good = digest.block_digest(array, (0, 0))
  seen = {good}
  for i in range(array.size):
    for bit in range(32):
      bad = array.copy()
      bad.view(np.uint32).reshape(-1)[i] ^= np.uint32(1) << np.uint32(bit)
      seen.add(digest.block_digest(bad, (0, 0)))
  assert len(seen) == 1 + 32 * array.size
  for bad in (array[::-1], array[:, ::-1], -array, np.roll(array, 1)):
    assert digest.block_digest(bad, (0, 0)) != good
  two = array.copy()
  two[0, 0], two[1, 1] = -two[0, 0], -two[1, 1]  # two sign bits: 2^31 * (odd + odd)
  assert digest.block_digest(two, (0, 0)) != good
