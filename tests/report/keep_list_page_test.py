"""The page says of every example what became of it, and escapes what stands in a corpus."""

import io
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from jaxmm.curation import embeddings, keep_list, minhash_job, semdedup, vectors
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.minhash import MinHashConfig
from jaxmm.curation.semdedup import SemDedupConfig
from jaxmm.curation.stages import Stages
from jaxmm.data.corpus import CorpusConfig
from jaxmm.report import keep_list_page


@pytest.fixture
def path(tmp_path):
  rng = np.random.default_rng(0)
  reason = np.array(['', 'semantic_duplicate', '', 'prototypical', 'unreadable'] * 8, object)
  ids = [f'doc-{n:02}' for n in range(40)]
  nearest = [ids[n - 1] if reason[n] == 'semantic_duplicate' else None for n in range(40)]
  keep = keep_list.make(
    ids,
    np.arange(40, dtype=np.uint64),
    reason == '',
    score_N=rng.uniform(size=40),
    reason_N=reason,
    columns={
      'cluster': pa.array(rng.integers(0, 3, 40), mask=reason == 'unreadable'),
      'distance': np.where(reason == 'unreadable', np.nan, rng.uniform(size=40)),
      'nearest': nearest,
      'similarity': np.where(reason == 'semantic_duplicate', rng.uniform(0.9, 1, 40), np.nan),
      'error': ['broken <line>' if r == 'unreadable' else None for r in reason],
    },
    method='d4',
    parameters={'keep': 0.4},
  )
  keep_list.write(keep, tmp_path / 'keep.parquet')
  return tmp_path / 'keep.parquet'


def test_reasons_pairs_clusters_and_examples_are_shown(path):
  of = keep_list_page.KeepListFile(path)
  shown = of.shown()
  assert {'doc-01', 'doc-00'} <= shown and len(shown) > 20
  contents = {i: f'a <b>text</b> of {i} and more' for i in shown}
  html = keep_list_page.keep_list_page(of, contents).html()
  assert '16 of 40 examples are kept (40.0%)' in html
  for said in ('kept', 'semantic_duplicate', 'prototypical', 'unreadable', 'share kept'):
    assert said in html
  assert '<b>text</b>' not in html and '&lt;b&gt;text&lt;/b&gt;' in html
  assert 'broken &lt;line&gt;' in html
  assert '<mark>doc-01</mark>' in html and '<mark>doc-00</mark>' in html
  assert 'most prototypical' in html and '(not shown)' not in html
  pairs = of.whole.pairs
  assert len(pairs) == 8 and pairs[0][2] >= pairs[-1][2]


def test_source_code_keeps_its_lines_and_indentation(path):
  of = keep_list_page.KeepListFile(path)
  dropped, near = 'def f(x):\n  if x:\n    return 1\n', 'def f(x):\n  if not x:\n    return 1\n'
  contents = dict.fromkeys(of.shown(), 'one\tline  of text')
  html = keep_list_page.keep_list_page(of, contents | {'doc-01': dropped, 'doc-00': near}).html()
  assert '<p class="lines">def f(x):\n  if x:\n    return 1</p>' in html
  assert '<p class="lines">def f(x):\n  if <mark>not</mark> x:\n    return 1</p>' in html
  assert '.lines{white-space:pre-wrap' in html and '<p>one line of text</p>' in html


def test_clusters_go_from_the_middle_outwards(path):
  of = keep_list_page.KeepListFile(path)
  distance = of.whole.numbers('distance')
  clusters = of.whole.clusters
  assert sum(len(rows) for _, rows in clusters) == 32 and len(clusters) == 3
  for _, rows in clusters:
    assert np.all(np.diff(distance[rows]) >= 0)


def test_pictures_become_thumbnails(path):
  of = keep_list_page.KeepListFile(path)
  data = io.BytesIO()
  Image.new('RGB', (400, 300), 'red').save(data, 'JPEG')
  html = keep_list_page.keep_list_page(of, {'doc-01': data.getvalue(), 'doc-00': b'no'}).html()
  assert html.count('data:image/png') >= 1 and 'not a picture' in html
  assert 'width:128px' in html
  small = io.BytesIO()
  Image.new('RGB', (20, 40), 'red').save(small, 'PNG')
  html = keep_list_page.keep_list_page(of, {'doc-01': small.getvalue()}).html()
  assert 'width:64px' in html


def test_methods_that_were_joined_have_a_section_each(path, tmp_path):
  d4 = keep_list.read(path)
  ids, N = d4.table['id'].to_pylist(), len(d4)
  is_long = np.arange(N) % 10 == 0
  long = keep_list.make(
    ids, d4.table['digest'].to_numpy(), ~is_long, score_N=np.arange(N) * 1000.0,
    reason_N=np.where(is_long, 'long', '').astype(object), method='long_files', parameters={},
  )  # fmt: skip
  keep_list.write(keep_list.both(long, d4), tmp_path / 'both.parquet')
  of = keep_list_page.KeepListFile(tmp_path / 'both.parquet')
  assert [part.name for part in of.parts] == ['long_files', 'd4']
  assert of.parts[0].numbers('score').max() == 39000 and of.parts[1].numbers('score').max() < 1
  assert int(of.parts[0].kept_N.sum()) == 36 and of.parts[0].clusters == []
  html = keep_list_page.keep_list_page(of, {}).html()
  for heading in (
    'long_files: Scores',
    'd4: Scores',
    'd4: Clusters',
    'd4: Duplicates side by side',
  ):
    assert heading in html
  assert 'long_files: Clusters' not in html and '>Scores<' not in html


def test_a_method_that_follows_is_counted_by_what_it_was_asked_about(path, tmp_path):
  d4 = keep_list.read(path)
  kept = d4.table.filter(d4.table['keep'])
  later = keep_list.make(
    kept['id'], kept['digest'].to_numpy(), np.ones(len(kept), bool),
    reason_N=[''] * len(kept), method='later', parameters={},
  )  # fmt: skip
  keep_list.write(keep_list.then(d4, later), tmp_path / 'then.parquet')
  of = keep_list_page.KeepListFile(tmp_path / 'then.parquet')
  assert [int(part.asked_N.sum()) for part in of.parts] == [40, 16]
  assert of.parts[1].counts() == {'': 16}


def test_survivors_of_minhash_are_in_no_curve_of_what_eps_keeps(tmp_path):
  texts = [f'the {n} document that says nothing but {n} and {n * n} again' for n in range(9)]
  lines = [json.dumps({'text': text}) + '\n' for text in [*texts, texts[0]]]
  (tmp_path / 'in.jsonl').write_text(''.join(lines))
  inputs = CorpusConfig((str(tmp_path / 'in.jsonl'),))
  keep = minhash_job.run(inputs, MinHashConfig(threshold=0.9), tmp_path / 'work', echo=None)
  keep_list.write(keep, tmp_path / 'k.parquet')
  assert keep.num_kept == 9
  of = keep_list_page.KeepListFile(tmp_path / 'k.parquet')
  html = keep_list_page.keep_list_page(of, {}).html()
  assert 'share kept' not in html and '>Scores<' not in html


@pytest.mark.parametrize('eps', [0.02, 0.1, 0.5])
def test_the_curve_says_what_semdedup_keeps_at_any_eps(tmp_path, eps):
  x_ND = np.random.default_rng(0).standard_normal((60, 3))
  of = vectors.of_embeddings(embeddings.of_arrays([f'd{n}' for n in range(60)], x_ND))
  config = KMeansConfig(2, iterations=3)
  run = lambda at: semdedup.run(of, SemDedupConfig('hard', eps=at), config, Stages())
  keep_list.write(run(0.05), tmp_path / 'k.parquet')
  found, share = keep_list_page.KeepListFile(tmp_path / 'k.parquet').whole.kept_by_eps
  kept = run(eps).num_kept
  assert np.all(np.diff(found) >= 0) and 2 < kept < 60
  assert round(share[np.searchsorted(found, eps)] * 60) == kept


def test_the_page_is_bounded(path):
  of = keep_list_page.KeepListFile(path)
  page = keep_list_page.keep_list_page(of, dict.fromkeys(of.shown(), 'x' * 1_000_000)).html()
  assert len(page) < 500_000


def test_another_parquet_file_is_refused(tmp_path):
  pq.write_table(pa.table({'a': [1]}), tmp_path / 'a.parquet')
  with pytest.raises(ValueError, match='is no keep-list'):
    keep_list_page.KeepListFile(tmp_path / 'a.parquet')
