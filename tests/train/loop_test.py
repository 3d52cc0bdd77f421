"""A run ends the same whether it was interrupted or not, and says clearly what it cannot do."""

import json
import os
import random
import signal
import time

import jax
import numpy as np
import pytest

from jaxmm.checkpoint import CheckpointError, Checkpoints, DamagedCheckpointWarning
from jaxmm.config import ConfigError
from jaxmm.tokenizers import vqgan_task
from jaxmm.train import loop
from tests import multiprocess, real_cases, train_cases
from tests.train_cases import CASES, TOY
from tests.train_runs import SCRIPT, assert_same_state, log_of, saved_state, spawn, train


@pytest.fixture(scope='module')
def reference(tmp_path_factory):
  """(workdir, state, echoed lines) of the toy's uninterrupted run on one device."""
  workdir, lines = tmp_path_factory.mktemp('reference'), []
  return workdir, train(TOY, workdir, lines=lines), lines


def test_plan_is_said_first_and_the_directory_is_complete(reference):
  workdir, state, lines = reference
  text = '\n'.join(lines)
  assert lines.index(next(x for x in lines if 'compiling' in x)) > 4
  for part in (
    '20 steps of 16 rows, new, from seed 0',
    'body 304, frozen 5, head 64',
    '1 x cpu in 1 process(es)',
    f'writes: {workdir}',
  ):
    assert part in text, text
  assert {'config.json', 'checkpoints', 'log.jsonl', 'tensorboard'} <= set(os.listdir(workdir))
  assert json.loads((workdir / 'config.json').read_text())['optimizer']['head']['name'] == 'sgd'
  assert int(state.step) == 20 and Checkpoints(workdir / 'checkpoints').steps() == [12, 16, 20]


def test_log_holds_exact_means_records_and_unreadable_rows(reference):
  workdir, _, lines = reference
  records = log_of(workdir)
  kinds = [(x['step'], x['kind']) for x in records]
  train_lines = [(s, 'train') for s in (3, 6, 9, 12, 15, 18, 20)]
  assert kinds == sorted(
    train_lines + [(10, 'evaluate'), (20, 'evaluate')], key=lambda k: (k[0], k[1] != 'train')
  )
  bench = train_cases.Bench(TOY, 'one')
  sums = [bench.take(step).sums['cross_entropy'] for step in range(3)]
  mean = float(sum(s for s, _ in sums) / sum(c for _, c in sums))
  assert records[0]['cross_entropy'] == pytest.approx(mean, rel=1e-6)
  # A metric with a summary of its own is shown as that, over all steps of the line.
  batches = [TOY.make_batches(0, 1).at(step) for step in range(3)]
  seen = {int(i) for b in batches for i in b['ids_BL'][b['weight_BL'] * b['valid_B'][:, None] > 0]}
  assert records[0]['classes_seen'] == len(seen) / 10 and 'class_counts' not in records[0]
  assert records[0]['records'] == bench.batches.record_ids(2).tolist()
  ids = {r for step in range(3) for r in bench.batches.record_ids(step) if r % 37 == 36}
  assert ids and set(records[0]['unreadable']) == {bench.batches.describe(r) for r in ids}
  assert sum('zero weight: toy record 36' in line for line in lines) == 1


def test_evaluation_is_exact_over_a_ragged_tail(reference):
  workdir, state, _ = reference
  line = [x for x in log_of(workdir) if x['kind'] == 'evaluate'][-1]
  assert line['weights'] == 'ema'
  batches = TOY.make_eval(0, 1)
  total, count = np.zeros(4), np.zeros(4)
  for rows in batches.once():
    variables = {'params': state.ema, **state.extra}
    sums = TOY.make_task().evaluations()['held_out'](variables, rows, None)
    total, count = (x + np.asarray(y) for x, y in zip((total, count), sums['nll_by_position']))
  valid = [r for r in range(50) if r % 37 != 36]
  assert count.sum() == sum(r % 4 + 1 for r in valid)  # 50 records in batches of 16: a ragged tail
  np.testing.assert_allclose(line['held_out/nll_by_position'], total / count, rtol=1e-5)
  assert line['held_out/nll'] == pytest.approx(total.sum() / count.sum(), rel=1e-5)


def test_a_finished_run_is_left_alone(reference):
  workdir, state, _ = reference
  before, lines = (workdir / 'log.jsonl').read_text(), []
  assert_same_state(train(TOY, workdir, lines=lines), state)
  assert 'nothing to do' in lines[-1] and (workdir / 'log.jsonl').read_text() == before


def test_stopped_between_checkpoints_and_log_lines_it_goes_on_the_same(reference, tmp_path):
  # 5 and 14 are multiples of neither interval, so the window of the log is half full.
  train(TOY, tmp_path, stop_after=5)
  train(TOY, tmp_path, stop_after=14)
  lines = []
  assert_same_state(train(TOY, tmp_path, lines=lines), reference[1])
  assert any('resumes from step 14' in line for line in lines)
  assert log_of(tmp_path) == log_of(reference[0])


def kill_and_resume(case, workdir, steps, **overrides):
  """Runs until done, killed with SIGKILL when the data of each of `steps` is asked for."""
  for step in steps:
    process = spawn(case.name, workdir, die_at=step, **overrides)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, out
  process = spawn(case.name, workdir, **overrides)
  out, _ = process.communicate(timeout=300)
  assert process.returncode == 0, out
  return out


def test_killed_it_ends_bit_identical(reference, tmp_path):
  out = kill_and_resume(TOY, tmp_path, [14])
  assert 'resumes from step' in out
  assert_same_state(saved_state(TOY, tmp_path), reference[1])
  assert log_of(tmp_path) == log_of(reference[0])


@pytest.mark.slow
@pytest.mark.parametrize('case_name', train_cases.parameters())
def test_killed_ten_times_it_ends_bit_identical(case_name, tmp_path):
  case = CASES[case_name]
  # In a process of its own too: one with eight fake devices shares out the cores, and so adds up
  # within a device, in another way.
  kill_and_resume(case, tmp_path / 'whole', [])
  steps = sorted(random.Random(0).choices(range(case.config['steps']), k=10))
  kill_and_resume(case, tmp_path / 'killed', steps)
  assert_same_state(saved_state(case, tmp_path / 'killed'), saved_state(case, tmp_path / 'whole'))
  assert log_of(tmp_path / 'killed') == log_of(tmp_path / 'whole')


@pytest.mark.slow
def test_killed_while_it_saves_it_ends_bit_identical(tmp_path):
  kill_and_resume(TOY, tmp_path / 'whole', [])
  # From before the first file is there to after the last.
  for step, seconds in ((4, 0.0), (4, 0.01), (8, 0.03), (12, 0.06), (16, 0.12), (20, 0.02)):
    process = spawn('toy', tmp_path / 'killed', die_saving=[step, seconds])
    out, _ = process.communicate(timeout=300)
    assert process.returncode in (-signal.SIGKILL, 0), out
  kill_and_resume(TOY, tmp_path / 'killed', [])
  assert_same_state(saved_state(TOY, tmp_path / 'killed'), saved_state(TOY, tmp_path / 'whole'))
  assert log_of(tmp_path / 'killed') == log_of(tmp_path / 'whole')


@pytest.mark.slow
@pytest.mark.parametrize('case_name', train_cases.parameters())
def test_killed_again_and_again_on_changing_machines_it_ends_the_same(case_name, tmp_path):
  case = CASES[case_name]
  whole = train(case, tmp_path / 'whole')
  machines = [(1, 'dp', {}), (8, 'fsdp', dict(data=2, fsdp=4)), (2, 'dp', {})]
  for number, step in enumerate((5, 9, 14, 18)):
    devices, rules, sizes = machines[number % 3]
    process = spawn(case_name, tmp_path / 'killed', devices, die_at=step, rules=rules, mesh=sizes)
    out, _ = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, out
  # The rest is done by two processes.
  arguments = [case_name, str(tmp_path / 'killed'), json.dumps(dict(rules='fsdp'))]
  multiprocess.run_processes(2, SCRIPT, 1, arguments, timeout=300)
  killed = saved_state(case, tmp_path / 'killed')
  train_cases.assert_same_parameters(case, killed.params, whole.params)
  train_cases.assert_same_parameters(case, killed.ema, whole.ema)
  assert_same_state((killed.step, killed.key), (whole.step, whole.key))
  train_cases.assert_same_vectors(killed.extra, whole.extra, case.rtol)
  train_cases.assert_same_log(log_of(tmp_path / 'killed'), log_of(tmp_path / 'whole'), case.rtol)


@pytest.mark.slow
@pytest.mark.parametrize('case_name', train_cases.parameters())
def test_two_processes_have_the_curves_of_one_device(case_name, tmp_path):
  case, every = CASES[case_name], dict(log=dict(every=1), checkpoint=dict(every=0))
  whole = train(case, tmp_path / 'one', config=every)
  overrides = json.dumps(dict(every, rules='fsdp', mesh=dict(data=2, fsdp=2)))
  arguments = [case_name, str(tmp_path / 'two'), overrides]
  multiprocess.run_processes(2, SCRIPT, 2, arguments, timeout=400)
  one, two = log_of(tmp_path / 'one'), log_of(tmp_path / 'two')
  assert sum(line['kind'] == 'train' for line in one) == 20
  train_cases.assert_same_log(one, two, case.rtol)
  # Statistics of the codebook, as far as there is one.
  extra = saved_state(case, tmp_path / 'two').extra
  train_cases.assert_same_vectors(extra, whole.extra, case.rtol)


@pytest.mark.parametrize('mesh_name', ['tensor'])
def test_resumes_on_another_number_of_devices(reference, tmp_path, mesh_name):
  train(TOY, tmp_path, stop_after=7)
  state = train(TOY, tmp_path, mesh_name)
  assert_same_state(state, reference[1], rtol=1e-5, atol=1e-6)
  train_cases.assert_same_log(log_of(tmp_path), log_of(reference[0]))


def test_two_processes_train_the_same_and_one_goes_on(reference, tmp_path):
  overrides = json.dumps(dict(mesh=dict(data=1, fsdp=2), rules='fsdp'))
  script = SCRIPT.replace('echo=lambda', 'stop_after=13, echo=lambda')
  multiprocess.run_processes(2, script, 1, ['toy', str(tmp_path), overrides], timeout=300)
  assert Checkpoints(tmp_path / 'checkpoints').steps()[-1] == 13
  state = train(TOY, tmp_path)
  assert_same_state(state, reference[1], rtol=1e-5, atol=1e-6)
  train_cases.assert_same_log(log_of(tmp_path), log_of(reference[0]))


def test_damaged_newest_checkpoint_is_skipped(reference, tmp_path):
  train(TOY, tmp_path, stop_after=9)
  train(TOY, tmp_path, stop_after=12)
  files = [p for p in (tmp_path / 'checkpoints' / '12').rglob('*') if p.is_file()]
  largest = max(files, key=lambda p: p.stat().st_size)
  largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
  lines = []
  with pytest.warns(DamagedCheckpointWarning, match='checkpoints/12 is damaged'):
    state = train(TOY, tmp_path, lines=lines)
  assert any('resumes from step 9' in line for line in lines)
  assert_same_state(state, reference[1])
  assert log_of(tmp_path) == log_of(reference[0])


@pytest.mark.parametrize('signum', [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_leaves_cleanly(signum, reference, tmp_path):
  handlers = [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)]
  batches = TOY.make_batches(0, 1)
  from_step = batches.from_step

  def signalling(step):
    for number, rows in enumerate(from_step(step), step):
      if number == 5:
        os.kill(os.getpid(), signum)
      yield rows

  batches.from_step = signalling
  with pytest.raises(loop.Stopped) as stopped:
    train(TOY, tmp_path, batches=batches)
  assert stopped.value.code == 128 + signum and stopped.value.step < 10
  assert [signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT)] == handlers
  assert Checkpoints(tmp_path / 'checkpoints').steps()[-1] == stopped.value.step
  assert_same_state(train(TOY, tmp_path), reference[1])
  assert log_of(tmp_path) == log_of(reference[0])


def test_data_that_grew_is_told_before_the_order_changes(reference, tmp_path):
  train(TOY, tmp_path, stop_after=9)
  grown = TOY.make_batches(0, 1)
  grown.num_records = 102
  with pytest.raises(ConfigError, match='has 102 records, but had 101 when this run was saved'):
    train(TOY, tmp_path, batches=grown)
  pruned = TOY.make_batches(0, 1)
  pruned.kept_fingerprint = '101-ab'
  with pytest.raises(ConfigError, match=r'other records \(101-ab\) than .* \(there was none\)'):
    train(TOY, tmp_path, batches=pruned)
  train(TOY, tmp_path, batches=grown, stop_after=10, accept_config_change=True)
  assert Checkpoints(tmp_path / 'checkpoints').steps()[-1] == 10


class HeldOutThat:
  """The toy's held-out rows; before the third batch of the pass number `at` something happens."""

  def __init__(self, happens, at):
    self._toy, self._happens, self._passes, self._at = TOY.make_eval(0, 1), happens, 0, at

  def once(self):
    self._passes += 1
    for number, rows in enumerate(self._toy.once()):
      if number == 2 and self._passes == self._at:
        self._happens()
      yield rows


def fails():
  raise ConfigError('a label is out of range')


def test_a_failing_evaluation_costs_no_step(reference, tmp_path):
  # The first pass looks at one batch; the third is the evaluation after the last step.
  with pytest.raises(ConfigError, match='^in eval_data: a label is out of range'):
    train(TOY, tmp_path, held_out=HeldOutThat(fails, at=3))
  assert Checkpoints(tmp_path / 'checkpoints').steps()[-1] == 20
  assert [x['step'] for x in log_of(tmp_path) if x['kind'] == 'evaluate'] == [10]
  lines = []
  state = train(TOY, tmp_path, lines=lines)
  assert any('evaluates step 20 first' in line for line in lines)
  assert not any('compiling the step' in line for line in lines)
  assert_same_state(state, reference[1])
  assert log_of(tmp_path) == log_of(reference[0])


@pytest.mark.parametrize('at, step', [(2, 10), (3, 20)])
def test_a_signal_does_not_wait_for_an_evaluation(at, step, reference, tmp_path):
  told = lambda: os.kill(os.getpid(), signal.SIGTERM)
  with pytest.raises(loop.Stopped) as stopped:
    train(TOY, tmp_path, held_out=HeldOutThat(told, at))
  assert stopped.value.step == step == Checkpoints(tmp_path / 'checkpoints').steps()[-1]
  assert not any(x['step'] == step and x['kind'] == 'evaluate' for x in log_of(tmp_path))
  assert_same_state(train(TOY, tmp_path), reference[1])
  assert log_of(tmp_path) == log_of(reference[0])


@pytest.mark.slow
def test_a_process_told_to_stop_exits_with_128_plus_the_signal(tmp_path):
  process = spawn('toy', tmp_path, steps=100_000, checkpoint=dict(every=0))
  while 'first step' not in process.stdout.readline():
    assert process.poll() is None
  time.sleep(0.5)
  process.send_signal(signal.SIGTERM)
  out, _ = process.communicate(timeout=60)
  assert process.returncode == 143, out
  assert Checkpoints(tmp_path / 'checkpoints').steps()


@pytest.mark.slow
def test_processes_agree_on_the_step_at_which_they_stop(tmp_path):
  # Only process 1 is told.
  script = SCRIPT.replace(
    "print('ready'",
    'import threading\n'
    'if jax.process_index() == 1:\n'
    '  threading.Timer(25, os.kill, (os.getpid(), signal.SIGTERM)).start()\n'
    "print('ready'",
  ).replace('state = loop.train(', 'try:\n loop.train(')
  script += "except loop.Stopped as stopped:\n  print('stopped at', stopped.step)\n"
  overrides = json.dumps(dict(steps=10**6, checkpoint=dict(every=0), evaluate=dict(every=0)))
  outs = multiprocess.run_processes(2, script, 1, ['toy', str(tmp_path), overrides], timeout=300)
  steps = {line for out in outs for line in out.splitlines() if line.startswith('stopped at')}
  assert len(steps) == 1
  assert steps == {f'stopped at {Checkpoints(tmp_path / "checkpoints").steps()[-1]}'}


def test_a_loss_that_is_not_finite_stops_with_what_to_do(tmp_path):
  batches = TOY.make_batches(0, 1)
  at, from_step = batches.at, batches.from_step
  bad = lambda step: at(step) | {'x_BLD': np.full((16, 4, 8), np.inf, np.float32)}
  batches.from_step = lambda step: (
    bad(n) if n == 6 else rows for n, rows in enumerate(from_step(step), step)
  )
  with pytest.raises(loop.NonFiniteError) as error:
    train(TOY, tmp_path, batches=batches)
  assert error.value.step == 6 and error.value.position == 6
  assert error.value.records == batches.record_ids(6).tolist()
  for part in (
    'step 6 is not finite (',
    'objective',
    str(batches.record_ids(6).tolist()),
    'checkpoints: step 4.',
    'lower learning rate',
    'skip_batches=(6,)',
    '--init-from',
  ):
    assert part in str(error.value), str(error.value)
  assert Checkpoints(tmp_path / 'checkpoints').steps() == [4]
  assert int(error.value.state.step) == 6
  # As the message says, the run goes on from step 4 without the batch.
  state = train(TOY, tmp_path, batches=batches, config=dict(skip_batches=(6,)), stop_after=8)
  assert int(state.step) == 8
  steps = {x['step']: x for x in log_of(tmp_path) if x['kind'] == 'train'}
  assert steps[6]['position'] == 5
  train(TOY, tmp_path, batches=batches, config=dict(skip_batches=(6,)), stop_after=9)
  assert {x['step']: x for x in log_of(tmp_path)}[9]['position'] == 9


def test_a_resumed_run_with_another_config_is_refused(tmp_path):
  train(TOY, tmp_path, stop_after=2)
  other = dict(
    seed=1,
    steps=30,
    log=dict(every=5),
    optimizer={
      **TOY.config['optimizer'],
      'head': dict(name='sgd', momentum=0.9, learning_rate=1e-2),
    },
  )
  with pytest.raises(ConfigError) as error:
    train(TOY, tmp_path, config=other, stop_after=3)
  for part in (
    'seed: 0 -> 1',
    'optimizer.head.learning_rate: 0.001 -> 0.01',
    'steps: 20 -> 30',  # which the cosine follows
    '--accept-config-change',
  ):
    assert part in str(error.value)
  assert 'log.every' not in str(error.value)
  lines, other = [], dict(seed=1, log=dict(every=5))
  state = train(TOY, tmp_path, config=other, stop_after=3, accept_config_change=True, lines=lines)
  assert int(state.step) == 3
  assert 'setting changed: seed: 0 -> 1' in lines and 'setting changed: log.every: 3 -> 5' in lines
  assert json.loads((tmp_path / 'config.json').read_text())['seed'] == 1


def test_init_from_takes_parameters_and_statistics_and_nothing_else(reference, tmp_path):
  workdir, state, _ = reference
  lines = []
  ours = train(TOY, tmp_path, init_from=str(workdir), stop_after=0, lines=lines)
  assert_same_state((ours.params, ours.ema), (state.params, state.params))
  assert_same_state(ours.extra, state.extra)
  assert int(ours.step) == 0 and any(f'new, from {workdir}' in line for line in lines)
  assert all(np.all(np.asarray(x) == 0) for x in jax.tree.leaves(ours.opt_state))


def test_init_from_a_run_with_some_groups_starts_the_others_new(tmp_path):
  case, lines = CASES['tokenizer_ema'], []
  mesh, rules, _ = train_cases.make_mesh('dp')
  blueprint = train_cases.plan(case, mesh, rules)
  draw = lambda x: np.random.default_rng(x.size).integers(0, 9, x.shape).astype(x.dtype)
  state = jax.tree.map(lambda x: jax.device_put(draw(x), x.sharding), blueprint.abstract)
  before = jax.device_get((state.params, state.opt_state))
  source = {'vqgan': jax.tree.map(lambda x: x + 1.0, before[0]['vqgan'])}
  extra = {'codebook_stats': {'unused_K': np.ones(real_cases.CODES, np.int32)}}  # as of 'gradient'
  some = Checkpoints(tmp_path / 'some' / 'checkpoints')
  some.save(3, {'params': source, 'extra': extra}, {}, wait=True)

  # A leaf that is missing or misshapen within a group that is there is another model's.
  for name, bias in (('less', {}), ('other', {'bias': np.ones(3, np.float32)})):
    conv = {'kernel': source['vqgan']['quant_conv']['kernel']} | bias
    params = {'vqgan': {**source['vqgan'], 'quant_conv': conv}}
    Checkpoints(tmp_path / name).save(1, {'params': params}, {}, wait=True)
    with pytest.raises(CheckpointError, match='params/vqgan/quant_conv/bias'):
      loop._initialised_from(str(tmp_path / name), state, blueprint, print)
  Checkpoints(tmp_path / 'none').save(1, {'params': {'x': np.ones(1, np.float32)}}, {}, wait=True)
  with pytest.raises(CheckpointError, match='it has no params/'):
    loop._initialised_from(str(tmp_path / 'none'), state, blueprint, print)

  ours = loop._initialised_from(str(tmp_path / 'some'), state, blueprint, lines.append)
  others = {'discriminator', 'regularizer'}
  assert_same_state(ours.params, source | {name: before[0][name] for name in others})
  assert_same_state(ours.opt_state, before[1])
  codebook = source['vqgan']['quantizer']['codebook']
  np.testing.assert_array_equal(ours.extra['codebook_stats']['sum_KD'], codebook)
  assert jax.tree.map(lambda x: x.sharding, ours) == blueprint.shardings
  for name in (*others, 'codebook_stats'):
    assert f'{tmp_path}/some has no {name} (or not all of it); it starts new' in lines
  assert lines[-1] == f'starts from step 3 of {tmp_path}/some with vqgan'


def test_constants_that_cannot_be_read_are_refused_before_anything_is_written(tmp_path):
  model = {'image_size': 8, 'perceptual': {'name': 'lpips', 'weights': 'gone.npz'}}
  task = vqgan_task.make_task(model | {'vqgan': real_cases.NETWORK})
  with pytest.raises(ConfigError, match="'gone.npz', but there is no such file"):
    train(TOY, tmp_path / 'run', task=task)
  assert not (tmp_path / 'run').exists()


@pytest.mark.parametrize(
  'config, message',
  [
    (dict(batch=32), 'batch is 32, but the data gives 16 rows'),
    (dict(mesh=dict(data=3)), 'mesh .*a multiple of 3 devices'),
    (dict(optimizer=dict(body={})), "label 'head', but the config has no optimizer.head"),
    (dict(optimizer=dict(body=dict(lr=1))), 'optimizer.body has no key'),
    (dict(evaluate=dict(evry=1)), "evaluate has no key 'evry'; did you mean every"),
    (dict(rules='ddp'), "rules is 'ddp'"),
    (dict(microbatches=3), 'batch is 16, but 8 device groups.*3 microbatches.*use 24'),
  ],
)
def test_a_config_that_cannot_work_is_refused_before_anything_is_compiled(
  config, message, tmp_path
):
  lines = []
  with pytest.raises(ConfigError, match=message):
    loop.train(
      {**TOY.config, **config},
      TOY.make_task(),
      TOY.make_batches(0, 1),
      tmp_path,
      echo=lines.append,
    )
  assert not any('compiling' in line for line in lines)


def test_a_workdir_that_cannot_be_written_is_refused_first(tmp_path):
  (tmp_path / 'file').write_text('')
  with pytest.raises(
    ConfigError, match='workdir is .*file/run.*cannot be written.*Not a directory'
  ):
    train(TOY, tmp_path / 'file' / 'run')


def test_profile_traces_a_window(tmp_path):
  train(TOY, tmp_path, stop_after=4, profile=(1, 2))
  assert list((tmp_path / 'profile').rglob('*.xplane.pb'))
