"""Denoising diffusion and rectified flow as pure functions of arrays.

Timesteps are numbered as in the papers: 0 is the clean signal, 1 .. T are noisier and noisier.
Everything that depends on the schedule alone is worked out once, in float64 NumPy, and enters a
program as float32 numbers.

Axes: B examples, S sampling steps, T training timesteps.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.config import ConfigError

METHODS = ('ancestral', 'ddim', 'euler')
VARIANCES = ('small', 'large')


def cosine_alpha_bar(num_timesteps: int, max_beta: float = 0.999) -> np.ndarray:
  """How much of the signal's variance is left at each timestep, float64 [T + 1]; 1 at timestep 0.

  Nichol & Dhariwal 2021 (arXiv:2102.09672, eq. 17): cos^2((t / T + 0.008) / 1.008 * pi / 2) up to a
  factor. As in their code the last betas are cut at `max_beta`; what is returned is the product of
  the cut 1 - beta, so that every use agrees with the betas.
  """
  if num_timesteps < 1:
    raise ConfigError(f'num_timesteps is {num_timesteps}, expected at least 1')
  share = np.arange(num_timesteps + 1, dtype=np.float64) / num_timesteps
  level = np.cos((share + 0.008) / 1.008 * np.pi / 2) ** 2
  beta = np.minimum(1 - level[1:] / level[:-1], max_beta)
  return np.concatenate([[1.0], np.cumprod(1 - beta)])


def spaced_timesteps(num_timesteps: int, num_steps: int) -> np.ndarray:
  """Timesteps to stop at, from T down to 0, int64 [num_steps + 1].

  Evenly spaced from T to 1 and rounded (`space_timesteps` of openai/guided-diffusion; 'linspace' in
  diffusers, whose timesteps are one lower), then 0. One step goes from T to 0.

  Raises:
    ConfigError: more steps than timesteps, or none.
  """
  if not 1 <= num_steps <= num_timesteps:
    raise ConfigError(f'steps is {num_steps}, expected 1 to the {num_timesteps} timesteps trained')
  stops = np.linspace(1, num_timesteps, num_steps) if num_steps > 1 else np.array([num_timesteps])
  return np.concatenate([np.round(stops)[::-1], [0]]).astype(np.int64)


def _like(a_B, x_B: jax.Array) -> jax.Array:
  """A number an example, with axes to be broadcast to x."""
  a_B = jnp.asarray(a_B, jnp.float32)
  return a_B.reshape(a_B.shape + (1,) * (x_B.ndim - a_B.ndim))


def _levels(timestep_B, alpha_bar_T: np.ndarray, x_B: jax.Array) -> tuple[jax.Array, jax.Array]:
  """sqrt(abar) and sqrt(1 - abar); from float32 the second would lose its digits near t = 0."""
  tables = np.sqrt(alpha_bar_T), np.sqrt(1 - alpha_bar_T)
  return tuple(_like(jnp.asarray(table, jnp.float32)[timestep_B], x_B) for table in tables)


def noised(
  x0_B: jax.Array, noise_B: jax.Array, timestep_B: jax.Array, alpha_bar_T: np.ndarray
) -> jax.Array:
  """x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise (Ho et al. 2020, arXiv:2006.11239, eq. 4).

  Args:
    x0_B, noise_B: of the same shape.
    timestep_B: 0 .. T.
    alpha_bar_T: from `cosine_alpha_bar`.
  """
  signal, noise = _levels(timestep_B, alpha_bar_T, x0_B)
  return signal * x0_B + noise * noise_B


def x0_from_noise(
  x_B: jax.Array, noise_B: jax.Array, timestep_B: jax.Array, alpha_bar_T: np.ndarray
) -> jax.Array:
  """The clean signal that, with this noise, gives x_t: the inverse of `noised`."""
  signal, noise = _levels(timestep_B, alpha_bar_T, x_B)
  return (x_B - noise * noise_B) / signal


def posterior(
  x0_B: jax.Array, x_B: jax.Array, alpha_bar: np.ndarray, alpha_bar_before: np.ndarray
) -> tuple[jax.Array, jax.Array]:
  """Mean and variance of q(x_before | x_t, x_0) (arXiv:2006.11239, eq. 7), between two timesteps
  with others between them or not.

  Args:
    x0_B, x_B: the clean and the noised signal.
    alpha_bar, alpha_bar_before: numbers of the schedule, one or one an example; float64.
  """
  update = ancestral_update(alpha_bar, alpha_bar_before)
  mean_B = _like(update.keep_x0, x_B) * x0_B + _like(update.keep_state, x_B) * x_B
  return mean_B, jnp.asarray(update.keep_noise**2, jnp.float32)


def interpolated(x0_B: jax.Array, noise_B: jax.Array, time_B: jax.Array) -> jax.Array:
  """x_t = (1 - t) x_0 + t noise, t in [0, 1] (rectified flow, arXiv:2209.03003, eq. 1)."""
  time_B = _like(time_B, x0_B)
  return (1 - time_B) * x0_B + time_B * noise_B


def velocity(x0_B: jax.Array, noise_B: jax.Array) -> jax.Array:
  """dx_t / dt of `interpolated`: what a flow model predicts."""
  return noise_B - x0_B


def guided(given: jax.Array, free: jax.Array, scale: float) -> jax.Array:
  """free + scale (given - free): classifier-free guidance (arXiv:2207.12598); 1 is no guidance."""
  return free + scale * (given - free)


class Update(NamedTuple):
  """One sampling step as five numbers (or arrays of them, one a step).

  x_0 = from_state * x - from_output * output, cut if asked; then the next x is
  keep_x0 * x_0 + keep_state * x + keep_noise * fresh noise.
  """

  from_state: np.ndarray
  from_output: np.ndarray
  keep_x0: np.ndarray
  keep_state: np.ndarray
  keep_noise: np.ndarray


def ancestral_update(alpha_bar, alpha_bar_before, variance: str = 'small') -> Update:
  """DDPM's step (arXiv:2006.11239, algorithm 2) between two timesteps, neighbours or not.

  Args:
    alpha_bar, alpha_bar_before: of the noisier timestep and of the one to go to; float64.
    variance: 'small' is the posterior's, 'large' is beta. Going to timestep 0 draws no noise.
  """
  now, before = np.asarray(alpha_bar, np.float64), np.asarray(alpha_bar_before, np.float64)
  alpha = now / before
  beta = 1 - alpha
  spread = beta if variance == 'large' else (1 - before) / (1 - now) * beta
  return Update(
    from_state=1 / np.sqrt(now),
    from_output=np.sqrt(1 - now) / np.sqrt(now),
    keep_x0=np.sqrt(before) * beta / (1 - now),
    keep_state=np.sqrt(alpha) * (1 - before) / (1 - now),
    keep_noise=np.where(before < 1, np.sqrt(spread), 0.0),
  )


def ddim_update(alpha_bar, alpha_bar_before, eta: float = 0.0) -> Update:
  """DDIM's step (Song et al. 2021, arXiv:2010.02502, eq. 12 and 16); eta 0 draws no noise.

  Where x_0 is cut, the noise estimate follows it (diffusers: `use_clipped_model_output=True`).
  """
  now, before = np.asarray(alpha_bar, np.float64), np.asarray(alpha_bar_before, np.float64)
  sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
  # The noise estimate (x - sqrt(now) x_0) / sqrt(1 - now), put in terms of x and x_0.
  direction = np.sqrt(np.maximum(1 - before - sigma**2, 0)) / np.sqrt(1 - now)
  return Update(
    from_state=1 / np.sqrt(now),
    from_output=np.sqrt(1 - now) / np.sqrt(now),
    keep_x0=np.sqrt(before) - direction * np.sqrt(now),
    keep_state=direction,
    keep_noise=sigma,
  )


def euler_update(time, time_before) -> Update:
  """Euler's step x - (t - t_before) v along a rectified flow; times in [0, 1]."""
  time, before = np.asarray(time, np.float64), np.asarray(time_before, np.float64)
  return Update(
    from_state=np.ones_like(time),
    from_output=time,
    keep_x0=1 - before / time,
    keep_state=before / time,
    keep_noise=np.zeros_like(time),
  )


def updated(
  x_B: jax.Array,
  output_B: jax.Array,
  update: Update,
  noise_B: jax.Array | None = None,
  clip_x0: float | None = None,
) -> jax.Array:
  """The next x.

  Args:
    x_B: now.
    output_B: the network's: noise, or velocity for `euler_update`.
    update: the step.
    noise_B: standard normal; None where `update.keep_noise` is 0.
    clip_x0: the estimate of the clean signal is cut to [-clip_x0, clip_x0].
  """
  update = Update(*(jnp.asarray(a, jnp.float32) for a in update))
  x0_B = update.from_state * x_B - update.from_output * output_B
  if clip_x0 is not None:
    x0_B = jnp.clip(x0_B, -clip_x0, clip_x0)
  out = update.keep_x0 * x0_B + update.keep_state * x_B
  return out if noise_B is None else out + update.keep_noise * noise_B


@dataclasses.dataclass(frozen=True)
class SamplerConfig:
  """How a signal is drawn from a denoiser.

  Attributes:
    steps: S, evaluations of the network (twice as many rows each under guidance).
    method: 'ancestral' (DDPM), 'ddim', or 'euler' (for flow models, and for no others).
    eta: DDIM's noise, 0 none, 1 as much as ancestral.
    variance: of the ancestral steps, see `ancestral_update`.
    guidance_scale: see `guided`; 1 is no guidance.
    clip_x0: see `updated`; in standard deviations of the data. The cosine schedule's first step
      multiplies an error of the predicted noise by 126 when there are 250 (by 632 when there are
      50), which this bounds (guided-diffusion's `clip_denoised`). None cuts nothing.
  """

  steps: int = 250
  method: str = 'ancestral'
  eta: float = 0.0
  variance: str = 'small'
  guidance_scale: float = 1.0
  clip_x0: float | None = 5.0

  def __post_init__(self):
    for name, known in (('method', METHODS), ('variance', VARIANCES)):
      if getattr(self, name) not in known:
        raise ConfigError(f'{name} is {getattr(self, name)!r}, expected one of {", ".join(known)}')
    if self.steps < 1:
      raise ConfigError(f'steps is {self.steps}, expected at least 1')
    if not 0 <= self.eta <= 1:
      raise ConfigError(f'eta is {self.eta}, expected it in [0, 1]')
    if self.guidance_scale < 1:
      raise ConfigError(f'guidance_scale is {self.guidance_scale}, expected at least 1 (none)')
    if self.clip_x0 is not None and self.clip_x0 <= 0:
      raise ConfigError(f'clip_x0 is {self.clip_x0}, expected it above 0, or None')

  @property
  def is_guided(self) -> bool:
    """Whether the rows come twice, with and without the condition."""
    return self.guidance_scale > 1

  @property
  def is_random(self) -> bool:
    """Whether steps draw fresh noise."""
    return self.method == 'ancestral' or (self.method == 'ddim' and self.eta > 0)

  def plan(self, num_timesteps: int) -> tuple[np.ndarray, Update]:
    """The timestep at which each step asks the network, int32 [S], and the steps' updates,
    float32 [S] each.

    Raises:
      ConfigError: more steps than `num_timesteps`.
    """
    stops = spaced_timesteps(num_timesteps, self.steps)
    if self.method == 'euler':
      update = euler_update(stops[:-1] / num_timesteps, stops[1:] / num_timesteps)
    else:
      level = cosine_alpha_bar(num_timesteps)[stops]
      if self.method == 'ddim':
        update = ddim_update(level[:-1], level[1:], self.eta)
      else:
        update = ancestral_update(level[:-1], level[1:], self.variance)
    return stops[:-1].astype(np.int32), Update(*(a.astype(np.float32) for a in update))


def time_features(time_B: jax.Array, width: int, base: float = 10_000.0) -> jax.Array:
  """Cosines, then sines, of timesteps at `width` / 2 frequencies from 1 down to nearly 1 / base,
  float32 [..., width] (arXiv:1706.03762, section 3.5; the order of openai/guided-diffusion).
  """
  if width < 2 or width % 2:
    raise ConfigError(f'time features are {width} wide, expected an even number above 0')
  frequency = base ** (-np.arange(width // 2) / (width // 2))
  angle = jnp.asarray(time_B, jnp.float32)[..., None] * jnp.asarray(frequency, jnp.float32)
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], axis=-1)
