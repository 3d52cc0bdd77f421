"""A corpus in any number of files, batches, devices and attempts gives one set of vectors."""

import functools
import io
import json
import os
import pathlib
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.curation import embedding_job, embeddings, runners, semdedup, vectors
from jaxmm.curation.embedding_inputs import ImageInputs, TextInputs, reason, text_lengths
from jaxmm.curation.embedding_job import Embedder
from jaxmm.curation.kmeans import KMeansConfig
from jaxmm.curation.semdedup import SemDedupConfig
from jaxmm.curation.stages import Stages
from jaxmm.data.corpus import CorpusConfig, Example
from jaxmm.studies import encoders
from tests.bert_folder import write_bert
from tests.multiprocess import run_processes

ROOT = pathlib.Path(__file__).parents[2]
WIDTH = 4
WEIGHT = np.random.default_rng(0).standard_normal((256, WIDTH)).astype(np.float32)


def letters(variables, batch):
  """The sum of a vector for each byte: exact enough in any order, and padding would show."""
  x_BLD = variables[batch['ids_BL']] * batch['valid_BL'][..., None]
  return jnp.sum(x_BLD, axis=1)


def tokenize(texts):
  return [
    np.frombuffer(t.encode('utf-8', 'replace')[:40], np.uint8).astype(np.int32) for t in texts
  ]


def embedder(**changes):
  inputs = TextInputs(tokenize, (8, 16, 40), pad_id=7)
  fields = dict(identity={'encoder': 'letters'}, width=WIDTH, encode=letters, variables=WEIGHT)
  return Embedder(**{**fields, 'inputs': inputs, **changes})


def lines(num=41):
  rng = np.random.default_rng(1)
  texts = [''.join(rng.choice(list('abc de'), rng.integers(1, 60))) + '!' for _ in range(num)]
  texts[3], texts[9], texts[10] = '', ' \n', 'a \ud800 b'
  out = [json.dumps({'id': f'doc{i:02}', 'text': text}) for i, text in enumerate(texts)]
  out[5], out[20] = '{"id": "broken', json.dumps({'id': 'doc20', 'words': 'none'})
  return out


def write(folder, files=1, of=None):
  folder.mkdir(parents=True, exist_ok=True)
  of = lines() if of is None else of
  cuts = np.linspace(0, len(of), files + 1).astype(int)
  for f, (low, high) in enumerate(zip(cuts, cuts[1:])):
    (folder / f'{f}.jsonl').write_text('\n'.join(of[low:high]) + '\n')
  return CorpusConfig((str(folder),), id_field='id')


def job(inputs, directory, what=None, devices=1, **changes):
  mesh = sharding.make_mesh(devices=jax.devices()[:devices])
  settings = dict(batch_size=4, rows_per_shard=16, mesh=mesh, echo=None)
  return embedding_job.run(inputs, what or embedder(), directory, **{**settings, **changes})


def by_id(found):
  return dict(zip(found.ids.to_pylist(), zip(found.digest_N, found.reason_N, found.x_ND[:])))


@functools.cache
def expected_rows():
  """id -> sum of its bytes' vectors, one text after the other."""
  out = {}
  for line in lines():
    try:
      record = json.loads(line)
    except ValueError:
      continue
    if record.get('text', '').strip() and '\ud800' not in record['text']:
      raw = WEIGHT[tokenize([record['text']])[0]].astype(np.float64).sum(0)
      out[record['id']] = raw / np.linalg.norm(raw)
  return out


def test_every_example_has_its_row_and_those_without_say_why(tmp_path):
  found = job(write(tmp_path / 'in'), tmp_path / 'out')
  # A line that is no JSON has no id of its own.
  expected_ids = [f'doc{i:02}' if i != 5 else '0.jsonl:6' for i in range(41)]
  assert found.ids.to_pylist() == expected_ids
  assert found.reasons() == {'empty': 2, 'unreadable': 3}
  assert [found.reason_N[i] for i in (3, 5, 9, 20)] == ['empty', 'unreadable'] * 2
  assert found.error_N[10].startswith('half a character')
  for name, row in zip(expected_ids, found.x_ND[:]):
    expected = expected_rows().get(name, np.zeros(WIDTH))
    np.testing.assert_allclose(row, expected, atol=1e-6, err_msg=name)
  table = embeddings.pq.read_table(tmp_path / 'out' / 'examples.parquet')
  assert 'JSONDecodeError' in table['error'][5].as_py()


@pytest.mark.parametrize(
  'change', [{'batch_size': 16}, {'batch_size': 1}, {'rows_per_shard': 4}, {'rows_per_shard': 400},
             {'batch_size': 8, 'devices': 8}, {'runner': runners.Local(2)}]
)  # fmt: skip
def test_batches_shards_and_devices_do_not_show(tmp_path, change):
  inputs = write(tmp_path / 'in', files=3)
  whole, other = job(inputs, tmp_path / 'a'), job(inputs, tmp_path / 'b', **change)
  assert other.ids.equals(whole.ids) and other.fingerprint == whole.fingerprint
  np.testing.assert_array_equal(other.reason_N, whole.reason_N)
  np.testing.assert_allclose(other.x_ND[:], whole.x_ND[:], atol=1e-6)


def test_files_and_order_do_not_show(tmp_path):
  lines_ = [line for line in lines() if line.endswith('}')]  # a broken line's id is its place
  whole = by_id(job(write(tmp_path / 'in', 1, lines_), tmp_path / 'a'))
  shuffled = np.random.default_rng(2).permutation(lines_).tolist()
  other = by_id(job(write(tmp_path / 'other', 4, shuffled), tmp_path / 'b'))
  assert other.keys() == whole.keys()
  for name, (digest, why, row) in whole.items():
    assert other[name][:2] == (digest, why)
    np.testing.assert_allclose(other[name][2], row, atol=1e-6)


def test_vectors_that_cannot_be_used_are_counted(tmp_path):
  def encode(variables, batch):
    x_BD = letters(variables, batch)
    first_B1 = batch['ids_BL'][:, :1]
    return jnp.where(first_B1 == ord('a'), jnp.nan, jnp.where(first_B1 == ord('b'), 0.0, x_BD))

  found = job(write(tmp_path / 'in'), tmp_path / 'out', embedder(encode=encode))
  texts = {json.loads(line)['id']: json.loads(line).get('text', '') for line in lines()
           if line.endswith('}')}  # fmt: skip
  bad = {n for n, text in texts.items() if text[:1] in ('a', 'b') and '\ud800' not in text}
  assert len(bad) > 5
  ids = found.ids.to_pylist()
  assert {ids[i] for i in np.flatnonzero(found.reason_N == 'bad_embedding')} == bad
  assert np.isfinite(found.x_ND[:]).all()


class Killed(Exception):
  pass


def test_a_job_that_was_stopped_goes_on(tmp_path):
  inputs = write(tmp_path / 'in', files=2)
  whole = job(inputs, tmp_path / 'a')
  seen = []

  def dying(texts):
    seen.append(len(texts))
    if len(seen) == 3:
      raise Killed
    return tokenize(texts)

  with pytest.raises(Killed):
    job(inputs, tmp_path / 'b', embedder(inputs=TextInputs(dying, (40,))))
  with pytest.raises(ConfigError, match='it is begun'):
    embeddings.read(tmp_path / 'b')
  shards = sorted((tmp_path / 'b' / 'vectors').glob('shard-*.x.npy'))
  assert 0 < len(shards) < 3
  times = {path: path.stat().st_mtime_ns for path in shards}
  seen.clear()
  # A shard of the middle is lost as well.
  shards[0].unlink()
  counted = lambda texts: (seen.append(len(texts)), tokenize(texts))[1]
  found = job(inputs, tmp_path / 'b', embedder(inputs=TextInputs(counted, (40,))))
  assert len(seen) == 3 - len(shards) + 1
  np.testing.assert_allclose(found.x_ND[:], whole.x_ND[:], atol=1e-6)
  assert all(path.stat().st_mtime_ns == times[path] for path in shards[1:])
  seen.clear()
  job(inputs, tmp_path / 'b', embedder(inputs=TextInputs(counted, (40,))))
  assert not seen


KILLED = """
import os, signal, sys
from tests.curation import embedding_job_test as t
from jaxmm.curation.embedding_inputs import TextInputs
calls = []
def dying(texts):
  calls.append(1)
  if len(calls) == 2:
    os.kill(os.getpid(), signal.SIGKILL)
  return t.tokenize(texts)
t.job(t.CorpusConfig((sys.argv[1],), id_field='id'), sys.argv[2],
      t.embedder(inputs=TextInputs(dying, (40,))), rows_per_shard=8)
"""


def test_a_job_that_was_killed_goes_on(tmp_path):
  inputs = write(tmp_path / 'in', files=2)
  args = [sys.executable, '-c', KILLED, str(tmp_path / 'in'), str(tmp_path / 'b')]
  env = dict(os.environ, PYTHONPATH=str(ROOT))
  assert subprocess.run(args, cwd=ROOT, env=env).returncode == -signal.SIGKILL
  whole = job(inputs, tmp_path / 'a', rows_per_shard=8)
  found = job(inputs, tmp_path / 'b', rows_per_shard=8)
  np.testing.assert_allclose(found.x_ND[:], whole.x_ND[:], atol=1e-6)


PROCESS = """
import sys
from tests.curation import embedding_job_test as t
found = t.job(t.CorpusConfig((sys.argv[1],), id_field='id'), sys.argv[2], mesh=None)
assert len(found) == 41
"""


def test_two_processes_write_the_same(tmp_path):
  inputs = write(tmp_path / 'in', files=2)
  run_processes(2, PROCESS, args=[str(tmp_path / 'in'), str(tmp_path / 'b')])
  whole, found = job(inputs, tmp_path / 'a'), embeddings.read(tmp_path / 'b')
  assert found.ids.equals(whole.ids) and found.reasons() == whole.reasons()
  np.testing.assert_allclose(found.x_ND[:], whole.x_ND[:], atol=1e-6)


def test_another_corpus_or_encoder_in_the_same_place_is_refused(tmp_path):
  inputs = write(tmp_path / 'in')
  job(inputs, tmp_path / 'out')
  with pytest.raises(ConfigError, match="holds vectors of the encoder .*, not 'other'; name"):
    job(inputs, tmp_path / 'out', embedder(identity={'encoder': 'other'}))
  cut = dict(embedder().identity, max_tokens=3)
  with pytest.raises(ConfigError, match=r'other settings \(max_tokens: .* -> 3\); name'):
    job(inputs, tmp_path / 'out', embedder(identity=cut))
  write(tmp_path / 'in', of=lines()[::-1])
  with pytest.raises(ConfigError, match='another corpus .other ids or contents.; name'):
    job(inputs, tmp_path / 'out')
  write(tmp_path / 'in', of=lines()[:-1])
  with pytest.raises(ConfigError, match='holds vectors of another corpus'):
    job(inputs, tmp_path / 'out')


def test_a_corpus_that_changes_meanwhile_is_an_error(tmp_path):
  inputs = write(tmp_path / 'in', files=2)

  def changing(texts):
    write(tmp_path / 'in', files=2, of=[line.replace('abc', 'cba') for line in lines()])
    return tokenize(texts)

  with pytest.raises(ConfigError, match='1.jsonl changed while it was embedded'):
    job(inputs, tmp_path / 'out', embedder(inputs=TextInputs(changing, (40,))))


def test_settings_that_cannot_be_are_named(tmp_path):
  inputs = write(tmp_path / 'in')
  with pytest.raises(
    ConfigError, match='rows_per_shard is 10, expected a multiple of batch_size 4'
  ):
    job(inputs, tmp_path / 'out', rows_per_shard=10)
  with pytest.raises(ConfigError, match='a batch of 4 rows cannot be split over 8 devices'):
    job(inputs, tmp_path / 'out', devices=8)
  with pytest.raises(ConfigError, match="id 'doc00' comes more than once .*, one of 2 ids"):
    job(write(tmp_path / 'twice', of=lines()[:2] * 2), tmp_path / 'twice_out')
  with pytest.raises(ConfigError, match='a text has .* tokens, but lengths end with 8'):
    job(inputs, tmp_path / 'short', embedder(inputs=TextInputs(tokenize, (8,))))
  with pytest.raises(ConfigError, match='lengths is .8, 4., expected'):
    TextInputs(tokenize, (8, 4))


@pytest.mark.parametrize('longest', [1, 16, 17, 100, 256, 512, 2048])
def test_lengths_are_few_and_waste_little(longest):
  lengths = text_lengths(longest)
  assert lengths[-1] == longest and list(lengths) == sorted(set(lengths)) and len(lengths) < 30
  for n in range(49, longest + 1):
    assert min(m for m in lengths if m >= n) <= 4 / 3 * n


def test_a_bert_in_the_job_gives_what_it_gives_alone(tmp_path):
  what = encoders.minilm(write_bert(tmp_path / 'model'))
  inputs = write(tmp_path / 'in')
  one, other = job(inputs, tmp_path / 'a', what), job(inputs, tmp_path / 'b', what, batch_size=16)
  np.testing.assert_allclose(one.x_ND[:], other.x_ND[:], atol=1e-6)
  assert one.reasons() == {'empty': 2, 'unreadable': 3}
  ids = what.inputs.tokenize([json.loads(lines()[7])['text']])[0]
  batch = {'ids_BL': ids[None], 'valid_BL': np.ones((1, len(ids)), bool)}
  alone = what.encode(what.variables, batch)[0]
  np.testing.assert_allclose(one.x_ND[7], alone, atol=1e-6)
  # Another cut gives other vectors, so it is another identity.
  assert encoders.minilm(tmp_path / 'model', 5).identity != what.identity


def png(size, seed):
  pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, 'png')
  return out.getvalue()


def test_what_an_example_must_have():
  cases = {
    'text': ['', 'empty', 'unreadable', 'unreadable'],
    'image': ['unreadable', 'unreadable', '', 'unreadable'],
    'any': ['', 'empty', '', 'unreadable'],
  }
  examples = [Example('a', 'text'), Example('b', ' '), Example('c', image=b'x'), Example('d')]
  for kind, expected in cases.items():
    assert [reason(example, kind)[0] for example in examples] == expected
  broken = Example('e', 'text', error='why')
  assert reason(broken, 'text') == ('unreadable', 'why')


def test_vectors_of_a_corpus_that_has_changed_are_made_anew_where_that_is_asked_for(tmp_path):
  job(write(tmp_path / 'in'), tmp_path / 'out')
  inputs = write(tmp_path / 'in', of=[*lines(), '{"id": "new", "text": "abc"}'])
  with pytest.raises(ConfigError, match='holds vectors of another corpus .41 examples, not 42'):
    job(inputs, tmp_path / 'out')
  other = embedder(identity={'encoder': 'other'})
  with pytest.raises(ConfigError, match="of the encoder 'letters', not 'other', and of another"):
    job(inputs, tmp_path / 'out', other, anew=True)
  assert len(embeddings.read(tmp_path / 'out')) == 41
  said = []
  found = job(inputs, tmp_path / 'out', anew=True, echo=said.append)
  assert any('held vectors of another corpus' in line and 'anew' in line for line in said)
  fresh = job(inputs, tmp_path / 'fresh')
  assert found.ids.equals(fresh.ids) and found.reason_N.tolist() == fresh.reason_N.tolist()
  np.testing.assert_array_equal(found.x_ND[:], fresh.x_ND[:])
  said.clear()
  job(inputs, tmp_path / 'out', anew=True, echo=said.append)  # and not once more
  assert not any('anew' in line for line in said)


def test_a_corpus_of_which_nothing_can_be_read_is_refused(tmp_path):
  what = embedder(inputs=ImageInputs(8))
  with pytest.raises(
    ConfigError, match="none of the 41 .* 'doc00': it has no image.*--image-field"
  ):
    job(write(tmp_path / 'in'), tmp_path / 'out', what)
  folder = tmp_path / 'pictures'
  folder.mkdir()
  for i in range(2):
    (folder / f'{i}.png').write_bytes(png((8, 8), i)[:60])
  encode = lambda weight, batch: batch['image_BYXC'].reshape(-1, 192).astype(jnp.float32) @ weight
  what = embedder(encode=encode, variables=np.ones((192, WIDTH), np.float32), inputs=ImageInputs(8))
  with pytest.raises(
    ConfigError, match="none of the 2 .* can be read; the first, '0.png': .*trunc"
  ):
    job(CorpusConfig((str(folder),)), tmp_path / 'pictures_out', what)
  assert not (tmp_path / 'pictures_out' / 'examples.parquet').exists()


def test_pictures_of_any_size_and_damaged_ones(tmp_path):
  folder = tmp_path / 'in'
  folder.mkdir()
  for i, size in enumerate([(8, 8), (20, 9), (8, 30)]):
    (folder / f'{i}.png').write_bytes(png(size, i))
  (folder / '3.png').write_bytes(png((8, 8), 3)[:60])
  (folder / '4.png').write_bytes(b'')
  encode = lambda weight, batch: batch['image_BYXC'].reshape(-1, 192).astype(jnp.float32) @ weight
  weight = np.random.default_rng(0).standard_normal((192, WIDTH)).astype(np.float32)
  what = embedder(encode=encode, variables=weight, inputs=ImageInputs(8))
  found = job(CorpusConfig((str(folder),)), tmp_path / 'out', what)
  assert found.ids.to_pylist() == [f'{i}.png' for i in range(5)]
  assert found.reason_N.tolist() == ['', '', '', 'unreadable', 'empty']
  assert 'truncated' in found.error_N[3] and found.error_N[[0, 1, 2, 4]].tolist() == [''] * 4
  # A run that finds the vectors there, but was stopped before it wrote what it found.
  (tmp_path / 'out' / 'examples.parquet').unlink()
  again = job(CorpusConfig((str(folder),)), tmp_path / 'out', what)
  assert again.error_N.tolist() == found.error_N.tolist()
  keep = semdedup.run(
    vectors.of_embeddings(found), SemDedupConfig('hard', eps=0.1), KMeansConfig(1), Stages()
  )
  assert keep.errors() == {'3.png': found.error_N[3]}
  with Image.open(folder / '0.png') as picture:
    raw = np.asarray(picture).reshape(-1).astype(np.float64) @ weight
  np.testing.assert_allclose(found.x_ND[0], raw / np.linalg.norm(raw), atol=1e-5)
