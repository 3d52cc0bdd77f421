"""Classification and retrieval: loops over rows, on any mesh, batch and number of processes."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm import batch_job, sharding
from jaxmm.config import ConfigError
from jaxmm.evaluate import retrieval
from jaxmm.evaluate.classification import classification_sums
from jaxmm.evaluate.retrieval import RankSums
from tests.multiprocess import run_processes

RULES = sharding.rules_named('dp')
NUM, CLASSES = 37, 11


def scores() -> tuple[np.ndarray, np.ndarray]:
  rng = np.random.default_rng(0)
  logits = rng.standard_normal((NUM, CLASSES)).astype(np.float32)
  logits[3] = 0  # a network that says the same of all
  logits[5, :4] = logits[5].max() + 1  # a tie at the top
  return logits, rng.integers(0, CLASSES, NUM).astype(np.int32)


def expected_scores() -> dict[str, float]:
  logits, labels = scores()
  wide = logits.astype(np.float64)
  nll = [np.log(np.exp(row).sum()) - row[label] for row, label in zip(wide, labels)]
  ahead = [sum(row[v] >= row[label] for v in range(CLASSES) if v != label)
           for row, label in zip(logits, labels)]  # fmt: skip
  return {'nll': sum(nll), 'top_1': sum(a < 1 for a in ahead), 'top_5': sum(a < 5 for a in ahead)}


def summed(batch_size: int, devices=None) -> dict:
  logits, labels = scores()
  mesh = sharding.make_mesh(devices=devices)
  batches = batch_job.ArrayPass({'logits': logits, 'label': labels}, batch_size, mesh)

  def sums(variables, batch):
    del variables
    return classification_sums(batch['logits'], batch['label'], batch['valid_B'])

  return batch_job.run_sums(batches, sums, mesh=mesh, rules=RULES)


@pytest.mark.parametrize('devices, batch', [(1, 37), (8, 8), (1, 5), (8, 64), (1, 1)])
def test_classification_is_a_loop_on_any_mesh_and_batch(devices, batch):
  found = summed(batch, jax.devices()[:devices])
  for name, value in expected_scores().items():
    total, count = found[name]
    assert count == NUM
    assert total == pytest.approx(value, rel=1e-6)
  assert isinstance(found['top_1'][0], int)


def test_rows_that_do_not_count_and_wrong_classes():
  logits = np.float32([[9, 0, 0], [0, 9, 0], [np.nan, 0, 9], [0, 0, 9]])
  labels = np.int32([0, 0, 2, 7])
  valid = np.float32([1, 1, 0, 0])
  found = classification_sums(logits, labels, valid, top=(1, 2))
  assert found['top_1'] == (1, 2) and np.isfinite(found['nll'][0])
  # A class that the head does not have is no silent zero; a score that is no number is not right.
  found = classification_sums(logits, labels, top=(1,))
  assert np.isnan(found['nll'][0]) and found['top_1'] == (1, 4)
  with pytest.raises(ConfigError, match='top is 3, expected 1 to 2: there are 3 classes'):
    classification_sums(logits, labels, top=(3,))
  with pytest.raises(ConfigError, match='expected'):
    classification_sums(logits, labels[:2])


def embeddings() -> tuple[np.ndarray, np.ndarray, list[list[int]]]:
  rng = np.random.default_rng(1)
  keys = rng.integers(-3, 4, (23, 3)).astype(np.float32)  # whole numbers: ties, and no rounding
  queries = rng.integers(-3, 4, (NUM, 3)).astype(np.float32)
  relevant = [sorted({int(i) for i in rng.integers(0, 23, 1 + q % 3)}) for q in range(NUM)]
  return queries, keys, relevant


def expected_ranks() -> list[int]:
  queries, keys, relevant = embeddings()
  out = []
  for query, own in zip(queries, relevant):
    score = keys @ query
    best = max(score[i] for i in own)
    out.append(1 + sum(score[i] >= best for i in range(len(keys)) if i not in own))
  return out


def ranks(tile: int, devices=None) -> np.ndarray:
  mesh = sharding.make_mesh(devices=devices)
  return retrieval.first_ranks(*embeddings(), mesh=mesh, rules=RULES, tile=tile)


@pytest.mark.parametrize('devices, tile', [(1, 37), (8, 8), (1, 5), (8, 100)])
def test_ranks_are_a_loop_on_any_mesh_and_tile(devices, tile):
  found = ranks(tile, jax.devices()[:devices])
  np.testing.assert_array_equal(found, expected_ranks())
  assert found.max() > 10 and found.min() == 1


def test_rank_sums_merge():
  rank = np.array(expected_ranks())
  whole = RankSums.of(rank, (1, 5))
  parts = RankSums.of(rank[:0], (1, 5))
  for part in np.array_split(rank, [1, 9, 9]):
    parts = parts.merge(RankSums.of(part, (1, 5)))
  found, expected = parts.metrics(), whole.metrics()
  assert found['recall_at_1'] == expected['recall_at_1'] == np.mean(rank == 1)
  assert found['recall_at_5'] == np.mean(rank <= 5)
  assert found['mrr'] == pytest.approx(np.mean(1 / rank), rel=1e-12)
  with pytest.raises(ValueError, match='cannot be merged'):
    whole.merge(RankSums.of(rank, (1, 10)))
  with pytest.raises(ValueError, match='no queries'):
    RankSums.of(rank[:0]).metrics()


PROCESSES = """
import json
from tests.evaluate import classification_test as t
sums = {name: list(map(float, pair)) for name, pair in t.summed(7).items()}
print(json.dumps([sums, t.ranks(9).tolist()]))
"""


def test_two_processes_find_the_same():
  printed = [json.loads(text) for text in run_processes(2, PROCESSES, 2)]
  assert printed[0] == printed[1]
  sums, rank = printed[0]
  for name, value in expected_scores().items():
    assert sums[name] == pytest.approx([value, NUM], rel=1e-6)
  assert rank == expected_ranks()


def test_impossible_embeddings_are_named():
  queries, keys, relevant = embeddings()
  call = lambda q, k, r: retrieval.first_ranks(q, k, r, mesh=sharding.make_mesh(), rules=RULES)
  with pytest.raises(ConfigError, match=r'queries \(37, 2\) and keys \(23, 3\)'):
    call(queries[:, :2], keys, relevant)
  with pytest.raises(ConfigError, match='query 1 has the relevant keys'):
    call(queries, keys, [[0], [23], *relevant[2:]])
  with pytest.raises(ConfigError, match='of 3 queries, but there are 37'):
    call(queries, keys, relevant[:3])
  with pytest.raises(ConfigError, match='keys: row 4 is not finite'):
    call(queries, np.where(np.arange(23)[:, None] == 4, jnp.nan, keys), relevant)
