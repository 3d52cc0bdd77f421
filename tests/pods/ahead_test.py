"""What a compiler that ran out of memory says; meshes that do not divide; batches without data."""

import json
import types

import jax
import numpy as np
import pytest

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.models import image_lm, lm, megabyte, transfusion
from jaxmm.pods import ahead, offenders, plan, program, text
from jaxmm.pods.chips import CHIPS
from jaxmm.pods.collectives import Collective
from jaxmm.pods.hlo import Shape
from jaxmm.pods.topology import Topology
from jaxmm.report import pod_page
from jaxmm.studies import pod_plan
from jaxmm.train.run_config import RunConfig
from jaxmm.train.state import plan_state

MICRO = dict(size='micro', num_codes=64, num_classes=4, grid=4)
ADAM = dict(model=dict(name='adamw', learning_rate=1e-3))


def config(**changed):
  settings = dict(task='jaxmm.models.image_lm', steps=10, batch=16, model=MICRO, optimizer=ADAM)
  return configs.from_mapping(RunConfig, settings | changed, 'the config')


def topology():
  """The eight fake CPU devices of the tests, as if they were a slice."""
  return Topology('v5e:2x4', 1, CHIPS['v5e'], tuple(jax.devices()))


@pytest.mark.parametrize(
  'message, expected',
  [
    (
      'RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries '
      '(16.67G) exceeds available HBM (15.75G).',
      (16.67 * 2**30, 15.75 * 2**30, False),
    ),
    (
      'RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 18.61G of 15.75G hbm. '
      'Exceeded hbm capacity by 2.86G.',
      (18.61 * 2**30, 15.75 * 2**30, True),
    ),
    ('INTERNAL: something else', None),
  ],
)
def test_needed_bytes_as_compilers_say_them(message, expected):
  assert ahead.needed_bytes(message) == expected


def test_a_mesh_that_does_not_divide_the_devices():
  with pytest.raises(ConfigError, match=r'v5e:2x4: mesh .* uses a multiple of 3 devices'):
    ahead.mesh_for(config(mesh=dict(data=-1, fsdp=3)), topology())


def test_a_mesh_that_does_not_divide_the_heads_says_which():
  task = image_lm.make_task(MICRO)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, tensor=4))
  with pytest.raises(ConfigError, match=r'mesh.tensor is 4, but model.num_heads is 2'):
    ahead.check_heads(config(rules='tensor'), task, mesh)


def test_rows_that_do_not_divide_over_the_mesh():
  task = image_lm.make_task(MICRO)
  with pytest.raises(ConfigError, match='batch is 12, .* use 8 or 16'):
    plan.planned(config(batch=12), task, topology())


@pytest.mark.parametrize(
  'module, model',
  [
    (image_lm, MICRO),
    (lm, dict(size='micro', length=16)),
    (megabyte, dict(size='micro')),
    (transfusion, dict(size='micro', length=64, row_images=2)),
  ],
)
def test_batch_shapes_are_what_the_task_takes(module, model):
  task = module.make_task(model)
  shapes = task.batch_shapes(8)
  mesh = sharding.make_mesh(sharding.MeshConfig())
  blueprint = plan_state(
    task, config().optimizers(), shapes, steps=1, seed=0, mesh=mesh,
    rules=sharding.rules_named('dp'),
  )  # fmt: skip
  assert blueprint.logical and jax.tree.leaves(blueprint.abstract.params)
  loss = lambda v, b: task.loss(v, b, jax.random.key(0), 0, task.counts(b))[0]
  scalar = jax.eval_shape(loss, {'params': blueprint.abstract.params}, shapes)
  assert scalar.shape == ()


def test_a_task_that_cannot_say_its_batches():
  from jaxmm.task import Task

  with pytest.raises(ConfigError, match='does not say what its batches look like'):
    Task().batch_shapes(1)


def test_a_step_for_eight_devices_is_compiled_and_read(tmp_path, monkeypatch):
  monkeypatch.setattr(plan, 'libtpu_version', lambda: 'none')  # nor is it needed for CPUs
  task = image_lm.make_task(MICRO | dict(depth=3))
  made = plan.planned(config(rules='fsdp', mesh=dict(data=2, fsdp=4)), task, topology())
  assert made.memory.fits and made.memory.parameters > 0
  assert made.memory.optimizer == pytest.approx(2 * made.memory.parameters, rel=0.01)
  # Three times the forward's products but for the gradient of what the embeddings are.
  assert 0.8 < made.program.flops * 8 / made.model_flops < 1.6
  assert {'fsdp'} & {c.axes for c in made.program.collectives}
  numbers = made.as_json()
  assert numbers['estimate']['step'] > 0 and numbers['memory']['fits']
  assert 'v5e:2x4 (8 chips), mesh data=2 fsdp=4, rules fsdp' in text.described(made)
  (tmp_path / 'plan.json').write_text(json.dumps({'plans': [numbers, numbers], 'largest': 64}))
  page = pod_page.write_pod_page(tmp_path / 'plan.json', tmp_path / 'plan.html').read_text()
  assert 'Largest batch that fits: 64 rows' in page and 'Collectives of a step' in page


def test_an_evaluation_is_planned_like_a_step():
  task = image_lm.make_task(MICRO)
  made = plan.planned(config(), task, topology(), evaluation='likelihood')
  assert made.memory.optimizer == 0 and made.memory.fits and made.hours is None
  # The forward's products alone.
  assert 0.6 < made.program.flops * 8 / made.model_flops < 1.2
  with pytest.raises(ConfigError, match="'liklihood'.*likelihood"):
    plan.planned(config(), task, topology(), evaluation='liklihood')


def shape(*dims, dtype='bf16'):
  return Shape(dtype, dims)


def fake_blueprint():
  leaf = lambda *dims: jax.ShapeDtypeStruct(dims, np.float32)
  params = {'w': leaf(4, 2048, 4096), 'head': leaf(2048, 32_000)}
  return types.SimpleNamespace(
    abstract=types.SimpleNamespace(params=params),
    logical={'w': ('layers', 'embed', 'mlp'), 'head': ('embed', 'vocab')},
    whole=(('big', (2048, 4096), 'no rule splits it'), ('scale', (2048,), 'it is small')),
  )


def found(kind='all-gather', times=4.0, *, shapes):
  return Collective(kind, shapes, sum(s.bytes for s in shapes), (0, 1), 'fsdp', times, 'here')


def test_offenders_are_named():
  collectives = (
    found(times=1.0, shapes=(shape(8, 256, 32_000),)),  # logits
    found(times=12.0, shapes=(shape(1, 2048, 4096),)),  # three times a step
    found(times=1.0, shapes=(shape(2048, 32_000, dtype='f32'),)),  # a weight in float32
  )
  made = program.Program((), collectives, {}, {}, 0.0)
  lines = offenders.offenders(made, fake_blueprint(), 'bfloat16')
  assert len(lines) == 4
  assert 'has the vocabulary as an axis' in lines[0]
  assert lines[1] == 'big [2048, 4096] is whole on every device: no rule splits it'
  assert 'weights of 2048x4096 are gathered 3.0 times a step, expected at most 2' in lines[2]
  assert 'f32[2048,32000] is gathered over fsdp, though used in bfloat16' in lines[3]


def test_a_clean_program_has_no_offenders():
  collectives = (found(times=8.0, shapes=(shape(1, 2048, 4096),)),)
  blueprint = fake_blueprint()
  blueprint.whole = ()
  made = program.Program((), collectives, {}, {}, 0.0)
  assert offenders.offenders(made, blueprint, 'bfloat16') == []


def test_the_largest_batch_by_bisection():
  fits = lambda batch: types.SimpleNamespace(memory=types.SimpleNamespace(fits=batch <= 360))
  batch, tried = plan.largest_batch(fits, 8, 64, lambda: False)
  assert 336 <= batch <= 360 and batch % 8 == 0
  assert len(tried) < 10
  none, _ = plan.largest_batch(lambda b: fits(1000), 8, 64, lambda: False)
  assert none == 0


def test_search_tries_meshes_and_remat_policies():
  own = dict(model=dict(remat='dots'), rules='dp', mesh=dict(data=8, fsdp=1, tensor=1), batch=16)
  tried = pod_plan.candidates(own, topology())
  assert {c['model']['remat'] for c in tried} == {'none', 'block', 'narrow', 'dots'}
  assert own not in tried
  for one in tried:
    assert np.prod(list(one['mesh'].values())) == 8
