"""A claim about pruned text, from a folder of texts to the verdict; nothing is done twice."""

import json

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.curation import keep_list
from jaxmm.studies import (
  claim_markdown,
  pruning_arms,
  pruning_claim,
  pruning_texts,
)
from jaxmm.studies.pruning import Arm
from jaxmm.studies.pruning_claim import PruningClaim
from jaxmm.studies.verdict import Claim, Criterion
from tests.curation import embedding_job_test

WORDS = ('the cat sat on a mat', 'rain falls on the sea', 'no one knows the time', 'we read books')
SETTINGS = (
  'steps=6', 'batch=8', 'model.width=16', 'model.depth=1', 'model.num_heads=2',
  'data.text.length=32', 'checkpoint.every=100',
)  # fmt: skip


def write_folder(at):
  """A folder as users of a claim have it."""
  rng = np.random.default_rng(0)
  text = lambda: ' '.join(rng.choice(WORDS, 6)) + f' {rng.integers(1000)}.'
  for name, number in (('pool', 400), ('held_out/books', 40), ('held_out/web', 40)):
    path = at / f'{name}.jsonl'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('\n'.join(json.dumps({'text': text()}) for _ in range(number)))
  return at


def longest(pool, seed, directory, echo):
  """A selection that reads the vectors, as the real ones do."""
  norm_N = pool.vectors().x_ND[:, 0]
  echo(f'seed {seed} in {directory.name}')
  return pool.only(norm_N > np.median(norm_N), 'first')


def corpora(data_path, scale):
  return pruning_texts.of_folder(
    data_path,
    scale * 0.01,
    plant=lambda texts: texts[: len(texts) // 2] * 2,
    planting={'twice': True},
    what='any texts',
  )


def claim(**changes):
  fields = dict(
    claim=Claim(
      'toy', 'Words are words.',
      (
        Criterion('fewer bits', 'bits_elsewhere', 'first', 'random', 'below'),
        Criterion('more texts', 'kept_texts', 'planted', 'random', 'above', test='mean',
                  is_condition=True),
      ),
    ),
    corpora=corpora,
    arms={
      'random': pruning_arms.random_texts('natural', 0.5),
      'first': Arm('natural', longest, {'method': 'first'}, needs_vectors=True),
      'planted': pruning_arms.everything('planted'),
    },
    settings=SETTINGS,
    vocab_size=300,
    start=('steps=4',),
    seeds=(1, 2, 3),
    title='Toy', subtitle='of tests',
    departures=('All of it.',),
    encoder=embedding_job_test.embedder,
    encoder_settings={'encoder': 'letters'},
  )  # fmt: skip
  return PruningClaim(**{**fields, **changes})


@pytest.mark.slow
def test_a_claim_runs_to_its_verdict_and_repeats_nothing(tmp_path):
  texts, work, said = write_folder(tmp_path / 'texts'), tmp_path / 'work', []

  def stopping(line):
    if 'seed 2, arm first: model ...' in line:
      raise KeyboardInterrupt
    said.append(line)

  with pytest.raises(KeyboardInterrupt):
    pruning_claim.run(claim(), work, data_path=texts, echo=stopping)
  done = {f: f.stat().st_mtime_ns for f in work.rglob('result.json')}
  # Corpora, vectors, of the first seed a start, three lists and models, of the second a start, a
  # model and two lists.
  assert len(done) == 1 + 1 + 7 + 4
  page = pruning_claim.run(claim(), work, data_path=texts, echo=said.append)
  assert all(f.stat().st_mtime_ns == then for f, then in done.items())
  assert len(list(work.rglob('result.json'))) == 1 + 1 + 3 * 7

  measured = json.loads((work / 'measurements.json').read_text())
  assert set(measured) == {'random', 'first', 'planted'} and set(measured['first']) == set('123')
  for of in measured.values():
    for values in of.values():
      mean = np.mean([values['bits/books'], values['bits/web']])
      assert values['bits_elsewhere'] == pytest.approx(mean) and 1 < mean < 9
  half = measured['planted']['1']['kept_texts'] / 2
  for arm in ('random', 'first'):
    assert abs(measured[arm]['1']['kept_texts'] - half) <= 1
  verdict = json.loads((work / 'verdict.json').read_text())
  assert verdict['outcome'] in ('reproduced', 'not reproduced', 'inconclusive')
  page_of_paper = tmp_path / 'README.md'
  page_of_paper.write_text(f'a\n{claim_markdown.BEGIN}\n{claim_markdown.END}\nb\n')
  claim_markdown.command(claim_markdown.markdown, [str(work), '--into', str(page_of_paper)])
  shown = page_of_paper.read_text()
  assert verdict['sentence'] in shown and '| bits_elsewhere |' in shown and shown.endswith('b\n')
  text = page.read_text()
  assert 'not_first' in text and 'Where this departs' in text and 'bits_elsewhere' in text
  for seed in (1, 2):
    begun = work / f'seed-{seed}/start'
    log = (work / f'seed-{seed}/random/model/environment.json').parent
    assert (begun / 'checkpoints').is_dir() and log.is_dir()
  lists = [keep_list.read(work / f'seed-{s}/random/list/keep.parquet') for s in (1, 2)]
  assert lists[0].table['keep'] != lists[1].table['keep']


def test_a_run_to_try_it_out_decides_nothing(tmp_path):
  said = []
  texts = write_folder(tmp_path / 'texts')
  pruning_claim.run(
    claim(), tmp_path / 'w', data_path=texts, seeds=[7], scale=0.5, echo=said.append
  )
  assert any('no verdict: 1 seeds at scale 0.5' in line for line in said)
  assert not (tmp_path / 'w/verdict.json').exists()
  with pytest.raises(ConfigError, match='has no verdict.json; run the whole claim first'):
    claim_markdown.markdown(tmp_path / 'w')


@pytest.mark.parametrize(
  ('changes', 'options', 'message'),
  [
    ({}, {'scale': 0.0}, 'scale is 0.0, expected a positive number'),
    ({}, {'data_path': None}, r"--data-path is 'None', expected a folder with pool\*"),
    ({'arms': {}}, {}, "the claim, for criterion 'fewer bits',"),
    ({'settings': ('model.widht=3',)}, {}, 'widht'),
  ],
)
def test_what_cannot_be_is_named_before_anything_is_trained(tmp_path, changes, options, message):
  texts = write_folder(tmp_path / 'texts')
  with pytest.raises(ConfigError, match=message):
    options = {'data_path': texts, **options}
    pruning_claim.run(claim(**changes), tmp_path / 'w', **options, echo=lambda line: None)
  assert not list(tmp_path.rglob('checkpoints'))


def test_a_part_without_text_is_named(tmp_path):
  texts = write_folder(tmp_path / 'texts')
  (texts / 'held_out/empty.jsonl').write_text('{"words": "x"}\n')
  with pytest.raises(ConfigError, match="'empty' of --data-path .* holds no text"):
    pruning_claim.planned(claim(), data_path=texts)
