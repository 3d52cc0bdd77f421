import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core import decoding
from jaxmm.core.decoding import SamplingConfig

V = 12


@pytest.fixture(scope='module')
def logits():
  return np.random.default_rng(0).standard_normal((3, V)).astype(np.float32) * 3


def kept(logits, **settings):
  return np.isfinite(np.asarray(decoding.filtered(jnp.asarray(logits), SamplingConfig(**settings))))


def test_top_k_keeps_the_k_likeliest_and_ties(logits):
  expected = logits >= np.sort(logits)[:, -4][:, None]
  np.testing.assert_array_equal(kept(logits, top_k=4), expected)
  assert kept([[1.0, 2.0, 2.0, 0.0]], top_k=1).tolist() == [[False, True, True, False]]
  assert kept(logits, top_k=V + 5).all()


def test_top_p_keeps_the_fewest_tokens_that_exceed_p(logits):
  for row, mask in zip(logits, kept(logits, top_p=0.8)):
    probability = np.exp(row) / np.exp(row).sum()
    order, total = np.argsort(-probability), 0.0
    expected = np.zeros(V, bool)
    for token in order:
      if total > 0.8:
        break
      expected[token], total = True, total + probability[token]
    np.testing.assert_array_equal(mask, expected)
  assert kept([[5.0, 0.0, 0.0]], top_p=1e-9).tolist() == [[True, False, False]]


def test_kth_largest_is_exact_for_any_float():
  x = np.random.default_rng(1).standard_normal((4, 500)).astype(np.float32)
  x[0, :5], x[1] = [-0.0, 0.0, np.inf, -np.inf, 1e-42], -np.abs(x[1])
  for k in (1, 7, 250, 500):
    np.testing.assert_array_equal(decoding.kth_largest(jnp.asarray(x), k), np.sort(x)[:, -k])


def test_guidance_is_applied_to_the_first_tokens_of_its_interval(logits):
  both = jnp.asarray(np.concatenate([logits, -logits]))
  given, mixed = logits, -logits + 3.0 * 2 * logits
  always = SamplingConfig(guidance_scale=3.0)
  np.testing.assert_allclose(decoding.guided(both, 99, always), mixed, rtol=1e-5)
  until = SamplingConfig(guidance_scale=3.0, guidance_interval=4)
  np.testing.assert_allclose(decoding.guided(both, 5, until), mixed, rtol=1e-5)
  np.testing.assert_allclose(decoding.guided(both, 6, until), given, rtol=1e-5)
  assert decoding.guided(both, 0, SamplingConfig()) is both


def test_draws_follow_the_distribution_and_the_example(logits):
  keys = jax.random.split(jax.random.key(0), 4000)
  config = SamplingConfig(temperature=2.0, top_k=6)
  rows = jnp.broadcast_to(logits[0], (4000, V))
  ids = np.asarray(decoding.next_ids(rows, 3, keys, config))
  allowed = np.where(kept(logits[:1], top_k=6)[0], np.exp(logits[0] / 2), 0.0)
  share = np.bincount(ids, minlength=V) / 4000
  np.testing.assert_allclose(share, allowed / allowed.sum(), atol=0.03)
  assert not share[allowed == 0].any()
  np.testing.assert_array_equal(decoding.next_ids(rows, 3, keys[::-1], config), ids[::-1])
  assert np.any(decoding.next_ids(rows, 4, keys, config) != ids)


@pytest.mark.parametrize('greedy', [False, True])
def test_only_allowed_ids_are_drawn(logits, greedy):
  keys_B = jax.random.split(jax.random.key(0), 3)
  config = SamplingConfig(allowed=(4, 7), greedy=greedy, top_k=2)
  ids_NB = np.array([decoding.next_ids(jnp.asarray(logits), i, keys_B, config) for i in range(20)])
  best_B = 4 + logits[:, 4:7].argmax(1)
  assert set(ids_NB.ravel()) <= {4, 5, 6} and (ids_NB == best_B).any(0).all()
  assert not greedy or (ids_NB == best_B).all()
  with pytest.raises(ConfigError, match='allowed is'):
    SamplingConfig(allowed=(7, 7))


def test_drawn_is_the_inverse_of_the_cumulative_distribution():
  weights = np.random.default_rng(0).exponential(size=(1, 300)) ** 4
  weights[:, 40:200] = 0  # a block of 128 in part, and none left of another
  blocks = np.pad(weights, ((0, 0), (0, 84))).reshape(3, 128)
  u = np.stack(np.meshgrid(np.linspace(0, 0.999, 40), np.linspace(0, 0.999, 50)), -1).reshape(-1, 2)
  block = np.searchsorted(np.cumsum(blocks.sum(1)), u[:, 0] * weights.sum(), side='right')
  upto = np.cumsum(blocks, axis=1)[block]
  expected = block * 128 + np.sum(upto <= u[:, 1:] * upto[:, -1:], axis=1)
  with np.errstate(divide='ignore'):
    logits = jnp.asarray(np.log(np.repeat(weights, len(u), 0)) + 7, jnp.float32)
  ids = np.asarray(decoding.drawn(logits, jnp.asarray(u, jnp.float32)))
  assert np.mean(ids == expected) > 0.995  # the others lie on a border, within rounding
  assert np.max(np.abs(ids - expected)) <= 160 + 1 and weights[0, ids].min() > 0


def test_drawn_never_takes_a_token_without_weight():
  rng = np.random.default_rng(1)
  logits = rng.standard_normal((2000, 515)).astype(np.float32) * 10
  logits[rng.random(logits.shape) < 0.9] = -np.inf
  logits[:, 7] = 0.0
  edge = np.float32(1) - np.float32(2**-24)
  for u in (0.0, edge, None):
    numbers = rng.random((2000, 2)) if u is None else np.full((2000, 2), u)
    ids = np.asarray(decoding.drawn(jnp.asarray(logits), jnp.asarray(numbers, jnp.float32)))
    assert np.isfinite(np.take_along_axis(logits, ids[:, None], 1)).all()


@pytest.mark.parametrize('guidance', [1.0, 2.0])
def test_the_loop_feeds_every_token_back_in_order_whatever_the_buckets(guidance):
  config = SamplingConfig(greedy=True, guidance_scale=guidance)
  rows = 4 if config.is_guided else 2
  grown = []

  def step(ids_R, position, seen):
    # The next token is a function of this one and its position, and the state records the order.
    seen = seen.at[:, position].set(ids_R)
    return jax.nn.one_hot((ids_R * 3 + position) % V, V), seen

  def grow(seen, length):
    grown.append(length)
    return jnp.pad(seen, ((0, 0), (0, length - seen.shape[1])))

  def expected(first, start, n):
    out = [first]
    for i in range(n - 1):
      out.append((out[-1] * 3 + start + i) % V)
    return out

  for lengths in ([4, 7, 12], [12]):
    ids = jax.jit(
      lambda logits, lengths=lengths: decoding.generate(
        step,
        logits,
        jnp.zeros((rows, lengths[0]), jnp.int32),
        start=3,
        num_tokens=10,
        key_B=jax.random.split(jax.random.key(0), 2),
        config=config,
        grow=grow,
        lengths=lengths,
      )
    )(jax.nn.one_hot(jnp.array([5, 7] * (rows // 2)), V))
    assert ids.tolist() == [expected(5, 3, 10), expected(7, 3, 10)]
  assert grown == [4, 7, 12, 12]


def test_bucket_lengths_grow_and_end_exactly():
  assert decoding.bucket_lengths(1, 255) == [64, 128, 192, 256]
  assert decoding.bucket_lengths(100, 299) == [128, 192, 256, 300]
  assert decoding.bucket_lengths(128, 1000) == [192, 256, 384, 512, 768, 1001]
  assert decoding.bucket_lengths(1, 64) == [64, 65]
  assert decoding.bucket_lengths(1, 63) == decoding.bucket_lengths(63, 63) == [64]
  assert decoding.bucket_lengths(1, 15) == [16]


@pytest.mark.parametrize(
  'settings, message',
  [
    (dict(temperature=0.0), 'set greedy=True'),
    (dict(top_k=-1), 'top_k is -1'),
    (dict(top_p=0.0), 'top_p is 0.0'),
    (dict(guidance_scale=0.5), 'guidance_scale is 0.5'),
    (dict(guidance_interval=-2), 'guidance_interval is -2'),
  ],
)
def test_settings_that_cannot_be_are_named(settings, message):
  with pytest.raises(ConfigError, match=message):
    SamplingConfig(**settings)


def test_rows_that_do_not_fit_are_named():
  with pytest.raises(ValueError, match='2 rows of logits for 2 examples, expected 4'):
    decoding.generate(
      lambda *a: a,
      jnp.zeros((2, V)),
      None,
      start=1,
      num_tokens=2,
      key_B=jax.random.split(jax.random.key(0), 2),
      config=SamplingConfig(guidance_scale=2.0),
    )


def test_nothing_but_the_stop_token_follows_the_stop_token():
  ids = jnp.array([[4, 7, 1, 7, 2], [7, 3, 3, 3, 3], [1, 2, 3, 4, 7], [1, 1, 1, 1, 1]])
  expected = [[4, 7, 7, 7, 7], [7] * 5, [1, 2, 3, 4, 7], [1] * 5]
  np.testing.assert_array_equal(decoding.ended(ids, 7), expected)


def test_rows_may_be_at_tokens_of_different_numbers(logits):
  keys, config = jax.random.split(jax.random.key(3), 3), SamplingConfig()
  several = decoding.next_ids(jnp.asarray(logits), jnp.array([4, 0, 7]), keys, config)
  for row, index in enumerate((4, 0, 7)):
    alone = decoding.next_ids(
      jnp.asarray(logits[row : row + 1]), index, keys[row : row + 1], config
    )
    assert several[row] == alone[0]
