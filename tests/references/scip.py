"""SCIP's Algorithm 1 the slow way: one file after the other, in exact fractions."""

import math
from fractions import Fraction


def pruned(files: dict[str, tuple[int, float]], prune: str, alpha: str, hard: bool = False):
  """Ids that go for their cluster, and ids that go for their distance.

  files: id -> (cluster, distance).
  """
  size = {c: sum(1 for k, _ in files.values() if k == c) for c, _ in files.values()}
  total = math.floor(Fraction(prune) * len(files))
  number = math.floor(Fraction(alpha) * Fraction(prune) * len(files))
  left, by_cluster, by_distance = dict(files), [], []

  def worse(name, other, look_at_size):
    """Whether `name` is pruned before `other`."""
    (c, d), (k, e) = files[name], files[other]
    if look_at_size and size[c] != size[k]:
      return (size[c] < size[k]) != hard
    return (d > e) != hard if d != e else name > other

  for out, steps, look_at_size in (
    (by_cluster, number, True),
    (by_distance, total - number, False),
  ):
    for _ in range(steps):
      names = list(left)
      worst = names[0]
      for name in names[1:]:
        worst = name if worse(name, worst, look_at_size) else worst
      out.append(worst)
      del left[worst]
  return set(by_cluster), set(by_distance)
