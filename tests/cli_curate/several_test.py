"""Verbs on vectors as several processes, started as a user starts them: the list of one."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest

from jaxmm import cli
from jaxmm.curation import embeddings, keep_list
from jaxmm.curation.scip_job import read_clusters
from tests import bert_folder, multiprocess

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
NUM = 60


def two(*words, timeout=240):
  """What two processes of one command printed; they succeed."""
  with socket.socket() as s:
    s.bind(('localhost', 0))
    port = s.getsockname()[1]
  line = [sys.executable, '-m', 'jaxmm.cli', 'curate', *map(str, words)]
  line += ['--coordinator', f'localhost:{port}', '--process-count', '2']
  started = [
    subprocess.Popen(
      [*line, '--process-id', str(i)],
      env=dict(os.environ, JAX_PLATFORMS='cpu', XLA_FLAGS=multiprocess.xla_flags(1)),
      cwd=ROOT,
      text=True,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
    )
    for i in (0, 1)
  ]
  try:
    said = [process.communicate(timeout=timeout) for process in started]
  finally:
    for process in started:
      process.kill()
  assert [process.returncode for process in started] == [0, 0], said
  return [[line for line in out.splitlines() if not line.startswith('[Gloo]')] for out, _ in said]


def one(*words):
  assert cli.main(['curate', *map(str, words)]) == 0


@pytest.fixture(scope='module')
def corpus(tmp_path_factory):
  """Words for a corpus, and its vectors: four clouds, the last 15 rows near others."""
  root = tmp_path_factory.mktemp('several')
  rng = np.random.default_rng(0)
  x = rng.standard_normal((4, 8))[np.arange(NUM) % 4] + 0.3 * rng.standard_normal((NUM, 8))
  x[45:] = x[25:40] + 1e-4
  ids = [f'd{n:02}' for n in range(NUM)]
  lines = [
    json.dumps({'id': name, 'text': ' '.join(rng.choice(list('abcdefgh'), 8))}) for name in ids
  ]
  (root / 'in.jsonl').write_text('\n'.join(lines) + '\n{broken\n')
  np.savez(root / 'x.npz', id=np.array(ids), x=x)
  return ['--input', str(root / 'in.jsonl'), '--id-field', 'id'], root


@pytest.mark.slow
def test_brought_vectors_are_judged_alike(corpus, tmp_path):
  words, root = corpus
  brought = ['embed', *words, '--encoder', 'brought', '--vectors', root / 'x.npz', '--output']
  one(*brought, tmp_path / 'v1')
  two(*brought, tmp_path / 'v2')
  of = [embeddings.read(tmp_path / name) for name in ('v1', 'v2')]
  assert of[0].fingerprint == of[1].fingerprint
  np.testing.assert_array_equal(of[0].x_ND[:], of[1].x_ND[:])
  for verb in (
    ['d4', '--prefer', 'hard', '--keep', '0.4'],
    ['dbp', '--prefer', 'hard', '--keep', '0.5', '--neighbours', '2'],
  ):
    line = [*verb, '--clusters', '4', '--vectors']
    one(*line, tmp_path / 'v1', '--output', tmp_path / 'one.parquet')
    said = two(*line, tmp_path / 'v2', '--output', tmp_path / 'two.parquet')
    lists = [keep_list.read(tmp_path / f'{name}.parquet') for name in ('one', 'two')]
    assert lists[0].table.equals(lists[1].table) and lists[0].header() == lists[1].header()
    assert any('examples kept' in line for line in said[0]) and not said[1]


@pytest.mark.slow
def test_what_two_processes_embed_is_judged_alike(corpus, tmp_path):
  words, _ = corpus
  weights = bert_folder.write_bert(tmp_path / 'bert')
  line = ['d4', *words, '--weights', weights, '--batch', '8', '--rows-per-shard', '16']
  line += ['--prefer', 'hard', '--keep', '0.4', '--clusters', '3', '--processes', '1', '--output']
  one(*line, tmp_path / 'one.parquet')
  two(*line, tmp_path / 'two.parquet')
  lists = [keep_list.read(tmp_path / f'{name}.parquet').table for name in ('one', 'two')]
  for column in ('id', 'keep', 'reason', 'digest', 'cluster'):
    assert lists[0][column].equals(lists[1][column]), column
  cluster = ['cluster', '--vectors', tmp_path / 'two.parquet.work' / 'vectors', '--clusters', '3']
  two(*cluster, '--output', tmp_path / 'clusters.parquet')
  assert len(read_clusters(tmp_path / 'clusters.parquet')) == NUM


def test_half_of_the_options_is_refused(corpus, tmp_path, capsys):
  line = ['curate', 'prototypes', *corpus[0], '--prefer', 'hard', '--keep', '0.5']
  line += ['--output', str(tmp_path / 'k.parquet'), '--process-id', '0']
  assert cli.main(line) == 2
  assert '--process-id is given without --coordinator' in capsys.readouterr().err
