"""The whole path once for all tests of this room: pictures, tokenizer, codes, image model."""

import types

import pytest

from tests import tiny_runs
from tests.programs import run_verbs


@pytest.fixture(scope='package')
def path(tmp_path_factory):
  """What the verbs left: directories by name, and what they printed."""
  at = tmp_path_factory.mktemp('path')
  out = types.SimpleNamespace(
    pictures=tiny_runs.write_pictures(at / 'pictures'),
    tokenizer=at / 'tokenizer',
    tokens=at / 'tokens',
    lm=at / 'lm',
  )
  both = lambda where: f'--config.data.path={where} --config.eval_data.path={where}'
  config = tiny_runs.__file__
  out.printed = run_verbs(
    f'train --config {config}:tokenizer --workdir {out.tokenizer} {both(out.pictures)}',
    *(
      f'tokenize --run {out.tokenizer} --split {split} --batch 8 --output {out.tokens}/{split}'
      for split in ('train', 'test')
    ),
    f'train --config {config}:image_lm --workdir {out.lm} {both(out.tokens)}',
    f'evaluate --run {out.tokenizer} --batch 8',
    f'sample --run {out.lm} --num 4 --guidance 1.5 --guidance-interval 2 --output {at}/samples.png '
    f'--array {at}/samples.npz',
    f'reconstruct --run {out.tokenizer} --num 5 --output {at}/rebuilt.png',
    f'report {out.lm}',
  )
  return out
