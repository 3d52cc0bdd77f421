"""What every verb of `jaxmm curate` does with its options: help, mistakes, what is left behind."""

import argparse
import json
import os
import shlex
import zipfile

import numpy as np
import pytest

from jaxmm import cli
from jaxmm.cli_curate import code, options, quality
from jaxmm.curation import corruptions, keep_list, text_quality
from jaxmm.data import kept
from jaxmm.data.corpus import FORMATS


def verbs() -> dict[str, argparse.ArgumentParser]:
  def inner(parser):
    found = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return found[0].choices

  return inner(inner(cli._parser())['curate'])


VERBS = verbs()


@pytest.fixture
def corpus(tmp_path):
  lines = [{'id': f'd{n}', 'text': f'text number {n} of these, and more words'} for n in range(8)]
  (tmp_path / 'in.jsonl').write_text(''.join(json.dumps(line) + '\n' for line in lines))
  return ['--input', str(tmp_path / 'in.jsonl'), '--id-field', 'id']


def run(*words):
  return cli.main(['curate', *map(str, words)])


@pytest.mark.parametrize('verb', VERBS)
def test_every_option_says_its_default(verb):
  for action in VERBS[verb]._actions:
    assert action.help, action.option_strings
    is_switch = action.nargs == 0
    if action.option_strings and not action.required and not is_switch:
      has = 'default' in action.help or any(
        action in group._group_actions for group in VERBS[verb]._mutually_exclusive_groups
      )
      assert has, f'{verb} {action.option_strings} does not say its default'


@pytest.mark.parametrize('verb', VERBS)
def test_every_verb_has_an_example_that_is_understood(verb):
  example = VERBS[verb].epilog.removeprefix('example:\n')
  for line in example.replace('\\\n', ' ').splitlines():
    words, _ = cli._split_overrides(shlex.split(line))
    assert words[:3] == ['jaxmm', 'curate', verb]
    assert cli._parser().parse_args(words[1:]).method == verb


def test_choices_are_those_of_the_library():
  assert quality.READINGS == text_quality.CHOICES and code.KINDS == corruptions.KINDS
  action = next(a for a in VERBS['minhash']._actions if a.dest == 'format')
  assert tuple(action.choices) == FORMATS


@pytest.mark.parametrize('number', ['0', '-2', 'two'])
def test_no_process_is_refused_before_anything_is_read(corpus, tmp_path, number, capsys):
  with pytest.raises(SystemExit) as stopped:
    run('minhash', *corpus, '--output', tmp_path / 'k.parquet', '--processes', number)
  assert stopped.value.code == 2 and '--processes' in capsys.readouterr().err
  assert os.listdir(tmp_path) == ['in.jsonl']


@pytest.mark.parametrize(
  ('words', 'message'),
  [
    ('minhash --shingle-size 0', 'shingles.size is 0, expected at least 1 (--shingle-size)'),
    ('minhash --threshold 1.5', '(--threshold)'),
    ('long_files --drop-file-share 2', '(--drop-file-share)'),
    ('long_files --max-tokens 9 --tokens nothing', "counter is 'nothing'"),
    ('long_files --max-tokens 9 --tokens nothing', 'package.module:function (--tokens)'),
    ('text_quality --keep 2', 'keep is 2.0, expected a share in (0, 1] (--keep)'),
    ('text_quality --keep 0.5 --rules a', "rules names 'a', expected some of"),
    (
      'd4 --prefer hard --keep 0.9',
      'keep is the share of both steps together (--keep, --dedup-keep)',
    ),
    ('prototypes --prefer hard --keep 0.5 --fit-rows -1', 'at least 0 (--fit-rows)'),
    ('dbp --prefer hard --keep 0.5 --neighbours 0', '(--neighbours)'),
  ],
)
def test_a_mistake_names_the_flag(corpus, tmp_path, words, message, capsys):
  verb, *rest = words.split()
  assert run(verb, *corpus, *rest, '--output', tmp_path / 'k.parquet') == 2
  said = capsys.readouterr().err
  assert said.startswith(f'jaxmm curate {verb}: ') and message in said
  assert os.listdir(tmp_path) == ['in.jsonl']


def test_a_folder_is_refused_before_the_work(corpus, tmp_path, capsys):
  (tmp_path / 'out').mkdir()
  (tmp_path / 'file').write_text('mine')
  before = sorted(os.listdir(tmp_path))
  for name, message in (('out', 'is a folder; name a file'), ('file/k.parquet', 'is a file')):
    assert run('minhash', *corpus, '--output', tmp_path / name) == 2
    assert message in capsys.readouterr().err
  embed = ['embed', '--encoder', 'brought', '--vectors', 'x.npz', *corpus]
  assert run(*embed, '--output', tmp_path / 'file') == 2
  assert 'name a folder' in capsys.readouterr().err
  assert sorted(os.listdir(tmp_path)) == before


def test_what_will_be_replaced_is_said(corpus, tmp_path, capsys):
  output = tmp_path / 'k.parquet'
  message = f'{output} is there already; it is replaced once this is done'
  for expected in (False, True):
    assert run('minhash', *corpus, '--output', output) == 0
    said = capsys.readouterr().out
    assert (message in said) == expected
  for words in (
    ('minhash', '--threshold', '2'),
    ('long_files', '--max-tokens', '5', '--tokens', 'nothing'),
    ('text_quality', '--keep', '2'),
    ('d4', '--prefer', 'hard', '--keep', '0.9'),
    ('embed', '--encoder', 'brought'),
  ):
    assert run(*words, *corpus, '--output', output) == 2
    assert message not in capsys.readouterr().out


def test_what_is_passed_over_is_said(tmp_path, capsys):
  (tmp_path / 'src').mkdir()
  (tmp_path / 'src' / 'a.py').write_text('x = 1\n')
  (tmp_path / 'src' / 'b.md').write_text('text')
  words = ['--input', tmp_path / 'src', '--suffix', '.py', '--output', tmp_path / 'k.parquet']
  assert run('long_files', *words, '--max-tokens', '99') == 0
  assert 'passed over: 1 of another suffix\n' in capsys.readouterr().out
  with zipfile.ZipFile(tmp_path / 't.zip', 'w') as archive:
    archive.writestr('a.txt', 'text')
    archive.writestr('b/c.txt', 'text')
  words = ['--input', tmp_path / 't.zip', '--output', tmp_path / 'k.parquet']
  for verb in (('minhash',), ('long_files', '--max-tokens', '99')):
    assert run(*verb, *words) == 2
    told = capsys.readouterr().err
    assert 'hold no example: 1 files' in told and 'passed over: 2 no pictures in zips' in told


def test_a_folder_of_ones_own_is_no_place_for_embeddings(corpus, tmp_path, capsys):
  np.savez(tmp_path / 'x.npz', id=[f'd{n}' for n in range(8)], x=np.eye(8))
  mine = tmp_path / 'mine'
  mine.mkdir()
  embed = ['embed', '--encoder', 'brought', '--vectors', tmp_path / 'x.npz', *corpus]
  assert run(*embed, '--output', mine) == 0
  assert run(*embed, '--output', mine) == 0  # again
  for name in ('notes.txt', 'work/notes.txt'):
    other = tmp_path / name.replace('/', '-')
    (other / name).parent.mkdir(parents=True)
    (other / name).write_text('mine')
    assert run(*embed, '--output', other) == 2
    assert f'holds other files than embeddings, such as {name!r}' in capsys.readouterr().err
    assert os.listdir(other) == [name.split('/')[0]]


def test_a_share_of_less_than_one_example_is_refused_before_the_work(corpus, tmp_path, capsys):
  np.savez(tmp_path / 'x.npz', id=[f'd{n}' for n in range(8)], x=np.eye(8))
  embed = ['embed', '--encoder', 'brought', '--vectors', tmp_path / 'x.npz', *corpus]
  assert run(*embed, '--output', tmp_path / 'v') == 0
  for verb in ('d4', 'semdedup', 'prototypes', 'dbp'):
    words = ['--prefer', 'hard', '--keep', '0.001', '--vectors', tmp_path / 'v']
    assert run(verb, *words, '--output', tmp_path / 'k.parquet') == 2
    told = capsys.readouterr()
    assert 'keep is 0.001, which of 8 examples with a vector is less than one' in told.err
    assert 'iteration' not in told.out and not (tmp_path / 'k.parquet.work').exists()


def test_work_that_was_done_is_said_and_no_empty_folder_is_left(corpus, tmp_path, capsys):
  path = tmp_path / 'in.jsonl'
  path.write_text(path.read_text() + '{"id": "d3", "text": "again"}\n')
  output = tmp_path / 'k.parquet'
  assert run('minhash', *corpus, '--output', output) == 2
  assert "the id 'd3' comes more than once" in capsys.readouterr().err
  assert not (tmp_path / 'k.parquet.work').exists()
  embed = ['embed', '--encoder', 'brought', '--vectors', path, '--output', tmp_path / 'v']
  np.savez(tmp_path / 'x.npz', id=['d0'], x=np.eye(1))
  embed[4] = tmp_path / 'x.npz'
  assert run(*embed, *corpus) == 2
  said = capsys.readouterr().err
  assert f"the id 'd3' comes more than once ({path}:4 and {path}:9); expected" in said
  assert not (tmp_path / 'v').exists()
  vectors = ['--vectors', tmp_path / 'nowhere', '--output', tmp_path / 'd.parquet']
  assert run('d4', '--prefer', 'hard', '--keep', '0.5', *vectors) == 2
  assert not (tmp_path / 'd.parquet.work').exists()


def test_a_list_that_keeps_nothing_is_written_and_fails(corpus, tmp_path, capsys):
  words = ['--keep', '0.001', '--output', tmp_path / 'k.parquet']
  assert run('text_quality', *corpus, '--weights', 'uniform', *words) == 1
  said = capsys.readouterr().err
  assert 'nothing is kept: of 8 examples all are dropped' in said
  assert '(--keep 0.001 of 8 is less than one)' in said
  assert keep_list.read(tmp_path / 'k.parquet').reasons() == {'low_quality': 8}


def test_lists_in_parts_go_through_every_verb(corpus, tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(keep_list, 'ROWS_PER_FILE', 3)
  a, b, both = (tmp_path / f'{name}.parquet' for name in ('a', 'b', 'both'))
  assert run('minhash', *corpus, '--output', a) == 0
  assert run('long_files', *corpus, '--drop-file-share', '0.3', '--output', b) == 0
  assert run('combine', a, 'and', b, '--output', both) == 0
  assert run('combine', b, 'and', a, '--output', both) == 0  # and replaced
  assert all(path.is_dir() and len(list(path.iterdir())) == 3 for path in (a, b, both))
  assert run('show', both) == 0
  assert 'joined by and:\n    long_files\n' in capsys.readouterr().out
  assert run('report', both, *corpus) == 0 and (tmp_path / 'both.html').is_file()
  assert run('export', both, *corpus, '--output', tmp_path / 'out.jsonl') == 0
  assert len((tmp_path / 'out.jsonl').read_text().splitlines()) == 5
  ids, keep_N, _ = kept.read_columns(both)  # as training reads it
  assert len(ids) == 8 and keep_N.sum() == 5


def test_folders_are_excluded(tmp_path):
  for name in ('a.py', 'lib/site-packages/b.py', 'tests/data/c.py', 'data/d.py'):
    (tmp_path / 'src' / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'src' / name).write_text('x = 1\n')
  words = ['--input', tmp_path / 'src', '--exclude', 'site-packages', 'tests/data']
  out = tmp_path / 'k.parquet'
  assert run('long_files', *words, '--max-tokens', '99', '--output', out) == 0
  assert keep_list.read(out).table['id'].to_pylist() == ['a.py', 'data/d.py']


def test_a_number_is_refused_below_the_least():
  assert options.at_least(1)('3') == 3
  with pytest.raises(argparse.ArgumentTypeError, match='0, expected 1 or more'):
    options.at_least(1)('0')
