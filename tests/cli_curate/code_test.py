"""The verbs for code, from the command line to the files that they write."""

import argparse
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxmm import cli
from jaxmm.cli_curate import code
from jaxmm.config import ConfigError
from jaxmm.curation import corruptions, corruptions_job, keep_list, runners, scip, scip_job
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig
from tests.references import scip as reference

SOURCES = {
  'a.py': 'def f(x):\n  return x[0] == 1\n',
  'b.py': 'y = [i for i in range(3) if i > 1]\n' * 9,
  'c.py': '# nothing here\n',
  'd.py': 'print "python 2"\n',
  'e.py': '',
  'sub/a.py': 'z = 1\n' * 40,
}


def run(*words):
  """As `jaxmm curate` runs it."""
  parser = argparse.ArgumentParser()
  code.add(parser.add_subparsers(required=True), cli._verb)
  options = parser.parse_args([os.fspath(word) for word in words])
  return options.run(options)


@pytest.fixture
def tree(tmp_path):
  root = tmp_path / 'src'
  for name, text in SOURCES.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text)
  (root / 'bad.py').write_bytes(b'x = "\xff"\n')
  (root / 'notes.txt').write_text('no code')
  return root


@pytest.fixture
def words(tree, tmp_path):
  return ['--input', tree, '--suffix', '.py', '--output', tmp_path / 'out.parquet']


def test_long_files(words, tmp_path, capsys):
  assert run('long_files', *words, '--drop-token-share', '0.4', '--processes', '1') == 0
  keep = keep_list.read(tmp_path / 'out.parquet')
  rows = {r['id']: (r['reason'], r['tokens']) for r in keep.table.to_pylist()}
  expected = {name: ('', len(text)) for name, text in SOURCES.items()}
  expected |= {'b.py': ('long', 315), 'e.py': ('empty', 0), 'bad.py': ('unreadable', None)}
  assert rows == expected
  said = capsys.readouterr().out
  assert '5 files, 616 tokens; mean 123.2, median 29.0' in said
  assert '4 files, 301 tokens' in said and '315 tokens: b.py\n' in said
  assert '240 tokens: sub/a.py (kept)' in said and '1 dropped: long' in said


def test_long_files_wants_one_mode(words, capsys):
  with pytest.raises(SystemExit):
    run('long_files', *words)
  with pytest.raises(SystemExit):
    run('long_files', *words, '--max-tokens', '5', '--drop-file-share', '0.1')
  assert '--drop-token-share' in capsys.readouterr().err
  with pytest.raises(ConfigError, match='drop_file_share is 2.0'):
    run('long_files', *words, '--drop-file-share', '2')


def test_corrupt_and_read_again(words, tmp_path, capsys):
  assert run('corrupt', *words, '--rate', '1', '--processes', '1') == 0
  path = tmp_path / 'out.parquet'
  rows = pq.read_table(path).to_pylist()
  assert len(rows) == 4 * (len(SOURCES) + 1)
  found = {(r['of'], r['kind']): r for r in rows}
  assert found['a.py', 'shift_indices']['text'] == SOURCES['a.py'].replace('[0]', '[0 + 1]')
  assert found['b.py', 'flip_conditions']['changed'] == 9
  names = ('a.py', 'c.py', 'd.py', 'e.py', 'bad.py')
  assert {name: found[name, 'bad_names']['reason'] for name in names} == {
    'a.py': '', 'c.py': 'no_place', 'd.py': 'not_parsed', 'e.py': 'empty', 'bad.py': 'unreadable',
  }  # fmt: skip
  assert all((r['text'] is None) == bool(r['reason']) for r in rows)
  inputs = CorpusConfig((str(path),), id_field='id')
  again = list(corpus.examples(corpus.shards(inputs)[0], inputs))
  assert [e.text for e in again if not e.error] == [r['text'] for r in rows if not r['reason']]
  said = capsys.readouterr().out
  assert 'flip_conditions: 2 damaged; not: 1 empty, 2 no_place, 1 not_parsed, 1 unreadable' in said


def test_corruptions_do_not_depend_on_files_or_processes(tmp_path):
  texts = {f'{i}': SOURCES['b.py'] + f'k{i} = 0\n' for i in range(12)}
  tables = []
  for name, files, processes, order in (('one', 1, 1, 1), ('two', 3, 2, -1)):
    folder = tmp_path / name
    folder.mkdir()
    lines = [json.dumps({'id': i, 'text': t}) for i, t in texts.items()][::order]
    for f in range(files):
      (folder / f'{f}.jsonl').write_text('\n'.join(lines[f::files]))
    config = corruptions_job.CorruptionsConfig(('shift_indices', 'flip_conditions'), rate=0.3)
    table = corruptions_job.run(
      CorpusConfig((str(folder),), id_field='id'), config, tmp_path / f'{name}.work',
      runner=runners.Local(processes), echo=None,
    )  # fmt: skip
    tables.append(table.sort_by('id').combine_chunks())
  assert tables[0].equals(tables[1])
  flips = tables[0].filter(pa.compute.equal(tables[0]['kind'], 'flip_conditions'))
  changed = {t.partition('k')[0] for t in flips['text'].to_pylist()}
  assert len(changed) > 6  # each document at places of its own
  assert corruptions_job.outcomes(tables[0]) == {
    'flip_conditions': {'': 12}, 'shift_indices': {'no_place': 12},
  }  # fmt: skip


@pytest.mark.parametrize('wrong', [dict(kinds=()), dict(kinds=('typos',)), dict(rate=0),
                                   dict(kinds=corruptions.KINDS[:1] * 2)])  # fmt: skip
def test_corruptions_that_cannot_be_are_named(wrong):
  with pytest.raises(ConfigError, match='kinds is .*each once|rate is 0'):
    corruptions_job.CorruptionsConfig(**wrong)


CLUSTERS = {'a.py': (0, 0.1), 'b.py': (0, 0.5), 'c.py': (0, 0.3), 'd.py': (1, 0.2),
            'sub/a.py': (0, 0.1)}  # fmt: skip


def clusters(of=CLUSTERS, **columns):
  table = {
    'id': list(of),
    'cluster': pa.array([c for c, _ in of.values()], pa.int32()),
    'distance': pa.array([d for _, d in of.values()], pa.float32()),
  }
  return pa.table(table | columns)


def test_scip(words, tmp_path, capsys):
  pq.write_table(clusters(), tmp_path / 'clusters.parquet')
  at = ['--clusters', tmp_path / 'clusters.parquet', '--direction', 'easy', '--processes', '1']
  assert run('scip', *words, *at, '--prune', '0.4', '--alpha', '0.5') == 0
  keep = keep_list.read(tmp_path / 'out.parquet')
  by_cluster, by_distance = reference.pruned(CLUSTERS, '0.4', '0.5')
  expected = dict.fromkeys(SOURCES, '') | {'e.py': 'empty', 'bad.py': 'unreadable'}
  expected |= dict.fromkeys(by_cluster, scip.SMALL) | dict.fromkeys(by_distance, scip.FAR)
  assert {r['id']: r['reason'] for r in keep.table.to_pylist()} == expected
  assert (by_cluster, by_distance) == ({'d.py'}, {'b.py'})
  said = capsys.readouterr().out
  assert 'rank correlation of score and length: ' in said and '1 dropped: small_cluster' in said
  assert run('scip', *words, *at, '--keep', '0.6', '--alpha', '0.5', '--length-bins', '2') == 0


def test_scip_takes_clusters_in_any_order_and_says_which_they_were(tree, tmp_path):
  inputs = CorpusConfig((str(tree),), suffixes=('.py',))
  config = scip.ScipConfig('easy', prune_fraction=0.4)
  lists = [
    scip_job.run(inputs, table, config, tmp_path / 'w', echo=None)
    for table in (
      clusters(),
      clusters().take(np.arange(len(CLUSTERS))[::-1]),
      clusters({**CLUSTERS, 'e.py': (3, 0.9)}),  # an empty file's is not looked at
      clusters({**CLUSTERS, 'a.py': (0, 0.2)}),
    )
  ]
  assert lists[0].table.equals(lists[1].table) and lists[0].header() == lists[1].header()
  assert lists[2].reasons() == lists[0].reasons()
  assert lists[3].header()['parameters']['clusters'] != lists[0].header()['parameters']['clusters']


@pytest.mark.parametrize(
  'table, message',
  [
    (clusters().drop(['distance', 'id']), 'clusters lack id, distance; they have cluster'),
    (clusters(cluster=['0'] * 5), "column 'cluster' of the clusters is string, expected whole"),
    (clusters(id=list(range(5))), "column 'id' of the clusters is int64, expected strings"),
    (clusters().slice(1), "1 examples of the inputs have no row in the clusters, the first 'a.py'"),
    (clusters({**CLUSTERS, 'z.py': (0, 0.1)}), "1 rows .* of no example .*'z.py'; they belong to"),
    (pa.concat_tables([clusters(), clusters()]), "5 ids come more than once .* the first 'a.py'"),
    (clusters({**CLUSTERS, 'a.py': (None, 0.1)}), "1 examples have no cluster .* the first 'a.py'"),
    (clusters({**CLUSTERS, 'b.py': (1, float('nan'))}), "1 examples have no .* the first 'b.py'"),
  ],
)
def test_clusters_that_cannot_be_used_are_named(tree, tmp_path, table, message):
  inputs = CorpusConfig((str(tree),), suffixes=('.py',))
  config = scip.ScipConfig('easy', prune_fraction=0.4)
  with pytest.raises(ConfigError, match=message):
    scip_job.run(inputs, table, config, tmp_path / 'w', echo=None)


def test_files_of_clusters_that_cannot_be_read_are_named(tmp_path):
  with pytest.raises(ConfigError, match='no such file, expected Parquet'):
    scip_job.read_clusters(tmp_path / 'none.parquet')
  (tmp_path / 'x.parquet').write_text('x')
  with pytest.raises(ConfigError, match='x.parquet cannot be read as Parquet'):
    scip_job.read_clusters(tmp_path / 'x.parquet')
