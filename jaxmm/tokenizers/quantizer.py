"""Vector quantisation with codes of low width, l2-normalised (VQGAN, arXiv:2012.09841; ViT-VQGAN
and LlamaGen).

What crosses microbatches and devices is only ever *added*: counts and sums per code, a reservoir of
encoder outputs, average probabilities. `update_codebook` turns those sums into the next codebook
after the optimizer's step, so the result does not depend on how the batch was cut.

Axes: B batch, L latent positions, N = B*L, D code width, K codebook entries, R reservoir slots.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Literal

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.config import ConfigError
from jaxmm.core import axes

_LOG_FLOOR = 1e-5  # added inside the logarithm of the average probability, as in LlamaGen
_HIGHEST = jax.lax.Precision.HIGHEST


@dataclasses.dataclass(frozen=True)
class QuantizerConfig:
  """Settings of a codebook.

  Attributes:
    codes: K.
    width: D; the encoder's output is projected to it.
    normalize: latents and codes are divided by their l2 norm on every use (the stored codes are not
      kept so).
    update: 'gradient' trains the codes with the codebook term, 'ema' averages the latents assigned
      to them.
    commitment_weight: beta of the term that pulls latents to their code.
    codebook_weight: weight of the term that pulls codes to their latents ('gradient' only).
    entropy_weight: weight of (per-sample entropy - entropy of the average); 0 leaves both
      uncomputed.
    entropy_temperature: temperature of the softmax over negative squared distances.
    entropy_reference: what the entropy of the average is taken against. 'batch' is LlamaGen's, with
      the average of the microbatch: the same on any mesh, but not linear in the rows, so
      accumulating microbatches gives the mean of their own entropies, not the whole batch's.
      'running' is the cross-entropy to a running average held fixed: linear in the rows, hence
      exact under accumulation, and its gradient is that of 'batch' where the running average equals
      the batch's.
    ema_decay: decay a step, of the codes ('ema') and of the running average ('running').
    revive_after: a code unused for this many steps is replaced by an encoder output; 0 never.
    revive_slots: R, how many encoder outputs a step are candidates; about a third of them come to
      use.
    block_elements: the largest array of distances or probabilities that is ever built.
  """

  codes: int = 16384
  width: int = 8
  normalize: bool = True
  update: Literal['gradient', 'ema'] = 'gradient'
  commitment_weight: float = 0.25
  codebook_weight: float = 1.0
  entropy_weight: float = 0.0
  entropy_temperature: float = 0.01
  entropy_reference: Literal['batch', 'running'] = 'batch'
  ema_decay: float = 0.99
  revive_after: int = 0
  revive_slots: int = 1024
  block_elements: int = 2**24

  def __post_init__(self):
    for name in ('codes', 'width', 'revive_slots', 'block_elements'):
      if getattr(self, name) < 1:
        raise ConfigError(f'quantizer.{name} is {getattr(self, name)}, expected at least 1')
    for name, known in (
      ('update', ('gradient', 'ema')),
      ('entropy_reference', ('batch', 'running')),
    ):
      if getattr(self, name) not in known:
        raise ConfigError(
          f'quantizer.{name} is {getattr(self, name)!r}, expected {" or ".join(known)}'
        )
    if not 0 <= self.ema_decay < 1:
      raise ConfigError(f'quantizer.ema_decay is {self.ema_decay}, expected 0 <= ema_decay < 1')
    if self.entropy_temperature <= 0:
      raise ConfigError(
        f'quantizer.entropy_temperature is {self.entropy_temperature}, expected > 0'
      )
    if self.revive_after < 0:
      raise ConfigError(
        f'quantizer.revive_after is {self.revive_after}, expected 0 (never) or more'
      )


@flax.struct.dataclass
class Quantized:
  """What the quantizer says of a batch of latents.

  Attributes:
    z_BLD: the codes, with the gradient of the latents (straight-through), in the input's dtype.
    latent_BLD: the float32 latents as they were compared with the codes (normalised if the codes
      are).
    through_BLD: `z_BLD` in float32.
    ids_BL: int32.
    codebook_error_BL: mean over D of (code - stop_gradient(latent))^2, unweighted.
    commitment_error_BL: mean over D of (stop_gradient(code) - latent)^2, unweighted.
    sample_entropy_BL: entropy in nats of each position's assignment, or None if entropy_weight is
      0.
    probability_K: [K], the assignment probabilities summed with `weight_BL`, or None.
  """

  z_BLD: jax.Array
  latent_BLD: jax.Array
  through_BLD: jax.Array
  ids_BL: jax.Array
  codebook_error_BL: jax.Array
  commitment_error_BL: jax.Array
  sample_entropy_BL: jax.Array | None = None
  probability_K: jax.Array | None = None


def unit(x: jax.Array) -> jax.Array:
  """`x` in float32 over its l2 norm along the last axis; a zero vector stays zero."""
  x = x.astype(jnp.float32)
  square = jnp.sum(x * x, axis=-1, keepdims=True)
  safe = jnp.where(square > 1e-24, square, 1.0)  # the floor of 1e-12 on the norm is torch's
  return jnp.where(square > 1e-24, x * jax.lax.rsqrt(safe), x * 1e12)


def nearest_code(z_BLD: jax.Array, codes_KD: jax.Array, block_elements: int = 2**24) -> jax.Array:
  """Index of the closest code in squared distance, ties to the lowest index; int32 [B, L] (any
  leading axes).

  Computed in float32 at the highest precision whatever the input's dtype, in blocks of codes, so
  that no array of more than `block_elements` distances is built (one column of N distances is the
  least it needs).
  """
  lead, width = z_BLD.shape[:-1], z_BLD.shape[-1]
  z_ND = jax.lax.stop_gradient(z_BLD).astype(jnp.float32).reshape(-1, width)
  codes_KD = jax.lax.stop_gradient(codes_KD).astype(jnp.float32)
  num_rows, num_codes = z_ND.shape[0], codes_KD.shape[0]
  block = min(num_codes, max(1, block_elements // max(1, num_rows)))
  num_blocks = -(-num_codes // block)
  block = -(-num_codes // num_blocks)  # as even as it goes, to pad little

  def best_of(block_kD, square_k):
    # |z|^2 does not move the argmin, so one matmul yields all distances of the block.
    dist_Nk = square_k - 2 * jnp.einsum('ND,kD->Nk', z_ND, block_kD, precision=_HIGHEST)
    ids_N = jnp.argmin(dist_Nk, axis=-1).astype(jnp.int32)
    return jnp.take_along_axis(dist_Nk, ids_N[:, None], axis=-1)[:, 0], ids_N

  square_K = jnp.sum(codes_KD**2, axis=-1)
  if num_blocks == 1:
    return best_of(codes_KD, square_K)[1].reshape(lead)

  pad = num_blocks * block - num_codes
  codes_bkD = jnp.pad(codes_KD, ((0, pad), (0, 0))).reshape(num_blocks, block, width)
  square_bk = jnp.pad(square_K, (0, pad), constant_values=jnp.inf).reshape(num_blocks, block)

  def visit(best, item):
    (best_N, ids_N), (start, block_kD, square_k) = best, item
    dist_N, local_N = best_of(block_kD, square_k)
    closer_N = dist_N < best_N  # strictly, so that an earlier block keeps a tie
    return (jnp.where(closer_N, dist_N, best_N), jnp.where(closer_N, local_N + start, ids_N)), None

  start_b = jnp.arange(num_blocks, dtype=jnp.int32) * block
  first = (jnp.full(num_rows, jnp.inf), jnp.zeros(num_rows, jnp.int32))
  (_, ids_N), _ = jax.lax.scan(visit, first, (start_b, codes_bkD, square_bk))
  return ids_N.reshape(lead)


def assignment_entropy(
  z_BLD: jax.Array,
  codes_KD: jax.Array,
  weight_BL: jax.Array,
  *,
  temperature: float,
  block_elements: int,
) -> tuple[jax.Array, jax.Array]:
  """Soft assignment p = softmax(-|z - e|^2 / temperature), in blocks of positions, rebuilt in the
  backward pass.

  Returns:
    entropy_BL: the entropy of each position's p, in nats.
    probability_K: p summed over positions with `weight_BL`.
  """
  lead, width = z_BLD.shape[:-1], z_BLD.shape[-1]
  num_rows, num_codes = math.prod(lead), codes_KD.shape[0]
  block = min(num_rows, max(1, block_elements // num_codes))
  num_blocks = -(-num_rows // block)
  pad = num_blocks * block - num_rows
  z_bnD = jnp.pad(z_BLD.reshape(-1, width), ((0, pad), (0, 0))).reshape(num_blocks, block, width)
  weight_bn = jnp.pad(weight_BL.reshape(-1), (0, pad)).reshape(num_blocks, block)
  square_K = jnp.sum(codes_KD**2, axis=-1)

  @jax.checkpoint
  def visit(sum_K, item):
    z_nD, weight_n = item
    dot_nK = jnp.einsum('nD,KD->nK', z_nD, codes_KD, precision=_HIGHEST)
    log_nK = jax.nn.log_softmax((2 * dot_nK - square_K) / temperature, axis=-1)
    p_nK = jnp.exp(log_nK)
    return sum_K + weight_n @ p_nK, -jnp.sum(p_nK * log_nK, axis=-1)

  sum_K, entropy_bn = jax.lax.scan(visit, jnp.zeros(num_codes), (z_bnD, weight_bn))
  return entropy_bn.reshape(-1)[:num_rows].reshape(lead), sum_K


def average_entropy(probability_K: jax.Array, reference_K: jax.Array | None = None) -> jax.Array:
  """Entropy in nats of the average assignment, or its cross-entropy to a fixed `reference_K`.

  Both arguments sum to one. The cross-entropy is linear in `probability_K`; where the two are equal
  it has the entropy's value and (but for the floor in the logarithm) its gradient, because the
  entropy's derivative is -log p - 1 and the probabilities always sum to one.
  """
  reference_K = probability_K if reference_K is None else jax.lax.stop_gradient(reference_K)
  return -jnp.sum(probability_K * jnp.log(reference_K + _LOG_FLOOR))


def _uniform_rows(config: QuantizerConfig):
  def init(key, shape, dtype=jnp.float32):
    rows_KD = jax.random.uniform(key, shape, dtype, -1.0 / shape[0], 1.0 / shape[0])
    return unit(rows_KD) if config.normalize else rows_KD

  return init


class Quantizer(nn.Module):
  """A codebook and the nearest-code quantiser over it; float32 inside whatever the input's
  dtype."""

  config: QuantizerConfig

  def setup(self):
    c = self.config
    init = axes.weight(_uniform_rows(c), axes.CODES, axes.CODE_DIM)
    self.codebook = self.param('codebook', init, (c.codes, c.width), jnp.float32)

  def __call__(self, z_BLD: jax.Array, weight_BL: jax.Array | None = None) -> Quantized:
    """Quantises; `weight_BL` (default 1) weights the probability sums of the entropy term."""
    c = self.config
    codes_KD, latent_BLD = self.codes(), self.latent(z_BLD)
    if c.update == 'ema':
      codes_KD = jax.lax.stop_gradient(codes_KD)
    ids_BL = nearest_code(latent_BLD, codes_KD, c.block_elements)
    code_BLD = codes_KD[ids_BL]
    fixed = jax.lax.stop_gradient
    through_BLD = latent_BLD + fixed(code_BLD - latent_BLD)
    entropy_BL = probability_K = None
    if c.entropy_weight:
      entropy_BL, probability_K = assignment_entropy(
        latent_BLD,
        codes_KD,
        jnp.ones(ids_BL.shape) if weight_BL is None else weight_BL,
        temperature=c.entropy_temperature,
        block_elements=c.block_elements,
      )
    return Quantized(
      z_BLD=through_BLD.astype(z_BLD.dtype),
      latent_BLD=latent_BLD,
      through_BLD=through_BLD,
      ids_BL=ids_BL,
      codebook_error_BL=jnp.mean((code_BLD - fixed(latent_BLD)) ** 2, axis=-1),
      commitment_error_BL=jnp.mean((fixed(code_BLD) - latent_BLD) ** 2, axis=-1),
      sample_entropy_BL=entropy_BL,
      probability_K=probability_K,
    )

  def ids(self, z_BLD: jax.Array) -> jax.Array:
    """The nearest codes' ids, int32 [B, L]."""
    return nearest_code(self.latent(z_BLD), self.codes(), self.config.block_elements)

  def lookup(self, ids_BL: jax.Array) -> jax.Array:
    """The codes of the ids, float32 [B, L, D]; ids must lie in [0, K)."""
    return self.codes()[ids_BL]

  def codes(self) -> jax.Array:
    """The codebook as it is compared with latents, float32 [K, D]."""
    return unit(self.codebook) if self.config.normalize else self.codebook.astype(jnp.float32)

  def latent(self, z_BLD: jax.Array) -> jax.Array:
    """The latents as they are compared with codes, float32."""
    return unit(z_BLD) if self.config.normalize else z_BLD.astype(jnp.float32)


def initial_statistics(config: QuantizerConfig, codebook_KD: jax.Array) -> dict[str, jax.Array]:
  """The collection `codebook_stats`: what is kept of a codebook from step to step.

  Returns:
    unused_K: steps since a code was last used. With 'ema': count_K and sum_KD, decayed counts and
    sums of the latents assigned. With a 'running' entropy: probability_K, the running average.
  """
  stats = {'unused_K': jnp.zeros(config.codes, jnp.int32)}
  if config.update == 'ema':
    stats['count_K'] = jnp.ones(config.codes)
    stats['sum_KD'] = jnp.asarray(codebook_KD, jnp.float32)
  if config.entropy_weight and config.entropy_reference == 'running':
    stats['probability_K'] = jnp.full(config.codes, 1.0 / config.codes, jnp.float32)
  return stats


def batch_statistics(
  config: QuantizerConfig,
  quantized: Quantized,
  weight_BL: jax.Array,
  key_B: jax.Array,
  num_positions: jax.Array,
) -> dict[str, jax.Array]:
  """What a microbatch adds for `update_codebook`; sums, so microbatches and devices merge exactly.

  Args:
    quantized: of this microbatch.
    weight_BL: 1 where a position counts, else 0.
    key_B: one typed key an example (`task.example_keys`), for the reservoir.
    num_positions: how many positions count in the *whole* batch.

  Returns:
    count_K, and as the config needs them sum_KD, probability_K, slot_count_R, slot_sum_RD.
  """
  fixed = jax.lax.stop_gradient
  ids_N, weight_N = quantized.ids_BL.reshape(-1), fixed(weight_BL).reshape(-1)
  latent_ND = fixed(quantized.latent_BLD).reshape(-1, config.width)
  stats = {'count_K': jnp.zeros(config.codes).at[ids_N].add(weight_N)}
  if config.update == 'ema':
    rows_ND = latent_ND * weight_N[:, None]
    stats['sum_KD'] = jnp.zeros((config.codes, config.width)).at[ids_N].add(rows_ND)
  if config.entropy_weight and config.entropy_reference == 'running':
    stats['probability_K'] = fixed(quantized.probability_K)
  if config.revive_after:
    stats |= _reservoir(
      config, latent_ND, quantized.ids_BL.shape[1], weight_N, key_B, num_positions
    )
  return stats


def _reservoir(config, latent_ND, length, weight_N, key_B, num_positions) -> dict[str, jax.Array]:
  """Encoder outputs thrown at random into R slots; a slot that was hit once holds a fair draw.

  Sums are all that may cross microbatches, and a sum of one vector and zeros is that vector, bit
  for bit. Rows are thinned so that about R of them are thrown; then a share of 1/e of the slots is
  hit exactly once, and the others are passed over.
  """
  slots = config.revive_slots

  def throw(key):
    keep_key, slot_key = jax.random.split(key)
    keep_L = jax.random.uniform(keep_key, (length,))
    return keep_L, jax.random.randint(slot_key, (length,), 0, slots)

  keep_BL, slot_BL = jax.vmap(throw)(key_B)
  kept_N = weight_N * (keep_BL.reshape(-1) * num_positions < slots)
  slot_N = slot_BL.reshape(-1)
  return {
    'slot_count_R': jnp.zeros(slots).at[slot_N].add(kept_N),
    'slot_sum_RD': jnp.zeros((slots, config.width)).at[slot_N].add(latent_ND * kept_N[:, None]),
  }


def update_codebook(
  config: QuantizerConfig,
  codebook_KD: jax.Array,
  statistics: dict[str, jax.Array],
  sums: dict[str, jax.Array],
  key: jax.Array,
) -> tuple[jax.Array, dict[str, jax.Array], jax.Array]:
  """The codebook after a step: averages moved, dead codes revived.

  Args:
    codebook_KD: the stored codes (after the optimizer's step).
    statistics: the collection `codebook_stats`.
    sums: `batch_statistics` added over the whole batch.
    key: decides which dead codes get the draws when there are fewer draws than dead codes.

  Returns:
    codebook_KD, the next statistics, and revived_K (bool): codes whose optimizer moments, being
    those of another vector, must be cleared.
  """
  decay, new = config.ema_decay, dict(statistics)
  new['unused_K'] = jnp.where(sums['count_K'] > 0, 0, statistics['unused_K'] + 1)
  if config.update == 'ema':
    new['count_K'] = decay * statistics['count_K'] + (1 - decay) * sums['count_K']
    new['sum_KD'] = decay * statistics['sum_KD'] + (1 - decay) * sums['sum_KD']
    # An unused code's count and sum fade alike, so their ratio stands still until both underflow.
    alive_K1 = (new['count_K'] > 1e-12)[:, None]
    mean_KD = new['sum_KD'] / jnp.where(alive_K1, new['count_K'][:, None], 1.0)
    codebook_KD = jnp.where(alive_K1, mean_KD, codebook_KD)
  if 'probability_K' in statistics:
    total = jnp.sum(sums['probability_K'])
    mean_K = jnp.where(total > 0, sums['probability_K'] / jnp.maximum(total, 1e-30), 0.0)
    moved_K = decay * statistics['probability_K'] + (1 - decay) * mean_K
    new['probability_K'] = jnp.where(total > 0, moved_K, statistics['probability_K'])
  revived_K = jnp.zeros(config.codes, bool)
  if config.revive_after:
    row_K, revived_K = _drawn_rows(config, new['unused_K'], sums, key)
    drawn_KD = sums['slot_sum_RD'][row_K]
    codebook_KD = jnp.where(revived_K[:, None], drawn_KD, codebook_KD)
    new['unused_K'] = jnp.where(revived_K, 0, new['unused_K'])
    if config.update == 'ema':
      new['count_K'] = jnp.where(revived_K, 1.0, new['count_K'])
      new['sum_KD'] = jnp.where(revived_K[:, None], drawn_KD, new['sum_KD'])
  return codebook_KD, new, revived_K


def _drawn_rows(config, unused_K, sums, key) -> tuple[jax.Array, jax.Array]:
  """For each code the slot it is revived from, and whether it is; no slot serves two codes."""
  dead_K = unused_K >= config.revive_after
  single_R = sums['slot_count_R'] == 1
  chance_K = jnp.where(dead_K, 1.0 + jax.random.uniform(key, (config.codes,)), 0.0)
  rank_K = jnp.argsort(jnp.argsort(-chance_K, stable=True), stable=True)  # dead ones first
  slots_R = jnp.argsort(~single_R, stable=True)  # usable ones first
  revived_K = dead_K & (rank_K < jnp.sum(single_R))
  return slots_R[jnp.minimum(rank_K, config.revive_slots - 1)], revived_K


def code_counts(ids_BL: jax.Array, num_codes: int, valid_B: jax.Array | None = None) -> jax.Array:
  """How often each code occurs in one batch, int32 [K]; for use under jit.

  Rows with `valid_B` 0 count nothing. Ids outside [0, num_codes) count nothing here; the sum is
  then smaller than the number of ids, which `evaluate.codebook.CodeCounts` reports.
  """
  weight_BL = jnp.ones_like(ids_BL, jnp.int32)
  if valid_B is not None:
    weight_BL = weight_BL * (valid_B > 0)[:, None].astype(jnp.int32)
  # A negative index would wrap to the end before `drop` could see it.
  ids_BL = jnp.where(ids_BL < 0, num_codes, ids_BL)
  return jnp.zeros(num_codes, jnp.int32).at[ids_BL].add(weight_BL, mode='drop')


def code_use(count_K: np.ndarray, total: np.ndarray) -> dict[str, float | None]:
  """What a log shows of counts of codes (`Task.summaries`); None of nothing."""
  if not total:
    return {'code_usage': None, 'code_perplexity': None}
  return {'code_usage': usage(count_K), 'code_perplexity': perplexity(count_K)}


def usage(count_K: np.ndarray) -> float:
  """Share of the codes that were used at least once."""
  return float(np.mean(np.asarray(count_K, np.float64) > 0))


def perplexity(count_K: np.ndarray) -> float:
  """exp of the entropy of the codes' frequencies: K if all are used alike, 1 if one is; 0 of
  nothing.

  Not a mean: add the counts of all batches and devices first.
  """
  count_K = np.asarray(count_K, np.float64)
  if count_K.sum() == 0:
    return 0.0
  p_K = count_K[count_K > 0] / count_K.sum()
  return float(np.exp(-np.sum(p_K * np.log(p_K))))
