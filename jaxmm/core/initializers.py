"""Initial values from the counter-based hash of `core.layers`.

A network of a hundred convolutions asks for hundreds of random arrays in one program. As Threefry
they take XLA on CPU tens of seconds to compile; the hash halves that, and like it the values depend
on the key and the place alone, so they are the same on any mesh.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmm.core import layers


def uniform(bound: float) -> Callable[..., jax.Array]:
  """Initializer U(-bound, bound)."""

  def init(key: jax.Array, shape: Sequence[int], dtype: Any = jnp.float32) -> jax.Array:
    # Folding mixes the words first: raw keys such as key(0) and key(1) differ in a single bit.
    seeds = layers.fold_seeds(layers.dropout_seeds(key[None]), 0)
    bits = layers.uniform_bits(seeds, shape)[0]
    # The upper 24 bits are what a float32 holds; the half keeps it symmetric about zero.
    unit = ((bits >> 8).astype(jnp.float32) + 0.5) * 2.0**-24
    return ((2.0 * unit - 1.0) * bound).astype(dtype)

  return init
