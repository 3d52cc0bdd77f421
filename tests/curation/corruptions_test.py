"""Syntax damage never parses and content damage always does, and nothing but code is touched."""

import ast
import io
import pathlib
import re
import sysconfig
import tokenize
import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxmm.config import ConfigError
from jaxmm.curation import corruptions
from jaxmm.curation.corruptions import corrupted
from tests.references import corruptions as reference

STDLIB = pathlib.Path(sysconfig.get_paths()['stdlib'])
WORDS = {'==', '!=', '<', '>', '<=', '>=', 'and', 'or', 'is', 'not', 'in'}


def all_of(text, kind):
  return corrupted(text, kind, example_id='', rate=1.0)


@pytest.mark.parametrize(
  'before, after',
  [
    ('a == b != c', 'a != b == c'),
    ('a<b>=-1', 'a>=b<-1'),
    ('x is not y', 'x is y'),
    ('x is  y', 'x is not  y'),
    ('x not in y', 'x in y'),
    ('x is "a" not in y', 'x is not "a" in y'),  # what stands between the words is no code word
    ('not "a" in y', 'not "a" not in y'),
    ('x is 1 in y', 'x is not 1 not in y'),
    ('x is not(y)', 'x is (y)'),
    ('(x is # not in\n  not y)', '(x is # not in\n  y)'),
    ('0and x', '0 or x'),  # 0or would be an octal number
    ('0xfor x', '0xf and x'),
    ('1in x', '1 not in x'),
    ('for i in a in b: pass', 'for i in a not in b: pass'),
    ('[i for i in a if i in b]', '[i for i in a if i not in b]'),
    ('for x[[j for j in k][0]] in y: pass', None),
    ('for x[0 in k] in y: pass', 'for x[0 not in k] in y: pass'),
    ('f = lambda x: x or f"{x == 1}"', 'f = lambda x: x and f"{x == 1}"'),
    ('x = "a == b"  # a == b', None),
    ('not x', None),
  ],
)
def test_flipped_conditions(before, after):
  found = all_of(before, 'flip_conditions')
  assert (found.text, found.reason) == (after or before, '' if after else 'no_place')
  ast.parse(found.text)


@pytest.mark.parametrize(
  'before, after',
  [
    ('a[i]', 'a[i + 1]'),
    ('a[-1] = b[i][j]', 'a[-1 + 1] = b[i + 1][j + 1]'),
    ('a[i, 0, :n, k:, ::2]', 'a[i + 1, 0 + 1, :n + 1, k + 1:, ::2]'),
    ('a[(i)]', 'a[(i + 1)]'),
    ('a[len(a)-1]', 'a[len(a)-1 + 1]'),
    ('a[b[i] * 2 % n]', 'a[b[i + 1] * 2 % n + 1]'),
    ('a[i << 1]', None),  # + binds more tightly
    ('d["key"], d["a" + k], d["%s" % k], d[f(x)], d[o.x], d[True], d[None], d[1.0]', None),
    ('x: List[int] = a[i]', 'x: List[int] = a[i + 1]'),
    ('def f(x: L[i], *y: L[j]) -> L[k]: return x[0]', 'def f(x: L[i], *y: L[j]) -> L[k]: '
     'return x[0 + 1]'),
    ('f"{a[i]}" "a[i]" # a[i]', None),
    ('été[ñ]; é = "é"; a["é"][i]', 'été[ñ + 1]; é = "é"; a["é"][i + 1]'),
    ('a[\n  i # one\n]', 'a[\n  i + 1 # one\n]'),
  ],
)  # fmt: skip
def test_shifted_indices(before, after):
  found = all_of(before, 'shift_indices')
  assert (found.text, found.reason) == (after or before, '' if after else 'no_place')
  ast.parse(found.text)


@pytest.mark.parametrize(
  'before, after',
  [
    ('x = f(y)', '1_x = f(y)'),
    ('def f(a, *, b): return a.b + g(b=b)', 'def f(1_a, *, 1_b): return 1_a.b + g(b=1_b)'),
    ('for e5 in j: print(e5)', 'for 1_e5 in j: print(1_e5)'),  # 1e5 would be a number
    ('import x; x.y()', None),
    ('é = "é"; ü = é', '1_é = "é"; 1_ü = 1_é'),
    ('x = f"{x}" "x" # x', '1_x = f"{x}" "x" # x'),
  ],
)
def test_bad_names(before, after):
  found = all_of(before, 'bad_names')
  assert (found.text, found.reason) == (after or before, '' if after else 'no_place')


@pytest.mark.parametrize(
  'before, after',
  [
    ('f(a[0], {1: ")"}) # )', 'f(a[0, {1: ")" # )'),
    ('x = (1)if y else "]"', 'x = (1if y else "]"'),
    ('x = f"{f(1)}"', None),
  ],
)
def test_deleted_brackets(before, after):
  found = all_of(before, 'delete_brackets')
  assert (found.text, found.reason) == (after or before, '' if after else 'no_place')


def sources(step):
  files = [p for p in sorted(STDLIB.rglob('*.py')) if 'site-packages' not in p.parts]
  for path in files[::step]:
    try:
      yield path, path.read_bytes().decode('utf-8')
    except UnicodeDecodeError:
      pass  # what cannot be read never gets here


def tokens(text):
  lines = io.StringIO(text.replace('\r\n', '\n').replace('\r', '\n').removeprefix('\ufeff'))
  return [t.string for t in tokenize.generate_tokens(lines.readline)]


def check_against_reference(text):
  """All places of every kind, on code that parses."""
  flipped, shifted = all_of(text, 'flip_conditions'), all_of(text, 'shift_indices')
  opposite = {reference.OPPOSITE[op]: n for op, n in reference.operators(text).items()}
  assert reference.operators(flipped.text) == opposite
  assert sum(opposite.values()) == flipped.places == flipped.changed
  other = lambda text: [t for t in tokens(text) if t not in WORDS]
  assert other(flipped.text) == other(text)
  assert tokens(all_of(flipped.text, 'flip_conditions').text) == tokens(text)
  assert ast.dump(ast.parse(shifted.text)) == reference.shifted(text)
  open_, renamed = all_of(text, 'delete_brackets'), all_of(text, 'bad_names')
  assert open_.text == reference.without_closing_brackets(text)
  assert len(open_.text) == len(text) - open_.changed
  expected = reference.variables(text)
  assert renamed.changed == renamed.places == len(expected)
  added = re.findall(r'1_(\w+)', renamed.text)
  assert renamed.text.count('1_') - text.count('1_') == expected.total()
  assert re.sub(r'(?<!\w)1_(?=[^\W\d])', '', renamed.text) == text and set(added) >= set(expected)


@pytest.mark.parametrize('name', ['bisect', 'textwrap', 'heapq', 'shlex', 'cmd', 'sched'])
def test_all_of_a_real_file_is_damaged_as_the_reference_says(name):
  text = (STDLIB / f'{name}.py').read_text('utf-8')
  check_against_reference(text)
  assert all(all_of(text, kind).changed > 0 for kind in corruptions.KINDS)


def check_soundness(step, rate):
  damaged = {}
  for path, text in sources(step):
    for kind in corruptions.KINDS:
      found = corrupted(text, kind, example_id=path.name, rate=rate)
      assert found.reason != corruptions.UNSOUND, (path, kind)
      if found.reason:
        assert found.text == text and found.changed == 0
        continue
      with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        if kind in corruptions.CONTENT:
          ast.parse(found.text)
        else:
          with pytest.raises(SyntaxError):
            ast.parse(found.text)
      damaged[kind] = damaged.get(kind, 0) + (found.text != text)
  return damaged


def test_every_damaged_file_is_code_or_is_not():
  damaged = check_soundness(60, 0.2)
  assert set(damaged) == set(corruptions.KINDS) and min(damaged.values()) > 10


@pytest.mark.slow
def test_every_twelfth_file_is_damaged_as_the_reference_says():
  texts = [text for _, text in sources(12) if corruptions.parses(text)]
  for text in texts:
    check_against_reference(text)
  assert len(texts) > 100


@pytest.mark.slow
@pytest.mark.parametrize('rate', [0.01, 1.0])
def test_every_file_of_the_standard_library(rate):
  assert min(check_soundness(1, rate).values()) > 500


CODE = (
  'def f(a, b):\n  for i in range(a):\n    if a[i] == b[i + 1] and a[-1] < b[0]:\n      b[i] = a\n'
)


@pytest.mark.parametrize('kind', corruptions.KINDS)
def test_places_follow_from_id_seed_and_kind_and_grow_with_the_rate(kind):
  places, _ = corruptions.places(CODE, kind)
  for rate in (0.001, 0.34, 0.67, 1.0):
    found = corrupted(CODE, kind, example_id='x', seed=3, rate=rate)
    assert found == corrupted(CODE, kind, example_id='x', seed=3, rate=rate)
    assert found.places == len(places) and found.changed == max(1, -int(-rate * len(places) // 1))
  one = {corrupted(CODE, kind, example_id=str(i), seed=0, rate=0.1).text for i in range(40)}
  same = {corrupted(CODE, kind, example_id='x', seed=i, rate=0.1).text for i in range(40)}
  assert len(one) == len(same) == len(places) > 1
  lines = lambda rate: corrupted(CODE, kind, example_id='y', rate=rate).text.splitlines()
  changed = [
    {i for i, (a, b) in enumerate(zip(CODE.splitlines(), lines(rate))) if a != b}
    for rate in (0.1, 0.5, 1.0)
  ]
  assert changed[0] <= changed[1] <= changed[2]


def test_the_choice_is_that_of_earlier_versions():
  found = corrupted(CODE, 'shift_indices', example_id='golden', seed=1, rate=0.3)
  assert found.text == CODE.replace('a[i]', 'a[i + 1]').replace('a[-1]', 'a[-1 + 1]')


def test_line_ends_marks_and_missing_newlines_stay():
  text = '\ufeffx = a[i]\r\nif x == (1):\r  y = "\r\n"\x0c\n\x0c# ä (\ny[0]'.replace(
    '"\r\n"', '"""\r\n"""'
  )
  assert all_of(text, 'shift_indices').text == text.replace('[i]', '[i + 1]').replace(
    '[0]', '[0 + 1]'
  )
  assert all_of(text, 'flip_conditions').text == text.replace('==', '!=')
  assert all_of(text, 'delete_brackets').text == text.replace('[i]', '[i').replace(
    '(1)', '(1'
  ).replace('[0]', '[0')


@pytest.mark.parametrize(
  'text, reason',
  [
    ('', 'no_place'),
    ('# only a comment', 'no_place'),
    ('print "python 2"', 'not_parsed'),
    ('x = (', 'not_tokenized'),
    ('if x:\n    y\n  z\n', 'not_tokenized'),
    ('x = "\ud800"', 'not_parsed'),
    ('x = 1\x00', 'not_parsed'),
    ('(' * 3000 + ')' * 3000, 'not_parsed'),
    ('x = ' + '-' * 100_000 + '1', 'not_parsed'),
  ],
)  # fmt: skip
@pytest.mark.parametrize('kind', corruptions.KINDS)
def test_what_is_no_code_is_left_alone_with_a_reason(text, reason, kind):
  found = corrupted(text, kind, example_id='x')
  # Newer tokenizers refuse what older ones let pass to the parser.
  reasons = {reason, 'not_tokenized'} if reason == 'not_parsed' else {reason}
  assert found.text == text and found.changed == 0 and found.reason in reasons


def test_a_long_sum_is_no_deep_one():
  text = f'a[{"i + " * 800}1] = {"-" * 60}1'
  assert all_of(text, 'shift_indices').text == text.replace('1]', '1 + 1]')
  for kind in corruptions.KINDS:
    found = all_of(f'a[{"i + " * 20_000}1]', kind)  # which Python may or may not parse
    assert found.reason in ('', 'not_parsed', 'no_place')


def test_code_that_the_tokenizer_stumbles_over_is_code_if_it_parses():
  # A variation selector in a name is an error token before Python 3.12, but parses.
  text = 'x\U000e0100 = a[i] == (1)\n'
  assert all_of(text, 'delete_brackets').changed == 2
  assert all_of(text, 'flip_conditions').text == text.replace('==', '!=')


@settings(max_examples=60, deadline=None)
@given(
  text=st.text(st.sampled_from('ab01 ()[]{}:=<>!\n\t\'"#f.\\,+-') | st.characters(), max_size=40)
)
def test_any_text_is_damaged_or_left_with_a_reason(text):
  for kind in corruptions.KINDS:
    found = corrupted(text, kind, example_id=text, rate=1.0)
    assert (found.reason == '') == (found.text != text)
    assert found.reason != corruptions.UNSOUND


@pytest.mark.parametrize('rate', [0, -0.1, 1.1, float('nan')])
def test_rates_out_of_range_are_named(rate):
  with pytest.raises(ConfigError, match='rate is .*expected in'):
    corrupted('x', 'bad_names', example_id='', rate=rate)


def test_an_unknown_kind_is_named():
  with pytest.raises(ConfigError, match="kind is 'typos', expected one of delete_brackets,"):
    corrupted('x', 'typos', example_id='')
