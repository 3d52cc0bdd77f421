"""The rules, scores and weights of text quality, one line and one character at a time."""

import math
import re
from fractions import Fraction

STOP = {'the', 'be', 'to', 'of', 'and', 'that', 'have', 'with'}


def lines(text: str, unit: str = 'lines') -> list[str]:
  out = text.replace('\r\n', '\n').replace('\r', '\n').split('\n')
  if unit == 'sentences':
    cut = []
    for line in out:
      start = 0
      for m in re.finditer(r'\s+', line):
        before = line[: m.start()]
        if before.endswith(('.', '!', '?')) or (
          len(before) > 1 and before[-1] in '"\'”’)]' and before[-2] in '.!?'
        ):
          cut.append(line[start : m.start()])
          start = m.end()
      cut.append(line[start:])
    out = cut
  return [line.strip() for line in out if line.strip()]


def tokens(line: str) -> list[str]:
  """Words and single marks."""
  inside = [c.isalnum() for c in line]
  for i in range(1, len(line) - 1):
    if line[i] in "'’" and line[i - 1].isalnum() and line[i + 1].isalnum():
      inside[i] = True
  out, word = [], ''
  for c, is_inside in zip(line, inside):
    if is_inside:
      word += c
      continue
    if word:
      out.append(word)
    word = ''
    if not c.isspace():
      out.append(c)
  return [*out, word] if word else out


def lower(word: str) -> str:
  return ''.join(c.lower() if len(c.lower()) == 1 else c for c in word)


def rules(
  line: str, capital='character', repeated='all', digits='tokens', stop='distinct'
) -> dict[str, bool]:
  """The ten that need no parser."""
  parts = tokens(line)
  words = [lower(w) for w in parts if w[0].isalnum()]
  marks = [m for m in parts if not m[0].isalnum()]
  first = line[:1] if capital == 'character' else next((c for c in line if c.isalpha()), '')
  numbers = [w for w in words if w.isdigit()]
  if digits == 'characters':
    numbers = [c for c in line if c.isdigit()]
  found = [w for w in words if w in STOP]
  again = len(words) - len(set(words))
  if repeated == 'most_frequent':
    again = max((words.count(w) - 1 for w in words), default=0)
  return {
    'has_first_letter_caps': first.isupper(),
    'no_all_caps': not line.isupper(),
    'word_repetition_ratio': Fraction(again, max(len(words), 1))
    <= Fraction(1, 5),
    'digit_punctuation_ratio': Fraction(len(numbers) + len(marks), max(len(words), 1))
    <= Fraction(1, 4),
    'no_special_characters': '{' not in line and '}' not in line,
    'terminal_punctuation': line[-1:] in ('.', '!', '?', '"', '”'),
    'stop_word_match_2': len(set(found) if stop == 'distinct' else found) >= 2,
    'javascript_flag': 'javascript' not in line.lower() and 'lorem ipsum' not in line.lower(),
    'token_count_ge_3': len(parts) >= 3,
    'word_count_3_256': 3 < len(words) < 256,
  }  # fmt: skip


def document_score(text: str, weights: dict[str, float], **readings) -> Fraction | None:
  """By line scores first, as the paper has it; exact."""
  weights = {name: Fraction(w) for name, w in weights.items()}
  total, count = Fraction(0), 0
  for line in lines(text):
    passes = rules(line, **readings)
    score = sum(w for name, w in weights.items() if passes[name]) / sum(weights.values())
    total += len(tokens(line)) * score
    count += len(tokens(line))
  return total / count if count else None


def perplexity(pairs) -> float:
  pairs = list(pairs)
  return math.exp(math.fsum(n for n, _ in pairs) / math.fsum(c for _, c in pairs))


def weight(passes, nll, count) -> tuple[float, float, float]:
  """(PPL_all, PPL_i, w_i) of one rule."""
  of_all = perplexity(zip(nll, count))
  of_rule = perplexity((n, c) for p, n, c in zip(passes, nll, count) if p)
  return of_all, of_rule, max(0.0, (of_all - of_rule) / of_all)


def kept(scores: dict[str, float], share: Fraction) -> set[str]:
  """Ids of the best share of those with a score, the number rounded half up."""
  order = sorted(scores, key=lambda name: (-scores[name], name))
  return set(order[: math.floor(share * len(scores) + Fraction(1, 2))])
