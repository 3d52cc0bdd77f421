"""Who may look at whom, as specifications that every attention backend lowers in its own way.

Axes: B batch, L queries, S keys. A specification is a pytree: group ids may be traced. `a & b`
allows what both allow, `a | b` what either does. `.dense()` is the oracle that the backends are
tested against.
"""

from __future__ import annotations

import flax.struct
import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError


class Mask:
  """A rule that says which key a query may see."""

  def allowed(self, query_L: jax.Array, key_S: jax.Array) -> jax.Array:
    """bool [1 or B, L, S] of queries and keys at these positions; a block may be asked for."""
    raise NotImplementedError

  @property
  def sees_itself(self) -> bool:
    """True if in self-attention every query is sure to see at least itself."""
    return True

  def dense(self, num_queries: int, num_keys: int | None = None, first_query: int = 0) -> jax.Array:
    """bool [1 or B, L, S], query i standing at position `first_query + i`."""
    num_keys = num_queries if num_keys is None else num_keys
    return self.allowed(first_query + jnp.arange(num_queries), jnp.arange(num_keys))

  def __and__(self, other: Mask) -> Mask:
    return Both(self, other)

  def __or__(self, other: Mask) -> Mask:
    return Either(self, other)


@flax.struct.dataclass
class Full(Mask):
  """Everything sees everything (encoders, cross-attention)."""

  def allowed(self, query_L, key_S):
    return jnp.ones((1, query_L.shape[0], key_S.shape[0]), bool)


@flax.struct.dataclass
class Causal(Mask):
  """A query sees itself and what came before."""

  def allowed(self, query_L, key_S):
    return (key_S[None, :] <= query_L[:, None])[None]


@flax.struct.dataclass
class Window(Mask):
  """Causal, and no further back than `size` keys, itself included (arXiv:2004.05150)."""

  size: int = flax.struct.field(pytree_node=False)

  def __post_init__(self):
    if self.size < 1:
      raise ConfigError(f'Window.size is {self.size}, expected at least 1 (a query sees itself)')

  def allowed(self, query_L, key_S):
    back = query_L[:, None] - key_S[None, :]
    return ((back >= 0) & (back < self.size))[None]


@flax.struct.dataclass
class Shifted(Mask):
  """Another rule, for queries that stand `by` keys further on."""

  mask: Mask
  by: int = flax.struct.field(pytree_node=False)

  @property
  def sees_itself(self):
    return self.mask.sees_itself

  def allowed(self, query_L, key_S):
    return self.mask.allowed(query_L + self.by, key_S)


@flax.struct.dataclass
class PatchOverlap(Mask):
  """Causal within patches of `patch` keys, and the last `back` keys of the patch before.

  MEGABYTE's cross-patch attention (arXiv:2305.07185, section 2.3) over a whole sequence; 0 is none.
  """

  patch: int = flax.struct.field(pytree_node=False)
  back: int = flax.struct.field(pytree_node=False, default=0)

  def allowed(self, query_L, key_S):
    query, key = query_L[:, None], key_S[None, :]
    first = query - query % self.patch - self.back
    return ((key <= query) & (key >= first))[None]


@flax.struct.dataclass
class PrefixLM(Mask):
  """Causal, and everybody sees the first `length_B` keys (arXiv:1910.10683, section 3.2.1)."""

  length_B: jax.Array

  def allowed(self, query_L, key_S):
    causal = (key_S[None, :] <= query_L[:, None])[None]
    return causal | (key_S[None, None, :] < self.length_B[:, None, None])


@flax.struct.dataclass
class Segments(Mask):
  """A query sees keys of its own segment: packed documents, or padding as a segment of its own.

  Attributes:
    query_BL: int segment ids of the queries.
    key_BS: those of the keys; None if they are the same tokens.
  """

  query_BL: jax.Array
  key_BS: jax.Array | None = None

  @property
  def sees_itself(self):
    return self.key_BS is None

  def allowed(self, query_L, key_S):
    keys = self.query_BL if self.key_BS is None else self.key_BS
    return _at(self.query_BL, query_L)[:, :, None] == _at(keys, key_S)[:, None, :]


@flax.struct.dataclass
class TwoWayGroups(Mask):
  """Tokens of the same group see one another, both ways; ids of 0 are in no group.

  `Causal() | TwoWayGroups(image_BL)` is Transfusion's mask (arXiv:2408.11039, section 3.1).
  """

  group_BL: jax.Array

  @property
  def sees_itself(self):
    return False

  def allowed(self, query_L, key_S):
    query, key = _at(self.group_BL, query_L)[:, :, None], _at(self.group_BL, key_S)[:, None, :]
    return (query == key) & (query > 0)


@flax.struct.dataclass
class Reach(Mask):
  """Causal, and on to a later key of each query's own.

  Where groups are runs of neighbours and `last_BL` is the end of each token's run (its own place
  for those in no group) this is `Causal() | TwoWayGroups`, in a form that kernels can compute.

  Attributes:
    last_BL: the last key that a query sees, int32.
    most: no query sees further than this many keys beyond itself.
  """

  last_BL: jax.Array
  most: int = flax.struct.field(pytree_node=False)

  def allowed(self, query_L, key_S):
    last_BL = jnp.maximum(_at(self.last_BL, query_L), query_L)
    return key_S <= jnp.minimum(last_BL, query_L + self.most)[:, :, None]


@flax.struct.dataclass
class Both(Mask):
  """What both specifications allow."""

  first: Mask
  second: Mask

  @property
  def sees_itself(self):
    # Where it is true, every specification of this file allows at least the diagonal.
    return self.first.sees_itself and self.second.sees_itself

  def allowed(self, query_L, key_S):
    return self.first.allowed(query_L, key_S) & self.second.allowed(query_L, key_S)


@flax.struct.dataclass
class Either(Mask):
  """What at least one of the specifications allows."""

  first: Mask
  second: Mask

  @property
  def sees_itself(self):
    return self.first.sees_itself or self.second.sees_itself

  def allowed(self, query_L, key_S):
    return self.first.allowed(query_L, key_S) | self.second.allowed(query_L, key_S)


def _at(ids_BL: jax.Array, positions: jax.Array) -> jax.Array:
  # Positions past the end (a padded last block) are cut off by the backend; here they must only not
  # fail.
  return jnp.take(ids_BL, positions, axis=1, mode='clip')
