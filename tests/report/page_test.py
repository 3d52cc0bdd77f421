import html.parser
import re

import pytest

from jaxmm.report import markup, page


class Checker(html.parser.HTMLParser):
  """Collects text and addresses, and fails on tags that do not nest."""

  def __init__(self):
    super().__init__()
    self.open, self.text, self.addresses = [], [], []

  def handle_starttag(self, tag, attrs):
    self.addresses += [v for k, v in attrs if k in ('src', 'href', 'data', 'action')]
    if tag not in ('meta', 'img'):
      self.open.append(tag)

  def handle_endtag(self, tag):
    assert self.open.pop() == tag

  def handle_data(self, data):
    self.text.append(data)


def read(document):
  checker = Checker()
  checker.feed(document)
  assert checker.open == []
  return checker


def full_page():
  out = page.Page('A & B', 'sub <title>', {'device': 'cpu', 'seeds': 3})
  out.add(page.verdict_box('Reproduced', 'holds', 'Because.', page.table(['n'], [[1]])))
  out.add_section('Losses <1>', 'First.\n\nSecond.', page.figure(page.code('x'), look_for='a fall'))
  out.add_section('Losses <1>', page.settings({'path': '</pre><script>alert(1)</script>'}))
  out.footer = 'end'
  return out


def test_the_page_is_whole_loads_nothing_and_runs_nothing():
  document = full_page().html()
  seen = read(document)
  assert document.startswith('<!doctype html>') and 'name="viewport"' in document
  assert all(a.startswith(('#', 'data:')) for a in seen.addresses)
  assert not re.search(r'https?://|@import|<link|<script', document)
  assert 'prefers-color-scheme:dark' in document
  text = ' '.join(seen.text)
  for said in ('A & B', 'sub <title>', '</pre><script>', 'Look for: ', 'First.', 'end'):
    assert said in text


def test_every_link_has_one_target():
  document = full_page().html()
  targets = re.findall(r'<section id="([^"]+)"', document)
  assert len(set(targets)) == len(targets) == 2
  assert re.findall(r'href="#([^"]+)"', document) == targets


def test_tables_align_numbers_mark_the_best_and_refuse_ragged_rows():
  html = page.table(['arm', 'bits'], [['a', 2.5], ['<b>', 1.25]], best={1: 'low'})
  assert '<td class="number best">1.25</td>' in html and '<td>&lt;b&gt;</td>' in html
  assert html.count('best') == 1
  with pytest.raises(ValueError, match='expected 2'):
    page.table(['a', 'b'], [[1]])
  with pytest.raises(ValueError, match="'low' or 'high'"):
    page.table(['a'], [[1]], best={0: 'min'})


def test_a_tone_that_does_not_exist_is_refused():
  with pytest.raises(ValueError, match='holds, fails, open'):
    page.verdict_box('x', 'green')


def test_writing_replaces_the_page_at_once_and_leaves_nothing_beside_it(tmp_path):
  path = tmp_path / 'deep/report.html'
  full_page().write(path)
  page.Page('Second').write(path)
  assert 'Second' in path.read_text() and [p.name for p in path.parent.iterdir()] == ['report.html']


def test_a_page_that_fails_half_way_leaves_the_old_one(tmp_path):
  path = page.Page('First').write(tmp_path / 'report.html')
  broken = page.Page('Second')
  broken.html = lambda: 1 / 0
  with pytest.raises(ZeroDivisionError):
    broken.write(path)
  assert 'First' in path.read_text() and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
  'value, text',
  [
    (16384, '16,384'), (0.012345, '0.01235'), (1.5e-7, '1.5e-7'), (12345.678, '12,346'),
    (-2.0, '-2'), (0.0, '0'), (float('nan'), 'nan'), (3e12, '3e12'),
  ],
)  # fmt: skip
def test_numbers_are_written_for_people(value, text):
  assert markup.number_text(value) == text


def test_durations():
  assert [markup.duration_text(s) for s in (5.2, 200, 7500)] == ['5 s', '3 min 20 s', '2 h 05 min']
