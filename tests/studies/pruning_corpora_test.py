"""Pools and what is planted in them: functions of the texts and the numbers alone."""

import sysconfig

import numpy as np
import pytest
from jaxmm.experiments.d4 import claim as d4
from jaxmm.experiments.long_files import claim as long_files
from jaxmm.experiments.scip import claim as scip
from jaxmm.experiments.semdedup import claim as semdedup
from jaxmm.experiments.text_quality import claim as text_quality

from jaxmm.data import corpus
from jaxmm.data.corpus import CorpusConfig
from jaxmm.studies import pruning_arms, pruning_claim, pruning_corpora
from jaxmm.studies.pruning import Pool

TEXTS = [f'text {i} has words of its own: {"x" * i}' for i in range(50)]


def test_an_order_hangs_on_the_texts_alone():
  order = pruning_corpora.shuffled([*TEXTS, TEXTS[3]])
  assert sorted(order) == sorted([*TEXTS, TEXTS[3]]) and order != [*TEXTS, TEXTS[3]]
  assert pruning_corpora.shuffled([TEXTS[3], *TEXTS[::-1]]) == order
  assert pruning_corpora.shuffled(TEXTS, seed=1) != pruning_corpora.shuffled(TEXTS)


def test_a_pool_has_the_bytes_that_were_asked_for():
  some = pruning_corpora.up_to(TEXTS, 500)
  size = sum(map(len, some))
  assert 500 <= size < 500 + len(some[-1]) and some == TEXTS[: len(some)]
  assert max(map(len, pruning_corpora.up_to(TEXTS, 10**9, 9))) == 9


def test_copies_are_near_and_of_the_sources():
  planted = pruning_corpora.with_near_copies(TEXTS, 0.6, 5)
  assert len(planted) == 50 and planted[:20] == TEXTS[:20]
  for i, copy in enumerate(planted[20:]):
    left = set(copy.split(' ')) - set(TEXTS[i % 5].split(' '))
    assert not left and len(copy) > 0.5 * len(TEXTS[i % 5])
  assert planted == pruning_corpora.with_near_copies(TEXTS, 0.6, 5)


@pytest.mark.parametrize('kind', [pruning_corpora.noise, pruning_corpora.literal_data])
def test_junk_takes_the_place_of_as_many_bytes(kind):
  planted = pruning_corpora.with_junk([t * 20 for t in TEXTS], 0.4, kind)
  assert planted[:30] == [t * 20 for t in TEXTS[:30]]
  sizes = np.array([[len(p), 20 * len(t)] for p, t in zip(planted, TEXTS)])
  assert np.all(sizes[:, 0] - sizes[:, 1] < 120) and np.all(sizes[:, 0] >= sizes[:, 1])
  assert len(set(planted)) == 50
  if kind is pruning_corpora.literal_data:
    compile(planted[-1], 'junk', 'exec')


def test_what_is_written_is_a_corpus_with_ids_of_places(tmp_path):
  texts = [*TEXTS[:3], TEXTS[0], 'half \ud800']
  counts = pruning_corpora.write(tmp_path, {'pools': {'natural': texts}})
  path = pruning_corpora.file_of(tmp_path, 'pools', 'natural')
  config = CorpusConfig((str(path),), id_field='id')
  (shard,) = corpus.shards(config)
  found = list(corpus.examples(shard, config))
  assert [e.id for e in found] == [f'{i:06}' for i in range(5)]
  assert [e.text for e in found] == [*texts[:4], 'half ?'] and not any(e.error for e in found)
  assert counts == {'pools': {'natural': {'texts': 5, 'bytes': sum(map(len, texts))}}}


def test_the_library_is_a_corpus_of_short_and_long_files(tmp_path):
  plan = pruning_claim.planned(long_files.STUDY, scale=0.05)
  counts = plan.corpora(tmp_path)
  assert plan.held_out == ('short', 'long') and plan.means['bits_long'] == ('long',)
  assert counts['pools']['natural']['bytes'] >= 200_000
  read = lambda part, name: [e.text for e in Pool(tmp_path / part / f'{name}.jsonl').examples]
  natural, short, long = (
    read('pools', 'natural'), read('held_out', 'short'), read('held_out', 'long'),
  )  # fmt: skip
  assert max(map(len, short)) <= 4000 and max(map(len, long)) <= 6000
  assert not set(natural) & set(short)
  assert not any(piece in text for piece in long for text in natural)
  tables = [t for t in read('pools', 'planted') if t.startswith('TABLE = [')]
  assert len(tables) == -(-len(natural) // 10) and sysconfig.get_python_version()


def test_random_bytes_hold_the_share(tmp_path):
  pruning_corpora.write(tmp_path, {'pools': {'natural': TEXTS}})
  pool = Pool(tmp_path / 'pools/natural.jsonl')
  keep = pruning_arms.random_bytes('natural', 0.5).select(pool, 0, tmp_path, print)
  stays = set(keep.table.filter(keep.table['keep'])['id'].to_pylist())
  share = sum(len(e.content) for e in pool.examples if e.id in stays)
  share /= sum(len(e.content) for e in pool.examples)
  assert 0.5 <= share < 0.56


@pytest.mark.parametrize('claim', [d4, long_files, scip, semdedup, text_quality])
def test_every_claim_names_arms_and_metrics_that_there_will_be(claim):
  study = claim.STUDY
  metrics = {'bits_elsewhere', 'bits_pool'} | {'bits_short', 'bits_long'}
  for criterion in study.claim.criteria:
    assert {criterion.arm, criterion.against} <= set(study.arms) and criterion.metric in metrics
  assert any(c.is_condition for c in study.claim.criteria) and len(study.seeds) >= 3
  assert {arm.pool for arm in study.arms.values()} == {'natural', 'planted'}
  assert all(arm.needs_vectors <= (study.encoder is not None) for arm in study.arms.values())
