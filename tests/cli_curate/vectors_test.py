"""The methods on vectors, from the command line: vectors that are brought, lists that follow."""

import json

import numpy as np
import pytest

from jaxmm import cli
from jaxmm.curation import embeddings, keep_list, vectors
from jaxmm.curation.scip_job import read_clusters

NUM = 80


@pytest.fixture(scope='module')
def given(tmp_path_factory):
  """(words for the corpus, directory of its vectors)."""
  root = tmp_path_factory.mktemp('vectors')
  rng = np.random.default_rng(0)
  centre = rng.standard_normal((4, 12))
  x = centre[np.arange(NUM) % 4] + 0.3 * rng.standard_normal((NUM, 12))
  x[60:] = x[40:60] + 1e-4
  lines = [json.dumps({'id': f'd{n:02}', 'text': f'text number {n}'}) for n in range(NUM)]
  (root / 'in.jsonl').write_text('\n'.join([*lines, '{broken', '{"id": "e", "text": ""}']) + '\n')
  np.savez(root / 'x.npz', id=np.array([f'd{n:02}' for n in range(NUM)]), x=x)
  corpus = ['--input', str(root / 'in.jsonl'), '--id-field', 'id']
  words = ['--encoder', 'brought', '--vectors', str(root / 'x.npz'), '--output', str(root / 'v')]
  assert cli.main(['curate', 'embed', *corpus, *words]) == 0
  return corpus, root / 'v'


def curated(given, tmp_path, *words, name='keep.parquet'):
  line = ['curate', *words, '--vectors', str(given[1]), '--clusters', '4']
  assert cli.main([*line, '--output', str(tmp_path / name)]) == 0
  return keep_list.read(tmp_path / name)


@pytest.mark.parametrize(
  ('words', 'kept'),
  [
    (('d4', '--prefer', 'hard', '--keep', '0.4'), 32),
    (('semdedup', '--prefer', 'hard', '--eps', '0.001'), 60),
    (('semdedup', '--prefer', 'easy', '--keep', '0.5'), 40),
    (('prototypes', '--prefer', 'easy', '--keep', '0.25'), 20),
    (('dbp', '--prefer', 'hard', '--keep', '0.5', '--neighbours', '2'), 40),
  ],
)
def test_each_verb_writes_a_list_of_all_examples(given, tmp_path, words, kept, capsys):
  keep = curated(given, tmp_path, *words)
  assert len(keep) == NUM + 2 and keep.num_kept == kept
  assert keep.reasons()['unreadable'] == keep.reasons()['empty'] == 1
  assert f'{kept} of {NUM + 2} examples kept ({words[0]})' in capsys.readouterr().out


def test_memory_is_planned_before_vectors_are_loaded(given, tmp_path, monkeypatch, capsys):
  whole = curated(given, tmp_path, 'd4', '--prefer', 'hard', '--keep', '0.4')
  assert 'GiB at most (program' in capsys.readouterr().out
  on_disk = curated(
    given, tmp_path, 'd4', '--prefer', 'hard', '--keep', '0.4', '--on-disk', name='disk.parquet'
  )
  assert on_disk.table.equals(whole.table)
  assert (tmp_path / 'disk.parquet.work' / 'rows-0.npy').stat().st_size > (NUM + 2) * 12 * 4
  monkeypatch.setattr(vectors, 'of_embeddings', None)
  words = ['curate', 'd4', '--prefer', 'hard', '--keep', '0.4', '--vectors', str(given[1])]
  words += ['--output', str(tmp_path / 'n.parquet')]
  assert cli.main([*words, '--memory', '0.01']) == 2
  told = capsys.readouterr().err
  assert 'more than memory is 0.01 GiB; program, ids and results alone are more' in told
  assert told.endswith('set --memory where more is there\n')
  assert cli.main([*words, '--memory', '-1']) == 2


def test_a_list_follows_another_and_is_shown_and_exported(given, tmp_path):
  first = curated(
    given, tmp_path, 'semdedup', '--prefer', 'hard', '--eps', '0.001', name='a.parquet'
  )
  after = ['--after', str(tmp_path / 'a.parquet')]
  both = curated(given, tmp_path, 'dbp', '--prefer', 'hard', '--keep', '0.5', *after)
  assert first.num_kept == 60 and both.num_kept == 30 and len(both) == NUM + 2
  assert set(both.reasons()) == {'unreadable', 'empty', 'semantic_duplicate', 'prototypical'}
  assert both.fingerprint == embeddings.read(given[1]).fingerprint
  keep = str(tmp_path / 'keep.parquet')
  assert cli.main(['curate', 'report', keep, *given[0]]) == 0
  page = (tmp_path / 'keep.html').read_text()
  assert 'Duplicates side by side' in page and 'most prototypical' in page
  out = tmp_path / 'kept.jsonl'
  assert cli.main(['curate', 'export', keep, *given[0], '--output', str(out)]) == 0
  assert len(out.read_text().splitlines()) == 30


def test_clusters_go_on_to_scip(given, tmp_path):
  out = tmp_path / 'clusters.parquet'
  words = ['--vectors', str(given[1]), '--clusters', '4', '--output', str(out)]
  assert cli.main(['curate', 'cluster', *words]) == 0
  table = read_clusters(out)
  assert len(table) == NUM and set(table['cluster'].to_pylist()) == {0, 1, 2, 3}


def test_nothing_that_is_read_is_written_over(given, tmp_path, capsys):
  corpus, directory = given
  keep = tmp_path / 'keep.parquet'
  semdedup = ('semdedup', '--prefer', 'hard', '--eps', '0.001')
  curated(given, tmp_path, *semdedup)
  before = {path: path.read_bytes() for path in (keep, directory.parent / 'in.jsonl')}
  source = corpus[1]
  for words in (
    ('minhash', *corpus, '--output', source),
    ('export', str(keep), *corpus, '--output', source),
    ('report', str(keep), *corpus, '--output', str(keep)),
    ('combine', str(keep), 'and', str(keep), '--output', str(keep)),
    (*semdedup, '--vectors', str(directory), '--after', str(keep), '--output', str(keep)),
  ):
    assert cli.main(['curate', *words]) == 2
    assert 'is read by this command; name another file' in capsys.readouterr().err
  assert {path: path.read_bytes() for path in before} == before


def test_what_was_not_read_says_why(given, tmp_path, capsys):
  corpus, directory = given
  line = ['curate', 'minhash', *corpus, '--output', str(tmp_path / 'k.parquet')]
  assert cli.main([*line, '--text-field', 'body']) == 1  # a list that keeps nothing
  said = capsys.readouterr().out
  assert "82 dropped: unreadable (such as, 81 times: no text in field 'body'; it has" in said
  (tmp_path / 'none.jsonl').write_text('')
  for verb in (('minhash',), ('long_files', '--max-tokens', '5')):
    words = ['--input', str(tmp_path / 'none.jsonl'), '--output', str(tmp_path / 'n.parquet')]
    assert cli.main(['curate', *verb, *words]) == 2
    assert 'the inputs hold no example: 1 files' in capsys.readouterr().err


def test_a_page_of_another_corpus_is_refused(given, tmp_path, capsys):
  curated(given, tmp_path, 'prototypes', '--prefer', 'hard', '--keep', '0.5')
  other = tmp_path / 'other.jsonl'
  other.write_text(
    ''.join(json.dumps({'id': f'd{n:02}', 'text': f'changed {n}'}) + '\n' for n in range(NUM))
  )
  words = [str(tmp_path / 'keep.parquet'), '--input', str(other), '--id-field', 'id']
  assert cli.main(['curate', 'report', *words]) == 2
  assert 'is another now' in capsys.readouterr().err
  other.write_text('{"id": "z", "text": "x"}\n')
  assert cli.main(['curate', 'report', *words]) == 2
  assert 'to be shown is in it' in capsys.readouterr().err


def test_half_a_surrogate_pair_goes_through(tmp_path, capsys):
  path = tmp_path / 'in.jsonl'
  path.write_text('{"id": "a", "text": "one \\ud800 two"}\n{"id": "b", "text": "three"}\n')
  corpus, keep = ['--input', str(path), '--id-field', 'id'], str(tmp_path / 'k.parquet')
  assert cli.main(['curate', 'minhash', *corpus, '--output', keep]) == 0
  assert cli.main(['curate', 'report', keep, *corpus]) == 0
  out = tmp_path / 'out.jsonl'
  assert cli.main(['curate', 'export', keep, *corpus, '--output', str(out)]) == 0
  assert json.loads(out.read_text('utf-8').splitlines()[0])['text'] == 'one \ud800 two'
  assert cli.main(['curate', 'export', keep, *corpus, '--output', str(tmp_path / 'o.parquet')]) == 2
  assert 'which Parquet cannot hold' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    (('d4', '--prefer', 'hard', '--keep', '0.9'), 'keep is 0.9 and dedup_keep 0.75'),
    (
      ('d4', '--prefer', 'hard', '--keep', '0.4', '--vectors', 'nowhere'),
      'nowhere holds no embeddings',
    ),
    (
      ('d4', '--prefer', 'hard', '--keep', '0.4', '--input', 'x.jsonl'),
      'give either --vectors DIR or --input',
    ),
    (
      ('d4', '--prefer', 'hard', '--keep', '0.4', '--clusters', '99'),
      'clusters is 99, expected at most the 80 rows with a vector that there are (--clusters)',
    ),
  ],
)
def test_mistakes_are_named(given, tmp_path, words, message, capsys):
  line = ['curate', *words[:1], '--vectors', str(given[1]), *words[1:]]
  assert cli.main([*line, '--output', str(tmp_path / 'k.parquet')]) == 2
  assert message in capsys.readouterr().err
