"""Beam gives the keep-lists of local processes, goes on where it was, and says what is wrong.

Tests marked `beam` need Apache Beam, which has an environment of its own: `pytest -m beam` there.
"""

import gzip
import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jaxmm import cli
from jaxmm.config import ConfigError
from jaxmm.curation import (
  corruptions_job,
  embedding_inputs,
  keep_list,
  long_files,
  minhash_job,
  runners,
  text_quality_job,
  work_tables,
)
from jaxmm.curation.corruptions_job import CorruptionsConfig
from jaxmm.curation.long_files import LongFilesConfig
from jaxmm.curation.minhash import MinHashConfig
from jaxmm.curation.text_quality import QualityConfig, Weights
from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig

PROCESSES = '--direct_num_workers=2 --direct_running_mode=multi_processing'
# A job service, and workers that are processes of their own: what Flink and Spark do, on this
# machine.
PORTABLE = (
  '--runner=PortableRunner --job_endpoint=embed '
  '--environment_type=beam:env:harness_subprocess_python:v1 --environment_config='
  f'"{sys.executable} -m apache_beam.runners.worker.sdk_worker_main"'
)


@pytest.fixture(scope='module')
def documents():
  """(id, line of JSON) of texts with near-duplicates, and of three that cannot be read."""
  rng = np.random.default_rng(0)
  words = np.array([f'word{i}' for i in range(400)])
  out = []
  for n in range(90):
    base = rng.choice(words, rng.integers(20, 80))
    for copy in range(1 + n % 3):
      text = '. '.join(' '.join(part) for part in np.array_split(base[copy:], 4))
      out.append({'id': f'd{len(out):03}', 'text': text.replace('. ', '.\n')})
  return [*out, {'id': 'empty', 'text': ''}, {'id': 'none'}, {'id': 'number', 'text': 3}]


def write(folder, documents, order, files=5):
  """JSON lines (packed and not) and Parquet in turn; then a line that is no JSON, a file that is no
  Parquet. What has no text stands in JSON lines, as Parquet has a type for a column."""
  folder.mkdir()
  for f in range(files):
    part = [d for d in (documents[i] for i in order) if has_text(d)][f::files]
    if f == 0:
      part += [d for d in documents if not has_text(d)]
    if f % 3 == 2:
      pq.write_table(pa.Table.from_pylist(part), folder / f'{f}.parquet')
      continue
    data = b''.join(json.dumps(d).encode() + b'\n' for d in part)
    data = gzip.compress(data) if f % 3 else data
    (folder / (f'{f}.jsonl.gz' if f % 3 else f'{f}.jsonl')).write_bytes(data)
  (folder / 'broken.jsonl').write_bytes(b'{"id": "x", "te\n')
  (folder / 'broken.parquet').write_bytes(b'no Parquet')
  return CorpusConfig((str(folder),), id_field='id')


def has_text(document):
  return isinstance(document.get('text'), str)


def lists(inputs, workdir, runner):
  """The keep-lists and tables of every kind of per-document work."""
  common = dict(runner=runner, echo=None)
  rules = QualityConfig()
  damage = CorruptionsConfig(kinds=corruptions_job.corruptions.KINDS[:2])
  listed = embedding_inputs.listed(inputs, 'text', f'{workdir}/l', **common)
  return {
    'minhash': minhash_job.run(inputs, MinHashConfig(threshold=0.6), f'{workdir}/m', **common),
    'signature': minhash_job.run(
      inputs, MinHashConfig(threshold=0.6, check='signature'), f'{workdir}/s', **common
    ),
    'text_quality': text_quality_job.run(
      inputs, rules, Weights.uniform(), f'{workdir}/q', keep=0.6, **common
    ),
    'long_files': long_files.run(
      inputs, LongFilesConfig(drop_token_share=0.3), f'{workdir}/t', counter='words', **common
    ),
    'corruptions': corruptions_job.run(inputs, damage, f'{workdir}/c', **common),
    'listed': pa.concat_tables(listed),
  }


def same(found, expected):
  for name, one in expected.items():
    other = found[name]
    if isinstance(one, keep_list.KeepList):
      assert other.table.equals(one.table) and other.header() == one.header(), name
    else:
      assert other.equals(one), name
  return True


@pytest.fixture(scope='module')
def folder(documents, tmp_path_factory):
  return write(tmp_path_factory.mktemp('beam') / 'in', documents, range(len(documents)))


@pytest.fixture(scope='module')
def expected(folder, tmp_path_factory):
  return lists(folder, tmp_path_factory.mktemp('local'), runners.LOCAL)


def test_without_beam_the_choice_is_refused_with_the_name_of_the_extra(monkeypatch, capsys):
  monkeypatch.setitem(sys.modules, 'apache_beam', None)
  with pytest.raises(ConfigError, match=r"needs the extra `beam` .* pip install 'jaxmm\[beam\]'"):
    runners.chosen(None, '')
  line = ['curate', 'long_files', '--input', __file__, '--max-tokens', '9', '--output', 'x.parquet']
  assert cli.main([*line, '--beam=--runner=FlinkRunner']) == 2
  assert 'the extra `beam`' in capsys.readouterr().err


def test_processes_and_beam_exclude_each_other():
  assert runners.chosen(3) == runners.Local(3)
  assert runners.chosen().processes == os.cpu_count()
  with pytest.raises(ConfigError, match='processes is 2, which is for work without Beam'):
    runners.chosen(2, '')
  with pytest.raises(ConfigError, match='processes is 0, expected 1 or more'):
    runners.chosen(0)


def test_workers_need_no_jax():
  code = (
    'import sys; sys.modules.update(dict.fromkeys(["jax", "flax", "grain", "tensorflow"])); '
    'from jaxmm.curation import corruptions_job, embedding_inputs, minhash_job, runners, '
    'text_quality_job, token_counts, work_tables; '
    'from jaxmm.data import corpus; from jaxmm.curation.minhash import MinHashConfig; '
    'import dataclasses; inputs = corpus.CorpusConfig((sys.argv[1],)); '
    's = {"corpus": dataclasses.asdict(inputs), "minhash": dataclasses.asdict(MinHashConfig())}; '
    'print(len(minhash_job.keyed(corpus.shards(inputs)[0], s, None)))'
  )
  done = subprocess.run([sys.executable, '-c', code, __file__], capture_output=True, text=True)
  assert done.stdout == '1\n', done.stderr


def test_the_corpus_has_what_the_tests_are_about(expected):
  reasons = expected['minhash'].reasons()
  assert reasons['unreadable'] == 4 and reasons['empty'] == 1 and reasons['duplicate'] > 30
  assert expected['long_files'].reasons()['long'] > 10


@pytest.mark.beam
def test_beam_gives_the_lists_of_local_processes(folder, expected, tmp_path):
  assert same(lists(folder, tmp_path / 'two', runners.Local(2)), expected)
  assert same(lists(folder, tmp_path / 'beam', runners.chosen(None, '')), expected)


@pytest.mark.beam
@pytest.mark.parametrize('options', [PROCESSES, PORTABLE], ids=['processes', 'portable'])
def test_workers_that_are_other_processes_give_the_same(folder, expected, tmp_path, options):
  keep = minhash_job.run(
    folder, MinHashConfig(threshold=0.6), tmp_path, runner=runners.chosen(None, options), echo=None
  )
  assert same({'minhash': keep}, {'minhash': expected['minhash']})
  assert not [name for name in os.listdir(tmp_path) if not name.endswith('.arrow')]


@pytest.mark.beam
def test_other_files_in_another_order_give_the_same(documents, expected, tmp_path):
  order = np.random.default_rng(1).permutation(len(documents)).tolist()
  inputs = write(tmp_path / 'in', documents, order, files=3)
  found = lists(inputs, tmp_path / 'w', runners.chosen(None, ''))
  one = lists(inputs, tmp_path / 'w1', runners.LOCAL)
  assert same(found, one)
  for name in ('minhash', 'signature', 'text_quality', 'long_files'):
    assert found[name].header() == expected[name].header()
    assert found[name].table.equals(expected[name].table)


@pytest.mark.beam
@pytest.mark.parametrize('at', ['memory://beam_runner_test/w', 'file://{}/w'])
def test_the_work_directory_may_be_a_url(folder, expected, tmp_path, at):
  runner, at = runners.chosen(None, ''), at.format(tmp_path)
  config = MinHashConfig(threshold=0.6)
  for _ in range(2):
    keep = minhash_job.run(folder, config, at, runner=runner, echo=None)
    assert same({'minhash': keep}, {'minhash': expected['minhash']})
  names = work_tables.names(work_tables.root(at))
  assert len(names) > 7 and all(name.endswith('.arrow') for name in names)


def counters(runner):
  found = runner.result.metrics().query()['counters']
  return {c.key.metric.name: c.committed for c in found if c.key.metric.namespace == 'jaxmm'}


@pytest.mark.beam
def test_only_what_is_missing_is_done_and_metrics_count_it(folder, tmp_path):
  said, runner = [], runners.chosen(None, '')
  config = LongFilesConfig(max_tokens=40)
  first = long_files.run(folder, config, tmp_path, runner=runner, echo=said.append)
  assert said[0] == 'tokens: 7 files as a Beam pipeline on DirectRunner'
  assert said[-1].startswith('tokens: 7 of 7 files, ')
  expected = {'files': 7, 'examples': len(first), 'unreadable': first.reasons()['unreadable']}
  assert counters(runner) == expected
  tables = sorted(tmp_path.iterdir())
  for path in tables[::3]:
    path.unlink()
  times = {path: path.stat().st_mtime_ns for path in tables if path.exists()}
  said.clear()
  runner = runners.chosen(None, '')
  again = long_files.run(folder, config, tmp_path, runner=runner, echo=said.append)
  assert again.table.equals(first.table) and counters(runner)['files'] == 3
  assert said[0] == 'tokens: 4 of 7 files done before'
  assert {path: path.stat().st_mtime_ns for path in times} == times
  said.clear()
  runner = runners.chosen(None, '')
  long_files.run(folder, config, tmp_path, runner=runner, echo=said.append)
  assert said == ['tokens: 7 of 7 files done before'] and runner.result is None


def slow(shard, settings, _):
  """Takes its time; a file in the folder `began` for each time that it is done."""
  name = f'{shard.name}-{os.getpid()}-{time.monotonic_ns()}'
  open(os.path.join(settings['began'], name), 'w').close()
  time.sleep(settings['seconds'])
  return pa.table({'name': [shard.name]})


_KILLED = """
import sys
from jaxmm.curation import runners
from jaxmm.data import corpus
from tests.curation import beam_runner_test
shards = corpus.shards(corpus.CorpusConfig((sys.argv[1],)))
settings = {'began': sys.argv[3], 'seconds': 1.0}
runners.map_shards(beam_runner_test.slow, shards, sys.argv[2], name='slow', settings=settings,
                   runner=runners.chosen(None, ''))
"""


@pytest.mark.beam
def test_killed_it_goes_on(folder, tmp_path):
  (tmp_path / 'began').mkdir()
  arguments = [folder.inputs[0], str(tmp_path / 'w'), str(tmp_path / 'began')]
  process = subprocess.Popen([sys.executable, '-c', _KILLED, *arguments])
  limit = time.monotonic() + 240  # to start takes seconds, on a busy machine minutes
  while (
    process.poll() is None
    and time.monotonic() < limit
    and len(list((tmp_path / 'w').glob('*.arrow'))) < 2
  ):
    time.sleep(0.05)
  process.send_signal(signal.SIGKILL)
  assert process.wait() == -signal.SIGKILL
  done = {path: path.stat().st_mtime_ns for path in (tmp_path / 'w').glob('*.arrow')}
  assert 2 <= len(done) < 7
  subprocess.run([sys.executable, '-c', _KILLED, *arguments], check=True)
  assert {path: path.stat().st_mtime_ns for path in done} == done
  assert len(list((tmp_path / 'w').glob('*.arrow'))) == 7
  began = [path.name.rsplit('-', 2)[0] for path in (tmp_path / 'began').iterdir()]
  assert len(set(began)) == 7 and len(began) <= 8  # the one that was underway, again


def refused(shard, settings, _):
  if shard.name == settings['of']:
    raise ConfigError(f'{shard.name} is not what\nthis is for')
  return pa.table({'name': [shard.name]})


@pytest.mark.beam
@pytest.mark.parametrize('options, times', [('', 2), (PROCESSES, 1)], ids=['direct', 'processes'])
def test_an_error_of_the_work_is_what_is_raised(folder, tmp_path, options, times):
  files = corpus.shards(folder)
  common = dict(name='x', runner=runners.chosen(None, options), echo=None)
  for _ in range(times):
    with pytest.raises(ConfigError) as caught:
      runners.map_shards(refused, files, tmp_path, settings={'of': '1.jsonl.gz'}, **common)
    assert str(caught.value) == '1.jsonl.gz is not what\nthis is for'
  assert not list(tmp_path.glob('*.plan')) and not list(tmp_path.glob('*.partial'))
  tables = runners.map_shards(refused, files, tmp_path, settings={'of': ''}, **common)
  assert [table['name'][0].as_py() for table in tables] == [shard.name for shard in files]


@pytest.mark.beam
def test_a_bundle_that_is_done_twice_changes_nothing(folder, tmp_path):
  import apache_beam as beam

  from jaxmm.curation import beam_runner

  root = work_tables.root(tmp_path / 'w')
  (tmp_path / 'began').mkdir()
  settings = {'began': str(tmp_path / 'began'), 'seconds': 0.2}
  tasks = [
    runners.Task(slow, shard, settings, None, f'{root}/{shard.name}.arrow')
    for shard in corpus.shards(folder)
  ]
  places = beam_runner.written_plan(tasks, f'{root}/x.plan')
  with beam.Pipeline() as pipeline:
    for name in ('once', 'twice'):
      write_tables = beam_runner.WriteTables(f'{root}/x.plan')
      _ = pipeline | f'{name}-places' >> beam.Create(places) | name >> write_tables
  assert [work_tables.read(t.path)['name'][0].as_py() for t in tasks] == [
    t.shard.name for t in tasks
  ]
  assert work_tables.names(root) == {f'{t.shard.name}.arrow' for t in tasks} | {'x.plan'}


@pytest.mark.beam
def test_workers_elsewhere_have_to_see_inputs_and_work_directory(folder, tmp_path):
  config = MinHashConfig()
  dataflow = runners.chosen(None, '--runner=DataflowRunner')
  with pytest.raises(ConfigError, match=r'DataflowRunner do not see 7 input files .*--workdir'):
    minhash_job.run(folder, config, tmp_path, runner=dataflow, echo=None)
  portable = runners.chosen(None, PORTABLE)
  with pytest.raises(ConfigError, match=r'does not see the work directory memory://.*--workdir'):
    minhash_job.run(folder, config, 'memory://not/there', runner=portable, echo=None)
  import fsspec

  with fsspec.open('memory://only/here/0.jsonl', 'w') as f:
    f.write('{"text": "a"}\n')
  said = []
  with pytest.raises(ConfigError, match=r'does not see the input memory:/+only/here/0.jsonl'):
    inputs = CorpusConfig(('memory://only/here',))
    minhash_job.run(inputs, config, tmp_path, runner=portable, echo=said.append)
  assert said[0] == (
    f'keys: every worker of PortableRunner has to see the work directory {tmp_path} under that path'
  )


@pytest.mark.beam
def test_relative_paths_are_those_of_where_the_command_runs(folder, tmp_path, monkeypatch):
  from jaxmm.curation import beam_runner

  monkeypatch.chdir(tmp_path)
  (tmp_path / 'in').symlink_to(folder.inputs[0])
  tasks = [runners.Task(slow, s, {}, None, 'w/x') for s in corpus.shards(CorpusConfig(('in',)))]
  beam_runner.written_plan(tasks, 'plan')
  for line in (tmp_path / 'plan').read_text().splitlines():
    of = json.loads(line)
    assert of['path'] == f'{tmp_path}/w/x' and os.path.dirname(of['shard'][0]) == f'{tmp_path}/in'


@pytest.mark.beam
def test_a_long_pipeline_says_how_far_it_is(folder, tmp_path, monkeypatch):
  from jaxmm.curation import beam_runner

  monkeypatch.setattr(beam_runner, '_SAY_EVERY_SECONDS', 0.3)
  said, settings = [], {'began': str(tmp_path), 'seconds': 0.25}
  runners.map_shards(
    slow, corpus.shards(folder), tmp_path / 'w', name='slow', settings=settings,
    runner=runners.chosen(None, ''), echo=said.append,
  )  # fmt: skip
  assert any(line in said for line in [f'slow: {n} of 7 files' for n in range(1, 7)])
  assert said[-1].startswith('slow: 7 of 7 files, ')


@pytest.mark.beam
def test_options_that_beam_does_not_take(folder, tmp_path):
  with pytest.raises(ConfigError, match='does not take the options --direct_running_mode=x'):
    runners.chosen(None, '--direct_running_mode=x')
  runner = runners.chosen(None, '--runner=DirektRunner')
  with pytest.raises(ConfigError, match='does not take its options.*DirektRunner'):
    minhash_job.run(folder, MinHashConfig(), tmp_path, runner=runner, echo=None)
  with pytest.raises(ConfigError, match='at the top level of a module'):
    runners.map_shards(
      lambda *_: None, corpus.shards(folder), tmp_path, name='x', settings={},
      runner=runners.chosen(None, ''), echo=None,
    )  # fmt: skip


@pytest.mark.beam
def test_from_the_command_line(folder, expected, tmp_path, capsys):
  out = tmp_path / 'keep.parquet'
  line = ['curate', 'minhash', '--input', *folder.inputs, '--id-field', 'id', '--threshold', '0.6']
  assert cli.main([*line, '--output', str(out), '--beam=--direct_num_workers=1']) == 0
  assert keep_list.read(out).table.equals(expected['minhash'].table)
  assert 'keys: 7 files as a Beam pipeline on DirectRunner' in capsys.readouterr().out
