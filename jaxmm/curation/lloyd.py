"""Lloyd's k-means on a mesh, without the products that cannot change anything.

A row keeps its centroid while that is nearer than a lower bound of the distance to all others. The
bound falls by what the others moved (the triangle inequality, as in Hamerly 2010, 'Making k-means
even faster'). A few centroids that move far would spoil it for all rows, so centroids stand in
groups by how far they moved: the first groups are compared with all rows, and the bound falls by
the farthest move of the rest; how many groups, each stripe chooses by what is least work. Rows
whose bound does not hold are compared with all centroids. Bounds leave room for rounding, so that
what comes out is what comparing all pairs gives, and sums are of all rows in one order.

Axes: N rows, K clusters, D width, S stripes, M blocks of a stripe, B rows of a block, G groups of
centroids.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxmm.config import ConfigError
from jaxmm.curation.similarity import aligned, largest, product

_ROWS = ('data', 'fsdp')
_BLOCK = 2048
# Rows that are compared with all centroids at once; of the last so many some are none.
_AGAIN = 512
_GROUPS = 8
# Rows that are read at once when they are dealt.
_AT_ONCE = 1 << 16


class Dealt:
  """Rows dealt into stripes and blocks, on the mesh; row n is number n of all blocks in order.

  Args:
    x_ND: float32 rows; copied once.
    stripes: devices that rows are split over must divide it.
    spherical: nearest by the largest cosine; else by Euclidean distance.
    mesh: rows are split over its `data` and `fsdp`.

  Raises:
    ConfigError: devices that do not divide `stripes`.
  """

  def __init__(self, x_ND: np.ndarray, stripes: int, spherical: bool, mesh: jax.sharding.Mesh):
    parts = mesh.shape['data'] * mesh.shape['fsdp']
    if stripes % parts:
      raise ConfigError(
        f'stripes is {stripes}, expected a multiple of the {parts} devices that rows are '
        'split over; results do not depend on the mesh, but they do on stripes'
      )
    self._N, self._spherical, self._mesh = len(x_ND), spherical, mesh
    self._shape = shape_of(*x_ND.shape, stripes)
    split = NamedSharding(mesh, P(_ROWS))
    self._x = jax.make_array_from_callback(
      self._shape, split, lambda index: self._stripes(x_ND, index[0])
    )
    self._square = _squares(self._x, mesh)
    self._before: tuple | None = None  # centroids of the last step, and what it found

  def _stripes(self, x_ND: np.ndarray, index: slice) -> np.ndarray:
    """The rows of a few stripes, zeros behind the last one."""
    S, M, B, D = self._shape
    first, end = index.start or 0, S if index.stop is None else index.stop
    part = aligned(((end - first) * M * B, D))
    begin = first * M * B
    for low in range(0, len(part), _AT_ONCE):
      rows = x_ND[begin + low : begin + min(low + _AT_ONCE, len(part))]
      part[low : low + len(rows)] = rows
    part[max(self._N - begin, 0) :] = 0
    return part.reshape(-1, M, B, D)

  def step(self, centroid_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(sum_KD, count_K, cluster_N, nearness_N) of the rows with these centroids.

    Nearness is the cosine, or the squared distance if Euclidean.
    """
    if self._before is None:
      state = _unknown(self._x, self._mesh)
      before_KD = centroid_KD
    else:
      before_KD, state = self._before
    order_GC, farthest_G = groups(before_KD, centroid_KD)
    *found, state = _one_step(
      self._x, self._square, state, jnp.asarray(centroid_KD), order_GC, farthest_G,
      self._N, self._mesh, self._spherical,
    )  # fmt: skip
    self._before = centroid_KD, state
    sum_KD, count_K, cluster, near = jax.device_get(found)
    return sum_KD, count_K, cluster.reshape(-1)[: self._N], near.reshape(-1)[: self._N]

  def distance(self, nearness_N: np.ndarray) -> np.ndarray:
    """Cosine or Euclidean distance from the nearness, float32."""
    if self._spherical:
      return np.float32(1) - nearness_N
    return np.sqrt(np.maximum(nearness_N, 0))

  def mean(self, nearness_N: np.ndarray) -> float:
    """The mean distance (squared if Euclidean)."""
    mean = float(np.mean(nearness_N, dtype=np.float64))
    return 1 - mean if self._spherical else mean

  def worst(self, nearness_N: np.ndarray, number: int) -> np.ndarray:
    """Rows that are farthest from their centroids, the least of several first."""
    key_N = nearness_N if self._spherical else -nearness_N
    return np.argsort(key_N, kind='stable')[:number]


def shape_of(N: int, D: int, stripes: int) -> tuple[int, int, int, int]:
  """(S, M, B, D) of the rows when they are dealt."""
  M = -(-N // (stripes * _BLOCK))
  return stripes, M, -(-N // (stripes * M)), D


def groups(before_KD: np.ndarray, centroid_KD: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """(order_GC, farthest_G): centroids by how far they moved, K where a group is not full; and the
  farthest move in groups g and later."""
  K = len(centroid_KD)
  moved_K = np.linalg.norm(centroid_KD.astype(np.float64) - before_KD, axis=1)
  order_K = np.argsort(-moved_K, kind='stable').astype(np.int32)
  C = -(-K // _GROUPS)
  order = np.full(_GROUPS * C, K, np.int32)
  order[:K] = order_K
  sorted_GC = np.zeros(_GROUPS * C)
  sorted_GC[:K] = moved_K[order_K]
  # Rounded up: a bound must fall by no less.
  farthest_G = (sorted_GC[::C] * (1 + 1e-6)).astype(np.float32)
  return order.reshape(_GROUPS, C), farthest_G


@functools.partial(jax.jit, static_argnames='mesh')
def _squares(x_SMBD: jax.Array, mesh) -> jax.Array:
  """Squared lengths, block by block: sums round alike on any number of devices."""
  of_block = lambda x_BD: jnp.sum(jnp.square(x_BD), axis=-1)
  local = lambda x_SMBD: jax.lax.map(lambda x_MBD: jax.lax.map(of_block, x_MBD), x_SMBD)
  return jax.shard_map(local, mesh=mesh, in_specs=P(_ROWS), out_specs=P(_ROWS), check_vma=False)(
    x_SMBD
  )


@functools.partial(jax.jit, static_argnames='mesh')
def _unknown(x_SMBD: jax.Array, mesh) -> tuple[jax.Array, jax.Array]:
  """(cluster_SMB, bound_SMB) of which nothing holds."""

  def local(x_SMBD):
    shape = x_SMBD.shape[:3]
    return jnp.zeros(shape, jnp.int32), jnp.full(shape, -jnp.inf, jnp.float32)

  return jax.shard_map(local, mesh=mesh, in_specs=P(_ROWS), out_specs=P(_ROWS), check_vma=False)(
    x_SMBD
  )


@functools.partial(jax.jit, static_argnames=('num_rows', 'mesh', 'spherical'))
def _one_step(
  x_SMBD, square_SMB, state, centroid_KD, order_GC, farthest_G, num_rows: int, mesh, spherical: bool
):
  """Sums and counts of every cluster, of every row its cluster and nearness; the next state."""
  S = x_SMBD.shape[0]
  local = functools.partial(_of_stripes, num_rows=num_rows, spherical=spherical)
  split, whole = P(_ROWS), P()
  gathered = jax.shard_map(
    local,
    mesh=mesh,
    in_specs=(split, split, split, split, whole, whole, whole),
    out_specs=(whole, whole, whole, whole, split),
    check_vma=False,
  )
  stripe_S = jnp.arange(S, dtype=jnp.int32)
  return gathered(x_SMBD, square_SMB, state, stripe_S, centroid_KD, order_GC, farthest_G)


def _of_stripes(
  x_SMBD, square_SMB, state, stripe_S, centroid_KD, order_GC, farthest_G, *, num_rows, spherical
):
  """A device's stripes one after the other; then all stripes, gathered and added in order."""
  _, M, B, _ = x_SMBD.shape

  def stripe(inputs):
    x_MBD, square_MB, (cluster_MB, bound_MB), s = inputs
    is_row_MB = (s * M * B + jnp.arange(M * B) < num_rows).reshape(M, B)
    rows = _Stripe(x_MBD, square_MB, is_row_MB, centroid_KD, spherical)
    state = rows.nearest(cluster_MB, bound_MB, order_GC, farthest_G)
    sum_KD, count_K, near_MB = rows.sums(state[0])
    return sum_KD, count_K, near_MB, state

  sums, counts, near, state = jax.lax.map(stripe, (x_SMBD, square_SMB, state, stripe_S))
  sums, counts, cluster, near = jax.tree.map(
    lambda a: jax.lax.all_gather(a, _ROWS, tiled=True), (sums, counts, state[0], near)
  )
  total = sums[0]
  for s in range(1, len(sums)):
    total = total + sums[s]
  return total, jnp.sum(counts, axis=0), cluster, near, state


class _Stripe:
  """The rows of a stripe and the centroids, while a program is traced.

  Scores are products, less half the centroid's squared length if Euclidean: the largest is of the
  nearest. A squared distance is |x|^2 + |c|^2 - 2 x c, of which rounding changes `_room` at most.
  """

  def __init__(self, x_MBD, square_MB, is_row_MB, centroid_KD, spherical):
    self._x, self._square, self._is_row = x_MBD, square_MB, is_row_MB
    self._centroid, self._spherical = centroid_KD, spherical
    length_K = jnp.sum(jnp.square(centroid_KD), axis=1)
    self._half_K = jnp.zeros_like(length_K) if spherical else 0.5 * length_K
    # Of |c|^2 where scores lack it: cosines are compared, whatever lengths are left by rounding.
    self._low = jnp.min(length_K) if spherical else jnp.float32(0)
    self._high = jnp.max(length_K) if spherical else jnp.float32(0)
    # Sums of D products are off by D 2^-24 of their size at most; twice what three of them add to.
    self._room = 2.0**-22 * (x_MBD.shape[-1] + 8) * (square_MB + jnp.max(length_K))

  def nearest(self, cluster_MB, bound_MB, order_GC, farthest_G):
    """(cluster_MB, bound_MB): the nearest centroids, and no more than the distance to any other."""
    upper_MB = self._upper(self._own(cluster_MB))
    # Rounded down: what subtractions round adds up over iterations.
    bound_GMB = (bound_MB - farthest_G[:, None, None]) * (1 - 2.0**-22)
    fails_G = jnp.sum((upper_MB >= bound_GMB) & self._is_row, axis=(1, 2))
    taken = jnp.argmin(fails_G + jnp.arange(_GROUPS) * (cluster_MB.size // _GROUPS))
    bound_MB = self._with_groups(cluster_MB, bound_GMB[taken], order_GC, taken)
    fails_MB = (upper_MB >= bound_MB) & self._is_row
    return self._compared(cluster_MB, bound_MB, fails_MB)

  def sums(self, cluster_MB):
    """(sum_KD, count_K, near_MB) of rows with these clusters."""
    K = len(self._centroid)
    own_MB = self._own(cluster_MB)
    # Rows behind the last one are added nowhere.
    cluster_MB = jnp.where(self._is_row, cluster_MB, K)

    def block(carry, inputs):
      (sum_KD, count_K), (x_BD, cluster_B) = carry, inputs
      sum_KD = sum_KD.at[cluster_B].add(x_BD, mode='drop')
      return (sum_KD, count_K.at[cluster_B].add(1, mode='drop')), None

    none = jnp.zeros_like(self._centroid), jnp.zeros(K, jnp.int32)
    (sum_KD, count_K), _ = jax.lax.scan(block, none, (self._x, cluster_MB))
    return sum_KD, count_K, own_MB if self._spherical else self._square - 2 * own_MB

  def _own(self, cluster_MB):
    """Scores of rows with their own centroids."""
    ones_D = jnp.ones(self._x.shape[-1])

    def block(inputs):
      x_BD, cluster_B = inputs
      # A product with ones, as XLA vectorises no sum over the last axis.
      sum_B = product((x_BD * self._centroid[cluster_B]), ones_D[None])[:, 0]
      return sum_B - self._half_K[cluster_B]

    return jax.lax.map(block, (self._x, cluster_MB))

  def _upper(self, score_MB):
    """More than the distance for a score; less than another's `_least` only with a larger score."""
    return jnp.sqrt(self._square + 2 * self._high - self._low - 2 * score_MB + self._room)

  def _least(self, score, square, room):
    """No more than the distance for a score."""
    return jnp.sqrt(jnp.maximum(square + self._low - 2 * score - room, 0))

  def _with_groups(self, cluster_MB, bound_MB, order_GC, taken):
    """Bounds that hold for the first groups, too."""

    def block(inputs):
      x_BD, cluster_B, bound_B, square_B, room_B = inputs

      def group(g, bound_B):
        order_C = order_GC[g]
        score_BC = product(x_BD, self._centroid[order_C]) - self._half_K[order_C]
        is_none = (order_C == cluster_B[:, None]) | (order_C == len(self._centroid))
        best_B = jnp.max(jnp.where(is_none, -jnp.inf, score_BC), axis=1)
        return jnp.minimum(bound_B, self._least(best_B, square_B, room_B))

      return jax.lax.fori_loop(0, taken, group, bound_B)

    return jax.lax.map(block, (self._x, cluster_MB, bound_MB, self._square, self._room))

  def _compared(self, cluster_MB, bound_MB, which_MB):
    """Clusters and bounds with those rows compared with all centroids."""
    n, (K, D) = cluster_MB.size, self._centroid.shape
    A = min(_AGAIN, n)
    row_n = jnp.flatnonzero(which_MB, size=-(-n // A) * A, fill_value=n)
    x_nD, square_n, room_n = self._x.reshape(n, D), self._square.ravel(), self._room.ravel()

    def block(i, found):
      row_A = jax.lax.dynamic_slice(row_n, (i * A,), (A,))
      score_AK = product(x_nD.at[row_A].get(mode='clip'), self._centroid) - self._half_K
      _, cluster_A = largest(score_AK, 1)
      second_AK = jnp.where(jnp.arange(K) == cluster_A[:, None], -jnp.inf, score_AK)
      square_A, room_A = square_n.at[row_A].get(mode='clip'), room_n.at[row_A].get(mode='clip')
      bound_A = self._least(jnp.max(second_AK, axis=1), square_A, room_A)
      return tuple(a.at[row_A].set(b, mode='drop') for a, b in zip(found, (cluster_A, bound_A)))

    number = (jnp.sum(which_MB) + A - 1) // A
    found = jax.lax.fori_loop(0, number, block, (cluster_MB.ravel(), bound_MB.ravel()))
    return tuple(a.reshape(cluster_MB.shape) for a in found)
