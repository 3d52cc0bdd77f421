import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxmm.config import ConfigError
from jaxmm.core import attention, masks
from jaxmm.models import mixed_rows as rows
from tests.references import transformer as reference

L, N, K, H = 11, 4, 2, 8
GROUPS = jnp.array([[0, 1, 1, 1, 0, 2, 2, 2, 2, 0, 0], [1, 1, 0, 0, 0, 3, 3, 0, 0, 4, 4]])
SEGMENTS = jnp.array([[0, 0, 0, 0, 1, 1, 1, 2, 2, 2, 2], [0] * 6 + [5] * 5])
MASKS = {
  'full': masks.Full(),
  'causal': masks.Causal(),
  'window': masks.Window(3),
  'prefix': masks.PrefixLM(jnp.array([4, 0])),
  'segments': masks.Segments(SEGMENTS),
  'causal & segments': masks.Causal() & masks.Segments(SEGMENTS),
  'causal | groups': masks.Causal() | masks.TwoWayGroups(GROUPS),
  'groups (some see nothing)': masks.TwoWayGroups(GROUPS),
}


@pytest.fixture(scope='module')
def qkv():
  rng = np.random.default_rng(0)
  make = lambda heads: rng.standard_normal((2, L, heads, H)).astype(np.float32)
  return make(N), make(K), make(K)


def all_masks(qkv, backend, bias=None):
  run = lambda q, k, v: {
    name: attention.attention(q, k, v, m, backend=backend, bias_NLS=bias, chunk=4)
    for name, m in MASKS.items()
  }
  # One program for all masks, outputs and gradients both: compiling is what takes time here.
  out = run(*qkv)
  hard = ('causal & segments', 'groups (some see nothing)')
  loss = lambda q, k, v: sum(
    jnp.sum(run(q, k, v)[name] * jnp.sin(jnp.arange(q.size)).reshape(q.shape)) for name in hard
  )
  return out, jax.grad(loss, (0, 1, 2))(*qkv)


@pytest.fixture(scope='module')
def results(qkv):
  rng = np.random.default_rng(1)
  bias = rng.standard_normal((N, L, L)).astype(np.float32)
  run = jax.jit(all_masks, static_argnums=1)
  return bias, {b: run(qkv, b, bias) for b in ('xla', 'chunked')}


@pytest.mark.parametrize('backend', ['xla', 'chunked'])
@pytest.mark.parametrize('name', MASKS)
def test_backends_equal_loops_over_the_dense_mask(qkv, results, backend, name):
  bias, by_backend = results
  allowed = np.broadcast_to(MASKS[name].dense(L), (2, L, L))
  for b in range(2):
    expected = reference.attention(*(a[b] for a in qkv), allowed[b], H**-0.5, bias)
    np.testing.assert_allclose(by_backend[backend][0][name][b], expected, atol=2e-6)


def test_chunked_gradients_equal_those_of_the_plain_backend(results):
  _, by_backend = results
  for plain, chunked in zip(by_backend['xla'][1], by_backend['chunked'][1]):
    np.testing.assert_allclose(chunked, plain, atol=5e-5)
    assert np.all(np.isfinite(chunked)) and np.any(np.asarray(chunked) != 0)


def test_chunked_never_builds_queries_by_keys():
  length = 4096
  x = jax.ShapeDtypeStruct((1, length, 1, 8), jnp.float32)
  loss = lambda q: attention.attention(q, q, q, masks.Causal(), backend='chunked').sum()
  compiled = jax.jit(jax.grad(loss)).lower(x).compile()
  assert compiled.memory_analysis().temp_size_in_bytes < length * length * 4 / 4


def test_splash_lowers_the_specifications_it_can_express(qkv):
  pytest.importorskip('jax.experimental.pallas.ops.tpu.splash_attention')
  rng = np.random.default_rng(2)
  q, k = (rng.standard_normal((1, 128, heads, 128)).astype(np.float32) for heads in (2, 1))
  segments = masks.Segments(jnp.arange(128)[None] // 50)
  for mask in (masks.Causal(), masks.Window(9) & segments):
    # On a CPU the kernel is interpreted, which shows what is computed but not that it is fast.
    out = attention._splash(q, k, k, mask, 0.1, interpret=True)
    plain = attention.attention(q, k, k, mask, scale=0.1)
    np.testing.assert_allclose(out, plain, atol=2e-5)
  with pytest.raises(ConfigError, match='cannot express PrefixLM'):
    attention._splash(q, k, k, masks.PrefixLM(jnp.array([3])), 0.1, interpret=True)


def test_splash_reaches_to_the_end_of_a_run(qkv):
  pytest.importorskip('jax.experimental.pallas.ops.tpu.splash_attention')
  rng, length = np.random.default_rng(3), 256
  q, k = (rng.standard_normal((2, length, heads, 128)).astype(np.float32) for heads in (2, 2))
  place = np.arange(length)
  image_BL = jnp.stack([(place >= 100) & (place < 160), ((place >= 7) & (place < 67))]).astype(int)
  last_BL = rows.last_of_image(image_BL)
  for more in (masks.Segments(jnp.arange(length)[None] // 128 + jnp.zeros((2, 1), int)), None):
    mask, groups = masks.Reach(last_BL, 59), masks.Causal() | masks.TwoWayGroups(image_BL)
    if more is not None:
      mask, groups = mask & more, groups & more
    np.testing.assert_array_equal(mask.dense(length), groups.dense(length))
    splash = lambda q, k, mask=mask: attention._splash(q, k, k, mask, 0.1, interpret=True)
    plain = lambda q, k, mask=groups: attention.attention(q, k, k, mask, scale=0.1)
    np.testing.assert_allclose(splash(q, k), plain(q, k), atol=2e-5)
    loss = lambda f: jax.grad(lambda q, k: jnp.sum(jnp.sin(f(q, k))), (0, 1))
    for ours, expected in zip(loss(splash)(q, k), loss(plain)(q, k)):
      np.testing.assert_allclose(ours, expected, atol=5e-5)


def test_what_a_backend_cannot_do_is_refused_with_what_it_needs(qkv):
  attend = lambda **kw: attention.attention(*qkv, masks.Causal(), **kw)
  with pytest.raises(ConfigError, match="'flash', expected one of xla, chunked"):
    attend(backend='flash')
  with pytest.raises(ConfigError, match="'cudnn', but it needs an NVIDIA GPU and this is 'cpu'"):
    attend(backend='cudnn')
  with pytest.raises(ConfigError, match="'splash', but it needs a TPU"):
    attend(backend='splash')
  with pytest.raises(ConfigError, match='no position bias'):
    attend(backend='splash', bias_NLS=jnp.zeros((N, L, L)))
