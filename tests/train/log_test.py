"""The log of a run that was cut off and resumed is the log of one that was not."""

import io
import json
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tensorboardX.proto import event_pb2
from tensorboardX.record_writer import masked_crc32c

from jaxmm.train import log
from jaxmm.train.log import RunLog


def write_steps(directory, steps, resume_step=0):
  with RunLog(directory, resume_step, stream=io.StringIO()) as run:
    for step in steps:
      run.write('train', step, {'loss': 1 / step, 'ids': [step, step + 1]}, {'mfu': 0.5})


def deterministic(directory):
  return [{k: v for k, v in x.items() if k != 'time'} for x in log.read(directory / 'log.jsonl')]


def board_scalars(directory):
  """(tag, step, value) as TensorBoard shows them: purged where a run restarted."""
  out = []
  for file in sorted((directory / 'tensorboard').iterdir()):
    content = file.read_bytes()
    while content:
      size = int.from_bytes(content[:8], 'little')
      record = content[12 : 12 + size]
      assert masked_crc32c(record) == int.from_bytes(content[12 + size : 16 + size], 'little')
      event = event_pb2.Event.FromString(record)
      if event.session_log.status == event_pb2.SessionLog.START:
        out = [x for x in out if x[1] < event.step]
      out += [(v.tag, event.step, v.simple_value) for v in event.summary.value]
      content = content[16 + size :]
  return out


def test_a_resumed_log_equals_an_uninterrupted_one(tmp_path):
  write_steps(tmp_path / 'whole', range(1, 7))
  write_steps(tmp_path / 'cut', range(1, 6))
  with open(tmp_path / 'cut' / 'log.jsonl', 'a') as file:
    file.write('{"step": 6, "loss"')  # killed while it wrote
  write_steps(tmp_path / 'cut', range(4, 7), resume_step=3)
  assert deterministic(tmp_path / 'cut') == deterministic(tmp_path / 'whole')
  assert [x['step'] for x in log.read(tmp_path / 'cut' / 'log.jsonl')] == [1, 2, 3, 4, 5, 6]
  assert board_scalars(tmp_path / 'cut') == board_scalars(tmp_path / 'whole')
  assert ('train/loss', 4, 0.25) in board_scalars(tmp_path / 'whole')


def test_a_new_run_drops_the_log_of_one_that_saved_nothing(tmp_path):
  write_steps(tmp_path, [1, 2])
  write_steps(tmp_path, [1])
  assert [x['step'] for x in log.read(tmp_path / 'log.jsonl')] == [1]


def test_an_unreadable_line_in_the_middle_is_told(tmp_path):
  (tmp_path / 'log.jsonl').write_text('{"step": 1}\n\x00\x00\n{"step": 2}\n')
  with pytest.warns(UserWarning, match=r'lines \[2\] are unreadable'):
    log.cut(tmp_path / 'log.jsonl', 5)
  assert log.read(tmp_path / 'log.jsonl') == [{'step': 1}, {'step': 2}]


def test_values_become_valid_json(tmp_path):
  with RunLog(tmp_path, stream=io.StringIO()) as run:
    values = {
      'loss': jnp.float32(math.nan),
      'low': -math.inf,
      'codes': np.array([1, math.inf], np.float32),
      'half': jnp.bfloat16(0.5),
      'n': np.int64(3),
      'nested': {'x': (1, None, True)},
      'weights': 'ema',
    }
    run.write('evaluate', 1, values)
  text = (tmp_path / 'log.jsonl').read_text()
  line = json.loads(text, parse_constant=lambda name: pytest.fail(f'{name} is not JSON'))
  assert line.pop('time').keys() == {'at'}
  assert line == {
    'step': 1,
    'kind': 'evaluate',
    'loss': 'nan',
    'low': '-inf',
    'codes': [1.0, 'inf'],
    'half': 0.5,
    'n': 3,
    'nested': {'x': [1, None, True]},
    'weights': 'ema',
  }
  tags = {tag for tag, _, _ in board_scalars(tmp_path)}
  assert tags == {'evaluate/loss', 'evaluate/low', 'evaluate/half', 'evaluate/n'}


def test_the_fields_of_every_line_cannot_be_taken(tmp_path):
  with RunLog(tmp_path, stream=io.StringIO()) as run, pytest.raises(ValueError, match="'time'"):
    run.write('train', 1, {'time': 3.0})


def test_only_the_first_process_writes(tmp_path):
  with RunLog(tmp_path / 'run', process_index=1, stream=io.StringIO()) as run:
    run.write('train', 1, {'loss': 1.0})
    run.message('hello')
    run.flush()
  assert not (tmp_path / 'run').exists()


TIMING = {
  'steps_per_second': 12.34,
  'examples_per_second': 98.7,
  'eta_seconds': 3669.0,
  'mfu': 0.412,
}


def test_progress_is_periodic_lines_off_a_terminal_and_one_line_on_it(tmp_path):
  lines = []
  with RunLog(tmp_path / 'a', echo=lines.append, steps=9, stream=io.StringIO()) as run:
    for step in range(1, 10):
      run.write('train', step, {'loss': 0.5, 'position': step, 'records': [1]}, TIMING)
  speed = '12.3 steps/s | 98.7 examples/s | ETA 1:01:09 | MFU 41.2% | loss 0.5'
  assert lines == [f'step 1/9 | {speed}', f'step 9/9 | {speed}']  # the first and the last

  terminal = io.StringIO()
  terminal.isatty = lambda: True
  with RunLog(tmp_path / 'b', stream=terminal) as run:
    run.write('train', 1, {'loss': 0.5})
    run.message('saved')
    run.write('train', 2, {'loss': 0.25})
  clear = '\r\x1b[K'
  assert terminal.getvalue() == (
    f'{clear}step 1 | loss 0.5{clear}saved\n{clear}step 2 | loss 0.25\n'
  )


def test_peak_flops():
  def device(kind):
    return types.SimpleNamespace(platform='accelerator', device_kind=kind)

  for kind, peak in [
    ('TPU v4', 275e12),
    ('TPU v5 lite', 197e12),
    ('TPU v5p', 459e12),
    ('TPU v6 lite', 918e12),
    ('NVIDIA H100 80GB HBM3', 989.4e12),
    ('NVIDIA H100 PCIe', 756e12),
    ('NVIDIA H200', 989.4e12),
    ('NVIDIA A100-SXM4-80GB', 312e12),
    ('NVIDIA L4', 121e12),
    ('NVIDIA L40S', 362e12),
    ('Something new', None),
  ]:
    assert log.peak_flops(device(kind)) == peak, kind
  cpus = jax.devices('cpu')
  measured = [log.peak_flops(d) for d in cpus]
  # The devices share the cores; a machine does between a giga- and a thousand teraflops.
  assert len(set(measured)) == 1 and 1e9 < sum(measured) < 1e15
