"""A run from its config: settings that the config leaves out can be set all the same."""

import pytest
from PIL import Image

from jaxmm import config as configs
from jaxmm.config import ConfigError
from jaxmm.studies import run
from jaxmm.tokenizers import text
from jaxmm.train.run_config import RunConfig
from tests import tiny_runs


def settings(*assignments, what='tokenizer'):
  before = tiny_runs.get_config(what).lock()
  return configs.differences(
    before, run.with_settings(before.copy_and_resolve_references(), assignments)
  )


def test_defaults_of_trainer_data_and_optimizer_can_be_set():
  assert settings(
    'mesh.fsdp=2', 'skip_batches=(5, 7)', 'ema=0.5', 'checkpoint.keep_every=10', 'data.cache=true',
    'optimizer.generator.schedule=cosine',
  ) == [
    "checkpoint.keep_every: '(absent)' -> 10",
    "data.cache: '(absent)' -> True",
    "ema: '(absent)' -> 0.5",
    "eval_data.cache: '(absent)' -> True",
    "mesh.fsdp: '(absent)' -> 2",
    "optimizer.generator.schedule: '(absent)' -> 'cosine'",
    "skip_batches: '(absent)' -> [5, 7]",
  ]  # fmt: skip


def test_held_out_data_follows_where_it_was_the_same():
  assert settings('data.image_size=4', 'data.split=test', 'data.path=A', 'eval_data.path=B') == [
    'data.image_size: 8 -> 4',
    "data.path: '' -> 'A'",
    "data.split: 'train' -> 'test'",
    'eval_data.image_size: 8 -> 4',
    "eval_data.path: '' -> 'B'",
  ]
  assert settings('eval_data.path=B') == ["eval_data.path: '' -> 'B'"]
  without = tiny_runs.get_config()
  del without.eval_data
  config = run.with_settings(without.lock(), ['data.path=A', 'data.cache=true'])
  assert config.data.path == 'A' and 'eval_data' not in config


@pytest.mark.parametrize('spec', ['crt/mini.py', 'crt/cifar10.py', 'crt/imagenet256.py:crt'])
def test_own_pictures_are_evaluated_on_own_pictures(spec):
  own = dict(name='images', path='P', image_size=64, channels=1, convert_channels=True)
  config = run.with_settings(
    configs.load_config(spec), [f'data.{name}={value}' for name, value in own.items()]
  )
  for section in (config.data, config.eval_data):
    assert {name: section[name] for name in own} == own
  assert config.eval_data.split == 'test'


def test_every_setting_of_the_model_can_be_set_and_none_switches_a_part_off():
  config = run.with_settings(
    tiny_runs.get_config().lock(),
    [
      'model.vqgan.quantizer.entropy_weight=1', 'model.vqgan.remat=true',
      'model.adversarial.discriminator.channels=4', 'model.adversarial.start=3',
      'model.adversarial.discriminator.layers=1', 'model.regularizer=None',
      'optimizer.generator.clip=None', 'optimizer.regularizer=None', 'data.split=test',
    ],
  )  # fmt: skip
  settings = run.make_task(config).config
  assert settings.network.quantizer.entropy_weight == 1.0 and settings.network.remat
  assert settings.adversarial.start == 3 and settings.adversarial.discriminator.channels == 4
  assert settings.regularizer is None
  trainer = configs.from_mapping(RunConfig, configs.plain(config))
  assert [(k, v.clip) for k, v in trainer.optimizers().items()] == [('generator', None)]
  lm = run.with_settings(tiny_runs.get_config('image_lm').lock(), ['model.class_dropout=0.5'])
  assert run.make_task(lm).config.class_dropout == 0.5


@pytest.mark.parametrize(
  'assignment, message',
  [
    ('model.regularizer.wieght=1', "model.regularizer has no key 'wieght'; did you mean weight"),
    ('model.size=B', "model has no key 'size'"),
    ('model.vqgan.remat=maybe', r"model.vqgan.remat is 'maybe' \(str\), expected bool"),
    ('model.image_size=None', r'model.image_size is None \(NoneType\), expected int'),
    ('steps=None', r'the config.steps is None \(NoneType\), expected int'),
    ('optimizer.generator.name=None', 'optimizer.generator.name is None'),
  ],
)
def test_mistakes_in_them_are_named_before_anything_is_written(assignment, message, tmp_path):
  config = run.with_settings(tiny_runs.get_config().lock(), [assignment])
  with pytest.raises(ConfigError, match=message):
    run.train_from_config(config, tmp_path / 'run')
  assert not (tmp_path / 'run').exists()


def test_what_the_config_has_is_replaced_and_nothing_else_is_added():
  assert settings('steps=7') == ['steps: 4 -> 7']
  assert settings() == []


@pytest.mark.parametrize(
  'assignment, message',
  [
    ('mesh.fdsp=2', "no key 'mesh.fdsp'"),
    ('ema=much', '--config.ema=much: expected float'),
    ('optimizer.judge.name=sgd', "no key 'optimizer.judge.name'"),
  ],
)
def test_others_are_refused(assignment, message):
  with pytest.raises(ConfigError, match=message):
    settings(assignment)


def test_mixed_rows_get_their_trained_tokenizer(tmp_path):
  Image.new('RGB', (4, 4)).save(tmp_path / 'a.png')
  (tmp_path / 'c.jsonl').write_text('{"image": "a.png", "caption": "ab"}')
  text.ByteTokenizer(('<boi>', '<eoi>')).save(tmp_path / 'tokenizer.json')
  config = {
    'batch': 1,
    'seed': 0,
    'data': {
      'name': 'mixed',
      'path': str(tmp_path),
      'split': 'all',
      'image_size': 4,
      'text': {'tokenizer': str(tmp_path / 'tokenizer.json')},
      'mixed': {
        'captions': str(tmp_path / 'c.jsonl'),
        'length': 6,
        'patches': 2,
        'caption_first': 1.0,
      },
    },
  }
  batch = run.make_batches(config).at(0)
  assert batch['ids_BL'].tolist() == [[*b'ab', 256, 0, 0, 257]]
