"""Steps compiled for TPUs that are not here: what their programs hold, on three generations."""

import importlib.util
import json

import pytest

from jaxmm import config as configs
from jaxmm.pods import calibration, plan, text, topology
from jaxmm.studies import pod_plan, run
from jaxmm.train.run_config import RunConfig

pytestmark = [
  pytest.mark.slow,
  pytest.mark.skipif(
    importlib.util.find_spec('libtpu') is None, reason='needs libtpu (the extra pods)'
  ),
]
# Wide enough that weights are worth gathering, shallow enough to compile in half a minute.
MODEL = dict(
  depth=3, width=1024, num_heads=8, num_codes=16_384, num_classes=10, grid=16, dtype='bfloat16',
  remat='block', attention_backend='auto',
)  # fmt: skip
SETTINGS = dict(
  task='jaxmm.models.image_lm', steps=1000, batch=64, model=MODEL, rules='fsdp',
  mesh=dict(data=1, fsdp=-1, tensor=1),
  optimizer=dict(model=dict(name='adamw', learning_rate=1e-4, clip=1.0)),
)  # fmt: skip


def planned(name, slices=1, **changed):
  settings = SETTINGS | changed
  config = configs.from_mapping(RunConfig, settings, 'the config')
  return plan.planned(config, run.make_task(settings), topology.described(name, slices))


@pytest.mark.parametrize('name', ['v5e:4x4', 'v5p:2x2x4', 'v6e:4x4'])
def test_weights_are_gathered_once_a_forward_and_once_a_backward(name):
  made = planned(name)
  assert made.memory.fits
  assert made.offenders == ()
  moved = {kind: numbers for (kind, axes), numbers in made.traffic_by_axis().items()}
  weights = 2 * made.parameters  # bytes in bfloat16
  # The embedding's rows are not gathered as a weight is, the rest at most twice.
  assert 1.0 < moved['all-gather']['bytes'] / weights < 2.2
  assert any('splash' in kernel for kernel in made.program.kernels)
  assert made.program.unknown_calls == {}
  # A forward more than the model's own count, whose attention is not halved either.
  assert 1.0 < made.program.flops * 16 / made.model_flops < 1.45


def test_a_model_that_is_too_large_says_by_how_much():
  made = planned('v5e:2x2', batch=64, model=MODEL | dict(depth=48, width=4096, num_heads=32))
  assert not made.memory.fits
  assert made.memory.free < -(2**30)
  assert 'DOES NOT FIT' in text.described(made) and 'misses by' in text.described(made)


def test_two_slices_reduce_over_the_network_between_them():
  made = planned('v5e:4x4', 2, mesh=dict(data=2, fsdp=16, tensor=1))
  assert made.mesh == {'data': 2, 'fsdp': 16, 'tensor': 1}
  assert made.estimate.network > 0
  assert any('data' in axes for _, axes in made.traffic_by_axis())


def test_a_plan_is_written_with_its_page(tmp_path):
  lines = []
  request = pod_plan.Request(
    config=SETTINGS, topology='v5e:2x2', rules=('fsdp', 'dp'), output=str(tmp_path / 'plan')
  )
  pod_plan.make(request, lines.append)
  found = json.loads((tmp_path / 'plan' / 'plan.json').read_text())
  assert [p['rules'] for p in found['plans']] == ['fsdp', 'dp']
  page = (tmp_path / 'plan' / 'plan.html').read_text()
  assert 'Collectives of a step' in page and 'http' not in page.partition('<body')[2]
  assert any('compared' in line for line in lines)


@pytest.mark.parametrize('one', calibration.RUNS, ids=lambda one: one.name)
def test_published_runs_are_predicted(one):
  machine = topology.described(one.topology)
  settings = calibration.run_settings(one, len(machine.devices))
  config = configs.from_mapping(RunConfig, settings, 'the config')
  made = plan.planned(config, run.make_task(settings), machine)
  assert made.memory.fits
  assert abs(made.estimate.utilisation - one.utilisation) < calibration.TOLERANCE
