"""Dropping the longest files the slow way: one after the other, in exact fractions."""

from fractions import Fraction


def longest_first(tokens: dict[str, int]) -> list[str]:
  """Of equally long files, the one with the greatest id comes first."""
  return sorted(tokens, key=lambda name: (tokens[name], name), reverse=True)


def dropped_by_tokens(tokens: dict[str, int], share: str) -> set[str]:
  out, total = set(), sum(tokens.values())
  for name in longest_first(tokens):
    if sum(tokens[n] for n in out) >= Fraction(share) * total:
      break
    out.add(name)
  return out


def dropped_by_files(tokens: dict[str, int], share: str) -> set[str]:
  out = set()
  for name in longest_first(tokens):
    if len(out) >= Fraction(share) * len(tokens):
      break
    out.add(name)
  return out
