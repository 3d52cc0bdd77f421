"""Near-duplicates by MinHash (Broder 1997) and banding (Leskovec et al., Mining of Massive
Datasets, section 3.4).

The Jaccard similarity of two sets of shingles is the chance that a random order of all shingles has
the same first one in both. A signature holds the firsts of P orders. Its P entries are cut into
bands of r rows; two documents are candidates if they agree on all of a band, which happens with
probability 1 - (1 - J^r)^b. Candidates are checked: by the share of entries on which their
signatures agree, or exactly, on the shingles themselves. What holds together through checked
pairs is a cluster (connected components), of which one document survives.

An order is (a x + b) mod 2^32 of the shingle's upper 32 bits, with a odd: a bijection, so there are
no ties but those of the 32 bits.

Nothing hangs on the order of the documents, on batches or on the engine: signatures are functions
of the text, and a tie is decided by the document's id.

Axes: N documents, P permutations, S shingles, E pairs (edges).
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from jaxmm.config import ConfigError
from jaxmm.curation import running_hash, shingles
from jaxmm.curation.shingles import ShingleConfig

CHECKS = ('exact', 'signature', 'none')
# Shingles that are permuted at once; they and a result of the same size stay in the cache.
_BLOCK = 1 << 14
# How many of one band's bucket a document is compared with.
_NEAR = 256


@dataclasses.dataclass(frozen=True)
class MinHashConfig:
  """How near-duplicates are found.

  Attributes:
    threshold: Jaccard similarity from which two documents are duplicates.
    permutations: entries of a signature.
    bands: into how many the signature is cut; 0 chooses the fewest that find a pair at the
      threshold with probability `recall`.
    recall: see bands.
    check: how candidates are checked: 'exact' on their shingles, 'signature' by the share of
      entries on which they agree, 'none' takes every candidate.
    seed: of the permutations.
    shingles: what is compared.
  """

  threshold: float = 0.7
  permutations: int = 128
  bands: int = 0
  recall: float = 0.95
  check: str = 'exact'
  seed: int = 0
  shingles: ShingleConfig = dataclasses.field(default_factory=ShingleConfig)

  def __post_init__(self):
    if not 0 < self.threshold <= 1:
      raise ConfigError(f'threshold is {self.threshold}, expected a similarity in (0, 1]')
    if self.permutations < 1:
      raise ConfigError(f'permutations is {self.permutations}, expected at least 1')
    if not 0 <= self.bands <= self.permutations:
      raise ConfigError(
        f'bands is {self.bands}, expected 0 (chosen) to {self.permutations} (permutations)'
      )
    if not 0 < self.recall < 1:
      raise ConfigError(f'recall is {self.recall}, expected it between 0 and 1')
    if self.check not in CHECKS:
      raise ConfigError(f'check is {self.check!r}, expected one of {", ".join(CHECKS)}')

  @property
  def layout(self) -> tuple[int, int]:
    """(bands, rows of a band)."""
    if self.bands:
      return self.bands, self.permutations // self.bands
    for rows in range(self.permutations, 0, -1):
      bands = self.permutations // rows
      if candidate_probability(self.threshold, bands, rows) >= self.recall:
        return bands, rows
    raise ConfigError(
      f'no banding of {self.permutations} permutations finds pairs of similarity {self.threshold} '
      f'with probability {self.recall}; raise permutations or lower recall'
    )


def candidate_probability(jaccard: float, bands: int, rows: int) -> float:
  """How likely documents of that similarity agree on all rows of at least one band."""
  return -math.expm1(bands * math.log1p(-(jaccard**rows))) if jaccard < 1 else 1.0


def signatures(texts: Sequence[str], config: MinHashConfig) -> tuple[np.ndarray, np.ndarray]:
  """What is kept of each text.

  Returns:
    signature_NP: uint32. A text without shingles has the largest number everywhere.
    has_N: whether it has any; one without is nobody's duplicate.
  """
  factor_P, shift_P = _permutations(config.permutations, config.seed)
  parts, has = [], []
  for hash_S, start_N in shingles.batches_of_shingles(texts, config.shingles):
    part, has_part = _minima(hash_S, start_N, factor_P, shift_P)
    parts.append(part)
    has.append(has_part)
  if not parts:
    return np.zeros((0, config.permutations), np.uint32), np.zeros(0, bool)
  return np.concatenate(parts), np.concatenate(has)


def _minima(hash_S, start_N, factor_P, shift_P) -> tuple[np.ndarray, np.ndarray]:
  """Signatures of the texts whose shingles are `hash_S[start_N[n] : start_N[n + 1]]`."""
  count_N = np.diff(start_N)
  has_N = count_N > 0
  x_S = (hash_S >> np.uint64(32)).astype(np.uint32)
  out_PN = np.full((len(factor_P), len(count_N)), 2**32 - 1, np.uint32)
  first_N = start_N[:-1][has_N]
  rows = np.flatnonzero(has_N)
  low = 0
  while low < len(rows):
    # Whole texts up to a block, at least one.
    high = max(low + 1, int(np.searchsorted(first_N, first_N[low] + _BLOCK)))
    end = first_N[high] if high < len(rows) else len(x_S)
    block, starts = x_S[first_N[low] : end], first_N[low:high] - first_N[low]
    permuted = np.empty_like(block)
    for p, (factor, shift) in enumerate(zip(factor_P, shift_P)):
      np.multiply(block, factor, out=permuted)
      permuted += shift
      out_PN[p, rows[low:high]] = np.minimum.reduceat(permuted, starts)
    low = high
  return np.ascontiguousarray(out_PN.T), has_N


@functools.lru_cache(maxsize=8)
def _permutations(number: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
  # Philox is specified; numpy's distributions may change from one version to the next.
  raw = np.random.Philox(seed).random_raw(2 * number).astype(np.uint64)
  upper = (raw >> np.uint64(32)).astype(np.uint32)
  return upper[:number] | np.uint32(1), upper[number:]


def band_keys(signature_NP: np.ndarray, bands: int, rows: int) -> np.ndarray:
  """One 64-bit key a band, uint64 [bands, N]; equal rows have equal keys."""
  N = len(signature_NP)
  cut = signature_NP[:, : bands * rows].reshape(N, bands, rows)
  key = np.zeros((bands, N), np.uint64)
  for r in range(rows):
    key = running_hash.mixed(key ^ cut[:, :, r].T.astype(np.uint64))
  return key


def candidate_pairs(
  signature_NP: np.ndarray, has_N: np.ndarray, bands: int, rows: int
) -> np.ndarray:
  """All pairs that agree on a band, int64 [E, 2], each once, i < j, ascending."""
  return pairs_of_equal(band_keys(signature_NP, bands, rows).__getitem__, bands, has_N)


def pairs_of_equal(
  keys_of: Callable[[int], np.ndarray], bands: int, has_N: np.ndarray
) -> np.ndarray:
  """The same from a function that gives the keys of a band, uint64 [N].

  m copies of one document are not m^2 / 2 pairs: what agrees on all bands is paired with the first
  of its kind alone, and that one stands for them. Of more than `_NEAR` documents that are different
  and agree on a band, each is paired with the next `_NEAR`.
  """
  N, members = len(has_N), np.flatnonzero(has_N)
  whole = np.zeros(len(members), np.uint64)
  for band in range(bands):
    whole = running_hash.mixed(whole ^ keys_of(band)[members])
  _, first, kind = np.unique(whole, return_index=True, return_inverse=True)
  first_M = members[first][kind]
  found = (first_M * N + members)[first_M != members]
  members = np.sort(members[first])
  for band in range(bands):
    key = keys_of(band)[members]
    order = np.argsort(key, kind='stable')
    found = np.union1d(found, _pairs_of_groups(members[order], key[order], N))
  return np.stack(np.divmod(found, max(N, 1)), axis=1)


def _pairs_of_groups(member_M, key_M, N: int) -> np.ndarray:
  """i * N + j of pairs i < j of members with the same key; keys ascend, members within one."""
  out = [np.zeros(0, np.int64)]
  # Pairs at distance 1, 2, ... in the sorted list, as long as any two share a key.
  alive = np.flatnonzero(key_M[1:] == key_M[:-1])
  for distance in range(1, _NEAR + 1):
    if not len(alive):
      break
    out.append(member_M[alive] * N + member_M[alive + distance])
    alive = alive[alive + distance + 1 < len(key_M)]
    alive = alive[key_M[alive] == key_M[alive + distance + 1]]
  return np.concatenate(out)


def agreement(signature_NP: np.ndarray, pair_E2: np.ndarray) -> np.ndarray:
  """The share of permutations on which each pair agrees, float64 [E]: an estimate of J."""
  out = np.empty(len(pair_E2))
  for low in range(0, len(pair_E2), _BLOCK):
    i, j = pair_E2[low : low + _BLOCK].T
    out[low : low + _BLOCK] = np.mean(signature_NP[i] == signature_NP[j], axis=1)
  return out


def jaccard(texts: Sequence[str], pair_E2: np.ndarray, config: ShingleConfig) -> np.ndarray:
  """The exact similarity of each pair's shingles, float64 [E]."""
  used, place_E2 = np.unique(pair_E2, return_inverse=True)
  hash_S, start = shingles.shingle_sets([texts[n] for n in used], config)
  out = np.empty(len(pair_E2))
  for e, (i, j) in enumerate(place_E2.reshape(-1, 2)):
    out[e] = jaccard_of_sets(hash_S[start[i] : start[i + 1]], hash_S[start[j] : start[j + 1]])
  return out


def jaccard_of_sets(a: np.ndarray, b: np.ndarray) -> float:
  """Of two arrays of distinct hashes."""
  common = len(np.intersect1d(a, b, assume_unique=True))
  return common / max(len(a) + len(b) - common, 1)


@dataclasses.dataclass(frozen=True)
class Duplicates:
  """What was found.

  Attributes:
    pair_E2: pairs of duplicates, i < j.
    similarity_E: of each, by the config's check (1 where there is none).
    cluster_N: the least number of a document in the same cluster; its own if it has no duplicate.
  """

  pair_E2: np.ndarray
  similarity_E: np.ndarray
  cluster_N: np.ndarray


def duplicates(
  texts: Sequence[str], signature_NP: np.ndarray, has_N: np.ndarray, config: MinHashConfig
) -> Duplicates:
  """Finds, checks and joins the pairs."""
  bands, rows = config.layout
  pair_E2 = candidate_pairs(signature_NP, has_N, bands, rows)
  if config.check == 'exact':
    similarity_E = jaccard(texts, pair_E2, config.shingles)
  elif config.check == 'signature':
    similarity_E = agreement(signature_NP, pair_E2)
  else:
    similarity_E = np.ones(len(pair_E2))
  is_pair = similarity_E >= config.threshold
  pair_E2, similarity_E = pair_E2[is_pair], similarity_E[is_pair]
  return Duplicates(pair_E2, similarity_E, clusters(pair_E2, len(signature_NP)))


def clusters(pair_E2: np.ndarray, N: int) -> np.ndarray:
  """int64 [N]: of each document the least number in its connected component."""
  ones = np.ones(len(pair_E2), bool)
  graph = coo_array((ones, (pair_E2[:, 0], pair_E2[:, 1])), shape=(N, N))
  _, component_N = connected_components(graph, directed=False)
  least = np.full(N, N, np.int64)
  np.minimum.at(least, component_N, np.arange(N))
  return least[component_N]
