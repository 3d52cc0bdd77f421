"""Near-duplicates the slow way: every pair of documents, shingles as strings, sets in Python."""

import re


def shingle_set(text: str, size: int, kind: str = 'words', lower: bool = True) -> set[tuple]:
  text = text.lower() if lower else text
  units = re.findall(r'\w+', text) if kind == 'words' else list(text)
  if not units:
    return set()
  return {tuple(units[i : i + size]) for i in range(max(1, len(units) - size + 1))}


def jaccard(a: set, b: set) -> float:
  return len(a & b) / len(a | b) if a or b else 0.0


def pairs(texts, threshold: float, size: int, kind: str = 'words') -> dict[tuple[int, int], float]:
  """Similarity of all pairs i < j that reach the threshold."""
  sets = [shingle_set(t, size, kind) for t in texts]
  out = {}
  for j in range(len(sets)):
    for i in range(j):
      if sets[i] and sets[j] and jaccard(sets[i], sets[j]) >= threshold:
        out[i, j] = jaccard(sets[i], sets[j])
  return out


def clusters(pair_list, n: int) -> list[int]:
  """The least number of each document's component, by spreading labels until nothing changes."""
  label = list(range(n))
  changed = True
  while changed:
    changed = False
    for i, j in pair_list:
      least = min(label[i], label[j])
      changed |= label[i] != least or label[j] != least
      label[i] = label[j] = least
  return label


def signature(hashes, factors, shifts) -> list[int]:
  """The least of each permutation, in Python's integers."""
  upper = [h >> 32 for h in hashes]
  return [min((a * x + b) % 2**32 for x in upper) for a, b in zip(factors, shifts)]
