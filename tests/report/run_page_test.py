import json
import math

import pytest

from jaxmm.report import run_page


def write_run(directory, lines, **config):
  directory.mkdir(parents=True, exist_ok=True)
  text = ''.join(line if isinstance(line, str) else json.dumps(line) + '\n' for line in lines)
  (directory / 'log.jsonl').write_text(text)
  if config:
    (directory / 'config.json').write_text(json.dumps(config))
  return directory


def test_the_page_shows_losses_evaluations_speed_and_settings(tmp_path):
  lines = [
    {'kind': 'train', 'step': s, 'loss': 3.0 / s, 'terms': {'recon': 1.0 / s}, 'records': [1, 2],
     'unreadable': [7] if s == 2 else [], 'timing': {'steps_per_second': 9.0, 'eta_seconds': None}}
    for s in range(1, 6)
  ]  # fmt: skip
  lines += [{'kind': 'evaluate', 'step': 5, 'held_out/bits': 0.25, 'by_position': [3, 2, 1]}]
  run = write_run(
    tmp_path / 'my run', lines, task='jaxmm.models.lm', steps=100, data={'name': 'text'}
  )
  html = run_page.write_run_page(run).read_text()
  for said in (
    'Run my run', 'lm on text', '5 of 100', '>loss<', 'terms/recon', 'evaluation/held_out/bits',
    '0.25', 'by_position', 'timing/steps_per_second', '1 records could not be read',
    'Configuration',
  ):  # fmt: skip
    assert said in html, said
  assert 'eta_seconds' not in html  # it never had a value
  assert 'Not finite' not in html


def test_log_lines_merge_by_step_and_damage_is_counted(tmp_path):
  run = write_run(tmp_path, [{'step': 1, 'loss': 9}, {'step': 1, 'loss': 2}, {'step': 0, 'loss': 3},
                             '[1]\n', '{"step": 2, "lo'])  # fmt: skip
  log = run_page.read_log(run / 'log.jsonl')
  assert log.columns == {'loss': ([0, 1], [3.0, 2.0])}
  assert (log.lines, log.damaged) == (5, 2)
  assert '2 of 5 lines' in run_page.run_page(run).html()


def test_a_loss_that_is_not_finite_is_named_with_its_step(tmp_path):
  run = write_run(tmp_path, [{'step': 1, 'loss': 1.0}, '{"step": 2, "loss": NaN}\n',
                             {'step': 3, 'loss': None}])  # fmt: skip
  values = run_page.read_log(run / 'log.jsonl').columns['loss'][1]
  assert values[0] == 1 and all(map(math.isnan, values[1:]))
  assert 'loss at step 2' in run_page.run_page(run).html()


@pytest.mark.parametrize(
  'name, kind',
  [
    ('loss', 'training'), ('terms/commitment', 'training'), ('evaluation/bits', 'evaluation'),
    ('eval/psnr', 'evaluation'), ('timing/mfu', 'machine'), ('steps_per_second', 'machine'),
    ('learning_rate/generator', 'schedule'), ('grad_norm', 'schedule'),
    ('norm/generator', 'schedule'),
    ('second', 'training'),
  ],
)  # fmt: skip
def test_fields_are_sorted_by_what_their_names_say(name, kind):
  assert run_page.kind_of(name) == kind


def test_what_is_no_run_is_refused_by_name(tmp_path):
  with pytest.raises(FileNotFoundError, match='not a directory'):
    run_page.run_page(tmp_path / 'absent')
  with pytest.raises(FileNotFoundError, match='neither log.jsonl nor config.json'):
    run_page.run_page(tmp_path)
  write_run(tmp_path, [])
  (tmp_path / 'config.json').write_text('{')
  with pytest.raises(ValueError, match='config.json is not JSON'):
    run_page.run_page(tmp_path)


def test_a_run_that_has_logged_nothing_says_so(tmp_path):
  assert 'nothing was logged yet' in run_page.run_page(write_run(tmp_path, [], steps=3)).html()


def test_a_very_long_log_gives_a_small_page(tmp_path):
  run = write_run(tmp_path, ({'step': s, 'loss': 1.0 + s % 7} for s in range(20_000)))
  assert len(run_page.run_page(run).html()) < 60_000
