"""Bytes from a MEGABYTE: the global model advances once a patch, the local one once a byte.

Two caches: the global one grows by an entry a patch; the local one has the r + P places of a patch
and begins anew at each. Rows may have prompts of different lengths: all stand at the same place of
the same patch, and a row whose prompt goes on there is given its next byte instead of one drawn.

Axes: B rows, N bytes of prompts, T bytes of prompts and what follows, P bytes of a patch, S those
and what the convolutions see, G width of a byte in the global model, W = P * G global width, D
local width, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.core import decode, decoding, positions
from jaxmm.models.megabyte_config import CONV_SIZES, MegabyteConfig
from jaxmm.models.megabyte_network import Megabyte, convolved, local_rotary, seen_keys

Layout = Mapping[str, Any]
_REACH = sum(CONV_SIZES) - len(CONV_SIZES)  # how far back the convolutions look


@flax.struct.dataclass
class State:
  """What generation carries from patch to patch.

  Attributes:
    bytes_BT: the prompts, then what was drawn.
    global_cache, local_cache: see `core.decode`.
    patch: the next one.
    has_stopped_B: which rows have drawn the byte that ends them.
  """

  bytes_BT: jax.Array
  global_cache: decode.Cache
  local_cache: decode.Cache
  patch: jax.Array
  has_stopped_B: jax.Array


def decode_params(params: Mapping[str, Any], config: MegabyteConfig) -> dict[str, Any]:
  """The parameters laid out for `generate`; make them once, under jit, and keep them."""
  cast = lambda a: a.astype(config.dtype)
  table = lambda name: params[name]['table']
  if config.pads == 'ids':
    global_pad = jnp.tile(table('global_embedding')[config.pad_id], (config.patch, 1))
    global_pad = global_pad + params['global_positions'][: config.patch]
    local_pad = table('local_embedding')[config.pad_id]
  else:
    global_pad, local_pad = params['global_pad'], params['local_pad']
  return {
    'global_embedding': table('global_embedding'),
    'global_positions': params['global_positions'],
    'global_pad': global_pad.reshape(-1),
    'conv_encoder': params.get('conv_encoder'),
    'global_stack': decode.decode_layout(params['global_stack'], config.global_stack()),
    'to_local': cast(params['to_local']['kernel'].T),
    'local_embedding': cast(table('local_embedding')),
    'local_positions': cast(params['local_positions']),
    'local_pad': cast(local_pad),
    'local_stack': decode.decode_layout(params['local_stack'], config.local_stack()),
    'head': cast(table('local_embedding')[: config.vocab_size]),
  }


def prompts(
  rows: Sequence[bytes | Sequence[int]], length: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
  """Prompts of different lengths as `generate` takes them: (prompt_BN, length_B), int32.

  Args:
    rows: bytes of each prompt, maybe none.
    length: N, to compile once for many calls; None is the longest prompt.

  Raises:
    ConfigError: a prompt longer than `length`.
  """
  length_B = np.array([len(row) for row in rows], np.int32)
  length = int(length_B.max(initial=0)) if length is None else length
  prompt_BN = np.zeros((len(rows), length), np.int32)
  for i, row in enumerate(rows):
    if len(row) > length:
      raise ConfigError(f'prompt {i} has {len(row)} bytes, expected at most {length}')
    prompt_BN[i, : len(row)] = np.frombuffer(row, np.uint8) if isinstance(row, bytes) else row
  return prompt_BN, length_B


def check_ids(rows: Sequence[bytes | Sequence[int]], config: MegabyteConfig) -> None:
  """Raises ConfigError where a prompt has an id that the model does not know, which gives NaN."""
  for i, row in enumerate(rows):
    outside = [byte for byte in row if not 0 <= byte < config.vocab_size]
    if outside:
      raise ConfigError(
        f'prompt {i} has byte {outside[0]}, but model.vocab_size is {config.vocab_size} (0 to '
        f'{config.vocab_size - 1}); was it written for another model?'
      )


def generate(
  layout: Layout,
  params: Mapping[str, Any],
  config: MegabyteConfig,
  prompt_BN: jax.Array,
  length_B: jax.Array,
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
  num_bytes: int,
  stop_id: int | None = None,
  return_logits: bool = False,
):
  """What follows each prompt, int32 [B, num_bytes]; jit it with all but the arrays static.

  One compiled nested loop. What a row gets depends neither on the other rows nor on N. It ends
  early where all rows have stopped.

  Args:
    layout: from `decode_params`, for one byte at a time.
    params: the model's, for the patches that all prompts have, which go through the global Stack at
      once.
    config: the model's.
    prompt_BN: bytes, each row's at its beginning (`prompts`); what follows them is not read.
    length_B: how many each row has, 0 for nothing.
    key_B: typed keys, one a row (`jaxmm.task.example_keys`).
    sampling: without guidance; there is no condition to drop.
    num_bytes: new bytes of each row.
    stop_id: whatever follows this byte in a row is replaced by it.
    return_logits: also return the logits [B, num_bytes, V] that each byte was drawn from; those
      after a row's stop have no meaning.

  Raises:
    ConfigError: guidance, or more bytes than `config.length`.
  """
  state = begin(params, config, prompt_BN, length_B, sampling, num_bytes)
  return continued(
    layout, config, state, length_B, key_B, sampling, num_bytes, stop_id, return_logits
  )


def continued(
  layout: Layout,
  config: MegabyteConfig,
  state: State,
  length_B: jax.Array,
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
  num_bytes: int,
  stop_id: int | None = None,
  return_logits: bool = False,
):
  """The rest of `generate` after `begin`, for prompts that are continued more than once.

  Args:
    state: from `begin` with the same arguments.
  """
  total, known = state.bytes_BT.shape[1] // config.patch, decode.num_positions(state.global_cache)
  end = _end(length_B, num_bytes, config)
  seen_BTV = None
  if return_logits:
    seen_BTV = jnp.zeros((*state.bytes_BT.shape, config.vocab_size))
  advance = functools.partial(
    advanced, layout, config=config, prompt_length_B=length_B, key_B=key_B, sampling=sampling,
    stop_id=stop_id,
  )  # fmt: skip
  for length in decoding.bucket_lengths(known, max(total - 1, known)):
    grown = decode.grown_cache(state.global_cache, length)
    state, seen_BTV = jax.lax.while_loop(
      lambda carry, length=length: (
        (carry[0].patch < jnp.minimum(length, end)) & ~jnp.all(carry[0].has_stopped_B)
      ),
      lambda carry: advance(*carry),
      (state.replace(global_cache=grown), seen_BTV),
    )
  place_BN = length_B[:, None] + jnp.arange(num_bytes)
  out = jnp.take_along_axis(state.bytes_BT, place_BN, axis=1)
  out = out if stop_id is None else decoding.ended(out, stop_id)
  if not return_logits:
    return out
  return out, jnp.take_along_axis(seen_BTV, place_BN[..., None], axis=1)


def stream(
  layout: Layout,
  params: Mapping[str, Any],
  config: MegabyteConfig,
  rows: Sequence[bytes | Sequence[int]],
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
  num_bytes: int,
  stop_id: int | None = None,
) -> Iterator[list[np.ndarray]]:
  """The bytes of `generate` as they come: after each patch, every row's new ones, uint8 or int32.

  A row's last piece ends with `stop_id`; then its pieces are empty. Arguments as of `generate`, the
  prompts as `prompts` takes them.
  """
  check_ids(rows, config)
  prompt_BN, length_B = prompts(rows)
  state = _begin(params, config, prompt_BN, length_B, sampling, num_bytes)
  total, known = state.bytes_BT.shape[1] // config.patch, prompt_BN.shape[1] // config.patch
  lengths = decoding.bucket_lengths(known, max(total - 1, known))
  end, stopped_B = int(_end(length_B, num_bytes, config)), np.zeros(len(rows), bool)
  dtype = np.uint8 if config.vocab_size <= 256 else np.int32
  for patch in range(int(state.patch), end):
    if stopped_B.all():
      return
    while lengths[0] <= patch:
      lengths = lengths[1:]
    state = _grown(state, lengths[0])
    state = _advanced(layout, state, length_B, key_B, config, sampling, stop_id)
    first, last = patch * config.patch, (patch + 1) * config.patch
    if last <= length_B.min():
      continue  # the prompts are not over yet
    new_BP, pieces = np.asarray(state.bytes_BT[:, first:last]), []
    for b, row in enumerate(new_BP):
      begins, ends = np.clip([length_B[b] - first, length_B[b] + num_bytes - first], 0, len(row))
      piece = row[begins:ends] if not stopped_B[b] else row[:0]
      if stop_id is not None and stop_id in piece:
        piece, stopped_B[b] = piece[: int(np.argmax(piece == stop_id)) + 1], True
      pieces.append(piece.astype(dtype))
    yield pieces


def begin(
  params: Mapping[str, Any],
  config: MegabyteConfig,
  prompt_BN: jax.Array,
  length_B: jax.Array,
  sampling: decoding.SamplingConfig,
  num_bytes: int,
) -> State:
  """The state before the first patch that not all prompts fill. Arguments as of `generate`."""
  if sampling.is_guided:
    raise ConfigError(
      f'guidance_scale is {sampling.guidance_scale}, but a MEGABYTE has no condition; use 1'
    )
  (B, num), P = prompt_BN.shape, config.patch
  if num + num_bytes > config.length or num_bytes < 1:
    raise ConfigError(
      f'prompts of {num} bytes and {num_bytes} new ones: expected at least 1 new, and together at '
      f'most model.length {config.length}'
    )
  total, known = -(-(num + num_bytes) // P), num // P
  is_prompt = jnp.arange(num) < length_B[:, None]
  bytes_BT = jnp.pad(jnp.where(is_prompt, prompt_BN, 0), ((0, 0), (0, total * P - num)))
  cache = decode.empty_cache(config.global_stack(), B, max(known, 1))
  if known:
    *_, kv = Megabyte(config).apply(
      {'params': params}, bytes_BT[:, : known * P], method='global_states', return_kv=True
    )
    cache = decode.cache_of(kv, config.global_stack(), known)
  # The patch before is seen through all local layers only after as many patches as there are.
  warm = config.local_depth if config.cross_patch else 0
  first = jnp.maximum(jnp.min(length_B) // P - warm, 0).astype(jnp.int32)
  local_cache = decode.empty_cache(config.local_stack(), B, config.cross_patch + P)
  return State(bytes_BT, cache, local_cache, first, jnp.zeros(B, bool))


def advanced(
  layout: Layout,
  state: State,
  seen_BTV: jax.Array | None = None,
  *,
  config: MegabyteConfig,
  prompt_length_B: jax.Array,
  key_B: jax.Array,
  sampling: decoding.SamplingConfig,
  stop_id: int | None = None,
) -> tuple[State, jax.Array | None]:
  """The state one patch further, whose bytes are given by the prompts or drawn."""
  patch, P, r = state.patch, config.patch, config.cross_patch
  x_BW = _patch_before(layout, config, state.bytes_BT, patch)
  hidden_WB, global_cache = decode.decode_step(
    layout['global_stack'], config.global_stack(), x_BW.T, state.global_cache, patch
  )
  slots_PGB = hidden_WB.reshape(P, config.byte_width, -1)
  slots_PDB = jnp.einsum('DG,PGB->PDB', layout['to_local'], slots_PGB)
  slots_PDB = slots_PDB + layout['local_positions'][:, :, None]
  local_cache, rotary = state.local_cache, local_rotary(config)
  mask = seen_keys(config, jnp.asarray(patch > 0)[None]) if r else None
  if r:
    local_cache = _moved(local_cache, config)

  def body(place, carry):
    before_B, bytes_BT, cache, has_stopped_B, seen_BTV = carry
    at, index_B = patch * P + place, patch * P + place - prompt_length_B
    x_BD = jnp.take(layout['local_embedding'], before_B, axis=0)
    x_BD = jnp.where(place == 0, layout['local_pad'], x_BD)
    x_DB = x_BD.T + jax.lax.dynamic_index_in_dim(slots_PDB, place, keepdims=False)
    here = None if rotary is None else rotary.at(r + place)
    h_DB, cache = decode.decode_step(
      layout['local_stack'], config.local_stack(), x_DB, cache, r + place, rotary=here, mask=mask
    )
    logits_BV = decode.logits_of(layout['head'], h_DB)
    drawn_B = decoding.next_ids(logits_BV, jnp.maximum(index_B, 0), key_B, sampling)
    given_B = jax.lax.dynamic_index_in_dim(bytes_BT, at, axis=1, keepdims=False)
    ids_B = jnp.where(index_B < 0, given_B, drawn_B)
    bytes_BT = jax.lax.dynamic_update_slice(bytes_BT, ids_B[:, None], (0, at))
    if stop_id is not None:
      has_stopped_B = has_stopped_B | ((index_B >= 0) & (ids_B == stop_id))
    if seen_BTV is not None:
      seen_BTV = jax.lax.dynamic_update_slice(seen_BTV, logits_BV[:, None], (0, at, 0))
    return ids_B, bytes_BT, cache, has_stopped_B, seen_BTV

  carry = (state.bytes_BT[:, 0], state.bytes_BT, local_cache, state.has_stopped_B, seen_BTV)
  _, bytes_BT, local_cache, has_stopped_B, seen_BTV = jax.lax.fori_loop(0, P, body, carry)
  return State(bytes_BT, global_cache, local_cache, patch + 1, has_stopped_B), seen_BTV


def _patch_before(layout, config: MegabyteConfig, bytes_BT, patch) -> jax.Array:
  """The global model's input at `patch`: the patch before it, [B, W]."""
  P, B = config.patch, bytes_BT.shape[0]
  reach = _REACH if config.conv_encoder else 0
  first = (patch - 1) * P - reach  # below 0 near the beginning: zeros stand there
  padded = jnp.pad(bytes_BT, ((0, 0), (P + reach, 0)))
  ids = jax.lax.dynamic_slice_in_dim(padded, first + P + reach, reach + P, axis=1)
  x_BSG = jnp.take(layout['global_embedding'], ids, axis=0)
  if config.conv_encoder:
    exists = first + jnp.arange(reach + P) >= 0
    segment = jnp.broadcast_to(exists.astype(jnp.int32), ids.shape)
    x_BSG = convolved(layout['conv_encoder'], x_BSG, segment)[:, reach:]
  place = patch if config.pads == 'ids' else patch - 1
  position_PG = jax.lax.dynamic_slice_in_dim(layout['global_positions'], place * P, P)
  x_BW = (x_BSG + position_PG).reshape(B, -1)
  return jnp.where(patch > 0, x_BW, layout['global_pad']).astype(config.dtype)


def _moved(cache: decode.Cache, config: MegabyteConfig) -> decode.Cache:
  """The local cache with its last r entries in front, where the patch before stands.

  Their keys are turned back by P positions.
  """
  r, P, stack = config.cross_patch, config.patch, config.local_stack()
  back = positions.rotary_1d(jnp.full((1,), -P), stack.head_width)
  out = []
  for keys, values in cache:
    ends = positions.rotated(keys[:, :, P:], back.cos, back.sin, stack.rotary)
    out.append((keys.at[:, :, :r].set(ends), values.at[:, :, :r].set(values[:, :, P:])))
  return tuple(out)


def _end(length_B, num_bytes: int, config: MegabyteConfig) -> jax.Array:
  """The first patch that no row needs."""
  return (jnp.max(length_B) + num_bytes - 1) // config.patch + 1


_begin = jax.jit(begin, static_argnames=('config', 'sampling', 'num_bytes'))


@functools.partial(
  jax.jit, static_argnames=('config', 'sampling', 'stop_id'), donate_argnames='state'
)
def _advanced(layout, state, length_B, key_B, config, sampling, stop_id):
  return advanced(
    layout, state, config=config, prompt_length_B=length_B, key_B=key_B, sampling=sampling,
    stop_id=stop_id,
  )[0]  # fmt: skip


@functools.partial(jax.jit, static_argnames='length')
def _grown(state: State, length: int) -> State:
  return state.replace(global_cache=decode.grown_cache(state.global_cache, length))
