"""Sampling: what to do with logits, and the one compiled loop that asks for them.

Axes: B examples, R rows (B, or 2 B under guidance: first with the condition, then without), V
vocabulary.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxmm.config import ConfigError

# (ids_R of the token at `position`, position, state) -> (logits_RV of the next token, state)
Step = Callable[[jax.Array, jax.Array, Any], tuple[jax.Array, Any]]


@dataclasses.dataclass(frozen=True)
class SamplingConfig:
  """How the next token is chosen.

  Attributes:
    temperature: logits are divided by it.
    top_k: keep the k likeliest tokens (and ties of the last); 0 keeps all.
    top_p: keep the fewest likeliest tokens whose probability exceeds p (arXiv:1904.09751); 1 keeps
      all.
    guidance_scale: s in u + s (c - u), logits with (c) and without (u) the condition; 1 is no
      guidance.
    guidance_interval: the last token counted from the second one (number 0) that is guided, as in
      LlamaGen's `cfg_interval`: -1 guides all, n guides the first n + 2.
    greedy: take the likeliest token.
    allowed: the first id that may be drawn and the one behind the last; None for all.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0
  guidance_scale: float = 1.0
  guidance_interval: int = -1
  greedy: bool = False
  allowed: tuple[int, int] | None = None

  def __post_init__(self):
    if self.temperature <= 0:
      raise ConfigError(
        f'temperature is {self.temperature}, expected it above 0; for no randomness set greedy=True'
      )
    if self.top_k < 0:
      raise ConfigError(f'top_k is {self.top_k}, expected a number of tokens, 0 for all')
    if not 0 < self.top_p <= 1:
      raise ConfigError(f'top_p is {self.top_p}, expected it in (0, 1]')
    if self.guidance_scale < 1:
      raise ConfigError(f'guidance_scale is {self.guidance_scale}, expected at least 1 (none)')
    if self.guidance_interval < -1:
      raise ConfigError(
        f'guidance_interval is {self.guidance_interval}, expected -1 (always) or a token number'
      )
    if self.allowed is not None and not 0 <= self.allowed[0] < self.allowed[1]:
      raise ConfigError(f'allowed is {self.allowed}, expected ids (first, end), 0 <= first < end')

  @property
  def is_guided(self) -> bool:
    """Whether the rows come twice, with and without the condition."""
    return self.guidance_scale > 1


def guided(logits_RV: jax.Array, index: jax.Array | int, config: SamplingConfig) -> jax.Array:
  """Logits [B, V] of the `index`-th generated token out of those of both halves of the rows."""
  if not config.is_guided:
    return logits_RV
  given, free = jnp.split(logits_RV, 2)
  out = free + (given - free) * config.guidance_scale
  if config.guidance_interval < 0:
    return out
  return jnp.where(index <= config.guidance_interval + 1, out, given)


def filtered(logits_BV: jax.Array, config: SamplingConfig) -> jax.Array:
  """Logits divided by the temperature, those outside top-k and top-p at -inf."""
  logits = logits_BV.astype(jnp.float32) / config.temperature
  if 0 < config.top_k < logits.shape[-1]:
    kept = logits >= kth_largest(logits, config.top_k)[:, None]
    logits = jnp.where(kept, logits, -jnp.inf)
  if config.top_p < 1.0:
    order = jnp.sort(logits, axis=-1, descending=True)
    probability = jax.nn.softmax(order, axis=-1)
    before = jnp.cumsum(probability, axis=-1) - probability
    # The likeliest token is always kept: nothing comes before it.
    last = jnp.sum(before <= config.top_p, axis=-1) - 1
    logits = jnp.where(
      logits >= jnp.take_along_axis(order, last[:, None], axis=-1), logits, -jnp.inf
    )
  return logits


def kth_largest(x_BV: jax.Array, k: int) -> jax.Array:
  """The k-th largest of each row, exactly, [B] float32.

  Bisects on the bits of the numbers, whose order as integers is that of the floats: 32 passes over
  a row beat sorting it.
  """
  bits = jax.lax.bitcast_convert_type(x_BV.astype(jnp.float32), jnp.uint32)
  sign = jnp.uint32(1 << 31)
  ordered = jnp.where(bits >= sign, ~bits, bits | sign)
  # Counted in float32 (exact to 2^24) and by columns first, which XLA vectorises on a CPU.
  ordered = jnp.pad(ordered, ((0, 0), (0, -ordered.shape[1] % 64)))
  ordered = ordered.reshape(ordered.shape[0], -1, 64)

  def one_bit(i, low_B):
    trial = low_B | (sign >> jnp.uint32(i))
    above = (ordered >= trial[:, None, None]).astype(jnp.float32)
    return jnp.where(jnp.sum(jnp.sum(above, axis=1), axis=1) >= k, trial, low_B)

  found = jax.lax.fori_loop(0, 32, one_bit, jnp.zeros(x_BV.shape[0], jnp.uint32))
  back = jnp.where(found >= sign, found ^ sign, ~found)
  return jax.lax.bitcast_convert_type(back, jnp.float32)


def next_ids(
  logits_RV: jax.Array, index: jax.Array | int, key_B: jax.Array, config: SamplingConfig
) -> jax.Array:
  """The `index`-th new token of every example, int32 [B], drawn from its key and the index.

  Without guidance the index may be one number a row, [B].
  """
  logits_BV = guided(logits_RV.astype(jnp.float32), index, config)
  if config.allowed is not None:
    id_V, (first, end) = jnp.arange(logits_BV.shape[1]), config.allowed
    logits_BV = jnp.where((id_V >= first) & (id_V < end), logits_BV, -jnp.inf)
  if config.greedy:
    return jnp.argmax(logits_BV, axis=-1).astype(jnp.int32)
  logits_BV = filtered(logits_BV, config)
  uniform = lambda key, index: jax.random.uniform(jax.random.fold_in(key, index), (2,))
  return drawn(logits_BV, jax.vmap(uniform)(key_B, jnp.broadcast_to(index, key_B.shape)))


def drawn(logits_BV: jax.Array, uniform_B2: jax.Array) -> jax.Array:
  """One token a row from softmax(logits), int32 [B], by inversion of the cumulative distribution.

  Two numbers in [0, 1) a row take the place of one of noise a token, which for 16,384 codes costs
  as much as a layer of the model. The first picks a block of tokens by its weight, the second a
  token in it, so float32's resolution is that of a block. Logits of -inf are never drawn.
  """
  width = 128
  weight = jnp.exp(logits_BV - jnp.max(logits_BV, axis=-1, keepdims=True))
  weight = jnp.pad(weight, ((0, 0), (0, -weight.shape[1] % width)))
  weight = weight.reshape(weight.shape[0], -1, width)
  block_B = _inverse(jnp.sum(weight, axis=-1), uniform_B2[:, 0])
  inside = jnp.take_along_axis(weight, block_B[:, None, None], axis=1)[:, 0]
  return block_B * width + _inverse(inside, uniform_B2[:, 1])


def _inverse(weight_BN: jax.Array, uniform_B: jax.Array) -> jax.Array:
  """The index at which each row's share `uniform_B` of its weight lies; its weight is above 0."""
  # A parallel sum is not monotone to the last bit: look only where there is weight.
  upto = jnp.where(weight_BN > 0, jnp.cumsum(weight_BN, axis=-1), 0.0)
  total = jnp.max(upto, axis=-1)
  # Below the total also where the product is rounded up to it.
  share = jnp.minimum(uniform_B * total, jnp.nextafter(total, jnp.zeros_like(total)))
  return jnp.argmax(upto > share[:, None], axis=-1).astype(jnp.int32)


def bucket_lengths(first: int, last: int, smallest: int = 64) -> list[int]:
  """Cache lengths for positions `first` up to and including `last`: 1, 2, 3, 4, 6, 8, 12, ... times
  `smallest`, the last one exact.

  A step reads the whole cache it is given, so short caches first save half of that; each length is
  compiled once more.
  """
  lengths, double = [smallest], 2 * smallest
  while double <= last:
    lengths += [double, double // 2 * 3]
    double *= 2
  return [*(length for length in lengths if first < length <= last), last + 1]


def generate(
  step: Step,
  logits_RV: jax.Array,
  state: Any,
  *,
  start: int,
  num_tokens: int,
  key_B: jax.Array,
  config: SamplingConfig,
  grow: Callable[[Any, int], Any] | None = None,
  lengths: Sequence[int] | None = None,
) -> jax.Array:
  """Generates tokens; call it inside one jit.

  Args:
    step: one token in, logits of the next one out; sees R rows.
    logits_RV: of the first token to generate, from the prompt.
    state: what `step` carries (a cache that holds the prompt).
    start: the position of the first generated token.
    num_tokens: how many to generate.
    key_B: typed keys, one an example: the same tokens in any batch, at any place in it.
    config: how tokens are chosen.
    grow: gives `state` room for a number of positions; called between the loops.
    lengths: those numbers, ascending, the last one at least start + num_tokens - 1; None is
      `bucket_lengths`.

  Returns:
    ids, int32 [B, num_tokens].
  """
  num_rows = key_B.shape[0]
  if logits_RV.shape[0] != num_rows * (1 + config.is_guided):
    raise ValueError(
      f'{logits_RV.shape[0]} rows of logits for {num_rows} examples, expected '
      f'{num_rows * (1 + config.is_guided)}; guidance_scale above 1 needs each with and without '
      'its condition'
    )
  ids = next_ids(logits_RV, 0, key_B, config)
  out = jnp.zeros((num_rows, num_tokens), jnp.int32).at[:, 0].set(ids)

  def body(index, carry):
    ids, out, state = carry
    rows = jnp.concatenate([ids, ids]) if config.is_guided else ids
    logits, state = step(rows, start + index - 1, state)
    ids = next_ids(logits, index, key_B, config)
    out = jax.lax.dynamic_update_slice(out, ids[:, None], (0, index))
    return ids, out, state

  carry, index = (ids, out, state), 1
  last = start + num_tokens - 2  # the last token that is fed back
  for length in lengths or bucket_lengths(start, max(last, start)):
    stop = min(length - start + 1, num_tokens)
    if stop <= index:
      continue
    if grow is not None:
      carry = (*carry[:2], grow(carry[2], length))
    carry, index = jax.lax.fori_loop(index, stop, body, carry), stop
  if index < num_tokens:
    raise ValueError(f'lengths {lengths} end before position {last}, the last to be fed back')
  return carry[1]


def ended(ids_BL: jax.Array, stop_id: int) -> jax.Array:
  """The rows with `stop_id` in place of everything that follows their first one."""
  is_stop = (ids_BL == stop_id).astype(jnp.int32)
  return jnp.where(jnp.cumsum(is_stop, axis=1) > is_stop, stop_id, ids_BL)
