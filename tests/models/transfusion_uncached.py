"""Sampling Transfusion without a cache: the whole row through the network every time."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxmm.core import decoding, diffusion
from jaxmm.models.transfusion import Transfusion


class Uncached:
  """One row, position by position, by what training computes alone."""

  def __init__(self, config, params, key, most, num_positions):
    self.config, self.params, self.key = config, params, key
    self.ids, self.image, self.patch = np.zeros((3, num_positions), np.int32)
    self.latents, self.most, self.length = [], most, 0
    self.run = jax.jit(
      lambda *a: Transfusion(config).apply({'params': params}, *(x[None] for x in a))
    )

  def append(self, token, image=0, patch=0):
    for row, value in zip((self.ids, self.image, self.patch), (token, image, patch)):
      row[self.length] = value
    self.length += 1

  def through(self, latents, times, ids=None):
    """Logits of the last position, and what is predicted of the last image."""
    filled = np.zeros((self.most, *self.config.latent_shape), np.float32)
    filled[: len(latents)] = latents
    segment = (np.arange(len(self.ids)) < self.length).astype(np.int32)
    time = np.zeros(self.most, np.int32)
    time[: len(times)] = times
    ids = self.ids if ids is None else ids
    hidden, out = self.run(ids, self.image, self.patch, segment, filled, time)
    logits = hidden[0, self.length - 1] @ self.params['head']['table'].T
    return logits, out[0, len(latents) - 1]

  def given(self, row):
    for item in row:
      if np.ndim(item):
        self.append(self.config.boi_id)
        self.put(item)
      else:
        self.append(item)

  def put(self, latent):
    self.latents.append(latent)
    for p in range(self.config.num_patches):
      if self.image[self.length] == 0:
        self.image[self.length] = len(self.latents)
        self.patch[self.length] = p
      self.length += 1
    self.append(self.config.eoi_id)

  def text(self, config):
    clean = self.config.given_timestep
    logits, _ = self.through(self.latents or [np.zeros(self.config.latent_shape)],
                             [clean] * max(1, len(self.latents)))  # fmt: skip
    fits = self.fits(1) and len(self.latents) < self.most
    special = self.config
    for never in (special.eoi_id, special.null_id, *([] if fits else [special.boi_id])):
      logits = logits.at[never].set(-jnp.inf)
    key = jax.random.fold_in(self.key, self.length)
    self.append(int(decoding.next_ids(logits[None], 0, key[None], config)[0]))

  def picture(self, sampler):
    """Denoises with the noisy image in its place, its positions filled for the while."""
    first, number = self.length, len(self.latents) + 1
    key = jax.random.fold_in(self.key, first)
    normal = lambda i: jax.random.normal(jax.random.fold_in(key, i), self.config.latent_shape)
    x, clean = normal(0), [self.config.given_timestep] * len(self.latents)
    for p in range(self.config.num_patches):
      self.append(0, number, p)
    # The caption: from the last bracket, or the beginning, to this image's bracket.
    free = self.ids.copy()
    for i in reversed(range(first - 1)):
      if free[i] == self.config.eoi_id:
        break
      free[i] = self.config.null_id
    times, plan = sampler.plan(self.config.num_timesteps)
    for i, t in enumerate(times):
      out = self.through([*self.latents, x], [*clean, t])[1]
      if sampler.is_guided:
        without = self.through([*self.latents, x], [*clean, t], free)[1]
        out = diffusion.guided(out, without, sampler.guidance_scale)
      update = jax.tree.map(lambda a, i=i: a[i], plan)
      fresh = normal(i + 1) if sampler.is_random else None
      x = diffusion.updated(x, out, update, fresh, sampler.clip_x0)
    self.length = first
    self.put(np.asarray(x))

  def fits(self, opening=0):
    """Whether there is room for an image, its closing bracket and `opening` more."""
    return self.length + opening + self.config.num_patches + 1 <= len(self.ids)

  def all(self, row, text, sampler, stop_id):
    self.given(row)
    while True:
      if self.ids[self.length - 1] == self.config.boi_id:
        if not self.fits() or len(self.latents) >= self.most:
          return self
        self.picture(sampler)
      if self.length == len(self.ids):
        return self
      self.text(text)
      if self.ids[self.length - 1] == stop_id:
        return self
