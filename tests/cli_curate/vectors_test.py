"""The methods on vectors, from the command line: vectors that are brought, lists that follow."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from jaxmm import cli
from jaxmm.config import from_mapping
from jaxmm.curation import embeddings, keep_list, vectors
from jaxmm.curation.scip_job import read_clusters
from jaxmm.data.pipeline import DataConfig, make_batches

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
  assert list(keep.errors()) == ['in.jsonl:81']


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


def test_what_is_unreadable_is_named_in_a_file_by_any_method(given, tmp_path, capsys):
  semdedup = ('semdedup', '--prefer', 'hard', '--eps', '0.001')
  keep = curated(given, tmp_path, *semdedup)
  said = capsys.readouterr().out
  named = tmp_path / 'keep.parquet.rejects.jsonl'
  assert f'{named} names each that is unreadable' in said
  assert '1 dropped: unreadable (such as, 1 times: JSONDecodeError' in said
  (row,) = map(json.loads, named.read_text().splitlines())
  assert row == {'id': 'in.jsonl:81', 'reason': 'unreadable', 'error': row['error']}
  assert row['error'] == keep.errors()['in.jsonl:81'] and 'JSONDecodeError' in row['error']
  out = tmp_path / 'dropped.jsonl'
  words = ['export', str(tmp_path / 'keep.parquet'), *given[0], '--dropped', '--output', str(out)]
  assert cli.main(['curate', *words]) == 0
  rows = {row['id']: row for row in map(json.loads, out.read_text().splitlines())}
  assert rows['in.jsonl:81']['error'] == row['error'] and rows['e']['error'] == ''
  (given[1].parent / 'good.jsonl').write_text('{"id": "a", "text": "b"}\n')
  words = [
    '--input',
    str(given[1].parent / 'good.jsonl'),
    '--output',
    str(tmp_path / 'keep.parquet'),
  ]
  assert cli.main(['curate', 'minhash', *words]) == 0
  assert not named.exists()


def test_clusters_go_on_to_scip(given, tmp_path, capsys):
  out = tmp_path / 'clusters.parquet'
  words = ['--vectors', str(given[1]), '--clusters', '4', '--output', str(out)]
  assert cli.main(['curate', 'cluster', *words]) == 0
  table = read_clusters(out)
  assert len(table) == NUM and set(table['cluster'].to_pylist()) == {0, 1, 2, 3}
  scip = ['curate', 'scip', '--direction', 'easy', '--keep', '0.5', '--clusters', str(out)]
  scip += ['--output', str(tmp_path / 'k.parquet')]
  assert cli.main([*scip, *given[0]]) == 0 and 'no column' not in capsys.readouterr().out
  assert keep_list.read(tmp_path / 'k.parquet').num_kept == 40
  lines = (given[1].parent / 'in.jsonl').read_text().replace('text number 7"', 'another"')
  (tmp_path / 'other.jsonl').write_text(lines)
  other = ['--input', str(tmp_path / 'other.jsonl'), '--id-field', 'id']
  assert cli.main([*scip, *other]) == 2
  said = capsys.readouterr().err
  assert "1 of their examples are others in the inputs, the first 'd07'" in said
  pq.write_table(pq.read_table(out).drop_columns(['digest']), out)
  assert cli.main([*scip, *other]) == 0
  assert "the clusters have no column 'digest', so only the ids" in capsys.readouterr().out


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
  out = tmp_path / 'k.parquet'
  for verb in (('minhash',), ('long_files', '--max-tokens', '14'), ('text_quality', '--keep', '1')):
    line = ['curate', *verb, *corpus, '--output', str(out)]
    assert cli.main(line) == 0
    before = out.read_bytes()
    assert cli.main([*line, '--text-field', 'body']) == 2
    said = capsys.readouterr().err
    assert "none of the 82 examples of the inputs can be read; the first, 'd00': no text" in said
    assert "in field 'body'; it has" in said and 'by --text-field, pictures by --image' in said
    assert out.read_bytes() == before
    assert cli.main([*line, '--image-field', 'body']) == 2
    assert f'{verb[0]} reads texts; name their field, too' in capsys.readouterr().err
  words = ['--encoder', 'brought', '--vectors', str(directory.parent / 'x.npz')]
  words += ['--output', str(tmp_path / 'v'), '--text-field', 'body']
  assert cli.main(['curate', 'embed', *corpus, *words]) == 2
  assert 'none of the 82 examples' in capsys.readouterr().err
  assert not (tmp_path / 'v' / 'examples.parquet').exists()
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


def test_half_a_character_is_unreadable_and_goes_out_as_it_came(tmp_path, capsys):
  path = tmp_path / 'in.jsonl'
  path.write_text('{"id": "a", "text": "one \\ud800 two"}\n{"id": "b", "text": "three"}\n')
  corpus, keep = ['--input', str(path), '--id-field', 'id'], str(tmp_path / 'k.parquet')
  assert cli.main(['curate', 'minhash', *corpus, '--output', keep]) == 0
  assert cli.main(['curate', 'report', keep, *corpus]) == 0
  out, export = tmp_path / 'out.jsonl', ['curate', 'export', keep, *corpus, '--dropped', '--output']
  assert cli.main([*export, str(out)]) == 0
  (row,) = map(json.loads, out.read_text('utf-8').splitlines())
  assert row['text'] == 'one \ud800 two' and row['reason'] == 'unreadable'
  why = "half a character (a lone surrogate, '\\ud800') at place 4 of field 'text'"
  assert row['error'] == why
  data = {'name': 'text', 'path': str(path), 'split': 'all', 'max_bad_fraction': 1.0}
  batches = make_batches(from_mapping(DataConfig, data, 'data'), batch_size=1, seed=0)
  assert list(batches.source.documents.names) == ['in.jsonl:2']
  assert cli.main([*export, str(tmp_path / 'o.parquet')]) == 2
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
