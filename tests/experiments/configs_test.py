"""Every config builds its Task and data settings, and its loss traces at full size, without arrays.

Optimizer labels that do not cover all parameters, misspelt settings, and shapes that do not fit
each other show here in seconds, not after hours of a run.
"""

import pathlib

import flax.linen as nn
import jax
import numpy as np
import pytest

from jaxmm import config as configs
from jaxmm import sharding
from jaxmm.config import ConfigError
from jaxmm.data.pipeline import DataConfig
from jaxmm.models import megabyte
from jaxmm.models.megabyte_config import stack_weights
from jaxmm.studies import run
from jaxmm.tokenizers import perceptual
from jaxmm.train import state as states
from jaxmm.train.run_config import RunConfig

ROOT = pathlib.Path(__file__).parents[2] / 'experiments'

# Config files and all their arguments, the default one first.
ARGUMENTS = {
  'crt/mini.py': ('crt', 'baseline', 'image_lm'),
  'crt/cifar10.py': ('crt', 'baseline', 'image_lm'),
  'crt/imagenet256.py': ('crt', 'baseline', 'crt_131k', 'B', 'L', 'XL', 'XXL', '3B'),
  'dbp/mini.py': ('',),
  'lm/mini.py': ('',),
  'transfusion/vae.py': ('',),
  'transfusion/vae_mini.py': ('plain', 'adversarial'),
  'megabyte/mini.py': ('',),
  'megabyte/paper.py': (
    'text-758M-262M',
    'text-350M-290M',
    'text-1.3B-218M',
    'fig3-452M-151M',
    'fig3-5.8B-604M',
    'fig3-170B-3.2B',
    'imagenet64-2.7B-350M',
    'image256-125M-125M',
    'image256-125M-125M-p48',
    'image256-125M-125M-p768',
    'image640-125M-83M',
    'audio-350M-125M',
    'plain-320M',
    'plain-350M',
  ),
  'transfusion/mini.py': ('bidirectional', 'causal', 'unet', 'flow'),
  'transfusion/paper.py': ('0.16B', '0.37B', '0.76B', '1.4B', '7B', 'large'),
}
SPECS = [f'{file}:{arg}' if arg else file for file, args in ARGUMENTS.items() for arg in args]


def test_the_table_has_every_config_file():
  files = {
    str(path.relative_to(ROOT))
    for path in ROOT.glob('*/*.py')
    if 'def get_config(' in path.read_text()
  }
  assert files == set(ARGUMENTS)


def lpips_shapes(config):
  """The constants of LPIPS as shapes; the public file is the user's."""
  if config.name != 'lpips':
    return {}
  shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, np.float32)
  out = {}
  for number, (width_in, width_out) in perceptual._CONVS.items():
    out[f'conv_{number}'] = {'kernel': shape(3, 3, width_in, width_out), 'bias': shape(width_out)}
  for number, tap in enumerate(perceptual._TAPS):
    out[f'head_{number}'] = shape(perceptual._CONVS[tap][1])
  return out


def batch_shapes(config, task):
  """Shapes of the batches that the config's data gives."""
  data = configs.from_mapping(DataConfig, configs.plain(config.data), 'data')
  shape = lambda dtype, *sizes: jax.ShapeDtypeStruct((config.batch, *sizes), dtype)
  out = {'index_B': shape(np.uint32), 'record_B': shape(np.int32), 'valid_B': shape(np.float32)}
  if data.name in ('text', 'bytes') or data.bytes.image_order:
    length = data.text.length if data.name == 'text' else data.bytes.length
    ids = {'ids_BL': shape(np.int32, length), 'segment_BL': shape(np.int32, length)}
    return out | ids | {'weight_BL': shape(np.float32, length)}
  if data.name == 'mixed':
    length, images = task.row_length or task.config.length, task.row_images
    rows = {f'{n}_BL': shape(np.int32, length) for n in ('ids', 'image', 'patch', 'segment')}
    rows['latent_BIYXC'] = shape(np.float32, images, *task.config.latent_shape)
    rows |= {f'{n}_BI': shape(np.float32, images) for n in ('image_valid', 'is_image_first')}
    return out | rows | {'weight_BL': shape(np.float32, length)}
  out['label_B'] = shape(np.int32)
  if data.name == 'tokens':
    return out | {'ids_BL': shape(np.int32, task.config.length)}
  size = data.image_size
  return out | {'image_BYXC': shape(np.uint8, size, size, data.channels)}


# Tracing takes seconds; of each kind one stands for the others.
SLOW = (
  'baseline', 'crt_131k', 'mini.py:crt', 'cifar10.py:crt', 'vae.py', 'mini.py:plain',
  '350M-290M', '1.3B-218M', '452M-151M', '5.8B-604M', '170B-3.2B', 'p48', 'p768', '125M-83M',
  'plain-350M', '0.37B', '0.76B', '1.4B',
)  # fmt: skip


@pytest.mark.parametrize('spec', SPECS)
def test_config_builds(spec, monkeypatch):
  monkeypatch.setattr(perceptual, 'load_weights', lpips_shapes)
  config = configs.load_config(f'{ROOT}/{spec}')
  trainer = configs.from_mapping(RunConfig, configs.plain(config), spec)
  assert run.make_task(config).step_flops(trainer.batch) > 0
  train, held_out = (
    configs.from_mapping(DataConfig, configs.plain(config[section]), section)
    for section in ('data', 'eval_data')
  )
  assert (train.split, held_out.split) == ('train', 'test')
  assert not held_out.flip and held_out.crop != 'random'


@pytest.mark.parametrize(
  'spec',
  [pytest.param(s, marks=[pytest.mark.slow] * s.endswith(SLOW)) for s in SPECS],
)
def test_labels_cover_all_parameters_and_the_loss_traces(spec, monkeypatch):
  monkeypatch.setattr(perceptual, 'load_weights', lpips_shapes)
  config = configs.load_config(f'{ROOT}/{spec}')
  trainer = configs.from_mapping(RunConfig, configs.plain(config), spec)
  task = run.make_task(config)
  mesh = sharding.make_mesh(sharding.MeshConfig(data=2, fsdp=2, tensor=2))
  rows = batch_shapes(config, task)
  blueprint = states.plan_state(
    task, trainer.optimizers(), rows, steps=trainer.steps, seed=0, mesh=mesh,
    rules=sharding.RULES[trainer.rules], has_ema=trainer.ema > 0,
  )  # fmt: skip
  # Every label has parameters, and every parameter that is to be trained an optimizer.
  labels = set(jax.tree.leaves(blueprint.labels))
  assert labels - {'frozen'} == set(config.optimizer)
  # Without a mesh and rules: constraints on the activations cost most of the tracing.
  variables = {**blueprint.abstract.extra, 'params': blueprint.abstract.params}
  key, step = jax.random.key(0), jax.ShapeDtypeStruct((), np.int32)
  scalar, sums, _ = jax.eval_shape(
    lambda v, b, s: task.loss(v, b, key, s, task.counts(b)),
    variables | ({'constants': task.constants} if task.constants else {}), rows, step,
  )  # fmt: skip
  assert scalar.shape == () and scalar.dtype == np.float32 and sums


def test_a_size_has_the_parameters_of_the_paper():
  # LlamaGen's table: 111M, 343M, 775M, 1.4B, 3.1B with 16,384 codes and 1,000 classes.
  for size, millions in (('B', 111), ('L', 343), ('XL', 775), ('XXL', 1400), ('3B', 3100)):
    config = configs.load_config(f'{ROOT}/crt/imagenet256.py:{size}')
    task = run.make_task(config)
    variables = jax.eval_shape(task.init, jax.random.key(0), batch_shapes(config, task))
    number = states.size_of(nn.unbox(variables['params']))
    assert number == pytest.approx(millions * 1e6, rel=0.02), size


def test_figure_3_has_the_matrices_that_its_names_say():
  for size, counts in megabyte.PRESETS.items():
    if size.startswith('fig3-'):
      config, named = megabyte.config_of({'size': size}), size.split('-')[1:]
      for stack, name in zip((config.global_stack(), config.local_stack()), named, strict=True):
        count = float(name[:-1]) * {'M': 1e6, 'B': 1e9}[name[-1]]
        assert stack_weights(stack) == pytest.approx(count, rel=0.01), (size, counts)


@pytest.mark.parametrize('file', [f for f, args in ARGUMENTS.items() if len(args) > 1])
def test_the_first_argument_is_the_default(file):
  config, default = (
    configs.load_config(f'{ROOT}/{file}:{ARGUMENTS[file][0]}'),
    configs.load_config(f'{ROOT}/{file}'),
  )
  assert configs.plain(config) == configs.plain(default)


@pytest.mark.parametrize('file', [f for f, args in ARGUMENTS.items() if len(args) > 1])
def test_an_unknown_argument_names_the_known_ones(file):
  with pytest.raises(ConfigError, match=f'{pathlib.Path(file).name}:crtt.*{ARGUMENTS[file][0]}'):
    configs.load_config(f'{ROOT}/{file}:crtt')
