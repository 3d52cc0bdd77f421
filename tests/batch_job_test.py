"""A job's store does not depend on batch size, mesh, processes, or how often it was stopped."""

import functools
import json
import os
import signal
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError
from jaxmm.data.array_store import ArrayStore
from jaxmm.data.pipeline import DataConfig, make_batches
from jaxmm.data.sources import ArraySource, UnreadableRecord
from tests.multiprocess import run_processes

NUM, SIDE, BROKEN = 37, 4, 11
FIELDS = {'sum': ((), np.float32), 'row': ((SIDE,), np.int32)}
RULES = sharding.rules_named('dp')


class PartlyBroken(ArraySource):
  """Pictures of which one cannot be read."""

  def __getitem__(self, i):
    if i == BROKEN:
      raise UnreadableRecord('cut short')
    return super().__getitem__(i)


def pictures() -> np.ndarray:
  return np.random.default_rng(0).integers(0, 256, (NUM, SIDE, SIDE, 3), dtype=np.uint8)


def batches(batch_size: int, train: bool = False, **process):
  config = DataConfig(name='arrays', image_size=SIDE, crop='none', threads=0, max_bad_fraction=0.1)
  source = PartlyBroken(pictures(), np.arange(NUM) % 7)
  return make_batches(config, batch_size=batch_size, seed=0, train=train, source=source, **process)


def measured(variables, batch):
  """One picture's weighted sum, and its first row in one channel."""
  x = batch['image_BYXC'].astype(jnp.float32)
  return {
    'sum': jnp.sum(x, (1, 2, 3)) * variables['scale'],
    'row': batch['image_BYXC'][:, 0, :, 1].astype(jnp.int32),
  }


@functools.cache
def mesh_of(devices: int):
  return sharding.make_mesh(devices=jax.devices()[:devices])


def job(directory, batch_size=8, devices=1, **changes):
  settings = dict(
    variables={'scale': np.float32(0.5)},
    fields=FIELDS,
    mesh=mesh_of(devices),
    rules=RULES,
    rows_per_shard=10,
    meta={'model': 'a'},
    echo=None,
  )
  return batch_job.run(batches(batch_size), measured, directory, **{**settings, **changes})


def check(store: ArrayStore) -> None:
  """The store holds what a loop over the pictures gives."""
  assert len(store) == NUM
  valid = np.arange(NUM) != BROKEN
  np.testing.assert_array_equal(store.read('valid'), valid)
  expected = pictures().astype(np.float64).sum((1, 2, 3)) * 0.5 * valid
  np.testing.assert_allclose(store.read('sum'), expected, rtol=1e-6)
  np.testing.assert_array_equal(store.read('row'), pictures()[:, 0, :, 1] * valid[:, None])
  store.verify()


@pytest.mark.parametrize('batch_size, devices', [(8, 1), (16, 8), (5, 1), (64, 8)])
def test_equals_a_loop_on_any_mesh_and_batch(tmp_path, batch_size, devices):
  check(job(tmp_path / 'store', batch_size, devices))


def test_finished_shards_are_not_computed_again(tmp_path):
  check(job(tmp_path))
  # The second and the last shard go; only the batches that hold their rows are read.
  for shard in (1, 3):
    (tmp_path / f'shard-{shard:05d}.json').unlink()
  kept = {p.name: p.stat().st_mtime_ns for p in tmp_path.glob('shard-0000[02]*')}
  read = []

  class Watched:
    def __init__(self, of):
      self._of, self.num_records, self.record_ids = of, of.num_records, of.record_ids

    def from_step(self, step):
      for batch in self._of.from_step(step):
        read.append(step)
        step += 1
        yield batch

  lines = []
  store = batch_job.run(
    Watched(batches(8)),
    measured,
    tmp_path,
    variables={'scale': np.float32(0.5)},
    fields=FIELDS,
    mesh=mesh_of(1),
    rules=RULES,
    rows_per_shard=10,
    meta={'model': 'a'},
    echo=lines.append,
  )
  check(store)
  assert read == [1, 2, 3, 4]  # rows 10 to 19, then 30 to 36, in batches of 8
  assert {p.name: p.stat().st_mtime_ns for p in tmp_path.glob('shard-0000[02]*')} == kept
  assert lines[-1].startswith(f'{tmp_path}: 37 rows') and '1 unreadable' in lines[-1]
  read.clear()
  check(job(tmp_path))
  assert not read


KILLED = """
import os, signal, sys
import tests.conftest
from tests import batch_job_test
from jaxmm.data.array_store import ArrayStoreWriter
write = ArrayStoreWriter.write_shard
def write_then_die(self, shard, arrays):
  if shard == 2:
    (self.directory / 'shard-00002.sum.npy').write_bytes(b'half a file')
    os.kill(os.getpid(), signal.SIGKILL)
  write(self, shard, arrays)
ArrayStoreWriter.write_shard = write_then_die
batch_job_test.job(sys.argv[1])
"""


def test_a_killed_job_is_continued(tmp_path):
  root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
  ended = subprocess.run(
    [sys.executable, '-c', KILLED, str(tmp_path)], cwd=root, capture_output=True, text=True
  )
  assert ended.returncode == -signal.SIGKILL, ended.stderr[-2000:]
  with pytest.raises(ConfigError, match='2 of 4 shards cannot be used'):
    ArrayStore(tmp_path)
  first = (tmp_path / 'shard-00000.json').stat().st_mtime_ns
  check(job(tmp_path, batch_size=16, devices=8))  # on another machine, so to say
  assert (tmp_path / 'shard-00000.json').stat().st_mtime_ns == first


def test_another_job_is_refused_with_the_differences(tmp_path):
  job(tmp_path)
  with pytest.raises(ConfigError, match="meta.model: 'a' -> 'b'"):
    job(tmp_path, meta={'model': 'b'})
  with pytest.raises(ConfigError, match='rows_per_shard: 10 -> 12'):
    job(tmp_path, rows_per_shard=12)
  check(ArrayStore(tmp_path))


def test_impossible_jobs_are_named(tmp_path):
  with pytest.raises(ConfigError, match=r"rows of .*'row'.*but fields says \{'sum': \(\)\}"):
    job(tmp_path / 'a', fields={'sum': ((), np.float32)})
  with pytest.raises(ConfigError, match="'valid', which the job itself adds"):
    job(tmp_path / 'b', fields={**FIELDS, 'valid': ((), np.bool_)})
  with pytest.raises(ConfigError, match='batch of 12 rows cannot be split over 8 devices'):
    job(tmp_path / 'c', batch_size=12, devices=8)
  shuffled = batches(8, train=True)
  settings = dict(fields=FIELDS, mesh=mesh_of(1), rules=RULES, echo=None)
  with pytest.raises(ConfigError, match='with train=False'):
    batch_job.run(
      shuffled, measured, tmp_path / 'd', variables={'scale': np.float32(1)}, **settings
    )


def summed(variables, batch):
  del variables
  valid_B = batch['valid_B']
  x_B = jnp.mean(batch['image_BYXC'].astype(jnp.float32), (1, 2, 3))
  hits_K = jnp.zeros(7, jnp.int32).at[batch['label_B']].add(valid_B.astype(jnp.int32))
  return {
    'mean': (jnp.sum(x_B * valid_B), jnp.sum(valid_B)),
    'labels': (hits_K, jnp.sum(valid_B).astype(jnp.int32)),
    'large': (jnp.float32(2**24 + 2), jnp.int32(2**30)),
  }


def test_sums_are_those_of_a_loop_on_any_mesh_and_batch():
  valid = np.arange(NUM) != BROKEN
  for batch_size, devices in [(8, 1), (16, 8), (5, 1)]:
    found = batch_job.run_sums(batches(batch_size), summed, mesh=mesh_of(devices), rules=RULES)
    total, count = found['mean']
    np.testing.assert_allclose(total, pictures()[valid].mean((1, 2, 3)).sum(), rtol=1e-6)
    assert count == NUM - 1 and isinstance(count, float)
    hits_K, count = found['labels']
    assert hits_K.dtype == np.int64 and type(count) is int and count == NUM - 1
    np.testing.assert_array_equal(hits_K, np.bincount(np.arange(NUM)[valid] % 7, minlength=7))
    num_batches = -(-NUM // batch_size)
    # float32 would have lost the last digits, int32 would have overflowed.
    assert found['large'] == (num_batches * (2.0**24 + 2), num_batches * 2**30)


def test_sums_of_some_batches_only():
  found = batch_job.run_sums(
    batches(8), summed, mesh=mesh_of(1), rules=RULES, max_batches=2, echo=None
  )
  assert found['mean'][1] == 15  # two batches, one picture of which is broken


PROCESSES = """
import json, jax
from tests import batch_job_test as t
from jaxmm import batch_job, sharding
import numpy as np
mesh = sharding.make_mesh()
b = t.batches(8, process_index=jax.process_index(), process_count=jax.process_count())
settings = dict(mesh=mesh, rules=t.RULES)
batch_job.run(b, t.measured, sys.argv[1], variables={'scale': np.float32(0.5)}, fields=t.FIELDS,
              rows_per_shard=10, meta={'model': 'a'}, echo=None, **settings)
print(json.dumps(batch_job.run_sums(b, t.summed, **settings)['mean']))
"""


def test_two_processes_write_one_store(tmp_path):
  printed = [json.loads(text) for text in run_processes(2, PROCESSES, 2, [tmp_path])]
  check(ArrayStore(tmp_path))
  assert printed[0] == printed[1] and printed[0][1] == NUM - 1
