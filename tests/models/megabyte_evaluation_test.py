import dataclasses
import functools

import jax
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.models import megabyte
from jaxmm.models.megabyte_evaluation import sliding_nll, strided_nll
from jaxmm.models.megabyte_network import Megabyte
from tests.models.megabyte_cases import BASE, VARIANTS, L, P, V, config_of, random_params

CONFIG = config_of(VARIANTS['all'])
IDS = np.random.default_rng(3).integers(0, V, (2, 44))
_strided = jax.jit(strided_nll, static_argnums=1)
_sliding = jax.jit(sliding_nll, static_argnums=1, static_argnames=('window', 'stride', 'strided'))


@functools.cache
def prepared():
  params = random_params(CONFIG)
  return params, jax.jit(lambda ids: Megabyte(CONFIG).apply({'params': params}, ids))


def direct(row, t, begin=0, shift=0):
  """-log p of byte t by a pass over a row of zeros but for what is before it.

  The first patch begins `shift` places before byte `begin`.
  """
  _, logits = prepared()
  given = np.zeros((1, L), int)
  given[0, :shift] = V
  place = t - begin + shift
  given[0, shift:place] = row[begin:t]
  out = np.asarray(logits(given)[0, place], np.float64)
  return np.log(np.exp(out).sum()) - out[row[t]]


def test_strided_takes_each_byte_from_the_first_half_of_a_patch():
  params, _ = prepared()
  for length in (24, L):
    got = _strided(params, CONFIG, IDS[:, :length])
    for b in range(2):
      # In a full row, the last half patch has no place in the second pass.
      shifts = [0 if t % P < P // 2 or t >= L - P // 2 else P // 2 for t in range(length)]
      expected = [direct(IDS[b], t, 0, shift) for t, shift in enumerate(shifts)]
      np.testing.assert_allclose(got[b], expected, atol=2e-5)


@pytest.mark.parametrize('strided', [False, True])
def test_windows_slide_over_rows_of_any_length(strided):
  params, _ = prepared()
  got = _sliding(params, CONFIG, IDS, window=16, stride=8, strided=strided)
  for t in range(IDS.shape[1]):
    begin = 0 if t < 16 else (t - 8) // 8 * 8
    shift = P // 2 if strided and t % P >= P // 2 else 0
    np.testing.assert_allclose(got[0, t], direct(IDS[0], t, begin, shift), atol=2e-5)


def test_rows_of_one_window_are_scored_as_they_are():
  params, logits = prepared()
  whole = _sliding(params, CONFIG, IDS[:, :L])
  out = np.asarray(logits(IDS[:, :L]), np.float64)
  chosen = np.take_along_axis(out, IDS[:, :L, None], -1)[..., 0]
  np.testing.assert_allclose(whole, np.log(np.exp(out).sum(-1)) - chosen, atol=2e-5)


def test_the_second_pass_sees_no_other_document():
  params, _ = prepared()
  config = dataclasses.replace(CONFIG, separate_documents=True)
  segment = np.repeat([[1, 2]], [12, 20], axis=1)
  score = lambda ids: np.asarray(_strided(params, config, ids, segment))
  changed = IDS[:1, :L].copy()
  changed[:, :12] = (changed[:, :12] + 1) % V
  np.testing.assert_array_equal(score(changed)[:, 12:], score(IDS[:1, :L])[:, 12:])


def test_the_task_offers_it():
  params, _ = prepared()
  task = megabyte.make_task({**BASE, **VARIANTS['all'], 'strided': True})
  assert set(task.evaluations()) == {'likelihood', 'strided'}
  assert set(megabyte.make_task(BASE).evaluations()) == {'likelihood'}
  both = {**BASE, 'strided': True, 'sliding': 8}
  assert set(megabyte.make_task(both).evaluations()) == {
    'likelihood', 'strided', 'sliding', 'sliding_strided',
  }  # fmt: skip
  ids = IDS[:, :L]
  segment, valid = np.ones_like(ids), np.ones(2, np.float32)
  segment[1, 20:] = 0
  batch = {'ids_BL': ids, 'segment_BL': segment, 'valid_B': valid}
  out = jax.jit(task.strided_likelihood)({'params': params}, batch, None)
  nll = np.asarray(_strided(params, CONFIG, ids, segment))
  np.testing.assert_allclose(
    out['cross_entropy'], ((nll * segment).sum(), segment.sum()), rtol=1e-5
  )


def test_grids_that_cannot_be_are_named():
  params, _ = prepared()
  for named in ({'window': 18}, {'window': 40}, {'window': 16, 'stride': 20}, {'stride': 0}):
    with pytest.raises(ConfigError, match='expected multiples of model.patch 4'):
      sliding_nll(params, CONFIG, IDS, **named)
  odd = config_of({'patch': 3, 'length': 33})
  with pytest.raises(ConfigError, match='halves patches, but model.patch is 3'):
    strided_nll(params, odd, IDS[:, :33])
