"""A corpus in any number of files, orders and processes gives one list; killed it goes on."""

import gzip
import json

import numpy as np
import pytest

from jaxmm import cli
from jaxmm.config import ConfigError
from jaxmm.curation import export, keep_list, minhash_job, runners
from jaxmm.curation.minhash import MinHashConfig
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig
from tests.references import near_duplicates


def write(folder, texts, files=1, order=None):
  """JSON lines with ids, dealt out to files in an order."""
  folder.mkdir(parents=True, exist_ok=True)
  order = range(len(texts)) if order is None else order
  lines = [json.dumps({'id': f'doc{i:03}', 'text': texts[i], 'n': i}) for i in order]
  for f in range(files):
    (folder / f'{f}.jsonl').write_text('\n'.join(lines[f::files]) + '\n')
  return CorpusConfig((str(folder),), id_field='id')


@pytest.fixture(scope='module')
def texts():
  rng = np.random.default_rng(0)
  words = np.array([f'w{i}' for i in range(300)])
  out = []
  for n in range(60):
    base = rng.choice(words, rng.integers(30, 90))
    out.append(' '.join(base))
    for _ in range(n % 3):
      copy = base.copy()
      copy[rng.integers(len(copy))] = rng.choice(words)
      out.append(' '.join(copy[: len(copy) - rng.integers(2)]))
  return [*out, '', out[0]]


CONFIG = MinHashConfig(threshold=0.6, recall=0.999)


def test_one_of_each_cluster_is_kept_and_the_others_say_of_whom_they_are_copies(texts, tmp_path):
  keep = minhash_job.run(write(tmp_path / 'in', texts), CONFIG, tmp_path / 'work', echo=None)
  pairs = near_duplicates.pairs(texts, CONFIG.threshold, 5)
  cluster = near_duplicates.clusters(list(pairs), len(texts))
  rows = keep.table.to_pylist()
  assert [row['id'] for row in rows] == [f'doc{i:03}' for i in range(len(texts))]
  for least in set(cluster):
    members = [n for n in range(len(texts)) if cluster[n] == least]
    kept = [n for n in members if rows[n]['keep']]
    if not texts[least]:
      assert rows[least]['reason'] == 'empty' and not kept
      continue
    assert kept == [max(members, key=lambda n: (len(texts[n]), -n))]
    for n in members:
      if len(members) == 1:
        assert rows[n]['cluster'] is rows[n]['nearest'] is rows[n]['score'] is None
        continue
      assert rows[n]['cluster'] == f'doc{least:03}'
      assert rows[n]['reason'] == ('' if n in kept else 'duplicate')
      similar = {m: s for p, s in pairs.items() for m in p if n in p and m != n}
      best = max(similar.values())
      assert rows[n]['similarity'] == rows[n]['score'] == best
      assert rows[n]['nearest'] == f'doc{min(m for m, s in similar.items() if s == best):03}'
  assert keep.num_kept == len(set(cluster)) - 1 and len(pairs) > 40


@pytest.mark.parametrize('check', ['exact', 'signature', 'none'])
def test_files_order_and_processes_do_not_show(texts, tmp_path, check):
  config = MinHashConfig(threshold=0.6, check=check)
  whole = minhash_job.run(write(tmp_path / 'a', texts), config, tmp_path / 'wa', echo=None)
  order = np.random.default_rng(1).permutation(len(texts)).tolist()
  parts = write(tmp_path / 'b', texts, files=5, order=order)
  other = minhash_job.run(parts, config, tmp_path / 'wb', runner=runners.Local(2), echo=None)
  assert other.table.equals(whole.table) and other.header() == whole.header()


@pytest.mark.parametrize('survivor', minhash_job.SURVIVORS)
def test_who_survives(tmp_path, survivor):
  base = ' '.join(f'word{i}' for i in range(60))
  texts = [base, base + ' more', 'other ' * 9, base[:-3]]
  keep = minhash_job.run(
    write(tmp_path / 'in', texts), MinHashConfig(), tmp_path / 'w', survivor=survivor, echo=None
  )
  kept = {row['id'] for row in keep.table.to_pylist() if row['keep']}
  best = {'longest': 'doc001', 'shortest': 'doc003', 'first_id': 'doc000'}[survivor]
  assert kept == {best, 'doc002'}


def test_a_second_run_does_no_file_again_and_a_changed_one_only_that(texts, tmp_path):
  inputs, said = write(tmp_path / 'in', texts, files=3), []
  first = minhash_job.run(inputs, CONFIG, tmp_path / 'work', echo=said.append)
  times = {f: f.stat().st_mtime_ns for f in (tmp_path / 'work').iterdir()}
  again = minhash_job.run(inputs, CONFIG, tmp_path / 'work', echo=said.append)
  assert again.table.equals(first.table)
  assert {f: f.stat().st_mtime_ns for f in (tmp_path / 'work').iterdir()} == times
  assert 'keys: 3 of 3 files done before' in said
  path = tmp_path / 'in' / '1.jsonl'
  path.write_text(path.read_text().replace('w1', 'w2'))
  said.clear()
  changed = minhash_job.run(inputs, CONFIG, tmp_path / 'work', echo=said.append)
  assert 'keys: 2 of 3 files done before' in said
  assert changed.fingerprint != first.fingerprint


def test_a_changed_file_behind_a_url_is_read_again():
  import fsspec

  def run(text):
    with fsspec.open('memory://minhash_job_test/in.jsonl', 'w') as f:
      f.write(json.dumps({'text': text}) + '\n')
    inputs = CorpusConfig(('memory://minhash_job_test/in.jsonl',))
    return minhash_job.run(inputs, CONFIG, 'memory://minhash_job_test/w', echo=None).fingerprint

  assert run('one two') != run('two one')


def failing(shard, settings, extra):
  if shard.name.startswith(settings['fails']):
    raise RuntimeError('killed here')
  return identity(shard, settings, extra)


@pytest.mark.parametrize('processes', [1, 2])
def test_stopped_on_the_way_it_goes_on(texts, tmp_path, processes):
  inputs = write(tmp_path / 'in', texts, files=4)
  files = corpus.shards(inputs)
  common = dict(name='x', runner=runners.Local(processes), echo=None)
  with pytest.raises(RuntimeError, match='killed here'):
    runners.map_shards(failing, files, tmp_path / 'w', settings={'fails': '2'}, **common)
  assert not list((tmp_path / 'w').glob('*.partial'))
  # Other settings are another piece of work.
  tables = runners.map_shards(identity, files, tmp_path / 'w', settings={}, **common)
  assert [t['name'].to_pylist() for t in tables] == [[f'{i}.jsonl'] for i in range(4)]


def identity(shard, settings, extra):
  import pyarrow as pa

  return pa.table({'name': [shard.name]})


def test_what_cannot_be_read_is_a_row_with_its_reason(tmp_path):
  path = tmp_path / 'in.jsonl'
  path.write_text(
    '{"id": "a", "text": "one two three"}\n{"id": "b"}\n{broken\n{"id": "c", "text": ""}\n'
  )
  keep = minhash_job.run(
    CorpusConfig((str(path),), id_field='id'), MinHashConfig(), tmp_path / 'w', echo=None
  )
  rows = {row['id']: row for row in keep.table.to_pylist()}
  assert {i: (r['keep'], r['reason']) for i, r in rows.items()} == {
    'a': (True, ''), 'b': (False, 'unreadable'), 'in.jsonl:3': (False, 'unreadable'),
    'c': (False, 'empty'),
  }  # fmt: skip
  assert rows['b']['error'].startswith("no text in field 'text'") and rows['a']['error'] is None


@pytest.mark.parametrize('files', [1, 3])
@pytest.mark.parametrize('processes', [1, 2])
def test_an_id_that_comes_twice_is_named(tmp_path, files, processes):
  (tmp_path / 'in').mkdir()
  for n in range(files):
    text = '{"id": "a", "text": "x"}\n' * (2 if files == 1 else 1)
    (tmp_path / 'in' / f'{n}.jsonl').write_text(text)
  inputs, said = CorpusConfig((str(tmp_path / 'in'),), id_field='id'), []
  for _ in range(2):  # also where some files are done
    with pytest.raises(
      ConfigError, match="id 'a' comes more than once .*; expected different ones"
    ):
      runner = runners.Local(processes)
      minhash_job.run(inputs, MinHashConfig(), tmp_path / 'w', runner=runner, echo=said.append)
  assert not any('documents' in line for line in said)
  if processes == 1:
    assert len(list((tmp_path / 'w').glob('keys-*'))) == (0 if files == 1 else 2)


def test_from_the_command_line_to_the_kept_and_the_dropped(texts, tmp_path, capsys):
  write(tmp_path / 'in', texts, files=2)
  at = ['--input', str(tmp_path / 'in'), '--id-field', 'id']
  keep_file = tmp_path / 'keep.parquet'
  words = ['--threshold', '0.6', '--output', str(keep_file), '--processes', '1']
  assert cli.main(['curate', 'minhash', *at, *words]) == 0
  keep = keep_list.read(keep_file)
  said = capsys.readouterr().out
  assert f'{keep.num_kept:,} of {len(texts)} examples kept (minhash)' in said
  assert cli.main(['curate', 'show', str(keep_file)]) == 0
  assert 'threshold: 0.6' in capsys.readouterr().out
  total = 0
  for name, flags in (('kept.jsonl.gz', []), ('dropped.parquet', ['--dropped']),
                      ('kept.array_record', [])):  # fmt: skip
    out = tmp_path / name
    assert cli.main(['curate', 'export', str(keep_file), *at, '--output', str(out), *flags]) == 0
    found = [e for s in corpus.shards(CorpusConfig((str(out),), id_field='id'))
             for e in corpus.examples(s, CorpusConfig((str(out),), id_field='id'))]  # fmt: skip
    rows = {r['id']: r for r in keep.table.to_pylist()}
    assert {e.id for e in found} == {i for i, r in rows.items() if r['keep'] != bool(flags)}
    assert all(e.text == texts[e.record['n']] for e in found)
    if flags:
      assert {e.record['reason'] for e in found} == {'duplicate', 'empty'}
    total += len(found)
  assert total == len(texts) + keep.num_kept
  with gzip.open(tmp_path / 'kept.jsonl.gz', 'rt') as f:
    assert json.loads(f.readline()).keys() == {'id', 'text', 'n'}


def test_lists_are_joined_and_shown_from_the_command_line(texts, tmp_path, capsys):
  inputs = write(tmp_path / 'in', texts)
  lists = [tmp_path / f'{n}.parquet' for n in range(2)]
  for n, threshold in enumerate((0.6, 0.95)):
    config = MinHashConfig(threshold=threshold, recall=0.999)
    keep_list.write(minhash_job.run(inputs, config, tmp_path / 'w', echo=None), lists[n])
  strict, loose = (keep_list.read(path) for path in lists)
  assert strict.num_kept < loose.num_kept
  for how, expected in (('and', strict.num_kept), ('or', loose.num_kept)):
    out = tmp_path / f'{how}.parquet'
    line = ['curate', 'combine', str(lists[0]), how, str(lists[1]), '--output', str(out)]
    assert cli.main(line) == 0 and keep_list.read(out).num_kept == expected
  line = ['curate', 'combine', str(lists[0]), 'then', str(lists[1]), '--output', str(out)]
  assert cli.main(line) == 2
  assert "combine them with 'then'" not in capsys.readouterr().err
  page = tmp_path / 'page.html'
  at = ['--input', str(tmp_path / 'in'), '--id-field', 'id', '--output', str(page)]
  assert cli.main(['curate', 'report', str(lists[0]), *at]) == 0
  assert '<mark>' in page.read_text() and '(not shown)' not in page.read_text()
  assert cli.main(['curate', 'report', str(lists[0])]) == 0
  assert '(not shown)' in (tmp_path / '0.html').read_text()


def test_a_list_of_other_data_is_refused(texts, tmp_path):
  inputs = write(tmp_path / 'in', texts)
  keep = minhash_job.run(inputs, CONFIG, tmp_path / 'w', echo=None)
  other = write(tmp_path / 'other', [*texts[:-1], 'changed'])
  with pytest.raises(ConfigError, match="example 'doc.*' is another now"):
    export.export(other, keep, tmp_path / 'out.jsonl', echo=None)
  fewer = write(tmp_path / 'fewer', texts[:-1])
  with pytest.raises(ConfigError, match=f'1 of its {len(texts)} examples are not in the inputs'):
    export.export(fewer, keep, tmp_path / 'out.jsonl', echo=None)
  assert not (tmp_path / 'out.jsonl').exists()
  with pytest.raises(ConfigError, match='expected a name that ends in'):
    export.export(inputs, keep, tmp_path / 'out.csv', echo=None)
