"""What users mistype is named, with what they may have meant."""

import dataclasses
from typing import Literal

import ml_collections
import pytest

from jaxmm import config as configs
from jaxmm.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Inner:
  width: int = 8
  rate: float = 0.5


@dataclasses.dataclass(frozen=True)
class Outer:
  steps: int
  inner: Inner = Inner()
  name: Literal['a', 'b'] = 'a'
  sizes: tuple[int, ...] = ()
  path: str | None = None


def test_nested_mappings_become_dataclasses():
  out = configs.from_mapping(Outer, {'steps': 3, 'inner': {'rate': 1}, 'sizes': [1, 2]})
  assert out == Outer(3, Inner(rate=1.0), 'a', (1, 2), None)
  assert isinstance(out.inner.rate, float)


@pytest.mark.parametrize(
  ('values', 'message'),
  [
    ({'step': 3}, "Outer has no key 'step'; did you mean steps"),
    ({'steps': 3, 'inner': {'widht': 1}}, "Outer.inner has no key 'widht'; did you mean width"),
    ({}, 'Outer lacks steps'),
    ({'steps': 'many'}, r"Outer.steps is 'many' \(str\), expected int"),
    ({'steps': True}, 'expected int'),
    ({'steps': 1, 'name': 'c'}, r"Outer.name is 'c' \(str\), expected one of 'a', 'b'"),
    ({'steps': 1, 'sizes': ['x']}, "Outer.sizes is 'x'"),
  ],
)
def test_what_does_not_fit_is_named(values, message):
  with pytest.raises(ConfigError, match=message):
    configs.from_mapping(Outer, values)


def test_a_preset_is_filled_in_and_overridden():
  presets = {'small': {'steps': 1, 'sizes': (1,)}}
  out = configs.from_preset(Outer, presets, {'size': 'small', 'steps': 2}, 'model')
  assert out == Outer(2, sizes=(1,))
  with pytest.raises(ConfigError, match="model.size is 'big', expected one of small"):
    configs.from_preset(Outer, presets, {'size': 'big'}, 'model')


def test_overrides_are_typed_like_what_they_replace():
  config = ml_collections.ConfigDict({'a': {'x': 1, 'y': 2.0, 's': 'q', 't': (1,), 'n': None}})
  configs.override(config.lock(), ['a.x=5', 'a.y=3', 'a.s=7', 'a.t=(1,2)', 'a.n=4'])
  assert config.to_dict() == {'a': {'x': 5, 'y': 3.0, 's': '7', 't': (1, 2), 'n': 4}}


@pytest.mark.parametrize(
  ('assignment', 'message'),
  [
    ('a.z=1', "no key 'a.z'"),
    ('a.learing_rate=1', 'did you mean a.learning_rate'),
    ('learning_rate=1', 'did you mean a.learning_rate'),
    ('a.x=big', 'expected int'),
    ('a.x', 'has no value'),
    ('a.x.y=1', "no key 'a.x.y'"),
  ],
)
def test_overrides_that_do_not_fit_are_refused(assignment, message):
  config = ml_collections.ConfigDict({'a': {'x': 1, 'learning_rate': 0.1}})
  with pytest.raises(ConfigError, match=message):
    configs.override(config, [assignment])


def test_none_is_taken_anywhere_and_refused_by_the_field_that_cannot_be_it():
  values = {'steps': 1, 'path': 'p', 'name': 'a', 'inner': {'rate': 1.0}}
  config = ml_collections.ConfigDict(values)
  configs.override(config.lock(), ['path=None', 'inner.rate=null', 'name=none'])
  assert config.to_dict() == {'steps': 1, 'path': None, 'name': 'none', 'inner': {'rate': None}}
  config.name = 'a'
  with pytest.raises(ConfigError, match=r'Outer.inner.rate is None \(NoneType\), expected float'):
    configs.from_mapping(Outer, config)
  with pytest.raises(ConfigError, match=r'Outer.path is 3 \(int\), expected str or None'):
    configs.from_mapping(Outer, {'steps': 1, 'path': 3})


def test_what_an_unchecked_section_lacks_is_added_as_a_literal():
  config = ml_collections.ConfigDict({'m': {'w': 1, 's': 'a', 'd': {'x': 1}}, 'n': 1}).lock()
  texts = ['m.w=wide', 'm.s=7', 'm.d=None', 'm.e.f.g=(1, 2)', 'm.e.name=none', 'm.b=true']
  configs.override(config, texts, unchecked=('m',))
  assert config.m.to_dict() == {
    'w': 'wide', 's': '7', 'd': None, 'e': {'f': {'g': (1, 2)}, 'name': 'none'}, 'b': True,
  }  # fmt: skip
  with pytest.raises(ConfigError, match="m.s is '7', which has no key 'size' to set"):
    configs.override(config, ['m.s.size=1'], unchecked=('m',))
  with pytest.raises(ConfigError, match="no key 'o'"):
    configs.override(config, ['o=1'], unchecked=('m',))
  with pytest.raises(AttributeError):
    config.o = 1  # still locked


def test_differences_name_every_setting_that_changed():
  assert configs.differences({'a': {'b': 1}, 'c': 2}, {'a': {'b': 3}, 'd': 4}) == [
    'a.b: 1 -> 3',
    "c: 2 -> '(absent)'",
    "d: '(absent)' -> 4",
  ]


def test_a_missing_config_file_is_named():
  with pytest.raises(ConfigError, match='no such file'):
    configs.load_config('experiments/none/such.py')


def test_get_config_receives_its_argument(tmp_path):
  path = tmp_path / 'c.py'
  path.write_text(
    'import ml_collections\n'
    'def get_config(size="toy"):\n  return ml_collections.ConfigDict(dict(size=size))\n'
  )
  assert configs.load_config(f'{path}:big').size == 'big'
  assert configs.load_config(str(path)).size == 'toy'
