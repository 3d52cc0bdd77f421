"""Diffusion as on a blackboard: float64 NumPy, one number at a time."""

import math

import numpy as np


def betas(num_timesteps):
  """beta_1 .. beta_T of the cosine schedule, as the paper's footnote and its code say."""
  level = lambda t: math.cos((t / num_timesteps + 0.008) / 1.008 * math.pi / 2) ** 2
  return [min(1 - level(t) / level(t - 1), 0.999) for t in range(1, num_timesteps + 1)]


def alpha_bars(num_timesteps):
  """abar_0 .. abar_T, a running product."""
  out = [1.0]
  for beta in betas(num_timesteps):
    out.append(out[-1] * (1 - beta))
  return np.array(out)


def posterior(x0, x, now, before):
  """Mean and variance of q(x_before | x_now, x_0), by Bayes' rule for two Gaussians of x_before.

  q(x_before | x_0) = N(sqrt(before) x_0, 1 - before); q(x_now | x_before) = N(a x_before, b).
  """
  a, b = math.sqrt(now / before), 1 - now / before
  precision = 1 / (1 - before) + a**2 / b
  mean = (math.sqrt(before) * x0 / (1 - before) + a * x / b) / precision
  return mean, 1 / precision


def ddim(x, noise, now, before, eta, fresh):
  """Song et al.'s equation 12."""
  sigma = eta * math.sqrt((1 - before) / (1 - now)) * math.sqrt(1 - now / before)
  x0 = (x - math.sqrt(1 - now) * noise) / math.sqrt(now)
  return math.sqrt(before) * x0 + math.sqrt(1 - before - sigma**2) * noise + sigma * fresh
