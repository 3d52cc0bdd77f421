"""A digest of a sharded array that is the same on any mesh and any number of processes.

It is sum_i word_i * weight(i) mod 2^64, where word_i < 2^32 is the bit pattern at the global index
i and weight(i) the product of one odd pseudo-random number an axis. So the digests of shards add up
to that of the array. Because weights are odd, one changed element always shows; several changed at
random slip through with probability 2^-64. It is no defence against malice. It is worked out on the
host, where the bytes go anyway when they are saved, so nothing is compiled.
"""

from __future__ import annotations

import concurrent.futures
import os
from collections.abc import Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils


def local_digests(arrays: Sequence[jax.Array], every_replica: bool = False) -> np.ndarray:
  """This process's part of each array's digest, uint64 [arrays]; their sum over processes is whole.

  Args:
    arrays: of any sharding and any dtype that numpy can view as integers.
    every_replica: whether all copies count, replica r 2r+1 times (then the sum is the digest times
      `replica_weight` where all copies are right), or the first one only.
  """

  def one(x: jax.Array) -> int:
    total, done = 0, {}
    for shard in x.addressable_shards:
      if shard.replica_id == 0 or every_replica:
        starts = tuple(s.start or 0 for s in shard.index)
        if starts not in done:
          done[starts] = block_digest(np.asarray(shard.data), starts)
        total += done[starts] * (2 * shard.replica_id + 1)
    return total % 2**64

  with concurrent.futures.ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
    return np.array(list(pool.map(one, arrays)), np.uint64)


def replica_weight(x: jax.Array) -> int:
  """How often `local_digests(every_replica=True)` counts x: the sum of 2r+1 over its replicas r."""
  indices = x.sharding.devices_indices_map(x.shape).values()
  distinct = len({tuple(s.start or 0 for s in index) for index in indices})
  return (len(indices) // distinct) ** 2


def whole(parts: np.ndarray) -> list[int]:
  """The parts of all processes added up, mod 2^64."""
  if jax.process_count() == 1:
    return parts.tolist()
  halves = multihost_utils.process_allgather(
    parts.view(np.uint32)
  )  # jax has no 64-bit integers here
  gathered = np.ascontiguousarray(halves).view(np.uint64)
  return np.add.reduce(gathered.reshape(jax.process_count(), -1), axis=0, dtype=np.uint64).tolist()


def block_digest(block: np.ndarray, starts: tuple[int, ...]) -> int:
  """The part of the digest that a block at `starts` of the global array gives."""
  if not block.size:
    return 0
  # One more axis, for the 32-bit words of an element of 8 or 16 bytes.
  words = np.ascontiguousarray(block.reshape(*block.shape, 1))
  words = words.view(f'uint{8 * min(words.dtype.itemsize, 4)}')
  weights = [_weights(axis, *span) for axis, span in enumerate(zip((*starts, 0), words.shape))]
  tail = weights.pop()
  while weights and len(weights[-1]) * len(tail) <= 2**16:  # long rows, yet within the cache
    tail = np.multiply.outer(weights.pop(), tail).ravel()
  sums = np.einsum('ij,j->i', words.reshape(-1, len(tail)), tail)
  while weights:
    weight = weights.pop()
    sums = np.einsum('ij,j->i', sums.reshape(-1, len(weight)), weight)
  return int(sums[0])


def _weights(axis: int, start: int, size: int) -> np.ndarray:
  """Odd uint64 [size]: splitmix64 (Steele et al. 2014) of the index along an axis."""
  x = np.arange(start, start + size, dtype=np.uint64) + np.uint64((axis + 1) << 48)
  x *= np.uint64(0x9E3779B97F4A7C15)
  x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
  x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
  return (x ^ (x >> np.uint64(31))) | np.uint64(1)
