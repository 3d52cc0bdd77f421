"""Names of machines, and what their devices are."""

import importlib.util

import pytest

from jaxmm import cli
from jaxmm.config import ConfigError
from jaxmm.pods import topology

needs_libtpu = pytest.mark.skipif(
  importlib.util.find_spec('libtpu') is None, reason='needs libtpu (the extra pods)'
)


@pytest.mark.parametrize('name', ['v5x:4x4', 'v5e', 'v5e:4xx4', '16x16', ''])
def test_an_unknown_topology_lists_the_known(name):
  with pytest.raises(ConfigError, match=r'which is unknown; known are(.|\n)*v5e:16x16'):
    topology.parsed(name)


def test_a_shape_of_another_dimension_is_refused():
  with pytest.raises(ConfigError, match='v5p is a torus of 3 dimensions; known are'):
    topology.parsed('v5p:16x16')


def test_without_libtpu_it_says_how_to_install(monkeypatch):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
  with pytest.raises(ConfigError, match=r"pip install -e '\.\[pods\]'"):
    topology.described('v5e:4x4')


def test_slices_are_at_least_one():
  with pytest.raises(ConfigError, match='slices is 0'):
    topology.described('v5e:4x4', 0)


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
  'name, slices, devices, chips',
  [
    ('v5e:16x16', 1, 256, 256),
    ('v5p:8x8x8', 1, 512, 512),
    ('v5p:4x4x4', 2, 128, 128),
    ('v6e:4x4', 1, 16, 16),
    ('tpu7x:4x4x4', 1, 128, 64),
  ],
)
def test_devices_of_named_machines(name, slices, devices, chips):
  found = topology.described(name, slices)
  assert (len(found.devices), found.num_chips) == (devices, chips)


@needs_libtpu
@pytest.mark.slow
def test_what_libtpu_cannot_describe_lists_the_known():
  with pytest.raises(ConfigError, match=r'v5e:3x3.*cannot describe(.|\n)*v5e:4x4'):
    topology.described('v5e:3x3')


def test_the_command_says_what_is_wrong_in_one_line_of_its_own(capsys):
  at = ['plan', '--config', 'experiments/crt/imagenet256.py:XL', '--topology', 'v9:4x4']
  assert cli.main(at) == 2
  assert capsys.readouterr().err.startswith("jaxmm plan: topology is 'v9:4x4', which is unknown")
