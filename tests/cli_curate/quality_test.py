"""The verbs of text quality, from a corpus and a model trained on the spot to the kept."""

import argparse
import json

import pytest

from jaxmm import cli
from jaxmm.cli_curate import quality
from jaxmm.config import ConfigError
from jaxmm.curation import keep_list, text_quality

TEXTS = ['The cat sat on the mat, and that was the end of it.', 'qq{{ 7#\nZZYZX', 'a\nb', ' ']


def curate(*words):
  parser = argparse.ArgumentParser()
  methods = parser.add_subparsers(dest='method', required=True)
  quality.add(methods, cli._verb)
  options = parser.parse_args([str(word) for word in words])
  return options.run(options)


@pytest.fixture
def corpus(tmp_path):
  path = tmp_path / 'in.jsonl'
  rows = [json.dumps({'id': f'doc{i}', 'text': text}) for i, text in enumerate(TEXTS)]
  path.write_text('\n'.join(rows) + '\n')
  return ['--input', path, '--id-field', 'id', '--output']


def test_the_choices_are_those_of_the_method():
  assert quality.READINGS == text_quality.CHOICES
  defaults = text_quality.QualityConfig()
  assert all(getattr(defaults, name) == c[0] for name, c in text_quality.CHOICES.items())


def test_the_best_are_kept(corpus, tmp_path, capsys):
  out = tmp_path / 'keep.parquet'
  assert curate('text_quality', *corpus, out, '--keep', 0.3, '--processes', 1) == 0
  keep = keep_list.read(out)
  reasons = [row['reason'] for row in keep.table.to_pylist()]
  assert reasons == ['', 'low_quality', 'low_quality', 'empty']
  said = capsys.readouterr().out
  assert f'{out}: 1 of 4 examples kept (text_quality)' in said and 'scores from 1\n' in said


def test_weights_and_readings_are_given(corpus, tmp_path):
  given = tmp_path / 'w.json'
  given.write_text('{"no_all_caps": 1, "stop_word_match_2": 0.5, "has_noun": 1}')
  out = tmp_path / 'keep.parquet'
  common = ['text_quality', *corpus, out, '--keep', 1, '--weights', given, '--processes', 1]
  with pytest.raises(ConfigError, match='has_noun cannot be judged without a parser'):
    curate(*common)
  assert not out.exists()
  readings = ['--tokens', 'bytes', '--unit', 'sentences', '--digit-punctuation-of', 'characters']
  assert curate(*common, '--rules', 'no_all_caps', 'stop_word_match_2', *readings) == 0
  parameters = keep_list.read(out).parameters
  assert parameters['weights'] == {'no_all_caps': 1, 'stop_word_match_2': 0.5}
  assert parameters['tokens'] == 'bytes' and parameters['unit'] == 'sentences'
  with pytest.raises(ConfigError, match='terminal_punctuation have no weight'):
    curate(*common, '--rules', 'terminal_punctuation')


@pytest.mark.slow
def test_weights_are_fitted_with_a_model_trained_on_the_spot(corpus, tmp_path, capsys):
  (tmp_path / 'a.txt').write_text((TEXTS[0] + '\n') * 60)
  settings = {
    'data.path': tmp_path / 'a.txt', 'data.text.length': 32, 'model.size': 'micro', 'steps': 30,
    'batch': 8, 'data.test_fraction': 0.0, 'eval_data.split': 'train', 'checkpoint.every': 30,
  }  # fmt: skip
  flags = [f'--config.{name}={value}' for name, value in settings.items()]
  run = ['--config', 'experiments/lm/mini.py', *flags, '--workdir', str(tmp_path / 'lm')]
  assert cli.main(['train', *run]) == 0
  common = ['text_quality_weights', *corpus, tmp_path / 'w.json', '--model', tmp_path / 'lm']
  assert curate(*common) == 0
  assert 'weights of 10 rules from 4 documents' in capsys.readouterr().out
  weights = text_quality.read_weights(tmp_path / 'w.json')
  assert weights.of['no_all_caps'] > 0 and weights.of['no_special_characters'] > 0
  out = tmp_path / 'keep.parquet'
  words = ['--keep', 0.3, '--processes', 1, '--weights', tmp_path / 'w.json']
  assert curate('text_quality', *corpus, out, *words) == 0
  assert keep_list.read(out).parameters['weights'] == weights.of
  with pytest.raises(ConfigError, match='has_noun cannot be judged without a parser'):
    curate(*common, '--rules', 'has_noun')
