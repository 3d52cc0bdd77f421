import json

import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.studies import stages
from jaxmm.studies.stages import Budget, Stage, Study


class Chain:
  """a -> b -> c and, apart, d; counts what is run."""

  def __init__(self, directory, *, fail=None, **settings):
    self.ran, self.lines, self.fail = [], [], fail
    self.study = Study(directory, self.lines.append)
    for name, after in (('a', ()), ('b', ('a',)), ('c/deep', ('b',)), ('d', ())):
      values = {'steps': settings.get(name[0], 1)}
      self.study.add(Stage(name, self.runner(name), values, after))

  def runner(self, name):
    def run(path):
      self.ran.append(name)
      (path / 'work').write_text((path / 'work').read_text() + 'x' if (path / 'work').exists()
                                 else 'x')  # fmt: skip
      if name == self.fail:
        raise KeyboardInterrupt
      return {'name': name, 'value': np.float32(0.5), 'values': np.arange(2)}

    return run

  def run(self):
    return self.study.run()


def test_stages_run_once_in_order_and_hand_over_results(tmp_path):
  first = Chain(tmp_path)
  results = first.run()
  assert first.ran == ['a', 'b', 'c/deep', 'd']
  assert results['c/deep'] == {'name': 'c/deep', 'value': 0.5, 'values': [0, 1]}
  again = Chain(tmp_path)
  assert not again.study.stages['a'].after and again.study.is_done('a')
  assert again.run() == results and again.ran == []
  assert again.lines[0].endswith('4 stages, 4 of them done')
  assert all('done before' in line for line in again.lines[1:])


def test_an_interrupted_study_goes_on_at_the_unfinished_stage_in_its_directory(tmp_path):
  broken = Chain(tmp_path, fail='b')
  with pytest.raises(KeyboardInterrupt) as caught:
    broken.run()
  assert "in stage 'b'" in caught.value.__notes__[0]
  with pytest.raises(ConfigError, match="stage 'b' .* is not done"):
    broken.study.result('b')
  resumed = Chain(tmp_path)
  resumed.run()
  assert resumed.ran == ['b', 'c/deep', 'd']
  assert (tmp_path / 'b/work').read_text() == 'xx'  # the same directory, not a fresh one


def test_a_changed_setting_runs_anew_what_depends_on_it_and_nothing_else(tmp_path):
  Chain(tmp_path).run()
  old = json.loads((tmp_path / 'b/inputs.json').read_text())['digest']
  changed = Chain(tmp_path, b=2)
  with pytest.raises(ConfigError):
    changed.study.result('c/deep')  # its own settings are the same, its parent is not
  changed.run()
  assert changed.ran == ['b', 'c/deep']
  assert (tmp_path / 'b/work').read_text() == 'x'
  kept = [p.name for p in tmp_path.iterdir() if '.old-' in p.name]
  assert kept == [f'b.old-{old[:8]}']
  assert json.loads((tmp_path / kept[0] / 'result.json').read_text())['result']
  assert any('settings.steps: 1 -> 2' in line for line in changed.lines)


def test_a_damaged_result_is_not_taken_for_done(tmp_path):
  Chain(tmp_path).run()
  (tmp_path / 'd/result.json').write_text('{"digest": "')
  again = Chain(tmp_path)
  again.run()
  assert again.ran == ['d']


def test_progress_lines_count_and_estimate(tmp_path):
  chain = Chain(tmp_path)
  chain.run()
  plan, *lines = chain.lines
  assert plan == f'{tmp_path}: 4 stages, 0 of them done; to do:\n  a\n  b\n  c/deep\n  d'
  assert lines[0].startswith('[1/4] a ...') and 'left' not in lines[0]
  assert lines[1].startswith('[1/4] a: done in')
  assert 'about' in lines[2] and 'left' in lines[2]


def test_stages_whose_settings_come_out_of_others_are_counted_from_the_start(tmp_path):
  titled = lambda name, title='', cost=1.0: Stage(name, lambda p: {}, {}, title=title, cost=cost)
  lines = []
  study = Study(tmp_path, lines.append)
  study.add(titled('search'))
  later = {name: titled(name, f'seed 1: {name}', 2.0) for name in ('a', 'b')}
  study.foresee(later)
  study.run()
  assert study.stages.keys() == {'search'}
  assert lines[0].endswith('to do:\n  search\n  seed 1: a, b')
  assert [line.split()[0] for line in lines[1:]] == ['[1/3]'] * 2
  assert study._time_left({'search': 10.0}) == ', about 40 s left'
  for stage in later.values():
    study.add(stage)
  study.run()  # says neither the plan nor what it has done itself once more
  assert [line.split()[0] for line in lines[3:]] == ['[2/3]'] * 2 + ['[3/3]'] * 2


def test_the_time_left_follows_the_cost(tmp_path):
  study = Study(tmp_path)
  for name, cost in (('small', 1.0), ('large', 9.0)):
    study.add(Stage(name, lambda p: {}, {}, cost=cost))
  assert study._time_left({'small': 20.0}) == ', about 3 min 00 s left'


def test_two_processes_do_not_share_a_study(tmp_path):
  chain = Chain(tmp_path)
  with chain.study._lock(), pytest.raises(ConfigError, match='another process'):
    Chain(tmp_path).run()
  assert Chain(tmp_path).run()


@pytest.mark.parametrize(
  'stage, said',
  [
    (Stage('a', dict, {}), "called 'a'"),
    (Stage('../x', dict, {}), 'within the study'),
    (Stage('a/x', dict, {}), 'within one another'),
    (Stage('c', dict, {}), 'within one another'),
    (Stage('x', dict, {}, after=('cc/deep',)), 'c/deep'),
    (Stage('x', dict, {'f': np.arange(2)}), 'plain values'),
  ],
)
def test_what_cannot_be_a_stage_is_refused(tmp_path, stage, said):
  with pytest.raises(ConfigError, match=said):
    Chain(tmp_path).study.add(stage)


def test_an_unwritable_directory_is_a_clear_error(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(ConfigError, match='cannot be written'):
    Study(tmp_path / 'file/below').run()


def test_equal_budgets_pass_and_others_are_refused_with_the_table():
  arms = [Budget('base', 'one', 105, 1e9), Budget('crt', 'one', 100, 1.05e9)]
  both = [Budget(arm, 'two', 10, 1e9) for arm in ('base', 'crt')]
  assert stages.check_equal_budgets(arms + both) == {'base': 1.15e11, 'crt': 1.15e11}
  with pytest.raises(ConfigError, match=r'(?s)differ by 5.00%.*\nbase +one +100 +1e9 +1e11\n'):
    stages.check_equal_budgets([Budget('base', 'one', 100, 1e9), arms[1]])
  with pytest.raises(ConfigError, match='not known: base/one'):
    stages.check_equal_budgets([Budget('base', 'one', 100, 0.0), arms[1]])


def test_pairs_complete_seed_by_seed():
  order = stages.paired([3, 1], ['base', 'crt'])
  assert order == [(3, 'base'), (3, 'crt'), (1, 'base'), (1, 'crt')]
  with pytest.raises(ConfigError, match='only once'):
    stages.paired([1, 1], ['base'])
